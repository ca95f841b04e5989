"""The kernels of sparse rows: X W, X^T delta and what second derivatives need, by SciPy's compiled loops.

A product reads the nonzeros in the order in which they are stored, one thread, so its bits depend on the rows alone.
SciPy is the extra ``sparse``; it is imported here only, when the first sparse rows arrive.

`restricted` is what keeps a gradient as small as its rows: they touch the weights of their own columns only
(`CSR.own`), so a model of those columns computes the same scores and the part of the gradient that is not zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError
from bigopt.core.vectors import Vector, encoded

if TYPE_CHECKING:
    from bigopt.models.linear import LinearModel

Array = npt.NDArray[Any]


def require_scipy() -> Any:
    """Return SciPy's module of sparse arrays.

    Raises
    ------
    ConfError
        Where SciPy is not installed.
    """
    try:
        from scipy import sparse
    except ImportError as error:
        raise ConfError(
            "sparse rows need SciPy, which is not installed", where="data.uri", hint="pip install 'bigopt[sparse]'"
        ) from error
    return sparse


def matrix(X: CSR) -> Any:
    """Return SciPy's view of the rows."""
    return require_scipy().csr_array((X.data, X.indices, X.indptr), shape=X.shape)


def _transposed(X: CSR) -> Any:
    """Return SciPy's view of X^T: the rows are its columns."""
    return require_scipy().csc_array((X.data, X.indices, X.indptr), shape=X.shape[::-1])


def product(X: CSR, weight: Array) -> Array:
    """Return X W, shape (k, q), for `weight` of shape (d, q)."""
    if weight.shape[1] == 1:
        return np.asarray(matrix(X) @ weight[:, 0])[:, None]
    return np.asarray(matrix(X) @ weight)


def transposed_product(X: CSR, delta: Array, out: Array) -> None:
    """Write X^T delta, shape (d, q), to `out`, for `delta` of shape (k, q)."""
    if delta.shape[1] == 1:
        out[:, 0] = _transposed(X) @ delta[:, 0]
    else:
        out[...] = _transposed(X) @ delta


def squares(X: CSR) -> Array:
    """Return ||x_i||^2 of each row, shape (k,)."""
    rows = np.repeat(np.arange(len(X)), np.diff(X.indptr))
    return np.bincount(rows, X.data * X.data, len(X)).astype(X.dtype, copy=False)


def weighed_gram(X: CSR, h: Array) -> tuple[Array, Array]:
    """Return X^T diag(h) X, shape (d, d), dense, and X^T h, shape (d,); `h` has shape (k,)."""
    plain = _transposed(X)
    scaled = matrix(CSR(X.data * np.repeat(h, np.diff(X.indptr)), X.indices, X.indptr, X.columns))
    return (plain @ scaled).toarray(), plain @ h


def restricted(model: LinearModel, columns: Array) -> LinearModel:
    """Return the model that sees some columns only."""
    return replace(model, features=len(columns))


def restricted_params(model: LinearModel, params: Array, columns: Array, dtype: str) -> Array:
    """Return the params of `restricted` in a dtype, shape (m q,) or (m q + q,)."""
    d, q = model.features, model.outputs
    small = np.empty((len(columns) + model.intercept) * q, dtype=dtype)
    rows, table = small.reshape(-1, q), params.reshape(-1, q)
    rows[: len(columns)] = table[columns]
    rows[len(columns) :] = table[d:]
    return small


def spread(model: LinearModel, grad: Array, columns: Array) -> Vector:
    """Return a gradient of `restricted` as one of the model."""
    at = np.append(columns, columns.dtype.type(model.features)) if model.intercept else columns
    return encoded(at, grad.reshape(-1, model.outputs), model.layout.size)
