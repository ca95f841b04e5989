"""Clipping: parts in front of an optimizer that bound the gradient, entry by entry and as a whole.

A rare huge gradient (a steep wall, a batch of outliers) would throw the parameters far away. Clipping by value bounds
each entry and may turn the direction; clipping by norm keeps it. Where both are asked for, values come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.optim.ranges import check_range
from bigopt.optim.transform import NoState, Vector, norm, tiles


@wire
@dataclass(frozen=True)
class ClipValue:
    """g = min(max(g, -c), c), entry by entry.

    Parameters
    ----------
    clip_value : float
        c > 0.
    """

    clip_value: float

    def __post_init__(self) -> None:
        check_range("optimizer.clip_value", self.clip_value, 0.0, open_low=True)

    def init(self, params: Vector, layout: Layout) -> NoState:
        """Return the empty state."""
        return NoState()

    def update(
        self, grad: Vector, state: NoState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, NoState]:
        """Return the clipped gradient in its own buffer; see `Transform.update`."""
        np.clip(grad, -self.clip_value, self.clip_value, out=grad)
        return grad, state


@wire
@dataclass(frozen=True)
class ClipNorm:
    """g *= min(1, c / (norm(g) + 1e-6)), the Euclidean norm of all entries.

    Parameters
    ----------
    clip_norm : float
        c > 0.

    Notes
    -----
    Pascanu, Mikolov, Bengio (2013), as torch's ``clip_grad_norm_``.
    """

    clip_norm: float

    def __post_init__(self) -> None:
        check_range("optimizer.clip_norm", self.clip_norm, 0.0, open_low=True)

    def init(self, params: Vector, layout: Layout) -> NoState:
        """Return the empty state."""
        return NoState()

    def update(
        self, grad: Vector, state: NoState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, NoState]:
        """Return the scaled gradient in its own buffer; see `Transform.update`."""
        factor = self.clip_norm / (norm(grad) + 1e-6)
        if factor < 1.0:
            for s in tiles(grad.size):
                np.multiply(grad[s], factor, out=grad[s])
        return grad, state
