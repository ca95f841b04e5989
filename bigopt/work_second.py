"""What a slot computes for optimizers that ask more than a gradient: Hessian sums, and losses along a line.

Both are sums over rows like any other, folded in the same blocks and along the same tree as the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.core import arrays
from bigopt.core.codec import wire
from bigopt.core.sums import HessianSums, LineSums
from bigopt.data.cache import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView
from bigopt.models.base import Model
from bigopt.models.linear import LinearModel
from bigopt.models.second import LinePoints, hessian_sum, line_of_margins, line_of_points, margins
from bigopt.work import Rows, cast, row_blocks, unit_rows

Array = npt.NDArray[Any]


@wire
@dataclass(frozen=True)
class HessianSum:
    """Hessian, gradient and loss sums at some params, for the linear family.

    Parameters
    ----------
    model : LinearModel
    view : DataView
    seed : int
    dtype : str
        ``run.dtype``.
    block_rows : int
    device : str
    """

    model: LinearModel
    view: DataView
    seed: int
    dtype: str
    block_rows: int
    device: arrays.Device = "cpu"

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast params once to the block dtype."""
        return (cast(inputs[0], self.view, self.device),)

    def sums(self, inputs: tuple[Any, ...], rows: Rows) -> HessianSums:
        """Fold the sums of the rows in blocks counted from the first one."""
        grad: Any = None
        hessian: Any = None
        loss = total = 0.0
        for X, y, weight in row_blocks(rows, self.block_rows, self.device):
            g, h, value, mass = hessian_sum(self.model, inputs[0], X, y, weight)
            if grad is None:
                grad, hessian = g.astype(self.dtype, copy=False), h.astype(self.dtype, copy=False)
            else:
                grad += g
                hessian += h
            loss, total = loss + float(value), total + float(mass)
        return HessianSums(arrays.to_host(grad), arrays.to_host(hessian), loss, total, len(rows[0]))

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> HessianSums:
        """Return the unit's `HessianSums`."""
        with meter.block(self.view, int(unit[0])) as entry:
            rows = unit_rows(entry, self.seed, unit)
            meter.rows += len(rows[0])
            return self.sums(inputs, rows)


@wire
@dataclass(frozen=True)
class LineSum:
    """Loss sums at params + eta_j direction for all etas in one pass; see `LineSums`.

    Parameters
    ----------
    model : Model
        For the linear family X is read once, whatever the number of etas.
    view : DataView
    seed : int
    block_rows : int
    device : str
    slopes : bool
        Whether derivatives by eta are wanted.
    """

    model: Model
    view: DataView
    seed: int
    block_rows: int
    device: arrays.Device = "cpu"
    slopes: bool = True

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast params and direction, or the points of the line, once to the block dtype."""
        params, direction, steps = inputs
        if isinstance(self.model, LinearModel):
            return cast(params, self.view, self.device), cast(direction, self.view, self.device), steps
        wide = direction.astype(np.float64)
        return tuple(cast(params + eta * wide, self.view, self.device) for eta in steps), wide, steps

    def sums(self, inputs: tuple[Any, ...], rows: Rows) -> LineSums:
        """Fold the sums of the rows in blocks counted from the first one."""
        total: LineSums | None = None
        for X, y, weight in row_blocks(rows, self.block_rows, self.device):
            at, direction, steps = inputs
            if isinstance(self.model, LinearModel):
                kept = margins(self.model, at, direction, X)
                points = line_of_margins(self.model.loss, kept, steps, y, weight, slopes=self.slopes)
            else:
                points = line_of_points(self.model, at, direction, X, y, weight, slopes=self.slopes)
            part = _finite(points, len(X))
            total = part if total is None else total.merge(part)
        assert total is not None, "a unit has rows"
        return total

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> LineSums:
        """Return the unit's `LineSums`."""
        with meter.block(self.view, int(unit[0])) as entry:
            rows = unit_rows(entry, self.seed, unit)
            meter.rows += len(rows[0])
            return self.sums(inputs, rows)


def _finite(points: LinePoints, rows: int) -> LineSums:
    """A point where the loss overflows is infinitely bad: it adds up as such, without a warning."""
    bad = ~np.isfinite(points.values)
    if len(points.slopes):
        bad |= ~np.isfinite(points.slopes)
    values = np.where(bad, np.inf, points.values)
    slopes, curves = (np.where(bad, np.nan, x) if len(x) else x for x in (points.slopes, points.curves))
    return LineSums(values, slopes, curves, points.weight, rows)
