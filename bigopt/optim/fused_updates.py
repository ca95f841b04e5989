"""The source of the compiled updates: what each optimizer does to one entry, in the order of its NumPy operations.

NumPy walks the vectors once an operation; a compiled loop walks them once a step and keeps what lies between in
registers. Each body below repeats the operations of its class's ``update`` one by one, in the same dtype and with the
same scalars, and the compiler may neither fuse a product with a sum nor reorder anything. Every operation is correctly
rounded by IEEE 754, so the bits are those of the class.

A body is ``(g, a, b, c, w, k0, ..., k7) -> (delta, a, b, c)``: an entry of the gradient, of up to three vectors of the
state, and of the params, with the scalars of the step. The loop around it makes the mean of a sum where that was left
to it, scales it (clipping by norm), and writes w + delta over the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

Body = Callable[..., tuple[Any, Any, Any, Any]]

SCALARS: Final = 8
"""k0 ... k7."""

RULES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "sgd": 0,
        "momentum": 1,
        "nesterov": 1,
        "adagrad": 1,
        "rmsprop": 1,
        "adadelta": 2,
        "adam": 2,
        "adamw": 2,
        "amsgrad": 3,
        "adamax": 2,
        "nadam": 2,
        "yogi": 2,
    }
)
"""Vectors of the state of each rule; ``adamw`` is its step on entries that decay. Lion, LARS and LAMB are NumPy's."""


def make_root() -> Any:
    """Return the square root as the machine's instruction (``math.sqrt`` calls the C library, entry by entry)."""
    from numba.extending import intrinsic

    def root(_typing: Any, x: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [values[0].type]), values)

        return x(x), generate

    return intrinsic(root)


def make_bodies() -> Mapping[str, Body]:
    """Return the bodies by the names of `RULES`."""
    sqrt = make_root()

    def sgd(g: Any, a: Any, b: Any, c: Any, _w: Any, k0: Any, *_: Any) -> Any:
        return g * k0, a, b, c

    def momentum(g: Any, a: Any, b: Any, c: Any, _w: Any, mu: Any, eta: Any, *_: Any) -> Any:
        d = a * mu - g
        return d * eta, d, b, c

    def nesterov(g: Any, a: Any, b: Any, c: Any, _w: Any, mu: Any, eta: Any, *_: Any) -> Any:
        d = a * mu - g
        return (d * mu - g) * eta, d, b, c

    def adagrad(g: Any, a: Any, b: Any, c: Any, _w: Any, eps: Any, rate: Any, *_: Any) -> Any:
        total = a + g * g
        return g / (sqrt(total) + eps) * rate, total, b, c

    def rmsprop(g: Any, a: Any, b: Any, c: Any, _w: Any, eps: Any, rate: Any, b2: Any, rest2: Any, *_: Any) -> Any:
        mean = a * b2 + g * g * rest2
        return g / (sqrt(mean) + eps) * rate, mean, b, c

    def adadelta(g: Any, a: Any, b: Any, c: Any, _w: Any, eps: Any, rate: Any, r: Any, rest: Any, *_: Any) -> Any:
        e = a * r + g * g * rest
        d = sqrt(b + eps) / sqrt(e + eps) * g
        return d * rate, e, b * r + d * d * rest, c

    def adam(
        g: Any, a: Any, b: Any, c: Any, _w: Any, eps: Any, rate: Any, b1: Any, rest1: Any, b2: Any, rest2: Any,
        unbias: Any, _k7: Any,
    ) -> Any:  # fmt: skip
        v = b * b2 + g * g * rest2
        m = a * b1 + g * rest1
        return m / (sqrt(v) * unbias + eps) * rate, m, v, c

    def adamw(
        g: Any, a: Any, b: Any, c: Any, w: Any, eps: Any, rate: Any, b1: Any, rest1: Any, b2: Any, rest2: Any,
        unbias: Any, decay: Any,
    ) -> Any:  # fmt: skip
        v = b * b2 + g * g * rest2
        m = a * b1 + g * rest1
        return m / (sqrt(v) * unbias + eps) * rate + w * decay, m, v, c

    def amsgrad(
        g: Any, a: Any, b: Any, c: Any, _w: Any, eps: Any, rate: Any, b1: Any, rest1: Any, b2: Any, rest2: Any,
        unbias: Any, _k7: Any,
    ) -> Any:  # fmt: skip
        v = b * b2 + g * g * rest2
        m = a * b1 + g * rest1
        x = c if c >= v else v
        return m / (sqrt(x) * unbias + eps) * rate, m, v, x

    def adamax(
        g: Any, a: Any, b: Any, c: Any, _w: Any, eps: Any, rate: Any, b1: Any, rest1: Any, b2: Any, *_: Any
    ) -> Any:
        size, old = abs(g) + eps, b * b2
        u = old if old >= size else size
        m = a * b1 + g * rest1
        return m / u * rate, m, u, c

    def nadam(
        g: Any, a: Any, b: Any, c: Any, _w: Any, eps: Any, of_g: Any, b1: Any, rest1: Any, b2: Any, rest2: Any,
        unbias: Any, of_m: Any,
    ) -> Any:  # fmt: skip
        v = b * b2 + g * g * rest2
        m = a * b1 + g * rest1
        return (m * of_m + g * of_g) / (sqrt(v) * unbias + eps), m, v, c

    def yogi(
        g: Any, a: Any, b: Any, c: Any, _w: Any, eps: Any, rate: Any, b1: Any, rest1: Any, _b2: Any, rest2: Any, *_: Any
    ) -> Any:
        h = g * g
        d, h = b - h, h * rest2
        v = b - h if d > 0 else (b + h if d < 0 else b)
        m = a * b1 + g * rest1
        return m / (sqrt(v) + eps) * rate, m, v, c

    return {
        "sgd": sgd,
        "momentum": momentum,
        "nesterov": nesterov,
        "adagrad": adagrad,
        "rmsprop": rmsprop,
        "adadelta": adadelta,
        "adam": adam,
        "adamw": adamw,
        "amsgrad": amsgrad,
        "adamax": adamax,
        "nadam": nadam,
        "yogi": yogi,
    }


