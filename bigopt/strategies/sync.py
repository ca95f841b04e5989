"""sync: the driver sends w, the slots each compute their part of the batch, the driver collects all and updates."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.core.sums import HessianSums, Sums
from bigopt.core.vectors import Unadded
from bigopt.data.plan import Ints, Plan, homes, rows_of, whole
from bigopt.optim.method import Ask, FirstOrder, Method, snapshot
from bigopt.strategies.base import Renewal, Setting, StepRecord, scaled
from bigopt.work import Arrival, Order

Array = npt.NDArray[Any]


@wire
class SyncState(NamedTuple):
    """What a checkpoint holds of a synchronous run: nothing is ever in flight between two steps.

    Parameters
    ----------
    method : State
        Of the method, params included.
    steps : int
        Updates so far.
    epoch, position : int
        Next batch: its epoch, and its number within the epoch.
    renewed : int
        Epoch for which the constants inside params were renewed last; -1 before the first time.
    """

    method: Any
    steps: int
    epoch: int
    position: int
    renewed: int = -1


class Spent(NamedTuple):
    """What the rounds of a step have cost so far, and the loss that its first round found."""

    loss: float = 0.0
    seconds_map: float = 0.0
    seconds_reduce: float = 0.0
    seconds_update: float = 0.0
    rss: int = 0

    def plus(self, done: Round, reduce: float, update: float) -> Spent:
        """Add a round."""
        return Spent(
            self.loss,
            self.seconds_map + done.seconds_map,
            self.seconds_reduce + reduce,
            self.seconds_update + update,
            max(self.rss, done.rss),
        )


_NOTHING: Final = Spent()


def start(setting: Setting, params: Array) -> SyncState:
    """Return the state before step 1."""
    return SyncState(setting.method.start(params)[0], 0, 0, 0)


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


class Sync:
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
        self._setting = setting
        self._state = state
        self._plan = setting.plan.at(state.epoch)
        self._method = self._of_epoch(state.epoch)
        self._evaluate = setting.evaluate
        self._penalty = setting.penalty
        self._weight = setting.total_weight
        self._rounds = setting.rounds
        self._placement = placement
        self._round: Round | None = None
        self._inner: Any = state.method
        self._ask: Ask = self._method.ask(state.method)
        self._evaluation = self._evaluate(self._ask.kind)
        self._spent = _NOTHING
        self._renewing: tuple[Array, int] | None = None  # params so far, and rounds left

    def _of_epoch(self, epoch: int) -> Method[Any]:
        return scaled(self._setting.method, self._setting.pace(epoch))

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self._state.steps

    @property
    def params(self) -> Array:
        """The parameters to evaluate and to save: the current ones, or their average where the method keeps one."""
        params: Array = self._method.result_params(self._state.method)
        return params

    @property
    def epochs(self) -> float:
        """Rows drawn over n."""
        return self._plan.epochs_at(self._state.epoch, self._state.position)

    def snapshot(self) -> SyncState:
        """Return the state between two steps."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the next batch."""
        if self._round is not None:
            return []
        if self._setting.renewal is not None and self._state.renewed != self._state.epoch:
            return self._renew(self._setting.renewal, slots)
        state, plan = self._state, self._plan
        units = plan.units(state.epoch, state.position)
        placement = self._placement
        homes = plan.homes(units, slots) if placement is None else placement.homes(plan, units, slots)
        self._round = self._rounds.new(
            self._evaluation.work, self._ask.inputs, units, homes, where=f"step {state.steps + 1}"
        )
        orders = self._announced(self._round.orders(), plan.coming(units))
        return orders if placement is None else placement.first(orders, slots)

    @staticmethod
    def _announced(orders: list[Order], coming: Ints) -> list[Order]:
        """Tell each slot which partitions its lanes go to next, those first that are needed soonest."""
        if len(coming) == 0:
            return orders
        parts = [coming[order.start : order.stop] for order in orders]
        ahead = [tuple(part[np.argsort(part[:, 1], kind="stable"), 0].tolist()) for part in parts]
        return [replace(order, ahead=some) for order, some in zip(orders, ahead, strict=True)]

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat."""
        if self._placement is not None:
            self._placement.landed(arrival.order)
        if self._round is None or arrival.order.ticket != self._round.ticket:
            self._rounds.late(arrival)
            return [] if self._round is None or self._placement is None else self._placement.more(self._wanted())
        again = self._round.accept(arrival)
        if self._placement is None:
            return again
        self._placement.again(again)
        return again + self._placement.more(self._wanted())

    def _wanted(self) -> list[Order]:
        round_, placement = self._round, self._placement
        assert round_ is not None
        assert placement is not None
        return [order for order in placement.groups if round_.wants(order)]

    def advance(self) -> StepRecord | None:
        """Update where the batch is complete.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the state stays the last finite one.
        """
        done = self._round
        if done is None or not done.done:
            return None
        self._round = None
        return self._update(done)

    def _renew(self, renewal: Renewal, slots: int) -> list[Order]:
        """Order the next round over all rows that renews the constants inside params."""
        state, counts = self._state, self._plan.counts
        if self._renewing is None:
            self._renewing = self._ask.params, renewal.rounds if state.renewed < 0 else 1
        units = whole(np.arange(len(counts)), counts)
        self._round = self._rounds.new(
            renewal.work,
            (self._renewing[0],),
            units,
            homes(counts, slots)[units[:, 0]],
            where=f"the moments of epoch {state.epoch}",
        )
        return self._round.orders()

    def _renewed(self, renewal: Renewal, done: Round, params: Array, left: int) -> None:
        begin = time.perf_counter()
        state, params = self._state, renewal.apply(params, done.value)
        if not np.isfinite(params).all():
            raise DivergedError(
                "the moments inside the model are not finite",
                where=f"step {state.steps + 1}",
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
        state, plan, ask = self._state, self._plan, self._ask
        begin = time.perf_counter()
        told = self._finished(ask, done.value)
        rows = plan.batch_rows(state.position)
        if told.rows != rows_of(done.units):
            raise RuntimeError(f"step {state.steps + 1}: {told.rows} rows arrived, the plan has {rows_of(done.units)}")
        divisor = self._weight if plan.full else rows * self._weight / plan.rows
        if isinstance(told, Sums | HessianSums) and not ask.trial:
            self._spent = self._spent._replace(loss=self._mean_loss(told, divisor))
        reduced = time.perf_counter()
        self._inner, answer = self._method.tell(self._inner, told, divisor, self.epochs)
        spent = self._spent = self._spent.plus(done, reduced - begin, time.perf_counter() - reduced)
        if isinstance(answer, Ask):
            self._next(answer)
            return None
        last = state.position + 1 == plan.steps_per_epoch
        epoch, position = (state.epoch + 1, 0) if last else (state.epoch, state.position + 1)
        self._state = SyncState(self._inner, state.steps + 1, epoch, position, state.renewed)
        self._spent = _NOTHING
        if last:
            self._plan, self._method = self._setting.plan.at(epoch), self._of_epoch(epoch)
        self._next(self._method.ask(self._inner))
        return StepRecord(
            step=state.steps + 1,
            epoch=state.epoch,
            end_of_epoch=last,
            loss=spent.loss if answer.loss is None else answer.loss,
            grad_norm=answer.grad_norm,
            learning_rate=answer.learning_rate,
            rows=rows,
            staleness=0,
            seconds_map=spent.seconds_map,
            seconds_reduce=spent.seconds_reduce,
            seconds_update=spent.seconds_update,
            rss=spent.rss,
        )

    def _finished(self, ask: Ask, root: Any) -> Any:
        """Return what the method is told; a first-order one adds the last two gradients on its own way."""
        if isinstance(root, Sums) and isinstance(root.grad, Unadded) and isinstance(self._method, FirstOrder):
            return root
        return self._evaluation.finish(ask.inputs, root)

    def _mean_loss(self, sums: Sums | HessianSums, divisor: float) -> float:
        loss = sums.loss / divisor + self._penalty(self._ask.params)
        if not np.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss}", where=f"step {self._state.steps + 1}", hint="a smaller schedule.learning_rate"
            )
        return float(loss)

    def _next(self, ask: Ask) -> None:
        if ask.kind != self._ask.kind:
            self._evaluation = self._evaluate(ask.kind)
        self._ask = ask
