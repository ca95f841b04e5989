"""A stranger's data: written by plain zarr, pyarrow and NumPy, with everything their defaults do."""

from __future__ import annotations

import json
import resource
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from bigopt.core.errors import BigoptError, ConfError, DataError
from bigopt.data.inspect import inspect_dataset
from bigopt.data.open import open_dataset
from bigopt.data.source import NUMERIC, Partition, Source, block_dtype, coalesce, common_dtype

from .helpers import rows_of, table, travelled


def group(path: Path, X: Any, y: Any = None, chunks: Any = (50, 5), ychunks: int = 50, **more: Any) -> Any:
    """Write a Zarr group with zarr's defaults."""
    root = zarr.open_group(str(path), mode="w", zarr_format=3, attributes=more.pop("attributes", {}))
    root.create_array("X", shape=X.shape, chunks=chunks, dtype=X.dtype, **more)[...] = X
    if y is not None:
        kind = "str" if y.dtype.kind == "U" else y.dtype
        root.create_array("y", shape=y.shape, chunks=(ychunks, *y.shape[1:]), dtype=kind)[...] = y
    return root


def parquet(path: Path, X: Any, y: Any = None, rows: int = 1000, **extra: Any) -> None:
    """Write one Parquet file, a column a feature."""
    columns = {f"c{j}": X[:, j] for j in range(X.shape[1])}
    pq.write_table(pa.table({**columns, **({} if y is None else {"t": y}), **extra}), path, row_group_size=rows)


# Zarr


@pytest.mark.parametrize("chunks", [(50, 5), (50, 2), (333, 3), (1, 5), (2000, 1)])
def test_zarr_of_any_chunks(tmp_path: Path, chunks: tuple[int, int]) -> None:
    X, y, _ = table(rows=400)
    group(tmp_path / "d", X, y, chunks=chunks, ychunks=70)
    dataset = open_dataset(str(tmp_path / "d"))
    gotX, goty, *_, read = rows_of(dataset)
    np.testing.assert_array_equal(gotX, X)
    np.testing.assert_array_equal(goty, y)
    assert read > 0
    assert all(p.start % chunks[0] == 0 for p in dataset.partitions)
    assert len(dataset.warnings) == 1
    assert "cannot be verified" in dataset.warnings[0]
    assert dataset.columns == ("x0", "x1", "x2", "x3", "x4")
    assert dataset.source.identity() == dataset.source.fingerprint


def test_zarr_shards(tmp_path: Path) -> None:
    X, y, _ = table(rows=400)
    group(tmp_path / "d", X, y, chunks=(10, 5), shards=(80, 5))
    dataset = open_dataset(str(tmp_path / "d"))
    assert all(p.start % 80 == 0 for p in dataset.partitions)
    np.testing.assert_array_equal(rows_of(dataset)[0], X)
    np.testing.assert_array_equal(rows_of(open_dataset(str(tmp_path / "d"), features=["x4", "x0"]))[0], X[:, [4, 0]])


def test_zarr_leaves_out_zero_chunks_and_they_are_counted(tmp_path: Path) -> None:
    X, y, _ = table(rows=400)
    X[100:200] = 0
    y[:50] = 0
    group(tmp_path / "d", X, y, chunks=(50, 2))
    assert not (tmp_path / "d/X/c/2/0").exists()
    dataset = open_dataset(str(tmp_path / "d"))
    assert "6 of 24 chunks of X and 1 of 8 chunks of y" in dataset.warnings[0]
    gotX, goty, *_ = rows_of(dataset)
    np.testing.assert_array_equal(gotX, X)
    np.testing.assert_array_equal(goty, y)


@pytest.mark.parametrize("dtype", sorted(NUMERIC))
def test_zarr_dtypes(tmp_path: Path, dtype: str) -> None:
    X = (np.random.default_rng(0).normal(size=(20, 3)) * 9).astype(dtype)
    group(tmp_path / "d", X, X[:, 0], chunks=(8, 3), ychunks=8)
    gotX, goty, *_ = rows_of(open_dataset(str(tmp_path / "d")))
    assert gotX.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(gotX, X)
    np.testing.assert_array_equal(goty, X[:, 0])


