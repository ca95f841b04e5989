"""How a row of Hogwild's loops reads and writes the shared vector: where nearly all of its time goes.

A row touches its k nonzero columns twice, once for the score and once to step. What makes that fast, for one output:

- rows are walked in order, forwards or backwards (`bigopt.data.turns`), and values and columns of a row are asked for
  `AHEAD` rows before (the processor foresees forwards alone), so that only w is random access;
- the score has four sums, which wait for nothing but their loads: as many cache misses are under way as the processor
  can hold, also those of lines that another thread wrote last;
- places are unsigned, for which the compiler does not ask whether they count from the end;
- the constants of a problem (sparse or dense, penalty or none) are those of the function, not tests in its loop.

For several outputs the entries of a column lie side by side, and the loops over outputs are inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from bigopt.models.fused_linear import SUMS
from bigopt.models.fused_points import EXACT

AHEAD: Final = 4
"""Rows between asking for a row's values and columns, and reading them."""

_U = np.uint64
_LINE: Final = 64


def make_read(T: Any, sparse: bool) -> Callable[..., Any]:
    """Return ``read(data, columns, w, v, s, start, stop, d, q, intercept)`` for one output.

    It writes the score ``s (w . x) + b`` to ``v[0]`` and returns the squared norm of the row.
    """
    from numba import njit

    zero, one, two, three, four = T(0.0), _U(1), _U(2), _U(3), _U(4)

    def read_sparse(
        data: Any, columns: Any, w: Any, v: Any, s: Any, start: int, stop: int, d: int, _q: int, intercept: int
    ) -> Any:
        bias = w[_U(d)] if intercept == 1 else zero
        v0, v1, v2, v3 = zero, zero, zero, zero
        s0, s1, s2, s3 = zero, zero, zero, zero
        k, end = _U(start), _U(stop)
        while k + four <= end:
            x0, x1, x2, x3 = T(data[k]), T(data[k + one]), T(data[k + two]), T(data[k + three])
            v0 += x0 * w[_U(columns[k])]
            v1 += x1 * w[_U(columns[k + one])]
            v2 += x2 * w[_U(columns[k + two])]
            v3 += x3 * w[_U(columns[k + three])]
            s0 += x0 * x0
            s1 += x1 * x1
            s2 += x2 * x2
            s3 += x3 * x3
            k += four
        while k < end:
            x0 = T(data[k])
            v0 += x0 * w[_U(columns[k])]
            s0 += x0 * x0
            k += one
        v[0] = s * ((v0 + v1) + (v2 + v3)) + bias
        return (s0 + s1) + (s2 + s3)

    def read_dense(
        data: Any, _columns: Any, w: Any, v: Any, s: Any, start: int, _stop: int, d: int, _q: int, intercept: int
    ) -> Any:
        score, square = zero, zero
        for j in range(d):
            x = T(data[start + j])
            score += x * w[j]
            square += x * x
        v[0] = s * score + w[d] if intercept == 1 else s * score
        return square

    made: Callable[..., Any] = (
        njit(fastmath=set(EXACT))(read_sparse) if sparse else njit(fastmath=set(SUMS))(read_dense)
    )
    return made


def make_write(T: Any, sparse: bool, lazy: bool, subtract: Any) -> Callable[..., None]:
    """Return ``write(data, columns, w, delta, decay, eta, start, stop, q)`` for one output: the step of a row."""
    from numba import njit

    one, all_of_it = _U(1), T(1.0)

    def write(
        data: Any, columns: Any, w: Any, delta: Any, decay: Any, eta: Any, start: int, stop: int, _q: int
    ) -> None:
        step, first, k, end = delta[0], _U(start), _U(start), _U(stop)
        while k < end:
            j = _U(columns[k]) if sparse else k - first
            if lazy:
                subtract(w, j, step * T(data[k]) + min(eta * decay[j], all_of_it) * w[j])
            else:
                subtract(w, j, step * T(data[k]))
            k += one

    made: Callable[..., None] = njit(fastmath=set(EXACT))(write)
    return made


def make_fetch() -> Callable[..., None]:
    """Return ``fetch(data, columns, start, stop)``: ask for the cache lines of a row's values and columns."""
    from numba import njit

    ask = _make_ask()

    def fetch(data: Any, columns: Any, start: int, stop: int) -> None:
        for k in range(start, stop, _LINE // data.itemsize):
            ask(data, _U(k))
        for k in range(start, stop, _LINE // columns.itemsize):
            ask(columns, _U(k))

    made: Callable[..., None] = njit(fastmath=set(EXACT))(fetch)
    return made


def _make_ask() -> Any:
    """Return ``ask(array, k)``: the processor is asked for the line of the k-th entry, and nobody waits for it."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def ask(_typing: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            address, number = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [address, number, number, number])
            prefetch = builder.module.declare_intrinsic("llvm.prefetch", [address], kind)
            place = builder.bitcast(builder.gep(data, [values[1]]), address)
            builder.call(prefetch, [place, number(0), number(3), number(1)])  # to read, for all caches, as data
            return context.get_dummy_value()

        return types.void(array, index), generate

    return intrinsic(ask)


def make_read_many(T: Any, sparse: bool) -> Callable[..., Any]:
    """Return what `make_read` does, for q outputs: scores to ``v``."""
    from numba import njit

    zero = T(0.0)

    def read(
        data: Any, columns: Any, w: Any, v: Any, s: Any, start: int, stop: int, d: int, q: int, intercept: int
    ) -> Any:
        square = zero
        for c in range(q):
            v[c] = w[d * q + c] if intercept == 1 else zero
        for k in range(start, stop):
            j = columns[k] if sparse else k - start
            x = T(data[k])
            square += x * x
            scaled = s * x
            for c in range(q):
                v[c] += scaled * w[j * q + c]
        return square

    made: Callable[..., Any] = njit(fastmath=set(EXACT))(read)
    return made


def make_write_many(T: Any, sparse: bool, lazy: bool, subtract: Any) -> Callable[..., None]:
    """Return what `make_write` does, for q outputs."""
    from numba import njit

    all_of_it = T(1.0)

    def write(data: Any, columns: Any, w: Any, delta: Any, decay: Any, eta: Any, start: int, stop: int, q: int) -> None:
        for k in range(start, stop):
            j, x = columns[k] if sparse else k - start, T(data[k])
            if lazy:
                shrink = min(eta * decay[j], all_of_it)
                for c in range(q):
                    subtract(w, j * q + c, delta[c] * x + shrink * w[j * q + c])
            else:
                for c in range(q):
                    subtract(w, j * q + c, delta[c] * x)

    made: Callable[..., None] = njit(fastmath=set(EXACT))(write)
    return made
