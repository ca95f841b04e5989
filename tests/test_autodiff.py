"""The reverse-mode graph: worked numbers, every operation against differences, and the MLP's backpropagation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bigopt import autodiff
from bigopt.autodiff import Node, exp, gradients, log, relu, sigmoid, tanh, variable
from bigopt.models.losses import BinaryCrossEntropy, CategoricalCrossEntropy, HingeLoss, Loss, SquaredLoss
from bigopt.models.mlp import MLP


def test_worked_number_2() -> None:
    """f = (x + y) z at (-2, 5, -4)."""
    x, y, z = variable(-2), variable(5), variable(-4)
    f = (x + y) * z
    assert f.value == -12
    assert [float(d) for d in gradients(f, x, y, z)] == [-4, -4, 3]


def test_worked_number_10() -> None:
    w, x = [variable(v) for v in (2, -3, -3)], (-1, -2)
    f = sigmoid(w[0] * x[0] + w[1] * x[1] + w[2])
    parts = (1 + exp(-(w[0] * x[0] + w[1] * x[1] + w[2]))).reciprocal()
    for value in (f, parts):
        assert float(value.value) == pytest.approx(0.731059, abs=5e-7)
        found = [float(d) for d in gradients(value, *w)]
        assert found == pytest.approx([-0.196612, -0.393224, 0.196612], abs=1e-6)


OPERATIONS: dict[str, Callable[[Node, Node], Node]] = {
    "add": lambda a, b: a + b,
    "broadcast row": lambda a, b: (a + b.sum(0)) * b,
    "broadcast column": lambda a, b: a.sum(1) * b + b,
    "broadcast number": lambda a, b: a * b.sum() + 2.0 * b,
    "multiply": lambda a, b: a * b * a,
    "subtract": lambda a, b: (a - b) * (3.0 - a),
    "divide": lambda a, b: a / (b * b + 1.0) + 2.0 / (a * a + 3.0),
    "negate": lambda a, b: -a * b,
    "reciprocal": lambda a, b: (a * a + 1.0).reciprocal() * b,
    "matmul": lambda a, b: a @ (variable(np.arange(12.0).reshape(3, 4)) @ b),
    "matmul with arrays": lambda a, b: (np.ones((2, 4)) @ (a + b)) @ np.arange(6.0).reshape(3, 2),
    "exp": lambda a, b: exp(a) * b,
    "log": lambda a, b: log(a * a + 0.5) * b,
    "tanh": lambda a, b: tanh(a * b),
    "sigmoid": lambda a, b: sigmoid(a) * sigmoid(-b),
    "relu": lambda a, b: relu(a) * b,
    "sum": lambda a, b: a.sum() * b.sum(1),
    "array first": lambda a, b: np.ones((4, 3)) * a + np.ones((4, 3)) - b,
}


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operations_against_five_point_differences(name: str) -> None:
    rng = np.random.default_rng(3)
    start, weight, h = rng.normal(size=(2, 4, 3)), rng.normal(size=(4, 3)), 1e-3

    def f(a: Any, b: Any) -> Node:
        result = OPERATIONS[name](variable(a), variable(b))
        return (result * weight[tuple(slice(0, n) for n in result.value.shape)]).sum()

    a, b = variable(start[0]), variable(start[1])
    found = gradients(f(a, b), a, b)
    for k in range(2):
        assert found[k].shape == (4, 3)
        for at in np.ndindex(4, 3):

            def moved(step: float, k: int = k, at: tuple[int, ...] = at) -> float:
                point = start.copy()
                point[(k, *at)] += step
                return float(f(*point).value)

            slope = (moved(-2 * h) - 8 * moved(-h) + 8 * moved(h) - moved(2 * h)) / (12 * h)
            assert found[k][at] == pytest.approx(slope, rel=1e-8, abs=1e-8)


def test_a_variable_that_is_used_twice_or_never() -> None:
    x, y, never = variable(3.0), variable([1.0, 2.0]), variable(np.ones((2, 3)))
    f = (x * x * x + y * x).sum()
    d = gradients(f, x, y, never)
    assert d[0] == 2 * 27 + 3
    np.testing.assert_array_equal(d[1], [3.0, 3.0])
    np.testing.assert_array_equal(d[2], np.zeros((2, 3)))


def test_graphs_may_be_deep_and_share_everything() -> None:
    x = variable(1.0)
    long, doubled = x, x
    for _ in range(20_000):
        long = long + 1.0
    for _ in range(60):
        doubled = doubled + doubled
    assert gradients(long * long, x) == (2 * 20_001.0,)
    assert gradients(doubled, x) == (2.0**60,)


def test_relu_is_flat_at_zero_and_sigmoid_does_not_overflow() -> None:
    x = variable([0.0, -0.0, 1e-300])
    np.testing.assert_array_equal(gradients(relu(x).sum(), x)[0], [0.0, 0.0, 1.0])
    x = variable([-1e4, 1e4])
    z = sigmoid(x)
    np.testing.assert_array_equal(z.value, [0.0, 1.0])
    np.testing.assert_array_equal(gradients(z.sum(), x)[0], [0.0, 0.0])


def test_refusals() -> None:
    x = variable([1.0, 2.0])
    with pytest.raises(ValueError, match=r"the gradient of an array of shape \(2,\): sum it first"):
        gradients(x, x)
    with pytest.raises(ValueError, match=r"a matrix product of shapes \(2,\) and \(2,\)"):
        x @ x


def test_it_stays_small() -> None:
    assert len(inspect.getsource(autodiff).splitlines()) < 200


def softmax(v: Node) -> Node:
    e = exp(v)
    return e / e.sum(1)


def cross_entropy(v: Node, y: np.ndarray) -> Node:
    return log(exp(v).sum(1)) - (v * np.eye(v.value.shape[1])[y]).sum(1)


LOSSES: dict[str, tuple[Loss, int, Any]] = {
    "squared": (SquaredLoss(), 3, lambda v, y: ((v - y) * (v - y)).sum(1)),
    "hinge": (HingeLoss(), 1, lambda v, y: relu(1.0 - v * y[:, None])),
    "binary": (BinaryCrossEntropy(), 1, lambda v, y: log(1.0 + exp(v)) - v * y[:, None]),
    "categorical": (CategoricalCrossEntropy(), 4, cross_entropy),
}
ACTIVATIONS: dict[str, Callable[[Node], Node]] = {
    "identity": lambda v: v,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "relu": relu,
    "softmax": softmax,
}


def targets(loss: Loss, outputs: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(8)
    if loss.task == "regression":
        return rng.normal(size=(n, outputs))
    labels = rng.integers(0, max(2, outputs), n)
    return 2.0 * labels - 1.0 if loss.task == "sign" else labels


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("kind", list(LOSSES))
@pytest.mark.parametrize("shortcut", [False, True], ids=["plain", "shortcut"])
def test_the_mlps_backpropagation(kind: str, activation: str, shortcut: bool) -> None:
    loss, outputs, graph_loss = LOSSES[kind]
    model = MLP(5, (5, 5) if shortcut else (7, 4), outputs, loss, activation, shortcut=shortcut)
    rng = np.random.default_rng(4)
    params, X = rng.normal(scale=0.6, size=model.layout.size), rng.normal(size=(11, 5))
    y, weight = targets(loss, outputs, 11), rng.uniform(0.0, 2.0, 11)
    blocks = {name: variable(array) for name, array in model.layout.views(params).items()}
    z = variable(X)
    for k in (1, 2, 3):
        v = z @ blocks[f"layer{k}.weight"] + blocks[f"layer{k}.intercept"]
        below = z if shortcut else 0.0
        z = ACTIVATIONS[activation](v) + below if k < 3 else v
    f = (graph_loss(z, y) * weight[:, None]).sum()
    expected = np.concatenate([d.reshape(-1) for d in gradients(f, *blocks.values())])
    grad, value, _ = model.grad_sum(params, X, y, weight)
    assert np.linalg.norm(grad - expected) < 1e-13 * np.linalg.norm(expected)
    assert value == pytest.approx(float(f.value), rel=1e-13)