def test_zarr_text_labels_big_endian_and_fixed_strings(tmp_path: Path) -> None:
    X, _, _ = table(rows=90)
    labels = np.array(["a", "", "longer é"])[np.arange(90) % 3]
    group(tmp_path / "d", X.astype(">f4"), labels, serializer=zarr.codecs.BytesCodec(endian="big"))
    gotX, goty, *_ = rows_of(open_dataset(str(tmp_path / "d")))
    np.testing.assert_array_equal(gotX, X)
    assert goty.tolist() == labels.tolist()
    assert open_dataset(str(tmp_path / "d")).target_kind == "text"
    root = group(tmp_path / "u", X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr 3.1 calls fixed-length text unstable, 3.4 does not
        array = root.create_array("y", shape=(90,), chunks=(40,), dtype="<U8")
    array[...] = labels
    assert rows_of(open_dataset(str(tmp_path / "u")))[1].tolist() == labels.tolist()


def test_zarr_names_weight_and_other_label_arrays(tmp_path: Path) -> None:
    X, y, weight = table(rows=90)
    attributes = {"columns": list("abcde"), "target": "delay"}
    root = group(tmp_path / "d", X, y, attributes=attributes)
    root.create_array("weight", shape=(90,), chunks=(90,), dtype="f8")[...] = weight
    root.create_array("other", shape=(90, 2), chunks=(30, 1), dtype="i4")[...] = np.arange(180).reshape(90, 2)
    dataset = open_dataset(str(tmp_path / "d"), target="delay")
    assert (dataset.target, dataset.weight, dataset.columns) == (("delay",), "weight", tuple("abcde"))
    np.testing.assert_array_equal(rows_of(dataset)[2], weight)
    other = open_dataset(str(tmp_path / "d"), target="other", features=["e"])
    np.testing.assert_array_equal(rows_of(other)[1], np.arange(180).reshape(90, 2))
    assert other.target_kind == "integer"
    with pytest.raises(ConfError, match="did you mean 'delay'"):
        open_dataset(str(tmp_path / "d"), target="dellay")


def test_zarr_that_does_not_fit(tmp_path: Path) -> None:
    X, y, _ = table(rows=90)
    group(tmp_path / "a", X, y[:80])
    with pytest.raises(DataError, match="'y' has 80 rows, X has 90"):
        open_dataset(str(tmp_path / "a"))
    group(tmp_path / "b", X[:0], y[:0])
    with pytest.raises(DataError, match="no rows"):
        open_dataset(str(tmp_path / "b"))
    group(tmp_path / "c", X, y, attributes={"columns": ["a"]})
    with pytest.raises(DataError, match="1 names"):
        open_dataset(str(tmp_path / "c"))
    zarr.create_array(str(tmp_path / "e"), shape=(3, 2), chunks=(3, 2), dtype="f4")
    with pytest.raises(DataError, match="not a group"):
        open_dataset(str(tmp_path / "e"))
    zarr.open_group(str(tmp_path / "v2"), mode="w", zarr_format=2)
    with pytest.raises(DataError, match="Zarr format 2"):
        open_dataset(str(tmp_path / "v2"))
    root = group(tmp_path / "f", X.astype("c8"), y)
    with pytest.raises(DataError, match="data type 'complex64'"):
        open_dataset(str(tmp_path / "f"))
    assert root is not None


def test_zarr_damage_is_named(tmp_path: Path) -> None:
    X, y, _ = table(rows=200)
    group(tmp_path / "d", X, y, chunks=(50, 5))
    victim = tmp_path / "d/X/c/2/0"
    victim.write_bytes(victim.read_bytes()[:40])
    dataset = open_dataset(str(tmp_path / "d"))
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        rows_of(dataset)
    assert "X/c/2/0" in caught.value.where
    (tmp_path / "d/X/zarr.json").write_text((tmp_path / "d/X/zarr.json").read_text() + " ")
    with pytest.raises(DataError, match="changed since"):
        list(travelled(dataset).pieces(dataset.partitions[0]))


BOMBS: list[tuple[str, Any]] = [
    ("shape", [10**15, 5]),
    ("shape", [10**30, 5]),
    ("shape", [-1, 5]),
    ("shape", [10, 10, 10]),
    ("shape", "x"),
    ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [10**12, 5]}}),
    ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0, 5]}}),
    ("chunk_grid", {"name": "rectangular", "configuration": {}}),
    ("chunk_grid", {}),
    ("codecs", [{"name": "pickle"}]),
    ("codecs", [{"name": "numcodecs.pickle", "configuration": {}}]),
    ("codecs", 5),
    ("data_type", "object"),
    ("data_type", {"name": "fixed_length_utf32", "configuration": {"length_bytes": 1 << 40}}),
    ("node_type", "group"),
    ("storage_transformers", [{"name": "x"}]),
    ("chunk_key_encoding", {"name": "../.."}),
    ("zarr_format", 2),
]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda b: f"{b[0]}-{str(b[1])[:30]}")
def test_metadata_bombs_are_refused_before_anything_is_allocated(tmp_path: Path, bomb: tuple[str, Any]) -> None:
    X, y, _ = table(rows=90)
    group(tmp_path / "d", X, y)
    document = tmp_path / "d/X/zarr.json"
    document.write_text(json.dumps({**json.loads(document.read_text()), bomb[0]: bomb[1]}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as caught:
        open_dataset(str(tmp_path / "d"))
    assert "X/zarr.json" in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_deep_json_is_refused(tmp_path: Path) -> None:
    X, y, _ = table(rows=10)
    group(tmp_path / "d", X, y)
    (tmp_path / "d/X/zarr.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="no readable JSON"):
        open_dataset(str(tmp_path / "d"))


# Parquet


def test_parquet_files_in_order_of_name_and_columns_by_name(tmp_path: Path) -> None:
    X, _, _ = table(rows=3000)
    labels = np.array(["lo", "hi"])[(X[:, 0] > 0).astype(int)]
    full = pa.table({**{f"c{j}": X[:, j] for j in range(5)}, "lab": labels})
    folder = tmp_path / "d"
    folder.mkdir()
    pq.write_table(full.slice(0, 1000), folder / "a.parquet", row_group_size=300)
    other = full.slice(1000).select(["lab", "c4", "c0", "c1", "c2", "c3"])
    pq.write_table(other, folder / "b.parquet", row_group_size=700)
    for hidden in ("_SUCCESS", ".a.parquet.crc", "_metadata"):
        (folder / hidden).write_bytes(b"junk")
    dataset = open_dataset(str(folder), target="lab")
    assert [p.rows for p in dataset.partitions] == [300, 300, 300, 100, 700, 700, 600]
    gotX, goty, *_ = rows_of(dataset)
    np.testing.assert_array_equal(gotX, X)
    assert goty.tolist() == labels.tolist()
    assert len(dataset.warnings) == 1
    assert "cannot be verified" in dataset.warnings[0]
    assert dataset.source.place(dataset.partitions[4], 17).endswith("b.parquet, row group 0, row 17 (global row 1017)")
    assert dataset.source.identity() == dataset.source.fingerprint
    with pytest.raises(ConfError, match="names no target"):
        open_dataset(str(folder))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint8", "int16", "int64", "uint32", "bool"])
def test_parquet_columns_of_one_type_in_any_cut(tmp_path: Path, dtype: str) -> None:
    X = (np.random.default_rng(5).random((700, 5)) * 120).astype(dtype)
    data: dict[str, Any] = {f"c{j}": X[:, j] for j in range(5)}
    pq.write_table(pa.table({**data, "t": np.arange(700)}), tmp_path / "d.parquet", row_group_size=300)
    source = open_dataset(str(tmp_path / "d.parquet"), target="t", features=["c3", "c0", "c4"]).source
    for start, rows in ((0, 700), (17, 290), (301, 399), (299, 2)):
        pieces = list(source.pieces(Partition(0, start, rows)))
        found = np.concatenate([piece.X for piece in pieces])
        assert (found.dtype, source.stored) == (np.dtype(dtype), dtype)
        np.testing.assert_array_equal(found, X[start : start + rows][:, [3, 0, 4]])
        assert all(piece.X.flags.c_contiguous for piece in pieces)


def test_parquet_list_column(tmp_path: Path) -> None:
    X, y, _ = table(rows=700)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 5)
    pq.write_table(pa.table({"v": lists, "t": y}), tmp_path / "d.parquet", row_group_size=200)
    dataset = open_dataset(str(tmp_path / "d.parquet"), target="t")
    gotX, goty, *_ = rows_of(dataset)
    np.testing.assert_array_equal(gotX, X)
    np.testing.assert_array_equal(goty, y)
    assert dataset.columns == ("x0", "x1", "x2", "x3", "x4")
    some = open_dataset(str(tmp_path / "d.parquet"), target="t", features=["x3", "x1"])
    np.testing.assert_array_equal(rows_of(some)[0], X[:, [3, 1]])
    pq.write_table(pa.table({"v": lists, "t": y, "id": np.arange(700)}), tmp_path / "e.parquet")
    with pytest.raises(ConfError, match="and also 'id'"):
        open_dataset(str(tmp_path / "e.parquet"), target="t")
    np.testing.assert_array_equal(rows_of(open_dataset(str(tmp_path / "e.parquet"), target="t", features=["v"]))[0], X)


def test_parquet_dtypes_mix_by_the_rule(tmp_path: Path) -> None:
    data = {
        "b": np.array([True, False]), "i": np.array([1, -2], "i2"), "u": np.array([3, 60000], "u2"),
        "f": np.array([0.5, 1.5], "f4"), "l": np.array([1, 2**40]), "t": [1.0, 2.0],
    }  # fmt: skip
    pq.write_table(pa.table(data), tmp_path / "d.parquet")
    small = open_dataset(str(tmp_path / "d.parquet"), target="t", features=["b", "i", "u", "f"])
    assert small.stored == "float32"
    np.testing.assert_array_equal(rows_of(small)[0], [[1, 1, 3, 0.5], [0, -2, 60000, 1.5]])
    assert open_dataset(str(tmp_path / "d.parquet"), target="t").stored == "float64"
    assert block_dtype(small.stored) == np.float32
    assert open_dataset(str(tmp_path / "d.parquet"), target="t", features=["l"]).stored == "int64"
    assert block_dtype("int64") == np.float64
    assert block_dtype("int64", "float32") == np.float32


@pytest.mark.parametrize("kind", ["column", "list", "inside"])
def test_parquet_nulls_are_refused_or_marked(tmp_path: Path, kind: str) -> None:
    X, y, _ = table(rows=50)
    cells: list[Any] = X[:, 1].tolist()
    if kind == "column":
        cells[33] = None
        data = {"c0": X[:, 0], "c1": pa.array(cells, pa.float32()), "t": y}
        name = "c1"
    else:
        rows = [[float(v) for v in row] for row in X]
        if kind == "inside":
            rows[33][2] = None  # type: ignore[call-overload]
        else:
            rows[33] = None  # type: ignore[call-overload]
        data = {"v": pa.array(rows, pa.list_(pa.float32(), 5)), "t": y}
        name = "v"
    pq.write_table(pa.table(data), tmp_path / "d.parquet", row_group_size=20)
    dataset = open_dataset(str(tmp_path / "d.parquet"), target="t")
    with pytest.raises(DataError, match=f"column '{name}' has a null") as caught:
        rows_of(dataset)
    assert "d.parquet, row group 1, row 13 (global row 33)" in caught.value.where
    gotX, goty, _, bad, _ = rows_of(open_dataset(str(tmp_path / "d.parquet"), target="t", on_bad_rows="skip"))
    assert np.flatnonzero(bad).tolist() == [33]
    keep = np.arange(50) != 33
    np.testing.assert_array_equal(gotX[keep], (X[:, :2] if kind == "column" else X)[keep])
    np.testing.assert_array_equal(goty, y)


@pytest.mark.parametrize("labels", [["a", None, "b"], [True, None, False], [1, None, 2]])
def test_parquet_null_labels(tmp_path: Path, labels: list[Any]) -> None:
    pq.write_table(pa.table({"c": [1.0, 2.0, 3.0], "t": labels}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="column 't' has a null"):
        rows_of(open_dataset(str(tmp_path / "d.parquet"), target="t"))
    _, goty, _, bad, _ = rows_of(open_dataset(str(tmp_path / "d.parquet"), target="t", on_bad_rows="skip"))
    assert bad.tolist() == [False, True, False]
    assert goty[[0, 2]].tolist() == [labels[0], labels[2]]


class _Tagged(pa.ExtensionType):  # type: ignore[misc]  # pyarrow is untyped
    def __init__(self) -> None:
        super().__init__(pa.float64(), "bigopt.test")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "text"),
        (pa.array(["a", "b"]).dictionary_encode(), "category"),
        (pa.array([1, 2], pa.timestamp("us")), "timestamp"),
        (pa.array([1, 2], pa.decimal128(5, 2)), "decimal128"),
        (pa.array([[1.0], [2.0]]), "list<"),
        (pa.nulls(2), "null"),
        (pa.ExtensionArray.from_storage(_Tagged(), pa.array([1.0, 2.0])), "extension type bigopt.test"),
    ],
)
def test_parquet_features_that_are_no_numbers(tmp_path: Path, values: Any, kind: str) -> None:
    pq.write_table(pa.table({"ok": [1.0, 2.0], "odd": values, "t": [1, 2]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=f"column 'odd' is .*{kind}") as caught:
        open_dataset(str(tmp_path / "d.parquet"), target="t")
    assert "ingest.encode" in caught.value.hint
    dataset = open_dataset(str(tmp_path / "d.parquet"), target="t", features=["ok"])
    assert rows_of(dataset)[0].tolist() == [[1.0], [2.0]]


def test_parquet_category_target(tmp_path: Path) -> None:
    labels = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"c": [1.0, 2.0, 3.0], "t": labels}), tmp_path / "d.pq")
    dataset = open_dataset(str(tmp_path / "d.pq"), target="t")
    assert dataset.target_kind == "category"
    assert rows_of(dataset)[1].tolist() == ["x", "y", "x"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"a": [1, 2], "b": [1.0, 2.0], "t": [0.0, 1.0]}, "'a' is int64, not float64"),
        ({"b": [1.0, 2.0], "t": [0.0, 1.0]}, "no column 'a'"),
        ({"a": [1.0], "b": [1.0], "c": [1.0], "t": [0.0]}, "also a column 'c'"),
        ({"A": [1.0], "b": [1.0], "t": [0.0]}, "no column 'a'; also a column 'A'"),
    ],
)
def test_parquet_schema_drift(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [1.0, 2.0], "t": [0.0, 1.0]}), folder / "1.parquet")
    pq.write_table(pa.table(second), folder / "2.parquet")
    with pytest.raises(DataError) as caught:
        open_dataset(str(folder), target="t")
    assert message in caught.value.message
    assert "1.parquet" in caught.value.message
    assert "2.parquet" in caught.value.where
    dataset = open_dataset(str(folder), target="t", features=["b"])
    assert dataset.rows == 2 + len(second["b"])


