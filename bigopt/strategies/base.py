"""What every strategy is: a machine that never sees an engine.

::

    orders = machine.more(slots)                 # what to have in flight
    while not finished:
        submit(orders)
        orders, record = machine.handle(arrival) # orders to repeat; a record where params were updated
        orders += machine.more(slots)            # unless the run is to stop

A machine's `snapshot` is what a checkpoint holds; a machine made from it goes on as if nothing had happened. All
machines are made from the same `Setting` by `bigopt.strategies.table`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from bigopt.backends.ledger import Rounds
from bigopt.data.plan import Plan
from bigopt.optim.method import AskKind, Method
from bigopt.work import Arrival, Order, Work

Array = npt.NDArray[Any]


class Evaluation(NamedTuple):
    """How an `Ask` of some kind is answered.

    Parameters
    ----------
    work : Work
        What a batch's units compute.
    finish : callable
        ``finish(inputs, root)`` gives what the method is told: the root itself where the Map did all; forward and
        backward for rows that were only selected (``backprop: driver``).
    """

    work: Work
    finish: Callable[[tuple[Array, ...], Any], Any]


@dataclass(frozen=True)
class Setting:
    """What every strategy is made from.

    Parameters
    ----------
    method : Method
    plan : Plan
    evaluate : callable
        ``evaluate(kind)`` gives the `Evaluation` of a kind of `Ask`.
    penalty : callable
        ``penalty(params) -> float``, for the loss in the records.
    total_weight : float
        W of all used rows.
    rounds : Rounds
        Makes rounds (ticket numbers, retries, counters).
    """

    method: Method[Any]
    plan: Plan
    evaluate: Callable[[AskKind], Evaluation]
    penalty: Callable[[Array], float]
    total_weight: float
    rounds: Rounds


@dataclass(frozen=True)
class StepRecord:
    """One update of params, as it is measured.

    Parameters
    ----------
    step : int
        Updates so far, this one included.
    epoch : int
        Number of the epoch it belongs to, from 0.
    end_of_epoch : bool
        Whether its batch was the last of the epoch.
    loss : float
        Mean loss of the batch before the update, with the penalty.
    grad_norm, learning_rate : float
    rows : int
        Rows behind the gradient.
    staleness : int
        Version at update minus version the gradient was computed from.
    seconds_map, seconds_reduce, seconds_update : float
    rss : int
        Largest resident memory of a worker, bytes.
    """

    step: int
    epoch: int
    end_of_epoch: bool
    loss: float
    grad_norm: float
    learning_rate: float
    rows: int
    staleness: int
    seconds_map: float
    seconds_reduce: float
    seconds_update: float
    rss: int


class Machine(Protocol):
    """A strategy."""

    @property
    def steps(self) -> int:
        """Updates of params so far."""
        ...

    @property
    def params(self) -> Array:
        """The current parameters, a read-only snapshot of shape (p,)."""
        ...

    @property
    def epochs(self) -> float:
        """Rows drawn by the sampler over n."""
        ...

    def more(self, slots: int) -> list[Order]:
        """Return the orders that should be in flight and are not."""
        ...

    def handle(self, arrival: Arrival) -> tuple[list[Order], StepRecord | None]:
        """Take an arrival; return orders to repeat, and the record of the update it led to."""
        ...

    def snapshot(self) -> Any:
        """Return the state that a checkpoint holds."""
        ...
