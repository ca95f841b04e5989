"""The source of the compiled softmax of the linear family: one pass over memory for all classes.

A product with ten columns is short work for a matrix library, which packs both factors before it multiplies. Here
`ROWS` rows of X are multiplied by W, their softmax, loss and derivative computed, and their X^T delta added while they
are still in the first cache::

    v = X W + b,      delta = s (softmax(v) - Y),      loss += s (log sum exp v - v_y),      grad += X^T delta

W, b, delta and the gradient are padded with columns of zeros to whole vectors of the machine's. Four rows (or four
columns of X) share what is loaded, and their sums stay in registers, which is said in the words of LLVM: a compiler
keeps no array there.

Numbers: as in `bigopt.models.fused_linear`: products and sums of up to `FLUSH` rows in the block's dtype, everything
beyond in float64, always in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from bigopt.models.fused_layers import log_above_one
from bigopt.models.fused_linear import FLUSH, ROWS, SUMS
from bigopt.models.fused_points import EXACT, exp_negative

MOST: Final = 32
"""Classes up to which there is a kernel; every number of them has one of its own."""

_BYTES: Final = 32
"""Of a vector."""


def padded(classes: int, dtype: str) -> int:
    """Return the columns of W with its padding."""
    lanes = _BYTES // np.dtype(dtype).itemsize
    return -(-classes // lanes) * lanes


def scratch(features: int, width: int, dtype: str) -> tuple[Any, Any, Any]:
    """Return the working memory of a call: gradient of the rows since the flush, scores and two vectors of a block."""
    g = np.zeros((features + 1, width), dtype=dtype)
    return g, np.empty(ROWS * width, dtype=dtype), np.empty((2, ROWS), dtype=dtype)


def signature(dtype: str) -> tuple[str, ...]:
    """Return the types of X, y, weight, W, b, grad, out and scratch."""
    table = f"{dtype}[:,::1]"
    return (
        *(table, "int64[::1]", "float64[::1]", table, f"{dtype}[::1]"),
        *("float64[:,::1]", "float64[::1]", table, f"{dtype}[::1]", table),
    )


def make_softmax(dtype: str, classes: int) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel that adds rows to `grad` and to ``out = (loss, weight)``.

    The last row of `grad` is that of the intercepts. A label that is none makes the loss NaN.

    Parameters
    ----------
    dtype : str
        Of the block, float32 or float64.
    classes : int
        Columns of W without its padding, at least 2.
    """
    from numba import njit

    width, T = padded(classes, dtype), np.dtype(dtype).type
    exp, log, zero, one, nan, wide = exp_negative(T), log_above_one(T), T(0), T(1), T(np.nan), np.float64
    score, scores = (make_product(width, rows, transposed=False) for rows in (1, 4))
    add, adds = (make_product(width, columns, transposed=True) for columns in (1, 4))

    def shifted(v: Any, start: Any, b: Any) -> None:
        for k in range(width):
            v[start + k] += b[k]
        top = v[start]
        for k in range(1, classes):
            top = v[start + k] if v[start + k] > top else top
        for k in range(width):
            v[start + k] -= top

    def total(v: Any, start: Any) -> Any:
        found = zero
        for k in range(classes):
            found += v[start + k]
        return found

    below = njit(shifted, error_model="numpy", fastmath=set(EXACT))
    summed = njit(total, error_model="numpy", fastmath=set(SUMS))

    def softmax(v: Any, m: Any, b: Any, labels: Any, totals: Any, values: Any) -> None:
        for r in range(m):
            below(v, r * width, b)
            label = labels[r]
            values[r] = v[r * width + label] if 0 <= label < classes else nan
        for q in range(m * width):  # a loop of constant length would be unrolled and not become vector instructions
            v[q] = exp(v[q])
        for r in range(m):
            of_row = summed(v, r * width)
            totals[r], inverse = of_row, one / of_row
            for k in range(classes):
                v[r * width + k] *= inverse
            for k in range(classes, width):
                v[r * width + k] = zero
            if 0 <= labels[r] < classes:
                v[r * width + labels[r]] -= one
        for r in range(m):
            values[r] = log(totals[r]) - values[r]

    points = njit(softmax, error_model="numpy", fastmath=set(EXACT))

    def fold(X: Any, y: Any, weight: Any, W: Any, b: Any, grad: Any, out: Any, g: Any, v: Any, block: Any) -> None:
        n, d = X.shape
        ones = weight.shape[0] == 0
        since = 0
        for lo in range(0, n, ROWS):
            m = min(ROWS, n - lo)
            r = 0
            while r + 4 <= m:
                scores(X, lo + r, 0, d, W, v, r)
                r += 4
            while r < m:
                score(X, lo + r, 0, d, W, v, r)
                r += 1
            points(v, m, b, y[lo : lo + m], block[0], block[1])
            for r in range(m):
                value = wide(block[1, r])
                if ones:
                    out[0] += value
                    out[1] += 1.0
                else:
                    s = weight[lo + r]
                    out[0] += s * value
                    out[1] += s
                    scale = T(s)
                    for k in range(width):
                        v[r * width + k] *= scale
                for k in range(width):
                    g[d, k] += v[r * width + k]
            j = 0
            while j + 4 <= d:
                adds(X, lo, j, m, v, g, j)
                j += 4
            while j < d:
                add(X, lo, j, m, v, g, j)
                j += 1
            since += m
            if since >= FLUSH or lo + ROWS >= n:
                for j in range(d + 1):
                    for k in range(width):
                        grad[j, k] += wide(g[j, k])
                        g[j, k] = zero
                since = 0

    return fold, EXACT