def test_parquet_folders_that_are_refused(tmp_path: Path) -> None:
    X, y, _ = table(rows=30)

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        parquet(tmp_path / name / "a.parquet", X, y)
        return tmp_path / name

    cases: list[tuple[Path, str]] = []
    (folder("unfinished") / "_temporary").mkdir()
    cases.append((tmp_path / "unfinished", "_temporary"))
    (folder("hive") / "k=1").mkdir()
    cases.append((tmp_path / "hive", "folders inside"))
    (folder("empty") / "b.parquet").write_bytes(b"")
    cases.append((tmp_path / "empty", "empty file"))
    (folder("foreign") / "b.csv").write_text("a,b\n1,2\n3,4\n")
    cases.append((tmp_path / "foreign", "no Parquet file"))
    cut = folder("cut") / "b.parquet"
    cut.write_bytes((tmp_path / "cut/a.parquet").read_bytes()[:500])
    cases.append((tmp_path / "cut", "no Parquet file"))
    (tmp_path / "nothing").mkdir()
    cases.append((tmp_path / "nothing", "an empty folder"))
    cases.append((tmp_path / "absent", "no such file"))
    for path, message in cases:
        with pytest.raises(DataError, match=message):
            open_dataset(str(path), target="t")
    (tmp_path / "raw.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfError, match="is raw data"):
        open_dataset(str(tmp_path / "raw.csv"))
    parquet(tmp_path / "none.parquet", X[:0], y[:0])
    with pytest.raises(DataError, match="no rows"):
        open_dataset(str(tmp_path / "none.parquet"), target="t")


def test_parquet_empty_row_groups_and_files(tmp_path: Path) -> None:
    X, y, _ = table(rows=60)
    folder = tmp_path / "d"
    folder.mkdir()
    parquet(folder / "a.parquet", X[:0], y[:0])
    parquet(folder / "b.parquet", X[:30], y[:30])
    parquet(folder / "c.parquet", X[:0], y[:0])
    parquet(folder / "d.parquet", X[30:], y[30:])
    dataset = open_dataset(str(folder), target="t")
    np.testing.assert_array_equal(rows_of(dataset)[0], X)
    assert [p.rows for p in dataset.partitions] == [30, 30]
    assert "d.parquet, row group 0, row 2 (global row 32)" in dataset.source.place(dataset.partitions[1], 2)


def test_parquet_large_row_groups_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigopt.data.parquetopen.SPLIT_BYTES", 1 << 14)
    monkeypatch.setattr("bigopt.data.parquetstore.PIECE_BYTES", 1 << 12)
    X, y, _ = table(rows=4000)
    parquet(tmp_path / "d.parquet", X, y, rows=3000)
    dataset = open_dataset(str(tmp_path / "d.parquet"), target="t")
    assert len(dataset.partitions) > 5
    assert max(p.rows for p in dataset.partitions) * 28 <= 1 << 14
    np.testing.assert_array_equal(rows_of(dataset)[0], X)


def test_parquet_page_checksums_are_verified_and_the_column_named(tmp_path: Path) -> None:
    X, y, _ = table(rows=2000)
    columns = {f"c{j}": X[:, j] for j in range(5)}
    path = tmp_path / "d.parquet"
    whole = pa.table({**columns, "t": y})
    pq.write_table(whole, path, write_page_checksum=True, use_dictionary=False, compression="none")
    column = pq.read_metadata(path).row_group(0).column(2)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="column 'c2'") as caught:
        rows_of(open_dataset(str(path), target="t"))
    assert "d.parquet, row group 0" in caught.value.where


