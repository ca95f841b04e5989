"""Workers join and leave while a run lasts (2, 1, 2, 3 of them): nothing is lost, nothing is applied twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import MODELS, files, run_on

from bigopt import sessions
from bigopt.config import load_conf
from bigopt.fit import train

KIND, MODEL = MODELS["softmax"]
SGD = [*MODEL, "optimizer.name=sgd", "schedule.learning_rate=0.05", "batch.size=64", "stop.epochs=10"]
STRATEGIES = {
    "sync": [],
    "backup": ["strategy.spares=1"],
    "local_sgd": ["strategy.replicas=2", "strategy.local_steps=2"],
    "hogwild": ["batch.size=16", "run.kernels=numpy"],
    "async": [],
    "ssp": ["strategy.bound=1"],
    "downpour": ["strategy.replicas=3", "strategy.n_push=2", "strategy.n_fetch=2", "strategy.shards=2"],
    "easgd": ["strategy.replicas=3", "strategy.every=2"],
    "shards on workers": ["strategy.replicas=3", "strategy.n_push=2", "strategy.n_fetch=2", "strategy.shards=2"],
}
SAME_HASH = ("sync", "backup", "local_sgd")
WORKERS = {12: 1, 24: 2, 36: 3}
"""From which step on there are how many."""
SECONDS = 60.0

pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    folder = str(tmp_path_factory.mktemp("dask"))
    with dask.config.set({"temporary-directory": folder}):
        made = LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", local_directory=folder
        )
    with made:
        yield made


def wait(until: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < end, f"{what} did not happen within {SECONDS} seconds"
        time.sleep(0.02)


class Scaler:
    """Scales the cluster from within a run, and goes on when the session has noticed."""

    def __init__(self, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._cluster = cluster
        self._sessions: list[Any] = []
        self._todo = dict(WORKERS)
        self.seen: list[int] = []
        real = sessions.open_session

        def opened(*args: Any) -> Any:
            self._sessions.append(real(*args))
            return self._sessions[-1]

        monkeypatch.setattr(sessions, "open_session", opened)
        self.to(2)

    def to(self, workers: int) -> None:
        self._cluster.scale(workers)
        wait(lambda: len(self._cluster.scheduler.workers) == workers, f"{workers} workers")

    def __call__(self, step: int, epochs: float, params: Any) -> None:
        for at in [k for k in self._todo if k <= step]:
            workers = self._todo.pop(at)
            self.to(workers)
            wait(lambda: len(self._sessions[-1].pids) == workers, f"{workers} residents")  # noqa: B023
            self.seen.append(workers)


def elastic(name: str, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = name == "shards on workers"
    keys = dict(key.split("=", 1) for key in [*SGD, *STRATEGIES[name]])
    keys["strategy.name"] = "downpour" if served else name
    conf = [f"{key}={value}" for key, value in keys.items()]
    data = files(tmp_path, KIND, "zarr")
    expected = run_on(data, tmp_path / "local", *conf, "backend.workers=2")
    scaler = Scaler(cluster, monkeypatch)
    where = ["backend.name=dask", f"backend.address={cluster.scheduler_address}"]
    where += ["strategy.shards_on=workers"] if served else []
    result = train(load_conf([], [f"data.uri={data}", f"run.dir={tmp_path / 'runs'}", *conf, *where]), on_step=scaler)
    monkeypatch.undo()
    assert scaler.seen == [1, 2, 3]
    assert (result["steps"], result["epochs"]) == (expected["steps"], expected["epochs"])
    run = Path(result["run"])
    found = json.loads((run / "result.json").read_text())
    ledger = found["ledger"]
    assert ledger["executed"] >= ledger["accepted"]
    if name in SAME_HASH:
        assert result["params_sha256"] == expected["params_sha256"]
        assert ledger["accepted"] == ledger["planned"]
    elif name in ("hogwild", "shards on workers"):  # replicas in place of threads; pushes to a lost shard are lost
        assert result["loss"] < 0.75 * np.log(4)
    else:
        assert result["loss"] == pytest.approx(expected["loss"], rel=0.1)
    if name in (*SAME_HASH, "hogwild", "shards on workers"):
        assert found.get("shards_restarted", 1) >= 1
        return
    log = [tuple(map(int, line.split(","))) for line in (run / "updates.csv").read_text().splitlines()[1:]]
    assert sum(found["updates_by_worker"].values()) == len(log)
    if name in ("async", "ssp"):
        assert sorted(ticket for ticket, _, _ in log) == list(range(result["steps"]))
        assert max(worker for _, _, worker in log) == (1 if name == "ssp" else 2)
    if name == "ssp":
        assert max(v - read for v, (_, read, _) in enumerate(log)) <= 1
    again = run_on(data, tmp_path / "again", *conf, f"strategy.replay={run}/updates.csv")
    assert again["params_sha256"] == result["params_sha256"]


@pytest.mark.slow
def test_workers_come_and_go(tmp_path, cluster, monkeypatch):
    """The log of an asynchronous run, repeated on one machine, gives its bits: it holds every update, once."""
    elastic("async", tmp_path, cluster, monkeypatch)


@pytest.mark.all
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "async"])
def test_they_do_so_under_every_strategy(name, tmp_path, cluster, monkeypatch):
    """Synchronous ones end with the same bits."""
    elastic(name, tmp_path, cluster, monkeypatch)
