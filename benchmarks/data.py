"""The data of the rows, made once and kept in the work folder: the same bits for every side.

- ``linear``: x ~ N(0, 1) rounded to 1/256 (measured values have few digits, and a codec then has something to do),
  labels by a noisy hyperplane.
- ``digits``: ten noisy prototypes in [0, 1]^d (0 on about half of the pixels), a tenth of the labels wrong, so that a
  network neither fails nor reaches loss 0.

Kept as NPY, and written from there as Zarr or Parquet by bigopt's own writer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Kind = Literal["linear", "digits"]
_ROWS = 50_000


@dataclass(frozen=True)
class Table:
    """A data set of the benchmarks.

    Parameters
    ----------
    kind : {"linear", "digits"}
    rows, features : int
    classes : int
        2 for ``linear``.
    """

    kind: Kind
    rows: int
    features: int
    classes: int = 2

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.kind}-{self.rows}x{self.features}-{self.classes}"

    @property
    def bytes(self) -> int:
        """Size of X, float32."""
        return 4 * self.rows * self.features

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """Yield (X float32, y int64) in blocks of rows, each a function of its number."""
        weights = np.random.default_rng(0).standard_normal(self.features) / np.sqrt(self.features)
        prototypes = np.random.default_rng(1).random((self.classes, self.features), dtype=np.float32)
        for number, start in enumerate(range(0, self.rows, _ROWS)):
            rng = np.random.default_rng([7, number])
            n = min(_ROWS, self.rows - start)
            X = rng.standard_normal((n, self.features), dtype=np.float32)
            if self.kind == "linear":
                np.round(X * 256, out=X)
                X /= 256
                y = (2.0 * (X @ weights) + rng.logistic(size=n) > 0.3).astype(np.int64)
            else:
                y = rng.integers(0, self.classes, n)
                X *= 0.3
                X += prototypes[y] - np.float32(0.3)
                np.round(np.clip(X, 0, 1, out=X) * 255, out=X)
                X /= 255
                wrong = rng.random(n) < 0.1
                y[wrong] = rng.integers(0, self.classes, int(wrong.sum()))
            yield X, y


def arrays(table: Table, work: Path) -> Path:
    """Make ``X.npy`` and ``y.npy`` where they are not there yet; return their folder."""
    folder = work / table.name
    if not (folder / "y.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        X = np.lib.format.open_memmap(folder / "X.npy", mode="w+", dtype=np.float32, shape=(table.rows, table.features))
        y = np.empty(table.rows, dtype=np.int64)
        start = 0
        for features, labels in table.blocks():
            X[start : start + len(features)] = features
            y[start : start + len(features)] = labels
            start += len(features)
        X.flush()
        np.save(folder / "y.tmp.npy", y)
        os.replace(folder / "y.tmp.npy", folder / "y.npy")
    return folder


def load(folder: str | Path) -> tuple[Array, Array]:
    """Read X and y into this process's own memory."""
    return np.load(Path(folder) / "X.npy"), np.load(Path(folder) / "y.npy")


def mapped(folder: str | Path) -> tuple[Array, Array]:
    """Map X and y, without a copy."""
    return np.load(Path(folder) / "X.npy", mmap_mode="r"), np.load(Path(folder) / "y.npy", mmap_mode="r")


def stored(
    table: Table,
    work: Path,
    form: Literal["zarr", "parquet"],
    *,
    partition_rows: int | None = None,
    compressed: bool = True,
) -> Path:
    """Write the table as a dataset with a manifest where it is not there yet; return its folder.

    Parameters
    ----------
    table : Table
    work : Path
    form : {"zarr", "parquet"}
        Parquet has one column a feature: what MLlib's VectorAssembler takes.
    partition_rows : int, optional
    compressed : bool
        Zarr only: zstd, or no codec but the checksum.
    """
    source = arrays(table, work)
    path = work / f"{table.name}-{partition_rows or 'auto'}{'' if compressed else '-raw'}.{form}"
    if not path.exists():
        if form == "zarr" and not compressed:
            _raw_zarr(source, path, partition_rows)
        else:
            _write(source, path, form, table, partition_rows)
    return path


def _write(source: Path, path: Path, form: Literal["zarr", "parquet"], table: Table, rows: int | None) -> None:
    from bigopt.data.writer import DatasetWriter

    X, y = np.load(source / "X.npy", mmap_mode="r"), np.load(source / "y.npy")
    with DatasetWriter(
        str(path),
        format=form,
        columns=[f"x{i}" for i in range(table.features)],
        target=["y"],
        dtype="float32",
        classes=list(range(table.classes)),
        partition_rows=rows,
    ) as writer:
        for start in range(0, table.rows, _ROWS):
            writer.append(X[start : start + _ROWS], y[start : start + _ROWS])


def _raw_zarr(source: Path, path: Path, rows: int | None) -> None:
    """Write a stranger's Zarr group without compression."""
    import zarr

    X, y = np.load(source / "X.npy", mmap_mode="r"), np.load(source / "y.npy")
    rows = rows or max(1, (2 << 20) // X[0].nbytes)
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    group = zarr.open_group(str(part), mode="w")
    for name, array in (("X", X), ("y", y)):
        chunks = (rows, *array.shape[1:])
        target = group.create_array(name, shape=array.shape, chunks=chunks, dtype=array.dtype, compressors=None)
        for start in range(0, len(array), rows):
            target[start : start + rows] = array[start : start + rows]
    os.replace(part, path)
