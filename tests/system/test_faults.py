"""kill -9 of a Dask worker and of a Spark Python worker in mid-round: same hash, nothing counted twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from killer import Killer
from problems import MODELS, files, run, run_on

from bigopt import sessions


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dask", "spark"])
def test_a_worker_killed_in_mid_round_changes_nothing(tmp_path, monkeypatch, backend):
    kind, model = MODELS["mlp_regression"]
    keys = [*model, "optimizer.name=adam", "batch.size=64", "batch.lanes=0", "stop.epochs=4", "run.audit=true"]
    expected = run(tmp_path / "local", kind, *keys)
    path = files(tmp_path, kind, "zarr")
    made: list[Killer] = []
    real = sessions.open_session

    def opened(*args: object) -> Killer:
        made.append(Killer(real(*args), at=(8, 20)))
        return made[-1]

    monkeypatch.setattr(sessions, "open_session", opened)
    result = run_on(path, tmp_path / "runs", *keys, f"backend.name={backend}", "backend.workers=2")
    assert result["params_sha256"] == expected["params_sha256"]
    assert result["audit_sha256"] == expected["audit_sha256"]
    assert len(made[0].killed) == 2
    ledger = json.loads((Path(result["run"]) / "result.json").read_text())["ledger"]
    assert ledger["lost"] > 0
    assert ledger["accepted"] == ledger["planned"]
    assert ledger["planned"] + ledger["lost"] > ledger["accepted"]
    for pid in made[0].killed:
        assert not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


SGD = ["optimizer.name=sgd", "schedule.learning_rate=0.05", "batch.size=64", "stop.epochs=6"]
STRATEGIES = {
    "backup": ["strategy.spares=1"],
    "async": [],
    "ssp": ["strategy.bound=2"],
    "local_sgd": ["strategy.replicas=2", "strategy.local_steps=2"],
    "downpour": ["strategy.replicas=2", "strategy.n_push=2", "strategy.n_fetch=2"],
    "easgd": ["strategy.replicas=2", "strategy.every=2"],
    "model_parallel": ["strategy.blocks=2"],
}


@pytest.mark.all
@pytest.mark.parametrize("name", list(STRATEGIES))
@pytest.mark.parametrize("backend", ["dask", "spark"])
def test_every_strategy_survives_a_killed_worker(tmp_path, monkeypatch, backend, name):
    """Each update is applied once, whatever was computed twice; sync-like strategies end with the same bits."""
    kind, model = MODELS["softmax"]
    keys = [*model, *SGD, f"strategy.name={name}", *STRATEGIES[name]]
    path = files(tmp_path, kind, "zarr")
    expected = run_on(path, tmp_path / "local", *keys, "backend.workers=2")
    made: list[Killer] = []
    real = sessions.open_session

    def opened(*args: object) -> Killer:
        made.append(Killer(real(*args), at=(9, 16)))
        return made[-1]

    monkeypatch.setattr(sessions, "open_session", opened)
    result = run_on(path, tmp_path / "runs", *keys, f"backend.name={backend}", "backend.workers=2")
    assert len(made[0].killed) == 2
    assert result["steps"] == expected["steps"]
    assert result["loss"] == pytest.approx(expected["loss"], rel=0.1)
    if name in ("backup", "local_sgd", "model_parallel"):
        assert result["params_sha256"] == expected["params_sha256"]
    else:
        found = json.loads((Path(result["run"]) / "result.json").read_text())
        lines = (Path(result["run"]) / "updates.csv").read_text().splitlines()[1:]
        assert sum(found["updates_by_worker"].values()) == len(lines)
        if name in ("async", "ssp"):
            assert sorted(int(line.split(",")[0]) for line in lines) == list(range(result["steps"]))
