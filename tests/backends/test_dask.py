"""Dask itself: kills, clusters of somebody else, refusals, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from probes import MEMORY, SIZES, alive, closing, conf, direct, run_round, same, started, vector, view, wait_until

from bigopt.backends import channel, dask, dask_cluster, dask_report
from bigopt.backends.dask_actors import ActorWire, ResidentActor, from_parts, to_parts
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.messages import Done, Hello, Task
from bigopt.backends.testing import Probe
from bigopt.core import tree
from bigopt.core.errors import ClusterError
from bigopt.core.sums import Sums
from bigopt.data.plan import whole
from bigopt.work import Order, Stats

BIN = Path(sys.executable).parent


def open_session(**keys: Any) -> dask.DaskSession:
    bits = keys.pop("bits", "strict")
    return dask.open_session(conf("dask", **keys), memory=MEMORY, bits=bits, run="test")


def in_background(session: Any, work: Probe, rounds: Rounds) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(run_round(session, work, vector(), rounds=rounds)[0]))
    thread.start()
    return thread, result


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["auto", "off"])
def test_kills_in_mid_round_change_no_bit_and_count_nothing_twice(tmp_path, channel):
    """P1 and P2: one worker dies in its first unit, then both die at once."""
    with closing(open_session(channel=channel)) as session:
        rounds = Rounds(ledger := Ledger(), 3)
        for deaths in (1, 2):
            folder = tmp_path / str(deaths)
            folder.mkdir()
            assert wait_until(lambda: len(session.pids) == 2)
            before = session.pids
            thread, result = in_background(session, Probe(view(), seconds=0.15, log=str(folder)), rounds)
            assert wait_until(lambda f=folder: {int(n.split("-")[1]) for n in os.listdir(f)} == set(session.pids))
            for pid in before[:deaths]:
                os.kill(pid, signal.SIGKILL)
            thread.join(60)
            assert same(result[0], direct(vector()))
            assert started(folder) > 7
        assert ledger.accepted == ledger.planned == 14
        assert ledger.lost >= 2
        assert ledger.duplicates == 0
        assert wait_until(lambda: len(session.pids) == 2)  # nannies bring them back, with residents
        assert not set(session.pids) & set(before)


@pytest.mark.slow
@pytest.mark.all
def test_a_hung_worker_is_given_up(tmp_path):
    """P12: SIGSTOP; the scheduler misses its heartbeats and has it restarted."""
    with closing(open_session()) as session:
        thread, result = in_background(session, Probe(view(), seconds=0.2, log=str(tmp_path)), Rounds(Ledger(), 3))
        assert wait_until(lambda: started(tmp_path) >= 2)
        os.kill(session.pids[0], signal.SIGSTOP)
        thread.join(90)
        assert same(result[0], direct(vector()))


@pytest.mark.slow
def test_a_resident_that_cannot_run_ends_the_run_with_the_reason(monkeypatch):
    ticket = dask.Ticket
    monkeypatch.setattr(dask, "Ticket", lambda *args: ticket(**{**vars(ticket(*args)), "key": b"wrong"}))
    with pytest.raises(ClusterError, match="cannot work for bigopt: AuthenticationError"):
        open_session(workers=1)
    assert wait_until(lambda: not any("spawn_main" in " ".join(cmdline(p)) for p in psutil.Process().children()))


@pytest.mark.slow
@pytest.mark.parametrize("addresses", [("/nowhere/hub",), ("/nowhere/hub", ("127.0.0.1", 9))], ids=["unix", "tcp"])
def test_workers_that_cannot_connect_are_called_as_actors(monkeypatch, addresses):
    monkeypatch.setattr(channel.Hub, "addresses", addresses)
    with closing(open_session(workers=1)) as session:
        assert all(isinstance(link.wire, ActorWire) for link in session._hub.links)
        assert any("must reach the driver" in note or "calls of Dask actors" in note for note in session.notes)
        assert same(run_round(session, Probe(view()), vector())[0], direct(vector()))


class FakeActor:
    """A `ResidentActor` in this process whose calls are counted, and fail or never return when a test says so."""

    def __init__(self) -> None:
        self.actor = ResidentActor(MEMORY, "w")
        self.calls: list[int] = []
        self.lost = False
        self.error: Exception | None = None
        self.fails = threading.Event()

    async def turn(self, *messages: Any) -> Any:
        self.calls.append(len(messages))
        if self.error is not None:
            while not self.fails.is_set():
                await asyncio.sleep(0.001)
            raise self.error
        if self.lost:  # as calls of Dask's where the worker is gone
            await asyncio.Event().wait()
        return await self.actor.turn(*messages)


class Loop:
    """An event loop in a thread, as a client of Dask has."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def add_callback(self, callback: Any) -> None:
        asyncio.run_coroutine_threadsafe(callback(), self._loop)

    def close(self) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def hub() -> Iterator[channel.Hub]:
    hub = channel.Hub(1, timeout=20.0)
    yield hub
    hub.close()


