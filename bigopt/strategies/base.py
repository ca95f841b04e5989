"""What every strategy is: a machine that never sees an engine.

::

    orders = machine.more(slots)                 # what to have in flight
    while not finished:
        submit(orders)
        orders = machine.handle(arrival)         # orders to repeat
        while (record := machine.advance()) is not None:
            ...                                  # params were updated
        orders += machine.more(slots)            # unless the run is to stop

A machine's `snapshot` is what a checkpoint holds; a machine made from it goes on as if nothing had happened. All
machines are made from the same `Setting` by `bigopt.strategies.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy.typing as npt

from bigopt.backends.ledger import Rounds
from bigopt.core.arrays import Device
from bigopt.data.plan import Plan
from bigopt.data.view import DataView
from bigopt.models.base import Model
from bigopt.models.penalties import Penalty
from bigopt.optim.method import AskKind, FirstOrder, Method
from bigopt.optim.schedules import Scaled
from bigopt.strategies.gates import Update, no_log
from bigopt.work import Arrival, Order, Work
from bigopt.work_compressed import CompressedSum
from bigopt.work_hogwild import HogwildSteps
from bigopt.work_local import Answer, LocalSteps

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


class Renewal(NamedTuple):
    """Constants inside params that rounds over all rows renew at the start of every epoch.

    Parameters
    ----------
    work : Work
        Its input is params, shape (p,).
    rounds : int
        Rounds before the first epoch: each makes what is right one layer higher. Later epochs have one.
    apply : callable
        ``apply(params, root)`` gives new params with the constants of the round.
    """

    work: Work
    rounds: int
    apply: Callable[[Array, Any], Array]


def steady(_: int) -> float:
    """Return 1: the rate is the method's in every epoch."""
    return 1.0


def scaled(method: Method[Any], factor: float) -> Method[Any]:
    """Return the method with its learning rate multiplied; one that searches for its steps has none."""
    if factor == 1.0:
        return method
    assert isinstance(method, FirstOrder), "a line search has no rate"
    return replace(method, schedule=Scaled(method.schedule, factor))


Rates = Callable[[int, int], Array]
"""``rates(first, last)`` gives the rates of local steps first, ..., last - 1, shape (last - first,)."""


def none_here(*_: Any) -> Any:
    """Refuse: the setting was made for a strategy that needs no such thing."""
    raise TypeError("this setting was made for another strategy")


@dataclass(frozen=True)
class Blocks:
    """What a strategy that cuts the model itself is made from.

    Parameters
    ----------
    model : Model
    view : DataView
        The training rows, with all their columns.
    number : int
        Blocks that the model is cut into: ``strategy.blocks``, or the workers at the first start.
    dtype : str
        ``run.dtype``.
    block_rows : int
    device : str
    kernels : str
        The kernel set of the run.
    memory : int
        ``data.memory``.
    slots : int
        Workers at the first start.
    penalty : Penalty
    """

    model: Model
    view: DataView
    number: int
    dtype: str
    block_rows: int
    device: Device
    kernels: str
    memory: int
    slots: int
    penalty: Penalty = field(default_factory=Penalty)


def silent(text: str) -> None:
    """Tell nobody."""


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
    pace : callable
        ``pace(epoch)``: what the method's rate is multiplied by in an epoch.
    renewal : Renewal or None
        None where params hold no constants.
    steps : int or None
        Of the whole run; None where only time or a target ends it.
    slots : int
        Workers at this start.
    options : mapping
        The conf's ``strategy`` group.
    local : callable
        ``local(replicas, answer)`` gives the local steps of that many replicas, and their rates.
    hogwild : callable
        ``hogwild()`` gives the steps of hogwild, their rates, and the number of replicas at a first start.
    server : callable
        ``server(name, keys, learning_rate)`` gives a method without penalty for the outer step or the parameter
        server; no name means the conf's own optimizer, a rate of None the conf's schedule.
    blocks : callable
        ``blocks()`` gives what a cut model is made from.
    compressed : callable or None
        ``compressed(replicas)`` gives the compressed gradients of that many replicas; None where they travel whole.
    log : callable
        Takes every `Update` of an asynchronous strategy.
    tell : callable
        Takes what a person should know.
    shards_at : tuple
        A host that all workers reach, and the seconds after which a shard that does not answer is gone.
    replay : sequence of Update or None
        The log of a run that is to be repeated, from its first update.
    """

    method: Method[Any]
    plan: Plan
    evaluate: Callable[[AskKind], Evaluation]
    penalty: Callable[[Array], float]
    total_weight: float
    rounds: Rounds
    pace: Callable[[int], float] = steady
    renewal: Renewal | None = None
    steps: int | None = None
    slots: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    local: Callable[[int, Answer], tuple[LocalSteps, Rates]] = none_here
    hogwild: Callable[[], tuple[HogwildSteps, Rates, int]] = none_here
    server: Callable[[str | None, Mapping[str, Any], float | None], Method[Any]] = none_here
    blocks: Callable[[], Blocks] = none_here
    compressed: Callable[[int], CompressedSum] | None = None
    log: Callable[[Update], object] = no_log
    tell: Callable[[str], object] = silent
    shards_at: tuple[str, float] = ("127.0.0.1", 60.0)
    replay: Sequence[Update] | None = None


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
    worker : int
        Slot or replica that the update came from; 0 where all have a part in it.
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
    worker: int = 0


@runtime_checkable
class Logged(Protocol):
    """A state whose updates are logged, so that the run can be repeated."""

    @property
    def updates(self) -> int:
        """Updates logged so far."""
        ...


@runtime_checkable
class Delayed(Protocol):
    """A state that holds what was measured of the delays of its updates."""

    @property
    def delays(self) -> Mapping[str, Any]:
        """What the run's result says of them."""
        ...


@runtime_checkable
class Replicated(Protocol):
    """A state with replicas, as many for the whole run."""

    @property
    def number(self) -> int:
        """How many."""
        ...


@runtime_checkable
class Afar(Protocol):
    """A machine whose params lie on workers, and are brought here where somebody asks for them."""

    @property
    def here(self) -> bool:
        """Whether `Machine.params` are here."""
        ...

    def bring(self, slots: int) -> list[Order]:
        """Return the orders that bring them and are not in flight; `Machine.handle` takes the arrivals."""
        ...


@runtime_checkable
class Noted(Protocol):
    """A machine with something to say at the start: what null became."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences."""
        ...


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

    def handle(self, arrival: Arrival) -> list[Order]:
        """Take an arrival; return orders to repeat."""
        ...

    def advance(self) -> StepRecord | None:
        """Update params, where what has arrived allows it; to be called until it returns None.

        Raises
        ------
        DivergedError
            Where loss, gradient or params are not finite; the state stays the last finite one.
        """
        ...

    def snapshot(self) -> Any:
        """Return the state that a checkpoint holds."""
        ...
