"""Loss and derivative of single scores, as loops that a compiler turns into vector instructions.

Each entry of `POINTS` gives, for a block dtype, the function ``point(v, y, delta, value, threshold)``, which writes
``delta[r] = dloss/dv`` and ``value[r] = loss`` of `bigopt.models.losses` for every row r. What is left to choose is how
a loop avoids branches, and exp and log1p for a whole vector at a time::

    exp x    = 2^n exp r,    n = round(x / log 2),  |r| <= log(2)/2     Taylor's series, for x <= 0
    log1p e  = 2 artanh s,   s = e / (2 + e) <= 1/3                     its series, for 0 <= e <= 1

Adding 1.5 * 2^(bits of the fraction) rounds to an integer, which then stands in the lowest bits of the sum. Comparisons
are written so that NaN, which compares false with everything, goes on into the loss: a run that diverges must see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import factorial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np

EXACT: Final = frozenset({"contract"})
"""Fast-math flags of these functions: a product may be fused with a sum, nothing may be reordered."""


class _Format(NamedTuple):
    """What exp and log1p need to know of a dtype."""

    integer: str
    fraction: int  # bits
    bias: int
    lowest: float  # exp of less is taken for exp of this: below any sum that it enters
    high: float  # log 2 in two parts, the first with few bits
    low: float
    exp_terms: int
    log_terms: int


_FORMATS: Final[Mapping[str, _Format]] = MappingProxyType(
    {
        "float32": _Format("int32", 23, 127, -87.0, 0.693359375, -2.12194440e-4, 8, 7),
        "float64": _Format("int64", 52, 1023, -708.0, 6.93145751953125e-1, 1.42860682030941723212e-6, 14, 17),
    }
)

Point = Callable[..., None]


def parts_of(T: Any) -> tuple[Any, int, int]:
    """Return the integers as long as T, the bits of T's fraction, and the bias of its exponent."""
    f = _FORMATS[np.dtype(T).name]
    return np.dtype(f.integer).type, f.fraction, f.bias


def polynomial(T: Any, coefficients: list[float]) -> Any:
    """Return ``p(x) = sum_k c_k x^k`` by Horner's rule, for the compiler.

    Four steps are a function: a loop over more than a dozen coefficients stays a loop, and keeps the one around it from
    becoming vector instructions (float64 took 20 times as long).
    """
    from numba import njit

    last, *others = (T(c) for c in reversed(coefficients))

    def start(_: Any) -> Any:
        return last

    found = njit(fastmath=set(EXACT))(start)
    while others:
        four, others = others[:4], others[4:]
        found = _longer(found, *reversed(four))
    return found


def _longer(rest: Any, *c: Any) -> Any:
    """Return c_0 + c_1 x + ... + x^k rest(x) for up to four coefficients."""
    from numba import njit

    if len(c) < 4:
        d, *more = c

        def one(x: Any) -> Any:
            return d + x * rest(x)

        return njit(fastmath=set(EXACT))(one) if not more else _longer(_longer(rest, *more), d)
    c0, c1, c2, c3 = c

    def four(x: Any) -> Any:
        return c0 + x * (c1 + x * (c2 + x * (c3 + x * rest(x))))

    return njit(fastmath=set(EXACT))(four)


def exp_negative(T: Any) -> Any:
    """Return ``exp(x)`` for x <= 0."""
    from numba import njit

    f = _FORMATS[np.dtype(T).name]
    integer = np.dtype(f.integer).type
    inverse, magic = T(1.4426950408889634), T(1.5 * 2.0**f.fraction)
    high, low, lowest = T(f.high), T(f.low), T(f.lowest)
    bias, shift = integer(f.bias), integer(f.fraction)
    series = polynomial(T, [1.0 / factorial(k) for k in range(f.exp_terms)])

    def exp(x: Any) -> Any:
        x = lowest if x < lowest else x
        rounded = x * inverse + magic
        n = rounded - magic
        power = integer((T(rounded).view(integer) + bias) << shift).view(T)
        return series((x - n * high) - n * low) * power

    return njit(fastmath=set(EXACT))(exp)


def log1p_unit(T: Any) -> Any:
    """Return ``log(1 + e)`` for 0 <= e <= 1."""
    from numba import njit

    two = T(2.0)
    series = polynomial(T, [2.0 / (2 * k + 1) for k in range(_FORMATS[np.dtype(T).name].log_terms)])

    def log1p(e: Any) -> Any:
        s = e / (two + e)
        return s * series(s * s)

    return njit(fastmath=set(EXACT))(log1p)


def _squared(T: Any) -> Point:
    two = T(2.0)

    def point(v: Any, y: Any, delta: Any, value: Any, _threshold: Any) -> None:
        for r in range(y.shape[0]):
            e = v[r] - y[r]
            value[r] = e * e
            delta[r] = two * e

    return point


def _huber(T: Any) -> Point:
    two = T(2.0)

    def point(v: Any, y: Any, delta: Any, value: Any, threshold: Any) -> None:
        for r in range(y.shape[0]):
            e = v[r] - y[r]
            c = threshold if e > threshold else e
            c = -threshold if c < -threshold else c
            value[r] = (two * e - c) * c
            delta[r] = two * c

    return point


def _binary_cross_entropy(T: Any) -> Point:
    exp, log1p, one, zero = exp_negative(T), log1p_unit(T), T(1.0), T(0.0)

    def point(v: Any, y: Any, delta: Any, value: Any, _threshold: Any) -> None:
        for r in range(y.shape[0]):
            a = v[r]
            tail = exp(-abs(a))
            top = tail if a < zero else one
            delta[r] = top / (one + tail) - y[r]
            value[r] = log1p(tail) + ((zero if a < zero else a) - y[r] * a)

    return point


def _perceptron(T: Any) -> Point:
    zero = T(0.0)

    def point(v: Any, y: Any, delta: Any, value: Any, _threshold: Any) -> None:
        for r in range(y.shape[0]):
            slack = -y[r] * v[r]
            value[r] = zero if slack < zero else slack
            delta[r] = zero if slack < zero else -y[r]

    return point


def _hinge(T: Any) -> Point:
    zero, one = T(0.0), T(1.0)

    def point(v: Any, y: Any, delta: Any, value: Any, _threshold: Any) -> None:
        for r in range(y.shape[0]):
            slack = one - y[r] * v[r]
            value[r] = zero if slack <= zero else slack
            delta[r] = zero if slack <= zero else -y[r]

    return point


def _squared_hinge(T: Any) -> Point:
    zero, one, two = T(0.0), T(1.0), T(2.0)

    def point(v: Any, y: Any, delta: Any, value: Any, _threshold: Any) -> None:
        for r in range(y.shape[0]):
            slack = one - y[r] * v[r]
            slack = zero if slack <= zero else slack
            value[r] = slack * slack
            delta[r] = -two * y[r] * slack

    return point


POINTS: Final[Mapping[str, Callable[[Any], Point]]] = MappingProxyType(
    {
        "squared": _squared,
        "huber": _huber,
        "binary_cross_entropy": _binary_cross_entropy,
        "perceptron": _perceptron,
        "hinge": _hinge,
        "squared_hinge": _squared_hinge,
    }
)
"""By the name of the loss (squared error on labels is `squared`)."""
