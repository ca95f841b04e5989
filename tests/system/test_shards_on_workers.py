"""downpour with its shards in Dask workers: it learns, survives a killed worker, goes on from a checkpoint."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probes import wait_until
from problems import MODELS, files

from bigopt import sessions
from bigopt.config import load_conf
from bigopt.core.errors import ClusterError
from bigopt.fit import resume, train

KIND, MODEL = MODELS["softmax"]
KEYS = [*MODEL, "batch.size=64", "strategy.name=downpour", "strategy.replicas=3", "strategy.shards=2"]
KEYS += ["strategy.n_push=2", "strategy.n_fetch=4", "schedule.learning_rate=0.02", "strategy.local_learning_rate=0.05"]
KEYS += ["strategy.shards_on=workers", "backend.name=dask", "run.metrics_every_steps=1"]

pytest.importorskip("distributed")


class Killer:
    """Kills the second worker of two, then the first: each serves a shard, later the first serves both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *at: int) -> None:
        self._at = list(at)
        self._sessions: list[Any] = []
        self.killed: list[int] = []
        real = sessions.open_session

        def opened(*args: Any) -> Any:
            self._sessions.append(real(*args))
            return self._sessions[-1]

        monkeypatch.setattr(sessions, "open_session", opened)

    def __call__(self, step: int, epochs: float, params: np.ndarray) -> None:
        assert np.isfinite(params).all()
        if self._at and step >= self._at[0]:
            # the next one dies when the one before has been replaced, however long that takes on a busy machine
            assert wait_until(lambda: len(self._sessions[-1].pids) == 2, 60)
            self._at.pop(0)
            self.killed.append(self._sessions[-1].pids[-1 - len(self.killed)])
            os.kill(self.killed[-1], signal.SIGKILL)


def run(tmp_path: Path, *keys: str, on_step: Killer | None = None) -> dict[str, Any]:
    data = tmp_path / f"{KIND}.zarr"
    if not data.exists():
        files(tmp_path, KIND, "zarr")
    conf = [f"data.uri={data}", f"run.dir={tmp_path / 'runs'}", "backend.workers=2", *KEYS, *keys]
    layers = dict(key.split("=", 1) for key in conf)
    return train(load_conf([], [f"{key}={value}" for key, value in layers.items()]), on_step=on_step)


def left(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(result["run"]) / "result.json").read_text())
    return found


@pytest.mark.slow
def test_vectors_go_between_workers(tmp_path):
    here = run(tmp_path, "stop.epochs=10", "strategy.shards_on=driver")
    there = run(tmp_path, "stop.epochs=10")
    assert (there["steps"], there["epochs"]) == (here["steps"], here["epochs"]) == (80, 10)
    assert there["loss"] == pytest.approx(here["loss"], rel=0.15)
    found = left(there)
    assert sum(found["updates_by_worker"].values()) == sum(found["staleness"]["histogram"].values()) >= 120
    assert found["staleness"]["max"] > 0
    assert (found["pushes_lost"], found["pushes_dropped"], found["shards_restarted"]) == (0, 0, 0)
    assert found["ledger"]["accepted"] == found["ledger"]["planned"]
    lines = [json.loads(line) for line in (Path(there["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 80
    assert not (Path(there["run"]) / "updates.csv").exists()


@pytest.mark.all
def test_a_shard_whose_worker_is_killed_is_served_again(tmp_path, monkeypatch):
    killer = Killer(monkeypatch, 25, 60)
    result = run(tmp_path, "stop.epochs=15", on_step=killer)
    assert len(killer.killed) == 2
    found = left(result)
    assert (result["steps"], found["shards_restarted"] >= 2) == (120, True)
    assert result["loss"] < 1.3
    said = (Path(result["run"]) / "log.txt").read_text()
    assert said.count("of 2 was lost with its worker; it is served again by pid") == found["shards_restarted"]


@pytest.mark.all
def test_where_it_may_not_be_served_again_the_run_ends_and_can_go_on(tmp_path, monkeypatch):
    killer = Killer(monkeypatch, 40)
    keys = ["stop.epochs=10", "backend.retries=0", "checkpoint.every_steps=8"]
    with pytest.raises(ClusterError) as caught:
        run(tmp_path, *keys, on_step=killer)
    monkeypatch.undo()
    assert (caught.value.exit_code, "resume" in caught.value.hint) == (5, True)
    result = resume(Path(str(caught.value.run)), ["backend.retries=3"])
    assert result["steps"] == 80
    lines = [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    again = resume(Path(result["run"]), ["stop.epochs=12"])
    assert again["steps"] == 96
    assert again["loss"] < 1.3
