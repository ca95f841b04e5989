"""The contract of a session: one class of tests that every implementation passes.

A new backend inherits `SessionContract` and says how it is opened.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import psutil
import pytest
from probes import (
    MEMORY,
    SIZES,
    Recorder,
    alive,
    closing,
    conf,
    direct,
    run_round,
    same,
    started,
    vector,
    view,
    wait_until,
)

from bigopt.backends.base import Session
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.local import LocalSession
from bigopt.backends.testing import Elsewhere, Probe, Unreliable
from bigopt.config import BackendConf
from bigopt.core.errors import ClusterError, ConfError, DataError
from bigopt.data.memory import from_arrays
from bigopt.data.view import DataView


class SessionContract:
    """What holds for every session of two slots."""

    processes = True
    """Whether the slots are other processes."""

    repeats = False
    """Whether the engine itself runs again what dies, and where it likes."""

    @staticmethod
    def open() -> Session:
        """Open a session of two slots."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def session(cls) -> Iterator[Session]:
        with closing(cls.open()) as session:
            yield session

    def test_close_leaves_nothing(self, monkeypatch, tmp_path):
        """The first of a class: before its session is there, since all sessions of a process share one Spark."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with closing(self.open()) as session:  # what an engine keeps for good is there from now on
            run_round(session, Probe(view()), vector())
        before = self.traces()
        session = self.open()
        recorder = Recorder(session)
        run_round(recorder, Probe(view()), vector())
        pids = {arrival.stats.pid for arrival in recorder.arrivals if arrival.stats.pid}
        session.close()
        session.close()
        assert wait_until(lambda: not any(map(alive, pids)))
        assert wait_until(lambda: self.grown(before) == ([], [], 0)), (self.traces(), before)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("slots", [1, 2, 3, 7, 50])
    def test_a_round_has_the_bits_of_a_direct_fold_however_it_is_dealt(self, session, slots):
        recorder = Recorder(session)
        sums, ledger = run_round(recorder, Probe(view()), vector(), slots=slots)
        assert same(sums, direct(vector()))
        assert ledger.accepted == ledger.planned == ledger.executed == len(SIZES)
        assert (ledger.duplicates, ledger.lost) == (0, 0)
        assert ledger.rows == SIZES.sum()

    def test_the_tree_matters(self):
        """The oracle can fail: adding in another order gives other bits."""
        work, blocks = Probe(view()), []
        from bigopt.data.cache import BlockCache
        from bigopt.data.meter import Meter

        for index, size in enumerate(SIZES):
            blocks.append(work((vector(),), [index, -1, 0, size], Meter(BlockCache(MEMORY))).grad)
        assert sum(blocks[1:], blocks[0]).tobytes() != direct(vector()).grad.tobytes()

    def test_a_slot_sends_one_message_a_round_with_few_vectors(self, session):
        recorder = Recorder(session)
        run_round(recorder, Probe(view()), vector())
        assert session.slots == 2
        assert len(recorder.arrivals) == len(recorder.orders) == 2
        assert {order.slot for order in recorder.orders} == {0, 1}
        for arrival in recorder.arrivals:
            assert 1 <= len(arrival.nodes) <= 2 * 3  # log2 of 7 leaves is below 3
            assert arrival.stats.pid > 0 or not self.processes
            assert arrival.stats.rows == SIZES[arrival.order.start : arrival.order.stop].sum()
        if self.processes:
            assert self.repeats or len({arrival.stats.pid for arrival in recorder.arrivals}) == 2
            vectors = sum(len(arrival.nodes) for arrival in recorder.arrivals)
            assert vectors * vector().nbytes <= sum(a.received for a in recorder.arrivals) < (vectors + 1) * 8000 + 4000
            assert 2 * vector().nbytes <= sum(a.sent for a in recorder.arrivals) < 2 * vector().nbytes + 4000

    def test_rounds_follow_each_other(self, session):
        results = [run_round(Recorder(session), Probe(view()), vector() * k)[0] for k in (1, 2, 3)]
        assert all(same(sums, direct(vector() * k)) for k, sums in zip((1, 2, 3), results, strict=True))

    def test_what_is_wrong_with_the_data_arrives_with_its_order(self, session):
        recorder = Recorder(session)
        with pytest.raises(DataError, match="refused on purpose") as caught:
            run_round(recorder, Probe(view(), refuse=5), vector())
        assert (caught.value.where, caught.value.hint) == ("partition 5", "a test")
        failed = [a for a in recorder.arrivals if a.error is not None]
        assert len(failed) == 1
        assert failed[0].order.start <= 5 < failed[0].order.stop
        self.drain(recorder)
        assert same(run_round(session, Probe(view()), vector())[0], direct(vector()))

    def test_a_defect_ends_the_round_with_its_text(self, session):
        recorder = Recorder(session)
        with pytest.raises((ClusterError, ZeroDivisionError), match="broken on purpose"):
            run_round(recorder, Probe(view(), defect=2), vector())
        self.drain(recorder, raised=not self.processes)
        assert same(run_round(session, Probe(view()), vector())[0], direct(vector()))

    @staticmethod
    def drain(recorder: Recorder, *, raised: bool = False) -> None:
        """Take what a round that ended early has left behind."""
        while len(recorder.arrivals) + raised < len(recorder.orders):
            recorder.wait()

    def test_lost_repeated_and_late_arrivals_change_nothing(self, session):
        bad = Unreliable(session, 5, lose=0.3, repeat=0.3, late=0.4)
        rounds = Rounds(Ledger(), 30)
        for k in range(1, 21):
            assert same(run_round(bad, Probe(view()), vector() * k, slots=4, rounds=rounds)[0], direct(vector() * k))
        assert rounds.ledger.accepted == rounds.ledger.planned == 20 * len(SIZES)
        assert rounds.ledger.executed > rounds.ledger.accepted
        assert rounds.ledger.duplicates > 0
        assert bad.lost > 5
        assert bad.repeated > 5

    def test_a_killed_worker_gives_its_units_back(self, session, tmp_path):
        if not self.processes:
            pytest.skip("its slots are threads")
        sums, ledger = run_round(session, Probe(view(), kill=5, log=str(tmp_path)), vector())
        assert same(sums, direct(vector()))
        assert self.repeats or ledger.lost >= 1
        assert ledger.accepted == len(SIZES)
        assert started(tmp_path) > len(SIZES)  # more executions than accepted results
        assert wait_until(lambda: same(run_round(session, Probe(view()), vector())[0], direct(vector())))

    def test_a_worker_that_reads_other_data_is_told_so(self, session):
        if not self.processes:
            pytest.skip("it reads in this process")
        with pytest.raises(DataError, match="another dataset"):
            run_round(session, Probe(view(Elsewhere(3, 8, dtype="float64"))), vector())
        with contextlib.suppress(DataError):
            session.wait()  # the other slot says the same

    def test_data_in_memory_is_refused_where_it_would_have_to_travel(self, session):
        if not self.processes:
            pytest.skip("it stays in this process")
        source = from_arrays([[1.0]] * int(SIZES.sum()), partition_rows=SIZES.tolist()).source
        with pytest.raises(ConfError, match="cannot be sent"):
            run_round(session, Probe(DataView(source, view().bounds, "float64")), vector())

    def test_a_report_may_hold_what_metrics_hold(self, session):
        record = {"step": 1, "loss": float("nan"), "epoch": 0.1, "validation": {"mse": 1.0, "loss": 1.0}, "rows": 10}
        session.report("step 1", record)
        assert isinstance(session.notes, tuple)

    @classmethod
    def grown(cls, before: Any) -> Any:
        """What is there now and was not before; what the session before has left may still be ending."""
        children, threads, listening = cls.traces()
        return (
            sorted(set(children) - set(before[0])),
            sorted(set(threads) - set(before[1])),
            max(0, listening - before[2]),
        )

    @staticmethod
    def traces() -> Any:
        """Children, threads and listening sockets of this process."""
        me = psutil.Process()
        children = sorted(p.pid for p in me.children(recursive=True) if p.is_running() and p.status() != "zombie")
        threads = sorted(t.name for t in threading.enumerate() if t.name.startswith("bigopt"))
        sockets = me.net_connections("all")
        listening = [c for c in sockets if c.status == "LISTEN" or (c.family == socket.AF_UNIX and c.laddr)]
        return children, threads, len(listening)


class TestLocal(SessionContract):
    processes = False

    @staticmethod
    def open() -> Session:
        return LocalSession(2, MEMORY)


@pytest.mark.slow
class TestDask(SessionContract):
    @staticmethod
    def open() -> Session:
        from bigopt.backends import dask

        return dask.open_session(conf("dask"), memory=MEMORY, bits="strict", run="contract")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
class TestSpark(SessionContract):
    @staticmethod
    def open() -> Session:
        from bigopt.backends import spark

        return spark.open_session(conf("spark", timeout=60.0), memory=MEMORY, bits="strict", run="contract")


@pytest.mark.slow
class TestDaskActors(SessionContract):
    @staticmethod
    def open() -> Session:
        from bigopt.backends import dask

        return dask.open_session(conf("dask", channel="off"), memory=MEMORY, bits="strict", run="contract")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
class TestSparkTasks(TestSpark):
    repeats = True

    @staticmethod
    def open() -> Session:
        from bigopt.backends import spark

        chosen = conf("spark", timeout=60.0, channel="off")
        return spark.open_session(chosen, memory=MEMORY, bits="strict", run="contract")


def test_every_backend_has_its_contract():
    names = set(get_args(get_type_hints(BackendConf)["name"])) - {"auto"}
    tested = (c.__name__.removeprefix("Test") for c in SessionContract.__subclasses__())
    assert names == {name.removesuffix("Tasks").removesuffix("Actors").lower() for name in tested}
