"""Spark clusters of several processes, each with a driver of its own: deaths of workers, executors and drivers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import spark_job
from problems import files
from standalone import Standalone, environment

from bigopt.backends.local import LocalSession
from bigopt.backends.testing import Probe

pytestmark = [pytest.mark.slow, pytest.mark.all]

LOCAL_CLUSTER = "local-cluster[2,1,1024]"
SCRIPT = Path(spark_job.__file__)
ROOT = Path(__file__).parents[2]


def drive(master: str, folder: Path, *keys: str) -> dict[str, Any]:
    """Run a plan in a driver of its own; return what it told."""
    command = [sys.executable, str(SCRIPT), master, str(folder), *keys]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def expected(rounds: int = 3) -> str:
    session = LocalSession(1, 10**8)
    try:
        return spark_job.run_rounds(session, Probe(spark_job.problem()[1]), rounds)[0]
    finally:
        session.close()


def gone(pids: list[int], seconds: float) -> list[int]:
    """Return those of the processes that still live after some time."""
    end = time.monotonic() + seconds
    while True:
        alive = []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    alive.append(pid)
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.2)


def check(told: dict[str, Any]) -> None:
    """What holds whatever died: the bits, each unit accepted once, no process left, signals untouched."""
    ledger = told["ledger"]
    assert told["hash"] == expected(ledger["rounds"])
    assert ledger["accepted"] == ledger["planned"] == 7 * ledger["rounds"]
    assert told["left"] == []
    assert told["handler_kept"]
    assert gone(told["family"], 10.0) == []


def test_local_cluster_survives_a_killed_python_worker(tmp_path):
    told = drive(LOCAL_CLUSTER, tmp_path, "kill=4")
    check(told)
    assert told["slots"] == 2
    assert told["ledger"]["lost"] == 3
    assert len(list(tmp_path.iterdir())) > told["ledger"]["accepted"]


def test_local_cluster_survives_a_killed_executor(tmp_path):
    told = drive(LOCAL_CLUSTER, tmp_path, "executor=true", "seconds=0.2")
    check(told)
    assert told["ledger"]["lost"] > 0


def test_a_driver_that_is_killed_takes_everything_with_it(tmp_path):
    with driver("local[2]", tmp_path, "hold=true") as (process, told):
        family = told["family"]
        assert len(family) >= 4  # the JVM, the Python daemon, two workers
        process.kill()
        process.wait(10)
        assert gone(family, 15.0) == []


@contextlib.contextmanager
def driver(master: str, folder: Path, *keys: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A driver that goes on after it told what it did."""
    command = [sys.executable, str(SCRIPT), master, str(folder), *keys]
    with (folder / "stderr").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment())
    with process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, (folder / "stderr").read_text()[-4000:]
            yield process, json.loads(line)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a standalone master with two workers of one core, on two loopback addresses."""
    with Standalone(tmp_path_factory.mktemp("standalone"), 2) as cluster:
        yield cluster.address


def submit(conf: Path, *keys: str, engine: tuple[str, ...] = ("spark-submit", "--master", "local[2]")) -> Any:
    """Run pipelines/train.py with ``--json``; return its exit code, its object and its stderr."""
    folder = Path(sys.executable).parent
    command = [str(folder / engine[0]), *engine[1:], str(ROOT / "pipelines/train.py"), "-c", str(conf), "--json", *keys]
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment() | {"PATH": path}, check=False
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def test_spark_submit_runs_a_pipeline_with_the_bits_of_python(tmp_path):
    conf = tmp_path / "conf.yml"
    conf.write_text(
        f"data: {{uri: {files(tmp_path, 'numbers', 'zarr')}, validation: 0.1}}\nmodel: {{name: ridge, l2: 0.01}}\n"
        f"optimizer: {{name: adam}}\nbatch: {{size: 64}}\nstop: {{epochs: 2}}\nbackend: {{name: local, workers: 2}}\n"
        f"run: {{dir: {tmp_path / 'runs'}}}\n"
    )
    code, mine, _ = submit(conf, engine=(Path(sys.executable).name,))
    assert code == 0
    code, told, stderr = submit(conf)
    assert code == 0
    assert told["params_sha256"] == mine["params_sha256"]
    assert "Spark UI: http://" in stderr
    code, told, _ = submit(conf, "optimiser.name=adam")
    assert code == told["code"] == 2


def test_standalone_workers_connect_over_tcp_and_survive_a_kill(standalone, tmp_path):
    told = drive(standalone, tmp_path, "kill=4")
    check(told)
    assert told["slots"] == 2
    assert told["ledger"]["lost"] == 3


def test_standalone_with_fewer_workers_than_asked_for_uses_those_there_are(standalone, tmp_path):
    told = drive(standalone, tmp_path, "workers=3")
    check(told)
    assert told["slots"] == 2
    assert any("backend.workers=3" in note for note in told["notes"])
