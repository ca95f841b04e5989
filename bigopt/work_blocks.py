"""A block of columns that updates itself: what a worker computes under ``strategy.update_on: worker``.

The weights of a block and their optimizer's state stay with the worker that holds its columns
(`bigopt.data.kept`); version k of them is what k updates have made. One order is a whole step: it brings the residual
of the last batch, the worker takes its part of the gradient, updates its block, and answers with the partial margins
of the next batch,

    g_b = X_b^T r / divisor + penalty's gradient;   w_b, state_b = transform(g_b; rate);   answer X_b' w_b

so that only vectors of the length of a batch travel. The update is a pure function of (state, residual, rows): a
worker that does not have the version an order goes on from says so (`Missing`), and is caught up with a committed state
and the residuals since. The state is asked for now and then, and brought up whole.

Every entry of the block is updated alone, so the optimizers are those that act entry by entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy.typing as npt

from bigopt.core import codec
from bigopt.core.codec import wire
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums
from bigopt.data.kept import Missing
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView
from bigopt.models.penalties import Penalty
from bigopt.optim.method import FirstOrder, FirstOrderState
from bigopt.optim.schedules import SCHEDULES, Scaled
from bigopt.optim.transform import Transform
from bigopt.work_columns import Columns, Margins

Array = npt.NDArray[Any]

BLOCK: Final = "block"


@wire
class ColumnPush(NamedTuple):
    """What an update of all blocks is made from, besides their rows.

    Parameters
    ----------
    units : ndarray, shape (k, 4)
        Of the batch.
    residual : ndarray, shape (rows, q)
        In the block dtype, with the weights of the rows.
    rate, divisor : float
        Of the step.
    """

    units: Ints
    residual: Array
    rate: float
    divisor: float


@wire
class Asked(NamedTuple):
    """The input of an order.

    Parameters
    ----------
    version : int
        Of the weights whose margins are wanted.
    units : ndarray, shape (k, 4)
        Whose margins; none for no margins.
    pushes : tuple of ColumnPush
        The updates that lead to `version`, the last one last: at least the last, unless `states` are those of it.
    states : tuple of FirstOrderState
        Of the order's blocks before `pushes`, to catch up with; empty where the worker should have them.
    first : int
        Block of the first of `states`.
    fetch : bool
        Whether the states at `version` are wanted.
    """

    version: int
    units: Ints
    pushes: tuple[ColumnPush, ...]
    states: tuple[FirstOrderState, ...]
    first: int
    fetch: bool


@wire
class BlockVersion(NamedTuple):
    """A version of a block: its state, and the squared norm of the gradient that led to it."""

    state: FirstOrderState
    square: float


@wire
class BlockAnswer(NamedTuple):
    """What blocks answer, added over them.

    Parameters
    ----------
    margins : Margins or None
        None where none were asked for, or where a block is missing.
    square : float
        Squared norm of the last gradient.
    penalty : float
        The penalty at the weights of the margins.
    states : tuple of FirstOrderState
        In the order of the blocks, where they were asked for.
    missing : tuple of Missing
        Blocks that must be caught up.
    """

    margins: Margins | None
    square: float
    penalty: float
    states: tuple[FirstOrderState, ...]
    missing: tuple[Missing, ...]

    def merge(self, other: BlockAnswer) -> BlockAnswer:
        """Add the answer of other blocks."""
        mine, theirs = self.margins, other.margins
        return BlockAnswer(
            None if mine is None or theirs is None else mine.merge(theirs),
            self.square + other.square,
            self.penalty + other.penalty,
            self.states + other.states,
            self.missing + other.missing,
        )


@wire
@dataclass(frozen=True, eq=False)
class BlockSteps:
    """A step of every block; leaves as in `bigopt.work_columns.PartialMargins`, its input an `Asked`.

    Parameters
    ----------
    columns : Columns
    transform : Transform
        Acts entry by entry.
    penalty : Penalty
    average : bool or float
        Polyak's averaging, as `FirstOrder` takes it.
    run : str
        Token under which versions are kept.
    """

    columns: Columns
    transform: Any
    penalty: Penalty
    average: bool | float
    run: str

    @property
    def view(self) -> DataView:
        """The rows it works on."""
        return self.columns.view

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """The layout of each block: its weights."""
        sizes = [(self.columns.width(b), self.columns.outputs) for b in range(self.columns.blocks)]
        return tuple(Layout((Block("weight", size, True, *size),)) for size in sizes)

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> BlockAnswer:
        """Return a block's answer."""
        asked, block = inputs[0], int(unit[0])
        assert isinstance(asked, Asked)
        found = self._found(asked, block, meter)
        if found is None:
            return BlockAnswer(None, 0.0, 0.0, (), (Missing(BLOCK, block, asked.version),))
        params = found.state.params
        weights = self.columns.cast(params).reshape(-1, self.columns.outputs)
        margins = self.columns.margins(weights, block, asked.units, meter) if len(asked.units) else None
        penalty = self.penalty.value(params, self.layouts[block])
        return BlockAnswer(margins, found.square, penalty, (found.state,) if asked.fetch else (), ())

    def _found(self, asked: Asked, block: int, meter: Meter) -> BlockVersion | None:
        """Return a block at the version that was asked for, updated from the newest one that is here."""
        store, oldest = meter.blocks.kept, asked.version - len(asked.pushes)
        for version in range(asked.version, oldest - 1, -1):
            kept = store.get(self.run, BLOCK, block, version)
            if kept is not None:
                break
        else:
            if not asked.states:
                return None
            version, kept = oldest, BlockVersion(asked.states[block - asked.first], 0.0)
        assert isinstance(kept, BlockVersion)
        while version < asked.version:
            kept, version = self._updated(kept, asked.pushes[version - oldest], block, meter), version + 1
            store.put(self.run, BLOCK, block, version, kept)
        if version == oldest:
            store.put(self.run, BLOCK, block, version, frozen(kept))
        return kept

    def _updated(self, kept: BlockVersion, push: ColumnPush, block: int, meter: Meter) -> BlockVersion:
        """Return a block after an update; the version before it stays as it is."""
        grad = self.columns.gradient(push.residual, block, push.units, meter)
        method = block_method(self.transform, self.layouts[block], self.penalty, self.average, push.rate)
        state, step = method.tell(frozen(kept).state, Sums(grad, 0.0, 1.0, 1), push.divisor, 0.0)
        after: BlockVersion = frozen(BlockVersion(state, step.grad_norm**2))
        return after


def block_method(
    transform: Transform[Any], layout: Layout, penalty: Penalty, average: bool | float, rate: float
) -> FirstOrder:
    """Return the method of one step of some entries of the parameters."""
    return FirstOrder(
        transform,
        Scaled(SCHEDULES["constant"](1.0), rate),
        layout,
        penalty=lambda grad, params: penalty.add_gradient(grad, params, layout),
        average=average,
    )


def frozen(value: Any) -> Any:
    """Mark all arrays of a value read-only, so that whoever takes it over copies them first; return it."""
    for array in codec.pack(value)[1]:
        array.flags.writeable = False
    return value
