"""What the member of a stage computes of an MLP whose layers are cut: its piece forward, or backward.

A turn of a stage is one round whose leaves are the stage's pieces (`bigopt.models.split`). The rows of a batch enter at
the lowest stage, whose workers read them; from there on v goes up and dloss/dv comes down through the driver, which
adds up the pieces' parts along the round's tree. Labels and sample weights go up beside v, so that the stages above
open no data.

A turn is pure: a backward order brings v of the stage below (and, at a top that is cut by units, the summed scores),
and the piece's forward is computed again. So nothing has to be there from the forward turn, and any order may be done
again anywhere with the same bits. Only the piece's parameters need not travel with every order of a step: they are kept
under the step's number (`bigopt.data.kept`), and a worker that has not got them says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.sums import added
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints, rows_of
from bigopt.data.view import DataView
from bigopt.models import kernels
from bigopt.models.mlp import MLP
from bigopt.models.split import Piece, Stage, loss_delta, pieces
from bigopt.work_rows import cast, row_blocks, unit_rows

Array = npt.NDArray[Any]
How = Literal["sum", "rows", "columns"]

PLAIN: Final = ("units", "bounds", "y", "weight")
"""Carried arrays that are not in the blocks' dtype."""


@wire
class Handed(NamedTuple):
    """What a piece hands on.

    Parameters
    ----------
    out : ndarray, shape (rows, width)
        v for the stage above, or s_i dloss_i/dv for the one below, in the blocks' dtype.
    how : {"sum", "rows", "columns"}
        What makes one of the pieces' `out`: their sum, or side by side.
    grad : ndarray, shape (k,)
        Of the piece's parameters, in ``run.dtype``; of several pieces one after the other, or the sum where each has
        all parameters (`summed`).
    summed : bool
    y, weight : ndarray
        Of the rows, from the lowest stage; shape (0,) where there are none.
    loss, total : float
        sum_i s_i loss_i and sum_i s_i, from the top.
    rows : int
        Rows behind the loss.
    missing : bool
        Whether a piece has not got its parameters; all else is then empty.
    """

    out: Array
    how: How
    grad: Array
    summed: bool
    y: Array
    weight: Array
    loss: float
    total: float
    rows: int
    missing: bool = False

    def merge(self, other: Handed) -> Handed:
        """Join what the next pieces hand on."""
        if self.missing or other.missing:
            return self if self.missing else other
        grad = added(self.grad, other.grad) if self.summed else np.concatenate([self.grad, other.grad])
        return Handed(
            _joined(self.how, self.out, other.out),
            self.how,
            grad,
            self.summed,
            _appended(self.y, other.y),
            _appended(self.weight, other.weight),
            self.loss + other.loss,
            self.total + other.total,
            self.rows + other.rows,
        )


def _joined(how: How, left: Array, right: Array) -> Array:
    if how == "sum":
        return added(left, right)
    return np.concatenate([left, right], axis=int(how == "columns"))


def _appended(left: Array, right: Array) -> Array:
    """Return both, one after the other; what is empty may be of any shape and dtype."""
    if not len(left) or not len(right):
        return left if len(left) else right
    return np.concatenate([left, right])


_NONE: Final = np.empty(0)
_MISSING: Final = Handed(_NONE, "sum", _NONE, True, _NONE, _NONE, 0.0, 0.0, 0, missing=True)


