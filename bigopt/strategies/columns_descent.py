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

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.data.columnview import block_homes
from bigopt.data.plan import Ints
from bigopt.models.losses import SquaredLoss
from bigopt.optim.method import FirstOrder
from bigopt.strategies.base import Setting, StepRecord
from bigopt.strategies.columns_parallel import Deal, Judged
from bigopt.strategies.rounds import Steps
from bigopt.work import Order
from bigopt.work_columns import Margins
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
    given, deal = setting.blocks(), Deal.of(setting)
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


class ColumnsDescent(Steps[DescentState]):
    """Sweeps over the blocks.

    Parameters
    ----------
    setting : Setting
    state : DescentState
    deal : Deal
    visit : BlockVisit
    """

    def __init__(self, setting: Setting, state: DescentState, deal: Deal, visit: BlockVisit) -> None:
        super().__init__(setting, state)
        self._deal = deal
        self._visit = visit
        self._units: Ints = np.empty((0, 4), dtype=np.int64)
        self._swept: _Sweep | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How the model is cut."""
        return self._deal.notes

    @property
    def params(self) -> Array:
        """The current parameters."""
        params = self._state.params.view()
        params.flags.writeable = False
        return params

    def more(self, slots: int) -> list[Order]:
        """Order the margins of the next batch, or the visit of the next block."""
        if self._round.open:
            return []
        deal, swept, state = self._deal, self._swept, self._state
        homes = block_homes(deal.columns.blocks, slots)
        if swept is None:
            self._units = self._plan.units(state.epoch, state.position)
            return self._round.begin(deal.margins, (), deal.leaves(self._units), homes, self._where)
        at = slice(swept.block, swept.block + 1)
        mass = np.empty(0) if swept.margins.weight is None else swept.margins.weight
        inputs = (
            swept.params[deal.columns.parameters(at.start, at.stop)],
            self._units,
            deal.columns.cast(deal.judged(swept.params, swept.margins).residual),
            mass,
            np.array([swept.rate, swept.divisor]),
        )
        return self._round.begin(self._visit, inputs, deal.leaves(self._units)[at], homes[at], self._where)

    def _filled(self, orders: list[Order]) -> list[Order]:
        if self._swept is not None:
            return orders
        return [self._deal.weighted(order, self._units, self._state.params) for order in orders]

    def advance(self) -> StepRecord | None:
        """Begin a sweep with the margins, go on to the next block, or make the step where all were visited.

        Raises
        ------
        DivergedError
            Where the loss is not finite; the state stays the last finite one.
        """
        done = self._round.take()
        if done is None:
            return None
        swept = self._swept
        if swept is None:
            self._swept = self._begun(done.value)
            self._spent = self._spent.plus(done)
            return None
        self._spent = self._spent.plus(done, swept.take(done.value, self._deal))
        if swept.block < self._deal.columns.blocks:
            return None
        state, self._swept = self._state, None
        after = DescentState(swept.params, state.steps + 1, *self._plan.after(state.epoch, state.position))
        return self._over(after, float(np.sqrt(swept.square)), swept.rate)

    def _begun(self, margins: Margins) -> _Sweep:
        state, exact, divisor = self._state, self._visit.exact, self._divisor
        swept = _Sweep(margins, state.params.copy(), 1.0 if exact else self._rate(), divisor)
        found = self._deal.judged(swept.params, margins)
        loss = self._finite(found.loss / divisor + self._setting.penalty(state.params))
        self._spent = self._spent._replace(loss=loss)
        if self._deal.model.intercept:
            swept.move_intercept(self._deal, found, exact=exact)
        return swept


class _Sweep:
    """A step under way: margins and weights as the blocks visited so far have left them."""

    def __init__(self, margins: Margins, params: Array, rate: float, divisor: float) -> None:
        self.margins = margins._replace(values=np.array(margins.values))
        self.params, self.rate, self.divisor = params, rate, divisor
        self.block = 0
        self.square = 0.0

    def move_intercept(self, deal: Deal, found: Judged, *, exact: bool) -> None:
        """Move the intercept along its gradient, or to the minimum of squared errors."""
        q = deal.model.outputs
        grad = found.residual.sum(axis=0) / self.divisor
        self.square += float(np.dot(grad, grad))
        rate = self.divisor / (2.0 * found.weight) if exact else self.rate
        self.params[-q:] -= rate * grad

    def take(self, visited: Visited, deal: Deal) -> float:
        """Take what a visit has changed; return the seconds that it took."""
        begin = time.perf_counter()
        self.params[deal.columns.parameters(self.block, self.block + 1)] += visited.delta
        self.margins = self.margins._replace(values=self.margins.values + visited.change)
        self.square += visited.square
        self.block += 1
        return time.perf_counter() - begin
