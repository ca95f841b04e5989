"""The source of the linear family's compiled kernels: one pass over memory for gradient and loss.

A row of X is needed twice: for its score v = w.x + b, and to add delta x to the gradient. NumPy makes two passes over
a block of a megabyte; here `ROWS` rows are scored, the loss and its derivative computed for all of them at once, and
their delta x added while they are still in the first cache. While that happens the next rows are fetched, so that
memory never rests.

Numbers: products and sums of up to `FLUSH` rows in the block's dtype, everything beyond in float64. A sum over four
rows or over the columns may be taken in any order that the compiler finds best, but always the same one: the bits
depend on the rows of the unit, the params and the machine code, never on threads or addresses. The loss itself is in
`bigopt.models.fused_points`.

The functions that begin with ``make`` import numba; `bigopt.core.compiled` calls them only where a kernel is not yet
in its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from bigopt.models.fused_points import EXACT, POINTS

ROWS: Final = 16
"""Rows that are scored, then added: with those that are being fetched they fit the first cache (d up to 250)."""

FLUSH: Final = 128
"""Rows whose gradient is summed in the block's dtype; calls of a multiple of it give the bits of one for all."""

WIDTH: Final = 8
"""Columns at the end of a row that are done as one vector where the number of columns is not a multiple."""

SUMS: Final = frozenset({"contract", "reassoc", "nsz"})


def scratch(features: int, dtype: str) -> tuple[Any, Any]:
    """Return the working memory of a call: gradient of the rows since the flush, and three vectors of a block."""
    return np.zeros(features + 3 * WIDTH, dtype=dtype), np.empty((3, ROWS), dtype=dtype)


def signature(dtype: str) -> tuple[str, ...]:
    """Return the types of X, y, weight, w, (b, threshold), grad, out and scratch."""
    return (
        *(f"{dtype}[:,::1]", f"{dtype}[::1]", "float64[::1]", f"{dtype}[::1]", f"{dtype}[::1]"),
        *("float64[::1]", "float64[::1]", f"{dtype}[::1]", f"{dtype}[:,::1]"),
    )


def make_fold(loss: str, dtype: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel that adds a unit's rows to `grad` and to ``out = (loss, weight, shift)``.

    Parameters
    ----------
    loss : str
        A name of `POINTS`.
    dtype : str
        Of the block, float32 or float64.
    """
    from numba import njit

    T = np.dtype(dtype).type
    point = njit(fastmath=set(EXACT))(POINTS[loss](T))
    prefetch, line, zero = make_prefetch(), 64 // np.dtype(dtype).itemsize, T(0)

    def fold(X: Any, y: Any, weight: Any, w: Any, scalars: Any, grad: Any, out: Any, g: Any, block: Any) -> None:
        n, d = X.shape
        whole = d // WIDTH * WIDTH
        end = d - WIDTH
        if end < 0:
            whole = d
        last, tail, ones = g[d : d + WIDTH], g[d + WIDTH : d + 2 * WIDTH], weight.shape[0] == 0
        for k in range(WIDTH):
            tail[k] = w[end + k] if whole < d and end + k >= whole else zero
            last[k] = zero
        for j in range(d):
            g[j] = zero
        v, delta, value = block[0], block[1], block[2]
        b, threshold = scalars[0], scalars[1]
        lines = 2 * d // line + 1
        loss_sum, mass, shift = out[0], out[1], out[2]
        since = 0
        for lo in range(0, n, ROWS):
            m = min(ROWS, n - lo)
            ahead = (lo + ROWS) * d
            r = 0
            while r + 4 <= m:
                i = lo + r
                for _ in range(lines):
                    prefetch(X, ahead)
                    ahead += line
                s0, s1, s2, s3 = zero, zero, zero, zero
                for j in range(whole):
                    q = w[j]
                    s0 += X[i, j] * q
                    s1 += X[i + 1, j] * q
                    s2 += X[i + 2, j] * q
                    s3 += X[i + 3, j] * q
                if whole < d:
                    for k in range(WIDTH):
                        q = tail[k]
                        s0 += X[i, end + k] * q
                        s1 += X[i + 1, end + k] * q
                        s2 += X[i + 2, end + k] * q
                        s3 += X[i + 3, end + k] * q
                v[r], v[r + 1], v[r + 2], v[r + 3] = s0 + b, s1 + b, s2 + b, s3 + b
                r += 4
            while r < m:
                s0 = zero
                for j in range(d):
                    s0 += X[lo + r, j] * w[j]
                v[r] = s0 + b
                r += 1
            point(v, y[lo : lo + m], delta, value, threshold)
            if ones:
                for r in range(m):
                    loss_sum += value[r]
            else:
                for r in range(m):
                    s = weight[lo + r]
                    loss_sum += s * value[r]
                    mass += s
                    delta[r] *= T(s)
            for r in range(m):
                shift += delta[r]
            r = 0
            while r + 4 <= m:
                i = lo + r
                for _ in range(lines):
                    prefetch(X, ahead)
                    ahead += line
                d0, d1, d2, d3 = delta[r], delta[r + 1], delta[r + 2], delta[r + 3]
                for j in range(whole):
                    g[j] += d0 * X[i, j] + d1 * X[i + 1, j] + d2 * X[i + 2, j] + d3 * X[i + 3, j]
                if whole < d:
                    for k in range(WIDTH):
                        c = end + k
                        last[k] += d0 * X[i, c] + d1 * X[i + 1, c] + d2 * X[i + 2, c] + d3 * X[i + 3, c]
                r += 4
            while r < m:
                d0 = delta[r]
                for j in range(d):
                    g[j] += d0 * X[lo + r, j]
                r += 1
            since += m
            if since >= FLUSH or lo + ROWS >= n:
                for j in range(whole, d):
                    g[j] += last[j - end]
                for k in range(WIDTH):
                    last[k] = zero
                for j in range(d):
                    grad[j] += g[j]
                    g[j] = zero
                since = 0
        out[0] = loss_sum
        out[1] = mass + float(n) if ones else mass
        out[2] = shift

    return fold, SUMS


def make_prefetch() -> Any:
    """Return ``prefetch(array, k)``: ask for the cache line of the k-th entry, which may lie behind the end."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def prefetch(_typing: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            where = builder.bitcast(builder.gep(data, [values[1]]), byte)
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            name = "llvm.prefetch.p0"
            known = builder.module.globals.get(name)
            function = known if known is not None else ir.Function(builder.module, kind, name)
            builder.call(function, [where, word(0), word(3), word(1)])  # to read, into all caches, data
            return context.get_dummy_value()

        return types.void(array, index), generate

    return intrinsic(prefetch)
