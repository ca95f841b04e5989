"""L1 penalties by proximal steps: the smooth part makes a step, then the weights are soft-thresholded.

abs(w) has no gradient at 0, where the solution wants many weights to be. Instead of a subgradient, which never gives a
zero, the step of the smooth part is followed by the exact minimiser of

    l1 ||w||_1 + (1/2 eta) sum_i (w_i - u_i)^2 / c_i    u: where the smooth step ended, c: the optimizer's metric,

which is w_i = sign(u_i) max(abs(u_i) - eta l1 c_i, 0): exact zeros. c_i is what the optimizer multiplies its gradient
by (1 for sgd, 1/(sqrt(vh)+eps) for adam, ...): in any other metric the fixed points would not be those of the problem.
So at the end abs(g_i) <= l1 where w_i = 0, and g_i = -l1 sign(w_i) elsewhere.

Momentum is the exception with a rule of its own: its step remembers earlier gradients, and must remember earlier
thresholds too. Intercepts are never thresholded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.optim.descent import Momentum
from bigopt.optim.ranges import check_range
from bigopt.optim.transform import TILE, Transform, Vector, owned, scratch

S = TypeVar("S")


class Scaled(Transform[S], Protocol[S]):
    """A transform that multiplies each entry of the (averaged) gradient by eta and a factor of its own."""

    def scale(self, state: S, step: int, s: slice, out: Vector) -> float | Vector:
        """Return the factors c of the entries `s` in the step that led to `state`.

        Parameters
        ----------
        state : State
            After `update`.
        step : int
            t of that update.
        s : slice
        out : ndarray, shape (s.stop - s.start,)
            Where the factors may be written.
        """
        ...


@wire
class ProximalState(NamedTuple):
    """State of a proximal transform.

    Parameters
    ----------
    inner : State
        Of the transform inside.
    layout : Layout
        Says which entries are penalised.
    """

    inner: Any
    layout: Layout


@wire
@dataclass(frozen=True)
class Proximal:
    """w = soft(w + delta, eta l1 c): the inner transform's step, then a soft threshold in its own metric.

    Parameters
    ----------
    inner : Scaled
    l1 : float
        > 0, of the penalty l1 ||w||_1.

    Notes
    -----
    Forward-backward splitting; Duchi, Hazan, Singer (2011), section 5 for the diagonal metric.
    """

    inner: Scaled[Any]
    l1: float

    def __post_init__(self) -> None:
        check_range("model.l1", self.l1, 0.0, open_low=True)

    def init(self, params: Vector, layout: Layout) -> ProximalState:
        """Return the inner transform's state."""
        return ProximalState(self.inner.init(params, layout), layout)

    def update(
        self, grad: Vector, state: ProximalState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, ProximalState]:
        """Return the proximal step; see `Transform.update`."""
        delta, inner = self.inner.update(grad, state.inner, params, step, learning_rate)
        threshold = float(learning_rate) * self.l1
        work, other = scratch(delta), scratch(delta)
        for s in penalized_tiles(state.layout):
            h, t = work[: s.stop - s.start], other[: s.stop - s.start]
            soft_step(delta[s], params[s], np.multiply(self.inner.scale(inner, step, s, t), threshold, out=t), h)
        return delta, ProximalState(inner, state.layout)


@wire
@dataclass(frozen=True)
class ProximalMomentum:
    """w' = soft(w - eta g + mu (eta_t/eta_{t-1}) (w - w_prev), eta l1): heavy ball with an L1 penalty.

    In the letters of `Momentum`: D = mu D - g, u = w + eta D, w' = soft(u, eta l1), and D becomes (w' - w)/eta. D thus
    holds the penalty's subgradient as it holds the gradients. (Thresholding after D = mu D - g without taking note in D
    would make l1 too weak by the factor 1 - mu.)

    Parameters
    ----------
    momentum : float
        mu, 0 <= mu < 1.
    l1 : float
        > 0, of the penalty l1 ||w||_1.
    """

    momentum: float
    l1: float

    def __post_init__(self) -> None:
        check_range("optimizer.momentum", self.momentum, 0.0, 1.0)
        check_range("model.l1", self.l1, 0.0, open_low=True)

    def init(self, params: Vector, layout: Layout) -> ProximalState:
        """Return a velocity of zero."""
        return ProximalState(Momentum(self.momentum).init(params, layout), layout)

    def update(
        self, grad: Vector, state: ProximalState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, ProximalState]:
        """Return the proximal step; see `Transform.update`.

        D loses what the threshold took: clip(w/eta + D, -l1, l1), which needs no division of a small difference by a
        small eta; at eta = 0 (the foot of an annealing) it is the limit l1 sign(w).
        """
        eta = float(learning_rate)
        velocity = state.inner._replace(D=owned(state.inner.D))
        delta, inner = Momentum(self.momentum).update(grad, velocity, params, step, eta)
        work, other = scratch(delta), scratch(delta)
        unit = max(eta, float(np.finfo(delta.dtype).tiny))
        for s in penalized_tiles(state.layout):
            D, h = inner.D[s], work[: s.stop - s.start]
            np.divide(params[s], unit, out=h)
            np.add(h, D, out=h)
            np.clip(h, -self.l1, self.l1, out=h)
            np.subtract(D, h, out=D)
            t = other[: s.stop - s.start]
            t.fill(eta * self.l1)
            soft_step(delta[s], params[s], t, h)
        return delta, ProximalState(inner, state.layout)


def soft_step(delta: Vector, params: Vector, threshold: Vector, work: Vector) -> None:
    """Turn a step to u = w + delta into the step to soft(u, threshold), in place.

    All of the same shape; `threshold` (>= 0) and `work` are overwritten. Where the result is zero delta is -w, so that
    w + delta is zero to the bit.
    """
    u = np.add(params, delta, out=work)
    np.abs(u, out=delta)
    np.subtract(delta, threshold, out=delta)
    np.maximum(delta, 0.0, out=delta)
    np.copysign(delta, u, out=delta)
    np.subtract(delta, params, out=delta)


def penalized_tiles(layout: Layout) -> Iterator[slice]:
    """Cut the penalised blocks into slices of at most `TILE` entries."""
    for block, s in layout.slices():
        if block.penalized:
            for start in range(s.start, s.stop, TILE):
                yield slice(start, min(start + TILE, s.stop))
