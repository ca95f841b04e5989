"""sync: the driver sends w, the slots each compute their part of the batch, the driver collects all and updates."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round, Rounds
from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.core.sums import Sums
from bigopt.data.plan import Plan, rows_of
from bigopt.optim.method import Ask, Method
from bigopt.strategies.base import StepRecord
from bigopt.work import Arrival, Order, Work

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
    """

    method: Any
    steps: int
    epoch: int
    position: int


class Sync:
    """Synchronous parameter server.

    Parameters
    ----------
    method : Method
    state : SyncState
    plan : Plan
    work : Work
        What a batch's units compute.
    finish : callable
        ``finish(params, root) -> Sums``: the identity for `GradientSum`; forward and backward for rows that were only
        selected (``backprop: driver``).
    penalty : callable
        ``penalty(params) -> float``, for the loss in the records.
    total_weight : float
        W of all used rows.
    rounds : Rounds
        Makes rounds (ticket numbers, retries, counters).
    """

    def __init__(
        self,
        method: Method[Any],
        state: SyncState,
        plan: Plan,
        work: Work,
        *,
        finish: Callable[[Array, Any], Sums],
        penalty: Callable[[Array], float],
        total_weight: float,
        rounds: Rounds,
    ) -> None:
        self._method = method
        self._state = state
        self._plan = plan
        self._work = work
        self._finish = finish
        self._penalty = penalty
        self._weight = total_weight
        self._rounds = rounds
        self._round: Round | None = None
        self._ask: Ask = method.ask(state.method)

    @property
    def params(self) -> Array:
        """The current parameters."""
        return self._ask.params

    @property
    def epochs(self) -> float:
        """Rows drawn over n."""
        plan, state = self._plan, self._state
        if plan.full or plan.size is None:
            return float(state.epoch)
        return state.epoch + state.position * plan.size / plan.rows

    def snapshot(self) -> SyncState:
        """Return the state between two steps."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the next batch."""
        if self._round is not None:
            return []
        state, plan = self._state, self._plan
        units = plan.units(state.epoch, state.position)
        self._round = self._rounds.new(
            self._work, (self._ask.params,), units, plan.homes(units, slots), where=f"step {state.steps + 1}"
        )
        return self._round.orders()

    def handle(self, arrival: Arrival) -> tuple[list[Order], StepRecord | None]:
        """Accept an arrival; update where it completes the batch.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the state stays the last finite one.
        """
        if self._round is None:
            return [], None
        again = self._round.accept(arrival)
        if not self._round.done:
            return again, None
        done, self._round = self._round, None
        return [], self._update(done)

    def _update(self, done: Round) -> StepRecord | None:
        state, plan, params = self._state, self._plan, self._ask.params
        begin = time.perf_counter()
        sums = self._finish(params, done.value)
        rows = plan.batch_rows(state.position)
        if sums.rows != rows_of(done.units):
            raise RuntimeError(f"step {state.steps + 1}: {sums.rows} rows arrived, the plan has {rows_of(done.units)}")
        divisor = self._weight if plan.full else rows * self._weight / plan.rows
        loss = sums.loss / divisor + self._penalty(params)
        if not np.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss}", where=f"step {state.steps + 1}", hint="a smaller schedule.learning_rate"
            )
        reduced = time.perf_counter()
        inner, answer = self._method.tell(state.method, sums, divisor, self.epochs)
        if isinstance(answer, Ask):
            self._state, self._ask = state._replace(method=inner), answer
            return None
        last = state.position + 1 == plan.steps_per_epoch
        epoch, position = (state.epoch + 1, 0) if last else (state.epoch, state.position + 1)
        self._state = SyncState(inner, state.steps + 1, epoch, position)
        self._ask = self._method.ask(inner)
        return StepRecord(
            step=state.steps + 1,
            epoch=state.epoch,
            end_of_epoch=last,
            loss=float(loss),
            grad_norm=answer.grad_norm,
            learning_rate=answer.learning_rate,
            rows=rows,
            staleness=0,
            seconds_map=done.seconds_map,
            seconds_reduce=reduced - begin,
            seconds_update=time.perf_counter() - reduced,
            rss=done.rss,
        )
