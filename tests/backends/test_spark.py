"""Spark: residents in a local[2], their death, what Spark's pages say, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spark_job

from bigopt.backends import spark
from bigopt.backends.channel import Hub
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.local import LocalSession
from bigopt.backends.spark import context
from bigopt.backends.spark.jobs import SparkJobSession
from bigopt.backends.spark.session import ResidentSparkSession, _whereabouts
from bigopt.backends.testing import Probe
from bigopt.config import BackendConf
from bigopt.core.errors import ClusterError, ConfError, DataError
from bigopt.data.view import DataView
from bigopt.data.writer import DatasetWriter

Open = Callable[..., ResidentSparkSession]


def no_spark(*_: object, **__: object) -> None:
    raise AssertionError("Spark was started")


def expected(rounds: int = 3, length: int = 1000) -> str:
    """The hash of the rounds on one thread of this process."""
    session = LocalSession(1, 10**8)
    try:
        return spark_job.run_rounds(session, Probe(spark_job.problem()[1]), rounds, length)[0]
    finally:
        session.close()


def wait_until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
    return value


class TestWithoutSpark:
    """What is decided before any JVM starts."""

    @pytest.fixture(autouse=True)
    def _none_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pyspark import SparkContext

        monkeypatch.setattr(SparkContext, "_ensure_initialized", no_spark)
        monkeypatch.setattr(SparkContext, "_active_spark_context", None)
        for name in ("PYSPARK_GATEWAY_PORT", "SPARK_CONNECT_MODE_ENABLED"):
            monkeypatch.delenv(name, raising=False)

    def test_connect_is_refused_by_address_and_by_mode(self, monkeypatch):
        with pytest.raises(ConfError, match="Spark Connect") as caught:
            context.start("sc://localhost:15002", None, "r")
        assert "classic master" in caught.value.hint
        monkeypatch.setenv("SPARK_CONNECT_MODE_ENABLED", "1")
        with pytest.raises(ConfError, match="Spark Connect"):
            context.start(None, 2, "r")

    def test_no_java_is_said_with_how_to_get_it(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("JAVA_HOME", raising=False)
        with pytest.raises(ConfError, match="needs Java") as caught:
            context.start("local[2]", None, "r")
        assert "openjdk-17" in caught.value.hint
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        with pytest.raises(ConfError, match=f"none in JAVA_HOME={tmp_path}"):
            context.start("local[2]", None, "r")

    def test_no_pyspark_is_said_with_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyspark.sql.utils", None)
        with pytest.raises(ConfError, match="not installed") as caught:
            context.start("local[2]", None, "r")
        assert "bigopt[spark]" in caught.value.hint

    def test_a_master_that_does_not_answer(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
            address = f"spark://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(ClusterError, match=f"no Spark master answers at {address}"):
                context.start(address, None, "r")

    def test_the_next_of_several_masters_is_asked(self):
        with socket.socket() as taken, socket.create_server(("127.0.0.1", 0)) as there:
            taken.bind(("127.0.0.1", 0))
            ports = taken.getsockname()[1], there.getsockname()[1]
            with pytest.raises(ClusterError, match="Spark was started"):
                context.start(f"spark://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}", None, "r")


@pytest.mark.parametrize(
    ("master", "loopback"),
    [
        ("local", True),
        ("local[*]", True),
        ("local[4,3]", True),
        ("local-cluster[2,1,1024]", True),
        ("spark://localhost:7077", True),
        ("spark://127.0.0.2:7077,[::1]:7078", True),
        ("spark://127.0.0.1:7077,node7:7077", False),
        ("spark://node7:7077", False),
        ("yarn", False),
        ("k8s://https://127.0.0.1:6443", False),
    ],
)
def test_only_clusters_of_this_machine_are_bound_to_loopback(master, loopback):
    assert context._on_loopback(master) is loopback


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "Job aborted due to stage failure: x\n\tat org.a.B\nDriver stacktrace:",
            "Job aborted due to stage failure: x",
        ),
        (
            "Job aborted: most recent failure: org.apache.spark.api.python.PythonException: Traceback\n"
            "  File \"x.py\", line 1\nModuleNotFoundError: No module named 'bigopt'\n\n\tat org.apache.spark.api\n",
            "ModuleNotFoundError: No module named 'bigopt'",
        ),
        ("", "RuntimeError"),
    ],
)
def test_the_line_of_an_error_that_says_why(text, line):
    assert context.first_line(RuntimeError(text)) == line


def test_whereabouts_name_partitions_and_slots():
    activity = [{"slot": k, "first": 3 * k, "last": 3 * k + 2} for k in range(11)]
    activity[1] |= {"first": None, "last": None}
    assert _whereabouts(activity[:3]) == "partitions 0..2 on slot 0, 6..8 on slot 2"
    assert _whereabouts(activity).endswith("24..26 on slot 8 and 2 more slots")
    assert _whereabouts([]) == ""


@pytest.fixture(scope="module")
def local2() -> Iterator[context.Started]:
    """A local[2] that the tests of this module share."""
    started = context.start("local[2]", None, "tests")
    yield started
    started.sc.stop()


@pytest.fixture
def opened(local2: context.Started) -> Iterator[Open]:
    """Open sessions in the shared local[2] and close them."""
    assert local2.alive
    sessions: list[ResidentSparkSession] = []

    def open_one(workers: int | None = None, **keys: Any) -> ResidentSparkSession:
        backend = BackendConf(name="spark", workers=workers, **keys)
        sessions.append(spark.open_session(backend, memory=10**8, bits="strict", run="r1"))
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.close()


def jobs(started: context.Started) -> list[dict[str, Any]]:
    url = f"{started.sc.uiWebUrl}/api/v1/applications/{started.sc.applicationId}/jobs"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


@pytest.mark.slow
class TestLocal2:
    def test_what_is_set_in_a_context_of_our_own(self, local2):
        conf = local2.sc.getConf()
        assert local2.owned
        assert local2.sc.appName == "bigopt tests"
        assert conf.get("spark.python.unix.domain.socket.enabled") == "true"
        assert socket.gethostbyname(conf.get("spark.driver.host")) == "127.0.0.1"
        assert local2.sc.pythonExec == sys.executable
        assert "SPARK_LOCAL_IP" not in os.environ

    def test_same_bits_as_one_thread_and_one_message_a_slot(self, opened):
        session = opened()
        found, ledger, _ = spark_job.run_rounds(session, Probe(spark_job.problem()[1]), 3)
        assert session.slots == 2
        assert found == expected()
        assert (ledger.accepted, ledger.executed, ledger.messages) == (21, 21, 6)

    def test_no_more_slots_than_the_master_has(self, opened):
        session = opened(5)
        assert session.slots == 2
        assert any("backend.workers=5" in note for note in session.notes)
        session.close()
        assert opened(1).slots == 1

    def test_another_master_than_the_active_one_is_refused(self, opened):
        with pytest.raises(ConfError, match=r"on local\[2\] already, not on local\[3\]"):
            opened(address="local[3]")

    def test_workers_keep_decoded_blocks(self, opened, tmp_path):
        from bigopt.data.open import open_dataset

        X = np.random.default_rng(0).normal(size=(sum(spark_job.SIZES), 8))
        columns = [f"x{j}" for j in range(8)]
        with DatasetWriter(
            str(tmp_path / "d.zarr"), format="zarr", columns=columns, target=["y"], partition_rows=spark_job.SIZES
        ) as writer:
            writer.append(X, X[:, 0])
        data = open_dataset(str(tmp_path / "d.zarr"))
        view = DataView(data.source, np.cumsum([0, *spark_job.SIZES]), "float64")
        _, _, read = spark_job.run_rounds(opened(), Probe(view), 3)
        assert read[0] > 0
        assert read[1:] == [0, 0]

    def test_a_killed_worker_costs_nothing_but_time(self, opened, tmp_path):
        session = opened()
        work = Probe(spark_job.problem()[1], log=str(tmp_path), kill=4)
        found, ledger, _ = spark_job.run_rounds(session, work, 3)
        pids = [int(path.name.split("-")[1]) for path in tmp_path.iterdir()]
        assert found == expected()
        assert ledger.accepted == ledger.planned == 21
        assert ledger.lost == 3  # the dead slot's partitions and no others
        assert len(pids) > ledger.accepted
        wait_until(lambda: len(session._hub.links) == 2)

    @pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.all)])
    def test_kills_from_outside(self, opened, kills):
        session = opened()

        def shoot(_: int) -> None:
            link = wait_until(lambda: session._hub.links)[-1]
            pid = link.hello.pid
            threading.Timer(0.15, os.kill, (pid, signal.SIGKILL)).start()

        work = Probe(spark_job.problem()[1], seconds=0.1)
        found, ledger, _ = spark_job.run_rounds(session, work, kills, each=shoot)
        assert found == expected(kills)
        assert ledger.accepted == ledger.planned == 7 * kills
        assert ledger.lost > 0

    def test_bad_data_is_said_once_and_not_repeated(self, opened, tmp_path):
        work = Probe(spark_job.problem()[1], log=str(tmp_path), refuse=2)
        with pytest.raises(DataError, match="refused on purpose"):
            spark_job.run_rounds(opened(), work, 1)
        assert sum(path.name.startswith("2-") for path in tmp_path.iterdir()) == 1

    def test_the_run_is_readable_in_sparks_rest_api(self, opened, local2):
        session = opened()
        spark_job.run_rounds(session, Probe(spark_job.problem()[1]), 1)
        session.report("round 1, step 1, epoch 1, loss 0.5", {})
        wanted = "bigopt r1: round 1, step 1, epoch 1, loss 0.5, partitions 0..3 on slot 0, 4..6 on slot 1"
        job = wait_until(lambda: next((j for j in jobs(local2) if j.get("description") == wanted), None))
        assert (job["numTasks"], job["status"]) == (0, "SUCCEEDED")
        running = {j["description"] for j in jobs(local2) if j["status"] == "RUNNING"}
        assert running == {f"bigopt r1: resident worker of slot {k} (2 slots)" for k in (0, 1)}

    def test_the_last_report_is_posted_and_those_of_one_second_are_one(self, opened, local2):
        session = opened()
        for number in range(50):
            session.report(f"round {number} of fifty", {})
        session.close()
        told = [j["description"] for j in wait_until(lambda: jobs(local2)) if "of fifty" in j.get("description", "")]
        assert "bigopt r1: round 49 of fifty" in wait_until(lambda: [j.get("description") for j in jobs(local2)])
        assert len(told) <= 3

    def test_close_leaves_the_users_context_and_nothing_in_it(self, opened, local2):
        session = opened()
        pids = [link.hello.pid for link in session._hub.links]
        folder = Path(str(session._hub.addresses[0])).parent
        session.close()
        session.close()
        assert local2.alive
        assert not local2.sc.statusTracker().getActiveJobsIds()
        assert not folder.exists()
        assert len(pids) == 2
        assert local2.sc.parallelize(range(8), 2).sum() == 28

    def test_the_next_session_gets_the_same_processes(self, opened):
        first = opened()
        pids = set(first.pids)
        first.close()
        assert len(pids) == 2
        assert set(opened().pids) == pids

    def test_close_does_not_wait_for_what_is_being_computed(self, opened, local2):
        session = opened()
        work = Probe(spark_job.problem()[1], seconds=30.0)
        for order in (
            Rounds(Ledger(), 0).new(work, (np.ones(1),), spark_job.whole_units(), spark_job.homes(2), where="").orders()
        ):
            session.submit(order)
        wait_until(lambda: any(a["state"] == "busy" for a in session._hub.activity()))
        session.close()
        wait_until(lambda: not local2.sc.statusTracker().getActiveJobsIds())

    def test_workers_that_cannot_connect_compute_in_jobs(self, opened, monkeypatch, tmp_path):
        monkeypatch.setattr(Hub, "addresses", (str(tmp_path / "nowhere"),))
        session = opened()
        assert isinstance(session, SparkJobSession)
        assert any("a job of Spark" in note for note in session.notes)
        work = Probe(spark_job.problem()[1])
        for length in (1000, 100_000):  # in the closure, and by broadcast
            assert spark_job.run_rounds(session, work, 2, length)[0] == expected(2, length)

    def test_a_context_that_is_stopped_ends_the_run(self, opened, local2, monkeypatch):
        session = opened()
        monkeypatch.setattr(context.Started, "alive", property(lambda _: False))
        os.kill(session._hub.links[0].hello.pid, signal.SIGKILL)
        with pytest.raises(ClusterError, match="Spark is gone"):
            session.wait()


def test_java_is_found_where_these_tests_run():
    assert shutil.which("java"), "the tests of the Spark backend need Java (Debian: openjdk-17-jre-headless)"
