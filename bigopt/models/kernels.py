"""The dense kernels all models share, on the array API subset of NumPy, CuPy and array-api-strict.

A layer is ``v = z W + b``. W has shape (in, out), or (g, in/g, out/g) for a block-diagonal layer of g groups: then the
columns of z and v are cut into g equal runs and run k of v sees run k of z only. Grouped products work on strided
views, so no block of rows is ever copied.

NumPy can compute into memory that is already there, which the array API cannot say; `into` and `matmul` use that where
the array is NumPy's. The values are the same either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bigopt.core.arrays import namespace
from bigopt.core.csr import CSR
from bigopt.models import sparse


def into(array: Any) -> dict[str, Any]:
    """Return the keywords that make a ufunc overwrite `array`, where its library can (NumPy); else none."""
    return {"out": array} if isinstance(array, np.ndarray) else {}


def matmul(a: Any, b: Any, out: Any) -> None:
    """Write the (batched) matrix product a b to `out`, without a temporary on NumPy."""
    if isinstance(out, np.ndarray):
        np.matmul(a, b, out=out)
    else:
        out[...] = namespace(a).matmul(a, b)


def groups(a: Any, g: int) -> Any:
    """View an array of shape (rows, width) as its `g` column runs, shape (g, rows, width/g)."""
    xp = namespace(a)
    rows, width = a.shape
    return xp.permute_dims(xp.reshape(a, (rows, g, width // g)), (1, 0, 2))


def flip(a: Any) -> Any:
    """View an array with its last two axes exchanged."""
    if isinstance(a, np.ndarray):
        return a.swapaxes(-1, -2)
    return namespace(a).permute_dims(a, (1, 0) if a.ndim == 2 else (0, 2, 1))


def dense(z: Any, weight: Any, intercept: Any | None, out: Any | None = None) -> Any:
    """Return v = z W + b, in fresh memory or in `out`.

    Parameters
    ----------
    z : array, shape (rows, in), or CSR
    weight : array, shape (in, out) or (g, in/g, out/g)
    intercept : array, shape (out,), or None
    out : array, shape (rows, out), or None

    Returns
    -------
    array, shape (rows, out)
    """
    v: Any
    if isinstance(z, CSR):
        v = sparse.product(z, weight)
    elif weight.ndim == 2 and out is None:
        v = namespace(z).matmul(z, weight)
    elif weight.ndim == 2:
        matmul(z, weight, out)
        v = out
    else:
        g, _, width = weight.shape
        v = namespace(z).empty((z.shape[0], g * width), dtype=z.dtype) if out is None else out
        matmul(groups(z, g), weight, groups(v, g))
    if intercept is not None:
        v += intercept
    return v


def dense_gradient(z: Any, delta: Any, weight: Any, intercept: Any | None) -> None:
    """Write the gradients of one layer: z^T delta to `weight`, the column sums of delta to `intercept`.

    The column sums are a product with a row of ones: exact to the same order as the rest of the gradient, which a
    plain float32 sum down the rows is not.
    """
    xp = namespace(delta)
    if isinstance(z, CSR):
        sparse.transposed_product(z, delta, weight)
    elif weight.ndim == 2:
        matmul(flip(z), delta, weight)
    else:
        g = weight.shape[0]
        matmul(flip(groups(z, g)), groups(delta, g), weight)
    if intercept is not None:
        matmul(xp.ones(z.shape[0], dtype=delta.dtype), delta, intercept)


def dense_input(delta: Any, weight: Any, out: Any | None = None) -> Any:
    """Return delta W^T, shape (rows, in), in fresh memory or in `out`: what one layer hands to the layer below."""
    xp = namespace(delta)
    if weight.ndim == 2 and out is None:
        return xp.matmul(delta, flip(weight))
    if weight.ndim == 2:
        matmul(delta, flip(weight), out)
        return out
    g, width, _ = weight.shape
    below = xp.empty((delta.shape[0], g * width), dtype=delta.dtype) if out is None else out
    matmul(groups(delta, g), flip(weight), groups(below, g))
    return below


def row_sum(a: Any) -> Any:
    """Return the sum of each row of an array of shape (rows, q), shape (rows,)."""
    xp = namespace(a)
    return xp.reshape(a, (-1,)) if a.shape[1] == 1 else xp.sum(a, axis=1)


def weighted(delta: Any, weight: Any | None) -> Any:
    """Return s_i delta_i, in delta's own memory; `weight` has shape (rows,), or None for ones."""
    if weight is None:
        return delta
    xp = namespace(delta)
    delta *= xp.reshape(xp.astype(weight, delta.dtype, copy=False), (-1, 1))
    return delta


def totals(value: Any, weight: Any | None) -> tuple[float, float]:
    """Return (sum_i s_i value_i, sum_i s_i), products and sums in float64.

    Parameters
    ----------
    value : array, shape (rows,)
    weight : array, shape (rows,), or None for ones
    """
    xp = namespace(value)
    value = xp.astype(value, xp.float64, copy=False)
    if weight is None:
        return float(xp.sum(value)), float(value.shape[0])
    weight = xp.astype(weight, xp.float64, copy=False)
    return float(xp.sum(value * weight)), float(xp.sum(weight))


def same_dtype(params: Any, X: Any) -> None:
    """Refuse params that are not in the block's dtype: the product would leave the fast path without a word.

    Raises
    ------
    TypeError
        Where the dtypes differ; the caller casts params once a round.
    """
    if params.dtype != X.dtype:
        raise TypeError(f"params are {params.dtype}, the block is {X.dtype}: cast params to the block's dtype first")
