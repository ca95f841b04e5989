"""Merges of sums and moments against NumPy in extended precision and against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigopt.core.sums import Moments, Sums, added, merge
from bigopt.core.tree import fold, height

Floats = npt.NDArray[np.float64]


def moments_of(x: Floats, s: Floats) -> Moments:
    """Weighted moments of rows x (rows, d), centred in two passes."""
    weight = float(s.sum())
    if weight == 0.0:
        return Moments(0.0, np.zeros(x.shape[1]), np.zeros(x.shape[1]))
    mean = s @ x / weight
    return Moments(weight, mean, s @ (x - mean) ** 2)


def exact(x: Floats, s: Floats) -> tuple[Floats, Floats]:
    """Mean and spread per column in rational arithmetic."""
    weights = [Fraction(v) for v in s.tolist()]
    means, spreads = [], []
    for column in x.T.tolist():
        values = [Fraction(v) for v in column]
        mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        means.append(float(mean))
        spreads.append(float(sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))))
    return np.array(means), np.array(spreads)


def through_the_tree(x: Floats, s: Floats, cuts: list[int]) -> Moments:
    parts = [moments_of(a, b) for a, b in zip(np.split(x, cuts), np.split(s, cuts), strict=True)]
    return fold(parts, len(parts), merge)[(height(len(parts)), 0)]


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e6, -1e8])
def test_moments_over_a_split_are_the_moments_of_all(offset: float) -> None:
    draw = np.random.default_rng(7)
    x = np.rint(draw.standard_normal((300, 4)) * 1024) / 1024 * np.array([1.0, 8.0, 1.0, 0.125]) + offset
    s = draw.integers(0, 5, size=300).astype(float)
    got = through_the_tree(x, s, [1, 2, 2, 90, 91, 200])
    mean, spread = exact(x, s)
    assert got.weight == s.sum()
    np.testing.assert_allclose(got.mean, mean, rtol=1e-12, atol=1e-12)
    # a mean stored as a double is known to eps |mean|, so a difference of two means costs eps |mean| / deviation
    condition = np.abs(mean) / np.sqrt(spread / s.sum())
    assert np.all(np.abs(got.spread / spread - 1) <= 1e-12 + 2 * np.finfo(float).eps * condition)


def test_moments_keep_the_spread_that_raw_sums_of_squares_lose() -> None:
    x = 1e9 + np.arange(8.0).reshape(8, 1)
    got = through_the_tree(x, np.ones(8), [3, 5])
    assert got.spread[0] == pytest.approx(42.0, rel=1e-12)
    raw = float((x**2).sum() - 8 * x.mean() ** 2)
    assert abs(raw - 42.0) > 1.0  # the textbook formula, to show that the case is hard


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.data())
def test_moments_do_not_depend_on_the_split(values: list[float], data: st.DataObject) -> None:
    x = np.array(values).reshape(-1, 1)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    got = through_the_tree(x, np.ones(len(values)), cuts)
    mean, spread = exact(x, np.ones(len(values)))
    scale = float(np.abs(x).max())
    np.testing.assert_allclose(got.mean, mean, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(got.spread, spread, rtol=1e-12, atol=1e-12 * scale**2)


def test_parts_of_weight_zero_add_nothing() -> None:
    empty = Moments(0.0, np.array([5.0]), np.array([0.0]))
    full = Moments(3.0, np.array([1e300]), np.array([0.0]))  # delta^2 overflows: inf * 0 would be nan
    for got in (empty.merge(full), full.merge(empty)):
        assert (got.weight, got.mean[0], got.spread[0]) == (3.0, 1e300, 0.0)
    assert empty.merge(empty).weight == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_add_field_by_field(dtype: type) -> None:
    left = Sums(np.array([1.0, -2.0, 0.5], dtype), 3.0, 2.0, 4)
    right = Sums(np.array([10.0, 20.0, 0.25], dtype), 0.5, 1.5, 3)
    got = merge(left, right)
    assert got.grad.tolist() == [11.0, 18.0, 0.75]
    assert got.grad.dtype == dtype
    assert got[1:] == (3.5, 3.5, 7)
    assert right.grad.tolist() == [10.0, 20.0, 0.25]


def test_the_left_operand_gives_its_buffer_where_it_may_be_written() -> None:
    left, right = np.ones(3), np.full(3, 2.0)
    assert added(left, right) is left
    frozen = np.ones(3)
    frozen.flags.writeable = False
    got = added(frozen, right)
    assert got.tolist() == [3.0, 3.0, 3.0]
    assert frozen.tolist() == [1.0, 1.0, 1.0]
    assert right.tolist() == [2.0, 2.0, 2.0]


def test_the_tree_of_sums_equals_pairwise_addition_bit_by_bit() -> None:
    grads = np.random.default_rng(0).standard_normal((7, 33))
    total = fold((Sums(g.copy(), float(g[0]), 1.0, 1) for g in grads), 7, merge)[(3, 0)]
    g = grads
    expected = ((g[0] + g[1]) + (g[2] + g[3])) + ((g[4] + g[5]) + g[6])
    assert total.grad.tobytes() == expected.tobytes()
    assert total.loss == expected[0]
    assert (total.weight, total.rows) == (7.0, 7)
