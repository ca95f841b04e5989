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

from bigopt.backends.ledger import Round
from bigopt.core.errors import ConfError, DivergedError
from bigopt.core.sums import Sums
from bigopt.data.columnview import block_homes, column_cuts
from bigopt.data.plan import Ints, rows_of
from bigopt.models import kernels
from bigopt.models.linear import LinearModel
from bigopt.optim.method import Ask, Method
from bigopt.strategies.base import Blocks, Setting, StepRecord, scaled
from bigopt.strategies.sync import SyncState
from bigopt.work import Arrival, Order, Work
from bigopt.work_columns import BlockGradient, Columns, Margins, PartialMargins, leaves

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


def judged(model: LinearModel, params: Array, found: Margins) -> Judged:
    """Return loss and residual of the rows whose margins were summed over all blocks, intercept added here."""
    v = found.values
    if model.intercept:
        v = v + params[-model.outputs :]
    value, delta = model.loss.value_delta(v, found.y)
    return Judged(kernels.weighted(delta, found.weight), *kernels.totals(value, found.weight))


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
    def of(cls, given: Blocks, seed: int) -> Deal:
        """Return the deal of a setting's model and rows."""
        model = given.model
        assert isinstance(model, LinearModel)
        cuts = column_cuts(given.view.source, given.number)
        columns = Columns(given.view, cuts, model.outputs, seed, given.dtype, given.block_rows)
        return cls(model, columns, PartialMargins(columns), BlockGradient(columns))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run says at its start."""
        widths = np.diff(self.columns.cuts)
        least, most = int(widths.min()), int(widths.max())
        shown = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        return (f"strategy.blocks: {len(widths)} of {shown} columns",)

    def weighted(self, order: Order, units: Ints, params: Array) -> Order:
        """Return an order with the weights of its own blocks, and no others."""
        first, last = order.start, order.stop
        return replace(order, inputs=(np.array([first]), units, params[self.columns.parameters(first, last)]))

    def gradient(self, parts: tuple[Array, ...], residual: Array) -> Array:
        """Return the whole gradient sum: the blocks' parts and the column sums of the residual."""
        ends = [residual.sum(axis=0, dtype=self.columns.dtype)] if self.model.intercept else []
        return np.concatenate([*parts, *ends])


def check_batch(given: Blocks, rows: int, outputs: int) -> None:
    """Refuse batches whose margins alone would not fit the memory of a process.

    Raises
    ------
    ConfError
        Naming the batch, with what it takes.
    """
    size = rows * (2 * outputs + 2) * 8
    if size > given.memory:
        needs, has = f"{size / 1e6:.0f} MB", f"{given.memory / 1e6:.0f} MB"
        raise ConfError(
            f"margins and residuals of {rows} rows take {needs}, data.memory is {has}",
            where="batch.size",
            hint="a smaller batch.size",
        )


def start(setting: Setting, params: Array) -> SyncState:
    """Return the state before step 1."""
    return SyncState(setting.method.start(params)[0], 0, 0, 0)


def machine(setting: Setting, state: SyncState) -> ColumnsOnDriver:
    """Return the machine of ``strategy.update_on: driver``."""
    given = setting.blocks()
    deal = Deal.of(given, setting.plan.seed)
    check_batch(given, setting.plan.stages.batch(setting.plan.stages.last), deal.model.outputs)
    return ColumnsOnDriver(setting, state, deal)


