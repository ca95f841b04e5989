"""The source of what lies between the matrix products of a network: one compiled pass for each, in place.

The products of a small batch take two or three milliseconds, and every NumPy call between them some microseconds of the
interpreter, more where threads wait for its lock. So bias and ReLU are one kernel, the gate of the backward pass
another, and the softmax with its loss and derivative a third, which leaves dloss/dv where the scores were::

    relu           v = max(v + b, 0)
    cross_entropy  v = s (softmax(v + b) - Y),     sums += (s (log sum exp v - v_y), s)
    gate           d = d where z > 0, else 0

Numbers: everything in the block's dtype, loss and weights added in float64, row after row. A comparison with NaN is
false and goes on into the loss: a run that diverges must see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bigopt.models.fused_points import EXACT, exp_negative, log1p_unit, parts_of


def relu_signature(dtype: str) -> tuple[str, ...]:
    """Return the types of v and b."""
    return f"{dtype}[:,::1]", f"{dtype}[::1]"


def make_relu(dtype: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(v, b)``: v = max(v + b, 0); an empty b is none."""
    zero = np.dtype(dtype).type(0)

    def relu(v: Any, b: Any) -> None:
        rows, width = v.shape
        for r in range(rows):
            if b.shape[0] == width:
                for k in range(width):
                    x = v[r, k] + b[k]
                    v[r, k] = zero if x < zero else x
            else:
                for k in range(width):
                    x = v[r, k]
                    v[r, k] = zero if x < zero else x

    return relu, frozenset()


def gate_signature(dtype: str) -> tuple[str, ...]:
    """Return the types of d and z."""
    return f"{dtype}[:,::1]", f"{dtype}[:,::1]"


def make_gate(dtype: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(d, z)``: d = d where z > 0, else 0."""
    zero = np.dtype(dtype).type(0)

    def gate(d: Any, z: Any) -> None:
        rows, width = d.shape
        for r in range(rows):
            for k in range(width):
                d[r, k] = d[r, k] if z[r, k] > zero else zero

    return gate, frozenset()


def cross_entropy_signature(dtype: str) -> tuple[str, ...]:
    """Return the types of v, b, y, s and sums."""
    return f"{dtype}[:,::1]", f"{dtype}[::1]", "int64[::1]", "float64[::1]", "float64[::1]"


def make_cross_entropy(dtype: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(v, b, y, s, sums)``; see the module's docstring. An empty b is none, an empty s ones."""
    from numba import njit

    T = np.dtype(dtype).type
    exp, log, zero, one, wide = exp_negative(T), log_above_one(T), T(0), T(1), np.float64

    def softmax(v: Any, r: Any, b: Any, label: Any) -> Any:
        width = v.shape[1]
        if b.shape[0] == width:
            for k in range(width):
                v[r, k] += b[k]
        top = v[r, 0]
        for k in range(1, width):
            top = v[r, k] if v[r, k] > top else top
        picked, total = zero, zero
        for k in range(width):
            below = v[r, k] - top
            picked = below if k == label else picked
            v[r, k] = exp(below)
            total += v[r, k]
        for k in range(width):
            v[r, k] = v[r, k] / total - (one if k == label else zero)
        return log(total) - picked

    row = njit(softmax, error_model="numpy")

    def cross_entropy(v: Any, b: Any, y: Any, s: Any, sums: Any) -> None:
        weighted = s.shape[0] == v.shape[0]
        for r in range(v.shape[0]):
            value = wide(row(v, r, b, y[r]))
            if weighted:
                scale = T(s[r])
                for k in range(v.shape[1]):
                    v[r, k] *= scale
                sums[0] += value * s[r]
                sums[1] += s[r]
            else:
                sums[0] += value
                sums[1] += 1.0

    return cross_entropy, frozenset()


def log_above_one(T: Any) -> Any:
    """Return ``log(x)`` for x >= 1: log(2^n m) = n log 2 + log1p(m - 1); NaN for NaN and infinity."""
    from numba import njit

    integer, fraction, bias = parts_of(T)
    mask, exponent, shift = integer((1 << fraction) - 1), integer(bias << fraction), integer(fraction)
    log1p, one, log2 = log1p_unit(T), T(1), T(np.log(2.0))

    def log(x: Any) -> Any:
        bits = T(x).view(integer)
        n = T((bits >> shift) - integer(bias))
        m = integer((bits & mask) | exponent).view(T)
        return log1p(m - one) + n * log2 + (x - x)

    return njit(fastmath=set(EXACT))(log)
