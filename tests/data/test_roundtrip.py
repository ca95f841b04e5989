"""What is written comes back bit for bit, in the same partitions, whatever the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigopt.core.errors import ConfError, DataError
from bigopt.data.inspect import inspect_dataset
from bigopt.data.manifest import NAME
from bigopt.data.open import open_dataset
from bigopt.data.source import MIN_PARTITIONS
from bigopt.data.writer import DatasetWriter

from .helpers import SIZES, files_of, rows_of, table, write

FORMS = ["zarr", "parquet", "list"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parts", [None, 250, 2000, SIZES])
def test_rows_come_back_bit_for_bit(tmp_path: Path, form: str, parts: Any) -> None:
    X, y, weight = table()
    write(tmp_path / "d", form, X, y, weight, partition_rows=parts, step=77)
    dataset = open_dataset(str(tmp_path / "d"))
    sizes = [p.rows for p in dataset.partitions]
    expected = {None: [158] * 7 + [154], 250: [250] * 5 + [10], 2000: [1260], SIZES: list(SIZES)}[parts]
    assert sizes == expected
    assert [p.start for p in dataset.partitions] == list(np.cumsum([0, *sizes[:-1]]))
    gotX, goty, gotw, bad, read = rows_of(dataset)
    np.testing.assert_array_equal(gotX, X)
    np.testing.assert_array_equal(goty, y)
    np.testing.assert_array_equal(gotw, weight)
    assert bad is None
    assert (dataset.target, dataset.weight, dataset.target_kind) == (("t",), "w", "number")
    assert dataset.warnings == ()
    assert read >= sum(c.bytes for c in dataset.manifest.chunks if c.rows)
    assert dataset.source.identity() == dataset.manifest.fingerprint


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_dtypes_are_kept(tmp_path: Path, form: str, dtype: str) -> None:
    X = (np.random.default_rng(1).normal(size=(40, 3)) * 50).astype(dtype)
    if dtype == "int64":
        X[0] = [2**62, -(2**62) + 1, 2**53 + 1]
    y = np.arange(40)
    write(tmp_path / "d", form, X, y)
    dataset = open_dataset(str(tmp_path / "d"))
    gotX, goty, *_ = rows_of(dataset)
    assert dataset.stored == dtype == gotX.dtype.name
    np.testing.assert_array_equal(gotX, X)
    np.testing.assert_array_equal(goty, y)
    assert dataset.target_kind == "integer"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("labels", "kind"), [(["lo", "hé", ""], "text"), ([True, False, True], "boolean"), ([1, 2, -1], "integer")]
)
def test_labels_of_any_kind(tmp_path: Path, form: str, labels: list[Any], kind: str) -> None:
    X, _, _ = table(rows=300)
    y = np.array(labels)[np.arange(300) % 3]
    write(tmp_path / "d", form, X, y, classes=labels)
    dataset = open_dataset(str(tmp_path / "d"))
    _, goty, *_ = rows_of(dataset)
    assert goty.dtype.kind == y.dtype.kind
    assert goty.tolist() == y.tolist()
    assert dataset.target_kind == kind
    assert dataset.classes == tuple(labels)


@pytest.mark.parametrize("form", FORMS)
def test_several_targets_and_none(tmp_path: Path, form: str) -> None:
    X, _, _ = table(rows=100)
    y = np.random.default_rng(2).normal(size=(100, 3))
    write(tmp_path / "d", form, X, y, target=["a", "b", "c"])
    np.testing.assert_array_equal(rows_of(open_dataset(str(tmp_path / "d")))[1], y)
    two = open_dataset(str(tmp_path / "d"), target=["c", "a"])
    np.testing.assert_array_equal(rows_of(two)[1], y[:, [2, 0]])
    write(tmp_path / "n", form, X, None)
    assert rows_of(open_dataset(str(tmp_path / "n"), need_target=False))[1] is None
    with pytest.raises(ConfError, match="names no target") as caught:
        open_dataset(str(tmp_path / "n"))
    assert "'c0', 'c1'" in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_selection_is_by_name(tmp_path: Path, form: str) -> None:
    X, y, weight = table(rows=200)
    write(tmp_path / "d", form, X, y, weight)
    dataset = open_dataset(str(tmp_path / "d"), features=["c4", "c1", "c2"])
    assert dataset.columns == ("c4", "c1", "c2")
    np.testing.assert_array_equal(rows_of(dataset)[0], X[:, [4, 1, 2]])
    with pytest.raises(ConfError, match="no column 'c9'"):
        open_dataset(str(tmp_path / "d"), features=["c9"])
    with pytest.raises(ConfError, match="no column 't'"):
        open_dataset(str(tmp_path / "d"), features=["c0", "t"])
    with pytest.raises(ConfError, match="named twice"):
        open_dataset(str(tmp_path / "d"), features=["c0", "c1", "c0"])
    with pytest.raises(ConfError, match="also a target" if form != "list" else "lies within 'X'"):
        open_dataset(str(tmp_path / "d"), target="c1", features=None if form == "list" else ["c0", "c1"])


@pytest.mark.parametrize("form", ["zarr", "parquet"])
def test_a_column_may_become_target_or_weight(tmp_path: Path, form: str) -> None:
    X, y, _ = table(rows=200)
    X = np.abs(X)
    write(tmp_path / "d", form, X, y)
    dataset = open_dataset(str(tmp_path / "d"), target="c3", weight="c0")
    gotX, goty, gotw, *_ = rows_of(dataset)
    np.testing.assert_array_equal(gotX, X[:, [1, 2, 4]])
    np.testing.assert_array_equal(goty, X[:, 3])
    np.testing.assert_array_equal(gotw, X[:, 0])


def test_twins_have_the_same_partitions_and_rows(tmp_path: Path) -> None:
    X, y, weight = table(rows=3001)
    found = []
    for form in FORMS:
        for parts in (None, 123, (1, 1500, 700, 800)):
            path = tmp_path / f"{form}{parts if not isinstance(parts, tuple) else 's'}"
            write(path, form, X, y, weight, partition_rows=parts, step=999)
            dataset = open_dataset(str(path))
            blocks = [[p.X.tobytes() for p in dataset.source.pieces(q)] for q in dataset.partitions]
            moments = [(c.name, c.moments) for c in (*dataset.manifest.columns, *dataset.manifest.target)]
            found.append((str(parts), dataset.partitions, [b"".join(b) for b in blocks], moments))
    for first, other in zip(found[:3] * 2, found[3:], strict=True):
        assert first == other


def test_chosen_partitions_depend_on_the_data_alone(tmp_path: Path) -> None:
    X = np.zeros((70_000, 64))
    y = np.zeros(70_000)
    for step in (999, 70_000):
        write(tmp_path / str(step), "zarr", X, y, step=step)
    a, b = (open_dataset(str(tmp_path / str(step))) for step in (999, 70_000))
    assert a.partitions == b.partitions
    assert len(a.partitions) >= MIN_PARTITIONS
    assert {p.rows for p in a.partitions[:-1]} == {8192}
    assert a.manifest.fingerprint == b.manifest.fingerprint


def test_moments_are_those_of_numpy(tmp_path: Path) -> None:
    X, y, _ = table(rows=9001)
    X[:, 1] += 1e4
    write(tmp_path / "d", "zarr", X, y, step=1000)
    for j, column in enumerate(open_dataset(str(tmp_path / "d")).manifest.columns):
        wide = X[:, j].astype(np.float64)
        np.testing.assert_allclose(column.moments, [wide.mean(), wide.std(), wide.min(), wide.max()], rtol=1e-12)


def test_writer_is_atomic_and_refuses(tmp_path: Path) -> None:
    X, y, _ = table(rows=50)
    write(tmp_path / "d", "zarr", X, y)
    before = {p: p.read_bytes() for p in files_of(tmp_path / "d")}
    with pytest.raises(ConfError, match="is there already"):
        write(tmp_path / "d", "parquet", X, y)
    stopped = DatasetWriter(str(tmp_path / "d"), format="parquet", columns=["a"], force=True)
    with pytest.raises(DataError, match="a block of shape"), stopped:
        stopped.append(X)
    assert {p: p.read_bytes() for p in files_of(tmp_path / "d")} == before
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    write(tmp_path / "d", "parquet", X, y, force=True)
    np.testing.assert_array_equal(rows_of(open_dataset(str(tmp_path / "d")))[0], X)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfError, match="is no dataset"):
        write(tmp_path / "home", "zarr", X, y, force=True)
    with pytest.raises(DataError, match="no rows"), DatasetWriter(str(tmp_path / "e"), format="zarr", columns=["a"]):
        pass
    assert not (tmp_path / "e").exists()


def test_writer_keeps_its_own_copy_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    buffer = np.arange(6.0).reshape(3, 2)
    with DatasetWriter(str(tmp_path / "d"), format="zarr", columns=["a", "b"], partition_rows=7) as writer:
        for _ in range(5):
            writer.append(buffer)
            buffer += 1
    expected = np.concatenate([np.arange(6.0).reshape(3, 2) + k for k in range(5)])
    np.testing.assert_array_equal(rows_of(open_dataset(str(tmp_path / "d"), need_target=False))[0], expected)
    with pytest.raises(DataError, match="beyond int8"):
        write(tmp_path / "x", "zarr", np.array([[300]]), None, dtype="int8")
    with pytest.raises(DataError, match="float64 where int8"):
        write(tmp_path / "x", "zarr", np.array([[1.5]]), None, dtype="int8")
    with pytest.raises(DataError, match="do not add up"):
        write(tmp_path / "x", "parquet", np.ones((5, 1)), None, partition_rows=(2, 2))
    with pytest.raises(ConfError, match="'a' occurs twice"):
        DatasetWriter(str(tmp_path / "x"), format="zarr", columns=["a", "a"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", FORMS)
def test_inspect(tmp_path: Path, form: str) -> None:
    X, y, weight = table(rows=400)
    write(tmp_path / "d", form, X, y, weight, partition_rows=100)
    report = inspect_dataset(str(tmp_path / "d"), verify=True)
    assert (report["rows"], report["features"], report["verified"]) == (400, 5, True)
    assert report["partitions"] == {"count": 4, "least": 100, "most": 100}
    assert report["chunks"] == {"count": 4, "least": 100, "most": 100}
    assert "zstd" in report["codec"]
    assert report["checks"]["ok"]
    assert report["checks"]["rows"] == 400
    assert report["columns"][0]["mean"] == pytest.approx(float(X[:, 0].mean()), abs=1e-6)
    assert report["bytes_stored"] == sum(p.stat().st_size for p in files_of(tmp_path / "d") if p.name != NAME)
    victim = next(p for p in files_of(tmp_path / "d") if p.name != NAME and p.suffix != ".json")
    data = bytearray(victim.read_bytes())
    data[40] ^= 1
    victim.write_bytes(bytes(data))
    found = inspect_dataset(str(tmp_path / "d"), verify=True)["checks"]
    assert not found["ok"]
    assert victim.name in found["errors"][0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_urls(tmp_path: Path, form: str, scheme: str) -> None:
    X, y, _ = table(rows=120)
    url = f"file://{tmp_path}/d" if scheme == "file" else f"memory://{tmp_path.name}{form}/d"
    write(url, form, X, y, partition_rows=50)  # type: ignore[arg-type]
    dataset = open_dataset(url)
    np.testing.assert_array_equal(rows_of(dataset)[0], X)
    assert dataset.source.identity() == dataset.manifest.fingerprint
    assert inspect_dataset(url, verify=True)["checks"]["ok"]
    with pytest.raises(ConfError, match="is there already"):
        write(url, form, X, y)  # type: ignore[arg-type]
    write(url, form, X[:60], y[:60], force=True)  # type: ignore[arg-type]
    assert open_dataset(url).rows == 60
