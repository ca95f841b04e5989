"""Which models have a compiled sum over a unit's rows, and how it is called.

`fused_sum` takes the place of a loop over blocks with `Model.grad_sum`: one call for all rows of a unit, sums in
float64. Models, losses or rows that have no kernel are summed block by block by NumPy in either kernel set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.core import compiled
from bigopt.models import fused_linear, kernels
from bigopt.models.base import Model
from bigopt.models.fused_points import POINTS
from bigopt.models.linear import LinearModel
from bigopt.models.losses import HuberLoss

_DTYPES = ("float32", "float64")
_NO_WEIGHT = np.empty(0)


def has_kernel(model: Model, dtype: str) -> bool:
    """Return whether the sum over dense rows of this dtype has a compiled kernel."""
    return isinstance(model, LinearModel) and model.outputs == 1 and model.loss.name in POINTS and dtype in _DTYPES


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
    if not (isinstance(X, np.ndarray) and has_kernel(model, X.dtype.name)):
        return None
    kernels.same_dtype(params, X)
    assert isinstance(model, LinearModel)
    d, dtype, loss = model.features, X.dtype.name, model.loss
    fold = compiled.kernel(fused_linear.make_fold, (loss.name, dtype), fused_linear.signature(dtype))
    grad = np.zeros(params.shape[0])
    sums = np.zeros(3)
    threshold = loss.threshold if isinstance(loss, HuberLoss) else 0.0
    scalars = np.array([params[d] if model.intercept else 0.0, threshold], dtype=dtype)
    fold(
        np.ascontiguousarray(X),
        _column(y, dtype),
        _NO_WEIGHT if weight is None else np.ascontiguousarray(weight, dtype=np.float64),
        np.ascontiguousarray(params[:d]),
        scalars,
        grad[:d],
        sums,
        *fused_linear.scratch(d, dtype),
    )
    if model.intercept:
        grad[d] = sums[2]
    return grad, float(sums[0]), float(sums[1])


def _column(y: Any, dtype: str) -> npt.NDArray[Any]:
    """Return targets of one output as a vector of the block's dtype."""
    return np.ascontiguousarray(np.asarray(y).reshape(-1), dtype=dtype)