def test_parquet_footers_beyond_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _ = table(rows=300)
    parquet(tmp_path / "d.parquet", X, y, rows=1)
    monkeypatch.setattr("bigopt.data.parquetmeta.MAX_GROUPS", 200)
    with pytest.raises(DataError, match="300 row groups"):
        open_dataset(str(tmp_path / "d.parquet"), target="t")
    monkeypatch.setattr("bigopt.data.parquetmeta.FOOTER_BYTES", 70_000)
    with pytest.raises(DataError, match="a footer of"):
        open_dataset(str(tmp_path / "d.parquet"), target="t")


def test_parquet_footers_fuzzed_raise_typed_errors_only(tmp_path: Path) -> None:
    X, y, _ = table(rows=40)
    parquet(tmp_path / "d.parquet", X, y, rows=20)
    data = (tmp_path / "d.parquet").read_bytes()
    length = int.from_bytes(data[-8:-4], "little") + 8
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(150):
        mutant = bytearray(data)
        for at in rng.integers(len(data) - length, len(data), size=int(rng.integers(1, 6))):
            mutant[at] = int(rng.integers(256))
        (tmp_path / "d.parquet").write_bytes(bytes(mutant))
        try:
            rows_of(open_dataset(str(tmp_path / "d.parquet"), target="t"))
        except BigoptError:
            refused += 1
        except AssertionError:
            pass
    assert refused > 75


