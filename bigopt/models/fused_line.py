"""Margins of a unit's rows, and losses at many points of a line from them, as compiled loops: `second.margins` and
`second.line_of_margins` of the compiled set.

One pass over X gives the scores V = X w + b and their change D = X d + d_b along a direction: products and sums of a
row in the block's dtype, then float64. They are all that a line search needs of X.

For each eta, v = V + eta D; the loss, its slope dl/dv D and its curvature d2l/dv2 D^2 are added over the rows, in
float64. Rows go in pieces that stay in the processor's first cache, so that exp and log1p are vector instructions
(`bigopt.models.fused_points`). The curvature follows from the derivative delta = dl/dv:

    binary cross-entropy    s (1 - s),   s = delta + y
    squared                 2
    squared hinge           2 where delta is not 0
    Huber                   2 where |delta| < 2 threshold
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bigopt.core import compiled
from bigopt.models.fused_linear import SUMS, WIDTH, make_prefetch
from bigopt.models.fused_points import EXACT, POINTS
from bigopt.models.linear import LinearModel
from bigopt.models.losses import HuberLoss, Loss
from bigopt.models.second import LinePoints, Margins

_PIECE: Final = 512
"""Rows of a piece."""
_NO_WEIGHT: Final = np.empty(0)

Curve = Callable[[Any, Any, Any], Any]


def _binary(delta: Any, y: Any, _: Any) -> Any:
    s = delta + y
    return s * (1.0 - s)


def _two(_delta: Any, _y: Any, _: Any) -> Any:
    return 2.0


def _where_bent(delta: Any, _y: Any, _: Any) -> Any:
    return 2.0 if delta != 0.0 else 0.0


def _within(delta: Any, _y: Any, threshold: Any) -> Any:
    return 2.0 if abs(delta) < 2.0 * threshold else 0.0


_CURVES: Final[Mapping[str, Curve]] = MappingProxyType(
    {"binary_cross_entropy": _binary, "squared": _two, "squared_hinge": _where_bent, "huber": _within}
)


def has_line(loss: Loss, outputs: int) -> bool:
    """Return whether a loss has a compiled line."""
    return outputs == 1 and loss.name in _CURVES


def has_margins(model: LinearModel, X: Any) -> bool:
    """Return whether the margins of a unit's rows, and a line of them, are compiled."""
    return isinstance(X, np.ndarray) and X.dtype.name in ("float32", "float64") and has_line(model.loss, model.outputs)


def margins_signature(dtype: str) -> tuple[str, ...]:
    """Return the types of X, w, along, (b, b along), V, D and scratch."""
    return (f"{dtype}[:,::1]", *(f"{dtype}[::1]",) * 3, *("float64[::1]",) * 2, f"{dtype}[:,::1]")


