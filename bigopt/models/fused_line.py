"""Losses at many points of a line from kept margins, as one compiled loop: the compiled `second.line_of_margins`.

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
from bigopt.models.fused_points import EXACT, POINTS
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


def signature() -> tuple[str, ...]:
    """Return the types of V, D, y, s, steps, scalars, out and scratch."""
    return (*("float64[::1]",) * 6, "float64[:,::1]", "float64[:,::1]")


def make_line(loss: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(V, D, y, s, steps, scalars, out, scratch)``.

    It writes ``out[0, j], out[1, j], out[2, j]``, the sums of loss, slope and curvature at steps[j], and ``out[3, 0]``,
    that of the weights; an empty s is ones. scalars holds Huber's threshold.
    """
    from numba import njit

    point, curve = njit(fastmath=set(EXACT))(POINTS[loss](np.float64)), njit(_CURVES[loss])

    def line(V: Any, D: Any, y: Any, s: Any, steps: Any, scalars: Any, out: Any, scratch: Any) -> None:
        rows, weighted, threshold = V.shape[0], s.shape[0] == V.shape[0], scalars[0]
        for j in range(steps.shape[0]):
            eta, total, slope, bend, mass = steps[j], 0.0, 0.0, 0.0, 0.0
            for lo in range(0, rows, _PIECE):
                n = min(_PIECE, rows - lo)
                v, delta, value = scratch[0, :n], scratch[1, :n], scratch[2, :n]
                labels = y[lo : lo + n]
                for r in range(n):
                    v[r] = V[lo + r] + eta * D[lo + r]
                point(v, labels, delta, value, threshold)
                for r in range(n):
                    scale, along = s[lo + r] if weighted else 1.0, D[lo + r]
                    total += scale * value[r]
                    slope += scale * (delta[r] * along)
                    bend += scale * (curve(delta[r], labels[r], threshold) * along * along)
                    mass += scale
            out[0, j], out[1, j], out[2, j], out[3, 0] = total, slope, bend, mass

    return line, frozenset()


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
