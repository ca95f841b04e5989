"""Penalties: taken once, on the driver, on the mean.

``penalty(w) = l2 ||w||^2``, without a 1/2 and without intercepts; its gradient is ``2 l2 w``. So ridge solves
``(X^T S X / W + l2 I) w = X^T S y / W``: scikit-learn's Ridge has alpha = W l2, its LogisticRegression
C = 1 / (2 W l2), torch's coupled weight_decay is 2 l2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.core.layout import Layout


@wire
@dataclass(frozen=True)
class Penalty:
    """l2 ||w||^2 over the penalised blocks of a layout.

    Parameters
    ----------
    l2 : float
        At least 0.
    """

    l2: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.l2) and self.l2 >= 0.0):
            raise ConfError(f"{self.l2} is not a number of at least 0", where="model.l2")

    def value(self, params: npt.NDArray[Any], layout: Layout) -> float:
        """Return l2 ||w||^2 in float64; params has shape (p,)."""
        if self.l2 == 0.0:
            return 0.0
        squares = (np.sum(np.square(params[s], dtype=np.float64)) for b, s in layout.slices() if b.penalized)
        return self.l2 * float(sum(squares))

    def add_gradient(self, grad: npt.NDArray[Any], params: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
        """Add 2 l2 w to the mean gradient, in its own memory, and return it; both have shape (p,)."""
        if self.l2 != 0.0:
            for block, s in layout.slices():
                if block.penalized:
                    grad[s] += 2.0 * self.l2 * params[s]
        return grad
