"""sync: the driver sends w, the slots each compute their part of the batch, the driver collects all and updates."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core.errors import DivergedError
from bigopt.core.sums import HessianSums, Sums
from bigopt.core.vectors import Unadded
from bigopt.data.plan import Ints, Plan, homes, rows_of, whole
from bigopt.optim.method import Ask, FirstOrder, snapshot
from bigopt.strategies.base import Renewal, Setting, StepRecord
from bigopt.strategies.rounds import GradientSteps, SyncState, start
from bigopt.work import Arrival, Order

__all__ = ["Placement", "Sync", "start"]

Array = npt.NDArray[Any]


class Placement(Protocol):
    """Where the orders of a round go."""

    def homes(self, plan: Plan, units: Ints, slots: int) -> Ints:
        """Return the group of each unit, ascending; a group is one order."""
        ...

    def first(self, orders: list[Order], slots: int) -> list[Order]:
        """Return what is sent at the start of a round for the orders of its groups."""
        ...

    def more(self, wanted: list[Order]) -> list[Order]:
        """Return further copies of the groups that have not arrived."""
        ...

    def landed(self, order: Order) -> None:
        """Note an arrival, of whatever round."""
        ...

    def again(self, orders: list[Order]) -> None:
        """Note orders that are repeated."""
        ...

    @property
    def groups(self) -> list[Order]:
        """The orders of the round."""
        ...


class Sync(GradientSteps):
    """Synchronous parameter server.

    A step is one round for most methods. One that asks again (a line search, after a Hessian) gets further rounds over
    the same batch; the snapshot stays the one between steps, so that a resumed run makes the whole step again. Where
    params hold constants (`Renewal`) the first step of an epoch begins with the rounds that renew them.

    Parameters
    ----------
    setting : Setting
    state : SyncState
    placement : Placement or None
        Where orders go; None sends each to the slot that keeps its rows.
    """

    def __init__(self, setting: Setting, state: SyncState, placement: Placement | None = None) -> None:
        super().__init__(setting, state)
        self._placement = placement
        self._inner: Any = state.method
        self._ask: Ask = self._method.ask(state.method)
        self._evaluation = setting.evaluate(self._ask.kind)
        self._renewing: tuple[Array, int] | None = None  # params so far, and rounds left

    def more(self, slots: int) -> list[Order]:
        """Order the next batch; while one is under way, find its rows."""
        if self._round.open:
            self._plan.foresee(self._state.epoch, self._state.position + 1)
            return []
        if self._setting.renewal is not None and self._state.renewed != self._state.epoch:
            return self._renew(self._setting.renewal, slots)
        plan, placement, evaluation = self._plan, self._placement, self._evaluation
        units = plan.units(self._state.epoch, self._state.position)
        homes = plan.homes(units, slots) if placement is None else placement.homes(plan, units, slots)
        orders = self._round.begin(evaluation.work, self._ask.inputs, units, homes, self._where)
        if plan.announced:
            orders = [replace(order, ahead=plan.ahead(order.units)) for order in orders]
        return orders if placement is None else placement.first(orders, slots)

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat, and further copies where orders have some."""
        placement = self._placement
        if placement is None:
            return self._round.handle(arrival)
        placement.landed(arrival.order)
        again = self._round.handle(arrival)
        placement.again(again)
        return again + placement.more(self._round.wanted(placement.groups))

    def advance(self) -> StepRecord | None:
        """Update where the batch is complete.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the state stays the last finite one.
        """
        done = self._round.take()
        return None if done is None else self._update(done)

    def _renew(self, renewal: Renewal, slots: int) -> list[Order]:
        """Order the next round over all rows that renews the constants inside params."""
        state, counts = self._state, self._plan.counts
        if self._renewing is None:
            self._renewing = self._ask.params, renewal.rounds if state.renewed < 0 else 1
        units = whole(np.arange(len(counts)), counts)
        where = f"the moments of epoch {state.epoch}"
        return self._round.begin(renewal.work, (self._renewing[0],), units, homes(counts, slots)[units[:, 0]], where)

    def _renewed(self, renewal: Renewal, done: Round, params: Array, left: int) -> None:
        begin = time.perf_counter()
        state, params = self._state, renewal.apply(params, done.value)
        if not np.isfinite(params).all():
            raise DivergedError(
                "the moments inside the model are not finite",
                where=self._where,
                hint="a smaller schedule.learning_rate",
            )
        self._renewing = (params, left - 1) if left > 1 else None
        self._spent = self._spent.plus(done, 0.0, time.perf_counter() - begin)
        if self._renewing is None:
            self._inner = state.method._replace(params=snapshot(params))
            self._state = state._replace(method=self._inner, renewed=state.epoch)
            self._next(self._method.ask(self._inner))

    def _update(self, done: Round) -> StepRecord | None:
        """Tell the method; where it asks again leave the step open, else make it."""
        if self._renewing is not None and self._setting.renewal is not None:
            self._renewed(self._setting.renewal, done, *self._renewing)
            return None
        ask, begin = self._ask, time.perf_counter()
        told = self._finished(ask, done.value)
        if told.rows != rows_of(done.units):
            raise RuntimeError(f"{self._where}: {told.rows} rows arrived, the plan has {rows_of(done.units)}")
        divisor = self._divisor
        if isinstance(told, Sums | HessianSums) and not ask.trial:
            loss = self._finite(told.loss / divisor + self._setting.penalty(ask.params))
            self._spent = self._spent._replace(loss=loss)
        reduced = time.perf_counter()
        self._inner, answer = self._method.tell(self._inner, told, divisor, self.epochs)
        self._spent = self._spent.plus(done, reduced - begin, time.perf_counter() - reduced)
        if isinstance(answer, Ask):
            self._next(answer)
            return None
        record = self._over(self._after(self._inner), answer.grad_norm, answer.learning_rate, answer.loss)
        self._next(self._method.ask(self._inner))
        return record

    def _finished(self, ask: Ask, root: Any) -> Any:
        """Return what the method is told; a first-order one adds the last two gradients on its own way."""
        if isinstance(root, Sums) and isinstance(root.grad, Unadded) and isinstance(self._method, FirstOrder):
            return root
        return self._evaluation.finish(ask.inputs, root)

    def _next(self, ask: Ask) -> None:
        if ask.kind != self._ask.kind:
            self._evaluation = self._setting.evaluate(ask.kind)
        self._ask = ask