def make_margins(dtype: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(X, w, along, scalars, V, D, scratch)``, which writes ``V = X w + b`` and D, all in one pass.

    Two rows at a time; the columns at the end of a row that are no whole vector are done as one that overlaps the
    last, with zeros for what was added already.
    """
    zero, prefetch, line = np.dtype(dtype).type(0), make_prefetch(), 64 // np.dtype(dtype).itemsize

    def both(X: Any, w: Any, along: Any, scalars: Any, V: Any, D: Any, scratch: Any) -> None:
        n, d = X.shape
        whole, end = d // WIDTH * WIDTH, d - WIDTH
        if end < 0:
            whole = d
        last, turn = scratch[0], scratch[1]
        for k in range(WIDTH):
            late = whole < d and end + k >= whole
            last[k] = w[end + k] if late else zero
            turn[k] = along[end + k] if late else zero
        b, c = scalars[0], scalars[1]
        r = 0
        while r + 2 <= n:
            ahead = (r + 16) * d
            for _ in range(2 * d // line + 1):
                prefetch(X, ahead)
                ahead += line
            s0, s1, t0, t1 = zero, zero, zero, zero
            for j in range(whole):
                p, q, x0, x1 = w[j], along[j], X[r, j], X[r + 1, j]
                s0 += x0 * p
                s1 += x1 * p
                t0 += x0 * q
                t1 += x1 * q
            if whole < d:
                for k in range(WIDTH):
                    p, q, x0, x1 = last[k], turn[k], X[r, end + k], X[r + 1, end + k]
                    s0 += x0 * p
                    s1 += x1 * p
                    t0 += x0 * q
                    t1 += x1 * q
            V[r], V[r + 1], D[r], D[r + 1] = s0 + b, s1 + b, t0 + c, t1 + c
            r += 2
        if r < n:
            s0, t0 = zero, zero
            for j in range(d):
                s0 += X[r, j] * w[j]
                t0 += X[r, j] * along[j]
            V[r], D[r] = s0 + b, t0 + c

    return both, SUMS


def margins(model: LinearModel, params: Any, direction: Any, X: Any) -> Margins:
    """Return what `second.margins` returns, for all rows of a unit; the model `has_margins`, the dtypes are X's."""
    dtype, d = X.dtype.name, model.features
    run = compiled.kernel(make_margins, (dtype,), margins_signature(dtype))
    V, D = np.empty(len(X)), np.empty(len(X))
    scalars = np.array([params[d], direction[d]] if model.intercept else [0.0, 0.0], dtype=dtype)
    w, along = (np.ascontiguousarray(v[:d], dtype=dtype) for v in (params, direction))
    run(np.ascontiguousarray(X), w, along, scalars, V, D, np.empty((2, WIDTH), dtype=dtype))
    return Margins(V[:, None], D[:, None])


def signature() -> tuple[str, ...]:
    """Return the types of V, D, y, s, steps, scalars, out and scratch."""
    return (*("float64[::1]",) * 6, "float64[:,::1]", "float64[:,::1]")


def make_line(loss: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(V, D, y, s, steps, scalars, out, scratch)``.

    It adds the sums of loss, slope and curvature at steps[j] to ``out[0, j], out[1, j], out[2, j]``, and writes that of
    the weights to ``out[3, 0]``; an empty s is ones. scalars holds Huber's threshold. All points are taken of a piece
    before the next one; sums within a piece may be taken in any order, always the same.
    """
    from numba import njit

    point, curve = njit(fastmath=set(EXACT))(POINTS[loss](np.float64)), njit(_CURVES[loss])

    def line(V: Any, D: Any, y: Any, s: Any, steps: Any, scalars: Any, out: Any, scratch: Any) -> None:
        rows, weighted, threshold = V.shape[0], s.shape[0] == V.shape[0], scalars[0]
        mass = 0.0 if weighted else float(rows)
        if weighted:
            for r in range(rows):
                mass += s[r]
        out[3, 0] = mass
        for lo in range(0, rows, _PIECE):
            n = min(_PIECE, rows - lo)
            v, delta, value = scratch[0, :n], scratch[1, :n], scratch[2, :n]
            start, turn, labels = V[lo : lo + n], D[lo : lo + n], y[lo : lo + n]
            for j in range(steps.shape[0]):
                eta, total, slope, bend = steps[j], 0.0, 0.0, 0.0
                for r in range(n):
                    v[r] = start[r] + eta * turn[r]
                point(v, labels, delta, value, threshold)
                if weighted:
                    scale = s[lo : lo + n]
                    for r in range(n):
                        total += scale[r] * value[r]
                        slope += scale[r] * (delta[r] * turn[r])
                        bend += scale[r] * (curve(delta[r], labels[r], threshold) * turn[r] * turn[r])
                else:
                    for r in range(n):
                        total += value[r]
                        slope += delta[r] * turn[r]
                        bend += curve(delta[r], labels[r], threshold) * turn[r] * turn[r]
                out[0, j] += total
                out[1, j] += slope
                out[2, j] += bend

    return line, SUMS


def line_of_margins(
    loss: Loss, kept: Margins, steps: Sequence[float], y: Any, weight: Any | None, *, slopes: bool
) -> LinePoints:
    """Return what `second.line_of_margins` returns; the loss `has_line`, margins are of one output."""
    run = compiled.kernel(make_line, (loss.name,), signature())
    out = np.zeros((4, max(1, len(steps))))
    V, D, labels = (np.ascontiguousarray(np.asarray(a).reshape(-1), dtype=np.float64) for a in (*kept, y))
    s = _NO_WEIGHT if weight is None else np.ascontiguousarray(weight, dtype=np.float64)
    scalars = np.array([loss.threshold if isinstance(loss, HuberLoss) else 0.0])
    run(V, D, labels, s, np.array(steps, dtype=np.float64), scalars, out, np.empty((3, _PIECE)))
    none = np.empty(0)
    return LinePoints(out[0], out[1] if slopes else none, out[2] if slopes else none, float(out[3, 0]))
