"""Second derivatives of the multilayer perceptron: products with the Hessian, and the curvature of single rows.

Hessian-vector products are exact, by Pearlmutter's R-operator.

R{a} is the derivative of a along the direction V of the parameters. Applied to every line of forward and backward it
gives R{gradient} = H V for about the price of two gradients::

    R{v_l}     = R{x_l} W_l + x_l V_l + V_b          R{z_l} = J_phi R{v_l}
    R{delta_L} = J_phi h R{z_L} + R{J_phi} dloss/dz_L,      h = d2 loss / dz2
    R{grad W_l} = R{x_l}^T delta_l + x_l^T R{delta_l}
    R{dloss/dx_l} = R{delta_l} W_l^T + delta_l V_l^T

The Jacobians of all activations are symmetric, so that the same function multiplies with them forward and backward.
Kinks of relu and Huber count as flat: the second derivative there is 0, as it is almost everywhere.

The curvature of a row is that of the Gauss-Newton matrix G_i = J_i^T (d2 loss_i / dz2) J_i, J_i the Jacobian of the
outputs: what is left of the row's Hessian where its residual is small, and never negative. With d2 loss_i / dz2 =
sum_k r_k r_k^T its trace is a sum of squared norms, tr G_i = sum_k ||J_i^T r_k||^2, each by one pass backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bigopt.core.arrays import namespace
from bigopt.models import kernels
from bigopt.models.activations import ACTIVATIONS, softmax
from bigopt.models.losses import CategoricalCrossEntropy, Loss, SquaredLoss
from bigopt.models.mlp import MLP
from bigopt.models.rows import layer_squares
from bigopt.models.second import DIAGONAL


def loss_curvature(loss: Loss, v: Any, y: Any, along: Any) -> Any:
    """Return (d2 loss / dv2) along, shape (rows, q), in fresh memory; 0 for losses made of lines."""
    xp = namespace(v)
    if isinstance(loss, CategoricalCrossEntropy):
        p = softmax(v)
        return p * (along - xp.sum(p * along, axis=1, keepdims=True))
    if type(loss) not in DIAGONAL:
        return xp.zeros(v.shape, dtype=v.dtype)
    return DIAGONAL[type(loss)](loss, v, y) * along


def _bend(name: str, z: Any, moved: Any, delta: Any) -> Any:
    """Return R{J_phi} delta, from z = phi(v) and R{z}; None where phi is made of lines."""
    xp = namespace(z)
    if name in ("identity", "relu"):
        return None
    if name == "tanh":
        return -2.0 * z * moved * delta
    if name == "softmax":
        inner, across = (xp.sum(a * delta, axis=1, keepdims=True) for a in (z, moved))
        return moved * (delta - inner) - z * across
    if name == "sigmoid":
        return (1.0 - 2.0 * z) * moved * delta
    raise NotImplementedError(f"the second derivative of {name}")


def _back(name: str, z: Any, moved: Any, delta: Any, turned: Any) -> tuple[Any, Any]:
    """Return (J_phi delta, R{J_phi delta}) for a delta that moves by `turned`; both may be overwritten."""
    bend = _bend(name, z, moved, delta)
    phi = ACTIVATIONS[name]
    turned = phi.backward(z, turned)
    if bend is not None:
        turned = turned + bend
    return phi.backward(z, delta), turned


def mlp_hessian_vector_sum(model: MLP, params: Any, vector: Any, X: Any, y: Any, weight: Any | None) -> Any:
    """Return (sum_i s_i hessian loss_i) vector, shape (p,), in X's dtype; see the module's docstring.

    Parameters
    ----------
    model : MLP
        Moments of a batch normalisation are constants, without a row in the Hessian: `vector` is not read there.
    params, vector : array, shape (p,)
    X, y, weight
        As in `Model.grad_sum`.
    """
    kernels.same_dtype(params, X)
    kernels.same_dtype(vector, X)
    xp = namespace(X)
    w, along = model.layout.views(params), model.layout.views(vector)
    product = xp.zeros(params.shape, dtype=X.dtype)
    out = model.layout.views(product)
    depth = len(model.layers)
    names = [model.activation] * (depth - 1) + [model.output_activation]

    inputs, moves = [X], [xp.zeros(X.shape, dtype=X.dtype)]
    outputs, turns = [], []
    a, moved_a = X, moves[0]
    for k in range(depth):
        weights, shift = f"layer{k + 1}.weight", f"layer{k + 1}.intercept"
        x, moved = inputs[k], moves[k]
        v = kernels.dense(x, w[weights], w.get(shift))
        turn = kernels.dense(x, along[weights], along.get(shift))
        if k:
            turn += kernels.dense(moved, w[weights], None)
        z = ACTIVATIONS[names[k]].forward(v)
        turn = ACTIVATIONS[names[k]].backward(z, turn)
        outputs.append(z)
        turns.append(turn)
        if k + 1 == depth:
            break
        shortcut = model.shortcuts[k]
        a, moved_a = (z + a, turn + moved_a) if shortcut else (z, turn)
        mean, scale = w.get(f"layer{k + 2}.mean"), w.get(f"layer{k + 2}.scale")
        x, moved = a if mean is None else a - mean, moved_a
        inputs.append(x if scale is None else x / scale)
        moves.append(moved if scale is None else moved / scale)

    z, turn = outputs[-1], turns[-1]
    delta = kernels.weighted(model.loss.delta(z, y), weight)
    turned = kernels.weighted(loss_curvature(model.loss, z, y, turn), weight)
    delta, turned = _back(names[-1], z, turn, delta, turned)
    around: tuple[Any, Any] | None = None
    for k in reversed(range(depth)):
        name = f"layer{k + 1}"
        weights, shift = f"{name}.weight", f"{name}.intercept"
        kernels.dense_gradient(inputs[k], turned, out[weights], out.get(shift))
        if not k:
            break
        extra = xp.empty(out[weights].shape, dtype=X.dtype)
        kernels.dense_gradient(moves[k], delta, extra, None)
        out[weights][...] += extra
        below = kernels.dense_input(delta, w[weights])
        moved = kernels.dense_input(turned, w[weights]) + kernels.dense_input(delta, along[weights])
        scale = w.get(f"{name}.scale")
        if scale is not None:
            below, moved = below / scale, moved / scale
        if around is not None:
            below, moved = below + around[0], moved + around[1]
        around = (below + 0.0, moved + 0.0) if k > 1 and model.shortcuts[k - 1] else None
        delta, turned = _back(names[k - 1], outputs[k - 1], turns[k - 1], below, moved)
    return product


def gauss_newton_traces(model: MLP, params: Any, X: Any, y: Any) -> Any:
    """Return tr G_i of each row, shape (rows,), in X's dtype; see the module's docstring.

    It bounds the largest eigenvalue of G_i from above, and is equal to it where the model has one output.

    Parameters
    ----------
    model : MLP
    params, X, y
        As in `Model.grad_sum`.
    """
    kernels.same_dtype(params, X)
    z = ACTIVATIONS[model.output_activation].forward(model.scores(params, X))
    # With squared loss and the target z - r/2 what goes backward from the outputs is r.
    plain = replace(model, loss=SquaredLoss())
    ones = 1.0 if model.intercept else 0.0
    traces = namespace(X).zeros(X.shape[0], dtype=X.dtype)
    for r in _roots(model.loss, z, y):
        for k, x, delta in plain.backward(params, X, z - 0.5 * r, None)[1]:
            traces += layer_squares(x, delta, model.layers[k][2], ones)
    return traces


def _roots(loss: Loss, z: Any, y: Any) -> Iterator[Any]:
    """Give r_k, shape (rows, q), with sum_k r_k r_k^T = d2 loss / dz2; none for losses made of lines."""
    xp = namespace(z)
    q = z.shape[1]
    units = xp.eye(q, dtype=z.dtype)
    if isinstance(loss, CategoricalCrossEntropy):
        p = softmax(z)
        for c in range(q):
            yield xp.sqrt(p[:, c : c + 1]) * (p - units[c, :])
    elif type(loss) in DIAGONAL:
        h = xp.sqrt(DIAGONAL[type(loss)](loss, z, y))
        for k in range(q):
            yield h * units[k, :]