def make_mean(how: str) -> Any:
    """Return ``mean(g, s)``: g as it is, times s or over s; see `make_update`."""
    from numba import njit

    def given(g: Any, _s: Any) -> Any:
        return g

    def multiplied(g: Any, s: Any) -> Any:
        return g * s

    def divided(g: Any, s: Any) -> Any:
        return g / s

    return njit({"mean": given, "times": multiplied, "over": divided}[how], error_model="numpy")


def signature(rule: str, dtype: str) -> tuple[str, ...]:
    """Return the types of grad, params, scalars, (factor, scale) and the vectors of state."""
    return (f"{dtype}[::1]",) * (4 + RULES[rule])


def make_update(rule: str, dtype: str, how: str = "mean") -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(grad, params, scalars, (factor, scale), *state)``, for vectors or pieces of them.

    Parameters
    ----------
    rule : str
        A name of `RULES`.
    dtype : str
        ``run.dtype``.
    how : str
        ``mean``: the gradient is given, and scale means nothing; else it is the given vector times or over the scale
        (``times``, ``over``).
    """
    from numba import njit

    zero = np.dtype(dtype).type(0.0)
    body, mean = njit(make_bodies()[rule]), make_mean(how)

    def none(g: Any, w: Any, k: Any, f: Any) -> None:
        q, r, k0, k1, k2, k3, k4, k5, k6, k7 = f[0], f[1], k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
        for i in range(g.shape[0]):
            d, _, _, _ = body(mean(g[i], r) * q, zero, zero, zero, w[i], k0, k1, k2, k3, k4, k5, k6, k7)
            g[i] = w[i] + d

    def one(g: Any, w: Any, k: Any, f: Any, a: Any) -> None:
        q, r, k0, k1, k2, k3, k4, k5, k6, k7 = f[0], f[1], k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
        for i in range(g.shape[0]):
            d, x, _, _ = body(mean(g[i], r) * q, a[i], zero, zero, w[i], k0, k1, k2, k3, k4, k5, k6, k7)
            a[i] = x
            g[i] = w[i] + d

    def two(g: Any, w: Any, k: Any, f: Any, a: Any, b: Any) -> None:
        q, r, k0, k1, k2, k3, k4, k5, k6, k7 = f[0], f[1], k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
        for i in range(g.shape[0]):
            d, x, y, _ = body(mean(g[i], r) * q, a[i], b[i], zero, w[i], k0, k1, k2, k3, k4, k5, k6, k7)
            a[i] = x
            b[i] = y
            g[i] = w[i] + d

    def three(g: Any, w: Any, k: Any, f: Any, a: Any, b: Any, c: Any) -> None:
        q, r, k0, k1, k2, k3, k4, k5, k6, k7 = f[0], f[1], k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
        for i in range(g.shape[0]):
            d, x, y, z = body(mean(g[i], r) * q, a[i], b[i], c[i], w[i], k0, k1, k2, k3, k4, k5, k6, k7)
            a[i] = x
            b[i] = y
            c[i] = z
            g[i] = w[i] + d

    return (none, one, two, three)[RULES[rule]], frozenset()


def joined_signature(rule: str, dtype: str, narrow: str) -> tuple[str, ...]:
    """Return the types of left, right, new, and those of `signature`."""
    return (f"{narrow}[::1]",) * 3 + signature(rule, dtype)


def make_joined_update(rule: str, dtype: str, narrow: str, how: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(left, right, new, grad, params, ...)``: `make_update` of left + right.

    What it writes over the gradient's room it also writes to `new`, which is as narrow as left and right.

    Parameters
    ----------
    rule, dtype, how : str
        As in `make_update`.
    narrow : str
        dtype of left, right and new: each of the first two is widened, then they are added.
    """
    from numba import njit

    wide, thin = np.dtype(dtype).type, np.dtype(narrow).type
    zero, body, mean = wide(0.0), njit(make_bodies()[rule]), make_mean(how)

    def none(u: Any, v: Any, n: Any, g: Any, w: Any, k: Any, f: Any) -> None:
        q, r, k0, k1, k2, k3, k4, k5, k6, k7 = f[0], f[1], k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
        for i in range(g.shape[0]):
            both = mean(wide(u[i]) + wide(v[i]), r) * q
            d, _, _, _ = body(both, zero, zero, zero, w[i], k0, k1, k2, k3, k4, k5, k6, k7)
            new = w[i] + d
            g[i] = new
            n[i] = thin(new)

    def one(u: Any, v: Any, n: Any, g: Any, w: Any, k: Any, f: Any, a: Any) -> None:
        q, r, k0, k1, k2, k3, k4, k5, k6, k7 = f[0], f[1], k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
        for i in range(g.shape[0]):
            both = mean(wide(u[i]) + wide(v[i]), r) * q
            d, x, _, _ = body(both, a[i], zero, zero, w[i], k0, k1, k2, k3, k4, k5, k6, k7)
            a[i] = x
            new = w[i] + d
            g[i] = new
            n[i] = thin(new)

    def two(u: Any, v: Any, n: Any, g: Any, w: Any, k: Any, f: Any, a: Any, b: Any) -> None:
        q, r, k0, k1, k2, k3, k4, k5, k6, k7 = f[0], f[1], k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
        for i in range(g.shape[0]):
            both = mean(wide(u[i]) + wide(v[i]), r) * q
            d, x, y, _ = body(both, a[i], b[i], zero, w[i], k0, k1, k2, k3, k4, k5, k6, k7)
            a[i] = x
            b[i] = y
            new = w[i] + d
            g[i] = new
            n[i] = thin(new)

    def three(u: Any, v: Any, n: Any, g: Any, w: Any, k: Any, f: Any, a: Any, b: Any, c: Any) -> None:
        q, r, k0, k1, k2, k3, k4, k5, k6, k7 = f[0], f[1], k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
        for i in range(g.shape[0]):
            both = mean(wide(u[i]) + wide(v[i]), r) * q
            d, x, y, z = body(both, a[i], b[i], c[i], w[i], k0, k1, k2, k3, k4, k5, k6, k7)
            a[i] = x
            b[i] = y
            c[i] = z
            new = w[i] + d
            g[i] = new
            n[i] = thin(new)

    return (none, one, two, three)[RULES[rule]], frozenset()
