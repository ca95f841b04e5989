"""Hessian-vector products against central differences of the gradient, for every part of an mlp."""

from __future__ import annotations

from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from bigopt.models.curvature import gauss_newton_traces, mlp_hessian_vector_sum
from bigopt.models.linear import LinearModel
from bigopt.models.losses import LOSSES, Loss, SignedSquaredLoss
from bigopt.models.mlp import MLP
from bigopt.models.rows import has_curvature, hessian_vector_sum, noise_sum, row_curvature

KINDS = {
    "tanh": {"activation": "tanh"},
    "sigmoid": {"activation": "sigmoid"},
    "relu": {"activation": "relu"},
    "softmax": {"activation": "softmax"},
    "identity": {"activation": "identity"},
    "shortcut": {"activation": "tanh", "shortcut": True},
    "groups": {"activation": "tanh", "groups": (2, 2, 2, 1)},
    "bare": {"activation": "tanh", "intercept": False},
    "squared_softmax": {"activation": "tanh", "output_activation": "softmax"},
    "squared_sigmoid": {"activation": "sigmoid", "output_activation": "sigmoid"},
    "batchnorm": {"activation": "tanh", "batchnorm": True, "shortcut": True},
    "center": {"activation": "sigmoid", "batchnorm": "center"},
}


def targets(loss: Loss, n: int, q: int, rng: np.random.Generator) -> np.ndarray:
    if loss.task == "multiclass":
        return rng.integers(q, size=n)
    if loss.task == "regression":
        return rng.normal(size=(n, q))
    return np.where(rng.random(n) < 0.5, -1.0 if loss.task == "sign" else 0.0, 1.0)


def compare(model: MLP | LinearModel, loss: Loss, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    n = 7
    X = rng.normal(size=(n, model.features))
    y, s = targets(loss, n, model.outputs, rng), rng.uniform(0.5, 2.0, size=n)
    w = model.init("glorot_normal", seed) + 0.1 * rng.normal(size=model.layout.size)
    V = rng.normal(size=model.layout.size)
    for block, part in model.layout.slices():
        if block.name.endswith((".mean", ".scale")):
            V[part] = 0.0
    e = 1e-5
    expected = (model.grad_sum(w + e * V, X, y, s)[0] - model.grad_sum(w - e * V, X, y, s)[0]) / (2 * e)
    product = mlp_hessian_vector_sum if isinstance(model, MLP) else hessian_vector_sum
    found = product(model, w, V, X, y, s)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_an_mlp(kind: str) -> None:
    loss = LOSSES["squared"]()
    compare(MLP(4, (6, 6, 6), 3, loss, **KINDS[kind]), loss)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [*(kind() for kind in LOSSES.values()), SignedSquaredLoss()], ids=lambda x: x.name)
def test_losses(loss: Loss) -> None:
    q = 3 if loss.task in ("regression", "multiclass") else 1
    compare(MLP(4, (5,), q, loss, "tanh"), loss, seed=1)
    if has_curvature(loss):
        for intercept in (True, False):
            compare(LinearModel(4, q, loss, intercept), loss, seed=2)


def test_dead_units_have_no_curvature() -> None:
    """A relu at exactly 0 is flat on both sides by convention; a difference of gradients would see its kink."""
    model = MLP(3, (4,), 1, LOSSES["squared"](), "relu")
    X, y = np.zeros((5, 3)), np.ones(5)
    w = model.init("he_normal", 0)
    H = np.array([mlp_hessian_vector_sum(model, w, u, X, y, None) for u in np.eye(model.layout.size)])
    expected = np.zeros_like(H)
    expected[-1, -1] = 2.0 * 5
    np.testing.assert_array_equal(H, expected)