@wire
@dataclass(frozen=True)
class StageTurn:
    """Forward or backward of the pieces of a stage, for the rows of a batch or of a part of it.

    A unit is ``(part, walk, version, 0)``: which piece, which part of the batch, and the number of the step whose
    parameters it takes. Inputs are the arrays named by `carried`, then the parameters of each piece, empty where the
    worker is to have them.

    Parameters
    ----------
    model : MLP
        The whole one.
    view : DataView
        The training rows.
    stage : Stage
    back : bool
        Backward.
    run : str
        Token of the run, under which parameters are kept.
    seed : int
        Of the plan.
    dtype : str
        ``run.dtype``.
    block_rows : int
    """

    model: MLP
    view: DataView
    stage: Stage
    back: bool
    run: str
    seed: int
    dtype: str
    block_rows: int

    @property
    def bottom(self) -> bool:
        """Whether the stage reads the rows."""
        return self.stage.first == 0

    @property
    def top(self) -> bool:
        """Whether the stage ends with the scores."""
        return self.stage.last == len(self.model.layers)

    @cached_property
    def carried(self) -> tuple[str, ...]:
        """Names of the arrays that an order brings besides parameters.

        ``units`` (k, 4) and ``bounds`` (parts + 1,) or (2,): which rows, and where each part's begin among them; ``v``
        (rows, in) of the stage below; ``y`` and ``weight``; ``scores`` (rows, outputs), summed over the pieces of the
        top; ``delta`` (rows, out), s_i dloss_i/dv.
        """
        names = ["units", "bounds"] if self.bottom else ["v"]
        if self.back and not self.top:
            names.append("delta")
        elif self.back:
            names += [] if self.bottom else ["y", "weight"]
            names += ["scores"] if self.stage.by_units else []
        return tuple(names)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces of the stage's parameters."""
        return pieces(self.model, self.stage)

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Convert what is not labels, weights or units to the block dtype, once an order."""
        names = self.carried
        given: dict[str, Any] = {}
        for name, array in zip(names, inputs, strict=False):
            given[name] = array if name in PLAIN else cast(array, self.view, "cpu")
        return given, tuple(cast(p, self.view, "cpu") if p.size else None for p in inputs[len(names) :])

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Handed:
        """Return what one piece hands on."""
        given, params = inputs
        part, version, stage = int(unit[0]), int(unit[2]), self.stage
        piece = self.pieces[part if stage.by_units else 0]
        mine, name = params[piece.part], f"layers {stage.first}..{stage.last}"
        if mine is not None:
            meter.blocks.kept.put(self.run, name, piece.part, version, mine)
        else:
            mine = meter.blocks.kept.get(self.run, name, piece.part, version)
        if mine is None:
            return _MISSING
        turn = self._down if self.back else self._up
        return turn(piece, mine, given, part, meter)

    def _up(self, piece: Piece, params: Any, given: dict[str, Any], part: int, meter: Meter) -> Handed:
        """Return v, and from the lowest stage the labels and weights."""
        found, labels, masses = [self._empty(self.model.layers[self.stage.last - 1][1])], list[Array](), list[Array]()
        for _, x, y, weight in self._rows(piece, given, part, meter):
            found.append(piece.output(params, piece.inputs(params, x)))
            if y is not None and not self.top:
                labels.append(np.array(y))
            if weight is not None and not self.top:
                masses.append(np.array(weight))
        if self.stage.by_units and part:  # one piece is enough
            labels, masses = [y[:0] for y in labels], [weight[:0] for weight in masses]
        y = np.concatenate(labels) if labels else _NONE
        weight = np.concatenate(masses) if masses else _NONE
        how: How = "sum" if self.stage.by_units else "rows"
        return Handed(np.concatenate(found), how, _NONE, True, y, weight, 0.0, 0.0, 0)

    def _down(self, piece: Piece, params: Any, given: dict[str, Any], part: int, meter: Meter) -> Handed:
        """Return the gradient, dloss/dv of the stage below, and from the top the loss."""
        stage, below = self.stage, not self.bottom
        single = stage.by_units and stage.last - stage.first == 1
        width = self.model.layers[stage.first][0]
        found = [self._empty(len(range(*piece.units.indices(width))) if single else width)] if below else []
        grad: Array | None = None
        loss = total = 0.0
        rows = 0
        for at, x, y, weight in self._rows(piece, given, part, meter):
            inner, part_of = piece.inputs(params, x), slice(at, at + len(x))
            if self.top:
                scores = given["scores"][part_of] if stage.by_units else None
                v = piece.output(params, inner) if scores is None else scores.copy()
                value, delta = loss_delta(self.model, v, y, weight)
                value, mass = kernels.totals(value, weight)
                if part == 0 or not stage.by_units:
                    loss, total, rows = loss + value, total + mass, rows + len(x)
            else:
                delta = given["delta"][part_of]
            own, handed = piece.gradient(params, inner, delta, below=below)
            if grad is None:
                grad = own.astype(self.dtype, copy=False)
            else:
                grad += own
            if handed is not None:
                found.append(handed)
        if grad is None:  # no rows
            grad = np.zeros(piece.layout.size, dtype=self.dtype)
        out = np.concatenate(found) if found else _NONE
        how: How = "columns" if single and below else "sum" if stage.by_units and below else "rows"
        return Handed(out, how, grad, not stage.by_units, _NONE, _NONE, loss, total, rows)

    def _rows(
        self, piece: Piece, given: dict[str, Any], part: int, meter: Meter
    ) -> Iterator[tuple[int, Any, Any, Any | None]]:
        """Yield (number of the first row in the walk, x, y, weight) of blocks: read, or from the stage below."""
        if self.bottom:
            yield from self._read(given, part, meter)
            return
        v, y = given["v"], given.get("y")
        weight = given.get("weight")
        if weight is not None and weight.size == 0:
            weight = None
        for at in range(0, len(v), self.block_rows):
            block = slice(at, at + self.block_rows)
            yield at, piece.entered(v[block]), *(None if a is None else a[block] for a in (y, weight))

    def _read(self, given: dict[str, Any], part: int, meter: Meter) -> Iterator[tuple[int, Any, Any, Any | None]]:
        bounds = given["bounds"]
        first, last = (int(bounds[part]), int(bounds[part + 1])) if len(bounds) > 2 else (0, int(bounds[-1]))
        units = given["units"][first:last]
        own = Meter(meter.blocks, order=tuple(units[:, 0].tolist()), buffers=meter.buffers)
        at = rows_of(given["units"][:first])
        for unit in units:
            with own.block(self.view, int(unit[0])) as entry:
                for X, y, weight in row_blocks(
                    unit_rows(entry, self.seed, unit, meter.buffers), self.block_rows, "cpu"
                ):
                    yield at, X, y, weight
                    at += len(X)
        meter.bytes_read += own.bytes_read
        if part == 0 or not self.stage.by_units:
            meter.rows += rows_of(units)

    def _empty(self, width: int) -> Array:
        return np.empty((0, width), dtype=self.view.dtype)
