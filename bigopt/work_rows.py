"""The rows of a unit, and the sums over them: what every `Work` is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.core import arrays, compiled
from bigopt.core.buffers import Buffers
from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError
from bigopt.core.staging import Stage
from bigopt.core.sums import Sums
from bigopt.data.entry import Entry
from bigopt.data.plan import ALL, DISTINCT, REPEATED, Ints, redraw
from bigopt.data.view import DataView
from bigopt.models import sparse
from bigopt.models.base import Model
from bigopt.models.fused import fused_sum, has_layers, layered_sum
from bigopt.models.linear import LinearModel

Array = npt.NDArray[Any]
BlockSum = Callable[[Any, Any, Any, Any, Buffers | None], tuple[Any, float, float]]
"""``(params, X, y, weight, buffers) -> (gradient, loss, weight)`` of a block, as `Model.grad_sum`."""

Rows = tuple[Any, Any, Array | None]
"""X (k, d), an array or CSR, y and weight (k,) or None of a unit."""


def sum_rows(
    model: Model,
    params: Any,
    rows: tuple[Any, Any, Any],
    *,
    block_rows: int,
    dtype: str,
    device: arrays.Device = "cpu",
    kernels: str = compiled.NUMPY,
    buffers: Buffers | None = None,
    stage: Stage | None = None,
) -> Sums:
    """Fold the gradient sums of one unit's rows in blocks counted from its first row.

    Parameters
    ----------
    model : Model
    params : array, shape (p,)
        In the block dtype, on the device; for sparse rows as they are.
    rows : tuple
        X (k, d), y, weight (k,) or None, of the unit, on the host.
    block_rows : int
        Rows of a block.
    dtype : str
        ``run.dtype``, in which block sums are added.
    device : {"cpu", "gpu"}
    kernels : str
        The kernel set; compiled kernels take all rows of a unit at once, and add in float64.
    buffers : Buffers or None
        Lend the gradient's memory, in `dtype` or in the block's if that is narrower; None: in memory of its own, in
        `dtype`.
    stage : Stage or None
        The way of host rows to a card.

    Returns
    -------
    Sums
        With the gradient on the host. That of sparse rows is computed on their own columns only.
    """
    X, y, weight = rows
    if not isinstance(X, CSR):
        fused = fused_sum(model, params, X, y, weight) if kernels != compiled.NUMPY and device == "cpu" else None
        if fused is not None:
            return Sums(fused[0].astype(dtype, copy=False), *fused[1:], len(X))
        compute = _block_sum(model, rows, device, kernels)
        return Sums(*_folded(compute, model, params, rows, block_rows, dtype, device, buffers, stage), X.shape[0])
    if not isinstance(model, LinearModel):
        raise ConfError("only linear models take sparse rows", where="model.name")
    columns, own = X.own()
    small, at = sparse.restricted(model, columns), sparse.restricted_params(model, params, columns, X.dtype.name)
    grad, loss, total = _folded(small.grad_sum, small, at, (own, y, weight), block_rows, dtype, device)
    return Sums(sparse.spread(model, grad, columns), loss, total, len(X))


def _block_sum(model: Model, rows: Rows, device: arrays.Device, kernels: str) -> BlockSum:
    """Return what computes the sums of a block: `Model.grad_sum`, or kernels of the set that give the same."""
    if kernels == compiled.NUMPY or device != "cpu" or rows[1].ndim != 1 or not isinstance(rows[0], np.ndarray):
        return model.grad_sum
    if has_layers(model, compiled.name_of(rows[0].dtype)):
        return partial(layered_sum, model)
    return model.grad_sum


def _folded(
    compute: BlockSum,
    model: Model,
    params: Any,
    rows: Rows,
    block_rows: int,
    dtype: str,
    device: arrays.Device,
    buffers: Buffers | None = None,
    stage: Stage | None = None,
) -> tuple[Array, float, float]:
    grad: Any = None
    loss = total = 0.0
    several = rows[0].shape[0] > block_rows
    for X, y, weight in row_blocks(rows, block_rows, device, stage):
        g, value, mass = compute(params, X, y, weight, buffers)
        if grad is not None:
            grad += g
        elif buffers is None or g.base is None:
            grad = arrays.astype(g, dtype)
        elif several or g.dtype.itemsize > np.dtype(dtype).itemsize:  # the next block writes to the same memory
            grad = buffers.lend(g.shape[0], dtype)
            grad[...] = g
        else:
            grad = g
        loss, total = loss + float(value), total + float(mass)
    if grad is None:
        return np.zeros(model.layout.size, dtype=dtype), 0.0, 0.0
    return arrays.to_host(grad), loss, total


def cast(vector: Array, view: DataView, device: arrays.Device, buffers: Buffers | None = None) -> Any:
    """Return a vector in the view's block dtype on the device: done once an order, so that products stay fast.

    With `buffers` what had to be converted lies there until the next order.
    """
    if buffers is not None and device == "cpu" and vector.dtype != view.dtype:
        if buffers.casts is not None:
            return buffers.casts.cast(vector, view.dtype)
        out = buffers.take("params", vector.shape, view.dtype)
        out[...] = vector
        return out
    return arrays.to_device(np.ascontiguousarray(vector, dtype=view.dtype), device)


def row_blocks(rows: Rows, size: int, device: arrays.Device, stage: Stage | None = None) -> Iterator[Any]:
    """Yield a unit's rows in blocks of `size`, counted from its first row, on the device: (X, y, weight or None).

    With a stage, host rows reach a card while it computes on the block before; then a block is valid until the next.
    """
    X, y, weight = rows
    n = X.shape[0]
    cuts = (slice(lo, min(lo + size, n)) for lo in range(0, n, size))
    if device == "gpu" and not isinstance(X, np.ndarray):
        return (tuple(None if a is None else a[part, ...] for a in rows) for part in cuts)
    blocks = ((X[part], y[part], None if weight is None else weight[part]) for part in cuts)
    if device == "cpu":
        return blocks
    if stage is not None:
        return stage.stream(blocks)
    return (tuple(None if a is None else arrays.to_device(a, device) for a in block) for block in blocks)


def unit_rows(entry: Entry, seed: int, unit: Ints, buffers: Buffers | None = None) -> Any:
    """The rows of a unit, (X, y, weight or None): a range of the block or of the epoch's permutation of it, or drawn.

    With `buffers`, drawn features lie there until the next unit.
    """
    block, (_, epoch, start, stop) = entry.block, unit
    on_card = not isinstance(block.X, np.ndarray | CSR)
    if epoch == ALL and on_card:
        return tuple(None if a is None else a[int(start) : int(stop), ...] for a in block[:3])
    if epoch == ALL:
        part = slice(int(start), int(stop))
        return (
            block.X[part],
            None if block.y is None else block.y[part],
            None if block.weight is None else block.weight[part],
        )
    X: Any = None
    if epoch in (DISTINCT, REPEATED):
        rows = redraw(seed, unit, block.X.shape[0])
    else:
        entry.open, order = stop < block.X.shape[0], entry.order(seed, unit)
        rows = order[start:stop]
        if buffers is not None and buffers.ahead is not None and isinstance(block.X, np.ndarray):
            X = buffers.ahead.rows(block.X, order, int(start), int(stop))
    if on_card:
        return tuple(None if a is None else arrays.gathered(a, rows) for a in block[:3])
    if X is None:
        X = block.X[rows] if buffers is None or isinstance(block.X, CSR) else _gathered(block.X, rows, buffers)
    return (
        X,
        None if block.y is None else block.y[rows],
        None if block.weight is None else block.weight[rows],
    )


def _gathered(X: Array, rows: Ints, buffers: Buffers) -> Array:
    out = buffers.take("rows", (len(rows), X.shape[1]), X.dtype)
    return np.take(X, rows, axis=0, out=out, mode="clip")  # all are in range; a mode that raises would buffer
