"""Newton: the solver against NumPy, one step to a quadratic's optimum, pins, halving, and singular Hessians."""

from __future__ import annotations

import numpy as np
import pytest
from lines import Smooth, quadratic, rosenbrock, transcendental, walk

from bigopt.core.errors import DivergedError
from bigopt.core.layout import Block, Layout
from bigopt.optim.build import build_method
from bigopt.optim.newton import solve


@pytest.mark.parametrize("p", [1, 5, 64, 150])
def test_the_solver_agrees_with_numpy(flat, p):
    rng = np.random.default_rng(p)
    R = rng.normal(size=(2 * p, p)) * np.geomspace(1, 1e4, p)
    H, g = R.T @ R, rng.normal(size=p)
    np.testing.assert_allclose(solve(H, g, flat(p), "here"), np.linalg.solve(H, g), rtol=1e-9)


@pytest.mark.parametrize("start", [0.0, 1.0, 1e6])
def test_a_quadratic_takes_one_step_of_two_rounds_from_anywhere(flat, start):
    optimum = np.array([1.0, -2.0, 3.0])
    f = quadratic(np.array([1.0, 10.0, 1000.0]), optimum)
    _, (step,), (asks,) = walk(build_method("newton", flat(3)), f, np.full(3, start), 1)
    np.testing.assert_allclose(step.params, optimum, atol=1e-12 * max(1.0, start))
    assert [a.kind for a in asks] == ["hessian", "line"]
    assert step.learning_rate == 1.0


def test_penalty_and_damping_stand_on_the_diagonal():
    layout = Layout((Block("weight", (2,), True), Block("intercept", (1,), False)))
    A, b = np.array([[3.0, 1.0, 0.5], [1.0, 2.0, 0.0], [0.5, 0.0, 1.0]]), np.array([1.0, 2.0, 3.0])
    f = Smooth(lambda w: float(0.5 * w @ A @ w - b @ w), lambda w: A @ w - b, lambda w: A)

    def penalty(grad, params):
        grad[:2] += 2 * 0.3 * params[:2]

    held = np.diag([0.6, 0.6, 0.0])
    _, (step,), _ = walk(build_method("newton", layout, penalty=penalty), f, np.ones(3), 1)
    np.testing.assert_allclose(step.params, np.linalg.solve(A + held, b), rtol=1e-12)
    damped = build_method("newton", layout, penalty=penalty, keys={"damping": 0.7})
    _, (step,), _ = walk(damped, f, np.ones(3), 1)
    g = A @ np.ones(3) - b + held @ np.ones(3)
    np.testing.assert_allclose(step.params, 1 - np.linalg.solve(A + held + 0.7 * np.eye(3), g), rtol=1e-12)


def test_the_step_is_halved_until_armijo_holds(flat):
    # log cosh: Newton's full step from 2 overshoots further each time
    f = Smooth(
        lambda w: float(np.log(np.cosh(w[0]))), lambda w: np.tanh(w), lambda w: np.array([[1 / np.cosh(w[0]) ** 2]])
    )
    _, steps, _ = walk(build_method("newton", flat(1)), f, np.array([2.0]), 8)
    w, s = 2.0, np.sinh(2.0) * np.cosh(2.0)
    a = 1.0
    while np.log(np.cosh(w - a * s)) > np.log(np.cosh(w)) - 1e-4 * a * s * np.tanh(w):
        a /= 2
    assert a < 1
    assert steps[0].learning_rate == a
    assert abs(steps[-1].params[0]) < 1e-14


def test_more_than_ten_halvings_take_another_round(flat):
    f = quadratic(np.array([1.0, 2.0]), np.ones(2))
    method = build_method("newton", flat(2), schedule_keys={"learning_rate": 2.0**14})
    _, (step,), (asks,) = walk(method, f, np.zeros(2), 1)
    assert step.learning_rate == 1.0
    assert [a.kind for a in asks] == ["hessian", "line", "line"]


def test_worked_number_9_and_rosenbrock(flat):
    _, steps, _ = walk(build_method("newton", flat(1)), transcendental(), np.zeros(1), 6)
    assert steps[-1].params[0] == pytest.approx(0.3517337112, abs=1e-10)
    _, steps, _ = walk(build_method("newton", flat(2)), rosenbrock(), np.array([-1.2, 1.0]), 25)
    np.testing.assert_allclose(steps[-1].params, [1.0, 1.0], atol=1e-12)


def test_free_shifts_of_the_classes_are_pinned():
    layout = Layout((Block("weight", (2, 3), True), Block("intercept", (3,), False)))
    rng = np.random.default_rng(0)
    P = np.eye(3) - 1 / 3
    block = rng.normal(size=(3, 3))
    H = np.kron(block @ block.T + np.eye(3), P)  # singular along (1, 1, 1) of each row
    g = H @ rng.normal(size=9)
    f = Smooth(lambda w: float(0.5 * w @ H @ w + g @ w), lambda w: H @ w + g, lambda w: H)
    with pytest.raises(DivergedError, match="singular"):
        walk(build_method("newton", layout), f, np.zeros(9), 1)
    _, (step,), _ = walk(build_method("newton", layout, shifted=3), f, np.zeros(9), 1)
    np.testing.assert_allclose(step.params, -np.linalg.pinv(H) @ g, atol=1e-12)
    np.testing.assert_allclose(step.params.reshape(3, 3).sum(1), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("H", "message"),
    [
        (np.diag([1.0, 0.0, 1.0]), r"step 1: the Hessian is singular: nothing depends on weight\[1, 0\]"),
        (np.diag([1.0, 1.0, -1.0]), r"singular: nothing depends on intercept\[0\]"),
        (np.array([[1.0, 1, 0], [1, 1 + 4e-16, 0], [0, 0, 1]]), r"features that are linear.*found at weight\[1, 0\]"),
        (np.array([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]]), r"step 1: the Hessian is singular: features that are linear"),
        (np.diag([1.0, np.inf, 1.0]), r"step 1: the Hessian is not finite"),
    ],
)
def test_a_singular_hessian_is_one_clear_error(H, message):
    layout = Layout((Block("weight", (2, 1), True), Block("intercept", (1,), False)))
    f = Smooth(lambda w: 0.0, lambda w: np.ones(3), lambda w: H.copy())
    with pytest.raises(DivergedError, match=message) as caught:
        walk(build_method("newton", layout), f, np.zeros(3), 1)
    assert np.isinf(H).any() or "optimizer.damping or model.l2" in caught.value.hint


def test_damping_makes_a_singular_hessian_solvable(flat):
    H = np.array([[1.0, 1.0], [1.0, 1.0]])
    f = Smooth(lambda w: float(0.5 * w @ H @ w - w.sum()), lambda w: H @ w - 1, lambda w: H)
    method = build_method("newton", flat(2), keys={"damping": 1e-3})
    _, steps, _ = walk(method, f, np.zeros(2), 5)
    np.testing.assert_allclose(steps[-1].params, [0.5, 0.5], atol=1e-12)
