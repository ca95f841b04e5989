"""Steepest descent and its two momenta.

All entries share one learning rate. The velocity D of momentum is kept without eta, D = mu D - g, as torch keeps it:
a change of the schedule acts on the whole velocity at once, and with a constant gradient the step tends to
-eta g / (1 - mu).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.optim.ranges import check_range
from bigopt.optim.transform import NoState, Vector, owned, scratch, tiles


@wire
@dataclass(frozen=True)
class SGD:
    """Steepest descent: w -= eta g.

    ``gd`` and ``sgd`` are this rule; they differ in the batch behind g (all rows, or some).
    """

    def init(self, params: Vector, layout: Layout) -> NoState:
        """Return the empty state."""
        return NoState()

    def update(
        self, grad: Vector, state: NoState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, NoState]:
        """Return -eta g in the gradient's buffer; see `Transform.update`."""
        np.multiply(grad, -float(learning_rate), out=grad)
        return grad, state

    def scale(self, state: NoState, step: int, s: slice, out: Vector) -> float:
        """Return 1: all entries share the learning rate; see `bigopt.optim.proximal.Scaled`."""
        return 1.0


@wire
class Velocity(NamedTuple):
    """State of the momenta.

    Parameters
    ----------
    D : ndarray, shape (p,)
        Velocity without the learning rate; 0 before step 1.
    """

    D: Vector


@wire
@dataclass(frozen=True)
class Momentum:
    """Heavy ball: D = mu D - g;  w += eta D.

    Parameters
    ----------
    momentum : float
        mu, 0 <= mu < 1. If all gradients agree the effective rate is eta / (1 - mu).

    Notes
    -----
    Polyak (1964), in torch's form. Sutskever et al. (2013) keep eta inside D: the same steps for a constant eta only.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_range("optimizer.momentum", self.momentum, 0.0, 1.0)

    def init(self, params: Vector, layout: Layout) -> Velocity:
        """Return a velocity of zero."""
        return Velocity(np.zeros_like(params))

    def update(
        self, grad: Vector, state: Velocity, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, Velocity]:
        """Return eta D; see `Transform.update`."""
        D, eta = owned(state.D), float(learning_rate)
        for s in tiles(grad.size):
            d, g = D[s], grad[s]
            np.multiply(d, self.momentum, out=d)
            np.subtract(d, g, out=d)
            np.multiply(d, eta, out=g)
        return grad, Velocity(D)


@wire
@dataclass(frozen=True)
class Nesterov:
    """Nesterov's momentum: D = mu D - g;  w += eta (mu D - g).

    Parameters
    ----------
    momentum : float
        mu, 0 <= mu < 1.

    Notes
    -----
    Torch's form: w is the look-ahead point and g is taken at w, so no gradient at a second point is needed.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_range("optimizer.momentum", self.momentum, 0.0, 1.0)

    def init(self, params: Vector, layout: Layout) -> Velocity:
        """Return a velocity of zero."""
        return Velocity(np.zeros_like(params))

    def update(
        self, grad: Vector, state: Velocity, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, Velocity]:
        """Return eta (mu D - g); see `Transform.update`."""
        D, eta, mu = owned(state.D), float(learning_rate), self.momentum
        work = scratch(grad)
        for s in tiles(grad.size):
            d, g, h = D[s], grad[s], work[: s.stop - s.start]
            np.multiply(d, mu, out=d)
            np.subtract(d, g, out=d)
            np.multiply(d, mu, out=h)
            np.subtract(h, g, out=g)
            np.multiply(g, eta, out=g)
        return grad, Velocity(D)
