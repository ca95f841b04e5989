"""A standalone Spark in which all that can die does so while a run lasts, and new machines join.

A Python worker, an executor and a whole machine (Spark's worker, executor and Python) are killed while they have an
order; before the first and before the last death another machine joins. Nothing is lost, nothing is applied twice.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from problems import MODELS, files, run_on
from standalone import Standalone

from bigopt import sessions
from bigopt.backends.base import Session
from bigopt.config import load_conf
from bigopt.fit import train
from bigopt.work import Arrival, Order

pytestmark = pytest.mark.all

KIND, MODEL = MODELS["softmax"]
SGD = [*MODEL, "optimizer.name=sgd", "schedule.learning_rate=0.05", "batch.size=64", "stop.epochs=10"]
STRATEGIES = {
    "sync": [],
    "async": [],
    "ssp": ["strategy.bound=3"],
    "downpour": ["strategy.replicas=3", "strategy.n_push=2", "strategy.n_fetch=2"],
}
EVENTS = {6: "join", 10: "python", 18: "executor", 26: "join", 34: "machine"}
"""From which step on what happens: Python worker, executor or machine of the next order dies, or a machine joins."""
SECONDS = 90.0


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    with Standalone(tmp_path_factory.mktemp("standalone"), 2) as made:
        yield made


def ancestor(pid: int, part: str) -> psutil.Process:
    """Return the process above another whose command line has a part."""
    return next(p for p in psutil.Process(pid).parents() if part in " ".join(p.cmdline()))


class Disturbed:
    """A session that kills what an order goes to, which is stopped first so that it cannot answer."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pids: dict[int, int] = {}
        self.doomed: str | None = None
        self.dead: list[str] = []
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def wait(self) -> Arrival:
        arrival = self._session.wait()
        self.lost += bool(arrival.lost)
        if arrival.stats.pid:
            self._pids[arrival.order.slot] = arrival.stats.pid
        return arrival

    def submit(self, order: Order) -> None:
        pid = self._pids.get(order.slot)
        if self.doomed is None or pid not in self.pids:
            self._session.submit(order)
            return
        os.kill(pid, signal.SIGSTOP)
        self._session.submit(order)
        self._kill(pid, self.doomed)
        self.dead.append(self.doomed)
        self.doomed = None

    def _kill(self, pid: int, what: str) -> None:
        victims = [psutil.Process(pid)]
        if what == "executor":
            victims = [ancestor(pid, "CoarseGrained")]
        if what == "machine":
            worker = ancestor(pid, "deploy.worker.Worker")
            victims = [worker, *worker.children(recursive=True)]
        for process in victims:
            process.kill()
        if what == "executor":
            os.kill(pid, signal.SIGCONT)  # its Python may answer, or notice that it is alone


def wait(until: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < end, f"{what} did not happen within {SECONDS} seconds"
        time.sleep(0.05)


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_machines_join_and_die(name, tmp_path, cluster, monkeypatch):
    """A synchronous run ends with the bits of an undisturbed one; the log of the others, repeated, gives theirs."""
    conf = [*SGD, f"strategy.name={name}", *STRATEGIES[name]]
    data = files(tmp_path, KIND, "zarr")
    expected = run_on(data, tmp_path / "local", *conf, "backend.workers=2")
    made: list[Disturbed] = []
    events, real = dict(EVENTS), sessions.open_session

    def opened(*args: Any) -> Disturbed:
        made.append(Disturbed(real(*args)))
        return made[-1]

    def join(machines: int) -> None:
        wait(lambda: len(made[-1].pids) == machines, f"{machines} residents")
        cluster.join()
        wait(lambda: len(made[-1].pids) == machines + 1, f"{machines + 1} residents")

    def on_step(step: int, epochs: float, params: Any) -> None:
        if made[-1].doomed is not None or not events or step < min(events):
            return
        what = events.pop(min(events))
        if what == "join":
            join(2 if len(made[-1].dead) == 0 else 3)
        else:
            made[-1].doomed = what

    monkeypatch.setattr(sessions, "open_session", opened)
    where = ["backend.name=spark", f"backend.address={cluster.address}"]
    result = train(load_conf([], [f"data.uri={data}", f"run.dir={tmp_path / 'runs'}", *conf, *where]), on_step=on_step)
    monkeypatch.undo()
    assert made[-1].dead == ["python", "executor", "machine"]
    assert made[-1].lost >= 2
    assert not events
    assert (result["steps"], result["epochs"]) == (expected["steps"], expected["epochs"])
    run = Path(result["run"])
    found = json.loads((run / "result.json").read_text())
    ledger = found["ledger"]
    if name == "sync":
        assert result["params_sha256"] == expected["params_sha256"]
        assert ledger["accepted"] == ledger["planned"]
        assert ledger["lost"] > 0
        return
    assert result["loss"] == pytest.approx(expected["loss"], rel=0.1)
    log = [tuple(map(int, line.split(","))) for line in (run / "updates.csv").read_text().splitlines()[1:]]
    assert sum(found["updates_by_worker"].values()) == len(log)
    if name in ("async", "ssp"):
        assert sorted(ticket for ticket, _, _ in log) == list(range(result["steps"]))
        assert {2, 3} <= {worker for _, _, worker in log}
    if name == "ssp":
        assert max(version - read for version, (_, read, _) in enumerate(log)) <= 3
    again = run_on(data, tmp_path / "again", *conf, f"strategy.replay={run}/updates.csv")
    assert again["params_sha256"] == result["params_sha256"]
