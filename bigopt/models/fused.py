"""Which models have a compiled sum over a unit's rows, and how it is called.

`fused_sum` takes the place of a loop over blocks with `Model.grad_sum`: one call for all rows of a unit, sums in
float64. `layered_sum` takes the place of `Model.grad_sum` itself, block by block: NumPy's matrix products with kernels
between them, in one compiled call where NumPy's BLAS is known. Models, losses or rows that have no kernel are summed by
NumPy in either kernel set.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt

from bigopt.core import blas, compiled
from bigopt.core.buffers import Buffers, room
from bigopt.core.extents import Stored
from bigopt.models import fused_dense, fused_layers, fused_linear, fused_softmax, kernels
from bigopt.models.base import Model
from bigopt.models.folding import Fold, Found, fold_units
from bigopt.models.fused_points import POINTS
from bigopt.models.linear import LinearModel
from bigopt.models.losses import CategoricalCrossEntropy
from bigopt.models.mlp import MLP

_DTYPES = ("float32", "float64")
_NO_WEIGHT = np.empty(0)

STEP: Final = fused_linear.FLUSH
"""Rows that a part of a unit is a multiple of."""


def has_kernel(model: Model, dtype: str) -> bool:
    """Return whether the sum over dense rows of this dtype has a compiled kernel."""
    return isinstance(model, LinearModel) and model.outputs == 1 and model.loss.name in POINTS and dtype in _DTYPES


def has_classes(model: Model, dtype: str) -> TypeGuard[LinearModel]:
    """Return whether the sum over dense rows with class numbers has a compiled kernel for all classes at once."""
    return (
        isinstance(model, LinearModel)
        and isinstance(model.loss, CategoricalCrossEntropy)
        and 1 < model.outputs <= fused_softmax.MOST
        and dtype in _DTYPES
    )


def fused_sum(model: Model, params: Any, X: Any, y: Any, weight: Any | None) -> tuple[Any, float, float] | None:
    """Return the sums over all rows of a unit, or None where there is no kernel for them.

    Parameters
    ----------
    model, params, y, weight
        As in `Model.grad_sum`.
    X : ndarray, shape (rows, d)
        All rows of the unit.

    Returns
    -------
    grad : ndarray, shape (p,), float64
        sum_i s_i dloss_i/dparams.
    loss, weight : float
    """
    if not isinstance(X, np.ndarray):
        return None
    dtype = compiled.name_of(X.dtype)
    if has_classes(model, dtype) and y.ndim == 1:
        return _softmax_sum(model, params, X, y, weight)
    if not has_kernel(model, dtype):
        return None
    return fused_fold(model, params, iter([(X, y, weight)]), dtype)[:3]


def fused_units(
    model: Model, params: Any, table: npt.NDArray[np.int64], merges: npt.NDArray[np.int64], dtype: str
) -> tuple[Any, Any]:
    """Return the sums of several units, folded, as `bigopt.models.folding.fold_units`; the model `has_kernel`."""
    assert isinstance(model, LinearModel)
    return fold_units(model, params, table, merges, dtype)


def fused_fold(model: Model, params: Any, parts: Iterator[Any], dtype: str) -> Found:
    """Return the sums over a unit's rows that come in parts, and how many there were.

    Parameters
    ----------
    model, params
        As in `Model.grad_sum`; the model `has_kernel`.
    parts : iterator of (X, y, weight or None)
        Of a multiple of `STEP` rows each, but for the last: then the bits are those of all rows at once. None is used
        when the next is asked for.
    dtype : str
        Of X.
    """
    assert isinstance(model, LinearModel)
    fold = Fold(model, params, dtype)
    for X, y, weight in parts:
        fold.add(X, y, weight)
        del X, y, weight
    return fold.found()


def fused_stored(model: Model, params: Any, stored: Stored) -> tuple[Found, int] | None:
    """Return what `fused_fold` does for rows that are read from files in one call, and the bytes that were read.

    None where they cannot be read so, or not all is as expected.

    Parameters
    ----------
    model, params
        As in `fused_fold`.
    stored : Stored
    """
    assert isinstance(model, LinearModel)
    fold = Fold(model, params, stored.dtype)
    read = fold.add_stored(stored, STEP)
    return None if read is None else (fold.found(), read)


def _softmax_sum(model: LinearModel, params: Any, X: Any, y: Any, weight: Any | None) -> tuple[Any, float, float]:
    kernels.same_dtype(params, X)
    d, q, dtype = model.features, model.outputs, compiled.name_of(X.dtype)
    fold = compiled.kernel(fused_softmax.make_softmax, (dtype, q), fused_softmax.signature(dtype))
    table = np.zeros((d + 1, fused_softmax.padded(q, dtype)), dtype=dtype)
    table[: len(params) // q, :q] = params.reshape(-1, q)
    grad, sums = np.zeros(table.shape), np.zeros(2)
    s = _NO_WEIGHT if weight is None else np.ascontiguousarray(weight, dtype=np.float64)
    labels, scratch = np.ascontiguousarray(y, dtype=np.int64), fused_softmax.scratch(d, table.shape[1], dtype)
    fold(np.ascontiguousarray(X), labels, s, table[:d], table[d], grad, sums, *scratch)
    return grad[: len(params) // q, :q].reshape(-1), float(sums[0]), float(sums[1])


def has_layers(model: Model, dtype: str) -> TypeGuard[MLP | LinearModel]:
    """Return whether a model has kernels between its products: ReLU layers, or none, below a categorical cross-entropy.

    The softmax of the linear family is the network without hidden layers, with the same params and the same bits.
    """
    return (
        isinstance(model, MLP | LinearModel)
        and isinstance(model.loss, CategoricalCrossEntropy)
        and model.outputs > 1
        and dtype in _DTYPES
        and (isinstance(model, LinearModel) or _only_relu(model))
    )


def _only_relu(model: MLP) -> bool:
    others = model.batchnorm or any(model.shortcuts) or any(g > 1 for *_, g in model.layers)
    return model.activation == "relu" and not others


def layered_sum(
    model: MLP | LinearModel, params: Any, X: Any, y: Any, weight: Any | None, buffers: Buffers | None = None
) -> tuple[Any, float, float]:
    """Return what `MLP.grad_sum` returns, with compiled passes between NumPy's products; the model `has_layers`.

    Parameters
    ----------
    model, params, X, y, weight, buffers
        As in `MLP.grad_sum`; y holds class numbers.
    """
    kernels.same_dtype(params, X)
    whole = network_call(model, params, X, y, weight, buffers)
    if whole is not None:
        whole.kernel(*whole.values)
        return whole.grad, float(whole.sums[0]), float(whole.sums[1])
    rows = X.shape[0]
    relu, gate, top = _between(compiled.name_of(X.dtype))
    grad = np.empty(params.shape, dtype=X.dtype) if buffers is None else buffers.lend(params.shape[0], X.dtype)
    (W, b), (of_W, of_b) = _layers(model, params), _layers(model, grad)
    inputs = [X]
    for k, width in enumerate(model.hidden if isinstance(model, MLP) else ()):
        z = np.matmul(inputs[k], W[k], **room(buffers, f"hidden{k}", (rows, width), X))
        relu(z, b[k])
        inputs.append(z)
    delta = np.matmul(inputs[-1], W[-1], **room(buffers, "scores", (rows, model.outputs), X))
    sums, ones = np.zeros(2), np.ones(rows, dtype=X.dtype)
    s = _NO_WEIGHT if weight is None else np.ascontiguousarray(weight, dtype=np.float64)
    top(delta, b[-1], np.ascontiguousarray(y, dtype=np.int64), s, sums)
    for k in reversed(range(len(W))):
        np.matmul(inputs[k].T, delta, out=of_W[k])
        if model.intercept:
            np.matmul(ones, delta, out=of_b[k])
        if k:
            delta = np.matmul(delta, W[k].T, **room(buffers, f"delta{k}", inputs[k].shape, X))
            gate(delta, inputs[k])
    return grad, float(sums[0]), float(sums[1])


class _Network(NamedTuple):
    """A network's kernel (`bigopt.models.fused_dense`), what it takes of the network, and addresses of BLAS."""

    kernel: compiled.Kernel
    widths: npt.NDArray[np.int64]
    gemm: int
    gemv: int

    def work(self, rows: int) -> int:
        """Return the entries of working memory for a block."""
        return fused_dense.room(rows, tuple(self.widths[1:].tolist()))


