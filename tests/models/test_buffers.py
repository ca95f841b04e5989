"""Working memory that is kept from one batch to the next changes no bit and is not mistaken for a result."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from bigopt.core import tree, vectors
from bigopt.core.buffers import Ahead, Buffers, Casts
from bigopt.core.sums import merge
from bigopt.data.cache import BlockCache
from bigopt.data.memory import from_arrays
from bigopt.data.meter import Meter
from bigopt.data.view import DataView, Targets
from bigopt.models import MLP
from bigopt.models.losses import CategoricalCrossEntropy, SquaredLoss
from bigopt.work import GradientSum, execute

MODELS = {
    "relu": MLP(12, (8, 8), 3, CategoricalCrossEntropy(), shortcut=True),
    "grouped tanh": MLP(12, (8, 6), 3, CategoricalCrossEntropy(), activation="tanh", groups=(2, 2, 1)),
    "batchnorm": MLP(12, (8, 8, 8), 3, SquaredLoss(), batchnorm=True, shortcut=True, output_activation="softmax"),
    "softmax inside": MLP(12, (7,), 3, CategoricalCrossEntropy(), activation="softmax", intercept=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_in_buffers_has_the_same_bits(name: str) -> None:
    model, rng, buffers = MODELS[name], np.random.default_rng(0), Buffers()
    params = model.init("glorot_uniform", 1).astype(np.float32)
    for rows in (20, 33, 5):  # buffers grow, and stay larger than what is taken
        X = rng.normal(size=(rows, 12)).astype(np.float32)
        y = rng.normal(size=(rows, 3)) if model.loss.task == "regression" else rng.integers(0, 3, rows)
        weight = rng.random(rows)
        plain, kept = (model.grad_sum(params, X, y, weight, b) for b in (None, buffers))
        assert kept[0].tobytes() == plain[0].tobytes()
        assert kept[1:] == plain[1:]


@pytest.mark.parametrize("stored", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("block_rows", [7, 1000])
def test_units_of_an_order_do_not_share_what_they_give(block_rows: int, dtype: str, stored: str) -> None:
    """The nodes of an order are what the units give one by one in fresh memory, for any range of leaves.

    No gradient is wider on its way than ``run.dtype``.
    """
    rng = np.random.default_rng(2)
    sizes = [40, 31, 25, 60, 44]
    X, y = rng.normal(size=(sum(sizes), 12)).astype(stored), rng.integers(0, 3, sum(sizes))
    dataset = from_arrays(X, y, partition_rows=sizes)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    view = DataView(dataset.source, bounds, stored, targets=Targets("index", (0, 1, 2)))
    work = GradientSum(MODELS["relu"], view, 0, dtype, block_rows)
    params = MODELS["relu"].init("glorot_uniform", 1).astype(dtype)
    units = np.array([[k, 0, 3, sizes[k] - 4] for k in range(5)])
    for start, stop in [(0, 5), (1, 5), (1, 4), (3, 4), (0, 1)]:
        blocks = BlockCache(10**7)
        nodes, _ = execute(blocks, work, (params,), 5, start, units[start:stop])
        meter = Meter(blocks)
        fresh = tree.fold((work(work.prepare((params,)), u, meter) for u in units[start:stop]), 5, merge, start=start)
        assert list(nodes) == list(fresh) == list(tree.cover(start, stop, 5))
        for node, value in nodes.items():
            assert vectors.dense(value.grad).dtype == dtype
            assert value.grad.nbytes <= len(params) * np.dtype(dtype).itemsize
            assert vectors.dense(value.grad).tobytes() == fresh[node].grad.tobytes()
            assert value[1:] == fresh[node][1:]
        before = [vectors.dense(value.grad).tobytes() for value in nodes.values()]
        for a, b in [(0, 5), (2, 4)]:  # what is held is nobody else's, however often the memory is used again
            execute(blocks, work, (params,), 5, a, units[a:b])
        assert [vectors.dense(value.grad).tobytes() for value in nodes.values()] == before


def test_what_is_lent_is_nobody_elses() -> None:
    buffers = Buffers()
    first = buffers.lend(10, "float32")
    part, where = first[2:5].reshape(3, 1), first.__array_interface__["data"][0]
    del first
    second = buffers.lend(10, "float32")  # the first one's memory is held by a view of a view
    assert not np.shares_memory(second, part)
    del part
    third = buffers.lend(10, "float32")
    assert third.__array_interface__["data"][0] == where
    assert not np.shares_memory(third, second)
    assert not np.shares_memory(buffers.lend(10, "float64"), buffers.lend(12, "float32"))
    assert third.flags.writeable
    assert third.flags.c_contiguous


def test_rows_gathered_ahead_are_those_that_are_asked_for() -> None:
    rng, ahead = np.random.default_rng(3), Ahead()
    X, order, other = rng.normal(size=(40, 3)), rng.permutation(40), rng.permutation(40)
    assert ahead.rows(X, order, 0, 10) is None
    for start, stop in [(10, 20), (20, 31), (31, 40)]:  # as many again, or one more, or what is left
        ahead.gather()
        found = ahead.rows(X, order, start, stop)
        assert found is not None
        assert found.tobytes() == X[order[start:stop]].tobytes()
        assert found.flags.c_contiguous
    ahead.gather()
    assert ahead.rows(X, order, 0, 4) is None  # the permutation ended
    ahead.gather()
    for wrong in [(order.copy(), 4, 8), (other, 4, 8), (order, 5, 8), (order, 4, 10)]:
        ahead.rows(X, order, 0, 4)
        ahead.gather()
        assert ahead.rows(X, *wrong) is None
    ahead.forget()
    assert ahead.rows(X, order, 4, 8) is None


def test_rows_in_use_are_left_alone_by_whoever_gathers_the_next() -> None:
    rng, ahead = np.random.default_rng(4), Ahead()
    X, order = rng.normal(size=(40, 3)), rng.permutation(40)
    ahead.rows(X, order, 0, 10)
    ahead.gather()
    for start in (10, 20, 30):
        found = ahead.rows(X, order, start, start + 10)
        assert found is not None
        ahead.gather()
        ahead.gather()
        assert found.tobytes() == X[order[start : start + 10]].tobytes()


def test_params_are_cast_once_for_all_threads() -> None:
    casts = Casts()
    for k in range(5):  # a vector that is gone may lie where the next one does
        vector = np.full(1000, 0.1 + k)
        first = casts.cast(vector, "float32")
        assert casts.cast(vector, "float32") is first
        assert first.tobytes() == vector.astype(np.float32).tobytes()
        before, other = first.copy(), vector + 0.1
        assert casts.cast(other, "float32").tobytes() == other.astype(np.float32).tobytes()
        assert first.tobytes() == before.tobytes()  # still held here
        assert casts.cast(other, "float16").dtype == np.float16
        del vector, other, first


def test_the_second_batch_allocates_little() -> None:
    model, buffers = MLP(200, (100,), 10, CategoricalCrossEntropy()), Buffers()
    rng = np.random.default_rng(0)
    params = model.init("glorot_uniform", 1).astype(np.float32)
    X, y = rng.random((256, 200), dtype=np.float32), rng.integers(0, 10, 256)
    peaks = []
    for kept in (None, buffers, buffers):
        tracemalloc.start()
        model.grad_sum(params, X, y, None, kept)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > params.nbytes + 256 * 100 * 4 * 2
    assert peaks[2] < 100_000  # masks of one byte an entry, and arrays of 256 x 10
