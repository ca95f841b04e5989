"""Second derivatives of the linear family, and losses along a line.

A row's loss sees the parameters only through the scores v = X W + b, so its Hessian is that of the loss by v, spread
over the features:

    d2 loss / dW_ic dW_jk = x_i x_j h_ck,        h = d2 loss / dv2, shape (q, q)

h is diagonal except for the categorical cross-entropy (diag(p) - p p^T). With an intercept x has one more entry, 1.

Along params + eta direction the scores are V + eta D: with V and D at hand any number of points costs no further pass
over X. They are taken to float64 first, so that values along a line differ by eta alone, even where blocks are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.arrays import namespace, to_host
from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError
from bigopt.models import kernels, sparse
from bigopt.models.activations import sigmoid, softmax
from bigopt.models.base import Model
from bigopt.models.linear import LinearModel
from bigopt.models.losses import (
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    HuberLoss,
    Loss,
    SignedSquaredLoss,
    SquaredHingeLoss,
    SquaredLoss,
)

Floats = npt.NDArray[np.float64]


class LinePoints(NamedTuple):
    """Sums of one block at k points of a line; `slopes` and `curves` are empty where there are none."""

    values: Floats
    slopes: Floats
    curves: Floats
    weight: float


def _constant(_: Any, v: Any, __: Any) -> Any:
    return namespace(v).full(v.shape, 2.0, dtype=v.dtype)


def _huber(loss: Any, v: Any, y: Any) -> Any:
    xp = namespace(v)
    return 2.0 * xp.astype(xp.abs(loss.delta(v, y)) < 2.0 * loss.threshold, v.dtype)


def _binary(_: Any, v: Any, __: Any) -> Any:
    return sigmoid(v) * sigmoid(-v)


def _squared_hinge(loss: Any, v: Any, y: Any) -> Any:
    return 2.0 * namespace(v).astype(loss.delta(v, y) != 0.0, v.dtype)


DIAGONAL: Final[Mapping[type[Loss], Callable[[Any, Any, Any], Any]]] = MappingProxyType(
    {
        SquaredLoss: _constant,
        SignedSquaredLoss: _constant,
        HuberLoss: _huber,
        BinaryCrossEntropy: _binary,
        SquaredHingeLoss: _squared_hinge,
    }
)
"""d2 loss / dv2 where it is diagonal: shape (rows, q). Huber and squared hinge: almost everywhere."""


def check_newton(model: Model, memory: int) -> None:
    """Refuse a model whose Hessian cannot be formed.

    Parameters
    ----------
    model : Model
    memory : int
        Bytes that the Hessian may take.

    Raises
    ------
    ConfError
        Outside the linear family, for a loss without second derivatives, or for too many parameters.
    """
    if not isinstance(model, LinearModel):
        raise ConfError(
            "newton needs the Hessian, which only the linear family forms",
            where="optimizer.name",
            hint="lbfgs takes any model",
        )
    if type(model.loss) not in DIAGONAL and not isinstance(model.loss, CategoricalCrossEntropy):
        raise ConfError(
            f"newton needs second derivatives, which the {model.loss.name} loss has not",
            where="model.loss",
            hint="squared_hinge has them, or a first-order optimizer",
        )
    size = 8 * model.layout.size**2
    if size > memory:
        raise ConfError(
            f"the Hessian of {model.layout.size} parameters takes {size / 1e9:.3g} GB, data.memory allows "
            f"{memory / 1e9:.3g} GB",
            where="optimizer.name",
            hint="lbfgs needs no Hessian, or raise data.memory",
        )


def is_quadratic(model: Model) -> bool:
    """Return whether the loss is a quadratic function of the parameters."""
    return isinstance(model, LinearModel) and isinstance(model.loss, SquaredLoss)


def shifted_classes(model: Model) -> int:
    """Return C where adding a constant to all C scores changes nothing (linear softmax), else 0."""
    return model.outputs if isinstance(model, LinearModel) and isinstance(model.loss, CategoricalCrossEntropy) else 0


def hessian_sum(model: LinearModel, params: Any, X: Any, y: Any, weight: Any | None) -> tuple[Any, Any, float, float]:
    """Return (gradient sum, Hessian sum, loss sum, weight sum) of a block.

    Parameters
    ----------
    model : LinearModel
        One that `check_newton` lets pass.
    params, X, y, weight
        As in `Model.grad_sum`.

    Returns
    -------
    grad : array, shape (p,)
    hessian : array, shape (p, p)
        In X's dtype and layout order.
    loss, weight : float
    """
    kernels.same_dtype(params, X)
    xp = namespace(params)
    v = model.scores(params, X)
    value, delta = model.loss.value_delta(v, y)
    grad = xp.empty(params.shape, dtype=X.dtype)
    g = model.layout.views(grad)
    kernels.dense_gradient(X, kernels.weighted(delta, weight), g["weight"], g.get("intercept"))
    p, d, q = params.shape[0], model.features, model.outputs
    hessian = xp.zeros((p, p), dtype=X.dtype)
    shared = isinstance(model.loss, SquaredLoss)  # one block for all outputs
    if isinstance(model.loss, CategoricalCrossEntropy):
        s = softmax(v)
        pairs = [(c, k, (s[:, c] if c == k else 0.0) - s[:, c] * s[:, k]) for c in range(q) for k in range(c + 1)]
    else:
        h = DIAGONAL[type(model.loss)](model.loss, v, y)
        pairs = [(c, c, h[:, c]) for c in range(1 if shared else q)]
    n = d * q
    for c, k, h in pairs:
        square, mixed, corner = _weighed(X, kernels.weighted(xp.reshape(h, (-1, 1)) + 0.0, weight))
        for a, b in [(e, e) for e in range(q)] if shared else sorted({(c, k), (k, c)}):
            hessian[a:n:q, b:n:q] = square
            if model.intercept:
                hessian[a:n:q, n + b] = mixed
                hessian[n + a, b:n:q] = mixed
                hessian[n + a, n + b] = corner
    return grad, hessian, *kernels.totals(value, weight)


def _weighed(X: Any, h: Any) -> tuple[Any, Any, Any]:
    """Return X^T diag(h) X, 1^T diag(h) X and 1^T h, for h of shape (rows, 1)."""
    xp = namespace(h)
    ones = xp.ones(h.shape[0], dtype=h.dtype)
    corner = xp.matmul(ones, h)[0]
    if isinstance(X, CSR):
        return *sparse.weighed_gram(X, h[:, 0]), corner
    scaled = X * h
    return xp.matmul(kernels.flip(X), scaled), xp.matmul(ones, scaled), corner


class Margins(NamedTuple):
    """Scores V at params and their change D along a direction, both (rows, q) in float64."""

    at: Any
    along: Any


def margins(model: LinearModel, params: Any, direction: Any, X: Any) -> Margins:
    """Return the margins of a block; params and direction have X's dtype."""
    kernels.same_dtype(params, X)
    kernels.same_dtype(direction, X)
    xp = namespace(params)
    return Margins(
        *(xp.astype(model.scores(w, X), xp.float64, copy=False) for w in (params, direction)),
    )


