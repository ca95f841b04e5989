"""Values of the losses: closed forms, mpmath at logits of +-1e4, torch's and scikit-learn's definitions."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

from bigopt.core.errors import ConfError
from bigopt.models.activations import ACTIVATIONS
from bigopt.models.linear import LinearModel
from bigopt.models.losses import (
    LOSSES,
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    HingeLoss,
    HuberLoss,
    Loss,
    PerceptronLoss,
    SignedSquaredLoss,
    SquaredHingeLoss,
    SquaredLoss,
)

LOGITS = [-1e4, -745.5, -88.9, -40.0, -1.5, -1e-9, 0.0, 1e-9, 0.3, 20.0, 36.8, 104.0, 710.0, 1e4]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_binary_cross_entropy_on_extreme_logits(dtype: Any, label: float) -> None:
    v = np.array(LOGITS, dtype=dtype)[:, None]
    y = np.full(len(LOGITS), label, dtype=dtype)
    loss = BinaryCrossEntropy()
    value, delta = loss.value_delta(v, y)
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    with mpmath.workdps(60):
        for i, logit in enumerate(float(x) for x in v[:, 0]):
            p = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
            right = mpmath.log1p(mpmath.exp(-logit if label else logit))
            assert value[i] == pytest.approx(float(right), rel=4 * eps, abs=tiny)
            assert delta[i, 0] == pytest.approx(float(p - label), rel=4 * eps, abs=2 * eps)
            both = loss.link(v)[i]
            assert both == pytest.approx([float(1 - p), float(p)], rel=4 * eps, abs=tiny)
    assert value.dtype == delta.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_categorical_cross_entropy_on_extreme_logits(dtype: Any) -> None:
    v = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4], [3.0, 1.0, -2.0], [-1e4, 1e4, 9999.0]], dtype)
    y = np.array([1, 2, 0, 2, 2])
    value, delta = CategoricalCrossEntropy().value_delta(v, y)
    eps = float(np.finfo(dtype).eps)
    with mpmath.workdps(9000):
        for i, row in enumerate(v):
            terms = [mpmath.exp(mpmath.mpf(float(x))) for x in row]
            total = mpmath.fsum(terms)
            assert value[i] == pytest.approx(float(mpmath.log(total) - float(row[y[i]])), rel=4 * eps)
            right = [float(t / total) - (k == y[i]) for k, t in enumerate(terms)]
            np.testing.assert_allclose(delta[i], right, atol=4 * eps)
    assert value.dtype == delta.dtype == dtype


def test_two_logits_and_one_logit_agree() -> None:
    v = np.random.default_rng(0).normal(scale=5, size=(50, 1))
    y = np.arange(50) % 2
    one = BinaryCrossEntropy().value(v, y)
    two = CategoricalCrossEntropy().value(np.hstack([np.zeros_like(v), v]), y)
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-14)


def test_value_and_delta_are_the_parts_of_value_delta(loss_outputs: tuple[Loss, int]) -> None:
    loss, outputs = loss_outputs
    rng = np.random.default_rng(3)
    v = rng.normal(scale=3, size=(40, outputs))
    y = rng.normal(size=(40, outputs)) if loss.task == "regression" else rng.integers(0, max(outputs, 2), 40)
    y = 2 * y - 1 if loss.task == "sign" else y
    before = v.copy()
    value, delta = loss.value_delta(v, y)
    np.testing.assert_array_equal(loss.value(v, y), value)
    np.testing.assert_array_equal(loss.delta(v, y), delta)
    np.testing.assert_array_equal(v, before)
    assert value.shape == (40,)
    assert delta.shape == (40, outputs)


def test_huber_is_a_parabola_and_then_its_tangent() -> None:
    e = np.array([-3.0, -1.5, -1.0, 0.0, 0.5, 1.5, 4.0])
    value, delta = HuberLoss(1.5).value_delta(e[:, None], np.zeros(7))
    np.testing.assert_array_equal(value, [2 * 1.5 * 3 - 2.25, 2.25, 1.0, 0.0, 0.25, 2.25, 2 * 1.5 * 4 - 2.25])
    np.testing.assert_array_equal(delta[:, 0], [-3.0, -3.0, -2.0, 0.0, 1.0, 3.0, 3.0])


def test_errors_are_summed_over_outputs_without_a_half() -> None:
    v, y = np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]])
    np.testing.assert_array_equal(SquaredLoss().value(v, y), [5.0])
    np.testing.assert_array_equal(HuberLoss(1.0).value(v, y), [1.0 + 3.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("loss", "value", "slope"),
    [  # at y v = -2, 0, the last number below 1, 1, the next one above, 3
        (PerceptronLoss(), [2.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1, 1, 0, 0, 0, 0]),
        (HingeLoss(), [3.0, 1.0, None, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0]),
        (SquaredHingeLoss(), [9.0, 1.0, None, 0.0, 0.0, 0.0], [6, 2, None, 0, 0, 0]),
        (SignedSquaredLoss(), [9.0, 1.0, None, 0.0, None, 4.0], [6, 2, None, 0, None, -4]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("y", [-1.0, 1.0])
def test_losses_on_signs_at_their_kinks(loss: Loss, value: Any, slope: Any, y: float, dtype: Any) -> None:
    """delta = -y slope: the perceptron's is not 0 at 0, the hinge's is 0 at 1."""
    one = dtype(1)
    margins = np.array([-2, 0, np.nextafter(one, dtype(0)), 1, np.nextafter(one, dtype(2)), 3], dtype=dtype)
    found, delta = loss.value_delta(y * margins[:, None], np.full(6, y, dtype=dtype))
    for i, (v, s) in enumerate(zip(value, slope, strict=True)):
        eps = abs(float(margins[i]) - 1.0)
        small = eps if loss.name == "hinge" else eps * eps
        assert found[i] == (small if v is None else v)
        near = -2 * y * (1.0 - float(margins[i]))
        assert delta[i, 0] == (near if s is None else -y * s)
    assert found.dtype == delta.dtype == dtype
    np.testing.assert_array_equal(loss.link(margins), margins)


def test_a_perceptron_leaves_zero() -> None:
    """Rosenblatt's rule: w += eta y x for each row with y v <= 0; from zero that is every row."""
    X, y = np.array([[1.0, 2.0], [-1.0, 0.5]]), np.array([1.0, -1.0])
    grad, loss, _ = LinearModel(2, 1, PerceptronLoss()).grad_sum(np.zeros(3), X, y, None)
    np.testing.assert_array_equal(grad, [-2.0, -1.5, 0.0])
    assert loss == 0.0


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_huber_delta_is_refused(bad: float) -> None:
    with pytest.raises(ConfError, match=r"model\.huber_delta: .* is not a number above 0"):
        HuberLoss(bad)


