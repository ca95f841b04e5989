"""Sparse rows ingested: every way in gives the bits of every other, and what is wrong is said."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigopt.core.errors import ConfError, DataError
from bigopt.data.columns import x_names
from bigopt.data.ingest import ingest_files
from bigopt.data.manifest import NAME, parse_manifest
from bigopt.data.open import open_dataset
from bigopt.data.recipe_spec import make_spec

from .test_sparse_stores import assert_rows, foreign, own, rows_of, write

sp = pytest.importorskip("scipy.sparse")
datasets = pytest.importorskip("sklearn.datasets")


def table() -> tuple[Any, Any]:
    """A matrix that survives 16 digits of text, and labels."""
    rng = np.random.default_rng(0)
    dense = sp.random_array((600, 900), density=0.02, rng=rng, dtype=np.float32).toarray()
    dense = np.ceil(dense * 1024) / 1024
    dense[0, 0] = dense[599, 899] = 1.0
    return sp.csr_array(dense.astype(np.float64)), rng.integers(-1, 2, 600)


def raw(tmp_path: Path, kind: str, X: Any, y: Any) -> str:
    if kind.startswith("svm"):
        path = tmp_path / f"d.{kind}"
        datasets.dump_svmlight_file(sp.csr_matrix(X), y, str(tmp_path / "plain"), zero_based=True)
        data = (tmp_path / "plain").read_bytes()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else bz2.compress(data) if "bz2" in kind else data)
        return str(path)
    if kind in ("zarr", "parquet", "npz"):
        return str(foreign(tmp_path / f"foreign.{kind}", kind, X, y))
    return str(write(tmp_path / "prepared", kind.removeprefix("own "), X, y))


@pytest.mark.parametrize("kind", ["svm", "svm.gz", "svmlight.bz2", "npz", "zarr", "parquet", "own zarr", "own parquet"])
def test_every_way_in_gives_the_same_dataset(tmp_path: Path, kind: str) -> None:
    X, y = table()
    source = raw(tmp_path, kind, X, y)
    found = {}
    for form in ("zarr", "parquet"):
        out = tmp_path / f"out.{form}"
        result = ingest_files(make_spec(source), str(out), partition_rows=130)
        dataset = open_dataset(str(out))
        assert_rows(dataset, X, y)
        assert dataset.target_kind == "integer"
        assert [p.rows for p in dataset.partitions] == [130] * 4 + [80]
        assert (result.rows, result.columns, result.dtype) == (600, ("x0 to x899",), "float64")
        json.dumps(result.to_dict())
        manifest = parse_manifest((out / NAME).read_bytes(), "here")
        found[form] = (manifest.partitions, manifest.extra, [c.name for c in manifest.columns], manifest.target)
    assert found["zarr"] == found["parquet"]
    assert found["zarr"][1]["nonzeros"] == [X[a : a + 130].nnz for a in range(0, 600, 130)]


def test_several_files_become_one(tmp_path: Path) -> None:
    X, y = table()
    cuts = [(0, 200), (200, 201), (201, 600)]
    for k, (a, b) in enumerate(cuts):  # only the first part has an index 0; the last reaches the last column
        datasets.dump_svmlight_file(sp.csr_matrix(X[a:b]), y[a:b], str(tmp_path / f"part{k}.svm"), zero_based=True)
    ingest_files(make_spec(str(tmp_path / "part*.svm")), str(tmp_path / "d.zarr"))
    assert_rows(open_dataset(str(tmp_path / "d.zarr")), X, y)
    (tmp_path / "part3.svm").write_text("0.5 3:1\n")
    ingest_files(make_spec(str(tmp_path / "part*.svm")), str(tmp_path / "e.zarr"))
    rows, labels, _, _ = rows_of(open_dataset(str(tmp_path / "e.zarr")))
    assert labels.dtype == np.float64
    assert labels[-1] == 0.5
    assert rows.dense()[-1].nonzero()[0].tolist() == [3]


def test_names_dtype_classes_and_targets(tmp_path: Path) -> None:
    X, y = table()
    source = raw(tmp_path, "svm", X, y)
    spec = make_spec(source, columns={"*": "float32"}, target="y", classes=[-1, 0, 1])
    ingest_files(spec, str(tmp_path / "d.parquet"))
    dataset = open_dataset(str(tmp_path / "d.parquet"))
    assert (dataset.stored, dataset.classes, dataset.target) == ("float32", (-1, 0, 1), ("y",))
    assert_rows(dataset, X.astype(np.float32), y)
    assert dataset.columns == x_names(900)


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"derive": {"a": "x0 + 1"}}, "ingest.derive"),
        ({"where": "x0 > 1"}, "ingest.where"),
        ({"encode": {"x0": "onehot"}}, "ingest.encode"),
        ({"nulls": "drop"}, "ingest.nulls"),
        ({"join": {"source": "a.csv", "on": ["x0"], "columns": ["b"]}}, "ingest.join"),
        ({"columns": ["x0", "x1"]}, "ingest.columns"),
    ],
)
def test_what_sparse_rows_do_not_take_is_refused(tmp_path: Path, more: dict[str, Any], where: str) -> None:
    X, y = table()
    with pytest.raises(ConfError) as caught:
        ingest_files(make_spec(raw(tmp_path, "svm", X, y), **more), str(tmp_path / "d.zarr"))
    assert caught.value.where == where
    assert not (tmp_path / "d.zarr").exists()


def test_errors_name_the_file_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.svm.gz").write_bytes(gzip.compress(b"1 1:2\n1 1:2 1:3\n"))
    with pytest.raises(DataError, match="column 1 after column 1") as caught:
        ingest_files(make_spec(str(tmp_path / "bad.svm.gz")), str(tmp_path / "d.zarr"))
    assert caught.value.where == f"{tmp_path}/bad.svm.gz, line 2"
    (tmp_path / "cut.svm.gz").write_bytes(gzip.compress(b"1 1:2\n" * 500)[:-9])
    with pytest.raises(DataError, match=r"cut\.svm\.gz: cannot be unpacked"):
        ingest_files(make_spec(str(tmp_path / "cut.svm.gz")), str(tmp_path / "d.zarr"))
    with pytest.raises(DataError, match="no such file"):
        ingest_files(make_spec(str(tmp_path / "none.svm.gz")), str(tmp_path / "d.zarr"))
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "t.svm").write_text("1 1:2\n")
    with pytest.raises(DataError, match="sparse and dense files together"):
        ingest_files(make_spec([str(tmp_path / "t.csv"), str(tmp_path / "t.svm")]), str(tmp_path / "d.zarr"))
    assert not list(tmp_path.glob("*d.zarr*"))
    assert own(table()[0]).columns == 900
