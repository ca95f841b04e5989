"""OWL-QN: derivatives by definition, steps that stay in their orthant, known optima, exact zeros, scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lines import Smooth, quadratic, rosenbrock, walk

from bigopt.core.errors import ConfError, DivergedError
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import LineSums, Sums
from bigopt.models.penalties import Penalty
from bigopt.optim.build import build_method
from bigopt.optim.owlqn import OWLQN, pseudo_gradient

LAYOUT = Layout((Block("weight", (6,), True), Block("intercept", (2,), False)))


def problem(cond: float, d: int = 20, n: int = 300, seed: int = 0) -> tuple[Smooth, Layout]:
    """Logistic regression with an intercept on rows of a condition number, with a sparse truth."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    X = rng.normal(size=(n, d)) * np.sqrt(np.geomspace(1.0, 1.0 / cond, d)) @ Q.T
    w = np.where(np.arange(d) % 3 == 0, 2.0 * rng.normal(size=d), 0.0)
    y = (X @ w + 0.5 + rng.logistic(size=n) > 0) * 1.0
    A = np.c_[X, np.ones(n)]
    f = Smooth(
        lambda w: float(np.mean(np.logaddexp(0.0, A @ w) - y * (A @ w))),
        lambda w: A.T @ (1.0 / (1.0 + np.exp(-A @ w)) - y) / n,
    )
    return f, Layout((Block("weight", (d,), True), Block("intercept", (1,), False)))


def test_the_pseudo_gradient_is_the_steepest_one_sided_derivative():
    rng = np.random.default_rng(5)
    g, l1, h = rng.normal(size=8), 0.6, 1e-7
    w = np.array([1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0])
    g[2:6] = [0.3, -0.3, 1.0, -1.0]  # at 0: held twice, then down to either side
    found = pseudo_gradient(w, g, l1, LAYOUT)
    for i in range(8):
        held = l1 if LAYOUT.penalized[i] else 0.0
        right = g[i] + held * (abs(w[i] + h) - abs(w[i])) / h
        left = g[i] - held * (abs(w[i] - h) - abs(w[i])) / h
        want = right if right < 0.0 else left if left > 0.0 else 0.0
        assert found[i] == pytest.approx(want, abs=1e-6)
    assert found[2] == found[3] == 0.0


@pytest.mark.parametrize("cond", [10.0, 1e3])
def test_every_step_decreases_f_and_no_weight_changes_its_sign_within_one(cond):
    f, layout = problem(cond)
    l1, start = 0.003, np.random.default_rng(1).normal(size=21)
    _, steps, asked = walk(build_method("lbfgs", layout, l1=l1), f, start, 110)

    def value(w: np.ndarray) -> float:
        return f.value(w) + l1 * float(np.abs(w[:20]).sum())

    w = start
    for step, asks in zip(steps, asked, strict=True):
        pseudo = pseudo_gradient(w, f.gradient(w), l1, layout)
        assert step.grad_norm == pytest.approx(np.linalg.norm(pseudo), rel=1e-9)
        assert step.loss == pytest.approx(value(w), rel=1e-14)
        if step.grad_norm < 1e-6:
            break
        assert value(step.params) <= value(w) + 1e-4 * pseudo @ (step.params - w)
        assert (np.sign(step.params) * np.sign(w) >= 0)[:20].all()
        assert asks[-1].params.tobytes() == step.params.tobytes()
        w = step.params
    assert steps[-1].grad_norm < 1e-6
    assert sum(map(len, asked)) <= 1.3 * len(steps)


@pytest.mark.parametrize("l2", [0.0, 0.01])
@pytest.mark.parametrize("l1", [0.03, 0.003, 1e-4])
@pytest.mark.parametrize("cond", [10.0, 1e4])
def test_optimality_condition_and_exact_zeros(cond, l1, l2):
    """abs(g) <= l1 where w = 0, g = -l1 sign(w) elsewhere, g = 0 for the intercept; g with the l2 part."""
    f, layout = problem(cond)
    penalty = Penalty(l2, l1)
    method = build_method(
        "lbfgs", layout, l1=l1, penalty=lambda grad, params: penalty.add_gradient(grad, params, layout)
    )
    assert isinstance(method, OWLQN)
    _, steps, _ = walk(method, f, np.random.default_rng(2).normal(size=21), 500)
    w = steps[-1].params
    g = penalty.add_gradient(f.gradient(w), w, layout)
    zero = w[:20] == 0.0
    assert np.abs(g[:20][zero]).max(initial=0.0) <= l1
    np.testing.assert_allclose(g[:20][~zero], -l1 * np.sign(w[:20][~zero]), atol=1e-8)
    assert abs(g[20]) <= 1e-8
    assert not np.signbit(w[:20][zero]).any()
    if l1 == 0.03:
        assert zero.any()


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_elastic_net_equals_scikit_learn(ratio):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(43)
    n, d = 300, 30
    U, V = np.linalg.qr(rng.normal(size=(n, d)))[0], np.linalg.qr(rng.normal(size=(d, d)))[0]
    X = math.sqrt(n) * (U * np.geomspace(1.0, 0.1, d)) @ V.T
    y = X @ np.where(np.arange(d) % 3 == 0, rng.normal(size=d), 0.0) + 2.0 + 0.1 * rng.normal(size=n)
    alpha = 0.05
    l1, l2 = 2 * alpha * ratio, alpha * (1 - ratio)
    peer = linear_model.ElasticNet(alpha=alpha, l1_ratio=ratio, tol=1e-12, max_iter=10**6).fit(X, y)
    A = np.c_[X, np.ones(n)]
    layout = Layout((Block("weight", (d,), True), Block("intercept", (1,), False)))
    penalty = Penalty(l2, l1)
    f = Smooth(lambda w: float(np.mean((A @ w - y) ** 2)), lambda w: 2 * A.T @ (A @ w - y) / n)
    method = build_method(
        "lbfgs", layout, l1=l1, penalty=lambda grad, params: penalty.add_gradient(grad, params, layout)
    )
    _, steps, _ = walk(method, f, np.zeros(d + 1), 120)
    w = steps[-1].params
    assert np.array_equal(w[:d] == 0.0, peer.coef_ == 0.0)
    assert 3 <= np.count_nonzero(peer.coef_) <= d - 3
    np.testing.assert_allclose(w, [*peer.coef_, peer.intercept_], rtol=1e-6)


