"""Sparse rows on disk, foreign and with a manifest: SciPy's matrix is what every format must give back, bit by bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from bigopt.core import codec
from bigopt.core.csr import CSR, stacked
from bigopt.core.errors import ConfError, DataError, SecurityError
from bigopt.data.columns import Names, Run, x_names
from bigopt.data.inspect import inspect_dataset
from bigopt.data.manifest import NAME, parse_manifest
from bigopt.data.open import open_dataset
from bigopt.data.source import Dataset, Source
from bigopt.data.view import DataView
from bigopt.data.writer import DatasetWriter

from .helpers import files_of

sp = pytest.importorskip("scipy.sparse")

ROWS, COLUMNS = 700, 5000
FORMS = ["zarr", "parquet"]


def table(seed: int = 0, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """A matrix with empty rows, labels and weights."""
    rng = np.random.default_rng(seed)
    X = sp.random_array((ROWS, COLUMNS), density=0.004, format="csr", rng=rng, dtype=np.dtype(dtype))
    X.sort_indices()
    return X, rng.normal(size=ROWS), rng.random(ROWS)


def own(X: Any) -> CSR:
    return CSR(X.data, X.indices, X.indptr.astype(np.int64), X.shape[1])


def write(path: Path, form: str, X: Any, y: Any = None, weight: Any = None, step: int = 90, **more: Any) -> Path:
    options: dict[str, Any] = {
        "columns": x_names(X.shape[1]),
        "target": [] if y is None else ["t"],
        "weight": None if weight is None else "w",
        "dtype": X.dtype.name,
        **more,
    }
    with DatasetWriter(str(path), format=form, layout="sparse", **options) as writer:  # type: ignore[arg-type]
        for a in range(0, X.shape[0], step):
            cut = slice(a, a + step)
            writer.append(own(X[cut]), None if y is None else y[cut], None if weight is None else weight[cut])
    return path


def rows_of(dataset: Dataset) -> tuple[CSR, Any, Any, Any]:
    """Read everything through a source that has travelled; check each piece and each partition."""
    source = codec.loads([bytes(part) for part in codec.dumps(dataset.source)])
    assert source == dataset.source
    assert isinstance(source, Source)
    assert source.sparse
    assert source.identity() == dataset.source.fingerprint  # type: ignore[attr-defined]
    pieces = []
    for partition in dataset.partitions:
        here = list(source.pieces(partition))
        assert sum(len(piece.X) for piece in here) == partition.rows
        assert sum(len(piece.X.data) for piece in here) <= source.nonzeros(partition)
        assert all(piece.X.dtype.name == dataset.stored and piece.X.columns == len(dataset.columns) for piece in here)
        pieces += here

    def joined(values: list[Any]) -> Any:
        return None if values[0] is None else np.concatenate(values)

    return stacked([piece.X for piece in pieces]), *(joined([piece[k] for piece in pieces]) for k in (1, 2, 4))


def assert_rows(dataset: Dataset, X: Any, y: Any = None, weight: Any = None) -> None:
    got, labels, weights, _ = rows_of(dataset)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(got, name), getattr(X, name), name)
    np.testing.assert_array_equal(labels, y)
    np.testing.assert_array_equal(weights, weight)


def foreign(path: Path, form: str, X: Any, y: Any, weight: Any = None, **more: Any) -> Path:
    """Write with the libraries alone."""
    if form == "zarr":
        group = zarr.open_group(str(path), mode="w", attributes=more.get("attributes", {}))
        arrays = {"data": X.data, "indices": X.indices, "indptr": X.indptr, "shape": np.array(X.shape), "y": y}
        for name, values in {**arrays, **({} if weight is None else {"weight": weight})}.items():
            if name not in more.get("without", ()):
                group.create_array(name, data=values, chunks=(min(len(values), 300),))
    elif form == "npz":
        members = {"data": X.data, "indices": X.indices, "indptr": X.indptr, "shape": X.shape, "format": b"csr", "y": y}
        if weight is not None:
            members["weight"] = weight
        more.get("save", np.savez)(path, **members)
    else:
        path.mkdir()
        lists = [
            pa.ListArray.from_arrays(pa.array(X.indptr.astype(np.int32)), pa.array(v)) for v in (X.indices, X.data)
        ]
        columns = {more.get("names", ("indices", "values"))[k]: v for k, v in enumerate(lists)}
        columns["y"] = pa.array(y)
        if weight is not None:
            columns["w"] = pa.array(weight)
        made = pa.table(columns).replace_schema_metadata(more.get("notes", {"features": str(X.shape[1])}))
        cut = len(y) // 3
        pq.write_table(made.slice(0, cut), path / "a.parquet", row_group_size=97)
        pq.write_table(made.slice(cut), path / "b.parquet")
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("partition_rows", [None, 130, (300, 0, 17, 383)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_written_rows_come_back(tmp_path: Path, form: str, partition_rows: Any, dtype: str) -> None:
    X, y, weight = table()
    X = (X * 100).astype(dtype)
    write(tmp_path / "d", form, X, y, weight, partition_rows=partition_rows)
    dataset = open_dataset(str(tmp_path / "d"))
    assert_rows(dataset, X, y, weight)
    assert (dataset.columns, dataset.target, dataset.weight, dataset.warnings) == (x_names(COLUMNS), ("t",), "w", ())
    assert dataset.nonzeros == X.nnz
    for partition in dataset.partitions:
        assert dataset.source.nonzeros(partition) == X[partition.start : partition.stop].nnz
    assert (tmp_path / "d" / NAME).stat().st_size < 5000


@pytest.mark.parametrize("partition_rows", [None, 130, (300, 0, 17, 383)])
def test_twins_have_the_same_partitions_and_bits(tmp_path: Path, partition_rows: Any) -> None:
    X, y, weight = table()
    blocks = []
    for form, step in (("zarr", 700), ("parquet", 33)):
        write(tmp_path / form, form, X, y, weight, step=step, partition_rows=partition_rows)
        dataset = open_dataset(str(tmp_path / form))
        bounds = np.array([0, *(p.stop for p in dataset.partitions)])
        view = DataView(dataset.source, bounds, "float64")
        blocks.append((bounds.tolist(), [view.load(m) for m in range(view.partitions)]))
        assert all(view.decoded_bytes(m) >= block.nbytes for m, block in enumerate(blocks[-1][1]))
    (first, ours), (second, theirs) = blocks
    assert first == second
    for a, b in zip(ours, theirs, strict=True):
        for part in ("data", "indices", "indptr"):
            assert getattr(a.X, part).tobytes() == getattr(b.X, part).tobytes()
            assert getattr(a.X, part).dtype == getattr(b.X, part).dtype


@pytest.mark.parametrize("form", FORMS)
def test_names_of_columns_are_kept(tmp_path: Path, form: str) -> None:
    X, y, _ = table()
    plain = tuple(f"c{j}" for j in range(COLUMNS))
    write(tmp_path / "plain", form, X, y, columns=plain)
    assert open_dataset(str(tmp_path / "plain")).columns == plain
    names = Names(("age", Run("word#", COLUMNS - 2), "size"))
    write(tmp_path / "runs", form, X, y, columns=names)
    dataset = open_dataset(str(tmp_path / "runs"))
    assert dataset.columns == names
    assert_rows(open_dataset(str(tmp_path / "runs"), features=names), X, y)
    some = ("size", "word#7", "age", "word#8")
    got = open_dataset(str(tmp_path / "runs"), features=some)
    np.testing.assert_array_equal(rows_of(got)[0].dense(), X.toarray()[:, [COLUMNS - 1, 8, 0, 9]])
    with pytest.raises(ConfError, match="no column 'word#4998'"):
        open_dataset(str(tmp_path / "runs"), features=("word#4998",))
    with pytest.raises(ConfError, match="occurs twice"):
        write(tmp_path / "bad", form, X, y, columns=Names(("word#3", Run("word#", COLUMNS - 1))))
    with pytest.raises(DataError, match="dense rows"), DatasetWriter(
        str(tmp_path / "dense"), format=form, layout="sparse", columns=["a"]  # type: ignore[arg-type]
    ) as writer:  # fmt: skip
        writer.append(np.ones((1, 1)))


@pytest.mark.parametrize("form", ["zarr", "parquet", "npz"])
def test_foreign_rows_train_as_they_are(tmp_path: Path, form: str) -> None:
    X, y, weight = table(dtype="float64")
    path = foreign(tmp_path / f"d.{form}", form, X, y, weight)
    dataset = open_dataset(str(path), weight="w" if form == "parquet" else None)
    assert_rows(dataset, X, y, weight)
    assert dataset.columns == x_names(COLUMNS)
    assert "no manifest" in dataset.warnings[0]
    assert len(dataset.partitions) >= 8
    assert (dataset.target, dataset.target_kind) == (("y",), "number")
    assert dataset.row_bytes == -(-X.nnz * 12 // ROWS) + 8 + 16
    fewer = open_dataset(str(path), features=x_names(1000))
    np.testing.assert_array_equal(rows_of(fewer)[0].dense(), X.toarray()[:, :1000])
    with pytest.raises(ConfError, match="no column 'x5000'"):
        open_dataset(str(path), features=("x5000",))


def test_scipys_own_npz_trains(tmp_path: Path) -> None:
    X, y, _ = table()
    sp.save_npz(tmp_path / "s.npz", X)
    assert_rows(open_dataset(str(tmp_path / "s.npz"), need_target=False), X)
    foreign(tmp_path / "z.npz", "npz", X, y, save=np.savez_compressed)
    assert_rows(open_dataset(str(tmp_path / "z.npz")), X, y)
    for form in ("csc", "coo", "bsr", "dia"):
        sp.save_npz(tmp_path / "other.npz", X[:50, :60].asformat(form))
        with pytest.raises(DataError, match=rf"{form} format.*CSR format|{form} format.*tocsr"):
            open_dataset(str(tmp_path / "other.npz"), need_target=False)


def test_foreign_parquet_without_metadata_is_scanned_for_d(tmp_path: Path) -> None:
    X, y, _ = table()
    most = int(X.indices.max()) + 1
    dataset = open_dataset(str(foreign(tmp_path / "a", "parquet", X, y, notes={})))
    assert len(dataset.columns) == most
    with pytest.raises(DataError, match=f"index {most - 1} of 7 columns"):
        open_dataset(str(foreign(tmp_path / "b", "parquet", X, y, notes={"features": "7"})))
    dataset = open_dataset(
        str(foreign(tmp_path / "c", "parquet", X, y, names=("col", "val"), notes={"shape": "[700, 6000]"}))
    )
    assert len(dataset.columns) == 6000


def test_foreign_zarr_takes_the_shape_of_anndata(tmp_path: Path) -> None:
    X, y, _ = table()
    path = foreign(tmp_path / "d", "zarr", X, y, without=("shape",), attributes={"shape": [ROWS, COLUMNS]})
    assert_rows(open_dataset(str(path)), X, y)
    with pytest.raises(DataError, match="no shape"):
        open_dataset(str(foreign(tmp_path / "e", "zarr", X, y, without=("shape",))))
    shutil.rmtree(path / "y" / "c")
    assert "chunks of y are not there" in open_dataset(str(path)).warnings[0]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda X: X.indices.__setitem__(slice(3, 5), X.indices[3:5][::-1].copy()), "after column"),
        (lambda X: X.indices.__setitem__(9, COLUMNS), f"column {COLUMNS} of {COLUMNS}|index {COLUMNS} of {COLUMNS}"),
        (lambda X: X.indices.__setitem__(9, -1), f"column -1 of {COLUMNS}"),
    ],
)
@pytest.mark.parametrize("form", ["zarr", "parquet", "npz"])
def test_foreign_rows_that_are_no_csr_are_refused(tmp_path: Path, form: str, change: Any, found: str) -> None:
    X, y, _ = table()
    X.indptr[:6] = [0, 2, 8, 8, 8, min(8, X.indptr[6])]
    change(X)
    path = foreign(tmp_path / f"d.{form}", form, X, y)
    with pytest.raises(DataError, match=found) as caught:
        rows_of(open_dataset(str(path)))
    assert str(path) in caught.value.where


@pytest.mark.parametrize("form", ["zarr", "npz"])
def test_row_bounds_that_lie_are_refused(tmp_path: Path, form: str) -> None:
    X, y, _ = table()
    for k, (at, value) in enumerate([(5, 10**6), (0, 1), (ROWS, X.nnz - 1)]):
        bad = X.copy()
        bad.indptr[at] = value
        with pytest.raises(DataError, match="indptr"):
            open_dataset(str(foreign(tmp_path / f"{k}.{form}", form, bad, y)))


def test_lists_of_different_lengths_and_nulls_are_refused(tmp_path: Path) -> None:
    def made(indices: list[Any], values: list[Any], name: str) -> str:
        table = pa.table({
            "indices": pa.array(indices, pa.list_(pa.int32())), "values": pa.array(values, pa.list_(pa.float64())),
            "y": [1.0] * len(values),
        })  # fmt: skip
        pq.write_table(table, tmp_path / name)
        return str(tmp_path / name)

    with pytest.raises(DataError, match="1 indices and 2 values in one row"):
        rows_of(open_dataset(made([[0], [1]], [[1.0], [1.0, 2.0]], "a.parquet")))
    with pytest.raises(DataError, match="null within a list"):
        rows_of(open_dataset(made([[0], [1]], [[1.0], [None]], "b.parquet")))
    path = made([[0], [1, 3], None], [[1.0], None, [2.0]], "c.parquet")
    with pytest.raises(DataError, match="column '(indices|values)' has a null"):
        rows_of(open_dataset(path))
    good = made([[0], [1, 3], None], [[1.0], [5.0, 6.0], None], "d.parquet")
    X, _, _, bad = rows_of(open_dataset(good, on_bad_rows="skip"))
    assert bad.tolist() == [False, False, True]
    assert X.dense().tolist() == [[1, 0, 0, 0], [0, 5, 0, 6], [0, 0, 0, 0]]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small datasets: 90 rows in partitions of 30."""
    root = tmp_path_factory.mktemp("damage")
    X, y, weight = table()
    return {form: write(root / form, form, X[:90], y[:90], weight[:90], partition_rows=30) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_every_flipped_bit_is_noticed(datasets: dict[str, Path], form: str) -> None:
    path = datasets[form]
    files = files_of(path)
    rng = np.random.default_rng(4)
    for k in range(80):
        file = files[k % len(files)]
        original = file.read_bytes()
        data = bytearray(original)
        at = int(rng.integers(len(data) * 8))
        data[at // 8] ^= 1 << (at % 8)
        file.write_bytes(bytes(data))
        try:
            with pytest.raises((DataError, SecurityError), match=path.name):
                rows_of(open_dataset(str(path)))
        finally:
            file.write_bytes(original)
    rows_of(open_dataset(str(path)))


@pytest.mark.parametrize("name", ["data/c/0", "indices/c/0", "indptr/c/1", "y/c/2", "weight/c/0", "shape/c/0"])
def test_missing_and_altered_chunks_are_named(datasets: dict[str, Path], name: str, tmp_path: Path) -> None:
    shutil.copytree(datasets["zarr"], tmp_path / "d")
    dataset = open_dataset(str(tmp_path / "d"))
    original = (tmp_path / "d" / name).read_bytes()
    (tmp_path / "d" / name).unlink()
    with pytest.raises(DataError, match=name):
        open_dataset(str(tmp_path / "d"))
    if name != "shape/c/0":
        with pytest.raises(DataError, match="missing, the manifest names it") as caught:
            [piece for p in dataset.partitions for piece in dataset.source.pieces(p)]
        assert name in caught.value.where
    (tmp_path / "d" / name).write_bytes(original[:-1])
    with pytest.raises(DataError, match=name):
        open_dataset(str(tmp_path / "d"))


@pytest.mark.parametrize("form", FORMS)
def test_manifests_that_lie_about_nonzeros_are_refused(datasets: dict[str, Path], form: str, tmp_path: Path) -> None:
    shutil.copytree(datasets[form], tmp_path / "d")
    manifest = parse_manifest((tmp_path / "d" / NAME).read_bytes(), "here")
    for extra in ({}, {"nonzeros": [1]}, {"nonzeros": "x"}, {"nonzeros": [1, 2, -3]}):
        (tmp_path / "d" / NAME).write_bytes(replace(manifest, extra=extra).to_json())
        with pytest.raises(DataError, match="nonzeros do not fit"):
            open_dataset(str(tmp_path / "d"))
    for name in (["x", 0], ["x"], ["x", 1 << 50], [3, 3], 7):
        tree = {**json.loads(manifest.to_json()), "columns": [[name, "float32", "number", None]]}
        with pytest.raises(DataError, match=r"columns\[0\]"):
            parse_manifest(json.dumps(tree).encode(), "here")
    dense = replace(manifest, layout="columns")
    with pytest.raises(DataError, match="runs of columns in a dataset that is not sparse"):
        parse_manifest(dense.to_json(), "here")


@pytest.mark.parametrize("form", FORMS)
def test_inspect_counts_nonzeros(datasets: dict[str, Path], form: str) -> None:
    X = table()[0][:90]
    report = inspect_dataset(str(datasets[form]), verify=True)
    assert (report["rows"], report["features"], report["nonzeros"]) == (90, COLUMNS, X.nnz)
    assert report["density"] == pytest.approx(X.nnz / (90 * COLUMNS))
    assert report["columns"] == [{"name": f"x0 to x{COLUMNS - 1}", "dtype": "float32", "kind": "number"}]
    assert report["checks"]["ok"]
    assert report["checks"]["rows"] == 90
    json.dumps(report)
