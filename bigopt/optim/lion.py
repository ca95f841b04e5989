"""Lion: every entry moves by the same amount, and only the sign of a momentum decides in which direction.

The sign is taken of a mean in which the newest gradient counts more (b1) than in the one that is remembered (b2). As
the step does not shrink with the gradient, the learning rate is a tenth to a third of Adam's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.optim.adam import running_mean
from bigopt.optim.ranges import check_range
from bigopt.optim.transform import Vector, add_scaled, owned, scratch, tiles


@wire
class LionState(NamedTuple):
    """State of Lion.

    Parameters
    ----------
    m : ndarray, shape (p,)
        Running mean of g; 0 before step 1.
    layout : Layout
        Says which entries decay.
    """

    m: Vector
    layout: Layout


@wire
@dataclass(frozen=True)
class Lion:
    """Lion: c = b1 m + (1-b1) g;  w -= eta (sign(c) + wd w);  m = b2 m + (1-b2) g.

    sign(0) = 0. Intercepts (blocks of the layout that are not penalised) do not decay.

    Parameters
    ----------
    beta1, beta2 : float
        b1 and b2, 0 <= b < 1.
    weight_decay : float
        wd >= 0.

    Notes
    -----
    Chen et al. (2023), algorithm 2.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_range("optimizer.beta1", self.beta1, 0.0, 1.0)
        check_range("optimizer.beta2", self.beta2, 0.0, 1.0)
        check_range("optimizer.weight_decay", self.weight_decay, 0.0)

    def init(self, params: Vector, layout: Layout) -> LionState:
        """Return a mean of zero."""
        return LionState(np.zeros_like(params), layout)

    def update(
        self, grad: Vector, state: LionState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, LionState]:
        """Return -eta (sign(c) + wd w), wd on the penalised entries only; see `Transform.update`."""
        m, eta = owned(state.m), float(learning_rate)
        work, other = scratch(grad), scratch(grad)
        for s in tiles(grad.size):
            g, m_s, h, c = grad[s], m[s], work[: s.stop - s.start], other[: s.stop - s.start]
            np.multiply(m_s, self.beta1, out=c)
            np.multiply(g, 1.0 - self.beta1, out=h)
            np.add(c, h, out=c)
            np.sign(c, out=c)
            running_mean(m_s, g, self.beta2)
            np.multiply(c, -eta, out=g)
        if self.weight_decay:
            for block, s in state.layout.slices():
                if block.penalized:
                    add_scaled(grad[s], -eta * self.weight_decay, params[s])
        return grad, LionState(m, state.layout)
