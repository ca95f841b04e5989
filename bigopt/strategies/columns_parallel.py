"""model_parallel of the linear family, by blocks of columns, with the update on the driver.

A step is two rounds over the rows of one batch (`bigopt.work_columns`): the partial margins of every block, then, from
the residual that the driver makes of their sum, every block's part of the gradient. The driver's optimizer takes the
whole gradient, so that any method with one gradient a step, any penalty and any schedule works as under sync; batches
are those of sync, and the trajectory is the same up to the order in which columns are added.

The labels of a batch come up with the margins of the first block: a number a row, where every block would otherwise
have to read and send them the other way. So loss and residual are computed once, in ``run.dtype``, on the driver.

Nothing is in flight between two steps: a checkpoint holds what sync's holds, and the number of blocks is kept with the
facts of the run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import ConfError
from bigopt.core.sums import Sums
from bigopt.data.columnview import block_homes, column_cuts
from bigopt.data.plan import Ints, rows_of
from bigopt.models import kernels
from bigopt.models.linear import LinearModel
from bigopt.strategies.base import Setting, StepRecord
from bigopt.strategies.rounds import GradientSteps, SyncState, start
from bigopt.work import Order
from bigopt.work_columns import BlockGradient, Columns, Margins, PartialMargins, leaves

__all__ = ["ColumnsOnDriver", "Deal", "Judged", "machine", "start"]

Array = npt.NDArray[Any]


class Judged(NamedTuple):
    """What the driver makes of the margins of a batch.

    Parameters
    ----------
    residual : ndarray, shape (rows, q)
        s_i dloss_i/dv in ``run.dtype``.
    loss, weight : float
        sum_i s_i loss_i and sum_i s_i.
    """

    residual: Array
    loss: float
    weight: float


@dataclass(frozen=True)
class Deal:
    """How blocks of columns become rounds.

    Parameters
    ----------
    model : LinearModel
    columns : Columns
    margins, gradients : Work
        Of the two rounds of a step.
    """

    model: LinearModel
    columns: Columns
    margins: PartialMargins
    gradients: BlockGradient

    @classmethod
    def of(cls, setting: Setting) -> Deal:
        """Return the deal of a setting's model and rows.

        Raises
        ------
        ConfError
            Batches whose margins alone would not fit the memory of a process, with what they take.
        """
        given, plan = setting.blocks(), setting.plan
        model = given.model
        assert isinstance(model, LinearModel)
        rows = plan.stages.batch(plan.stages.last)
        size = rows * (2 * model.outputs + 2) * 8
        if size > given.memory:
            needs, has = f"{size / 1e6:.0f} MB", f"{given.memory / 1e6:.0f} MB"
            raise ConfError(
                f"margins and residuals of {rows} rows take {needs}, data.memory is {has}",
                where="batch.size",
                hint="a smaller batch.size",
            )
        cuts = column_cuts(given.view.source, given.number)
        columns = Columns(given.view, cuts, model.outputs, plan.seed, given.dtype, given.block_rows)
        return cls(model, columns, PartialMargins(columns), BlockGradient(columns))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run says at its start."""
        widths = np.diff(self.columns.cuts)
        least, most = int(widths.min()), int(widths.max())
        shown = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        return (f"strategy.blocks: {len(widths)} of {shown} columns",)

    def leaves(self, units: Ints) -> Ints:
        """Return the leaves of a round over the rows of a batch."""
        return leaves(self.columns.blocks, rows_of(units))

    def judged(self, params: Array, found: Margins) -> Judged:
        """Return loss and residual of the rows whose margins were summed over all blocks, intercept added here.

        Parameters
        ----------
        params : ndarray
            Ends with the intercept, where the model has one; the rest is not looked at.
        found : Margins
        """
        v, model = found.values, self.model
        with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told so by its loss
            if model.intercept:
                v = v + params[-model.outputs :]
            value, delta = model.loss.value_delta(v, found.y)
            return Judged(kernels.weighted(delta, found.weight), *kernels.totals(value, found.weight))

    def weighted(self, order: Order, units: Ints, params: Array) -> Order:
        """Return an order with the weights of its own blocks, and no others."""
        first, last = order.start, order.stop
        return replace(order, inputs=(np.array([first]), units, params[self.columns.parameters(first, last)]))

    def gradient(self, parts: tuple[Array, ...], residual: Array) -> Array:
        """Return the whole gradient sum: the blocks' parts and the column sums of the residual."""
        ends = [residual.sum(axis=0, dtype=self.columns.dtype)] if self.model.intercept else []
        return np.concatenate([*parts, *ends])


def machine(setting: Setting, state: SyncState) -> ColumnsOnDriver:
    """Return the machine of ``strategy.update_on: driver``."""
    return ColumnsOnDriver(setting, state, Deal.of(setting))


class ColumnsOnDriver(GradientSteps):
    """Margins up, residual down, gradient up, update.

    Parameters
    ----------
    setting : Setting
        Its method asks for one gradient a step.
    state : SyncState
    deal : Deal
    """

    def __init__(self, setting: Setting, state: SyncState, deal: Deal) -> None:
        super().__init__(setting, state)
        self._deal = deal
        self._units: Ints = np.empty((0, 4), dtype=np.int64)
        self._judged: Judged | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How the model is cut."""
        return self._deal.notes

    def more(self, slots: int) -> list[Order]:
        """Order the margins of the next batch, or the gradient at those that have come."""
        if self._round.open:
            return []
        deal, homes = self._deal, block_homes(self._deal.columns.blocks, slots)
        if self._judged is not None:
            inputs = self._units, deal.columns.cast(self._judged.residual)
            return self._round.begin(deal.gradients, inputs, deal.leaves(self._units), homes, self._where)
        self._units = self._plan.units(self._state.epoch, self._state.position)
        return self._round.begin(deal.margins, (), deal.leaves(self._units), homes, self._where)

    def _filled(self, orders: list[Order]) -> list[Order]:
        """Give the orders of margins the weights of their blocks."""
        if self._judged is not None:
            return orders
        params = self._current
        return [self._deal.weighted(order, self._units, params) for order in orders]

    def advance(self) -> StepRecord | None:
        """Make the residual where all margins are there, the update where the gradient is.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the state stays the last finite one.
        """
        done = self._round.take()
        if done is None:
            return None
        begin, params = time.perf_counter(), self._current
        if self._judged is None:
            self._judged = self._deal.judged(params, done.value)
            loss = self._finite(self._judged.loss / self._divisor + self._setting.penalty(params))
            self._spent = self._spent._replace(loss=loss).plus(done, time.perf_counter() - begin)
            return None
        found, self._judged = self._judged, None
        grad = self._deal.gradient(done.value.vectors, found.residual)
        self._spent = self._spent.plus(done, time.perf_counter() - begin)
        return self._told(Sums(grad, found.loss, found.weight, rows_of(self._units)))
