"""local_sgd: every replica takes k steps of its own, then the replicas are averaged.

A round is one turn of every replica from the same params (`bigopt.work_local`, `bigopt.strategies.turns`). With an
outer optimizer the average is not taken as it is: w - average is handed to it as a gradient, so that plain averaging is
sgd at rate 1. k = 1 is the synchronous strategy up to rounding, k = everything is one-shot averaging.

McMahan et al. (2017), Stich (2019); the outer step: Reddi et al. (2021).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.sums import Sums
from bigopt.optim.method import Ask, Method
from bigopt.strategies.base import Rates, Setting
from bigopt.strategies.turns import Averaging, Turn, TurnSums
from bigopt.work_local import LocalSteps

Array = npt.NDArray[Any]


@wire
class LocalState(NamedTuple):
    """What a checkpoint holds: nothing is in flight between two averages.

    Parameters
    ----------
    params : ndarray, shape (p,)
        The average.
    outer : State or None
        Of the outer method.
    steps : int
        Local steps of every replica so far.
    replicas : int
        How many there are, for the whole run.
    """

    params: Array
    outer: Any
    steps: int
    replicas: int

    @property
    def number(self) -> int:
        """How many replicas there are."""
        return self.replicas


def outer_method(setting: Setting) -> Method[Any] | None:
    """Return the method of ``strategy.outer``: a name, its keys and a learning_rate; None for plain averaging."""
    block = setting.options.get("outer")
    if block is None:
        return None
    keys = {key: value for key, value in block.items() if key not in ("name", "learning_rate")}
    return setting.server(block["name"], keys, block.get("learning_rate", 1.0))


def start(setting: Setting, params: Array) -> LocalState:
    """Return the state before the first turn."""
    outer = outer_method(setting)
    replicas = setting.options.get("replicas") or setting.slots
    return LocalState(params, None if outer is None else outer.start(params)[0], 0, replicas)


def machine(setting: Setting, state: LocalState) -> Averaging[LocalState]:
    """Return the machine of ``strategy.name: local_sgd``."""
    work, rates = setting.local(state.replicas, "average")
    k = setting.options["local_steps"]
    return Averaging(setting, state, LocalSgd(setting, work, rates, local_steps=k, outer=outer_method(setting)))


class LocalSgd:
    """k local steps a turn, then the average or the outer step.

    Parameters
    ----------
    setting : Setting
    work : LocalSteps
        With ``answer="average"``.
    rates : callable
    local_steps : int
        k.
    outer : Method or None
        None takes the average as it is.
    """

    remedy = "a smaller schedule.learning_rate or strategy.local_steps"

    def __init__(
        self, setting: Setting, work: LocalSteps, rates: Rates, *, local_steps: int, outer: Method[Any] | None = None
    ) -> None:
        self._work = work
        self._rates = rates
        self._k = local_steps
        self._outer = outer
        self._limit = setting.steps
        self._epochs = setting.plan.epochs_after

    def turn(self, state: LocalState) -> Turn | None:
        """Return the next k steps of every replica."""
        first = state.steps
        last = first + self._k if self._limit is None else min(first + self._k, self._limit)
        if last <= first:
            return None
        units = np.array([(r, 0, first, last) for r in range(self._work.shares.replicas)], dtype=np.int64)
        rates = self._rates(first, last)
        return Turn(self._work, (state.params, rates), units, f"steps {first + 1}..{last}", float(rates[-1]))

    def take(self, state: LocalState, average: Array, sums: TurnSums) -> tuple[LocalState, int]:
        """Return the state after the outer step, or with the average as it is."""
        outer = state.outer
        if self._outer is not None:
            pull = Sums(state.params - average, 0.0, 1.0, 1)
            outer, answer = self._outer.tell(outer, pull, 1.0, self._epochs(state.steps))
            assert not isinstance(answer, Ask), "methods that ask again are refused"
            average = answer.params
        return LocalState(average, outer, state.steps + sums.steps // self._work.shares.replicas, state.replicas), 0
