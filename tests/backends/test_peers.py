"""Sums that workers add among themselves: the bits and counts of a Reduce on the driver, whoever is lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probes import MEMORY, SIZES, Recorder, same
from problems import files, run, run_on

from bigopt.backends.boards import Board, NotYet, Over, PeerAt, Want
from bigopt.backends.channel import Hub, serve
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.local import LocalSession
from bigopt.backends.peers import Exchange, FindPeer, bounds
from bigopt.backends.peers_round import Peers
from bigopt.backends.slices import Slicer
from bigopt.backends.testing import Probe, Unreliable
from bigopt.core.errors import ClusterError
from bigopt.core.sums import Sums
from bigopt.core.vectors import dense
from bigopt.data.plan import homes, whole
from bigopt.data.synthetic import SyntheticSource
from bigopt.data.view import DataView, Targets
from bigopt.models.linear import LinearModel
from bigopt.models.losses import SquaredLoss
from bigopt.work import Arrival, GradientSum, Order

UNITS = whole(np.arange(len(SIZES)), SIZES)


def gradient(dtype: str) -> GradientSum:
    source = SyntheticSource(3, 8, dtype=dtype)
    view = DataView(source, np.cumsum([0, *SIZES]), dtype, targets=Targets("values"))
    return GradientSum(LinearModel(8, 1, SquaredLoss()), view, 5, "float64", 16)


WORK = gradient("float64")
PARAMS = np.linspace(-1.0, 1.0, 9) / 7


def one_round(session: Any, rounds: Rounds, slots: int, work: GradientSum = WORK, params: np.ndarray = PARAMS) -> Sums:
    root = rounds.run(session, work, (params,), UNITS, lambda _: homes(SIZES, slots)[UNITS[:, 0]], "step 1")
    return root._replace(grad=dense(root.grad).copy())


def among(retries: int = 3, **more: Any) -> Rounds:
    rounds = Rounds(Ledger(), retries)
    rounds.slicer = Slicer(24)  # what the driver would ask for in three slices
    rounds.peers = Peers(always=True, patience=20.0, **more)
    return rounds


def expected(work: GradientSum = WORK, params: np.ndarray = PARAMS) -> Sums:
    session = LocalSession(1, MEMORY)
    root = one_round(session, Rounds(Ledger(), 0), 1, work, params)
    session.close()
    return root


def workers(hub: Hub, count: int) -> None:
    for slot in range(count):
        keys = (hub.addresses, hub.key, MEMORY, f"w{slot}")
        threading.Thread(target=serve, args=keys, daemon=True).start()
    hub.wait_for_workers(count)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(3, timeout=30.0)
    workers(hub, 3)
    yield hub
    hub.close()


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])  # gradients of single blocks of float32 are narrow
def test_a_round_among_workers_has_the_bits_and_counts_of_one_on_the_driver(hub, slots, dtype):
    work, rounds, recorder = gradient(dtype), among(), Recorder(hub)
    for k in range(3):
        params = PARAMS * (k + 1)
        assert same(one_round(recorder, rounds, slots, work, params), expected(work, params)), k
    ledger = rounds.ledger
    assert ledger.rounds == 3
    assert ledger.accepted == ledger.planned == ledger.executed == 3 * len(SIZES)
    assert ledger.rows == 3 * SIZES.sum()
    assert (ledger.lost, ledger.duplicates) == (0, 0)
    assert sum(isinstance(order.work, FindPeer) for order in recorder.orders) == slots  # once, not once a round
    exchanges = [order for order in recorder.orders if isinstance(order.work, Exchange)]
    assert len(exchanges) == 3 * slots
    down = [order.inputs[0] for order in exchanges[:slots]]
    assert np.concatenate(down).tobytes() == PARAMS.tobytes()  # the driver sends p numbers, and receives p
    up = [a.nodes for a in recorder.arrivals if isinstance(a.order.work, Exchange)][:slots]
    assert sum(len(dense(value.grad)) for nodes in up for value in nodes.values()) == 9


def test_workers_of_different_machines_have_the_same_bits(hub, monkeypatch):
    def far(at: PeerAt, patience: float) -> socket.socket:
        return socket.create_connection((at.host, at.port), timeout=patience)

    monkeypatch.setattr("bigopt.backends.boards._socket_to", far)
    rounds, params = among(), np.linspace(-1.0, 1.0, 9) / 3
    for _ in range(2):
        assert same(one_round(hub, rounds, 3, params=params), expected(params=params))
    assert rounds.ledger.lost == 0


def test_nobody_without_the_key_is_answered(hub):
    rounds, recorder = among(), Recorder(hub)
    one_round(recorder, rounds, 3)
    work = next(order.work for order in recorder.orders if isinstance(order.work, Exchange))
    for at in work.peers:
        for address in (at.near, (at.host, at.port)):
            with pytest.raises(AuthenticationError):
                Client(address, authkey=hub.key)  # the channel's own key is not shown to peers either


def test_what_is_shown_is_of_one_round():
    board, nodes = Board(), {(0, 0): PARAMS}
    board.begin((3, 2))
    assert board.look(Want(3, 2, "sums", 0, 1), 0.0) == NotYet()
    assert board.look(Want(4, 1, "sums", 0, 1), 0.0) == NotYet()  # this worker's order is still on its way
    assert board.look(Want(3, 1, "sums", 0, 1), 9.0) == Over()  # an earlier deal
    later = threading.Timer(0.05, board.show, ("sums", nodes))
    later.start()
    assert board.look(Want(3, 2, "sums", 0, 1), 9.0) is nodes
    board.give_up()
    assert board.look(Want(3, 2, "sums", 0, 1), 9.0) is nodes
    assert board.look(Want(3, 2, "params", 0, 1), 9.0) == Over()
    board.begin((4, 1))
    assert board.look(Want(3, 2, "sums", 0, 1), 9.0) == Over()
    later.join()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_slices_are_the_vector_without_gaps(count):
    parts = [np.arange(10)[bounds(10, number, count)] for number in range(count)]
    assert np.concatenate(parts).tolist() == list(range(10))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_lost_repeated_and_late_arrivals_change_nothing(hub):
    bad, rounds, want = Unreliable(hub, 5, lose=0.2, repeat=0.3, late=0.4), among(40), expected()
    for _ in range(10):
        assert same(one_round(bad, rounds, 3), want)
    ledger = rounds.ledger
    assert ledger.accepted == ledger.planned == 10 * len(SIZES)
    assert ledger.rows == 10 * SIZES.sum()
    assert ledger.duplicates > 0
    assert ledger.lost > 0
    assert bad.lost > 2


def test_a_round_that_is_dealt_again_computes_only_what_it_has_not(hub):
    """One order of the first deal is lost, its worker is not: the other slots have their nodes still."""

    class Losing(Recorder):
        def wait(self) -> Arrival:
            arrival = super().wait()
            first = isinstance(arrival.order.work, Exchange) and arrival.order.attempt == 2
            return Arrival(arrival.order, lost="on purpose") if first and arrival.order.slot == 1 else arrival

    rounds, recorder = among(), Losing(hub)
    assert same(one_round(recorder, rounds, 3), expected())
    dealt = [a for a in recorder.arrivals if isinstance(a.order.work, Exchange)]
    assert [a.order.attempt for a in dealt] == [2, 2, 2, 4, 4, 4]
    seconds = [{a.order.slot: a.stats.seconds for a in part} for part in (dealt[:3], dealt[3:])]
    assert seconds[0] == seconds[1]  # the stats of the one time they were computed
    assert rounds.ledger.accepted == rounds.ledger.planned == len(SIZES)
    assert rounds.ledger.lost == len(SIZES)
    with pytest.raises(ClusterError, match="were lost 1 times: on purpose"):
        one_round(Losing(hub), among(retries=0), 3)


def test_slots_without_a_worker_are_those_of_the_one_before(hub):
    rounds, recorder = among(), Recorder(hub)
    for _ in range(2):
        assert same(one_round(recorder, rounds, 5), expected())
    members = [len(order.work.peers) for order in recorder.orders if isinstance(order.work, Exchange)]
    assert members == [3] * 6
    assert rounds.ledger.lost == 0


@pytest.mark.parametrize("always", [False, True])
def test_where_workers_do_not_reach_each_other_the_driver_adds_or_says_so(hub, monkeypatch, always):
    def refuse(at: object, patience: float) -> object:
        raise ConnectionRefusedError("a wall")

    monkeypatch.setattr("bigopt.backends.boards._socket_to", refuse)
    said: list[str] = []
    rounds = among()
    rounds.peers = Peers(always=always, patience=20.0, tell=said.append, least=8)
    if always:
        with pytest.raises(ClusterError, match="workers cannot add among themselves: .* a wall"):
            one_round(hub, rounds, 3)
        return
    for _ in range(2):
        assert same(one_round(hub, rounds, 3), expected())
    assert [text.split(":")[0] for text in said] == ["reduce", "warning"]
    assert rounds.ledger.accepted == rounds.ledger.planned == 2 * len(SIZES)


def test_workers_without_a_channel_leave_the_sums_to_the_driver():
    said: list[str] = []
    rounds = among(retries=0)
    rounds.peers = Peers(always=False, patience=20.0, tell=said.append, least=8)
    session = LocalSession(1, MEMORY)
    assert same(one_round(session, rounds, 3), expected())
    assert said == ["warning: workers cannot add among themselves, the driver does: they were placed without a channel"]
    session.close()


@pytest.mark.parametrize(
    ("slots", "least", "taken"), [(2, 8, False), (3, 8, True), (3, 72, False), (3, 71, True)], ids=str
)
def test_auto_lets_workers_add_large_vectors_of_three_slots(slots, least, taken):
    peers = Peers(always=False, patience=1.0, least=least)
    assert peers.takes(WORK, (PARAMS,), homes(SIZES, slots)) is taken
    assert not peers.takes(Probe(WORK.view), (PARAMS,), homes(SIZES, slots))


def unix_sockets() -> set[str]:
    return {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@bigopt-" in line}


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_is_no_ones_worry():
    """It is stopped first: the others have computed and wait for its sums when it dies."""
    hub, rounds, processes = Hub(3, timeout=60.0), among(), []

    def start(name: str) -> None:
        code = f"from bigopt.backends.channel import serve; serve({hub.addresses!r}, {hub.key!r}, 10**8, {name!r})"
        processes.append(subprocess.Popen([sys.executable, "-c", code]))

    class Deadly(Recorder):
        def submit(self, order: Order) -> None:
            if isinstance(order.work, Exchange) and order.ticket == 2 and order.slot == 1 and order.attempt == 1:
                (pid,) = (link.hello.pid for link in hub.links if link.slot == 1)
                os.kill(pid, signal.SIGSTOP)
                threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
            super().submit(order)

    try:
        for name in "abc":
            start(name)
        hub.wait_for_workers(3)
        recorder = Deadly(hub)
        for k in range(4):
            if k == 3:
                start("d")
                hub.wait_for_workers(3)
            params = PARAMS * (k + 1)
            assert same(one_round(recorder, rounds, 3, params=params), expected(params=params)), k
        dealt = [order for order in recorder.orders if isinstance(order.work, Exchange)]
        assert [(o.ticket, len(o.work.peers)) for o in dealt] == [(1, 3)] * 3 + [(2, 3)] * 3 + [(2, 2)] * 2 + [
            (3, 2)
        ] * 2 + [(4, 3)] * 3
        ledger = rounds.ledger
        assert ledger.accepted == ledger.planned == 4 * len(SIZES)
        assert ledger.rows == 4 * SIZES.sum()
        assert ledger.lost == len(SIZES)
        theirs = {f"@{at.near[1:]}" for order in dealt for at in order.work.peers}
        assert len(theirs) == 4
        assert len(unix_sockets() & theirs) == 3
    finally:
        hub.close()
        codes = [process.wait(20) for process in processes]
    assert sorted(codes) == [-signal.SIGKILL, 0, 0, 0]
    assert not unix_sockets() & theirs


KEYS = [
    "model.name=mlp",
    "data.task=classification",
    "model.hidden=[6]",
    "optimizer.name=adam",
    "batch.size=64",
    "batch.lanes=4",
    "stop.epochs=2",
    "run.seed=4",
]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", pytest.param("spark", marks=pytest.mark.all)])
def test_a_run_on_an_engine_has_the_bits_of_a_local_one(tmp_path, engine):
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("needs Java")
    path = files(tmp_path, "classes", "zarr")
    want = run(tmp_path, "classes", *KEYS)
    found = run_on(path, tmp_path, *KEYS, f"backend.name={engine}", "backend.workers=3", "backend.reduce=workers")
    assert "reduce: among " in (Path(found["run"]) / "log.txt").read_text()
    assert found["params_sha256"] == want["params_sha256"]
    assert found["rounds"] == want["rounds"]
