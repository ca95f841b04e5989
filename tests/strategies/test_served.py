"""The parameter server on workers, in one process: real sockets, any order of arrival, shards that are lost."""

from __future__ import annotations

import math
import socket
import threading
import time
from multiprocessing import AuthenticationError
from typing import Any

import numpy as np
import pytest
from arena import Arena, Case, drive, picker

from bigopt.core import codec
from bigopt.core.errors import ClusterError, ConfError, DivergedError
from bigopt.shardserver import Fetch, Look, Push, Seat, Shard, fresh, host, link, receive, send
from bigopt.strategies.exchanges import Downpour
from bigopt.strategies.replicas import Replicas
from bigopt.strategies.replicas import begin as begin_on_driver
from bigopt.strategies.served import Served
from bigopt.strategies.served_state import ServedState, begin
from bigopt.strategies.shards import Sharded

KEY = b"k" * 32


class Workers(Arena):
    """One process for all; `at` maps the number of an arrival to what happens before it."""

    def __init__(self, slots: int, seed: int, at: dict[int, Any] | None = None, **faults: float) -> None:
        super().__init__(slots, picker(seed), **faults)
        self._blocks.kept.secret = KEY
        self._at, self._count = at or {}, 0

    def wait(self) -> Any:
        self._count += 1
        if self._count in self._at:
            self._at[self._count](self)
        return super().wait()

    def end(self) -> None:
        """Lose every shard."""
        self._blocks.kept.drop()


def made(case: Case, state: ServedState | None, *, p: int, n_push: int, n_fetch: int, shards: int, told: list, **more):
    setting = case.setting(tell=told.append, shards_at=("127.0.0.1", 10.0), **more)
    server = Sharded(case.method("sgd", case.rate, penalty=False), shards)
    state = state or begin(server, case.start(), p)
    work = case.local(p, "replica")
    return setting, Served(setting, state, server, work, case.rates, n_push=n_push, n_fetch=n_fetch)


def served(case: Case, workers: Workers, *, p=2, n_push=2, n_fetch=2, shards=3, state=None, updates=None, **more):
    told: list[str] = []
    setting, machine = made(case, state, p=p, n_push=n_push, n_fetch=n_fetch, shards=shards, told=told, **more)
    records = drive(machine, workers, setting.rounds, updates=updates)
    if updates is None:
        workers.end()
    return machine, records, told


def pushes(state: ServedState, n_push: int) -> int:
    return sum(math.ceil(steps / n_push) for steps in state.steps)


@pytest.mark.parametrize(("n_push", "n_fetch"), [(1, 1), (3, 3), (2, 4)])
@pytest.mark.parametrize("shards", [1, 3])
def test_one_replica_has_the_bits_of_the_driver(n_push: int, n_fetch: int, shards: int) -> None:
    case = Case(steps=20)
    machine, records, _ = served(case, Workers(1, 0), p=1, n_push=n_push, n_fetch=n_fetch, shards=shards)
    exchange, setting = Downpour(case.method("sgd", case.rate, penalty=False), n_push, n_fetch), case.setting()
    driver = Replicas(
        setting, begin_on_driver(exchange, case.start(), 1), exchange, case.local(1, "replica"), case.rates
    )
    drive(driver, Arena(1, picker(0)), setting.rounds)
    assert machine.params.tobytes() == driver.params.tobytes()
    assert (records[-1].step, machine.steps) == (20, 20)


