"""Side by side with torch's autograd and scikit-learn's optima."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigopt.core.layout import Layout
from bigopt.models.linear import LinearModel, coefficients
from bigopt.models.losses import BinaryCrossEntropy, CategoricalCrossEntropy, HingeLoss, HuberLoss, Loss, SquaredLoss
from bigopt.models.mlp import MLP
from bigopt.models.penalties import Penalty


@pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh", "relu", "softmax"])
@pytest.mark.parametrize("shape", ["full", "grouped", "shortcut"])
@pytest.mark.parametrize("kind", ["squared", "huber", "binary", "categorical", "hinge"])
def test_mlp_gradient_is_torchs(activation: str, shape: str, kind: str, rows_of: Any) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    losses: dict[str, tuple[Loss, int, Any]] = {
        "squared": (SquaredLoss(), 3, lambda v, y: ((v - y) ** 2).sum(1)),
        "huber": (HuberLoss(1.0), 3, lambda v, y: 2 * functional.huber_loss(v, y, reduction="none").sum(1)),
        "binary": (
            BinaryCrossEntropy(),
            1,
            lambda v, y: functional.binary_cross_entropy_with_logits(v[:, 0], y, reduction="none"),
        ),
        "hinge": (HingeLoss(), 1, lambda v, y: torch.relu(1 - v[:, 0] * y)),
        "categorical": (CategoricalCrossEntropy(), 5, lambda v, y: functional.cross_entropy(v, y, reduction="none")),
    }
    loss, outputs, torch_loss = losses[kind]
    if shape == "shortcut":
        model = MLP(6, (6, 6), outputs, loss, activation, shortcut=True)
    else:
        model = MLP(6, (8, 4), outputs, loss, activation, (2, 4, 1) if shape == "grouped" else ())
    rows = rows_of(model, weighted=True, n=33)
    flat = np.random.default_rng(0).normal(scale=0.5, size=model.layout.size)
    params = torch.tensor(flat, requires_grad=True)
    parts = {b.name: params[s].reshape(b.shape) for b, s in model.layout.slices()}
    phi = {"identity": lambda v: v, "softmax": lambda v: torch.softmax(v, 1)}.get(activation) or getattr(
        torch, activation
    )
    z = torch.tensor(rows.X)
    for k in (1, 2, 3):
        w = parts[f"layer{k}.weight"]
        w = torch.block_diag(*w) if w.ndim == 3 else w
        v = z @ w + parts[f"layer{k}.intercept"]
        z = (phi(v) + z if shape == "shortcut" else phi(v)) if k < 3 else v
    total = (torch_loss(z, torch.tensor(rows.y)) * torch.tensor(rows.weight)).sum()
    total.backward()
    grad, value, _ = model.grad_sum(flat, *rows)
    expected = params.grad.numpy()
    assert np.linalg.norm(grad - expected) < 1e-13 * np.linalg.norm(expected)
    assert value == pytest.approx(total.item(), rel=1e-13)
    np.testing.assert_allclose(model.scores(flat, rows.X), z.detach().numpy(), rtol=1e-12, atol=1e-13)


def _mean_gradient(model: Any, params: np.ndarray, rows: Any, l2: float) -> np.ndarray:
    grad, _, weight = model.grad_sum(params, *rows)
    return Penalty(l2).add_gradient(grad / weight, params, model.layout)


def test_gradient_vanishes_at_scikit_learns_ridge(rows_of: Any) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = LinearModel(5, 1, SquaredLoss())
    rows = rows_of(model, weighted=True, n=60)
    l2 = 0.3
    peer = linear_model.Ridge(alpha=rows.weight.sum() * l2, solver="cholesky")
    peer.fit(rows.X, rows.y[:, 0], sample_weight=rows.weight)
    params = np.append(peer.coef_, peer.intercept_)
    assert abs(_mean_gradient(model, params, rows, l2)).max() < 1e-12


def test_gradient_vanishes_at_scikit_learns_logistic_regression(rows_of: Any) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    l2 = 0.05
    for model, columns in (
        (LinearModel(4, 1, BinaryCrossEntropy()), 1),
        (LinearModel(4, 3, CategoricalCrossEntropy()), 3),
    ):
        rows = rows_of(model, weighted=True, n=90)
        peer = linear_model.LogisticRegression(C=1 / (2 * rows.weight.sum() * l2), tol=1e-12, max_iter=2000)
        peer.fit(rows.X, rows.y, sample_weight=rows.weight)
        params = model.layout.flatten({"weight": peer.coef_.T, "intercept": peer.intercept_}, np.empty(5 * columns))
        assert abs(_mean_gradient(model, params, rows, l2)).max() < 1e-6
        np.testing.assert_allclose(model.predict(params, rows.X), peer.predict_proba(rows.X), rtol=1e-12)


@pytest.mark.parametrize("intercept", [True, False])
def test_coefficients_predict_what_the_model_predicts(intercept: bool, params_of: Any) -> None:
    model = LinearModel(4, 2, SquaredLoss(), intercept)
    X = np.random.default_rng(0).normal(loc=5.0, scale=[1.0, 10.0, 0.1, 3.0], size=(50, 4))
    params = params_of(model)
    plain = coefficients(model, params)
    np.testing.assert_allclose(X @ plain.weight + plain.intercept, model.predict(params, X), rtol=1e-13)


def test_penalty_counts_weights_once_and_intercepts_never() -> None:
    layout: Layout = MLP(2, (2,), 1, SquaredLoss()).layout
    params = np.arange(1.0, 10.0)
    weights = np.array([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 7.0, 8.0, 0.0])
    grad = np.full(9, 10.0)
    assert Penalty(0.5).value(params, layout) == 0.5 * float(weights @ weights)
    assert Penalty(0.5).add_gradient(grad, params, layout) is grad
    np.testing.assert_array_equal(grad, 10.0 + weights)
    assert Penalty(0.5, 0.25).value(params, layout) == 0.5 * float(weights @ weights) + 0.25 * weights.sum()
    assert Penalty(l1=0.25).value(-params, layout) == 0.25 * weights.sum()
    np.testing.assert_array_equal(Penalty(0.5, 0.25).add_gradient(np.full(9, 10.0), params, layout), 10.0 + weights)
    assert Penalty().value(params, layout) == 0.0
    np.testing.assert_array_equal(Penalty().add_gradient(grad.copy(), params, layout), grad)


@pytest.mark.parametrize("bad", [-1e-9, float("nan"), float("inf")])
def test_a_bad_l2_or_l1_is_refused(bad: float) -> None:
    from bigopt.core.errors import ConfError

    with pytest.raises(ConfError, match=r"model\.l2"):
        Penalty(bad)
    with pytest.raises(ConfError, match=r"model\.l1"):
        Penalty(0.0, bad)
