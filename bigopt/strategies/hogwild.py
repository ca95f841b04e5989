"""hogwild: all threads of a machine update one vector without waiting for each other.

What happens within a turn is in `bigopt.work_hogwild`; here turns follow each other, about `TURNS` an epoch, so that
progress, checkpoints and limits have a moment between two of them. On one machine there is one replica. Elsewhere each
worker has one: the steps of a turn are dealt to the replicas in equal runs, and afterwards these are averaged, weighted
by their rows. A step is one gradient of ``batch.size`` rows, whoever computes it.

With several threads nothing repeats to the bit, neither a run nor a turn that was lost and done again.

Niu, Recht, Ré, Wright (2011).
"""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.data.plan import whole
from bigopt.strategies.base import Rates, Setting, StepRecord
from bigopt.work import Arrival, Order
from bigopt.work_hogwild import DELAYS, CountTouched, HogwildSteps, HogwildTurn, Touched, joined_delays, summary

Array = npt.NDArray[Any]

TURNS: Final = 10
"""Turns an epoch."""


@wire
class HogwildState(NamedTuple):
    """What a checkpoint holds: nothing is in flight between two turns.

    Parameters
    ----------
    params : ndarray, shape (p,)
    steps : int
        Gradients so far.
    replicas : int
        How many there are, for the whole run.
    taus : ndarray, shape (DELAYS,), int64
        See `bigopt.work_hogwild`.
    """

    params: Array
    steps: int
    replicas: int
    taus: Array

    @property
    def delays(self) -> dict[str, Any]:
        """Delays so far, for the run's result."""
        return summary(self.taus)


def start(setting: Setting, params: Array) -> HogwildState:
    """Return the state before the first turn."""
    return HogwildState(params, 0, setting.hogwild()[2], np.zeros(DELAYS, dtype=np.int64))


def machine(setting: Setting, state: HogwildState) -> Hogwild:
    """Return the machine of ``strategy.name: hogwild``."""
    work, rates, _ = setting.hogwild()
    return Hogwild(setting, state, work, rates)


class Hogwild:
    """Turns of lock-free SGD.

    Parameters
    ----------
    setting : Setting
        Its method is not used: steps are plain SGD.
    state : HogwildState
    work : HogwildSteps
    rates : callable
    """

    def __init__(self, setting: Setting, state: HogwildState, work: HogwildSteps, rates: Rates) -> None:
        self._state = state
        self._work = work
        self._plan = setting.plan
        self._rates = rates
        self._penalty = setting.penalty
        self._rounds = setting.rounds
        self._limit = setting.steps
        self._round: Round | None = None
        self._rate = 0.0
        self._touched: Array | None = None if work.counts_touched else np.empty(0, dtype=np.int64)

    @property
    def steps(self) -> int:
        """Gradients so far."""
        return self._state.steps

    @property
    def params(self) -> Array:
        """The vector between two turns."""
        return self._state.params

    @property
    def epochs(self) -> float:
        """Rows of all gradients over n."""
        return self._plan.epochs_after(self._state.steps)

    def snapshot(self) -> HogwildState:
        """Return the state between two turns."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the next turn of every replica; before the first one, what the work has to know of the columns."""
        if self._round is not None:
            return []
        begin = self._state.steps
        position = begin % self._plan.steps_per_epoch
        turn = self._work.turn
        end = begin + min(turn - position % turn, self._plan.steps_per_epoch - position)
        if self._limit is not None:
            end = min(end, self._limit)
        if end <= begin:
            return []
        if self._touched is None:
            units = whole(np.arange(len(self._plan.counts)), self._plan.counts)
            homes = np.arange(len(units)) * slots // len(units)
            self._round = self._rounds.new(CountTouched(self._work.view), (), units, homes, where="rows of each column")
            return self._round.orders()
        p, held = self._state.replicas, self._work.rows_a_rate
        bounds = begin + (end - begin) * np.arange(p + 1) // p
        units = np.stack([np.arange(p), np.full(p, begin), bounds[:-1], bounds[1:]], axis=1).astype(np.int64)
        rates = (
            self._rates(begin, end)
            if held == 1
            else np.concatenate([self._rates(step, step + 1) for step in range(begin, end, held)])
        )
        self._rate = float(rates[-1])
        inputs = (self._state.params, rates, self._touched)
        homes = np.arange(p, dtype=np.int64) * min(slots, p) // p
        self._round = self._rounds.new(self._work, inputs, units, homes, where=f"steps {begin + 1}..{end}")
        return self._round.orders()

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival."""
        if self._round is None or arrival.order.ticket != self._round.ticket:
            self._rounds.late(arrival)
            return []
        return self._round.accept(arrival)

    def advance(self) -> StepRecord | None:
        """Take the vector of the turn, averaged over the replicas, where every replica has arrived.

        Raises
        ------
        DivergedError
            Where loss or params are not finite; the state stays the last finite one.
        """
        done = self._round
        if done is None or not done.done:
            return None
        begin = time.perf_counter()
        self._round, state, turns = None, self._state, done.value
        if isinstance(turns, Touched):
            self._touched = turns.rows
            return None
        assert isinstance(turns, HogwildTurn)
        params = np.divide(turns.params, float(turns.rows))
        mean = self._work.total_weight / self._plan.rows * turns.rows
        loss = turns.loss / mean + self._penalty(state.params)
        if not (np.isfinite(loss) and np.isfinite(params).all()):
            raise DivergedError(f"the loss is {loss}", where=done.where, hint="a smaller schedule.learning_rate")
        params.flags.writeable = False
        steps, per_epoch = state.steps + turns.steps, self._plan.steps_per_epoch
        self._state = HogwildState(params, steps, state.replicas, joined_delays(state.taus, turns.delays))
        return StepRecord(
            step=steps,
            epoch=(steps - 1) // per_epoch,
            end_of_epoch=steps // per_epoch > state.steps // per_epoch,
            loss=float(loss),
            grad_norm=float(np.sqrt(turns.square / turns.steps)),
            learning_rate=self._rate,
            rows=turns.rows,
            staleness=max(0, summary(turns.delays)["tau"]["max"] - 1),
            seconds_map=done.seconds_map,
            seconds_reduce=0.0,
            seconds_update=time.perf_counter() - begin,
            rss=done.rss,
        )
