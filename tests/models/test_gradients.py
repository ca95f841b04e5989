"""Every gradient against five-point differences of the loss sum, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigopt.core.sums import Sums
from bigopt.models.activations import ACTIVATIONS
from bigopt.models.linear import LinearModel
from bigopt.models.losses import CategoricalCrossEntropy, HuberLoss, Loss, SquaredLoss
from bigopt.models.mlp import MLP


def five_point(f: Any, at: np.ndarray, h: float = 2e-4) -> np.ndarray:
    """(f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / 12h, one coordinate at a time."""
    slope = np.empty_like(at)
    for i in range(at.size):
        step = np.zeros_like(at)
        step[i] = h
        slope[i] = (f(at - 2 * step) - 8 * f(at - step) + 8 * f(at + step) - f(at + 2 * step)) / (12 * h)
    return slope


def check(model: Any, rows: Any, params: np.ndarray) -> None:
    grad, loss, total = model.grad_sum(params, *rows)
    numeric = five_point(lambda w: model.loss_sum(w, *rows)[0], params)
    assert grad.shape == params.shape
    assert np.linalg.norm(grad - numeric) < 1e-8 * np.linalg.norm(numeric)
    assert (loss, total) == model.loss_sum(params, *rows)
    assert total == (len(rows.X) if rows.weight is None else pytest.approx(rows.weight.sum(), rel=1e-15))


@pytest.mark.parametrize("intercept", [True, False])
def test_linear(loss_outputs: tuple[Loss, int], weighted: bool, intercept: bool, rows_of: Any, params_of: Any) -> None:
    loss, outputs = loss_outputs
    model = LinearModel(5, outputs, loss, intercept)
    check(model, rows_of(model, weighted=weighted), params_of(model))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("groups", [(), (2, 4, 1)], ids=["full", "grouped"])
def test_mlp(
    loss_outputs: tuple[Loss, int], weighted: bool, activation: str, groups: Any, rows_of: Any, params_of: Any
) -> None:
    loss, outputs = loss_outputs
    model = MLP(6, (8, 4), outputs, loss, activation, groups)
    check(model, rows_of(model, weighted=weighted), params_of(model))


@pytest.mark.parametrize("hidden", [(), (3,), (5, 4, 3, 2)], ids=["0", "1", "4"])
@pytest.mark.parametrize("intercept", [True, False])
def test_mlp_of_any_depth(hidden: tuple[int, ...], intercept: bool, rows_of: Any, params_of: Any) -> None:
    model = MLP(4, hidden, 3, CategoricalCrossEntropy(), "tanh", intercept=intercept)
    check(model, rows_of(model, weighted=True), params_of(model))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize(
    ("hidden", "groups"),
    [((6,), ()), ((6, 6, 6), ()), ((4, 4, 3, 3), ()), ((6, 6, 4), (2, 3, 1, 2))],
    ids=["one", "all", "broken", "grouped"],
)
def test_shortcuts(activation: str, hidden: Any, groups: Any, weighted: bool, rows_of: Any, params_of: Any) -> None:
    """From the input, one after the other, interrupted by a layer of another width, and in groups."""
    for loss, outputs in ((SquaredLoss(), 4), (CategoricalCrossEntropy(), 6)):
        model = MLP(6, hidden, outputs, loss, activation, groups, shortcut=True)
        assert any(model.shortcuts)
        check(model, rows_of(model, weighted=weighted, seed=3), params_of(model))  # no row within h of relu's kink


def test_a_layer_of_zeros_with_a_shortcut_is_no_layer(rows_of: Any, params_of: Any) -> None:
    deep, flat = MLP(4, (4, 4), 2, SquaredLoss(), "tanh", shortcut=True), LinearModel(4, 2, SquaredLoss())
    rows, last = rows_of(flat, weighted=True), params_of(flat)
    params = np.concatenate([np.zeros(40), last])
    np.testing.assert_array_equal(deep.scores(params, rows.X), flat.scores(last, rows.X))
    np.testing.assert_array_equal(deep.grad_sum(params, *rows)[0][40:], flat.grad_sum(last, *rows)[0])


def test_grouped_output_layer(rows_of: Any, params_of: Any) -> None:
    model = MLP(4, (6,), 2, SquaredLoss(), "sigmoid", (2, 2))
    check(model, rows_of(model, weighted=True), params_of(model))


@pytest.mark.parametrize("output", list(ACTIVATIONS))
@pytest.mark.parametrize("loss", [SquaredLoss(), HuberLoss(1.1)], ids=lambda loss: loss.name)
def test_output_activation_with_an_error_on_it(output: str, loss: Loss, rows_of: Any, params_of: Any) -> None:
    """Softmax with squared error needs the whole Jacobian, not its diagonal."""
    model = MLP(4, (5,), 3, loss, "tanh", output_activation=output)
    check(model, rows_of(model, weighted=True), params_of(model))


def test_one_hot_targets_are_the_same_as_class_indices(rows_of: Any, params_of: Any) -> None:
    model = LinearModel(5, 4, CategoricalCrossEntropy())
    by_index = model.grad_sum(params_of(model), *rows_of(model, weighted=True))
    by_row = model.grad_sum(params_of(model), *rows_of(model, weighted=True, one_hot=True))
    np.testing.assert_array_equal(by_index[0], by_row[0])
    assert by_index[1:] == by_row[1:]


def test_relu_has_derivative_zero_at_zero() -> None:
    model = MLP(1, (1,), 1, SquaredLoss(), "relu")
    params = np.array([1.0, 0.0, 1.0, 0.0])
    grad, _, _ = model.grad_sum(params, np.array([[0.0]]), np.array([1.0]), None)
    np.testing.assert_array_equal(grad, [0.0, 0.0, 0.0, -2.0])


def test_worked_number_10() -> None:
    """sigmoid(w0 x0 + w1 x1 + w2): f = 0.731059, df/dw = 0.196612 (-1, -2, 1); with y = f - 1/2, de^2/dw is df/dw."""
    model = MLP(2, (), 1, SquaredLoss(), output_activation="sigmoid")
    params, X = np.array([2.0, -3.0, -3.0]), np.array([[-1.0, -2.0]])
    f = model.predict(params, X)
    assert f[0, 0] == pytest.approx(0.731059, abs=5e-7)
    grad, _, _ = model.grad_sum(params, X, f[:, 0] - 0.5, None)
    np.testing.assert_allclose(grad, 0.196612 * np.array([-1.0, -2.0, 1.0]), atol=5e-7)


ADDITIVE = [
    LinearModel(5, 1, HuberLoss(1.0)),
    LinearModel(5, 3, CategoricalCrossEntropy()),
    MLP(6, (8, 4), 2, SquaredLoss(), "relu", (2, 4, 1)),
]


@pytest.mark.parametrize("model", ADDITIVE, ids=["linear", "softmax", "mlp"])
@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 23), max_size=6), use_weights=st.booleans())
def test_sums_add_over_any_split(model: Any, cuts: list[int], use_weights: bool) -> None:
    from_whole = _sums(model, slice(None), use_weights)
    bounds = [0, *sorted(cuts), 23]
    parts = [_sums(model, slice(a, b), use_weights) for a, b in itertools.pairwise(bounds)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    np.testing.assert_allclose(total.grad, from_whole.grad, rtol=1e-12, atol=1e-12)
    assert total.loss == pytest.approx(from_whole.loss, rel=1e-13)
    assert total.weight == pytest.approx(from_whole.weight, rel=1e-14)
    assert total.rows == from_whole.rows == 23


def _sums(model: Any, part: slice, use_weights: bool) -> Sums:
    rng = np.random.default_rng(5)
    X = rng.normal(size=(23, model.features))[part]
    q = model.outputs
    y = rng.integers(0, q, 23)[part] if model.loss.task == "multiclass" else rng.normal(size=(23, q))[part]
    weight = rng.uniform(0, 2, 23)[part] if use_weights else None
    params = rng.normal(size=model.layout.size)
    return Sums(*model.grad_sum(params, X, y, weight), rows=len(X))


def test_weight_k_is_the_row_k_times(rows_of: Any, params_of: Any) -> None:
    model = MLP(3, (4,), 1, SquaredLoss(), "tanh")
    rows = rows_of(model, weighted=False, n=6)
    counts = np.array([0, 1, 2, 3, 1, 0])
    weighted = model.grad_sum(params_of(model), rows.X, rows.y, counts.astype(float))
    repeated = model.grad_sum(params_of(model), np.repeat(rows.X, counts, 0), np.repeat(rows.y, counts, 0), None)
    np.testing.assert_allclose(weighted[0], repeated[0], rtol=1e-13, atol=1e-13)
    assert weighted[1:] == pytest.approx(repeated[1:], rel=1e-14)


def test_least_squares_is_twice_the_sum_of_e_x() -> None:
    """grad = 2 sum_j (w.x_j - y_j) x_j (the factor 2 that p_m leaves out)."""
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=(20, 3)), rng.normal(size=20), rng.normal(size=3)
    grad, loss, _ = LinearModel(3, 1, SquaredLoss(), intercept=False).grad_sum(w, X, y, None)
    np.testing.assert_allclose(grad, 2 * X.T @ (X @ w - y), rtol=1e-13)
    assert loss == pytest.approx(((X @ w - y) ** 2).sum(), rel=1e-14)
