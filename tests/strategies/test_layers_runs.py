"""Whole runs of MLPs whose layers are cut: equal bits on any workers and engine, killed workers, resume, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killer import Killer
from problems import files, run, run_on

from bigopt import bundle, sessions
from bigopt.core.errors import ConfError
from bigopt.fit import resume

KEYS = ["model.name=mlp", "model.hidden=[8,6]", "data.task=classification", "optimizer.name=adam"]
STEPS = ["schedule.learning_rate=0.02", "batch.size=40", "stop.steps=40"]
CUTS = {
    "units": ["strategy.name=model_parallel", "strategy.blocks=2"],
    "layers": ["strategy.name=model_parallel", "strategy.split=layers", "strategy.blocks=2"],
    "hybrid": ["strategy.name=hybrid", "strategy.blocks=2", "strategy.replicas=2"],
}


def params(result: dict[str, Any]) -> np.ndarray:
    return np.asarray(bundle.load(Path(result["run"])).params)


@pytest.mark.parametrize("cut", CUTS)
def test_the_bits_are_the_same_on_any_workers_and_close_to_those_of_sync(tmp_path: Path, cut: str) -> None:
    whole = run(tmp_path, "four", *KEYS, *STEPS)
    found = [run(tmp_path, "four", *KEYS, *STEPS, *CUTS[cut], f"backend.workers={k}") for k in (1, 2, 3)]
    assert len({result["params_sha256"] for result in found}) == 1
    assert np.abs(params(found[0]) - params(whole)).max() <= 1e-12 * np.abs(params(whole)).max()
    assert found[0]["metrics"]["accuracy"] == whole["metrics"]["accuracy"]


@pytest.mark.parametrize("cut", CUTS)
def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, cut: str) -> None:
    path = files(tmp_path, "four", "zarr")
    keys = [*KEYS, *STEPS, *CUTS[cut][:-1], "backend.workers=2", "run.audit=true"]  # by the workers at the first start
    whole = run_on(path, tmp_path / "whole", *keys)
    part = run_on(path, tmp_path / "part", *(key.replace("stop.steps=40", "stop.steps=13") for key in keys))
    rest = resume(Path(part["run"]), ["stop.steps=40", "backend.workers=4"])
    assert rest["params_sha256"] == whole["params_sha256"]
    assert rest["audit_sha256"] == whole["audit_sha256"]


@pytest.mark.parametrize("cut", CUTS)
def test_batches_that_grow_and_halved_rates_are_those_of_sync(tmp_path: Path, cut: str) -> None:
    more = [*KEYS, "schedule.learning_rate=0.02", "batch.size=40", "batch.growth=2", "stop.epochs=3"]
    more += ["schedule.scaling=sqrt", "run.on_divergence=halve_rate", "optimizer.clip_norm=1"]
    whole, found = run(tmp_path, "four", *more), run(tmp_path, "four", *more, *CUTS[cut])
    assert found["steps"] == whole["steps"]
    assert np.abs(params(found) - params(whole)).max() <= 1e-11 * np.abs(params(whole)).max()


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "cut"), [("dask", "units"), ("dask", "layers"), ("spark", "hybrid")])
def test_on_an_engine_with_a_killed_worker_the_bits_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, cut: str
) -> None:
    path = files(tmp_path, "four", "zarr")
    keys = [*KEYS, *(key.replace("stop.steps=40", "stop.steps=12") for key in STEPS), *CUTS[cut], "backend.workers=2"]
    expected = run_on(path, tmp_path / "local", *keys)
    made: list[Killer] = []
    real = sessions.open_session

    def opened(*args: object) -> Killer:
        made.append(Killer(real(*args), at=(20,)))
        return made[-1]

    monkeypatch.setattr(sessions, "open_session", opened)
    result = run_on(path, tmp_path / "runs", *keys, f"backend.name={backend}")
    assert len(made[0].killed) == 1
    assert result["params_sha256"] == expected["params_sha256"]
    ledger = json.loads((Path(result["run"]) / "result.json").read_text())["ledger"]
    assert ledger["lost"] > 0
    assert ledger["accepted"] == ledger["planned"]


REFUSED = {
    "groups": (["model.groups=2"], "model.groups"),
    "shortcut": (["model.shortcut=true"], "model.shortcut"),
    "batchnorm": (["model.batchnorm=true"], "model.batchnorm"),
    "backprop": (["model.backprop=driver"], "model.backprop"),
    "update_on": (["strategy.update_on=worker"], "not available in this version"),
    "micro_batches": (["strategy.micro_batches=3"], "where a batch stays whole"),
    "too many": (["strategy.blocks=9"], "9 pieces of 8 units of layer 1"),
    "too many stages": (["strategy.split=layers", "strategy.blocks=4"], "4 stages of 3 layers"),
    "gpu": (["backend.device=gpu"], "layers that are cut are computed on the CPU"),
    "lbfgs": (["optimizer.name=lbfgs"], "asks several times"),
    "memory": (
        ["data.memory=0.1MB", "batch.size=full", "model.hidden=[8,40]"],
        "the activations of 451 rows.* take 0.3.* MB",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_is_refused_by_name(tmp_path: Path, name: str) -> None:
    keys, message = REFUSED[name]
    given = [key.partition("=")[0] for key in keys]
    rest = [key for key in KEYS if key.partition("=")[0] not in given]
    with pytest.raises(ConfError, match=message):
        run(tmp_path, "four", "strategy.name=model_parallel", "stop.steps=2", *rest, *keys)


def test_what_null_became_is_said_at_the_start(tmp_path: Path) -> None:
    keys = ["strategy.name=model_parallel", "strategy.split=layers", "backend.workers=2", "stop.steps=2"]
    result = run(tmp_path, "four", *KEYS, *keys)
    log = (Path(result["run"]) / "log.txt").read_text()
    assert "in 2 stages: layer 1 (40 multiply-adds), layers 2-3 (72 multiply-adds); 4 micro-batches follow" in log


def test_hybrid_takes_an_mlp(tmp_path: Path) -> None:
    with pytest.raises(ConfError, match="hybrid cuts the layers of an mlp, and softmax has one"):
        run(tmp_path, "four", "strategy.name=hybrid", "model.name=softmax")