# NPZ and NPY


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    X, y, weight = table(rows=5000, columns=100)
    save(tmp_path / "d.npz", X=X, y=y, weight=weight, columns=[f"a{j}" for j in range(100)], target="z")
    dataset = open_dataset(str(tmp_path / "d.npz"))
    assert (dataset.target, dataset.weight, dataset.columns[:2]) == (("z",), "weight", ("a0", "a1"))
    assert len(dataset.partitions) == 8
    gotX, goty, gotw, *_, read = rows_of(dataset)
    np.testing.assert_array_equal(gotX, X)
    np.testing.assert_array_equal(goty, y)
    np.testing.assert_array_equal(gotw, weight)
    assert read > X.nbytes / 2
    some = open_dataset(str(tmp_path / "d.npz"), features=["a7", "a3"], target="a5")
    np.testing.assert_array_equal(rows_of(some)[0], X[:, [7, 3]])
    np.testing.assert_array_equal(rows_of(some)[1], X[:, 5])
    data = bytearray((tmp_path / "d.npz").read_bytes())
    data[len(data) // 2] ^= 16
    (tmp_path / "d.npz").write_bytes(bytes(data))
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(open_dataset(str(tmp_path / "d.npz")))


def test_npy_with_labels_beside(tmp_path: Path) -> None:
    X, _, _ = table(rows=500)
    labels = np.array([b"u", b"v"])[np.arange(500) % 2]
    np.save(tmp_path / "d.npy", X.astype(">f4"))
    np.save(tmp_path / "d.y.npy", labels)
    dataset = open_dataset(str(tmp_path / "d.npy"))
    gotX, goty, *_ = rows_of(dataset)
    np.testing.assert_array_equal(gotX, X)
    assert goty.tolist() == [v.decode() for v in labels]
    alone = open_dataset(f"file://{tmp_path}/d.npy", target="x2")
    np.testing.assert_array_equal(rows_of(alone)[1], X[:, 2])
    before = dataset.source.identity()
    np.save(tmp_path / "d.npy", X + 1)
    assert dataset.source.identity() != before
    with pytest.raises(DataError, match="changed since"):
        list(travelled(dataset).pieces(dataset.partitions[0]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[None, 1]], dtype=object), "dtype object"),
        (np.ones((4, 4), order="F"), "Fortran order"),
        (np.ones((2, 2, 2)), "shape"),
        (np.ones(3), "X has shape"),
        (np.ones((0, 3)), "no rows"),
        (np.ones((2, 2), dtype=complex), "dtype complex128"),
        (np.array([["a"]]), "X has shape"),
    ],
)
def test_npy_that_is_refused(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "d.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        open_dataset(str(tmp_path / "d.npy"), target="x0", features=["x0"])
    np.save(tmp_path / "e.npy", np.ones((9, 2)))
    (tmp_path / "e.npy").write_bytes((tmp_path / "e.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match="its header says"):
        open_dataset(str(tmp_path / "e.npy"), target="x0")


# All


def test_inspect_needs_no_target(tmp_path: Path) -> None:
    X, y, _ = table(rows=30)
    parquet(tmp_path / "d.parquet", X, y)
    report = inspect_dataset(str(tmp_path / "d.parquet"), verify=True)
    assert (report["verified"], report["format"], report["target"], report["rows"]) == (False, "parquet", [], 30)
    assert report["checks"]["ok"]
    json.dumps(report, allow_nan=False)


def test_sources_fulfil_the_protocol_and_show_no_secrets(tmp_path: Path) -> None:
    X, y, _ = table(rows=30)
    parquet(tmp_path / "d.parquet", X, y)
    group(tmp_path / "d", X, y)
    np.savez(tmp_path / "d.npz", X=X, y=y)
    for name in ("d.parquet", "d", "d.npz"):
        options = {"auto_mkdir": False}
        target = "t" if "parquet" in name else None
        source = open_dataset(str(tmp_path / name), target=target, storage_options=options).source
        assert isinstance(source, Source)
        assert "auto_mkdir" not in repr(source)


def test_common_dtype_and_coalesce() -> None:
    assert common_dtype(["int16", "uint16", "bool"]) == "float32"
    assert common_dtype(["int32", "bool"]) == "float64"
    assert common_dtype(["int8", "int8"]) == "int8"
    assert coalesce([10] * 16, 8) == (20,) * 8
    assert coalesce([1000, 1, 1], 8) == (1000, 2)
    assert coalesce([1 << 20] * 3, 1 << 10) == (1 << 20,) * 3
