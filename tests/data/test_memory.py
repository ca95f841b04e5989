"""Arrays in process, and what readers hold in memory."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError, DataError
from bigopt.data.cache import BlockCache
from bigopt.data.files import filesystem, shown
from bigopt.data.memory import from_arrays
from bigopt.data.open import open_dataset
from bigopt.data.publish import Publication
from bigopt.data.source import Source, chosen_partition_rows, chunk_rows_of, common_chunk_rows
from bigopt.data.view import DataView, Scaling, Split
from bigopt.work_profile import distinct

from .helpers import rows_of, table, travelled, write


def test_from_arrays_is_a_dataset_of_views() -> None:
    X, y, weight = table(rows=100)
    dataset = from_arrays(X, y, weight, partition_rows=(10, 0, 90), columns=list("abcde"), target="z")
    assert [(p.index, p.start, p.rows) for p in dataset.partitions] == [(0, 0, 10), (1, 10, 0), (2, 10, 90)]
    assert (dataset.target, dataset.weight, dataset.target_kind, dataset.rows) == (("z",), "weight", "number", 100)
    (piece,) = dataset.source.pieces(dataset.partitions[2])
    assert np.shares_memory(piece.X, X)
    assert not piece.X.flags.writeable
    np.testing.assert_array_equal(piece.y, y[10:])
    np.testing.assert_array_equal(piece.weight, weight[10:])
    assert dataset.source.place(dataset.partitions[2], 5) == "row 15 in memory"
    assert isinstance(dataset.source, Source)


def test_identity_of_arrays_is_their_contents() -> None:
    X, y, _ = table(rows=5000)
    first = from_arrays(X, y).source.identity()
    assert from_arrays(X.copy(), y.copy()).source.identity() == first
    assert from_arrays(np.asfortranarray(X), y).source.identity() == first
    changed = X.copy()
    changed[4999, 4] = np.nextafter(changed[4999, 4], np.float32(9))
    assert from_arrays(changed, y).source.identity() != first
    assert from_arrays(X).source.identity() != first


def test_every_value_counts_for_the_identity() -> None:
    X = np.random.default_rng(3).normal(size=(700, 400))  # two checksums, 400 columns
    first = from_arrays(X).source.identity()
    for row, column in ((0, 0), (327, 399), (328, 0), (699, 399)):
        changed = X.copy()
        changed[row, column] = np.nextafter(changed[row, column], 9.0)
        assert from_arrays(changed).source.identity() != first
    swapped = np.concatenate([X[327:654], X[:327], X[654:]])
    assert from_arrays(swapped).source.identity() != first
    assert from_arrays(X.astype(np.float32)).source.identity() != first
    assert from_arrays(X, columns=[f"z{j}" for j in range(400)]).source.identity() != first


def test_rows_as_kernels_want_them_are_not_copied() -> None:
    X, y, _ = table(rows=90)
    bounds = np.array([0, 40, 90])

    def block(X: Any, **more: Any) -> Any:
        return DataView(from_arrays(X, y, partition_rows=(40, 50)).source, bounds, **{"dtype": "float32", **more}).load(
            1
        )

    assert np.shares_memory(block(X).X, X)
    scaling = Scaling(X.mean(axis=0, dtype=np.float64), np.full(X.shape[1], 2.0))
    before = X.copy()
    for other in (
        block(np.asfortranarray(X)),
        block(X.astype(np.float64)),
        block(X, skip_bad=True),
        block(X, split=Split(0, 0.0, False)),
        block(X, scaling=scaling),
    ):
        assert not np.shares_memory(other.X, X)
        assert other.X.flags.c_contiguous
    np.testing.assert_array_equal(X, before)  # scaled in a copy
    assert not np.array_equal(block(X, scaling=scaling).X, X[40:])
    X[77, 2] = np.inf
    with pytest.raises(DataError, match="row 77 in memory: column 'x2' is inf as float32"):
        block(X)


def test_sparse_rows_as_kernels_want_them_are_not_copied() -> None:
    rng, y = np.random.default_rng(0), np.zeros(90)
    starts = 3 * np.arange(91)
    indices = np.sort(rng.permuted(np.tile(np.arange(9), (90, 1)), axis=1)[:, :3], axis=1).reshape(-1)

    def view(indices: Any, values: Any, **more: Any) -> DataView:
        source = from_arrays(CSR(values, indices, starts, 9), y, partition_rows=(40, 50)).source
        return DataView(source, np.array([0, 40, 90]), **{"dtype": "float32", **more})

    narrow, values = indices.astype(np.int32), rng.normal(size=270).astype(np.float32)
    blocks, lent = BlockCache(10**6), view(narrow, values)
    with blocks.block(lent, 1) as (entry, _):
        X = entry.block.X
        assert np.shares_memory(X.data, values)
        assert np.shares_memory(X.indices, narrow)
        np.testing.assert_array_equal(X.data, values[120:])
        assert X.indptr.tolist() == (starts[40:] - 120).tolist()
        assert blocks.held == 50 * 32 + 150 * 4  # labels, row bounds, places among the partition's own columns
    scaled = view(narrow, values, scaling=Scaling(np.zeros(9), np.full(9, 2.0)))
    for other in (scaled, view(indices, values), view(narrow, values.astype(np.float64))):
        assert not other.lent
        assert not np.shares_memory(other.load(1).X.data, values)
    before = values.copy()
    again = scaled.prepare(lent.load(1))  # scaled in a copy
    np.testing.assert_array_equal(again.X.data, values[120:] / 2)
    np.testing.assert_array_equal(values, before)
    values[3 * 77 + 1] = np.inf
    with pytest.raises(DataError, match=f"row 77 in memory: column 'x{narrow[232]}' is inf as float32"):
        lent.load(1)


def test_a_cache_charges_lent_rows_for_what_it_adds() -> None:
    X, y, _ = table(rows=90)
    view = DataView(from_arrays(X, y, partition_rows=(40, 50)).source, np.array([0, 40, 90]), "float32")
    blocks = BlockCache(50 * 24)
    with blocks.block(view, 1) as (entry, _):
        assert np.shares_memory(entry.block.X, X)
        assert blocks.held == 50 * 24


@pytest.mark.parametrize(
    "y",
    [
        np.array([3, -1, 3, 3]),
        np.array([True, False, True]),
        np.array([-128, 127, 0], dtype=np.int8),
        np.array([-(2**62), 2**62]),
        np.array([2**64 - 1, 0, 0], dtype=np.uint64),
        np.array([0.5, -0.5, 0.5]),
        np.array(["b", "a", "b"]),
    ],
)
def test_distinct_labels_are_counted_and_weighed(y: np.ndarray) -> None:
    weight = np.arange(1.0, len(y) + 1)
    expected, index, counts = np.unique(y, return_inverse=True, return_counts=True)
    labels, rows, mass = distinct(y, weight)
    assert labels.dtype == y.dtype
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(rows, counts)
    np.testing.assert_array_equal(mass, [weight[index == k].sum() for k in range(len(expected))])
    np.testing.assert_array_equal(distinct(y, None)[2], counts)


@pytest.mark.parametrize(
    "bad",
    [
        {"X": np.ones(3)},
        {"X": np.array([["a"]])},
        {"X": np.ones((0, 2))},
        {"X": np.ones((3, 2)), "y": np.ones(4)},
        {"X": np.ones((3, 2)), "weight": np.ones((3, 1))},
        {"X": np.ones((3, 2)), "columns": ["a", "a"]},
        {"X": np.ones((3, 2)), "partition_rows": (1, 1)},
        {"X": np.ones((3, 2)), "partition_rows": 0},
        {"X": np.ones((3, 2)), "y": np.array([1j, 2, 3])},
    ],
)
def test_from_arrays_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        from_arrays(**bad)


def test_chosen_sizes() -> None:
    assert chosen_partition_rows(100, 8) == 13
    assert chosen_partition_rows(1 << 30, 4) == 1 << 20
    assert chosen_partition_rows(1 << 30, 1 << 10) == 1 << 14
    assert chosen_partition_rows(5, 1 << 40) == 1
    assert chunk_rows_of(1000, 8) == 1000
    assert chunk_rows_of(1 << 20, 1 << 10) == 1 << 14
    assert chunk_rows_of(1_000_003, 1 << 10) == 1_000_003
    assert common_chunk_rows([300, 600, 150], 8) == 150
    assert common_chunk_rows([5000, 1, 7001], 8) == 4001
    assert common_chunk_rows([1 << 20], 1 << 10) == 1 << 14


def test_a_zarr_reader_holds_little_more_than_two_pieces(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(40_000, 50))
    write(tmp_path / "d", "zarr", X, X[:, 0], partition_rows=20_000)
    dataset = open_dataset(str(tmp_path / "d"))
    assert dataset.piece_bytes == X.nbytes // 2
    list(travelled(dataset).pieces(dataset.partitions[0]))
    tracemalloc.start()
    try:
        for partition in dataset.partitions:
            for piece in dataset.source.pieces(partition):
                assert piece.X.flags.c_contiguous
                del piece
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3.2 * dataset.piece_bytes  # compressed (incompressible), decoded, and the block itself


@pytest.mark.parametrize("form", ["zarr", "parquet", "list"])
def test_one_source_may_be_read_by_many_threads(tmp_path: Path, form: str) -> None:
    X, y, _ = table(rows=4000)
    write(tmp_path / "d", form, X, y, partition_rows=130)
    dataset = open_dataset(str(tmp_path / "d"))
    source = travelled(dataset)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda p: np.concatenate([r.X for r in source.pieces(p)]), list(dataset.partitions) * 2))
    np.testing.assert_array_equal(np.concatenate(parts), np.concatenate([X, X]))


def test_uploads_are_refused_until_they_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _ = table(rows=90)
    url = "memory://upload/d"
    fs = fsspec.filesystem("memory")
    real, count = type(fs).put_file, [0]

    def failing(self: Any, *args: Any, **more: Any) -> None:
        count[0] += 1
        if count[0] > 3:
            raise OSError("the line is dead")
        real(self, *args, **more)

    monkeypatch.setattr(type(fs), "put_file", failing)
    with pytest.raises(DataError, match="the line is dead"):
        write(url, "zarr", X, y)  # type: ignore[arg-type]
    monkeypatch.undo()
    with pytest.raises(DataError, match="unfinished"):
        open_dataset(url)
    write(url, "zarr", X, y, force=True)  # type: ignore[arg-type]
    np.testing.assert_array_equal(rows_of(open_dataset(url))[0], X)


def test_npz_behind_a_url(tmp_path: Path) -> None:
    X, y, _ = table(rows=300)
    np.savez(tmp_path / "d.npz", X=X, y=y)
    fsspec.filesystem("memory").pipe_file("/npz/d.npz", (tmp_path / "d.npz").read_bytes())
    np.testing.assert_array_equal(rows_of(open_dataset("memory://npz/d.npz"))[0], X)


def test_urls_never_show_credentials() -> None:
    assert shown("s3://key:secret@bucket/d?token=abc") == "s3://bucket/d"
    assert shown("/plain/path?x") == "/plain/path?x"
    with pytest.raises(ConfError) as caught:
        filesystem("nosuch://user:secret@host/x", {})
    assert "secret" not in str(caught.value)


def test_publication_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(ConfError, match="is there already"):
        Publication(str(tmp_path / "f"), {}, False).begin()
    with pytest.raises(ConfError, match="is no dataset"):
        Publication(str(tmp_path / "f"), {}, True).begin()


@pytest.mark.parametrize("form", ["zarr", "parquet"])
def test_obstore_stands_in_for_a_missing_fsspec_driver(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """obstore's file store behind a protocol that fsspec has no driver for: everything goes through its interface."""
    obstore = pytest.importorskip("obstore.fsspec")
    X, y, _ = table(rows=90)
    write(tmp_path / "d", form, X, y)
    made: list[str] = []

    def missing(_url: str, **_options: Any) -> Any:
        raise ImportError("Install s3fs")

    def store(protocol: str, **_options: Any) -> Any:
        made.append(protocol)
        return FileStore("file")

    FileStore = obstore.FsspecStore
    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    monkeypatch.setattr(obstore, "FsspecStore", store)
    dataset = open_dataset(f"s3://{tmp_path}/d")
    np.testing.assert_array_equal(rows_of(dataset)[0], X)
    assert dataset.source.identity() == dataset.manifest.fingerprint
    assert set(made) == {"s3"}
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(f"s3://{tmp_path}/nothing")
    with pytest.raises(ConfError, match="Install s3fs"):
        open_dataset("hdfs://host/d")
