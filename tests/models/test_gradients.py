"""Every gradient against five-point differences of the loss sum, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigopt.core.sums import Moments, Sums
from bigopt.models.activations import ACTIVATIONS
from bigopt.models.linear import LinearModel
from bigopt.models.losses import CategoricalCrossEntropy, HingeLoss, HuberLoss, Loss, SquaredHingeLoss, SquaredLoss
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


def trained_only(model: MLP) -> np.ndarray:
    """Mask of what the gradient is of: everything but the moments."""
    mask = np.ones(model.layout.size, dtype=bool)
    for block, part in model.layout.slices():
        mask[part] = block.name.rpartition(".")[2] in ("weight", "intercept")
    return mask


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("shortcut", [False, True], ids=["plain", "shortcut"])
@pytest.mark.parametrize("how", [True, "center"])
def test_batchnorm_holds_its_moments_fixed(
    activation: str, shortcut: bool, how: Any, weighted: bool, rows_of: Any, params_of: Any
) -> None:
    """Differences in weights and intercepts alone; the moments have a gradient of exactly 0."""
    for loss, outputs in ((SquaredLoss(), 4), (HingeLoss(), 1)):
        model = MLP(6, (6, 6, 4), outputs, loss, activation, shortcut=shortcut, batchnorm=how)
        rows, mask = rows_of(model, weighted=weighted, seed=3), trained_only(model)
        params = np.where(mask, params_of(model), np.random.default_rng(6).uniform(0.5, 2.0, mask.size))

        def total(w: np.ndarray, *, model: Any = model, rows: Any = rows, mask: Any = mask, at: Any = params) -> float:
            full = at.copy()
            full[mask] = w
            return float(model.loss_sum(full, *rows)[0])

        grad = model.grad_sum(params, *rows)[0]
        numeric = five_point(total, params[mask])
        assert np.linalg.norm(grad[mask] - numeric) < 1e-8 * np.linalg.norm(numeric)
        assert not grad[~mask].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batchnorm_standardises_layer_by_layer(weighted: bool, dtype: Any, rows_of: Any) -> None:
    """One pass sees the lower layers with the last pass's moments: after L passes all L layers are standardised."""
    model = MLP(5, (6, 4, 3), 2, SquaredLoss(), "tanh", shortcut=True, batchnorm=True)
    rows = rows_of(model, weighted=weighted, n=50)
    X, s = rows.X.astype(dtype), np.ones(50) if rows.weight is None else rows.weight
    params = model.init("glorot_uniform", 0)
    views = model.layout.views(params)
    assert (views["layer2.mean"] == 0).all()
    assert (views["layer4.scale"] == 1).all()
    for done in range(1, 4):
        parts = [Moments(*model.hidden_moments(params.astype(dtype), X[a:b], None if rows.weight is None else s[a:b]))
                 for a, b in ((0, 13), (13, 13), (13, 50))]  # fmt: skip
        merged = parts[0].merge(parts[1]).merge(parts[2])
        assert merged.weight == pytest.approx(s.sum())
        before = params.copy()
        params = model.with_moments(params, merged)
        mask = trained_only(model)
        np.testing.assert_array_equal(params[mask], before[mask])
        inside = [x for _, _, x in model._hidden(model._parameters(params.astype(dtype)), X)]
        tolerance = 1e-12 if dtype is np.float64 else 1e-5
        for x in inside[:done]:
            np.testing.assert_allclose(np.average(x, axis=0, weights=s), 0.0, atol=tolerance)
            np.testing.assert_allclose(np.average(x**2, axis=0, weights=s), 1.0, rtol=tolerance)
    center = MLP(5, (6, 4), 2, SquaredLoss(), "tanh", batchnorm="center")
    moments = Moments(*center.hidden_moments(center.init("he_normal", 0), rows.X, rows.weight))
    found = center.with_moments(center.init("zeros", 0), moments)
    assert {b.name for b in center.layout.blocks} >= {"layer2.mean", "layer3.mean"}
    assert not any(b.name.endswith("scale") for b in center.layout.blocks)
    np.testing.assert_array_equal(found[found != 0], moments.mean)


def test_a_unit_that_never_changes_keeps_scale_one() -> None:
    model = MLP(2, (3,), 1, SquaredLoss(), "relu", batchnorm=True)
    params = np.concatenate([np.zeros(6), [-1.0, 0.0, 0.3], np.ones(3), [0.0], np.zeros(3), np.ones(3)])
    moments = Moments(*model.hidden_moments(params, np.random.default_rng(0).normal(size=(9, 2)), None))
    views = model.layout.views(model.with_moments(params, moments))
    np.testing.assert_array_equal(views["layer2.scale"], np.ones(3))
    np.testing.assert_allclose(views["layer2.mean"], [0.0, 0.0, 0.3], rtol=1e-15)


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
    MLP(6, (6, 6), 1, SquaredHingeLoss(), "tanh", shortcut=True, batchnorm=True),
]


@pytest.mark.parametrize("model", ADDITIVE, ids=["linear", "softmax", "mlp", "batchnorm"])
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
    y = np.where(y > 0, 1.0, -1.0) if model.loss.task == "sign" else y
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
