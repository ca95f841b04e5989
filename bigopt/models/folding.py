"""The sum over a unit's rows as far as it has come: rows in memory are added part by part, rows in files in one call.

All rows in memory of an order are one call as well (`fold_units`). All are added by the same machine code
(`bigopt.models.fused_linear`), so a unit's sum has the same bits wherever its rows come from.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.core import compiled, extents
from bigopt.core.extents import PAGE, Stored
from bigopt.models import fused_files, fused_linear, fused_units, kernels
from bigopt.models.linear import LinearModel
from bigopt.models.losses import HuberLoss

Array = npt.NDArray[Any]
Found = tuple[Array, float, float, int]
"""Gradient, float64, loss and weight of some rows, and how many they are."""

_NONE: Final = np.empty(0)


class Fold:
    """The gradient sum of a linear model's rows, of which a multiple of `fused.STEP` come at a time, but for the last.

    Parameters
    ----------
    model : LinearModel
        That `fused.has_kernel`.
    params : ndarray, shape (p,)
        In `dtype`.
    dtype : str
        Of the rows.
    """

    def __init__(self, model: LinearModel, params: Any, dtype: str) -> None:
        self._kernel = _kernel(model, dtype)
        self._params, self._dtype = params, dtype
        self._grad, self._sums, self._rows = np.zeros(params.shape[0]), np.zeros(3), 0
        self._beside = _beside(model, params, self._grad, self._sums, dtype)
        self._intercept = model.intercept

    def add(self, X: Any, y: Any, weight: Any | None) -> None:
        """Add rows in memory; none of them is used afterwards."""
        kernels.same_dtype(self._params, X)
        self._kernel(np.ascontiguousarray(X), column(y, self._dtype), _weights(weight), *self._beside)
        self._rows += len(X)

    def add_stored(self, stored: Stored, step: int) -> int | None:
        """Add rows in files; return the bytes that were read, or None where they cannot be had so.

        Then the sum is worth nothing.

        Parameters
        ----------
        stored : Stored
        step : int
            `fused.STEP`.
        """
        kernels.same_dtype(self._params, np.empty(0, dtype=stored.dtype))
        where, calls = stored.extents, extents.system()
        crc = extents.crc32c() if where.crc else 0
        if calls is None or (where.crc and not crc):
            return None
        d = len(self._beside[0])
        some, y, weight = np.empty((1, d), dtype=stored.dtype), column(stored.y, self._dtype), _weights(stored.weight)
        flat, scale, scaling = self._kernel.bound(some, y, weight, *self._beside), np.zeros(2, dtype=np.int64), 0
        if stored.scaling is not None:
            prepare = compiled.kernel(fused_files.make_scale, (self._dtype,), fused_files.scale_signature(self._dtype))
            scale, scaling = prepare.bound(some, *stored.scaling), prepare.address
        read = compiled.kernel(fused_files.make_fold_files, (self._kernel.words,), fused_files.SIGNATURE)
        _names, at = where.names()
        begin = compiled.pointer(stored.memory) + step * where.row_bytes
        numbers = (
            *(where.rows, where.height, where.row_bytes, where.start, where.alone, where.piece(step), step),
            *(begin + -begin % PAGE, stored.waits),
        )
        out = np.zeros(2, dtype=np.int64)
        addresses = np.array([*calls, self._kernel.address, scaling, crc], dtype=np.int64)
        read(addresses, at, np.array(numbers, dtype=np.int64), flat, scale, out)
        if out[0] != where.rows:
            return None
        self._rows += where.rows
        return int(out[1])

    def found(self) -> Found:
        """Return the sums of all rows that were added."""
        if self._intercept:
            self._grad[-1] = self._sums[2]
        return self._grad, float(self._sums[0]), float(self._sums[1]), self._rows


def fold_units(
    model: LinearModel, params: Any, table: npt.NDArray[np.int64], merges: npt.NDArray[np.int64], dtype: str
) -> tuple[Array, Array]:
    """Add the rows of several units in one call, and fold their sums; each has the bits that `Fold` finds.

    Parameters
    ----------
    model, params, dtype
        As of a `Fold`.
    table : ndarray, shape (units, 4), int64
        Where X, y (both in `dtype`) and weight (float64) of a unit lie in C order, and its rows; a weight at 0 is none.
        They must outlive the call.
    merges : ndarray, shape (m, 2), int64
        Unit j is added to unit i, in this order.

    Returns
    -------
    grads : ndarray, shape (units, p), float64
    sums : ndarray, shape (units, 3), float64
        Loss and weight; what was added to another stays as it was.
    """
    add = _kernel(model, dtype)
    kernels.same_dtype(params, np.empty(0, dtype=dtype))
    grads, sums = np.zeros((len(table), params.shape[0])), np.zeros((len(table), 3))
    some, weight = np.empty((1, model.features), dtype=dtype), np.empty(int(table[0, 2] != 0))
    beside = _beside(model, params, grads[0], sums[0], dtype)  # must outlive the call
    flat = add.bound(some, some[:, 0], weight, *beside)
    numbers = np.array([add.address, model.intercept, 0], dtype=np.int64)
    kernel = compiled.kernel(fused_units.make_fold_units, (add.words,), fused_units.SIGNATURE)
    kernel(table, merges, flat, numbers, grads, sums)
    if not numbers[2]:
        raise RuntimeError("a compiled kernel failed")
    return grads, sums


def _kernel(model: LinearModel, dtype: str) -> compiled.Kernel:
    return compiled.kernel(fused_linear.make_fold, (model.loss.name, dtype), fused_linear.signature(dtype))


def _beside(model: LinearModel, params: Any, grad: Array, sums: Array, dtype: str) -> tuple[Array, ...]:
    """Return what the kernel is called with beside the rows."""
    d, loss = model.features, model.loss
    threshold = loss.threshold if isinstance(loss, HuberLoss) else 0.0
    scalars = np.array([params[d] if model.intercept else 0.0, threshold], dtype=dtype)
    return np.ascontiguousarray(params[:d]), scalars, grad[:d], sums, *fused_linear.scratch(d, dtype)


def column(y: Any, dtype: str) -> Array:
    """Return targets of one output as a vector of the rows' dtype."""
    return np.ascontiguousarray(np.asarray(y).reshape(-1), dtype=dtype)


def _weights(weight: Any | None) -> Array:
    return _NONE if weight is None else np.ascontiguousarray(weight, dtype=np.float64)
