"""Sparse rows in memory and through a view: SciPy and the dense twin are the oracles; names never spelled out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigopt.core import codec
from bigopt.core.csr import CSR, stacked
from bigopt.core.errors import ConfError, DataError
from bigopt.data.cache import BlockCache
from bigopt.data.columns import Names, Run, ambiguous, places, same, x_names
from bigopt.data.memory import from_arrays
from bigopt.data.meter import Meter
from bigopt.data.source import Dataset, Source
from bigopt.data.sparse import checked, cut_by_nonzeros, picked
from bigopt.data.view import DataView, Scaling, Split, Targets, Whitening

sp = pytest.importorskip("scipy.sparse")


def random_rows(rows: int = 300, columns: int = 40, density: float = 0.1, seed: int = 0) -> Any:
    """A SciPy CSR array with empty rows and columns."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    dense[rng.random(rows) < 0.1] = 0
    return sp.csr_array(dense)


def view_of(dataset: Dataset, **more: Any) -> DataView:
    bounds = np.array([0, *(p.stop for p in dataset.partitions)], dtype=np.int64)
    return DataView(dataset.source, bounds, more.pop("dtype", "float64"), **more)


def test_names_behave_like_the_tuple_they_stand_for() -> None:
    names = Names(("a", Run("x", 12), "b", Run("w#", 3)))
    plain = ("a", *(f"x{j}" for j in range(12)), "b", "w#0", "w#1", "w#2")
    assert tuple(names) == plain
    assert len(names) == len(plain)
    assert [names[j] for j in range(-len(plain), len(plain))] == [plain[j] for j in range(-len(plain), len(plain))]
    assert names[3:9:2] == plain[3:9:2]
    assert [names.index(name) for name in plain] == list(range(len(plain)))
    assert all(name in names for name in plain)
    for other in ("x", "x12", "x01", "x-1", "x1 ", "x٣", "c", 3, "w#3", "x" + "9" * 30):
        assert other not in names
    with pytest.raises(ValueError):
        names.index("x12")
    with pytest.raises(IndexError):
        names[len(plain)]
    assert same(names, plain)
    assert not same(names, plain[::-1])
    assert codec.loads([bytes(p) for p in codec.dumps(names)]) == names


def test_millions_of_names_travel_as_a_few_bytes() -> None:
    names = x_names(10**9)
    assert sum(len(part) for part in codec.dumps(names)) < 200
    assert names[123_456_789] == "x123456789"
    assert names.index("x999999999") == 10**9 - 1


def test_ambiguous_names_are_found() -> None:
    assert ambiguous(("a", Run("x", 10), "x15", Run("x1", 5))) is None  # x10 is a name of the second run alone
    assert ambiguous(("a", Run("x", 11), Run("x1", 5))) == "x10"
    assert ambiguous(("x3", Run("x", 10))) == "x3"
    assert ambiguous((Run("x", 10), Run("x", 2))) == "x0"
    assert ambiguous(("a", "b", "a")) == "a"


def test_places_of_wanted_columns() -> None:
    assert places(x_names(5), ("x0", "x1", "x2", "x3", "x4")) is None
    assert places(("x4", "x0", "x1"), x_names(5)) == ((4, 5), (0, 2))
    assert places(("b", "a"), ("a", "b")) == ((1, 2), (0, 1))
    assert places(x_names(10**9), x_names(10**10)) == ((0, 10**9),)
    for columns in (x_names(5), ("x0", "x1")):
        with pytest.raises(ValueError, match="x7"):
            places(("x7",), columns)


@pytest.mark.parametrize("picks", [[3, 7, 8], [8, 3, 7, 0], [39], list(range(39, -1, -1))])
def test_picked_columns_equal_scipys(picks: list[int]) -> None:
    X = random_rows()
    ranges = places([f"x{j}" for j in picks], x_names(40))
    rows = picked(CSR(X.data, X.indices, X.indptr.astype(np.int64), 40), ranges)
    checked(rows, str)
    np.testing.assert_array_equal(rows.dense(), X.toarray()[:, picks])


