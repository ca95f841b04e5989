"""The compiled softmax gives the closed form of its gradient, whatever the shape, the weights and the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from bigopt.core import compiled
from bigopt.models import MLP, LinearModel
from bigopt.models.fused import fused_sum, has_classes
from bigopt.models.fused_softmax import MOST
from bigopt.models.losses import CategoricalCrossEntropy, SquaredLoss

pytestmark = pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())

CE = CategoricalCrossEntropy()


def closed_form(params: Any, X: Any, y: Any, weight: Any, classes: int, *, intercept: bool) -> tuple[Any, float, float]:
    """Return gradient, loss and weight in float64."""
    ones = np.ones((len(X), 1 if intercept else 0))
    X, s = np.hstack([X.astype(np.float64), ones]), np.ones(len(X)) if weight is None else weight
    logs = log_softmax(X @ params.astype(np.float64).reshape(-1, classes), axis=1)
    delta = np.exp(logs) - np.eye(classes)[y]
    return (X.T @ (s[:, None] * delta)).ravel(), float(-s @ logs[np.arange(len(y)), y]), float(s.sum())


@pytest.mark.parametrize(("dtype", "classes"), [("float32", 3), ("float32", 10), ("float32", 19), ("float64", 10)])
def test_the_gradient_is_the_closed_form(dtype: str, classes: int) -> None:
    rng, tight = np.random.default_rng(classes), 2e-6 if dtype == "float32" else 1e-14
    for rows, d, intercept in [(1, 1, True), (15, 6, True), (130, 3, False), (16, 8, False), (401, 37, True)]:
        model = LinearModel(d, classes, CE, intercept)
        params = rng.normal(size=model.layout.size).astype(dtype)
        X, y = rng.normal(size=(rows, d)).astype(dtype), rng.integers(0, classes, rows)
        for weight in (None, rng.random(rows)):
            found = fused_sum(model, params, X, y, weight)
            assert found is not None
            grad, loss, mass = closed_form(params, X, y, weight, classes, intercept=intercept)
            assert found[0].shape == params.shape
            assert np.abs(found[0] - grad).max() <= tight * max(1.0, np.abs(grad).max())
            assert found[1:] == pytest.approx((loss, mass), rel=tight)
            again = fused_sum(model, params.copy(), X.copy(), y.astype(np.int32), weight)
            assert again is not None
            assert (again[0].tobytes(), again[1:]) == (found[0].tobytes(), found[1:])


def test_at_the_optimum_of_scikit_learn_the_gradient_is_that_of_the_penalty() -> None:
    rng, n, l2 = np.random.default_rng(0), 500, 0.01
    X = rng.normal(size=(n, 6))
    y = (X @ rng.normal(size=(6, 10)) + rng.gumbel(size=(n, 10))).argmax(axis=1)
    peer = LogisticRegression(C=1 / (2 * n * l2), tol=1e-10, max_iter=2000).fit(X, y)
    params = np.concatenate([peer.coef_.T.ravel(), peer.intercept_])
    found = fused_sum(LinearModel(6, 10, CE), params, X, y, None)
    assert found is not None
    np.testing.assert_allclose(found[0][:60] / n, -2 * l2 * params[:60], atol=1e-7)
    np.testing.assert_allclose(found[0][60:] / n, 0.0, atol=1e-7)


def test_logits_of_any_size() -> None:
    model, rng = LinearModel(1, 10, CE, False), np.random.default_rng(2)
    for scale in (1e-4, 30.0, 1e4):
        params, X = (rng.normal(size=10) * scale).astype(np.float32), rng.normal(size=(100, 1)).astype(np.float32)
        y = rng.integers(0, 10, 100)
        found = fused_sum(model, params, X, y, None)
        assert found is not None
        grad, loss, _ = closed_form(params, X, y, None, 10, intercept=False)
        assert found[1] == pytest.approx(loss, rel=1e-6)
        assert np.abs(found[0] - grad).max() <= 1e-5 * max(1.0, np.abs(grad).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_and_labels_that_are_none_reach_the_loss(bad: float) -> None:
    model, X, y = LinearModel(4, 10, CE), np.ones((20, 4), dtype=np.float32), np.zeros(20, dtype=np.int64)
    params = np.zeros(50, dtype=np.float32)
    found = fused_sum(model, params, np.where(np.arange(20)[:, None] == 7, np.float32(bad), X), y, None)
    assert found is not None
    assert np.isnan(found[1])  # a parameter of 0 times infinity as well
    for label in (-1, 10, 16, 10**12):
        y[7] = label
        found = fused_sum(model, params, X, y, None)
        assert found is not None
        assert np.isnan(found[1])


def test_who_has_this_kernel() -> None:
    assert has_classes(LinearModel(4, MOST, CE), "float32")
    assert not has_classes(LinearModel(4, MOST + 1, CE), "float32")
    assert not has_classes(LinearModel(4, 3, SquaredLoss()), "float64")
    assert not has_classes(LinearModel(4, 3, CE), "float16")
    assert not has_classes(MLP(4, (), 3, CE), "float32")
    one_hot = np.eye(3)[[0, 1]]
    assert fused_sum(LinearModel(4, 3, CE), np.zeros(15), np.zeros((2, 4)), one_hot, None) is None
