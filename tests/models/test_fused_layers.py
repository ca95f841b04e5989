"""What is compiled between the products of a network gives what NumPy's backpropagation gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from bigopt.core import blas, compiled
from bigopt.core.buffers import Buffers
from bigopt.models import MLP, LinearModel, fused
from bigopt.models.fused import has_layers, layered_sum
from bigopt.models.fused_layers import cross_entropy_signature, make_cross_entropy
from bigopt.models.losses import CategoricalCrossEntropy, SquaredLoss

pytestmark = pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())

CE = CategoricalCrossEntropy()
MODELS = {
    "one hidden layer": MLP(12, (8,), 3, CE),
    "deep, no intercepts": MLP(12, (9, 8, 7), 4, CE, intercept=False),
    "no hidden layer": MLP(12, (), 5, CE),
    "wide": MLP(12, (70, 33), 10, CE),
    "softmax": LinearModel(12, 10, CE),
    "softmax of two classes, no intercepts": LinearModel(12, 2, CE, intercept=False),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_numpys(name: str, dtype: str) -> None:
    model, rng, buffers = MODELS[name], np.random.default_rng(0), Buffers()
    params = (model.init("glorot_uniform", 1) + 0.1 * rng.normal(size=model.layout.size)).astype(dtype)
    assert has_layers(model, dtype)
    for rows in (1, 40, 17):
        X, y = rng.normal(size=(rows, 12)).astype(dtype), rng.integers(0, model.outputs, rows)
        for weight in (None, rng.random(rows)):
            grad, loss, mass = layered_sum(model, params, X, y, weight, None)
            expected = model.grad_sum(params.astype(np.float64), X.astype(np.float64), y, weight)
            tight = 3e-6 if dtype == "float32" else 1e-14
            assert grad.dtype == dtype
            assert np.abs(grad - expected[0]).max() <= tight * np.abs(expected[0]).max()
            assert loss == pytest.approx(expected[1], rel=tight)
            assert mass == pytest.approx(expected[2], rel=1e-15)
            again = layered_sum(model, params, X.copy(), y.astype(np.int32), weight, buffers)
            assert (again[0].tobytes(), *again[1:]) == (grad.tobytes(), loss, mass)


@pytest.mark.skipif(blas.routines("float32") is None, reason="NumPy's BLAS is not known")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_one_call_has_the_bits_of_numpys_products(monkeypatch: Any, name: str, dtype: str) -> None:
    model, rng, buffers = MODELS[name], np.random.default_rng(3), Buffers()
    assert fused._network(model, dtype) is not None
    params = (model.init("he_normal", 1) + 0.1 * rng.normal(size=model.layout.size)).astype(dtype)
    for rows in (2, 40, 257):
        X, y, weight = rng.normal(size=(rows, 12)).astype(dtype), rng.integers(0, model.outputs, rows), rng.random(rows)
        found = layered_sum(model, params, X, y, weight, buffers)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "_network", lambda *_: None)
            apart = layered_sum(model, params, X, y, weight, buffers)
        assert (found[0].tobytes(), *found[1:]) == (apart[0].tobytes(), *apart[1:])


def test_products_that_numpy_makes_otherwise_have_no_call_of_their_own() -> None:
    assert fused._network(MLP(4, (1,), 3, CE), "float32") is None
    assert fused._network(MLP(1, (4,), 3, CE), "float32") is None


@pytest.mark.parametrize(("dtype", "tight"), [("float32", 4e-7), ("float64", 6e-16)])
def test_softmax_and_its_loss_for_logits_of_any_size(dtype: str, tight: float) -> None:
    kernel: Any = compiled.kernel(make_cross_entropy, (dtype,), cross_entropy_signature(dtype))
    rng = np.random.default_rng(1)
    for scale in (1e-3, 1.0, 30.0, 1e4):
        v = (rng.normal(size=(200, 7)) * scale).astype(dtype)
        b, y = rng.normal(size=7).astype(dtype), rng.integers(0, 7, 200)
        exact = (v + b).astype(np.float64)
        delta, sums = v.copy(), np.zeros(2)
        kernel(delta, b, y, np.empty(0), sums)
        assert np.abs(delta - (softmax(exact, axis=1) - np.eye(7)[y])).max() <= tight
        assert sums[0] == pytest.approx(-log_softmax(exact, axis=1)[np.arange(200), y].sum(), rel=tight, abs=tight)
        assert sums[1] == 200.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_scores_that_are_not_finite_reach_the_loss(column: int, bad: float) -> None:
    kernel: Any = compiled.kernel(make_cross_entropy, ("float32",), cross_entropy_signature("float32"))
    v, sums = np.zeros((2, 3), dtype=np.float32), np.zeros(2)
    v[1, column] = bad
    kernel(v, np.empty(0, dtype=np.float32), np.array([0, column]), np.empty(0), sums)
    assert not np.isfinite(sums[0]) or (bad == -np.inf and sums[0] > 80.0)


def test_who_has_kernels() -> None:
    assert not has_layers(MLP(4, (3,), 2, SquaredLoss()), "float32")
    assert not has_layers(MLP(4, (4,), 3, CE, activation="tanh"), "float32")
    assert not has_layers(LinearModel(4, 3, SquaredLoss()), "float32")
    assert not has_layers(LinearModel(4, 3, CE), "float16")
    assert not has_layers(MLP(4, (4,), 3, CE, shortcut=True), "float32")
    assert has_layers(MLP(4, (5,), 3, CE, shortcut=True), "float32")  # no layer is as wide as its input
    assert not has_layers(MLP(4, (4,), 2, CE, groups=(2, 1)), "float32")
    assert not has_layers(MLP(4, (4,), 3, CE, batchnorm="center"), "float32")