@pytest.mark.parametrize(("l1", "optimum"), [(0.5, 3.75), (7.9, 0.05), (8.0, 0.0), (100.0, 0.0)])
@pytest.mark.parametrize("start", [-3.0, 0.0, 1.0, 1e4])
def test_one_weight_is_shrunk_by_half_of_l1(flat, l1, optimum, start):
    """3 + (w - 4)^2 + l1 abs(w): w = 4 - l1/2, and 0 exactly from l1 = 8 on."""
    f = Smooth(lambda w: float(3 + (w[0] - 4) ** 2), lambda w: 2 * (w - 4))
    _, steps, _ = walk(build_method("lbfgs", flat(1), l1=l1), f, np.array([start]), 12)
    assert steps[-1].params[0] == (pytest.approx(optimum, abs=1e-12) if optimum else 0.0)


def test_a_settled_run_stays_where_it_is_at_one_round_a_step():
    f, layout = problem(100.0)
    state, steps, asked = walk(build_method("lbfgs", layout, l1=0.01), f, np.zeros(21), 150)
    assert {len(asks) for asks in asked[-20:]} == {1}
    assert steps[-1].grad_norm < 1e-12 or state.settled
    np.testing.assert_allclose(steps[-1].params, steps[-20].params, atol=1e-13)


def test_where_the_start_is_optimal_the_gradient_is_all_it_asks_for(flat):
    f = quadratic(np.ones(2), np.array([0.1, -0.1]))  # its gradient at 0 is smaller than l1
    _, steps, asked = walk(build_method("lbfgs", flat(2), l1=0.2), f, np.zeros(2), 3)
    assert [(s.learning_rate, s.grad_norm, s.params.tolist()) for s in steps] == [(0.0, 0.0, [0.0, 0.0])] * 3
    assert [len(asks) for asks in asked] == [1, 1, 1]


def test_a_curved_valley_under_l1(flat):
    """Rosenbrock's function is not convex; the end is a point where no one-sided derivative is negative."""
    f = rosenbrock()
    _, steps, _ = walk(build_method("lbfgs", flat(2), l1=0.1), f, np.array([-1.2, 1.0]), 80)
    w = steps[-1].params
    assert np.abs(pseudo_gradient(w, f.gradient(w), 0.1, flat(2))).max() < 1e-7
    assert 0.5 < w[0] < 1.0


def test_points_where_the_loss_is_not_finite_are_only_bad_points(flat):
    """A wall at w = 1: trials beyond it are infinite, the search comes back."""

    def value(w: np.ndarray) -> float:
        return -math.log(1.0 - w[0]) - 20.0 * w[0] + 50.0 * w[1] ** 2 if w[0] < 1.0 else math.inf

    def gradient(w: np.ndarray) -> np.ndarray:
        return np.array([1.0 / (1.0 - w[0]) - 20.0, 100.0 * w[1]]) if w[0] < 1.0 else np.full(2, np.nan)

    for name, l1, optimum in (("owlqn", 1.0, 1 - 1 / 19), ("lbfgs", 0.0, 1 - 1 / 20)):
        _, steps, _ = walk(build_method("lbfgs", flat(2), l1=l1), Smooth(value, gradient), np.array([0.0, 1.0]), 60)
        assert steps[-1].params[0] == pytest.approx(optimum, abs=1e-7), name
        assert steps[-1].params[1] == pytest.approx(0.0, abs=1e-8)


def test_what_is_not_finite_where_a_step_begins_is_one_clear_error(flat):
    method = build_method("lbfgs", flat(2), l1=0.1)
    state, _ = method.start(np.zeros(2))
    with pytest.raises(DivergedError, match=r"step 1: the gradient is not finite"):
        method.tell(state, Sums(np.array([np.nan, 0.0]), 0.0, 1.0, 1), 1.0, 0.0)
    with pytest.raises(DivergedError, match=r"step 1: the loss is inf"):
        method.tell(state, Sums(np.ones(2), math.inf, 1.0, 1), 1.0, 0.0)
    state, ask = method.tell(state, Sums(np.ones(2), 1.0, 1.0, 1), 1.0, 0.0)
    bad = np.full(len(ask.candidates), np.inf)
    with pytest.raises(DivergedError, match="step 1: the loss is inf"):
        method.tell(state, LineSums(bad, np.empty(0), np.empty(0), 1.0, 1), 1.0, 0.0)


@pytest.mark.parametrize("l1", [-1.0, math.nan, math.inf])
def test_bad_l1_is_refused(l1):
    with pytest.raises(ConfError) as caught:
        build_method("lbfgs", LAYOUT, l1=l1)
    assert caught.value.where == "model.l1"
