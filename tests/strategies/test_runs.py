"""Whole runs of every strategy on the local backend: equal bits, checkpoints, replay, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import MODELS, files, run, run_on

from bigopt.core.errors import ConfError
from bigopt.fit import resume
from bigopt.setting import read_updates

KIND, SOFTMAX = MODELS["softmax"]
SGD = [*SOFTMAX, "optimizer.name=sgd", "schedule.learning_rate=0.1", "batch.size=40", "stop.epochs=4"]
STRATEGIES: dict[str, list[str]] = {
    "sync": [],
    "backup": ["strategy.spares=1"],
    "async": [],
    "ssp": ["strategy.bound=2"],
    "local_sgd": ["strategy.local_steps=4", "strategy.replicas=2"],
    "downpour": ["strategy.n_push=3", "strategy.n_fetch=3", "strategy.replicas=2"],
    "easgd": ["strategy.every=3", "strategy.replicas=2"],
    "model_parallel": ["strategy.blocks=2"],
}
SAME_BITS = ("sync", "backup", "local_sgd", "model_parallel")


def train(tmp: Path, name: str, *keys: str) -> dict[str, Any]:
    tmp.mkdir(exist_ok=True)
    return run(tmp, KIND, *SGD, f"strategy.name={name}", *STRATEGIES[name], *keys)


def lines(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]


def updates(run: Path) -> list[tuple[int, int]]:
    """Tickets and versions, without who did them."""
    return [update[:2] for update in read_updates(run / "updates.csv")]


@pytest.mark.parametrize("name", SAME_BITS)
def test_bits_do_not_depend_on_the_workers(tmp_path: Path, name: str) -> None:
    found = {train(tmp_path, name, f"backend.workers={k}")["params_sha256"] for k in (1, 2, 3)}
    assert len(found) == 1
    if name == "backup":
        assert found == {train(tmp_path, "sync", "backend.workers=2")["params_sha256"]}


def test_async_with_one_worker_is_sync(tmp_path: Path) -> None:
    for name in ("async", "ssp"):
        one = train(tmp_path, name, "backend.workers=1")
        assert one["params_sha256"] == train(tmp_path, "sync", "backend.workers=1")["params_sha256"]


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_learns_and_counts_its_rows(tmp_path: Path, name: str) -> None:
    result = train(tmp_path, name, "backend.workers=2", "run.metrics_every_steps=1", "checkpoint.every_steps=7")
    sync = train(tmp_path, "sync", "backend.workers=2")
    assert result["status"] == "completed"
    assert result["epochs"] == pytest.approx(4, abs=0.1)
    assert (result["steps"], result["loss"] < 1.3 * sync["loss"]) == (sync["steps"], True)
    last = lines(result)[-1]
    assert last["step"] == sync["steps"]
    assert np.isfinite([last["loss"], last["grad_norm"], last["learning_rate"]]).all()
    if name in ("async", "downpour", "easgd"):
        assert max(line["staleness"] for line in lines(result)) >= 1


@pytest.mark.parametrize("name", ["async", "ssp", "downpour", "easgd"])
def test_a_run_is_repeated_from_its_log_to_the_same_bits(tmp_path: Path, name: str) -> None:
    first = train(tmp_path, name, "backend.workers=2")
    log = Path(first["run"]) / "updates.csv"
    again = train(tmp_path, name, "backend.workers=3", f"strategy.replay={log}")
    assert again["params_sha256"] == first["params_sha256"]
    assert updates(Path(again["run"])) == updates(Path(first["run"]))


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_run_that_was_cut_goes_on(tmp_path: Path, name: str) -> None:
    keys = [*SGD, f"strategy.name={name}", *STRATEGIES[name], "backend.workers=2"]
    data = files(tmp_path, KIND, "parquet")
    whole = run_on(data, tmp_path / "whole", *keys)
    part = run_on(data, tmp_path / "part", *keys, "stop.steps=20", "checkpoint.every_steps=5")
    rest = resume(Path(part["run"]), ["stop.epochs=4"])
    assert rest["steps"] == whole["steps"]
    if name in SAME_BITS:
        assert rest["params_sha256"] == whole["params_sha256"]
    else:
        assert rest["loss"] < 1.2 * whole["loss"]


def test_the_outer_optimizer_of_a_conf(tmp_path: Path) -> None:
    """sgd at rate 1 takes the average; nesterov, which has a state, goes on from a checkpoint with the same bits."""
    plain, same = train(tmp_path, "local_sgd"), train(tmp_path, "local_sgd", "strategy.outer={name: sgd}")
    assert same["loss"] == pytest.approx(plain["loss"], rel=1e-12)
    keys = [*SGD, "strategy.name=local_sgd", *STRATEGIES["local_sgd"]]
    keys += ["strategy.outer={name: nesterov, learning_rate: 0.7, momentum: 0.5}"]
    data = files(tmp_path, KIND, "zarr")
    found = {run_on(data, tmp_path / "whole", *keys, f"backend.workers={k}")["params_sha256"] for k in (1, 2, 3)}
    part = run_on(data, tmp_path / "part", *keys, "backend.workers=2", "stop.steps=20", "checkpoint.every_steps=5")
    rest = resume(Path(part["run"]), ["stop.epochs=4"])
    assert found == {rest["params_sha256"]}
    assert rest["loss"] < 0.95 * plain["loss"]  # momentum of the outer steps


def test_what_a_strategy_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfError, match="asks several times"):
        run(tmp_path, KIND, *SOFTMAX, "optimizer.name=lbfgs", "strategy.name=async", "backend.workers=2")
    with pytest.raises(ConfError, match="3 workers cannot keep a staleness of 1"):
        run(tmp_path, KIND, *SGD, "strategy.name=ssp", "strategy.bound=1", "backend.workers=3")
    with pytest.raises(ConfError, match="too few for 9 replicas"):
        run(tmp_path, KIND, *SGD, "strategy.name=downpour", "strategy.replicas=9")
    log = tmp_path / "updates.csv"
    with pytest.raises(ConfError, match="no such file"):
        train(tmp_path, "async", f"strategy.replay={log}")
    log.write_text("ticket,version,worker\n0,0,0\n1,x,0\n")
    with pytest.raises(ConfError, match="line 3"):
        train(tmp_path, "async", f"strategy.replay={log}")
