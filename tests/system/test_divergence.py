"""A run that diverges goes back to its best epoch with half the rate (``run.on_divergence: halve_rate``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import MODELS, datasets, run, table

from bigopt.checkpoint import Checkpoints
from bigopt.config import load_text, resume_conf
from bigopt.core.errors import ConfError, DivergedError
from bigopt.fit import _Run
from bigopt.rewinding import MOST_HALVINGS
from bigopt.rundir import RunDir

HALVE = ["run.on_divergence=halve_rate", "run.metrics_every_steps=1"]


def go_on(path: Path, kind: str, *overrides: str) -> dict[str, Any]:
    folder = RunDir.open(path)
    try:
        return _Run(resume_conf(path / "conf.yml", list(overrides)), datasets(kind), folder).go(resume=True)
    finally:
        folder.close()


def test_a_rate_that_is_too_large_is_halved_until_gradient_descent_converges(tmp_path):
    """H = 2 X^T X/n of standardised columns: the largest power of two below 2/lambda_max times the rate given."""
    kind = "numbers"
    X, _ = table(kind)
    Z = np.column_stack([(X - X.mean(0)) / X.std(0), np.ones(len(X))])
    stable = 2.0 / np.linalg.eigvalsh(2 * Z.T @ Z / len(Z)).max()
    keys = ["model.name=linear", "optimizer.name=gd", f"schedule.learning_rate={5.5 * stable}", "stop.steps=800"]
    result = run(tmp_path, kind, *keys, *HALVE)
    assert result["halvings"] == 3
    assert result["steps"] == 800
    text = (Path(result["run"]) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 801))
    np.testing.assert_allclose([line["learning_rate"] for line in lines], 5.5 * stable / 8, rtol=1e-14)
    plain = run(tmp_path, kind, *keys[:2], f"schedule.learning_rate={5.5 * stable / 8}", "stop.steps=800")
    assert plain["params_sha256"] == result["params_sha256"]  # all three went back to the first params
    log = (Path(result["run"]) / "log.txt").read_text()
    assert log.count("back to step 0, ") == 3
    assert "0.125 times the rate" in log


def test_it_goes_back_to_the_best_epoch_and_a_resumed_run_has_the_same_bits(tmp_path):
    kind, model = "numbers", ["model.name=linear", "optimizer.name=sgd", "batch.size=100"]
    # the cycle begins at a rate that learns and rises to one that diverges
    cycle = ["schedule.name=one_cycle", "schedule.period=200", "schedule.pct_start=0.5", "schedule.div=1e5"]
    keys = [*model, *cycle, "schedule.learning_rate=60"]
    with pytest.raises(DivergedError) as caught:
        run(tmp_path, kind, *keys, "stop.steps=200", "run.metrics_every_steps=1")
    text = (Path(caught.value.run) / "metrics.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in text.splitlines()]
    diverged = len(losses) + 1
    sizes = [100, 100, 100, 100, 51]
    means = [np.average(losses[k : k + 5], weights=sizes) for k in range(0, len(losses) - 4, 5)]
    length = f"stop.steps={diverged + 2}"
    whole = run(tmp_path, kind, *keys, length, *HALVE, "run.audit=true")
    log = (Path(whole["run"]) / "log.txt").read_text()
    assert whole["halvings"] == log.count("back to step") == 1
    best = 5 * int(np.argmin(means))
    assert best > 0
    assert f"diverged at step {diverged} (the loss is inf): back to step {best}, 0.5 times the rate" in log
    for steps in (best + 2, diverged - 20):
        part = run(tmp_path, kind, *keys, f"stop.steps={steps}", *HALVE, "run.audit=true", "backend.workers=3")
        assert part["halvings"] == 0
        again = go_on(Path(part["run"]), kind, length)
        assert [again[k] for k in ("params_sha256", "audit_sha256", "halvings", "steps")] == [
            whole[k] for k in ("params_sha256", "audit_sha256", "halvings", "steps")
        ]


@pytest.mark.parametrize("text", ["optimizer: {name: lbfgs}", "optimizer: {name: gd}\nschedule: {name: backtracking}"])
def test_line_searches_have_no_rate_to_halve(text: str) -> None:
    with pytest.raises(ConfError, match="finds every step by a line search"):
        load_text(f"model: {{name: logistic}}\nrun: {{on_divergence: halve_rate}}\n{text}", "x.yml")


def test_after_ten_halvings_it_ends_as_ever(tmp_path):
    kind, model = MODELS["ridge"]
    with pytest.raises(DivergedError, match=r"step \d+") as caught:
        run(tmp_path, kind, *model, "optimizer.name=gd", "schedule.learning_rate=1e12", "stop.steps=100", *HALVE)
    assert caught.value.exit_code == 4
    assert f"halved {MOST_HALVINGS} times" in caught.value.hint
    state = Checkpoints(Path(caught.value.run) / "checkpoints", 3).newest()[1].state
    assert np.isfinite(state.method.params).all()