@pytest.mark.parametrize("loss", [kind() for kind in LOSSES.values()], ids=lambda x: x.name)
def test_array_api_strict_gives_numpys_numbers(loss: Loss) -> None:
    rng = np.random.default_rng(5)
    q = 4 if loss.task in ("regression", "multiclass") else 1
    X, y, s = rng.normal(size=(9, 6)), targets(loss, 9, q, rng), rng.uniform(0.5, 2.0, size=9)
    models = [
        LinearModel(6, q, loss),
        *(MLP(6, (8, 4), q, loss, name, (2, 4, 1)) for name in ("tanh", "relu", "sigmoid", "softmax")),
        MLP(6, (6, 6), q, loss, "tanh", shortcut=True, batchnorm=True),
    ]
    for model in models:
        w, V = model.init("he_normal", 0), rng.normal(size=model.layout.size)
        calls: list[tuple[Any, tuple[Any, ...]]] = [(noise_sum, (model, w, X, y, s))]
        if isinstance(model, MLP):
            calls.append((mlp_hessian_vector_sum, (model, w, V, X, y, s)))
        elif has_curvature(loss):
            calls += [(hessian_vector_sum, (model, w, V, X, y, s)), (row_curvature, (model, w, X, y))]
        for function, (_, *arrays) in calls:
            expected = function(model, *arrays)
            found = function(model, *(strict.asarray(a) for a in arrays))
            pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
            for a, b in pairs:
                np.testing.assert_allclose(np.asarray(a), b, rtol=1e-14, atol=1e-300)


GAUSS_NEWTON = {
    "squared": {"activation": "tanh"},
    "huber": {"activation": "tanh"},
    "binary_cross_entropy": {"activation": "sigmoid"},
    "squared_hinge": {"activation": "tanh", "groups": (2, 2, 2, 1)},
    "categorical_cross_entropy": {"activation": "tanh", "shortcut": True},
    "center": {"activation": "tanh", "batchnorm": True},
    "squared_softmax": {"activation": "tanh", "output_activation": "softmax"},
}


@pytest.mark.parametrize("kind", GAUSS_NEWTON)
def test_gauss_newton_traces_against_jacobians(kind: str) -> None:
    """tr(J^T h J) with the Jacobian of the outputs by central differences, and h written out by hand."""
    rng = np.random.default_rng(0)
    name = kind if kind in LOSSES else "squared"
    loss = LOSSES[name]()
    q = 1 if loss.task in ("binary", "sign") else 3
    keys = dict(GAUSS_NEWTON[kind])
    if kind == "squared_hinge":
        keys["groups"] = (2, 2, 1)
    model = MLP(4, (6, 6), q, loss, **keys)  # type: ignore[arg-type]
    X, y = rng.normal(size=(5, 4)), targets(loss, 5, q, rng)
    w = model.init("glorot_normal", 0) + 0.1 * rng.normal(size=model.layout.size)
    free = [
        i
        for b, s in model.layout.slices()
        if not b.name.endswith((".mean", ".scale"))
        for i in range(*s.indices(len(w)))
    ]

    def out(at: np.ndarray) -> np.ndarray:
        v = model.scores(at, X)
        if keys.get("output_activation") == "softmax":
            v = np.exp(v) / np.exp(v).sum(axis=1, keepdims=True)
        return v

    e = 1e-6
    J = np.stack([(out(w + e * u) - out(w - e * u)) / (2 * e) for u in np.eye(len(w))[free]], axis=2)  # (n, q, p)
    z = out(w)
    for i, trace in enumerate(gauss_newton_traces(model, w, X, y)):
        if name == "categorical_cross_entropy":
            p = np.exp(z[i]) / np.exp(z[i]).sum()
            h = np.diag(p) - np.outer(p, p)
        elif name == "binary_cross_entropy":
            p = 1 / (1 + np.exp(-z[i]))
            h = np.diag(p * (1 - p))
        elif name == "squared_hinge":
            h = np.diag(2.0 * (1 - y[i] * z[i] > 0))
        elif name == "huber":
            h = np.diag(2.0 * (np.abs(z[i] - y[i]) <= 1.0))
        else:
            h = 2.0 * np.eye(q)
        assert trace == pytest.approx(np.trace(J[i].T @ h @ J[i]), rel=1e-6, abs=1e-9)