@cache
def _network(model: MLP | LinearModel, dtype: str) -> _Network | None:
    """Return the kernel of a whole network; None where NumPy's BLAS is not known, or NumPy would not ask it."""
    hidden = model.hidden if isinstance(model, MLP) else ()
    widths, routines = (model.features, *hidden, model.outputs), blas.routines(dtype)
    if routines is None or min(widths) < 2:
        return None
    kernel = compiled.kernel(fused_dense.make_network, (dtype, routines.integer), fused_dense.signature(dtype))
    return _Network(kernel, np.array([int(model.intercept), *widths]), routines.gemm, routines.gemv)


_WIDTHS: Final = 6
"""Of the values of a `NetworkCall`, what stands for the network."""


class NetworkCall(NamedTuple):
    """The gradient sum of a block as one call of a kernel, and where it leaves what it finds.

    Parameters
    ----------
    kernel : Kernel
    values : tuple
        What it is called with.
    grad : ndarray, shape (p,)
    sums : ndarray, shape (2,)
        Loss and weight.
    """

    kernel: compiled.Kernel
    values: tuple[Any, ...]
    grad: Any
    sums: npt.NDArray[np.float64]

    def like(self, values: tuple[Any, ...]) -> bool:
        """Return whether some values are those of another block of the same network."""
        return self.values[_WIDTHS] is values[_WIDTHS]


