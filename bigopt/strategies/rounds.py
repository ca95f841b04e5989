"""What the machines have in common that know one round at a time.

`OneRound` is the round under way, if there is one: arrivals of any other are counted and dropped. It is all that
machines share whose rounds are passes or turns of their own kind.

Most machines are `Steps` besides: a step uses the next batch of the plan, takes one round or several, and nothing is in
flight between two steps. Their state has a place in the plan, ``steps``, ``epoch`` and ``position``; plan and method
are those of its epoch. Such a machine says what its rounds compute (`more`) and what becomes of their roots
(`advance`); when a step is over it hands the next state to `_over`, which goes there and makes the record.

`GradientSteps` are those whose step is the method's, told one gradient on the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round, Rounds
from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.core.sums import Sums
from bigopt.data.plan import Ints, Plan
from bigopt.optim.method import Ask, FirstOrder, Method
from bigopt.strategies.base import Setting, StepRecord, scaled
from bigopt.work import Arrival, Order, Work

Array = npt.NDArray[Any]


def as_they_are(orders: list[Order]) -> list[Order]:
    """Return orders that need nothing of their own."""
    return orders


class OneRound:
    """The round under way, or none.

    Parameters
    ----------
    rounds : Rounds
        Makes it.
    filled : callable
        ``filled(orders)`` gives orders what each needs of its own; first ones and those to repeat alike.
    """

    def __init__(self, rounds: Rounds, filled: Callable[[list[Order]], list[Order]] = as_they_are) -> None:
        self._rounds = rounds
        self._filled = filled
        self._round: Round | None = None

    @property
    def open(self) -> bool:
        """Whether there is one, complete or not."""
        return self._round is not None

    def begin(self, work: Work, inputs: tuple[Any, ...], units: Ints, homes: Ints, where: str) -> list[Order]:
        """Begin the next one and return its orders; see `bigopt.backends.ledger.Round`."""
        self._round = self._rounds.new(work, inputs, units, homes, where=where)
        return self._filled(self._round.orders())

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat."""
        if self._round is None or arrival.order.ticket != self._round.ticket:
            self._rounds.late(arrival)
            return []
        return self._filled(self._round.accept(arrival))

    def wanted(self, orders: list[Order]) -> list[Order]:
        """Return the orders of it that some unit is still missing of."""
        round_ = self._round
        return [] if round_ is None else [order for order in orders if round_.wants(order)]

    def take(self) -> Round | None:
        """Return it where it is complete, and have none then; else None."""
        done = self._round
        if done is None or not done.done:
            return None
        self._round = None
        return done


class Spent(NamedTuple):
    """What the rounds of a step have cost so far, and the mean loss of the batch once it is known."""

    loss: float = 0.0
    seconds_map: float = 0.0
    seconds_reduce: float = 0.0
    seconds_update: float = 0.0
    rss: int = 0

    def plus(self, done: Round, reduce: float = 0.0, update: float = 0.0) -> Spent:
        """Add a round."""
        return Spent(
            self.loss,
            self.seconds_map + done.seconds_map,
            self.seconds_reduce + reduce,
            self.seconds_update + update,
            max(self.rss, done.rss),
        )


NOTHING: Final = Spent()


class Placed(Protocol):
    """A state with a place in the plan."""

    @property
    def steps(self) -> int:
        """Updates so far."""
        ...

    @property
    def epoch(self) -> int:
        """Epoch of the next batch."""
        ...

    @property
    def position(self) -> int:
        """Number of the next batch within its epoch."""
        ...


S = TypeVar("S", bound=Placed)


class Steps(Generic[S]):
    """A machine whose step is a batch of the plan, with nothing in flight between two steps.

    Parameters
    ----------
    setting : Setting
    state : Placed
    """

    def __init__(self, setting: Setting, state: S) -> None:
        self._setting = setting
        self._state = state
        self._round = OneRound(setting.rounds, self._filled)
        self._spent = NOTHING
        self._go_to(state.epoch)

    def _go_to(self, epoch: int) -> None:
        self._plan: Plan = self._setting.plan.at(epoch)
        self._method: Method[Any] = scaled(self._setting.method, self._setting.pace(epoch))

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self._state.steps

    @property
    def epochs(self) -> float:
        """Rows drawn over n."""
        return self._plan.epochs_at(self._state.epoch, self._state.position)

    def snapshot(self) -> S:
        """Return the state between two steps."""
        return self._state

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat."""
        return self._round.handle(arrival)

    def _filled(self, orders: list[Order]) -> list[Order]:
        """Return orders with what each needs of its own: here nothing."""
        return orders

    @property
    def _where(self) -> str:
        """The step under way, for messages."""
        return f"step {self._state.steps + 1}"

    @property
    def _divisor(self) -> float:
        """What makes sums over the batch a mean."""
        return self._plan.divisor(self._state.position, self._setting.total_weight)

    def _rate(self) -> float:
        """Return the rate of the step, where it is the schedule's."""
        method = self._method
        assert isinstance(method, FirstOrder)
        return float(method.schedule(float(self._state.steps if method.unit == "step" else self.epochs)))

    def _finite(self, loss: float) -> float:
        """Return the mean loss of the batch.

        Raises
        ------
        DivergedError
            Where it is not finite.
        """
        if not np.isfinite(loss):
            raise DivergedError(f"the loss is {loss}", where=self._where, hint="a smaller schedule.learning_rate")
        return float(loss)

    def _over(self, after: S, grad_norm: float, learning_rate: float, loss: float | None = None) -> StepRecord:
        """Go to the state after a step; return its record, with the loss that is in `_spent` where none is given."""
        before, plan, spent = self._state, self._plan, self._spent
        self._state, self._spent = after, NOTHING
        if after.epoch != before.epoch:
            self._go_to(after.epoch)
        return StepRecord(
            step=after.steps,
            epoch=before.epoch,
            end_of_epoch=after.epoch != before.epoch,
            loss=spent.loss if loss is None else loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            rows=plan.batch_rows(before.position),
            staleness=0,
            seconds_map=spent.seconds_map,
            seconds_reduce=spent.seconds_reduce,
            seconds_update=spent.seconds_update,
            rss=spent.rss,
        )


@wire
class SyncState(NamedTuple):
    """What a checkpoint holds of a run whose method is on the driver.

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


def start(setting: Setting, params: Array) -> SyncState:
    """Return the state before step 1."""
    return SyncState(setting.method.start(params)[0], 0, 0, 0)


class GradientSteps(Steps[SyncState]):
    """Steps whose update is the method's, on the driver.

    Parameters
    ----------
    setting : Setting
    state : SyncState
    """

    @property
    def params(self) -> Array:
        """The parameters to evaluate and to save: the current ones, or their average where the method keeps one."""
        params: Array = self._method.result_params(self._state.method)
        return params

    @property
    def _current(self) -> Array:
        """The current parameters, where the gradient is taken."""
        params: Array = self._method.ask(self._state.method).params
        return params

    def _after(self, method: Any) -> SyncState:
        """Return the state after a step that leaves the method in this one."""
        state = self._state
        return SyncState(method, state.steps + 1, *self._plan.after(state.epoch, state.position), state.renewed)

    def _told(self, sums: Sums) -> StepRecord:
        """Make the step of a method that asks for one gradient."""
        begin = time.perf_counter()
        inner, answer = self._method.tell(self._state.method, sums, self._divisor, self.epochs)
        assert not isinstance(answer, Ask), "methods that ask again are refused"
        after = self._after(inner)
        self._spent = self._spent._replace(seconds_update=time.perf_counter() - begin)
        return self._over(after, answer.grad_norm, answer.learning_rate)
