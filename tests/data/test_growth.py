"""Growing batches: every row still once an epoch, and the count of steps across epochs of different lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigopt.data.growth import Growth, Stages
from bigopt.data.lanes import choose_lanes
from bigopt.data.plan import Plan, draw

stages_of = st.builds(
    Stages,
    rows=st.integers(50, 300),
    size=st.integers(1, 50),
    growth=st.none()
    | st.builds(Growth, factor=st.floats(1.05, 5.0), every=st.integers(1, 3), most=st.none() | st.integers(20, 400)),
)


def sizes_by_hand(stages: Stages, epochs: int) -> list[int]:
    """min(size factor^j, most), one an epoch."""
    growth = stages.growth
    if growth is None:
        return [stages.size] * epochs
    most = max(stages.size, min(stages.rows, growth.most or stages.rows))
    return [min(math.floor(stages.size * growth.factor ** (e // growth.every) + 1e-9), most) for e in range(epochs)]


@given(stages_of, st.integers(0, 40))
def test_sizes_and_steps_are_those_of_the_definition(stages: Stages, epochs: int) -> None:
    sizes = sizes_by_hand(stages, epochs + 1)
    assert [stages.batch(stages.stage(e)) for e in range(epochs + 1)] == sizes
    steps = [math.ceil(stages.rows / b) for b in sizes]
    assert stages.steps_before(epochs) == sum(steps[:-1])
    assert stages.steps_until(epochs) == sum(steps[:-1])
    assert stages.steps_until(epochs + 0.5) == sum(steps[:-1]) + math.ceil(steps[-1] / 2)


@given(stages_of, st.integers(0, 500))
def test_steps_and_epochs_are_inverse(stages: Stages, step: int) -> None:
    epochs = stages.epochs_until(step)
    assert stages.steps_until(epochs) == step
    assert stages.epochs_until(stages.steps_before(7)) == pytest.approx(7.0)


def test_doubling_by_hand() -> None:
    stages = Stages(1000, 128, Growth(2.0, 2))
    assert [stages.batch(stages.stage(e)) for e in range(9)] == [128, 128, 256, 256, 512, 512, 1000, 1000, 1000]
    assert stages.steps_until(8.0) == 2 * (8 + 4 + 2 + 1)
    assert stages.steps_until(1e6) == 2 * (8 + 4 + 2) + 10**6 - 6
    assert Stages(1000, 128, Growth(2.0, 1, 200)).steps_until(3) == 8 + 5 + 5


@pytest.mark.parametrize("lanes", [0, 3])
def test_every_row_once_an_epoch_whatever_its_batch(lanes: int) -> None:
    counts = np.array([40, 0, 33, 5, 21, 60, 8])
    plan = Plan(counts, 10, lanes, seed=1, growth=Growth(3.0, lanes=False))
    for epoch, size in enumerate((10, 30, 90, 167, 167)):
        now = plan.at(epoch)
        assert now.full == (size == 167)
        drawn = []
        for step in range(now.steps_per_epoch):
            units = now.units(epoch, step)
            rows = int((units[:, 3] - units[:, 2]).sum())
            assert rows == now.batch_rows(step) == min(size, 167 - step * size)
            for unit in units:
                order = np.arange(counts[unit[0]]) if unit[1] < 0 else draw(1, unit, int(counts[unit[0]]))
                drawn += [(int(unit[0]), int(row)) for row in order[unit[2] : unit[3]]]
        assert sorted(drawn) == [(m, row) for m, count in enumerate(counts) for row in range(count)]


def test_an_epoch_is_the_same_whether_it_is_reached_or_asked_for() -> None:
    """A resumed run has the units of the whole one; batches drawn anew are never the same twice."""
    counts = np.array([40, 0, 33, 5, 21, 60, 8])
    for sampling in ("permuted", "subset", "replacement", "bernoulli"):
        lanes = 2 if sampling == "permuted" else 0
        growth = Growth(2.0, 2, lanes=sampling == "permuted")
        walked = Plan(counts, 20, lanes, 3, sampling, growth)
        seen = set()
        for epoch in range(8):
            fresh = Plan(counts, 20, lanes, 3, sampling, growth).at(epoch)
            for step in range(fresh.steps_per_epoch):
                units = walked.at(epoch).units(epoch, step)
                np.testing.assert_array_equal(units, fresh.units(epoch, step))
                if fresh.redrawn and not fresh.full:
                    assert int(units[0, 2]) not in seen
                    seen.add(int(units[0, 2]))
        if sampling != "permuted":
            assert seen == set(range(2 * (9 + 5 + 3 + 2)))


def test_lanes_follow_the_batch_within_the_memory() -> None:
    counts = np.full(64, 100)
    plan = Plan(counts, 256, 2, 0, growth=Growth(4.0, open_lanes=5))
    assert [plan.at(e).lanes for e in range(3)] == [choose_lanes(256, 64), 4, 5]
    assert [Plan(counts, 256, 2, 0, growth=Growth(4.0)).at(e).lanes for e in range(3)] == [2, 4, 16]
    assert Plan(counts, 256, 2, 0, growth=Growth(4.0, lanes=False)).at(2).lanes == 2
