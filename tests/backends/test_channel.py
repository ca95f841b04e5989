"""The channel without an engine: residents are threads or plain processes of this test."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from typing import Any

import numpy as np
import pytest
from probes import MEMORY, SIZES, direct, run_round, same, vector, view, wait_until

from bigopt.backends import base, channel, resident
from bigopt.backends.channel import Hub, serve
from bigopt.backends.dask_cluster import check_slots
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.testing import Probe
from bigopt.core import codec
from bigopt.core.codec import wire
from bigopt.core.errors import ClusterError, ConfError, DataError
from bigopt.data.cache import BlockCache
from bigopt.data.memory import from_arrays
from bigopt.data.plan import homes
from bigopt.data.synthetic import SyntheticSource
from bigopt.data.view import DataView
from bigopt.models.linear import LinearModel
from bigopt.models.losses import SquaredLoss
from bigopt.work import GradientSum, execute


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(2, timeout=30.0)
    yield hub
    hub.close()


def start(hub: Hub, name: str = "") -> threading.Thread:
    """A resident in a thread of this process."""
    thread = threading.Thread(target=serve, args=(hub.addresses, hub.key, MEMORY, name), daemon=True)
    thread.start()
    return thread


def spawn(hub: Hub, name: str = "") -> subprocess.Popen[bytes]:
    """A resident in a process of its own."""
    code = (
        "import sys; from bigopt.backends.resident import serve; "
        "serve([sys.argv[1]], bytes.fromhex(sys.argv[2]), 10**8, sys.argv[3])"
    )
    return subprocess.Popen([sys.executable, "-c", code, hub.addresses[0], hub.key.hex(), name])


def background(result: list[Any], *args: Any, **keys: Any) -> threading.Thread:
    """A thread that runs a round and appends its root."""

    def work() -> None:
        with contextlib.suppress(ClusterError):
            result.append(run_round(*args, **keys)[0])

    return threading.Thread(target=work, daemon=True)


@pytest.mark.parametrize("host", [None, "127.0.0.1"], ids=["unix", "tcp"])
def test_residents_answer_over_both_kinds_of_socket(host):
    hub = Hub(2, timeout=30.0, host=host)
    addresses = hub.addresses[-1:]
    threads = [threading.Thread(target=serve, args=(addresses, hub.key, MEMORY), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert hub.wait_for_workers(2) == 2
        assert [link.wire.shares for link in hub.links] == [host is None] * 2
        assert same(run_round(hub, Probe(view()), vector())[0], direct(vector()))
        if host:
            assert hub.addresses[1][0] == host
    finally:
        hub.close()
    for thread in threads:
        thread.join(5.0)
        assert not thread.is_alive()


def test_a_worker_that_cannot_enter_the_folder_takes_the_other_address():
    """As one of another machine, or of another user, would."""
    hub = Hub(1, timeout=30.0, host="127.0.0.1")
    with contextlib.closing(hub):
        elsewhere = ("/nonexistent/hub", *hub.addresses[1:])
        threading.Thread(target=serve, args=(elsewhere, hub.key, MEMORY), daemon=True).start()
        hub.wait_for_workers(1)
        assert not hub.links[0].wire.shares
        assert same(run_round(hub, Probe(view()), vector(100_000))[0], direct(vector(100_000)))


def test_a_stranger_without_the_key_is_refused(hub):
    with pytest.raises(AuthenticationError):
        Client(hub.addresses[0], authkey=b"wrong")
    assert hub.links == []
    start(hub)
    assert hub.wait_for_workers(1) == 1


def test_a_silent_stranger_keeps_nobody_out(hub):
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(hub.addresses[0]))
        start(hub)
        assert hub.wait_for_workers(1) == 1
        assert stranger.recv(1000)  # its challenge, which it never answers


def test_the_socket_lies_in_a_folder_that_only_its_owner_can_enter(hub):
    folder = os.path.dirname(str(hub.addresses[0]))
    assert os.stat(folder).st_mode & 0o077 == 0
    hub.close()
    assert not os.path.exists(folder)


def test_a_worker_with_other_bits_is_refused_or_warned_of(monkeypatch):
    other = {**base.fingerprint(), "blas": "openblas 0.1 Prescott"}
    monkeypatch.setattr(channel, "fingerprint", lambda: other)
    for bits in ("strict", "any"):
        hub = Hub(1, timeout=30.0, bits=bits)
        with contextlib.closing(hub):
            start(hub, "w7")
            if bits == "strict":
                with pytest.raises(ClusterError, match=r"worker w7 .*other bits.*Prescott.*run\.bits=any"):
                    hub.wait_for_workers(1)
                assert hub.links == []
            else:
                hub.wait_for_workers(1)
                assert len(hub.warnings) == 1
                assert "Prescott" in hub.warnings[0]


def test_a_worker_of_another_version_of_the_protocol_ends_the_run(hub):
    with Client(hub.addresses[0], authkey=hub.key) as connection:
        connection.send_bytes(b"{'version': 'before'}")
        with pytest.raises(ClusterError, match="another protocol"):
            hub.wait_for_workers(1)


def test_no_worker_in_time_is_an_error_that_names_the_address():
    hub = Hub(1, timeout=0.1, host="127.0.0.1")
    with contextlib.closing(hub), pytest.raises(ClusterError, match=r"within 0.1 seconds.*127\.0\.0\.1:\d+"):
        hub.wait_for_workers(1)


def test_with_patience_a_hub_goes_on_with_the_workers_it_has(hub):
    start(hub)
    begin = time.monotonic()
    assert hub.wait_for_workers(2, patience=0.1) == 1
    assert time.monotonic() - begin < 4.0
    assert same(run_round(hub, Probe(view()), vector())[0], direct(vector()))


def test_a_cluster_without_workers_is_lost_after_the_timeout():
    hub = Hub(1, timeout=0.2)
    with contextlib.closing(hub), pytest.raises(ClusterError, match="all workers are gone"):
        run_round(hub, Probe(view()), vector())


def test_a_killed_process_loses_its_orders_and_the_next_one_takes_them(hub, tmp_path):
    first = spawn(hub)
    hub.wait_for_workers(1)
    rounds = Rounds(ledger := Ledger(), 3)
    result = []
    work = Probe(view(), seconds=0.3, log=str(tmp_path))
    thread = background(result, hub, work, vector(), rounds=rounds)
    thread.start()
    assert wait_until(lambda: any(tmp_path.iterdir()))
    first.kill()
    first.wait()
    assert wait_until(lambda: hub.links == [])
    second = spawn(hub)
    thread.join(30)
    hub.close()
    assert second.wait(10) == 0
    assert same(result[0], direct(vector()))
    assert ledger.lost == ledger.accepted == 7
    assert len(list(tmp_path.iterdir())) > 7


def test_orders_that_waited_for_a_worker_do_not_block_it(hub):
    """Both pipes would fill up, each waiting for the other, if the thread that reads also sent what had waited."""
    params = vector(600_000)
    result = []
    thread = background(result, hub, Probe(view()), params, slots=7)
    thread.start()
    waiting = len(set(homes(SIZES, 7)))
    assert waiting > 3
    assert wait_until(lambda: len(hub._homeless) == waiting)
    spawned = spawn(hub)
    thread.join(30)
    hub.close()
    spawned.wait(10)
    assert result
    assert same(result[0], direct(params))


def test_a_worker_that_its_engine_gave_up_loses_its_orders_even_if_it_hangs(hub):
    process = spawn(hub, "tcp://w1")
    hub.wait_for_workers(1)
    run_round(hub, Probe(view()), vector())
    process.send_signal(19)  # SIGSTOP: the connection stays open
    params = vector(1_000_000)  # more than the pipe takes: the sender blocks
    result = []
    thread = background(result, hub, Probe(view()), params)
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    hub.drop("tcp://w1")
    assert wait_until(lambda: hub.links == [])
    start(hub, "tcp://w2")
    thread.join(30)
    process.kill()
    process.wait()
    assert same(result[0], direct(params))


def test_a_worker_that_connects_again_takes_its_own_place(hub):
    hub.grow(1)
    start(hub, "w1")
    hub.wait_for_workers(1)
    start(hub, "w2")
    hub.wait_for_workers(2)
    old = next(link for link in hub.links if link.hello.name == "w1")
    start(hub, "w1")
    assert wait_until(lambda: len(hub.links) == 2 and old not in hub.links)
    assert sorted(link.hello.name for link in hub.links) == ["w1", "w2"]


def test_more_workers_than_slots_are_sent_away_until_there_is_room(hub):
    threads = [start(hub) for _ in range(3)]
    hub.wait_for_workers(2)
    assert wait_until(lambda: sum(thread.is_alive() for thread in threads) == 2)
    hub.grow(3)
    assert hub.slots == 3
    start(hub)
    assert hub.wait_for_workers(3) == 3
    hub.grow(1)
    assert hub.slots == 3


def test_a_session_may_end_the_run_from_any_thread(hub):
    hub.fail(ClusterError("the scheduler is gone"))
    with pytest.raises(ClusterError, match="scheduler is gone"):
        hub.wait()


def test_only_types_of_bigopt_are_imported_for_the_driver():
    with pytest.raises(ValueError, match="none of bigopt's"):
        resident.Resident(None).answer(resident.Prepare(("bigopt.core.tree", "antigravity")))
    assert "antigravity" not in sys.modules


def test_activity_says_what_every_slot_does(hub, tmp_path):
    assert [s["state"] for s in hub.activity()] == ["gone", "gone"]
    start(hub, "a")
    hub.wait_for_workers(1)
    (idle, gone) = hub.activity()
    assert (idle["worker"], idle["state"], idle["first"], gone["state"]) == ("a", "idle", None, "gone")
    work = Probe(view(), seconds=0.1, log=str(tmp_path))
    thread = threading.Thread(target=run_round, args=(hub, work, vector()), kwargs={"slots": 1})
    thread.start()
    assert wait_until(lambda: any(tmp_path.iterdir()))
    busy = hub.activity()[0]
    thread.join()
    after = hub.activity()[0]
    assert (busy["state"], busy["round"], busy["first"], busy["last"], busy["partitions"]) == ("busy", 1, 0, 6, 7)
    assert busy["seconds"] < 30
    assert (after["state"], after["round"], after["first"], after["last"], after["orders"]) == ("idle", 1, 0, 6, 1)
    assert after["seconds"] >= 0.7


def test_check_slots():
    assert check_slots(5, None) == 5
    assert check_slots(5, 3) == 3
    assert check_slots(2, 3) == 2
    with pytest.raises(ConfError):
        check_slots(2, 0)


def test_an_unreadable_dataset_is_an_error_of_each_order(hub, monkeypatch):
    here = os.getpid()
    missing = {"now": False}

    @wire
    @dataclass(frozen=True)
    class Vanishing(SyntheticSource):
        def identity(self) -> str:
            if missing["now"]:
                raise DataError("zarr.json is missing", where="/data/x.zarr")
            missing["now"] = True  # the driver looks first
            return "0" * 64

    start(hub)
    hub.wait_for_workers(1)
    work = Probe(view(Vanishing(3, 8, dtype="float64")))
    real = codec.modules
    ours = lambda value: tuple(m for m in real(value) if m.startswith("bigopt"))  # noqa: E731
    monkeypatch.setattr(codec, "modules", ours)
    with pytest.raises(DataError, match="cannot read the data") as caught:
        run_round(hub, work, vector(), slots=1)
    assert caught.value.where == "/data/x.zarr"
    assert str(here) in str(caught.value)


def test_a_lost_unit_stays_lost_when_nobody_comes():
    """The whole way of P3 without an engine: a partition that kills every worker ends the run by name."""
    hub = Hub(1, timeout=60.0)
    with contextlib.closing(hub):
        stop = threading.Event()

        def supervise() -> None:
            while not stop.is_set():
                with contextlib.suppress(FileNotFoundError):
                    spawn(hub).wait()

        thread = threading.Thread(target=supervise)
        thread.start()
        try:
            with pytest.raises(ClusterError, match=r"partitions 0\.\.6 of round 1 were lost 2 times"):
                run_round(hub, Probe(view(), kill=4), vector(), slots=1, rounds=Rounds(Ledger(), 1))
        finally:
            stop.set()
            hub.close()
            thread.join(20)
    assert SIZES[4] == 640


DRIVER = """
import sys, time
from probes import vector, view
from bigopt.backends.channel import Hub
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.testing import Probe
from probes import run_round

