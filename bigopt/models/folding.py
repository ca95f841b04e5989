"""The sum over a unit's rows as far as it has come: rows in memory are added part by part, rows in files in one call.

Both are added by the same machine code (`bigopt.models.fused_linear`), so a unit's sum has the same bits wherever its
rows come from.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.core import compiled, extents
from bigopt.core.extents import PAGE, Stored
from bigopt.models import fused_files, fused_linear, kernels
from bigopt.models.linear import LinearModel
from bigopt.models.losses import HuberLoss

Array = npt.NDArray[Any]
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
        d, loss = model.features, model.loss
        self._kernel = compiled.kernel(fused_linear.make_fold, (loss.name, dtype), fused_linear.signature(dtype))
        self._params, self._dtype = params, dtype
        self._grad, self._sums, self._rows = np.zeros(params.shape[0]), np.zeros(3), 0
        threshold = loss.threshold if isinstance(loss, HuberLoss) else 0.0
        scalars = np.array([params[d] if model.intercept else 0.0, threshold], dtype=dtype)
        self._beside = (
            *(np.ascontiguousarray(params[:d]), scalars, self._grad[:d], self._sums),
            *fused_linear.scratch(d, dtype),
        )
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

    def found(self) -> tuple[Array, float, float, int]:
        """Return the gradient, float64, loss and weight of all rows that were added, and how many they are."""
        if self._intercept:
            self._grad[-1] = self._sums[2]
        return self._grad, float(self._sums[0]), float(self._sums[1]), self._rows


def column(y: Any, dtype: str) -> Array:
    """Return targets of one output as a vector of the rows' dtype."""
    return np.ascontiguousarray(np.asarray(y).reshape(-1), dtype=dtype)


def _weights(weight: Any | None) -> Array:
    return _NONE if weight is None else np.ascontiguousarray(weight, dtype=np.float64)