@pytest.mark.parametrize("faults", [0.0, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_shard_applies_each_push_once(seed: int, faults: float) -> None:
    case = Case(steps=21)
    machine, records, told = served(case, Workers(3, seed, lose=faults, repeat=faults), p=3)
    state = machine.snapshot()
    assert (machine.steps, records[-1].step, sum(state.steps)) == (21, 21, 63)
    for shard in state.shards:
        assert shard.applied.tolist() == list(state.steps)
        assert shard.method.step == pushes(state, 2)
    assert sum(state.pushes) == state.staleness.sum() <= pushes(state, 2)
    assert [record.step for record in records] == sorted(record.step for record in records)
    assert not told
    if not faults:
        assert sum(state.pushes) == pushes(state, 2)
        assert state.dropped == 0
    assert np.abs(machine.params - case.optimum()).max() < np.abs(case.start() - case.optimum()).max()


def test_what_is_looked_at_the_end_of_an_epoch_holds_the_epoch() -> None:
    case = Case(steps=21)  # 7 steps an epoch
    workers, seen = Workers(2, 4), list[tuple[int, int]]()
    _, machine = made(case, None, p=2, n_push=1, n_fetch=1, shards=2, told=[])
    for order in machine.more(2):
        workers.submit(order)
    while workers.pending:
        for order in machine.handle(workers.wait()):
            workers.submit(order)
        while (record := machine.advance()) is not None:
            assert (machine.steps, machine.epochs) == (record.step, pytest.approx(record.step / 7, abs=0.08))
            if record.end_of_epoch:
                seen.append((record.step, sum(machine.snapshot().steps) // 2))
        for order in machine.more(2):
            workers.submit(order)
    workers.end()
    assert [step for step, _ in seen] == [7, 14, 21]
    assert all(held >= step for step, held in seen)


def test_shards_that_are_lost_are_served_again_from_the_snapshot() -> None:
    case = Case(steps=42)
    machine, records, told = served(case, Workers(2, 5, at={25: Workers.end, 60: Workers.end}), p=2)
    state = machine.snapshot()
    assert (records[-1].step, machine.steps) == (42, 42)
    assert state.restarts == len(told) >= 4
    assert "shard 0 of 3 was lost with its worker; it is served again by pid" in " ".join(told)
    for shard in state.shards:
        assert shard.applied.tolist() == list(state.steps)
        assert shard.method.step <= pushes(state, 2)
    missing = sum(pushes(state, 2) - shard.method.step for shard in state.shards)
    assert 0 < missing <= state.lost + 2 * state.restarts  # what was acknowledged is counted, what was under way is not
    assert state.delays["pushes_lost"] == state.lost
    assert np.abs(machine.params - case.optimum()).max() < np.abs(case.start() - case.optimum()).max()


def test_shards_that_are_lost_again_and_again_end_the_run() -> None:
    with pytest.raises(ClusterError, match=r"shard \d of 3 of the parameter server was lost 51 times"):
        served(Case(steps=10**6), Workers(2, 6, at=dict.fromkeys(range(8, 10**4), Workers.end)))


def test_a_run_goes_on_from_its_snapshot_and_the_shards_drop_what_they_have() -> None:
    case, workers = Case(steps=21), Workers(3, 7)
    machine, _, _ = served(case, workers, p=3, n_push=1, n_fetch=3, updates=12)
    state = codec.loads(codec.dumps(machine.snapshot()))
    assert isinstance(state, ServedState)
    assert 0 < sum(state.steps) < 63
    ahead = sum(int((shard.applied - np.array(state.steps)).sum()) for shard in state.shards)
    workers.end()
    machine, records, _ = served(case, Workers(2, 8), p=3, n_push=1, n_fetch=3, state=state)
    after = machine.snapshot()
    assert (records[-1].step, sum(after.steps)) == (21, 63)
    assert after.dropped - state.dropped == ahead
    for shard in after.shards:
        assert shard.applied.tolist() == list(after.steps)
        assert shard.method.step == 63


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    case = Case(steps=200, rate=1e9)
    with np.errstate(all="ignore"), pytest.raises(DivergedError):
        served(case, Workers(2, 0))


def test_workers_without_a_key_cannot_serve() -> None:
    workers = Workers(2, 0)
    workers._blocks.kept.secret = b""
    with pytest.raises(ConfError, match="workers that can connect to each other"):
        served(Case(steps=5), workers)


def shard() -> Shard:
    method = Case().method("sgd", 1.0, penalty=False)
    return Shard(method, fresh(method, np.zeros(method.layout.size), 2))


def test_a_push_that_comes_again_is_dropped() -> None:
    mine, one = shard(), np.ones(5)
    assert mine.answer(Push(0, 0, 3, one.copy(), 0.0)) == (1, True, "")
    assert mine.answer(Push(0, 0, 3, one.copy(), 0.0)) == (1, False, "")
    assert mine.answer(Push(1, 0, 2, one.copy(), 0.0)) == (2, True, "")
    assert mine.answer(Push(0, 2, 4, one.copy(), 0.0)) == (2, False, "")  # its first step is applied already
    assert mine.answer(Push(0, 3, 4, one.copy(), 0.0)) == (3, True, "")
    assert mine.answer(Push(1, 2, 4, np.full(5, np.nan), 0.0))[:2] == (3, False)
    assert mine.answer(Fetch()).params.tolist() == [-3.0] * 5
    assert mine.answer(Look()).applied.tolist() == [4, 2]


def test_strangers_are_refused_and_silence_is_an_error_in_time() -> None:
    hosted = host(shard(), 0, 0, "127.0.0.1", KEY)
    assert hosted.seat.host == "127.0.0.1"
    with pytest.raises((AuthenticationError, OSError, EOFError)):
        link(hosted.seat, b"another", 5.0)
    connection = link(hosted.seat, KEY, 5.0)
    send(connection, Fetch())
    assert receive(connection)[0].version == 0
    before = {thread.name for thread in threading.enumerate()}
    assert "bigopt-shard" in before
    del hosted  # ends the server and its connections
    with pytest.raises((EOFError, OSError)):
        receive(connection)
    connection.close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin_ = time.monotonic()
        with pytest.raises(OSError):
            link(Seat(0, 0, *silent.getsockname(), 0), KEY, 0.2)
        assert time.monotonic() - begin_ < 5
