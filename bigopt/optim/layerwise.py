"""LARS and LAMB: the length of each layer's step follows the length of the layer's weights.

With very large batches one learning rate does not fit all layers: what is a small step for one is larger than the
weights of another. Both rules multiply the step of a layer by a trust ratio r, norm(w) over the norm of what would be
subtracted: LARS for momentum, LAMB for Adam. A layer is a block of the layout; intercepts have r = 1 and do not decay.
A layer of zeros has r = 1 too, else it could never leave zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.optim.adam import AdamWState, adam_delta, check_adam
from bigopt.optim.ranges import check_range
from bigopt.optim.transform import Vector, add_scaled, norm, owned, tiles

_TRUST: Final = 1e-3
"""LARS: the step of a layer over the length of its weights, at eta = 1 and without momentum."""


@wire
class LARSState(NamedTuple):
    """State of LARS.

    Parameters
    ----------
    D : ndarray, shape (p,)
        Velocity, with the learning rate inside; 0 before step 1.
    layout : Layout
        The layers.
    """

    D: Vector
    layout: Layout


@wire
@dataclass(frozen=True)
class LARS:
    """LARS: r = 1e-3 norm(w) / (norm(g) + wd norm(w)) per layer;  D = mu D - eta r (g + wd w);  w += D.

    Intercepts have r = 1 and wd = 0; r = 1 where w is zero, or the denominator.

    Parameters
    ----------
    momentum : float
        mu, 0 <= mu < 1.
    weight_decay : float
        wd >= 0.

    Notes
    -----
    You, Gitman, Ginsburg (2017), algorithm 1. Unlike `Momentum`, D holds the learning rate.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_range("optimizer.momentum", self.momentum, 0.0, 1.0)
        check_range("optimizer.weight_decay", self.weight_decay, 0.0)

    def init(self, params: Vector, layout: Layout) -> LARSState:
        """Return a velocity of zero."""
        return LARSState(np.zeros_like(params), layout)

    def update(
        self, grad: Vector, state: LARSState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, LARSState]:
        """Return D; see `Transform.update`."""
        D, eta, wd = owned(state.D), float(learning_rate), self.weight_decay
        for block, s in state.layout.slices():
            rate = eta
            if block.penalized:
                length = norm(params[s])
                below = norm(grad[s]) + wd * length
                rate *= _TRUST * length / below if length > 0.0 and below > 0.0 else 1.0
                if wd:
                    add_scaled(grad[s], wd, params[s])
            _advance(D[s], grad[s], self.momentum, rate)
        return grad, LARSState(D, state.layout)


@wire
@dataclass(frozen=True)
class LAMB:
    """LAMB: u = mh / (sqrt(vh) + eps) + wd w, r = norm(w)/norm(u) per layer;  w -= eta r u.

    mh and vh as in `Adam`. Intercepts have r = 1 and wd = 0; r = 1 where a norm is 0.

    Parameters
    ----------
    beta1, beta2 : float
        b1 and b2, 0 <= b < 1.
    eps : float
        > 0, outside the square root.
    weight_decay : float
        wd >= 0.

    Notes
    -----
    You et al. (2020), algorithm 2 with phi the identity and bias correction.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_adam(self.beta1, self.beta2, self.eps)
        check_range("optimizer.weight_decay", self.weight_decay, 0.0)

    def init(self, params: Vector, layout: Layout) -> AdamWState:
        """Return means of zero."""
        return AdamWState(np.zeros_like(params), np.zeros_like(params), layout)

    def update(
        self, grad: Vector, state: AdamWState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, AdamWState]:
        """Return -eta r u; see `Transform.update`."""
        m, v, eta = owned(state.m), owned(state.v), float(learning_rate)
        adam_delta(grad, m, v, step, -1.0, self.beta1, self.beta2, self.eps)  # u without the decay
        for block, s in state.layout.slices():
            rate = -eta
            if block.penalized:
                if self.weight_decay:
                    add_scaled(grad[s], self.weight_decay, params[s])
                length, below = norm(params[s]), norm(grad[s])
                rate *= length / below if length > 0.0 and below > 0.0 else 1.0
            np.multiply(grad[s], rate, out=grad[s])
        return grad, AdamWState(m, v, state.layout)


def _advance(D: Vector, grad: Vector, mu: float, rate: float) -> None:
    """Compute D = mu D - rate g and leave a copy of it in `grad`."""
    for s in tiles(grad.size):
        d, g = D[s], grad[s]
        np.multiply(d, mu, out=d)
        np.multiply(g, rate, out=g)
        np.subtract(d, g, out=d)
        g[...] = d