def make_product(width: int, count: int, *, transposed: bool) -> Any:
    """Return ``product(X, i, j, n, B, out, o)`` for B and out with `width` columns.

    It writes ``X[i : i + count, j : j + n] B[:n]`` to ``out[o : o + count]``; if `transposed` it adds the product of
    the transpose of ``X[i : i + n, j : j + count]`` and ``B[:n]`` to them.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def product(_typing: Any, X: Any, _i: Any, _j: Any, _n: Any, B: Any, out: Any, _o: Any) -> Any:
        def generate(context: Any, builder: Any, given: Any, values: Any) -> Any:
            x, b, to = (context.make_array(given.args[k])(context, builder, values[k]) for k in (0, 4, 5))
            features, item, contract = cgutils.unpack_tuple(builder, x.shape)[1], x.data.type.pointee, ("contract",)
            size = 4 if item == ir.FloatType() else 8
            lanes, word = _BYTES // size, ir.IntType(32)
            vector, whole = ir.VectorType(item, lanes), features.type
            nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(word, lanes), [0] * lanes)

            def place(table: Any, row: Any, columns: Any, column: Any) -> Any:
                return builder.gep(table.data, [builder.add(builder.mul(row, columns), column)])

            def lane(table: Any, row: Any, column: int) -> Any:
                address = place(table, row, ir.Constant(whole, width), ir.Constant(whole, column))
                return builder.bitcast(address, vector.as_pointer())

            def spread(entry: Any) -> Any:
                alone = builder.insert_element(nothing, builder.load(entry), ir.Constant(word, 0))
                return builder.shuffle_vector(alone, nothing, first)

            starts = list(range(0, width, lanes))
            for panel in (starts[k : k + 2] for k in range(0, len(starts), 2)):
                sums = {(q, c): cgutils.alloca_once(builder, vector) for q in range(count) for c in panel}
                rows = [builder.add(values[6], ir.Constant(whole, q)) for q in range(count)]
                for (q, c), one in sums.items():
                    zero = ir.Constant(vector, [0.0] * lanes)
                    builder.store(builder.load(lane(to, rows[q], c), align=size) if transposed else zero, one)
                with cgutils.for_range(builder, values[3]) as loop:
                    factors = {c: builder.load(lane(b, loop.index, c), align=size) for c in panel}
                    for q in range(count):
                        along, across = loop.index, ir.Constant(whole, q)
                        row, column = (along, across) if transposed else (across, along)
                        row, column = builder.add(values[1], row), builder.add(values[2], column)
                        entry = spread(place(x, row, features, column))
                        for c in panel:
                            more = builder.fmul(entry, factors[c], flags=contract)
                            builder.store(builder.fadd(builder.load(sums[q, c]), more, flags=contract), sums[q, c])
                for (q, c), one in sums.items():
                    builder.store(builder.load(one), lane(to, rows[q], c), align=size)
            return context.get_dummy_value()

        return types.void(X, types.intp, types.intp, types.intp, B, out, types.intp), generate

    return intrinsic(product)
