"""downpour where the parameter server lives in workers: what a worker is asked to do.

- `HostShard`: serve a shard from now on, beside everything else that this worker does, and say where.
- `PushSteps`: a replica's turn: fetch the params of all shards, take local steps, push the sum of the gradients to all
  shards every n_push of them. A turn begins with a fetch and ends with a push, so nothing of a replica is left between
  two turns, and any worker can take the next one. Vectors go between workers; the driver learns counts.
- `LookAtShards`: the states of all shards, for a snapshot on the driver.

These are the only works that have an effect beside their value: a push. It is harmless to repeat because a shard
applies each step of a replica once (`bigopt.shardserver`). Where a shard cannot be reached the turn ends, and says
which; what was pushed before stays pushed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError, DivergedError
from bigopt.core.layout import Layout
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView
from bigopt.optim.method import FirstOrder
from bigopt.shardserver import Fetch, Look, Push, Seat, Shard, ShardState, copied, host, link, receive, send
from bigopt.work_local import LocalSteps

Array = npt.NDArray[Any]
_BROKEN: Final = (OSError, EOFError, AuthenticationError, ValueError)
_HOSTED, _LINK = "shard", "shard link"


class Gone(Exception):
    """Some shards cannot be reached."""

    def __init__(self, shards: tuple[int, ...]) -> None:
        super().__init__(shards)
        self.shards = shards


@dataclass
class Links:
    """A worker's connections to the shards of a run, kept from turn to turn.

    Parameters
    ----------
    run : str
    seats : sequence of Seat
    patience : float
    meter : Meter
        Of the order.
    """

    run: str
    seats: Sequence[Seat]
    patience: float
    meter: Meter
    down: int = 0
    up: int = 0

    def ask(self, messages: Sequence[Any]) -> list[Any]:
        """Send each shard its message, then read their answers.

        Raises
        ------
        Gone
            Where a shard cannot be reached; the others have been asked.
        """
        gone: set[int] = set()
        found: list[Any] = [None] * len(self.seats)
        open_: list[tuple[int, Connection]] = []
        for seat, message in zip(self.seats, messages, strict=True):
            try:
                connection = self._to(seat)
                self.up += send(connection, message)
                open_.append((seat.shard, connection))
            except _BROKEN:
                gone.add(seat.shard)
        for shard, connection in open_:
            try:
                found[shard], size = receive(connection)
                self.down += size
            except _BROKEN:
                gone.add(shard)
        if gone:
            self._forget(gone)
            raise Gone(tuple(sorted(gone)))
        return found

    def _to(self, seat: Seat) -> Connection:
        kept = self.meter.blocks.kept
        connection = kept.get(self.run, _LINK, seat.shard, seat.incarnation)
        if connection is None or connection.closed:
            connection = link(seat, kept.secret, self.patience)
            kept.put(self.run, _LINK, seat.shard, seat.incarnation, connection)
        return connection

    def _forget(self, gone: set[int]) -> None:
        """Close the connections to shards that are gone: what is left in them belongs to no question."""
        for seat in self.seats:
            connection = self.meter.blocks.kept.get(self.run, _LINK, seat.shard, seat.incarnation)
            if seat.shard in gone and connection is not None:
                connection.close()


def _secret(meter: Meter) -> bytes:
    secret = meter.blocks.kept.secret
    if not secret:
        raise ConfError(
            "shards on workers need workers that can connect to each other",
            where="strategy.shards_on",
            hint="backend.channel=auto, or shards_on=driver",
        )
    return secret


@wire
class AtSeat(NamedTuple):
    """The answer of `HostShard`."""

    seat: Seat

    def merge(self, other: AtSeat) -> AtSeat:
        """Refuse: a round hosts one shard."""
        raise TypeError("seats are not added")


@wire
@dataclass(frozen=True)
class HostShard:
    """Serve a shard; the input is its state, the unit ``(shard, 0, incarnation, incarnation + 1)``.

    Parameters
    ----------
    view : DataView
        Of the run: every worker proves that it reads the same data.
    run : str
        Token of the run.
    transform, schedule, layout, unit, average
        The method of the shard, without penalty.
    towards : str
        A host that all workers reach.
    """

    view: DataView
    run: str
    transform: Any
    schedule: Any
    layout: Layout
    unit: str
    average: bool | float
    towards: str

    def prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> AtSeat:
        """Begin to serve, unless that has been done here, and return where."""
        secret, kept = _secret(meter), meter.blocks.kept
        number, incarnation = int(unit[0]), int(unit[2])
        hosted = kept.get(self.run, _HOSTED, number, incarnation)
        if hosted is not None:
            return AtSeat(hosted.seat)
        method = FirstOrder(self.transform, self.schedule, self.layout, self.unit, None, self.average)  # type: ignore[arg-type]
        state = copied(inputs[0])
        assert isinstance(state, ShardState)
        hosted = host(Shard(method, state), number, incarnation, self.towards, secret)
        kept.put(self.run, _HOSTED, number, incarnation, hosted)
        return AtSeat(hosted.seat)


@wire
class PushTurn(NamedTuple):
    """What a turn came to.

    Parameters
    ----------
    loss, weight, square : float
        As in `bigopt.work_local.Turns`; `penalty` is that of the params that were fetched.
    penalty : float
    rows, steps : int
        Of the local steps whose gradients have been pushed.
    staleness : tuple of int
        Of each push that was applied: versions between its fetch and its update, the most over the shards.
    versions : tuple of int
        Of the shards, after the last push.
    dropped : int
        Pushes that a shard had applied before.
    gone : tuple of int
        Shards that could not be reached.
    down, up : int
        Bytes from and to the shards.
    """

    loss: float
    weight: float
    square: float
    penalty: float
    rows: int
    steps: int
    staleness: tuple[int, ...]
    versions: tuple[int, ...]
    dropped: int
    gone: tuple[int, ...]
    down: int
    up: int

    def merge(self, other: PushTurn) -> PushTurn:
        """Refuse: a round is the turn of one replica."""
        raise TypeError("turns of replicas that push are not added")


@wire
@dataclass(frozen=True)
class PushSteps:
    """A replica's turn; inputs are the seats, the rates of the local steps and where the run stands at each of them.

    Parameters
    ----------
    local : LocalSteps
        The steps between two pushes, with ``answer="replica"``.
    run : str
    n_push : int
    patience : float
        Seconds after which a shard that does not answer is gone.
    """

    local: LocalSteps
    run: str
    n_push: int
    patience: float

    @property
    def view(self) -> DataView:
        """The rows of the replica."""
        return self.local.view

    def prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Need nothing: params are fetched."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> PushTurn:
        """Return the turn ``unit = (replica, 0, first step, last step + 1)``."""
        seats, rates, batches = inputs
        _secret(meter)
        replica, _, first, last = (int(v) for v in unit)
        links = Links(self.run, seats, self.patience, meter)
        turn = PushTurn(0.0, 0.0, 0.0, 0.0, 0, 0, (), (), 0, (), 0, 0)
        try:
            fetched = links.ask([Fetch()] * len(seats))
            params = np.concatenate([part.params for part in fetched])
            versions = tuple(part.version for part in fetched)
            penalty = self.local.penalty.value(params, self.local.model.layout)
            turn = turn._replace(penalty=penalty, versions=versions)
            cuts = np.cumsum([0, *(part.params.size for part in fetched)])
            for start in range(first, last, self.n_push):
                stop = min(start + self.n_push, last)
                part = np.array([replica, 0, start, stop], dtype=np.int64)
                steps = self.local((params, rates[start - first : stop - first]), part, meter)
                params, turn = (
                    steps.params,
                    turn._replace(
                        loss=turn.loss + steps.loss,
                        weight=turn.weight + steps.weight,
                        square=turn.square + steps.square,
                        rows=turn.rows + steps.rows,
                        steps=turn.steps + steps.steps,
                    ),
                )
                at = float(batches[stop - first - 1])
                pieces = [steps.pushed[a:b] for a, b in itertools.pairwise(cuts)]
                pushed = links.ask([Push(replica, start, stop, piece, at) for piece in pieces])
                for seat, answer in zip(seats, pushed, strict=True):
                    if answer.error:
                        raise DivergedError(
                            answer.error,
                            where=f"shard {seat.shard}, replica {replica}",
                            hint="a smaller schedule.learning_rate or local_learning_rate",
                        )
                stale = [a.version - 1 - v for a, v in zip(pushed, versions, strict=True) if a.applied]
                turn = turn._replace(
                    staleness=(*turn.staleness, max(stale)) if stale else turn.staleness,
                    dropped=turn.dropped + sum(not answer.applied for answer in pushed),
                    versions=tuple(answer.version for answer in pushed),
                )
        except Gone as gone:
            turn = turn._replace(gone=gone.shards)
        return turn._replace(down=links.down, up=links.up)


@wire
class ShardStates(NamedTuple):
    """The answer of `LookAtShards`: the states of all shards, or who could not be reached."""

    shards: tuple[ShardState, ...]
    gone: tuple[int, ...]

    def merge(self, other: ShardStates) -> ShardStates:
        """Refuse: one worker looks at all shards."""
        raise TypeError("states of shards are not added")


@wire
@dataclass(frozen=True)
class LookAtShards:
    """Read the states of all shards; the input is their seats."""

    view: DataView
    run: str
    patience: float

    def prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> ShardStates:
        """Return the states."""
        _secret(meter)
        links = Links(self.run, inputs[0], self.patience, meter)
        try:
            return ShardStates(tuple(links.ask([Look()] * len(inputs[0]))), ())
        except Gone as gone:
            return ShardStates((), gone.shards)
