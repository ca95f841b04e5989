"""downpour with its parameter server on workers: the driver decides turns, rates and records, and sees no vector.

Shards are served by workers, a replica's turn fetches from them and pushes to them (`bigopt.work_shards`). The driver
orders three things: that a shard be served, a replica's next turn, and now and then a look at all shards, its
*snapshot*: a tenth of an epoch apart, at the end of an epoch, and at the end. What is validated, saved and resumed from
is the snapshot.

What is promised: each push is applied by each shard once at most, whatever is repeated. A snapshot may hold pushes of
turns that are still under way; a run that goes on from it makes these turns again, and the shards drop what they
already have. A shard whose worker is gone is served again by another worker from the last snapshot, while the other
shards keep what they have: the pushes to it since then are lost, which is counted and said. Bits are not promised.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core.errors import ClusterError, DivergedError
from bigopt.optim.fused import Fused
from bigopt.optim.method import FirstOrder, snapshot
from bigopt.shardserver import Seat
from bigopt.strategies import replicas
from bigopt.strategies.base import Machine, Rates, Setting, StepRecord
from bigopt.strategies.exchanges import turn_rates
from bigopt.strategies.served_state import ServedState, begin
from bigopt.strategies.shards import Sharded, cut
from bigopt.work import Arrival, Order, Work
from bigopt.work_local import LocalSteps
from bigopt.work_shards import AtSeat, HostShard, LookAtShards, PushSteps, PushTurn, ShardStates

Array = npt.NDArray[Any]
SNAPSHOTS: Final = 10
"""An epoch."""


class Served:
    """Replicas and shards on workers.

    Parameters
    ----------
    setting : Setting
    state : ServedState
    sharded : Sharded
        The method of the server, cut.
    local : LocalSteps
        With ``answer="replica"`` and shards of the rows of the replicas' own.
    rates : callable
    n_push, n_fetch : int
        n_fetch a multiple of n_push.
    """

    def __init__(
        self,
        setting: Setting,
        state: ServedState,
        sharded: Sharded,
        local: LocalSteps,
        rates: Rates,
        *,
        n_push: int,
        n_fetch: int,
    ) -> None:
        self._committed = state
        self._now = state  # counters that the next snapshot will commit; its shards are the last snapshot's
        self._sharded = sharded
        self._plan = setting.plan
        self._rounds = setting.rounds
        self._rates = rates
        self._tell = setting.tell
        self._n_fetch = n_fetch
        self._count = state.number
        self._weight = local.total_weight / setting.plan.rows
        self._limit = None if setting.steps is None else setting.steps * self._count
        self._run = secrets.token_hex(8)
        towards, patience = setting.shards_at
        self._push = PushSteps(local, self._run, n_push, patience)
        self._look = LookAtShards(local.view, self._run, patience)
        self._hosts = tuple(
            HostShard(
                local.view,
                self._run,
                m.transform.inner if isinstance(m.transform, Fused) else m.transform,
                m.schedule,
                m.layout,
                m.unit,
                m.average,
                towards,
            )
            for m in sharded.methods
        )
        self._slots = 1
        self._seats: list[Seat | None] = [None] * len(self._hosts)
        self._incarnations = [0] * len(self._hosts)
        self._versions = [shard.method.step for shard in state.shards]  # the newest that any turn has seen
        self._given = sum(state.steps)
        self._shot = sum(state.steps)  # local steps at the last snapshot that was ordered
        self._wanted = False
        self._held: list[tuple[StepRecord, int, bool]] = []  # local steps after it, and whether a look must come first
        self._records: list[tuple[StepRecord, int]] = []
        self._shown = sum(state.steps)  # local steps of all records that were given out
        self._busy: set[int] = set()
        self._out: dict[int, tuple[Round, Callable[[Any, Round], None]]] = {}
        self._looking = False

    @property
    def steps(self) -> int:
        """Batches so far, of p local steps each."""
        return self._shown // self._count

    @property
    def params(self) -> Array:
        """The params of the last snapshot."""
        methods = zip(self._sharded.methods, self._committed.shards, strict=True)
        return snapshot(np.concatenate([method.result_params(shard.method) for method, shard in methods]))

    @property
    def epochs(self) -> float:
        """Batches of all replicas in epochs."""
        return self._shown / self._count / self._plan.steps_per_epoch

    def snapshot(self) -> ServedState:
        """Return the last snapshot."""
        return self._committed

    def more(self, slots: int) -> list[Order]:
        """Order seats for shards that have none, else a look where one is due, and a turn for each idle replica."""
        self._slots = slots
        orders: list[Order] = []
        hosted = {made.where for made, _ in self._out.values()}
        for shard, seat in enumerate(self._seats):
            if seat is None and f"shard {shard}" not in hosted:
                orders += self._seat(shard)
        seats = [seat for seat in self._seats if seat is not None]
        if len(seats) < len(self._seats):
            return orders
        if self._wanted and not self._looking and not (self._over and self._busy):
            orders += self._snapshot(seats)
        for number in range(self._count):
            if number not in self._busy:
                orders += self._turn(number, seats)
        return orders

    @property
    def _over(self) -> bool:
        """Whether every step has been given out."""
        return self._limit is not None and self._given >= self._limit

    def _order(
        self,
        work: Work,
        inputs: tuple[Any, ...],
        unit: tuple[int, ...],
        slot: int,
        where: str,
        then: Callable[..., None],
    ) -> list[Order]:
        units, home = np.array([unit], dtype=np.int64), np.array([slot % self._slots], dtype=np.int64)
        made = self._rounds.new(work, inputs, units, home, where=where)
        self._out[made.ticket] = (made, then)
        return made.orders()

    def _seat(self, shard: int) -> list[Order]:
        """Have a shard served: at first each by another worker, after a loss by the next one."""
        number = self._incarnations[shard]
        self._incarnations[shard] += 1
        slot = shard * self._slots // len(self._hosts) + number
        unit = (shard, 0, number, number + 1)
        state = self._committed.shards[shard]

        def seated(found: AtSeat, _: Round) -> None:
            self._seats[shard] = found.seat
            if number:
                lost = max(0, self._versions[shard] - state.method.step)
                self._now = self._now._replace(lost=self._now.lost + lost, restarts=self._now.restarts + 1)
                self._tell(
                    f"warning: shard {shard} of {len(self._hosts)} was lost with its worker; it is served again by pid "
                    f"{found.seat.pid} from version {state.method.step}: {lost} pushes to it are lost"
                )
            self._versions[shard] = state.method.step

        return self._order(self._hosts[shard], (state,), unit, slot, f"shard {shard}", seated)

    def _snapshot(self, seats: list[Seat]) -> list[Order]:
        """Look at all shards; what counts as theirs is what had arrived when the look began."""
        self._looking, self._wanted = True, False
        counted, self._shot, seen = self._now, sum(self._now.steps), len(self._held)

        def looked(found: ShardStates, _: Round) -> None:
            self._looking = False
            if found.gone:
                self._wanted = True
                self._gone(found.gone, seats)
                return
            self._committed = counted._replace(
                shards=found.shards, lost=self._now.lost, restarts=self._now.restarts, dropped=self._now.dropped
            )
            self._now = self._now._replace(shards=found.shards)
            self._held[:seen] = [(record, local, False) for record, local, _ in self._held[:seen]]
            self._release()

        first = len(seats) - 1 if self._busy else 0
        return self._order(self._look, (tuple(seats),), (0, 0, 0, 1), first, "a look at the shards", looked)

    def _turn(self, number: int, seats: list[Seat]) -> list[Order]:
        """Give a replica its next turn, as long as steps are left."""
        begin, given = self._now.steps[number], self._given
        length = self._n_fetch - begin % self._n_fetch
        if self._limit is not None:
            length = min(length, self._limit - given)
        if length <= 0:
            return []
        self._given += length
        self._busy.add(number)
        batch = given // self._count
        steps = None if self._limit is None else self._limit // self._count
        rates = turn_rates(self._rates, batch, length, steps)
        batches = np.minimum(np.arange(batch, batch + length, dtype=np.float64), np.inf if steps is None else steps - 1)

        def turned(found: PushTurn, done: Round) -> None:
            self._busy.discard(number)
            self._given -= length - found.steps
            self._take(number, found, done, rates)
            self._gone(found.gone, seats)

        home = number * min(self._slots, self._count) // self._count
        unit = (number, 0, begin, begin + length)
        return self._order(self._push, (tuple(seats), rates, batches), unit, home, f"replica {number}", turned)

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival."""
        ticket = arrival.order.ticket
        if ticket not in self._out:
            self._rounds.late(arrival)
            return []
        made, then = self._out[ticket]
        again = made.accept(arrival)
        if made.done:
            del self._out[ticket]
            then(made.value, made)
        return again

    def _gone(self, shards: tuple[int, ...], seats: list[Seat]) -> None:
        """Give up seats that could not be reached, unless the shard has another one by now."""
        for shard in shards:
            if self._seats[shard] != seats[shard]:
                continue
            if self._incarnations[shard] > self._rounds.retries:
                raise ClusterError(
                    f"shard {shard} of {len(seats)} of the parameter server was lost {self._incarnations[shard]} times",
                    where="strategy.shards_on",
                    hint="resume goes on from the last snapshot; shards_on=driver needs no worker to stay",
                )
            self._seats[shard] = None

    def _take(self, number: int, turn: PushTurn, done: Round, rates: Array) -> None:
        """Count a turn and make its record; one that ends an epoch or the run waits for a look at the shards."""
        begin = time.perf_counter()
        ledger, before, p = self._rounds.ledger, self._now, self._count
        ledger.bytes_sent += turn.down
        ledger.bytes_received += turn.up
        self._versions = [max(pair) for pair in zip(self._versions, turn.versions or self._versions, strict=True)]
        if turn.steps == 0:
            return
        loss = turn.loss / (self._weight * turn.rows) + turn.penalty
        if not np.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss}", where=done.where, hint="a smaller schedule.learning_rate or local_learning_rate"
            )
        self._now = before.after(number, turn)
        local, last = sum(self._now.steps), sum(before.steps)
        steps, per_epoch = local // p, self._plan.steps_per_epoch
        end_of_epoch = steps // per_epoch > last // p // per_epoch
        final = self._limit is not None and local >= self._limit
        record = StepRecord(
            step=steps,
            epoch=max(0, steps - 1) // per_epoch,
            end_of_epoch=end_of_epoch,
            loss=float(loss),
            grad_norm=float(np.sqrt(turn.square / turn.steps)),
            learning_rate=float(rates[turn.steps - 1]),
            rows=turn.rows,
            staleness=max(turn.staleness, default=0),
            seconds_map=done.seconds_map,
            seconds_reduce=0.0,
            seconds_update=time.perf_counter() - begin,
            rss=done.rss,
            worker=number,
        )
        if end_of_epoch or final or (local - self._shot) * SNAPSHOTS >= per_epoch * p:
            self._wanted = True
        self._held.append((record, local, end_of_epoch or final))
        self._release()

    def _release(self) -> None:
        """Let records go, in order, up to the first that waits for a look."""
        while self._held and not self._held[0][2]:
            record, local, _ = self._held.pop(0)
            self._records.append((record, local))

    def advance(self) -> StepRecord | None:
        """Return the next record, or None."""
        if not self._records:
            return None
        record, self._shown = self._records.pop(0)
        return record


def start(setting: Setting, params: Array) -> ServedState | replicas.ReplicasState:
    """Return the state of ``strategy.name: downpour`` before the first turns."""
    if setting.options.get("shards_on") != "workers":
        return replicas.start(setting, params)
    return begin(_server(setting), params, setting.options.get("replicas") or setting.slots)


def machine(setting: Setting, state: Any) -> Machine:
    """Return the machine of ``strategy.name: downpour``."""
    if not isinstance(state, ServedState):
        return replicas.machine(setting, state)
    local, rates = setting.local(state.number, "replica")
    n_push, n_fetch = setting.options["n_push"], setting.options["n_fetch"]
    return Served(setting, state, _server(setting), local, rates, n_push=n_push, n_fetch=n_fetch)


def _server(setting: Setting) -> Sharded:
    method = setting.server(None, {}, None)
    assert isinstance(method, FirstOrder), "methods that ask again are refused"
    return cut(method, setting.options.get("shards") or 1)
