"""hogwild: all threads of a machine update one vector without waiting for each other.

What happens within a turn is in `bigopt.work_hogwild`; here turns follow each other, about `TURNS` an epoch, so that
progress, checkpoints and limits have a moment between two of them. On one machine there is one replica. Elsewhere each
worker has one, and after a turn they are averaged, weighted by their rows. Of every batch of ``batch.size`` rows each
replica takes its share, so that all make as many steps as there are batches. Batches with fewer rows than there are
replicas (of one row, above all) cannot be shared: they are dealt to the replicas in equal runs.

With several threads nothing repeats to the bit, neither a run nor a turn that was lost and done again.

Niu, Recht, Ré, Wright (2011).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.data.plan import whole
from bigopt.strategies.base import Rates, Setting
from bigopt.strategies.turns import Averaging, Turn, TurnSums
from bigopt.work_delays import DELAYS, joined_delays, summary
from bigopt.work_hogwild import HogwildSteps, HogwildTurn
from bigopt.work_touched import CountTouched, Touched

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
        See `bigopt.work_delays`.
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


def machine(setting: Setting, state: HogwildState) -> Averaging[HogwildState]:
    """Return the machine of ``strategy.name: hogwild``."""
    work, rates, _ = setting.hogwild()
    return Averaging(setting, state, Hogwild(setting, work, rates))


class Hogwild:
    """Turns of lock-free SGD; before the first one with a lazy penalty, what it has to know of the columns.

    Parameters
    ----------
    setting : Setting
    work : HogwildSteps
    rates : callable
    """

    remedy = "a smaller schedule.learning_rate"

    def __init__(self, setting: Setting, work: HogwildSteps, rates: Rates) -> None:
        self._work = work
        self._plan = setting.plan
        self._rates = rates
        self._limit = setting.steps
        self._shared = work.shares.replicas > 1
        self._touched: Array | None = None

    def turn(self, state: HogwildState) -> Turn | None:
        """Return the next turn, which ends with its epoch; its batches are shared, or dealt in equal runs."""
        begin, turn, per_epoch = state.steps, self._work.turn, self._plan.steps_per_epoch
        position = begin % per_epoch
        end = begin + min(turn - position % turn, per_epoch - position)
        if self._limit is not None:
            end = min(end, self._limit)
        if end <= begin:
            return None
        p, held = state.replicas, self._work.rows_a_rate
        bounds = begin + (end - begin) * np.arange(p + 1) // p
        firsts, lasts = (np.full(p, begin), np.full(p, end)) if self._shared else (bounds[:-1], bounds[1:])
        units = np.stack([np.arange(p), np.full(p, begin), firsts, lasts], axis=1).astype(np.int64)
        rates = (
            self._rates(begin, end)
            if held == 1
            else np.concatenate([self._rates(step, step + 1) for step in range(begin, end, held)])
        )
        lazy = self._work.penalises_rows and not self._work.shrinks(turn // p, float(rates.max()))
        if lazy and self._touched is None:
            units = whole(np.arange(len(self._plan.counts)), self._plan.counts)
            return Turn(CountTouched(self._work.view), (), units, "rows of each column", learn=self._learn)
        inputs = (state.params, rates, self._touched if lazy else np.empty(0, dtype=np.int64))
        return Turn(self._work, inputs, units, f"steps {begin + 1}..{end}", float(rates[-1]))

    def _learn(self, touched: Touched) -> None:
        self._touched = touched.rows

    def take(self, state: HogwildState, average: Array, sums: TurnSums) -> tuple[HogwildState, int]:
        """Return the state with the average, and the largest delay of the turn."""
        assert isinstance(sums, HogwildTurn)
        delays, largest = joined_delays(state.taus, sums.delays), summary(sums.delays)["tau"]["max"]
        steps = sums.steps // state.replicas if self._shared else sums.steps
        return HogwildState(average, state.steps + steps, state.replicas, delays), max(0, largest - 1)