def network_call(
    model: MLP | LinearModel, params: Any, X: Any, y: Any, weight: Any | None, buffers: Buffers | None
) -> NetworkCall | None:
    """Return the call that does the work of `layered_sum`, or None where there is no kernel for these rows."""
    rows, dtype = X.shape[0], compiled.name_of(X.dtype)
    network = _network(model, dtype) if rows > 1 and X.flags.c_contiguous else None
    if network is None:
        return None
    sums, size = np.zeros(2), network.work(rows)
    grad = np.empty(params.shape, dtype=X.dtype) if buffers is None else buffers.lend(params.shape[0], X.dtype)
    work = np.empty(size, dtype=X.dtype) if buffers is None else buffers.take("network", (size,), X.dtype)
    s = _NO_WEIGHT if weight is None else np.ascontiguousarray(weight, dtype=np.float64)
    labels = np.ascontiguousarray(y, dtype=np.int64)
    values = X, labels, s, params, grad, sums, network.widths, work, network.gemm, network.gemv
    return NetworkCall(network.kernel, values, grad, sums)


@cache
def _between(dtype: str) -> tuple[compiled.Kernel, compiled.Kernel, compiled.Kernel]:
    """Return the kernels between the products: relu, gate, cross_entropy."""
    return (
        compiled.kernel(fused_layers.make_relu, (dtype,), fused_layers.relu_signature(dtype)),
        compiled.kernel(fused_layers.make_gate, (dtype,), fused_layers.gate_signature(dtype)),
        compiled.kernel(fused_layers.make_cross_entropy, (dtype,), fused_layers.cross_entropy_signature(dtype)),
    )


def _layers(model: MLP | LinearModel, flat: Any) -> tuple[list[Any], list[Any]]:
    """View a flat vector as weights and intercepts; an intercept that is none is empty."""
    parts = [flat[s].reshape(block.shape) for block, s in model.layout.slices()]
    return (parts[::2], parts[1::2]) if model.intercept else (parts, [flat[:0]] * len(parts))
