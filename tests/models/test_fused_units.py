"""All units of an order in one call: the bits of unit after unit, whatever the rows, the loss and the range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigopt.core import compiled, tree
from bigopt.core.sums import Sums, merge
from bigopt.data.cache import BlockCache
from bigopt.data.memory import from_arrays
from bigopt.data.meter import Meter
from bigopt.data.plan import whole
from bigopt.data.preparation import Targets
from bigopt.data.view import DataView
from bigopt.models import LinearModel, fused
from bigopt.models.losses import BinaryCrossEntropy, HuberLoss, SquaredLoss
from bigopt.work import GradientSum, execute

pytestmark = pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())

COUNTS = np.array([130, 16, 1, 300, 257, 40, 128])
D = 11


def work_on(loss: Any, *, dtype: str, weighted: bool, intercept: bool = True) -> GradientSum:
    rng = np.random.default_rng(4)
    n = COUNTS.sum()
    X = rng.standard_normal((n, D)).astype(dtype)
    classes = isinstance(loss, BinaryCrossEntropy)
    y = rng.integers(0, 2, n) if classes else rng.standard_normal(n)
    weight = rng.uniform(0.1, 2, n) if weighted else None
    data = from_arrays(X, y, weight, partition_rows=COUNTS.tolist())
    bounds = np.concatenate([[0], np.cumsum(COUNTS)])
    view = DataView(data.source, bounds, dtype, targets=Targets("binary", (0, 1)) if classes else Targets("values"))
    return GradientSum(LinearModel(D, 1, loss, intercept), view, 0, "float64", 64, "cpu", compiled.COMPILED)


def one_by_one(work: GradientSum, params: Any, start: int, stop: int) -> dict[tree.Node, Sums]:
    meter = Meter(BlockCache(1 << 30))
    ready = work.prepare((params,))
    values = [work(ready, unit, meter) for unit in whole(np.arange(len(COUNTS)), COUNTS)[start:stop]]
    return tree.fold(values, len(COUNTS), merge, start=start)


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (1, 6), (3, 7), (0, 1)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("loss", "intercept"), [(BinaryCrossEntropy(), True), (SquaredLoss(), False), (HuberLoss(0.7), True)]
)
def test_the_bits_are_those_of_unit_after_unit(
    loss: Any, intercept: bool, dtype: str, weighted: bool, start: int, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, blocks = work_on(loss, dtype=dtype, weighted=weighted, intercept=intercept), BlockCache(1 << 30)
    params = np.random.default_rng(1).standard_normal(work.model.layout.size)
    units = whole(np.arange(len(COUNTS)), COUNTS)[start:stop]
    calls: list[int] = []
    summed = fused.fused_units

    def spy(model: Any, params: Any, table: Any, *others: Any) -> Any:
        calls.append(len(table))
        return summed(model, params, table, *others)

    monkeypatch.setattr("bigopt.work.fused_units", spy)
    for turn in (0, 1):  # blocks are not there in the first, and all are in the second
        nodes, stats = execute(blocks, work, (params,), len(COUNTS), start, units)
        assert calls == [stop - start] * turn
        assert stats.rows == COUNTS[start:stop].sum()
        wanted = one_by_one(work, params, start, stop)
        assert list(nodes) == list(wanted)
        for node, value in nodes.items():
            np.testing.assert_array_equal(value.grad, wanted[node].grad)
            assert value[1:] == wanted[node][1:]
    assert all(entry.pins == 0 for entry in blocks._entries.values())


def test_what_is_no_whole_pass_over_rows_in_memory_goes_unit_by_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    work, blocks = work_on(SquaredLoss(), dtype="float32", weighted=False), BlockCache(1 << 30)
    params, units = np.zeros(D + 1), whole(np.arange(len(COUNTS)), COUNTS)
    execute(blocks, work, (params,), len(COUNTS), 0, units)
    monkeypatch.setattr("bigopt.work.fused_units", None)
    batch = np.array([[0, 2, 5, 30], [3, 2, 0, 20]])
    assert execute(blocks, work, (params,), 2, 0, batch)[1].rows == 45
    part = np.array([[0, -1, 5, 30], [3, -1, 0, 20]])
    assert execute(blocks, work, (params,), 2, 0, part)[1].rows == 45
    small = BlockCache(work.view.all_bytes // 2)
    assert execute(small, work, (params,), len(COUNTS), 0, units)[1].rows == COUNTS.sum()