hub = Hub(1, timeout=60.0)
print(hub.addresses[0], hub.key.hex(), flush=True)
hub.wait_for_workers(1)
for k in range(1, 10**6):
    run_round(hub, Probe(view(), seconds=0.01, log=sys.argv[1] if k == 3 else ""), vector(200_000) * k)
"""


def test_a_driver_that_is_killed_takes_its_workers_and_its_memory_with_it(tmp_path):
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    (notes := tmp_path / "notes").mkdir()
    command = [sys.executable, "-c", DRIVER, str(notes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=paths) as driver:
        address, key = driver.stdout.readline().split()
        code = (
            "import sys; from bigopt.backends.resident import serve; "
            "serve([sys.argv[1]], bytes.fromhex(sys.argv[2]), 10**8)"
        )
        worker = subprocess.Popen([sys.executable, "-c", code, address, key], env=paths)
        try:
            assert wait_until(lambda: any(notes.iterdir()), 60)
            with open(f"/proc/{worker.pid}/maps", encoding="utf-8") as handle:
                assert "memfd:bigopt" in handle.read()
            driver.kill()
            assert worker.wait(30) == 0
        finally:
            driver.kill()
            worker.kill()
            worker.wait()
    assert not any("bigopt" in name for name in os.listdir("/dev/shm"))


class Carried:
    """A carrier of messages that lie here already."""

    def __init__(self, *messages: Any) -> None:
        self.messages = list(messages)
        self.sent: list[Any] = []

    def receive(self) -> tuple[Any, int]:
        return self.messages.pop(0), 0

    def send(self, value: Any) -> int:
        self.sent.append(codec.copied(value))
        return 0


def test_the_next_rows_are_gathered_between_two_orders_with_the_same_bits():
    rng = np.random.default_rng(2)
    data = DataView(from_arrays(rng.normal(size=(60, 8)), rng.normal(size=60)).source, view().bounds, "float64")
    work, params = GradientSum(LinearModel(8, 1, SquaredLoss()), data, 5, "float64", 16), rng.normal(size=9)
    parts = [np.array([[0, 0, lo, lo + 12]]) for lo in (0, 12, 24, 36)]
    whole = np.concatenate(parts[:2])
    tasks = [resident.Task(k, 0, k, 0, len(u), 0, u, (), (params,)) for k, u in enumerate([*parts, whole])]
    worker, wire_ = resident.Resident(BlockCache(MEMORY), {0: work}), Carried(*tasks, resident.Stop())
    for start in (12, 24, 36, 48):
        assert worker.turn(wire_)
        assert worker.ahead._filled[1] == start
    assert worker.turn(wire_)
    assert worker.ahead._filled is worker.ahead._next is None
    assert not worker.turn(wire_)
    for task, done in zip(tasks, wire_.sent, strict=True):
        nodes, _ = execute(BlockCache(MEMORY), work, (params,), len(task.units), 0, task.units)
        assert [same(a, b) for a, b in zip(done.values, nodes.values(), strict=True)] == [True]