def order(start: int, stop: int) -> Order:
    return Order(1, 0, 0, WORK, (vector(),), 7, start, whole(np.arange(7), SIZES)[start:stop])


WORK = Probe(view())


def test_orders_travel_in_calls_of_an_actor_and_the_work_only_once(hub, loop):
    actor = FakeActor()
    hub.adopt(ActorWire(actor, loop))
    assert hub.wait_for_workers(1) == 1
    for start, stop in ((0, 4), (4, 7)):
        hub.submit(order(start, stop))
    nodes: dict[Any, Any] = {}
    for _ in range(2):
        arrival = hub.wait()
        nodes |= arrival.nodes
        assert arrival.stats.pid == os.getpid()
    assert set(nodes) == {*tree.cover(0, 4, 7), *tree.cover(4, 7, 7)}
    assert actor.calls == [0, 3, 1]  # a greeting; modules, work and order; an order


@pytest.mark.parametrize("end", ["never returns", "fails", "dropped"])
def test_an_actor_that_is_lost_gives_its_orders_back_once(hub, loop, end):
    actor = FakeActor()
    wire = ActorWire(actor, loop)
    hub.adopt(wire)
    hub.wait_for_workers(1)
    actor.lost = end != "fails"
    actor.error = None if actor.lost else OSError("Unable to contact Actor's worker")
    orders = [order(0, 4), order(4, 7)]
    for each in orders:
        hub.submit(each)
    actor.fails.set()
    if end == "never returns":
        wire.hang_up()
    elif end == "dropped":
        hub.drop("w")
    lost = [hub.wait() for _ in orders]
    assert all(arrival.lost for arrival in lost)
    assert [arrival.order for arrival in lost] == orders
    assert wait_until(lambda: wire.ended)
    assert hub.links == []
    with pytest.raises(BrokenPipeError):
        wire.send(1)
    hub.adopt(ActorWire(FakeActor(), loop))  # another takes its place
    hub.submit(orders[0])
    assert hub.wait().nodes is not None