def test_table_is_keyed_by_the_names_of_the_losses() -> None:
    assert list(LOSSES) == [
        "squared",
        "huber",
        "binary_cross_entropy",
        "categorical_cross_entropy",
        "perceptron",
        "hinge",
        "squared_hinge",
    ]
    assert all(kind.name == name for name, kind in LOSSES.items())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_and_softmax_keep_their_small_digits(dtype: Any) -> None:
    v = np.array([-80.0, -40.0, -3.0, 0.0, 3.0, 80.0], dtype=dtype)[:, None]
    z = ACTIVATIONS["sigmoid"].forward(v.copy())[:, 0]
    pairs = ACTIVATIONS["softmax"].forward(np.hstack([v, np.zeros_like(v)]))[:, 0]
    with mpmath.workdps(50):
        exact = [float(1 / (1 + mpmath.exp(-mpmath.mpf(float(x))))) for x in v[:, 0]]
    np.testing.assert_allclose(z, exact, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(pairs, exact, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activation_backward_is_the_transposed_jacobian(name: str) -> None:
    """J^T d, with J column by column from central differences."""
    phi = ACTIVATIONS[name]
    rng = np.random.default_rng(4)
    v, d = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    h = 1e-6
    expected = np.empty_like(v)
    for k in range(5):
        step = np.zeros(5)
        step[k] = h
        expected[:, k] = (d * (phi.forward(v + step) - phi.forward(v - step)) / (2 * h)).sum(axis=1)
    z = phi.forward(v.copy())
    kept = z.copy()
    np.testing.assert_allclose(phi.backward(z, d.copy()), expected, atol=1e-8)
    np.testing.assert_array_equal(z, kept)
