"""Block coordinate descent: the blocks of columns are visited one after the other, margins kept up to date.

The sequential variant of `bigopt.strategies.columns_parallel` (``strategy.solver: coordinate``): Gauss-Seidel where
that is Jacobi. A step is one sweep over a batch,

    v = sum_b X_b W_b                                          one round, as there
    intercept, then b = 1, ..., B:   r = dloss/dv;   visit b;   v += X_b delta_b

so that every block sees what those before it have changed. A block takes a step along its gradient with the schedule's
rate, or, with ``optimizer.name: newton`` and squared errors, is solved for exactly (`bigopt.work_descent`): of ridge
every sweep then lowers the loss, whatever the data. B + 1 rounds a step; nothing is in flight between two steps.

Tseng (2001); Beck and Tetruashvili (2013).
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core.codec import wire
from bigopt.core.errors import ConfError, DivergedError
from bigopt.data.columnview import block_homes
from bigopt.data.plan import Ints, rows_of
from bigopt.models.losses import SquaredLoss
from bigopt.optim.method import FirstOrder
from bigopt.strategies.base import Setting, StepRecord, scaled
from bigopt.strategies.columns_parallel import Deal, Judged, check_batch, judged
from bigopt.work import Arrival, Order
from bigopt.work_columns import Margins, leaves
from bigopt.work_descent import BlockVisit, Visited

Array = npt.NDArray[Any]


@wire
class DescentState(NamedTuple):
    """What a checkpoint holds.

    Parameters
    ----------
    params : ndarray, shape (p,)
    steps : int
        Sweeps so far.
    epoch, position : int
        Next batch.
    """

    params: Array
    steps: int
    epoch: int
    position: int


def start(setting: Setting, params: Array) -> DescentState:  # noqa: ARG001
    """Return the state before the first sweep."""
    return DescentState(params.copy(), 0, 0, 0)


def machine(setting: Setting, state: DescentState) -> ColumnsDescent:
    """Return the machine of ``strategy.solver: coordinate``."""
    given = setting.blocks()
    deal = Deal.of(given, setting.plan.seed)
    check_batch(given, setting.plan.stages.batch(setting.plan.stages.last), deal.model.outputs)
    exact = not isinstance(setting.method, FirstOrder)
    if exact and not isinstance(deal.model.loss, SquaredLoss):
        raise ConfError(
            f"blocks are solved for exactly of squared errors, not of {deal.model.loss.name}",
            where="optimizer.name",
            hint="optimizer.name=sgd",
        )
    widest = int(np.diff(deal.columns.cuts).max())
    if exact and 16 * widest * widest > given.memory:
        size = f"{16e-6 * widest * widest:.0f} MB"
        raise ConfError(
            f"the matrix of a block of {widest} columns takes {size}",
            where="strategy.blocks",
            hint="more blocks, or optimizer.name=sgd",
        )
    damping = float(getattr(setting.method, "damping", 0.0))
    return ColumnsDescent(setting, state, deal, BlockVisit(deal.columns, given.penalty, exact, damping))


class ColumnsDescent:
    """Sweeps over the blocks.

    Parameters
    ----------
    setting : Setting
    state : DescentState
    deal : Deal
    visit : BlockVisit
    """

    def __init__(self, setting: Setting, state: DescentState, deal: Deal, visit: BlockVisit) -> None:
        self._setting = setting
        self._state = state
        self._deal = deal
        self._visit = visit
        self._plan = setting.plan.at(state.epoch)
        self._round: Round | None = None
        self._units: Ints = np.empty((0, 4), dtype=np.int64)
        self._swept: _Sweep | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How the model is cut."""
        return self._deal.notes

    @property
    def steps(self) -> int:
        """Sweeps so far."""
        return self._state.steps

    @property
    def params(self) -> Array:
        """The current parameters."""
        params = self._state.params.view()
        params.flags.writeable = False
        return params

    @property
    def epochs(self) -> float:
        """Rows drawn over n."""
        return self._plan.epochs_at(self._state.epoch, self._state.position)

    def snapshot(self) -> DescentState:
        """Return the state between two sweeps."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the margins of the next batch, or the visit of the next block."""
        if self._round is not None:
            return []
        state, blocks = self._state, self._deal.columns.blocks
        homes, where, new = block_homes(blocks, slots), f"step {state.steps + 1}", self._setting.rounds.new
        swept = self._swept
        if swept is None:
            self._units = self._plan.units(state.epoch, state.position)
            self._round = new(self._deal.margins, (), leaves(blocks, rows_of(self._units)), homes, where=where)
            return self._filled(self._round.orders())
        at = slice(swept.block, swept.block + 1)
        found = swept.judged(self._deal)
        mass = np.empty(0) if swept.margins.weight is None else swept.margins.weight
        inputs = (
            swept.params[self._deal.columns.parameters(at.start, at.stop)],
            self._units,
            self._deal.columns.cast(found.residual),
            mass,
            np.array([swept.rate, swept.divisor]),
        )
        self._round = new(self._visit, inputs, leaves(blocks, rows_of(self._units))[at], homes[at], where=where)
        return self._round.orders()

    def _filled(self, orders: list[Order]) -> list[Order]:
        if self._swept is not None:
            return orders
        return [self._deal.weighted(order, self._units, self._state.params) for order in orders]

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat."""
        if self._round is None or arrival.order.ticket != self._round.ticket:
            self._setting.rounds.late(arrival)
            return []
        return self._filled(self._round.accept(arrival))

    def advance(self) -> StepRecord | None:
        """Begin a sweep with the margins, go on to the next block, or make the step where all were visited.

        Raises
        ------
        DivergedError
            Where the loss is not finite; the state stays the last finite one.
        """
        done = self._round
        if done is None or not done.done:
            return None
        self._round = None
        if self._swept is None:
            self._swept = self._begin(done.value)
            self._swept.spend(done)
            return None
        swept = self._swept
        swept.spend(done)
        swept.take(done.value, self._deal)
        return self._end(swept) if swept.block == self._deal.columns.blocks else None

    def _begin(self, margins: Margins) -> _Sweep:
        state, plan, setting = self._state, self._plan, self._setting
        rows = plan.batch_rows(state.position)
        divisor = setting.total_weight if plan.full else rows * setting.total_weight / plan.rows
        rate, method = 1.0, setting.method
        if isinstance(method, FirstOrder):
            method = scaled(method, setting.pace(state.epoch))
            assert isinstance(method, FirstOrder)
            rate = float(method.schedule(float(state.steps if method.unit == "step" else self.epochs)))
        swept = _Sweep(margins, state.params.copy(), rate, divisor)
        found = swept.judged(self._deal)
        swept.loss = found.loss / divisor + setting.penalty(state.params)
        if not np.isfinite(swept.loss):
            where = f"step {state.steps + 1}"
            raise DivergedError(f"the loss is {swept.loss}", where=where, hint="a smaller schedule.learning_rate")
        if self._deal.model.intercept:
            swept.move_intercept(self._deal, found, exact=self._visit.exact)
        return swept

    def _end(self, swept: _Sweep) -> StepRecord:
        state = self._state
        last = state.position + 1 == self._plan.steps_per_epoch
        epoch, position = (state.epoch + 1, 0) if last else (state.epoch, state.position + 1)
        rows = self._plan.batch_rows(state.position)
        self._state, self._swept = DescentState(swept.params, state.steps + 1, epoch, position), None
        if last:
            self._plan = self._setting.plan.at(epoch)
        return StepRecord(
            step=state.steps + 1,
            epoch=state.epoch,
            end_of_epoch=last,
            loss=float(swept.loss),
            grad_norm=float(np.sqrt(swept.square)),
            learning_rate=swept.rate,
            rows=rows,
            staleness=0,
            seconds_map=swept.seconds_map,
            seconds_reduce=swept.seconds,
            seconds_update=0.0,
            rss=swept.rss,
        )


class _Sweep:
    """A step under way: margins and weights as the blocks visited so far have left them."""

    def __init__(self, margins: Margins, params: Array, rate: float, divisor: float) -> None:
        self.margins = margins._replace(values=np.array(margins.values))
        self.params, self.rate, self.divisor = params, rate, divisor
        self.block = 0
        self.loss = self.square = self.seconds = self.seconds_map = 0.0
        self.rss = 0

    def judged(self, deal: Deal) -> Judged:
        """Return loss and residual at the weights as they are now."""
        with np.errstate(over="ignore", invalid="ignore"):
            return judged(deal.model, self.params, self.margins)

    def move_intercept(self, deal: Deal, found: Judged, *, exact: bool) -> None:
        """Move the intercept along its gradient, or to the minimum of squared errors."""
        q = deal.model.outputs
        grad = found.residual.sum(axis=0) / self.divisor
        self.square += float(np.dot(grad, grad))
        rate = self.divisor / (2.0 * found.weight) if exact else self.rate
        self.params[-q:] -= rate * grad

    def take(self, visited: Visited, deal: Deal) -> None:
        """Take what a visit has changed."""
        begin = time.perf_counter()
        self.params[deal.columns.parameters(self.block, self.block + 1)] += visited.delta
        self.margins = self.margins._replace(values=self.margins.values + visited.change)
        self.square += visited.square
        self.block += 1
        self.seconds += time.perf_counter() - begin

    def spend(self, done: Round) -> None:
        """Add what a round has cost."""
        self.seconds_map, self.rss = self.seconds_map + done.seconds_map, max(self.rss, done.rss)
