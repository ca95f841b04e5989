"""downpour and easgd: replicas that run by themselves and meet a server one at a time.

Each replica has a shard of the rows and takes local steps from params of its own; when its turn is over it meets the
server, alone, and goes on. What happens at a meeting is an `Exchange` (`bigopt.strategies.exchanges`).

Where pushes are compressed every push is a fetch too, so that a replica's params need not travel up at all.

A step of such a run is p local steps, one batch of ``batch.size`` rows over all replicas, whoever takes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.strategies.base import Rates, Setting, StepRecord
from bigopt.strategies.exchanges import Downpour, Elastic, Exchange, Replica, turn_rates
from bigopt.strategies.gates import Update, no_log
from bigopt.strategies.residuals import Residual, Residuals
from bigopt.strategies.shards import sharded
from bigopt.work import Arrival, Order
from bigopt.work_compressed import CompressedTurn
from bigopt.work_local import LocalSteps, Turns

Array = npt.NDArray[Any]


@wire
class ReplicasState(NamedTuple):
    """What a checkpoint holds; turns that are out are begun again from their replica's state.

    Parameters
    ----------
    server : State
    replicas : tuple of Replica
    version : int
        Updates of the server.
    local_steps : int
        Of all replicas together.
    updates : int
        Meetings so far: lines of the log.
    residuals : tuple of Residual
        Of the replicas, where their pushes are compressed.
    """

    server: Any
    replicas: tuple[Replica, ...]
    version: int
    local_steps: int
    updates: int
    residuals: tuple[Residual, ...] = ()

    @property
    def number(self) -> int:
        """How many replicas there are."""
        return len(self.replicas)


def begin(exchange: Exchange, params: Array, replicas: int) -> ReplicasState:
    """Return the state of a new run: every replica at the server's params."""
    fresh = Replica(params, np.zeros_like(params), 0, 0)
    return ReplicasState(exchange.start(params), (fresh,) * replicas, 0, 0, 0)


