"""local_sgd: every replica takes k steps of its own, then the replicas are averaged.

A round is one turn of every replica from the same params (`bigopt.work_local`); its leaves are the replicas, so the
average is folded along a fixed tree and does not depend on the number of workers. The average weighs a replica by its
rows. With an outer optimizer the average is not taken as it is: w - average is handed to it as a gradient, so that
plain averaging is sgd at rate 1. k = 1 is the synchronous strategy up to rounding, k = everything is one-shot
averaging.

McMahan et al. (2017), Stich (2019); the outer step: Reddi et al. (2021).
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.core.sums import Sums
from bigopt.optim.method import Ask, Method
from bigopt.strategies.base import Rates, Setting, StepRecord
from bigopt.work import Arrival, Order
from bigopt.work_local import LocalSteps, Turns

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


def machine(setting: Setting, state: LocalState) -> LocalSgd:
    """Return the machine of ``strategy.name: local_sgd``."""
    work, rates = setting.local(state.replicas, "average")
    k = setting.options["local_steps"]
    return LocalSgd(setting, state, work, rates, local_steps=k, outer=outer_method(setting))


class LocalSgd:
    """Averaging of replicas.

    Parameters
    ----------
    setting : Setting
        Its method is not used: local steps are plain SGD.
    state : LocalState
    work : LocalSteps
        With ``answer="average"``.
    rates : callable
    local_steps : int
        k.
    outer : Method or None
        None takes the average as it is.
    """

    def __init__(
        self,
        setting: Setting,
        state: LocalState,
        work: LocalSteps,
        rates: Rates,
        *,
        local_steps: int,
        outer: Method[Any] | None = None,
    ) -> None:
        self._state = state
        self._work = work
        self._plan = setting.plan
        self._rates = rates
        self._k = local_steps
        self._penalty = setting.penalty
        self._rounds = setting.rounds
        self._outer = outer
        self._limit = setting.steps
        self._round: Round | None = None
        self._turn_rates: Array = np.zeros(0)

    @property
    def steps(self) -> int:
        """Local steps of every replica so far."""
        return self._state.steps

    @property
    def params(self) -> Array:
        """The average."""
        return self._state.params

    @property
    def epochs(self) -> float:
        """Rows of all replicas over n."""
        return self._plan.epochs_after(self._state.steps)

    def snapshot(self) -> LocalState:
        """Return the state between two averages."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the next turn of every replica."""
        if self._round is not None:
            return []
        first = self._state.steps
        last = first + self._k if self._limit is None else min(first + self._k, self._limit)
        if last <= first:
            return []
        p = self._work.shares.replicas
        units = np.array([(r, 0, first, last) for r in range(p)], dtype=np.int64)
        homes = np.arange(p, dtype=np.int64) * min(slots, p) // p
        self._turn_rates = self._rates(first, last)
        inputs = (self._state.params, self._turn_rates)
        self._round = self._rounds.new(self._work, inputs, units, homes, where=f"steps {first + 1}..{last}")
        return self._round.orders()

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival."""
        if self._round is None or arrival.order.ticket != self._round.ticket:
            self._rounds.late(arrival)
            return []
        return self._round.accept(arrival)

    def advance(self) -> StepRecord | None:
        """Average, where every replica has arrived.

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
        assert isinstance(turns, Turns)
        average = np.divide(turns.params, float(turns.rows), out=turns.params if turns.params.flags.writeable else None)
        mean = self._work.total_weight / self._plan.rows * turns.rows
        loss = turns.loss / mean + self._penalty(state.params)
        if not (np.isfinite(loss) and np.isfinite(average).all()):
            raise DivergedError(
                f"the loss is {loss}", where=done.where, hint="a smaller schedule.learning_rate or strategy.local_steps"
            )
        reduced = time.perf_counter()
        outer = state.outer
        if self._outer is not None:
            pull = Sums(state.params - average, 0.0, 1.0, 1)
            outer, answer = self._outer.tell(outer, pull, 1.0, self.epochs)
            assert not isinstance(answer, Ask), "methods that ask again are refused"
            average = answer.params
        average.flags.writeable = False
        steps = state.steps + turns.steps // self._work.shares.replicas
        per_epoch = self._plan.steps_per_epoch
        self._state = LocalState(average, outer, steps, state.replicas)
        return StepRecord(
            step=steps,
            epoch=(steps - 1) // per_epoch,
            end_of_epoch=steps // per_epoch > state.steps // per_epoch,
            loss=float(loss),
            grad_norm=float(np.sqrt(turns.square / turns.steps)),
            learning_rate=float(self._turn_rates[-1]),
            rows=turns.rows,
            staleness=0,
            seconds_map=done.seconds_map,
            seconds_reduce=reduced - begin,
            seconds_update=time.perf_counter() - reduced,
            rss=done.rss,
        )