def line_of_margins(
    loss: Loss, kept: Margins, steps: Sequence[float], y: Any, weight: Any | None, *, slopes: bool
) -> LinePoints:
    """Return loss sums at V + eta D for each eta, with first and (where the loss has them) second derivatives.

    Parameters
    ----------
    loss : Loss
    kept : Margins
        Of the block's rows.
    steps : sequence of float
        The etas.
    y, weight
        Of the rows.
    slopes : bool
        Whether derivatives are wanted.
    """
    V, D = kept
    xp = namespace(V)
    diagonal = DIAGONAL.get(type(loss))
    values, firsts, seconds, mass = [], [], [], 0.0
    for eta in steps:
        v = V + float(eta) * D
        if not slopes:
            total, mass = kernels.totals(loss.value(v, y), weight)
            values.append(total)
            continue
        value, delta = loss.value_delta(v, y)
        total, mass = kernels.totals(value, weight)
        values.append(total)
        firsts.append(kernels.totals(kernels.row_sum(delta * D), weight)[0])
        if diagonal is not None:
            seconds.append(kernels.totals(kernels.row_sum(diagonal(loss, v, y) * D * D), weight)[0])
        elif isinstance(loss, CategoricalCrossEntropy):
            s = softmax(v)
            mean = xp.sum(s * D, axis=1, keepdims=True)
            away = D - mean
            seconds.append(kernels.totals(kernels.row_sum(s * away * away), weight)[0])
    return _points(values, firsts, seconds, mass)


def line_of_points(
    model: Model, points: Sequence[Any], direction: Floats, X: Any, y: Any, weight: Any | None, *, slopes: bool
) -> LinePoints:
    """Return the same for any model, from its own sums at each point.

    Parameters
    ----------
    model : Model
    points : sequence of arrays, shape (p,)
        In X's dtype.
    direction : ndarray, shape (p,), float64
        On the host.
    """
    values, firsts, mass = [], [], 0.0
    for point in points:
        if slopes:
            grad, total, mass = model.grad_sum(point, X, y, weight)
            firsts.append(float(np.add.reduce(to_host(grad) * direction)))
        else:
            total, mass = model.loss_sum(point, X, y, weight)
        values.append(total)
    return _points(values, firsts, [], mass)


def _points(values: list[float], slopes: list[float], curves: list[float], mass: float) -> LinePoints:
    return LinePoints(np.array(values), np.array(slopes), np.array(curves), float(mass))
