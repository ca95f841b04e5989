"""Hessian sums and sums along a line, against finite differences of the gradient and against each other."""

from __future__ import annotations

import numpy as np
import pytest

from bigopt.core.errors import ConfError
from bigopt.models.linear import LinearModel
from bigopt.models.losses import (
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    HingeLoss,
    HuberLoss,
    Loss,
    SquaredHingeLoss,
    SquaredLoss,
)
from bigopt.models.mlp import MLP
from bigopt.models.second import (
    check_newton,
    hessian_sum,
    is_quadratic,
    line_of_margins,
    line_of_points,
    margins,
    shifted_classes,
)

ROWS, FEATURES = 40, 4
CASES: dict[str, tuple[Loss, int]] = {
    "squared": (SquaredLoss(), 2),
    "huber": (HuberLoss(0.7), 2),
    "binary": (BinaryCrossEntropy(), 1),
    "categorical": (CategoricalCrossEntropy(), 3),
    "one_hot": (CategoricalCrossEntropy(), 3),
    "squared_hinge": (SquaredHingeLoss(), 1),
}


def problem(name: str, intercept: bool):
    rng = np.random.default_rng(len(name))
    loss, q = CASES[name]
    y = {
        "binary": rng.integers(0, 2, ROWS).astype(float),
        "categorical": rng.integers(0, 3, ROWS),
        "one_hot": np.eye(3)[rng.integers(0, 3, ROWS)],
        "squared_hinge": rng.choice([-1.0, 1.0], ROWS),
    }.get(name, rng.normal(size=(ROWS, q)))
    model = LinearModel(FEATURES, q, loss, intercept)
    w, d = rng.normal(size=(2, model.layout.size))
    return model, w, d, rng.normal(size=(ROWS, FEATURES)), y, rng.uniform(0.5, 2.0, ROWS)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_hessian_is_the_derivative_of_the_gradient(name, weighted, intercept):
    model, w, _, X, y, s = problem(name, intercept)
    s = s if weighted else None
    grad, H, loss, mass = hessian_sum(model, w, X, y, s)
    step = 1e-6
    numeric = [
        (model.grad_sum(w + step * e, X, y, s)[0] - model.grad_sum(w - step * e, X, y, s)[0]) / (2 * step)
        for e in np.eye(len(w))
    ]
    np.testing.assert_allclose(H, numeric, rtol=1e-6, atol=1e-6)
    expected = model.grad_sum(w, X, y, s)
    np.testing.assert_array_equal(grad, expected[0])
    assert (loss, mass) == expected[1:]


@pytest.mark.parametrize("name", CASES)
def test_margins_give_values_slopes_and_curvatures_of_every_point(name):
    model, w, d, X, y, s = problem(name, True)
    steps = [0.0, 0.3, -2.0]
    found = line_of_margins(model.loss, margins(model, w, d, X), steps, y, s, slopes=True)
    for j, eta in enumerate(steps):
        grad, H, loss, mass = hessian_sum(model, w + eta * d, X, y, s)
        assert found.values[j] == pytest.approx(loss, rel=1e-12)
        assert found.slopes[j] == pytest.approx(grad @ d, rel=1e-9, abs=1e-12)
        assert found.curves[j] == pytest.approx(d @ H @ d, rel=1e-9)
        assert found.weight == mass
    bare = line_of_margins(model.loss, margins(model, w, d, X), steps, y, s, slopes=False)
    np.testing.assert_allclose(bare.values, found.values, rtol=1e-13)
    assert (len(bare.slopes), len(bare.curves)) == (0, 0)
    other = line_of_points(model, [w + a * d for a in steps], d, X, y, s, slopes=True)
    np.testing.assert_allclose(other.values, found.values, rtol=1e-12)
    np.testing.assert_allclose(other.slopes, found.slopes, rtol=1e-9)


def test_along_a_line_float32_blocks_differ_by_eta_alone():
    """In float32 the loss at eta and at 0 could not tell a change of 1e-9; from margins it is smooth to 1e-12."""
    model, w, d, X, y, _ = problem("binary", True)
    X, w, d = (a.astype(np.float32) for a in (X, w, d))
    kept = margins(model, w, d, X)
    steps = [0.0, 1e-9, 2e-9, 3e-9]
    found = line_of_margins(model.loss, kept, steps, y, None, slopes=True)
    np.testing.assert_allclose(np.diff(found.values), found.slopes[0] * 1e-9, rtol=1e-3)


def test_what_newton_cannot_take_is_refused_with_the_way_out():
    linear = LinearModel(FEATURES, 1, SquaredLoss())
    check_newton(linear, 10**9)
    with pytest.raises(ConfError, match="only the linear family") as caught:
        check_newton(MLP(FEATURES, (3,), 1, SquaredLoss()), 10**9)
    assert caught.value.exit_code == 2
    with pytest.raises(ConfError, match="second derivatives, which the hinge loss has not"):
        check_newton(LinearModel(FEATURES, 1, HingeLoss()), 10**9)
    with pytest.raises(ConfError, match=r"the Hessian of 5 parameters takes .* GB, data\.memory allows"):
        check_newton(linear, 199)


def test_facts_about_models():
    assert is_quadratic(LinearModel(FEATURES, 2, SquaredLoss()))
    assert not is_quadratic(LinearModel(FEATURES, 2, HuberLoss()))
    assert not is_quadratic(MLP(FEATURES, (3,), 1, SquaredLoss()))
    assert shifted_classes(LinearModel(FEATURES, 3, CategoricalCrossEntropy())) == 3
    assert shifted_classes(LinearModel(FEATURES, 1, BinaryCrossEntropy())) == 0
