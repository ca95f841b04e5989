"""A visit of a block of columns: the block's own step while all others wait (``strategy.solver: coordinate``).

    g_b = X_b^T r / divisor + 2 l2 w_b
    delta = soft(w_b - rate g_b, rate l1) - w_b                                  a step along the block's gradient
    delta = -(2 X_b^T S X_b / divisor + 2 l2 I)^-1 g_b                           exact, of squared errors

The answer brings what the margins change by, X_b delta, so that the next block's residual is taken at the new weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView
from bigopt.models.penalties import Penalty
from bigopt.work_columns import Columns

Array = npt.NDArray[Any]


@wire
class Visited(NamedTuple):
    """What came of a visit; a round visits one block, so there is nothing to merge.

    Parameters
    ----------
    delta : ndarray, shape (d_b q,)
        What the block's weights change by.
    change : ndarray, shape (rows, q)
        What the margins change by.
    square : float
        Squared norm of the block's gradient.
    """

    delta: Array
    change: Array
    square: float

    def merge(self, other: Visited) -> Visited:
        """Refuse: blocks are visited one after the other."""
        raise TypeError(f"two blocks were visited at once: {len(self.delta)} and {len(other.delta)} weights")


@wire
@dataclass(frozen=True, eq=False)
class BlockVisit:
    """A visit; its leaf is ``(block, 0, 0, rows)``.

    Its inputs are the block's weights, the batch's units, r of shape (rows, q) in the block dtype, the weights of the
    rows (empty for ones), and (rate, divisor).

    Parameters
    ----------
    columns : Columns
    penalty : Penalty
    exact : bool
        Whether the block is solved for, of squared errors.
    damping : float
        Added to the diagonal of an exact block's matrix.
    """

    columns: Columns
    penalty: Penalty
    exact: bool
    damping: float = 0.0

    @property
    def view(self) -> DataView:
        """The rows it works on."""
        return self.columns.view

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Visited:
        """Return the block's step.

        Raises
        ------
        DivergedError
            Where the gradient is not finite, or an exact block's matrix has no inverse.
        """
        weights, units, residual, mass, (rate, divisor) = inputs
        block = int(unit[0])
        grad = self.columns.gradient(residual, block, units, meter) / divisor
        grad += 2.0 * self.penalty.l2 * weights
        square = float(np.dot(grad, grad))
        if not np.isfinite(square):
            raise DivergedError("the gradient is not finite", where=f"block {block}", hint="a smaller rate")
        if self.exact:
            delta = -self._solved(grad, block, units, mass, float(divisor), meter)
        else:
            u = weights - rate * grad
            delta = np.sign(u) * np.maximum(np.abs(u) - rate * self.penalty.l1, 0.0) - weights
        shape = self.columns.width(block), self.columns.outputs
        change = self.columns.margins(self.columns.cast(delta).reshape(shape), block, units, meter).values
        return Visited(delta, change, square)

    def _solved(self, grad: Array, block: int, units: Ints, mass: Array, divisor: float, meter: Meter) -> Array:
        """Return H^-1 g of a block's part of the Hessian, that of every output."""
        d = self.columns.width(block)
        H, at = np.zeros((d, d)), 0
        for rows in self.columns.rows(block, units, meter):
            for piece in self.columns.pieces(rows[0]):
                X = piece.astype(np.float64, copy=False)
                H += X.T @ (X if not len(mass) else X * mass[at : at + len(X), None])
                at += len(X)
        H *= 2.0 / divisor
        H[np.diag_indices(d)] += 2.0 * self.penalty.l2 + self.damping
        try:
            step: Array = np.linalg.solve(H, grad.reshape(d, self.columns.outputs).astype(np.float64))
        except np.linalg.LinAlgError:
            found, hint = "columns of the block depend on each other", "model.l2 or optimizer.damping"
            raise DivergedError(found, where=f"block {block}", hint=hint) from None
        return step.reshape(-1).astype(grad.dtype)