@pytest.mark.parametrize("size", [3, 9, 100_000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_message_of_an_actor_comes_back_with_its_bits(size, dtype):
    """An order and an answer, in one string of bytes or with arrays beside it."""
    sent = np.random.default_rng(1).standard_normal(size).astype(dtype)
    task = Task(1, 2, 3, 0, 7, 0, whole(np.arange(7), SIZES), (4,), (sent,))
    done = Done(1, ((0, 3),), (Sums(sent, 0.5, 2.0, 3),), Stats(rows=3))
    for value, find in ((task, lambda m: m.inputs[0]), (done, lambda m: m.values[0].grad)):
        parts = to_parts(value)
        assert isinstance(parts, bytes) == (size < 100)
        found = find(from_parts(parts))
        assert found.dtype == sent.dtype
        assert found.tobytes() == sent.tobytes()
        assert found.flags.aligned
        assert found.flags.writeable
        assert type(from_parts(parts)) is type(value)


def test_what_is_no_message_of_an_actor_is_refused():
    parts = to_parts(Hello(1, "host", "w", {"numpy": "2"}))
    assert from_parts(parts) == Hello(1, "host", "w", {"numpy": "2"})
    large = to_parts(Task(1, 2, 3, 0, 7, 0, whole(np.arange(7), SIZES), (), (np.zeros(100_000),)))
    cut = [parts[:end] for end in range(len(parts))]
    for wrong in (*cut, parts + b"x", [parts, b"x"], large[:1], [*large, b"x"], b"\xff" * 64):
        with pytest.raises(ValueError, match="."):
            from_parts(wrong)


def cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return [] if "resource_tracker" in " ".join(process.cmdline()) else process.cmdline()
    return []


@pytest.mark.slow
def test_workers_with_other_bits_are_refused(monkeypatch):
    mine = channel.fingerprint()
    monkeypatch.setattr(channel, "fingerprint", lambda: {**mine, "simd": "ancient"})
    with pytest.raises(ClusterError, match=r"computes other bits.*run\.bits=any"):
        open_session(workers=1)


def test_the_key_is_not_in_what_dask_logs():
    assert b"secret".hex() not in repr(dask.Ticket("/x", b"secret", 1, "w"))
    assert "secret" not in repr(dask.Ticket("/x", b"secret", 1, "w"))


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),
        ("nonsense://x", "no Dask scheduler answers"),
        ("{tmp}/missing.json", "no such file"),
        ("{tmp}/torn.json", "not a scheduler file"),
    ],
)
def test_a_scheduler_that_is_not_there_is_an_error_in_time(tmp_path, address, text):
    (tmp_path / "torn.json").write_text('{"type": "Sched')
    begin = time.monotonic()
    with pytest.raises(ClusterError, match=text) as caught:
        open_session(address=address.format(tmp=tmp_path), timeout=1.5)
    assert caught.value.where == "backend.address"
    assert time.monotonic() - begin < 20  # it waits for ever without


@pytest.fixture
def cluster(tmp_path) -> Iterator[tuple[Path, Any]]:
    """A scheduler with the page preloaded, its file, and a function that starts workers."""
    env = {**os.environ, "DASK_LOGGING__DISTRIBUTED": "warning"}
    log = (tmp_path / "log").open("w")
    running: list[subprocess.Popen[bytes]] = []

    def run(*args: str) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen([str(BIN / "dask"), *args], env=env, stdout=log, stderr=log, cwd=tmp_path))
        return running[-1]

    path = tmp_path / "scheduler.json"
    run(
        *("scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"),
        *("--scheduler-file", str(path), "--preload", "bigopt.backends.dask_dashboard"),
    )
    worker = ("worker", "--scheduler-file", str(path), "--nthreads", "2", "--no-nanny", "--host", "127.0.0.1")
    yield path, lambda: run(*worker)
    for process in running:
        process.kill()
        process.wait()
    log.close()


@pytest.mark.slow
def test_a_cluster_of_somebody_else_is_used_and_left_as_it_was(cluster):
    path, start_worker = cluster
    assert wait_until(path.exists, 30)
    with pytest.raises(ClusterError, match="no worker connected within 2 seconds"):
        open_session(address=str(path), workers=None, timeout=2.0)
    first = start_worker()
    with closing(open_session(address=str(path), workers=None)) as session:
        assert session.slots == 1
        assert any("/bigopt" in note for note in session.notes)
        rounds = Rounds(ledger := Ledger(), 3)
        assert same(run_round(session, Probe(view()), vector(), rounds=rounds)[0], direct(vector()))
        start_worker()
        assert wait_until(lambda: session.slots == 2 and len(session.pids) == 2)
        assert same(run_round(session, Probe(view()), vector(), rounds=rounds)[0], direct(vector()))
        assert ledger.messages == 3
        first.terminate()  # a worker that leaves for good
        assert wait_until(lambda: len(session.pids) == 1)
        assert same(run_round(session, Probe(view()), vector(), rounds=rounds)[0], direct(vector()))
        (survivor,) = session.pids
    from distributed import Client

    address = json.loads(path.read_text())["address"]
    with Client(address, set_as_default=False) as client:
        assert alive(survivor)
        assert client.submit(sum, [1, 2]).result(timeout=10) == 3  # its thread is free again
        newest = client.get_events(dask_report.TOPIC)[-1][1]
        assert (newest["run"], newest["state"]) == ("test", "ended")


