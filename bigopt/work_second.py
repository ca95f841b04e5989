"""What a slot computes for optimizers that ask more than a gradient: Hessian sums, and losses along a line.

Both are sums over rows like any other, folded in the same blocks and along the same tree as the gradient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import arrays, compiled
from bigopt.core.codec import wire
from bigopt.core.sums import HessianSums, LineSums
from bigopt.data.meter import Meter
from bigopt.data.notes import Note
from bigopt.data.plan import Ints
from bigopt.data.view import DataView
from bigopt.models import fused_line
from bigopt.models.base import Model
from bigopt.models.linear import LinearModel
from bigopt.models.second import LinePoints, Margins, hessian_sum, line_of_margins, line_of_points, margins
from bigopt.optim.linesearch import projected
from bigopt.work_rows import Rows, cast, row_blocks, unit_rows

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


class Along(NamedTuple):
    """A line, ready for the linear family: params and direction in the block dtype, etas, digest of the former two."""

    at: Any
    direction: Any
    steps: list[float]
    digest: bytes


class Points(NamedTuple):
    """The points of a line one by one, in the block dtype, and its direction in float64."""

    at: tuple[Any, ...]
    direction: Array


class Kept(NamedTuple):
    """Margins of a block of rows, with what else their losses need; all on the host."""

    margins: Margins
    y: Any
    weight: Array | None


@wire
@dataclass(frozen=True)
class LineSum:
    """Loss sums at params + eta_j direction for all etas in one pass; see `LineSums`.

    For the linear family the pass gives the margins X w and X d, of which all points are functions. They are kept
    beside the blocks (`BlockCache.note`), under a digest of params and direction: further rounds of the same search do
    not touch X. A note holds the very numbers that would be computed again, so where it is lost, on another slot or for
    want of memory, nothing changes but the time. For the same reason margins are *not* carried along a step, V + eta D
    in place of X (w + eta d): that differs in its last bits, and whether it was there to be used would then show.

    Parameters
    ----------
    model : Model
    view : DataView
    seed : int
    block_rows : int
    device : str
    slopes : bool
        Whether derivatives by eta are wanted; not for points that are projected to an orthant.
    kernels : str
        The kernel set of the run (`bigopt.core.compiled`).
    """

    model: Model
    view: DataView
    seed: int
    block_rows: int
    device: arrays.Device = "cpu"
    slopes: bool = True
    kernels: str = compiled.NUMPY

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast params and direction, or the points of the line, once to the block dtype."""
        compiled.uses_compiled(self.kernels)
        params, direction, steps, *orthant = inputs
        if isinstance(self.model, LinearModel) and not orthant:
            at, along = (np.ascontiguousarray(v, dtype=self.view.dtype) for v in (params, direction))
            digest = hashlib.blake2b(f"{self.model.outputs} {self.model.intercept} {self.block_rows}".encode())
            digest.update(at.data)
            digest.update(along.data)
            ready = (arrays.to_device(v, self.device) for v in (at, along))
            return Along(next(ready), next(ready), steps.tolist(), digest.digest())
        wide = direction.astype(np.float64)
        points = (params + eta * wide for eta in steps)
        if orthant:
            points = (projected(point, orthant[0]) for point in points)
        return Points(tuple(cast(point, self.view, self.device) for point in points), wide)

    def sums(self, inputs: tuple[Any, ...], rows: Rows) -> LineSums:
        """Fold the sums of the rows in blocks counted from the first one."""
        if isinstance(inputs, Points):
            return _folded(self._at_points(inputs, rows))
        assert isinstance(inputs, Along)
        return _folded(self._at_margins(inputs.steps, self._margins(inputs, rows)))

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> LineSums:
        """Return the unit's `LineSums`."""
        line = inputs if isinstance(inputs, Along) else None
        parts = None if line is None else meter.blocks.recall(self.view, unit, line.digest)
        if line is not None and parts is not None:
            total = _folded(self._at_margins(line.steps, parts))
            meter.rows += total.rows
            return total
        with meter.block(self.view, int(unit[0])) as entry:
            rows = unit_rows(entry, self.seed, unit)
            meter.rows += len(rows[0])
            if line is None:
                return self.sums(inputs, rows)
            note = meter.blocks.note(self.view, unit, line.digest, self._bytes(rows))
            total = _folded(self._at_margins(line.steps, self._margins(line, rows, note)))
            if note is not None:
                note.complete = True
            return total

    def _bytes(self, rows: Rows) -> int:
        X, y, weight = rows
        return 16 * len(X) * self.model.outputs + int(y.nbytes) + (0 if weight is None else weight.nbytes)

    def _margins(self, inputs: Along, rows: Rows, note: Note | None = None) -> Iterator[Kept]:
        """Compute the margins block by block, compiled ones of all rows at once, and write them into the note."""
        X, y, weight = rows
        assert isinstance(self.model, LinearModel)
        fused = self.kernels != compiled.NUMPY and self.device == "cpu" and fused_line.has_margins(self.model, X)
        step, compute = (len(X), fused_line.margins) if fused else (self.block_rows, margins)
        for lo in range(0, len(X), step):
            part = slice(lo, lo + step)
            found = compute(self.model, inputs.at, inputs.direction, arrays.to_device(X[part], self.device))
            kept = Kept(Margins(*(arrays.to_host(v) for v in found)), y[part], None if weight is None else weight[part])
            if note is not None:  # copies: a view would keep the block alive
                note.parts.append(Kept(kept.margins, kept.y.copy(), None if weight is None else weight[part].copy()))
            yield kept

    def _at_margins(self, steps: list[float], parts: Iterable[Kept]) -> Iterator[LineSums]:
        loss, fused = self.model.loss, self.kernels != compiled.NUMPY and self.device == "cpu"
        if fused and fused_line.has_line(loss, self.model.outputs):
            for kept in parts:
                found = fused_line.line_of_margins(loss, kept.margins, steps, kept.y, kept.weight, slopes=self.slopes)
                yield _finite(found, len(kept.y))
            return
        for kept in parts:
            V, D, y = (arrays.to_device(v, self.device) for v in (*kept.margins, kept.y))
            weight = None if kept.weight is None else arrays.to_device(kept.weight, self.device)
            found = line_of_margins(loss, Margins(V, D), steps, y, weight, slopes=self.slopes)
            yield _finite(found, len(kept.y))

    def _at_points(self, inputs: Points, rows: Rows) -> Iterator[LineSums]:
        for X, y, weight in row_blocks(rows, self.block_rows, self.device):
            found = line_of_points(self.model, *inputs, X, y, weight, slopes=self.slopes)
            yield _finite(found, len(X))


def _folded(parts: Iterator[LineSums]) -> LineSums:
    total: LineSums | None = None
    for part in parts:
        total = part if total is None else total.merge(part)
    assert total is not None, "a unit has rows"
    return total


def _finite(points: LinePoints, rows: int) -> LineSums:
    """A point where the loss overflows is infinitely bad: it adds up as such, without a warning."""
    bad = ~np.isfinite(points.values)
    if len(points.slopes):
        bad |= ~np.isfinite(points.slopes)
    values = np.where(bad, np.inf, points.values)
    slopes, curves = (np.where(bad, np.nan, x) if len(x) else x for x in (points.slopes, points.curves))
    return LineSums(values, slopes, curves, points.weight, rows)