@pytest.mark.parametrize("indices", [np.int32, np.int64])
def test_from_arrays_takes_scipy_and_csr(indices: Any) -> None:
    X = random_rows()
    y = np.arange(300.0)
    dataset = from_arrays(X, y, partition_rows=(100, 0, 150, 50))
    own = CSR(X.data, X.indices.astype(indices), X.indptr.astype(np.int64), 40)
    assert dataset.sparse
    assert isinstance(dataset.source, Source)
    assert dataset.nonzeros == X.nnz == from_arrays(own, y).nonzeros
    assert [dataset.source.nonzeros(p) for p in dataset.partitions] == [
        X[p.start : p.stop].nnz if p.rows else 0 for p in dataset.partitions
    ]
    assert dataset.columns == x_names(40)
    assert dataset.row_bytes == 8 + -(-X.nnz * 12 // 300) + 8
    (piece,) = dataset.source.pieces(dataset.partitions[2])
    assert np.shares_memory(piece.X.data, X.data)
    assert not piece.X.data.flags.writeable
    np.testing.assert_array_equal(piece.X.dense(), X.toarray()[100:250])
    same_bits = from_arrays(X.copy(), y).source.identity()
    assert from_arrays(X, y).source.identity() == same_bits
    changed = X.copy()
    changed.data[5] += 1
    assert from_arrays(changed, y).source.identity() != same_bits


def test_from_arrays_refuses_what_is_no_canonical_csr() -> None:
    X = random_rows()
    with pytest.raises(DataError, match="csc format"):
        from_arrays(X.tocsc())
    data, indptr = np.ones(4), np.array([0, 2, 4])
    for indices, found in (
        ([0, 1, 2, 2], "column 2 after column 2"),
        ([0, 1, 3, 2], "column 2 after column 3"),
        ([0, 1, 2, 9], "column 9 of 5"),
        ([-1, 1, 2, 3], "column -1 of 5"),
    ):
        with pytest.raises(DataError, match=found) as caught:
            from_arrays(CSR(data, np.array(indices), indptr, 5))
        assert caught.value.where == f"row {0 if indices[0] < 0 else 1} in memory"
    with pytest.raises(DataError, match="row bounds 3 to 2 of 4"):
        from_arrays(CSR(data, np.arange(4), np.array([0, 3, 2, 4]), 5))
    with pytest.raises(DataError, match="row bounds"):
        from_arrays(CSR(data, np.arange(4), np.array([0, 2, 3]), 5))


def test_partitions_are_cut_by_nonzeros() -> None:
    nonzeros = np.concatenate([[0], np.cumsum([1000] * 10 + [1] * 90)])
    cuts = cut_by_nonzeros(np.arange(101), nonzeros, 12)
    per = np.diff(nonzeros[cuts]) * 12 + np.diff(cuts) * 8
    assert cuts[0] == 0
    assert cuts[-1] == 100
    assert len(cuts) - 1 >= 8
    assert per.max() <= -(-(nonzeros[-1] * 12 + 800) // 8)
    huge = cut_by_nonzeros(np.arange(3), np.array([0, 10**9, 2 * 10**9]), 12)  # a row is never cut
    assert huge.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("split", [None, Split(3, 0.3, False), Split(3, 0.3, True)])
def test_a_block_is_the_dense_one(dtype: str, split: Split | None) -> None:
    X, rng = random_rows(), np.random.default_rng(1)
    y, weight = rng.normal(size=300), rng.random(300)
    options: dict[str, Any] = {"partition_rows": (120, 0, 80, 100)}
    sparse = view_of(from_arrays(X, y, weight, **options), dtype=dtype, split=split)
    dense = view_of(from_arrays(X.toarray(), y, weight, **options), dtype=dtype, split=split)
    for index in range(4):
        block, twin = sparse.load(index), dense.load(index)
        assert (block.X.dtype, block.X.indices.dtype) == (np.dtype(dtype), np.int32)
        checked(block.X, str)
        assert block.X.data.flags.c_contiguous
        np.testing.assert_array_equal(block.X.dense(), twin.X)
        np.testing.assert_array_equal(block.weight, twin.weight) if len(block.X) else None
        if block.y is not None:
            np.testing.assert_array_equal(block.y, twin.y)
        assert block.nbytes <= sparse.decoded_bytes(index)


def test_memory_is_counted_by_nonzeros() -> None:
    rows = CSR(np.ones(1000), np.arange(1000), np.arange(1001, dtype=np.int64), 10**7)
    view = view_of(from_arrays(rows, np.zeros(1000), partition_rows=(600, 400)))
    assert [view.decoded_bytes(m) for m in (0, 1)] == [600 * (16 + 32) + 8, 400 * (16 + 32) + 8]
    assert view.row_bytes == 8 + 12
    meter = Meter(BlockCache(10**6))  # dense rows of this view would take 80 GB
    with meter.block(view, 0) as entry:
        assert len(entry.block.X) == 600
    assert meter.blocks.held == view.decoded_bytes(0)
    assert view_of(from_arrays(np.ones((10, 3)), np.ones(10))).row_bytes == 24


def test_scaling_divides_and_never_centres() -> None:
    X = random_rows()
    scale = np.random.default_rng(2).random(40) + 0.5
    data = from_arrays(X, np.where(np.arange(300) % 2, "b", "a"))
    view = view_of(data, scaling=Scaling(np.zeros(40), scale), targets=Targets("binary", ("a", "b")), dtype="float32")
    got = stacked([view.load(m).X for m in range(view.partitions)])
    np.testing.assert_array_equal(
        got.dense(), (X.toarray().astype(np.float32).astype(np.float64) / scale).astype(np.float32)
    )
    np.testing.assert_array_equal(np.concatenate([view.load(m).y for m in range(view.partitions)]), np.arange(300) % 2)
    with pytest.raises(ConfError, match="scaled, not centred"):
        view_of(data, scaling=Scaling(np.eye(40)[3], scale)).load(0)
    with pytest.raises(ConfError, match="not whitened"):
        view_of(data, scaling=Whitening(np.zeros(40), np.eye(40))).load(0)
    np.testing.assert_array_equal(X.toarray(), random_rows().toarray())  # the caller's rows are as they were


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_named_or_skipped(value: float) -> None:
    X = random_rows()
    at = int(X.indptr[201])
    while X.indptr[201] == X.indptr[202]:
        raise AssertionError("row 201 is empty, choose another")
    X.data[at] = value
    data = from_arrays(X, np.zeros(300), partition_rows=100)
    dtype = "float32" if value == 1e300 else "float64"
    with pytest.raises(DataError, match=rf"column 'x{X.indices[at]}' is (nan|inf) as {dtype}") as caught:
        view_of(data, dtype=dtype).load(2)
    assert caught.value.where == "row 201 in memory"
    if value != 1e300:
        block = view_of(data, skip_bad=True).load(2)
        assert block.skipped == 1
        np.testing.assert_array_equal(block.X.dense(), np.delete(X.toarray()[200:], 1, axis=0))