@pytest.mark.slow
def test_workers_end_with_a_driver_that_was_killed(tmp_path):
    code = (
        "import sys, time\n"
        "sys.path.insert(0, 'tests/support')\n"
        "from probes import *\n"
        "from bigopt.backends import dask\n"
        "if __name__ == '__main__':\n"
        "    s = dask.open_session(conf('dask'), memory=MEMORY, bits='strict', run='x')\n"
        "    print(*s.pids, flush=True)\n"
        "    time.sleep(100)\n"
    )
    script = tmp_path / "driver.py"
    script.write_text(code)
    root = Path(__file__).parents[2]
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # where what a killed process cannot remove may stay
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=root, env=env
    ) as driver:
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        assert len(pids) == 2
        driver.kill()
    assert wait_until(lambda: not any(map(alive, pids)), 20)


@pytest.mark.slow
def test_an_interrupt_of_the_terminal_leaves_the_workers_to_the_driver():
    """Ctrl-C reaches every process of the terminal; the driver decides what to do, its workers go on."""
    with closing(open_session(workers=1)) as session:
        before = session.pids
        os.kill(before[0], signal.SIGINT)
        time.sleep(1.0)
        assert same(run_round(session, Probe(view()), vector())[0], direct(vector()))
        assert session.pids == before


def events(record: dict[str, Any], **keys: Any) -> list[tuple[str, Any]]:
    told: list[tuple[str, Any]] = []
    reporter = dask_report.Reporter("r", lambda topic, event: told.append((topic, event)))
    reporter.add("text", record)
    reporter.publish([], **keys)
    return told


def test_reports_hold_numbers_that_travel():
    record = {
        "step": 3,
        "loss": 0.5,
        "grad_norm": float("nan"),
        "validation": {"r2": float("inf"), "loss": 0.4, "confusion": [[1]]},
    }
    (_, curve), (_, event) = events(record)
    assert curve == {"run": "r", "points": [[3.0, 0.5, 0.4]]}
    assert event["record"] == {"step": 3, "loss": 0.5, "grad_norm": None}
    assert event["validation"] == {"r2": None, "loss": 0.4}
    assert (event["state"], events(record, last=True)[-1][1]["state"]) == ("running", "ended")


def test_a_long_run_leaves_a_thin_curve_that_still_has_its_beginning():
    told: list[Any] = []
    reporter = dask_report.Reporter("r", lambda topic, event: told.append((topic, event)))
    for step in range(1, 200_001):
        reporter.add("", {"step": step, "loss": 1.0 / step})
        if step % 1000 == 0:
            reporter.publish([])
    points = [p for topic, event in told if topic == dask_report.CURVE_TOPIC for p in event["points"]]
    assert len(points) < 700
    assert [p[0] for p in points[:50]] == list(range(1, 51))
    assert all(b[0] <= 1.02 * a[0] + 1 for a, b in itertools.pairwise(points))
    assert points[-1][0] > 195_000


def test_a_scheduler_that_was_stopped_itself_does_not_restart_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looked = 100.0, []
    monkeypatch.setattr(dask_cluster.time, "time", lambda: now)
    look = SimpleNamespace(callback=lambda: looked.append(now), callback_time=20_000.0)
    dask_cluster._forgive_pauses(look)
    assert look.callback_time == 5_000.0
    for seconds in (5.0, 5.1, 30.0, 5.0):  # a laptop sleeps
        now += seconds
        look.callback()
    assert looked == [105.0, 110.1, 145.1]
