"""The sampler: every row once an epoch, exact batch sizes, proportional shares, nothing from workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigopt.core.errors import ConfError
from bigopt.data.lanes import choose_lanes
from bigopt.data.plan import ALL, Plan, draw, homes, redraw, whole
from bigopt.data.plan import rows_of as rows_of_units

counts_lists = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(lambda c: sum(c) > 0)


def rows_of(plan: Plan, epoch: int) -> list[tuple[int, int]]:
    """Every (partition, row) that an epoch draws, in order."""
    drawn = []
    for step in range(plan.steps_per_epoch):
        for unit in plan.units(epoch, step):
            partition, _, start, stop = (int(v) for v in unit)
            count = int(plan.counts[partition])
            order = np.arange(count) if unit[1] == ALL else draw(plan.seed, unit, count)
            drawn += [(partition, int(row)) for row in order[start:stop]]
    return drawn


@given(counts_lists, st.integers(1, 50), st.integers(0, 5), st.integers(0, 3))
def test_every_row_once_an_epoch_in_batches_of_exactly_size(counts, size, lanes, epoch):
    plan = Plan(np.array(counts), size, lanes, seed=3)
    drawn = rows_of(plan, epoch)
    assert sorted(drawn) == [(m, row) for m, count in enumerate(counts) for row in range(count)]
    sizes = [int((u[:, 3] - u[:, 2]).sum()) for u in (plan.units(epoch, s) for s in range(plan.steps_per_epoch))]
    n = sum(counts)
    if size >= n:
        assert sizes == [n]
    else:
        assert sizes == [size] * (n // size) + ([n % size] if n % size else [])
        assert len(sizes) == -(-n // size)


@pytest.mark.parametrize("sampling", ["permuted", "block", "subset", "bernoulli", "replacement"])
def test_a_step_that_was_foreseen_has_the_units_it_has_anyway(sampling):
    counts = np.array([40, 0, 25, 60, 31])
    lazy, eager = (Plan(counts, 16, 2, 3, sampling) for _ in range(2))
    for epoch in range(2):
        for step in range(lazy.steps_per_epoch):
            units = lazy.units(epoch, step)
            assert eager.units(epoch, step).tolist() == units.tolist()
            assert rows_of_units(units) == sum(rows_of_units(unit[None]) for unit in units)
            eager.foresee(epoch, step + 1)
            if step % 3 == 0:
                eager.foresee(epoch, step + 2)  # another one than will be asked for next


@given(counts_lists, st.integers(1, 50))
def test_without_lanes_shares_are_proportional_within_two_rows(counts, size):
    plan = Plan(np.array(counts), size, 0, seed=0)
    rows = plan.walks.rows
    for drawn in range(0, sum(counts) + 1, size):
        shares = plan.walks.shares(drawn)
        assert shares.sum() == drawn
        assert np.abs(shares - rows * drawn / sum(counts)).max() <= 2.0


@given(st.lists(st.integers(1, 60), min_size=4, max_size=12), st.integers(1, 30), st.integers(1, 3))
def test_a_lane_has_at_most_one_open_partition_after_a_batch(counts, size, lanes):
    plan = Plan(np.array(counts), size, lanes, seed=1)
    progress = dict.fromkeys(range(len(counts)), 0)
    for step in range(plan.steps_per_epoch):
        for partition, _, start, stop in plan.units(0, step).tolist():
            if not plan.full:
                assert progress[partition] == start
            progress[partition] = stop
        open_lanes = [plan.walks.of[m] for m, done in progress.items() if 0 < done < counts[m]]
        assert len(open_lanes) == len(set(open_lanes))


def test_epochs_differ_and_a_seed_repeats_itself():
    plan = Plan(np.array([50, 20, 33]), 16, 2, seed=5)
    assert rows_of(plan, 0) != rows_of(plan, 1)
    assert rows_of(plan, 0) == rows_of(Plan(np.array([50, 20, 33]), 16, 2, seed=5), 0)
    assert rows_of(plan, 0) != rows_of(Plan(np.array([50, 20, 33]), 16, 2, seed=6), 0)


def test_a_permuted_epoch_is_uniform():
    """Each row of a partition is equally likely at each place: chi-square over 2,000 epochs."""
    seen = np.zeros((6, 6))
    for epoch in range(2000):
        order = draw(0, np.array([0, epoch, 0, 6]), 6)
        seen[np.arange(6), order] += 1
    expected = 2000 / 6
    assert ((seen - expected) ** 2 / expected).sum() < 52  # 25 degrees of freedom, p = 0.001


def test_full_batches_use_whole_partitions_and_skip_empty_ones():
    plan = Plan(np.array([5, 0, 7]), None, 0, seed=0)
    assert plan.full
    assert plan.steps_per_epoch == 1
    assert plan.units(9, 0).tolist() == [[0, ALL, 0, 5], [2, ALL, 0, 7]]
    assert whole([1], np.array([5, 0, 7])).shape == (0, 4)
    assert Plan(np.array([5, 0, 7]), 99, 0, seed=0).full


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30).filter(sum), st.integers(1, 8))
def test_homes_are_contiguous_and_balanced(rows, slots):
    rows = np.array(rows)
    home = homes(rows, slots)
    assert (np.diff(home[rows > 0]) >= 0).all()
    assert home.min() >= 0
    assert home.max() < slots
    load = np.bincount(home, weights=rows, minlength=slots)
    assert load.max() <= rows.sum() / slots + rows.max()


def test_a_partition_keeps_its_home_in_every_round():
    plan = Plan(np.array([40, 10, 33, 5, 21, 60, 8]), 16, 3, seed=0)
    found: dict[int, set[int]] = {}
    for epoch in range(3):
        for step in range(plan.steps_per_epoch):
            units = plan.units(epoch, step)
            home = plan.homes(units, 2)
            assert (np.diff(home) >= 0).all()
            for unit, slot in zip(units.tolist(), home.tolist(), strict=True):
                found.setdefault(unit[0], set()).add(slot)
    assert all(len(slots) == 1 for slots in found.values())


def test_default_lanes_keep_pieces_of_some_hundred_rows():
    assert choose_lanes(128, 8) == 2
    assert choose_lanes(512, 100) == 2
    assert choose_lanes(1024, 100) == 4
    assert choose_lanes(4096, 8) == 0
    assert choose_lanes(128, 1) == 0


def test_an_empty_batch_is_refused():
    with pytest.raises(ConfError, match="0 rows"):
        Plan(np.array([3]), 0, 0, seed=0)


@pytest.mark.parametrize(
    ("sampling", "ratio"), [("subset", (451 - 20) / 450), ("bernoulli", 1 - 20 / 451), ("replacement", 1.0)]
)
def test_redrawn_batches_are_simple_random_samples_of_all_rows(sampling, ratio):
    """Worked number 7: the variance of a mean batch is s^2/b with, (s^2/b)(n-b)/(n-1) without replacement."""
    counts = np.array([100, 70, 3, 0, 97, 130, 50, 1])
    n, b, steps = int(counts.sum()), 20, 4000
    offsets = np.cumsum(counts) - counts
    z = np.random.default_rng(0).normal(size=n)
    z -= z.mean()
    plan = Plan(counts, b, 0, seed=3, sampling=sampling)
    seen, means = np.zeros(n), []
    for step in range(steps):
        units = plan.units(0, step)
        rows = np.concatenate([offsets[u[0]] + redraw(3, u, int(counts[u[0]])) for u in units])
        assert rows_of_units(units) == len(rows)
        if sampling != "replacement":
            assert len(set(rows.tolist())) == len(rows)
        if sampling != "bernoulli":
            assert len(rows) == b
        np.add.at(seen, rows, 1)
        means.append(z[rows].sum() / b)
    assert np.var(means) / ((z**2).mean() / b) == pytest.approx(ratio, rel=0.1)
    expected = seen.sum() / n
    assert ((seen - expected) ** 2 / expected).sum() < 565  # 450 degrees of freedom, p = 0.0002
    assert plan.units(0, 5).tolist() == plan.units(0, 5).tolist()


def test_an_empty_bernoulli_batch_is_a_leaf_without_rows():
    plan = Plan(np.array([0, 40, 60]), 1, 0, seed=0, sampling="bernoulli")
    units = [plan.units(0, step) for step in range(50)]
    empty = [u for u in units if rows_of_units(u) == 0]
    assert len(empty) > 5
    assert all(len(u) == 1 and u[0, 0] == 1 for u in empty)
