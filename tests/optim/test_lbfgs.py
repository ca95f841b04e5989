"""L-BFGS: the two loops against the matrix they stand for, known optima, strong Wolfe steps, what it forgets."""

from __future__ import annotations

import numpy as np
import pytest
from lines import Smooth, quadratic, rosenbrock, transcendental, walk

from bigopt.optim.build import build_method
from bigopt.optim.lbfgs import Pair, remembered, two_loops


@pytest.mark.parametrize("m", [0, 1, 4])
def test_the_two_loops_are_the_bfgs_matrix_times_the_gradient(m):
    """H <- (I - s y^T/sy) H (I - y s^T/sy) + s s^T/sy from H = (sy/yy) I of the newest pair."""
    rng = np.random.default_rng(m)
    R = rng.normal(size=(6, 6))
    A, pairs = R @ R.T + np.eye(6), []
    for _ in range(m):
        s = rng.normal(size=6)
        pairs.append(Pair(s, A @ s, float(s @ A @ s)))
    g = rng.normal(size=6)
    H = np.eye(6) if not m else np.eye(6) * pairs[-1].product / (pairs[-1].y @ pairs[-1].y)
    for s, y, product in pairs:
        left = np.eye(6) - np.outer(s, y) / product
        H = left @ H @ left.T + np.outer(s, s) / product
    np.testing.assert_allclose(two_loops(g, tuple(pairs)), -H @ g, rtol=1e-10)


def test_every_step_meets_the_strong_wolfe_conditions(flat):
    f = rosenbrock()
    _, steps, asked = walk(build_method("lbfgs", flat(2)), f, np.array([-1.2, 1.0]), 60)
    w = np.array([-1.2, 1.0])
    for step, asks in zip(steps, asked, strict=True):
        if step.grad_norm < 1e-6:
            break
        s = step.params - w
        assert f.value(step.params) <= f.value(w) + 1e-4 * f.gradient(w) @ s
        assert abs(f.gradient(step.params) @ s) <= 0.9 * abs(f.gradient(w) @ s)
        assert asks[-1].kind == "gradient"
        assert asks[-1].params.tobytes() == step.params.tobytes()
        assert step.loss == pytest.approx(f.value(w), rel=1e-14)
        w = step.params
    assert steps[-1].grad_norm < 1e-9
    np.testing.assert_allclose(steps[-1].params, [1.0, 1.0], atol=1e-9)


@pytest.mark.parametrize("history", [1, 3, 10])
def test_an_ill_conditioned_quadratic_is_solved(flat, history):
    optimum = np.linspace(-1, 1, 20)
    f = quadratic(np.geomspace(1e-2, 1, 20), optimum)
    state, steps, asked = walk(build_method("lbfgs", flat(20), keys={"history": history}), f, np.zeros(20), 250)
    np.testing.assert_allclose(steps[-1].params, optimum, atol=1e-8)
    assert len(state.pairs) <= history
    assert np.mean([len(asks) for asks in asked[:100]]) < 1.2  # one pass is all that most steps cost


def test_worked_number_9(flat):
    _, steps, _ = walk(build_method("lbfgs", flat(1)), transcendental(), np.zeros(1), 12)
    assert steps[-1].params[0] == pytest.approx(0.3517337112, abs=1e-9)


def test_at_the_optimum_the_gradient_is_all_it_asks_for(flat):
    _, (step,), (asks,) = walk(build_method("lbfgs", flat(2)), quadratic(np.ones(2), np.zeros(2)), np.zeros(2), 1)
    assert (step.learning_rate, len(asks)) == (0.0, 1)


def test_a_converged_run_stays_where_it_is_at_one_round_a_step(flat):
    optimum = np.array([1.0, -1.0, 0.5])
    f = quadratic(np.array([1.0, 10.0, 100.0]), optimum)
    shifted = Smooth(lambda w: f.value(w) + 1.0, f.gradient)
    _, steps, asked = walk(build_method("lbfgs", flat(3)), shifted, np.zeros(3), 60)
    np.testing.assert_allclose(steps[-1].params, optimum, atol=1e-14)
    assert {len(asks) for asks in asked[-20:]} == {1}


def test_pairs_without_positive_curvature_are_not_kept(flat):
    # concave between its two valleys: y.s < 0 as long as steps end there
    f = Smooth(lambda w: float(np.sum(w**4 / 4 - w**2 / 2)), lambda w: w**3 - w)
    state, steps, _ = walk(build_method("lbfgs", flat(2)), f, np.array([0.01, -0.02]), 15)
    np.testing.assert_allclose(np.abs(steps[-1].params), 1.0, atol=1e-7)
    assert all(pair.product > 0 for pair in state.pairs)


def test_pairs_whose_products_underflow_are_not_kept():
    """Far out on the flat side of a logistic loss gradients are 1e-170, and y.y is 0."""
    s, y = np.ones(2), np.full(2, 1e-170)
    assert remembered((), s, y, 5) == ()
    assert remembered((), 1e-170 * s, np.ones(2), 5)[0].product == pytest.approx(2e-170)
    pairs: tuple[Pair, ...] = ()
    for k in range(1, 4):
        pairs = remembered(pairs, k * s, s, 2)
    assert [pair.product for pair in pairs] == [4.0, 6.0]