class Replicas:
    """A server and its replicas.

    Parameters
    ----------
    setting : Setting
        Its method is the exchange's business.
    state : ReplicasState
    exchange : Exchange
    work : LocalSteps
        With ``answer="replica"`` and shards of the replicas' own.
    rates : callable
    order : sequence of int, optional
        Replicas in the order in which they are to meet the server: a recorded run is repeated.
    log : callable
        Called with an `Update` whenever a replica, its number for a ticket, has met the server.
    """

    def __init__(
        self,
        setting: Setting,
        state: ReplicasState,
        exchange: Exchange,
        work: LocalSteps,
        rates: Rates,
        *,
        order: Sequence[int] | None = None,
        log: Callable[[Update], object] = no_log,
    ) -> None:
        self._state = state
        self._exchange = exchange
        self._work = work
        self._plan = setting.plan
        self._rates = rates
        self._penalty = setting.penalty
        self._rounds = setting.rounds
        self._count = work.shares.replicas
        self._limit = None if setting.steps is None else setting.steps * self._count
        self._order = order
        self._log = log
        self._residuals: Residuals | None = None
        if setting.compressed is not None:
            coded = setting.compressed(self._count)
            push = CompressedTurn(work, coded.compressor, coded.feedback, coded.run)
            self._residuals = Residuals(push, state.residuals, setting.rounds.ledger)
        self._slots = 1
        self._begun = False
        self._given = state.local_steps
        self._orders: list[Order] = []
        self._out: dict[int, tuple[int, Round, Array]] = {}
        self._arrived: list[tuple[int, Round, Array]] = []

    @property
    def steps(self) -> int:
        """Batches so far, of p local steps each."""
        return self._state.local_steps // self._count

    @property
    def params(self) -> Array:
        """The server's params."""
        return self._exchange.params(self._state.server)

    @property
    def epochs(self) -> float:
        """Batches of all replicas in epochs."""
        return self._state.local_steps / self._count / self._plan.steps_per_epoch

    def snapshot(self) -> ReplicasState:
        """Return the state between two meetings."""
        return self._state if self._residuals is None else self._state._replace(residuals=self._residuals.state)

    def more(self, slots: int) -> list[Order]:
        """Return the turns that have been decided since the last call; at first, one for every replica."""
        self._slots = slots
        if not self._begun:
            self._begun = True
            for number in range(self._count):
                self._turn(number)
        orders, self._orders = self._orders, []
        return orders

    def _turn(self, number: int) -> None:
        """Decide a replica's next turn, as long as steps are left.

        That happens when its last one is over, whoever else has arrived: so that the order of the meetings is all
        that a repeated run needs.
        """
        replica, given = self._state.replicas[number], self._given
        length = self._exchange.turn(replica)
        if self._limit is not None:
            length = min(length, self._limit - given)
        if length <= 0:
            return
        self._given += length
        steps = None if self._limit is None else self._limit // self._count
        self._orders += self._send(number, turn_rates(self._rates, given // self._count, length, steps))

    def _send(self, number: int, rates: Array) -> list[Order]:
        """Return the order of a replica's next turn."""
        replica, work, more = self._state.replicas[number], self._work, tuple[Array, ...]()
        units = np.array([(number, 0, replica.steps, replica.steps + len(rates))], dtype=np.int64)
        if self._residuals is not None:
            work, more, units = self._residuals.order(number, replica.params, *units[0, 2:].tolist())
        home = np.array([number * min(self._slots, self._count) // self._count], dtype=np.int64)
        made = self._rounds.new(work, (replica.params, rates, *more), units, home, where=f"replica {number}")
        self._out[made.ticket] = (number, made, rates)
        return made.orders()

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival."""
        ticket = arrival.order.ticket
        if ticket not in self._out:
            self._rounds.late(arrival)
            return []
        number, made, rates = self._out[ticket]
        again = made.accept(arrival)
        if made.done:
            del self._out[ticket]
            dense = self._state.replicas[number].params.nbytes
            if self._residuals is not None and not self._residuals.take(made.value.parts[0], dense):
                return self._send(number, rates)
            self._arrived.append((number, made, rates))
        return again

    def advance(self) -> StepRecord | None:
        """Let one replica that has arrived meet the server, or return None."""
        met, order = self._state.updates, self._order
        wanted = None if order is None or met >= len(order) else order[met]
        at = next((i for i, entry in enumerate(self._arrived) if wanted in (None, entry[0])), None)
        if at is None:
            return None
        record = self._meet(*self._arrived[at])
        del self._arrived[at]
        return record

    def _meet(self, number: int, done: Round, rates: Array) -> StepRecord:
        begin = time.perf_counter()
        state, p = self._state, self._count
        before = state.replicas[number]
        turn = self._turned(before, done)
        loss = turn.loss / (self._work.total_weight / self._plan.rows * turn.rows) + self._penalty(before.params)
        if not (np.isfinite(loss) and np.isfinite(turn.params).all()):
            raise DivergedError(
                f"the loss is {loss}", where=done.where, hint="a smaller schedule.learning_rate or local_learning_rate"
            )
        reduced = time.perf_counter()
        local = state.local_steps + turn.steps
        last = self._limit is not None and self._given >= self._limit
        replica = Replica(turn.params, before.pushed + turn.pushed, before.steps + turn.steps, before.version)
        server, replica, version = self._exchange.meet(state.server, replica, state.version, (local - 1) // p, last)
        self._log(Update(number, before.version, number))
        replicas = tuple(replica if r == number else other for r, other in enumerate(state.replicas))
        self._state = ReplicasState(server, replicas, version, local, state.updates + 1, state.residuals)
        self._turn(number)
        steps, per_epoch = local // p, self._plan.steps_per_epoch
        return StepRecord(
            step=steps,
            epoch=max(0, steps - 1) // per_epoch,
            end_of_epoch=steps // per_epoch > state.local_steps // p // per_epoch,
            loss=float(loss),
            grad_norm=float(np.sqrt(turn.square / turn.steps)),
            learning_rate=float(rates[-1]),
            rows=turn.rows,
            staleness=state.version - before.version,
            seconds_map=done.seconds_map,
            seconds_reduce=reduced - begin,
            seconds_update=time.perf_counter() - reduced,
            rss=done.rss,
            worker=number,
        )

    def _turned(self, before: Replica, done: Round) -> Turns:
        """Return a replica's turn; after a compressed one its params are fetched, and stay until then as they were."""
        turn = done.value
        if self._residuals is not None:
            part = turn.parts[0]
            turn = part.turn._replace(params=before.params, pushed=self._residuals.decoded(part))
        assert isinstance(turn, Turns)
        return turn


def _exchange(setting: Setting, replicas: int) -> Exchange:
    options = setting.options
    if options["name"] == "easgd":
        return Elastic(options.get("alpha") or 0.9 / replicas, options["every"])
    server = sharded(setting.server(None, {}, None), options.get("shards") or 1)
    return Downpour(server, options["n_push"], options["n_fetch"])


def start(setting: Setting, params: Array) -> ReplicasState:
    """Return the state before the first turns."""
    replicas = setting.options.get("replicas") or setting.slots
    return begin(_exchange(setting, replicas), params, replicas)


def machine(setting: Setting, state: ReplicasState) -> Replicas:
    """Return the machine of ``strategy.name: downpour`` and ``easgd``."""
    replicas = len(state.replicas)
    work, rates = setting.local(replicas, "replica")
    order = None if setting.replay is None else [update.ticket for update in setting.replay]
    return Replicas(setting, state, _exchange(setting, replicas), work, rates, order=order, log=setting.log)
