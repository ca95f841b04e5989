"""Views and the block cache: used rows, checks with places, one decode, a budget that holds."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pytest

from bigopt.core.errors import ConfError, DataError
from bigopt.data.cache import BlockCache
from bigopt.data.memory import from_arrays
from bigopt.data.meter import Meter
from bigopt.data.source import Rows
from bigopt.data.view import DataView, Scaling, Split, Targets, Whitening


def view_of(X, y=None, weight=None, sizes=None, dtype="float64", **more):
    data = from_arrays(X, y, weight, partition_rows=sizes or [len(X)])
    bounds = np.array([0, *(p.stop for p in data.partitions)])
    return DataView(data.source, bounds, dtype, **more)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return rng.normal(size=(100, 3)), rng.normal(size=100)


def test_split_sides_are_disjoint_complete_and_stable_under_repartitioning(table):
    X, y = table
    parts = {}
    for sizes in ([100], [30, 0, 70], [1, 98, 1]):
        for side in (False, True):
            view = view_of(X, y, sizes=sizes, split=Split(7, 0.3, side))
            parts[len(sizes), side] = np.concatenate([view.load(i).X for i in range(view.partitions)])
    train, held = parts[1, False], parts[1, True]
    assert len(train) + len(held) == 100
    assert 15 < len(held) < 45
    assert {tuple(r) for r in train} | {tuple(r) for r in held} == {tuple(r) for r in X}
    for key, rows in parts.items():
        np.testing.assert_array_equal(rows, parts[1, key[1]])


def test_scaling_is_applied_in_float64_and_blocks_are_of_the_asked_dtype(table):
    X, y = table
    scaling = Scaling(X.mean(0), X.std(0))
    block = view_of(X, y, scaling=scaling, dtype="float32").load(0)
    assert block.X.dtype == np.float32
    assert block.X.flags.c_contiguous
    stored = X.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(block.X, ((stored - scaling.mean) / scaling.scale).astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_feature_is_refused_with_its_row_and_column(table, value):
    X, y = table
    X[77, 1] = value
    with pytest.raises(DataError, match=f"row 77.*column 'x1' is {value}") as caught:
        view_of(X, y, sizes=[50, 50]).load(1)
    assert "on_bad_rows" in caught.value.hint


def test_bad_rows_are_skipped_and_counted(table):
    X, y = table
    X[3, 0], y[90] = np.nan, np.inf
    block = view_of(X, y, skip_bad=True).load(0)
    assert block.skipped == 2
    np.testing.assert_array_equal(block.X, np.delete(X, [3, 90], axis=0))


def test_bad_rows_of_the_other_side_do_not_matter(table):
    X, y = table
    split = Split(7, 0.3, False)
    held = np.flatnonzero(~split.mask(view_of(X, y).partition(0)))
    X[held[0], 0] = np.nan
    assert len(view_of(X, y, split=split).load(0).X) == 100 - len(held)


def test_overflow_of_float32_is_refused_not_stored(table):
    X, y = table
    X[5, 2] = 1e300
    with pytest.raises(DataError, match="column 'x2' is inf as float32"):
        view_of(X, y, dtype="float32").load(0)


@pytest.mark.parametrize("weight", [-1.0, np.nan])
def test_bad_weights_are_refused(table, weight):
    X, y = table
    weights = np.ones(100)
    weights[42] = weight
    with pytest.raises(DataError, match=r"row 42.*weight"):
        view_of(X, y, weights).load(0)


def test_targets_encode_numbers_booleans_and_text():
    assert Targets("binary", (1, 2)).encode(np.array([2, 1, 2]), "float32").tolist() == [1.0, 0.0, 1.0]
    assert Targets("binary", (False, True)).encode(np.array([True, False]), "float64").tolist() == [1.0, 0.0]
    index = Targets("index", ("a", "b", "c")).encode(np.array(["c", "a"]), "float32")
    assert index.tolist() == [2, 0]
    assert index.dtype == np.int64
    assert Targets("values").encode(np.array([1, 2]), "float32").shape == (2, 1)


def test_an_unknown_label_is_refused_with_its_count():
    with pytest.raises(DataError, match=r"label z \(2 rows\)"):
        Targets("index", ("a", "b")).encode(np.array(["a", "z", "z"]), "float32")


def test_the_key_depends_on_what_a_block_holds(table):
    X, y = table
    views = [
        view_of(X, y),
        view_of(X + 1, y),
        view_of(X, y, dtype="float32"),
        view_of(X, y, sizes=[50, 50]),
        view_of(X, y, split=Split(0, 0.5, True)),
        view_of(X, y, split=Split(0, 0.5, False)),
        view_of(X, y, scaling=Scaling(np.zeros(3), np.ones(3))),
        view_of(X, y, scaling=Scaling(np.zeros(3), np.full(3, 2.0))),
        view_of(X, y, targets=Targets("values")),
    ]
    assert len({v.key for v in views}) == len(views)
    assert views[0].key == view_of(X, y).key


@dataclass(frozen=True)
class Counting:
    """A source that counts its reads in a list that the test holds."""

    reads: list
    rows: int = 100

    columns = ("a", "b")
    stored = "float64"
    sparse = False

    def nonzeros(self, partition):
        return 2 * partition.rows

    def pieces(self, partition):
        self.reads.append(partition.index)
        yield Rows(np.full((partition.rows, 2), float(partition.index)), np.zeros(partition.rows), None, 1000)

    def place(self, partition, row):
        return f"row {row}"

    def identity(self):
        return "counting"


def counting_view(partitions=8, rows=100, **more):
    source = Counting([], rows)
    return source, DataView(source, np.arange(partitions + 1) * rows, "float64", **more)


def test_a_block_is_decoded_once_and_the_raw_one_is_scaled_in_place():
    source, raw = counting_view(2)
    ready = DataView(source, raw.bounds, "float64", scaling=Scaling(np.full(2, 1.0), np.full(2, 2.0)))
    blocks = BlockCache(10**6)
    meter = Meter(blocks)
    for view in (raw, ready, ready):
        for index in range(2):
            with meter.block(view, index) as entry:
                expected = float(index) if view is raw else (index - 1) / 2
                assert np.array_equal(entry.block.X, np.full_like(entry.block.X, expected))
    assert source.reads == [0, 1]
    assert meter.bytes_read == 2000


def test_a_cyclic_scan_over_more_than_the_budget_still_hits():
    source, view = counting_view(8)
    size = view.decoded_bytes(0)
    blocks = BlockCache(6 * size)
    for _ in range(3):
        for index in range(8):
            with blocks.block(view, index):
                assert blocks.held <= blocks.budget
    assert len(source.reads) < 8 + 2 * 5  # "least recently used" would read all 8 in every pass


def test_open_blocks_go_last():
    source, view = counting_view(6)
    size = view.decoded_bytes(0)
    blocks = BlockCache(4 * size)
    with blocks.block(view, 0) as (entry, _):
        entry.open = True
    for index in range(1, 6):
        with blocks.block(view, index):
            pass
    with blocks.block(view, 0):
        pass
    assert source.reads.count(0) == 1


def test_a_partition_larger_than_the_budget_is_refused_with_the_numbers():
    _, view = counting_view(1, rows=1000)
    with pytest.raises(ConfError, match=r"needs 0\.1 MB .* allows 0\.0 MB"):
        BlockCache(1000)._pin((view.key, 0), view, 0)


def test_threads_share_one_decode_and_stay_within_the_budget():
    _, view = counting_view(16)
    blocks = BlockCache(5 * view.decoded_bytes(0))
    worst: list[int] = []

    def scan():
        for index in range(16):
            with blocks.block(view, index) as (entry, _):
                worst.append(blocks.held)
                assert np.array_equal(entry.block.X, np.full_like(entry.block.X, index))

    threads = [threading.Thread(target=scan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 64
    assert max(worst) <= blocks.budget


def test_declared_classes_keep_their_order_and_text_is_no_number():
    assert Targets("index", ("c", "a", "b")).encode(np.array(["a", "b", "c"]), "float32").tolist() == [1, 2, 0]
    assert Targets("index", (3, 1, 2)).encode(np.array([1, 2, 3]), "float32").tolist() == [1, 2, 0]
    assert Targets("index", ("1", "12")).encode(np.array([12, 1]), "float32").tolist() == [1, 0]
    with pytest.raises(DataError, match="label 123"):
        Targets("index", ("1", "12")).encode(np.array([123]), "float32")
    for targets in (Targets("values"), Targets("index", (1, 2, 3))):
        with pytest.raises(DataError, match="holds text"):
            targets.encode(np.array(["maybe"]), "float64")


@pytest.mark.parametrize("how", ["both", "centre", "scale", "whiten"])
def test_a_preparation_is_undone_in_coefficients_and_done_again(how):
    rng = np.random.default_rng(0)
    raw = rng.normal(loc=5.0, scale=[1.0, 10.0, 0.1, 3.0], size=(50, 4))
    mean, scale = raw.mean(axis=0), raw.std(axis=0)
    preparation = {
        "both": Scaling(mean, scale),
        "centre": Scaling(mean, np.ones(4)),
        "scale": Scaling(np.zeros(4), scale),
        "whiten": Whitening(mean, np.linalg.inv(np.linalg.cholesky(np.cov(raw.T, bias=True))).T),
    }[how]
    prepared = raw.copy()
    preparation.apply(prepared)
    weight, shift = rng.normal(size=(4, 2)), rng.normal(size=2)
    w, b = preparation.undo(weight, shift)
    np.testing.assert_allclose(raw @ w + b, prepared @ weight + shift, rtol=1e-11, atol=1e-11)
    again = preparation.redo(w, b)
    np.testing.assert_allclose(again[0], weight, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(again[1], shift, rtol=1e-11, atol=1e-11)
