"""A round of turns: every replica works by itself from the same params, then they are averaged.

Strategies that do this differ in what a turn is and in what becomes of the average; the machine is one. A `Rule` says
both::

    rule.turn(state)                  the work of the next round, one leaf a replica; None where nothing is left to do
    rule.take(state, average, sums)   the state after it, and its largest staleness

The average weighs a replica by its rows and is folded along the tree over the replicas, so that it does not depend on
the workers. Between two rounds nothing is in flight: that is what a checkpoint holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import DivergedError
from bigopt.data.plan import Ints
from bigopt.strategies.base import Setting, StepRecord
from bigopt.strategies.rounds import OneRound
from bigopt.work import Arrival, Order, Work

Array = npt.NDArray[Any]


class TurnState(Protocol):
    """What a state has for all of these strategies."""

    @property
    def params(self) -> Array:
        """The average, shape (p,)."""
        ...

    @property
    def steps(self) -> int:
        """Steps so far, as the schedule counts them."""
        ...


class TurnSums(Protocol):
    """What turns of replicas came to.

    Attributes
    ----------
    params : ndarray, shape (p,)
        sum over the replicas of rows x params at the end.
    loss, square : float
        Sums of weighted losses, and of squared norms of the mean gradients.
    rows, steps : int
        Rows of all gradients, and gradients.
    """

    @property
    def params(self) -> Array: ...

    @property
    def loss(self) -> float: ...

    @property
    def square(self) -> float: ...

    @property
    def rows(self) -> int: ...

    @property
    def steps(self) -> int: ...


class Turn(NamedTuple):
    """What a round is to compute.

    Parameters
    ----------
    work : Work
    inputs : tuple of ndarray
    units : ndarray, shape (k, 4)
        Its leaves.
    where : str
        What the round is, for messages.
    rate : float
        Of its last step.
    learn : callable or None
        Takes the root of a round that has no steps but prepares them.
    """

    work: Work
    inputs: tuple[Any, ...]
    units: Ints
    where: str
    rate: float = 0.0
    learn: Callable[[Any], None] | None = None


S = TypeVar("S", bound=TurnState)


class Rule(Protocol[S]):
    """What a turn is, and what becomes of the average of turns."""

    @property
    def remedy(self) -> str:
        """What helps where a run diverges."""
        ...

    def turn(self, state: S) -> Turn | None:
        """Return the next round."""
        ...

    def take(self, state: S, average: Array, sums: TurnSums) -> tuple[S, int]:
        """Return the state after a round, and the largest staleness in it; `average` may be kept or overwritten."""
        ...


class Averaging(Generic[S]):
    """The machine of rounds of turns.

    Parameters
    ----------
    setting : Setting
        Its method is not used: steps in a turn are plain SGD.
    state : TurnState
    rule : Rule
    """

    def __init__(self, setting: Setting, state: S, rule: Rule[S]) -> None:
        self._state = state
        self._rule = rule
        self._plan = setting.plan
        self._penalty = setting.penalty
        self._row_weight = setting.total_weight / setting.plan.rows
        self._round = OneRound(setting.rounds)
        self._turn: Turn | None = None

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._state.steps

    @property
    def params(self) -> Array:
        """The average."""
        return self._state.params

    @property
    def epochs(self) -> float:
        """Rows of all replicas over n."""
        return self._plan.epochs_after(self._state.steps)

    def snapshot(self) -> S:
        """Return the state between two rounds."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the next turn of every replica."""
        if self._round.open:
            return []
        turn = self._turn = self._rule.turn(self._state)
        if turn is None:
            return []
        k = len(turn.units)
        homes = np.arange(k, dtype=np.int64) * min(slots, k) // k
        return self._round.begin(turn.work, turn.inputs, turn.units, homes, turn.where)

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival."""
        return self._round.handle(arrival)

    def advance(self) -> StepRecord | None:
        """Average, where every replica has arrived.

        Raises
        ------
        DivergedError
            Where loss or params are not finite; the state stays the last finite one.
        """
        done, turn = self._round.take(), self._turn
        if done is None or turn is None:
            return None
        begin = time.perf_counter()
        state, sums = self._state, done.value
        if turn.learn is not None:
            turn.learn(sums)
            return None
        average = np.divide(sums.params, float(sums.rows), out=sums.params if sums.params.flags.writeable else None)
        loss = sums.loss / (self._row_weight * sums.rows) + self._penalty(state.params)
        if not (np.isfinite(loss) and np.isfinite(average).all()):
            raise DivergedError(f"the loss is {loss}", where=done.where, hint=self._rule.remedy)
        reduced = time.perf_counter()
        self._state, staleness = self._rule.take(state, average, sums)
        self._state.params.flags.writeable = False
        steps, per_epoch = self._state.steps, self._plan.steps_per_epoch
        return StepRecord(
            step=steps,
            epoch=(steps - 1) // per_epoch,
            end_of_epoch=steps // per_epoch > state.steps // per_epoch,
            loss=float(loss),
            grad_norm=float(np.sqrt(sums.square / sums.steps)),
            learning_rate=turn.rate,
            rows=sums.rows,
            staleness=staleness,
            seconds_map=done.seconds_map,
            seconds_reduce=reduced - begin,
            seconds_update=time.perf_counter() - reduced,
            rss=done.rss,
        )
