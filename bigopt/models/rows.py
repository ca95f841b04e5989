"""What single rows do: squared norms of their gradients, and their curvature.

A row's gradient is never formed. In a dense layer v = z W + b it is the outer product of the layer's input z and
delta = dloss/dv, so that its squared norm is a product of two short ones:

    ||dloss/dW||^2 = ||z||^2 ||delta||^2,      ||dloss/db||^2 = ||delta||^2

summed over the layers, and over the groups of a block-diagonal layer. The linear family is one layer with z = x.

A row's Hessian in the linear family is x x^T times that of the loss by the score, h. `hessian_vector_sum` multiplies
with the sum of them without forming it: X^T (h (X V)).
"""

from __future__ import annotations

from typing import Any

from bigopt.core.arrays import namespace
from bigopt.core.csr import CSR
from bigopt.models import kernels, sparse
from bigopt.models.activations import softmax
from bigopt.models.base import Model
from bigopt.models.linear import LinearModel
from bigopt.models.losses import CategoricalCrossEntropy, Loss, SquaredLoss
from bigopt.models.mlp import MLP
from bigopt.models.second import DIAGONAL


def has_curvature(loss: Loss) -> bool:
    """Return whether a loss has second derivatives by the score (almost everywhere, and not 0)."""
    return type(loss) in DIAGONAL or isinstance(loss, CategoricalCrossEntropy)


def _square(a: Any) -> Any:
    if isinstance(a, CSR):
        return sparse.squares(a)
    return kernels.row_sum(a * a)


def layer_squares(z: Any, delta: Any, g: int, ones: float) -> Any:
    """Return what a dense layer adds to the squared norms of the rows' gradients, shape (rows,).

    Parameters
    ----------
    z, delta : array, shape (rows, in), (rows, out)
        Input of the layer, and dloss/dv.
    g : int
        Groups of the layer.
    ones : float
        1 with an intercept, else 0.
    """
    if g == 1:
        return (_square(z) + ones) * _square(delta)
    xp = namespace(delta)
    per = xp.sum(kernels.groups(z, g) ** 2, axis=2) + ones
    return xp.sum(per * xp.sum(kernels.groups(delta, g) ** 2, axis=2), axis=0)


def noise_sum(model: Model, params: Any, X: Any, y: Any, weight: Any | None) -> tuple[Any, float, float, float]:
    """Return (gradient sum, sum_i s_i^2 ||dloss_i/dparams||^2, loss sum, weight sum) of a block.

    Parameters
    ----------
    model : LinearModel or MLP
    params, X, y, weight
        As in `Model.grad_sum`.

    Returns
    -------
    grad : array, shape (p,)
        In X's dtype.
    squares, loss, weight : float
    """
    kernels.same_dtype(params, X)
    xp = namespace(params)
    if isinstance(model, MLP):
        grad = xp.zeros(params.shape, dtype=X.dtype)
        views = model.layout.views(grad)
        squares = xp.zeros(X.shape[0], dtype=X.dtype)
        ones = 1.0 if model.intercept else 0.0
        value, steps = model.backward(params, X, y, weight)
        for k, z, delta in steps:
            g, name = model.layers[k][2], f"layer{k + 1}"
            kernels.dense_gradient(z, delta, views[f"{name}.weight"], views.get(f"{name}.intercept"))
            squares += layer_squares(z, delta, g, ones)
        return grad, kernels.totals(squares, None)[0], *kernels.totals(value, weight)
    assert isinstance(model, LinearModel)
    value, delta = model.loss.value_delta(model.scores(params, X), y)
    delta = kernels.weighted(delta, weight)
    grad = xp.empty(params.shape, dtype=X.dtype)
    views = model.layout.views(grad)
    kernels.dense_gradient(X, delta, views["weight"], views.get("intercept"))
    squares = (_square(X) + (1.0 if model.intercept else 0.0)) * _square(delta)
    return grad, kernels.totals(squares, None)[0], *kernels.totals(value, weight)


def row_curvature(model: LinearModel, params: Any, X: Any, y: Any) -> Any:
    """Return h_i, the largest eigenvalue of d2 loss_i / dv2, shape (rows,).

    For the categorical cross-entropy an upper bound, exact for two classes: the trace 1 - sum p^2, at most 1/2.
    """
    v = model.scores(params, X)
    xp = namespace(v)
    if isinstance(model.loss, CategoricalCrossEntropy):
        p = softmax(v)
        return xp.minimum(1.0 - _square(p), 0.5)
    return xp.max(DIAGONAL[type(model.loss)](model.loss, v, y), axis=1)


def curvature_bound(loss: Loss) -> float:
    """Return the largest h_i of any row at any params: 2 of squares, 1/4 of the logistic loss, 1/2 of softmax's."""
    if isinstance(loss, CategoricalCrossEntropy):
        return 0.5
    return 0.25 if loss.name == "binary_cross_entropy" else 2.0


def hessian_vector_sum(model: LinearModel, params: Any, vector: Any, X: Any, y: Any, weight: Any | None) -> Any:
    """Return (sum_i s_i hessian loss_i) vector, shape (p,), in X's dtype.

    Parameters
    ----------
    model : LinearModel
        With a loss that `has_curvature`.
    params, vector : array, shape (p,)
    X, y, weight
        As in `Model.grad_sum`.
    """
    kernels.same_dtype(params, X)
    kernels.same_dtype(vector, X)
    xp = namespace(params)
    along = model.scores(vector, X)
    if isinstance(model.loss, SquaredLoss):
        along *= 2.0
    elif isinstance(model.loss, CategoricalCrossEntropy):
        p = softmax(model.scores(params, X))
        along = p * (along - xp.sum(p * along, axis=1, keepdims=True))
    else:
        along *= DIAGONAL[type(model.loss)](model.loss, model.scores(params, X), y)
    along = kernels.weighted(along, weight)
    product = xp.empty(params.shape, dtype=X.dtype)
    views = model.layout.views(product)
    kernels.dense_gradient(X, along, views["weight"], views.get("intercept"))
    return product