class ColumnsOnDriver:
    """Margins up, residual down, gradient up, update.

    Parameters
    ----------
    setting : Setting
        Its method asks for one gradient a step.
    state : SyncState
    deal : Deal
    """

    def __init__(self, setting: Setting, state: SyncState, deal: Deal) -> None:
        self._setting = setting
        self._state = state
        self._deal = deal
        self._plan = setting.plan.at(state.epoch)
        self._method: Method[Any] = self._of_epoch(state.epoch)
        self._round: Round | None = None
        self._units: Ints = np.empty((0, 4), dtype=np.int64)
        self._judged: Judged | None = None
        self._spent = (0.0, 0.0, 0)  # seconds of the map and the reduce, largest rss

    def _of_epoch(self, epoch: int) -> Method[Any]:
        return scaled(self._setting.method, self._setting.pace(epoch))

    @property
    def notes(self) -> tuple[str, ...]:
        """How the model is cut."""
        return self._deal.notes

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self._state.steps

    @property
    def params(self) -> Array:
        """The current parameters, or their average where the method keeps one."""
        return self._method.result_params(self._state.method)

    @property
    def epochs(self) -> float:
        """Rows drawn over n."""
        return self._plan.epochs_at(self._state.epoch, self._state.position)

    def snapshot(self) -> SyncState:
        """Return the state between two steps."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the margins of the next batch, or the gradient at those that have come."""
        if self._round is not None:
            return []
        state, deal = self._state, self._deal
        self._units = self._plan.units(state.epoch, state.position)
        work: Work = deal.margins
        inputs: tuple[Array, ...] = ()
        if self._judged is not None:
            work, inputs = deal.gradients, (self._units, deal.columns.cast(self._judged.residual))
        units = leaves(deal.columns.blocks, rows_of(self._units))
        where, homes = f"step {state.steps + 1}", block_homes(len(units), slots)
        self._round = self._setting.rounds.new(work, inputs, units, homes, where=where)
        return self._filled(self._round.orders())

    def _filled(self, orders: list[Order]) -> list[Order]:
        """Give the orders of margins the weights of their blocks."""
        if self._judged is not None:
            return orders
        params = self._method.ask(self._state.method).params
        return [self._deal.weighted(order, self._units, params) for order in orders]

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat."""
        if self._round is None or arrival.order.ticket != self._round.ticket:
            self._setting.rounds.late(arrival)
            return []
        return self._filled(self._round.accept(arrival))

    def advance(self) -> StepRecord | None:
        """Make the residual where all margins are there, the update where the gradient is.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the state stays the last finite one.
        """
        done = self._round
        if done is None or not done.done:
            return None
        self._round = None
        begin = time.perf_counter()
        if self._judged is None:
            params = self._method.ask(self._state.method).params
            with np.errstate(over="ignore", invalid="ignore"):
                self._judged = judged(self._deal.model, params, done.value)
            if not np.isfinite(self._judged.loss):
                raise DivergedError(
                    f"the loss is {self._judged.loss}", where=done.where, hint="a smaller schedule.learning_rate"
                )
            self._spend(done, time.perf_counter() - begin)
            return None
        return self._update(done, self._judged, begin)

    def _spend(self, done: Round, reduce: float) -> None:
        mapped, reduced, rss = self._spent
        self._spent = mapped + done.seconds_map, reduced + reduce, max(rss, done.rss)

    def _update(self, done: Round, judged: Judged, begin: float) -> StepRecord:
        state, plan = self._state, self._plan
        rows = plan.batch_rows(state.position)
        weight = self._setting.total_weight
        divisor = weight if plan.full else rows * weight / plan.rows
        grad = self._deal.gradient(done.value.vectors, judged.residual)
        sums = Sums(grad, judged.loss, judged.weight, rows_of(self._units))
        loss = judged.loss / divisor + self._setting.penalty(self._method.ask(state.method).params)
        self._spend(done, time.perf_counter() - begin)
        reduced = time.perf_counter()
        inner, answer = self._method.tell(state.method, sums, divisor, self.epochs)
        assert not isinstance(answer, Ask), "methods that ask again are refused"
        last = state.position + 1 == plan.steps_per_epoch
        epoch, position = (state.epoch + 1, 0) if last else (state.epoch, state.position + 1)
        self._state = SyncState(inner, state.steps + 1, epoch, position)
        mapped, reduce, rss = self._spent
        self._judged, self._spent = None, (0.0, 0.0, 0)
        if last:
            self._plan, self._method = self._setting.plan.at(epoch), self._of_epoch(epoch)
        return StepRecord(
            step=state.steps + 1,
            epoch=state.epoch,
            end_of_epoch=last,
            loss=float(loss),
            grad_norm=answer.grad_norm,
            learning_rate=answer.learning_rate,
            rows=rows,
            staleness=0,
            seconds_map=mapped,
            seconds_reduce=reduce,
            seconds_update=time.perf_counter() - reduced,
            rss=rss,
        )
