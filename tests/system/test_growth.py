"""Runs whose batch grows, and rates that follow the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import MODELS, datasets, run, table

from bigopt.config import load_conf, load_text, resume_conf
from bigopt.core.errors import ConfError
from bigopt.describe import describe
from bigopt.fit import _Run
from bigopt.rundir import RunDir

GROW = ["batch.size=50", "batch.growth={factor: 3, max: 300}", "run.metrics_every_steps=1"]
GROWING = [*GROW, "stop.epochs=4"]
STEPS = [10, 4, 2, 2]  # of 451 rows in batches of 50, 150, 300, 300


def go_on(path: Path, kind: str, *overrides: str) -> dict[str, Any]:
    folder = RunDir.open(path)
    try:
        return _Run(resume_conf(path / "conf.yml", list(overrides)), datasets(kind), folder).go(resume=True)
    finally:
        folder.close()


def lines(result: dict[str, Any]) -> list[dict[str, Any]]:
    text = (Path(result["run"]) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_growing_batch_has_the_same_bits_on_any_workers_and_after_a_resume(tmp_path):
    kind, model = MODELS["mlp_classes"]
    keys = [*model, "optimizer.name=momentum", *GROW]
    whole = run(tmp_path, kind, *keys, "stop.epochs=4", "backend.workers=1")
    assert (whole["steps"], whole["epochs"]) == (sum(STEPS), 4.0)
    epochs = [line["epoch"] for line in lines(whole)]
    by_hand = [e + min(1.0, (k + 1) * b / 451) for e, b in enumerate((50, 150, 300, 300)) for k in range(STEPS[e])]
    np.testing.assert_allclose(epochs, by_hand, rtol=1e-12)
    for steps in (10, 13):  # at the end of an epoch, and inside one
        part = run(tmp_path, kind, *keys, f"stop.steps={steps}", "backend.workers=3")
        assert part["params_sha256"] != whole["params_sha256"]
        assert go_on(Path(part["run"]), kind, "stop.epochs=4")["params_sha256"] == whole["params_sha256"]
    driver = run(tmp_path, kind, *keys, "stop.epochs=4", "model.backprop=driver")
    assert driver["params_sha256"] == whole["params_sha256"]


def test_a_schedule_in_epochs_sees_the_epochs_of_a_growing_batch(tmp_path):
    kind, model = MODELS["ridge"]
    keys = ["optimizer.name=sgd", "schedule.name=polynomial", "schedule.unit=epoch", "schedule.learning_rate=0.04"]
    found = lines(run(tmp_path, kind, *model, *keys, *GROWING))
    begins = [0.0, *(line["epoch"] for line in found[:-1])]
    np.testing.assert_allclose([line["learning_rate"] for line in found], [0.04 * (1 - e / 4) for e in begins])


@pytest.mark.parametrize(
    ("rule", "factor"),
    [
        ("linear", lambda b, base: b / base),
        ("sqrt", lambda b, base: (b / base) ** 0.5),
        ("critical", lambda b, base: (b / base) * (40 + base) / (40 + b)),
    ],
)
def test_the_rate_follows_a_growing_batch(tmp_path, rule, factor):
    kind, model = MODELS["ridge"]
    keys = ["optimizer.name=sgd", "schedule.learning_rate=0.001", f"schedule.scaling={rule}"]
    keys += ["schedule.M=40"] if rule == "critical" else []
    rates = [line["learning_rate"] for line in lines(run(tmp_path, kind, *model, *keys, *GROWING))]
    expected = [0.001 * factor(b, 50) for b, k in zip((50, 150, 300, 300), STEPS, strict=True) for _ in range(k)]
    np.testing.assert_allclose(rates, expected, rtol=1e-14)


def test_without_growth_the_rate_is_that_of_a_batch_of_128(tmp_path):
    kind, model = MODELS["ridge"]
    keys = ["optimizer.name=sgd", "schedule.learning_rate=0.01", "run.metrics_every_steps=1", "stop.steps=2"]
    for size, more, factor in (
        ("32", [], 0.25),
        ("128", [], 1.0),
        ("32", ["schedule.base_batch=16"], 2.0),
        ("full", [], 451 / 128),
    ):
        found = lines(run(tmp_path, kind, *model, *keys, "schedule.scaling=linear", f"batch.size={size}", *more))
        assert [line["learning_rate"] for line in found] == [0.01 * factor] * 2


def test_a_scaled_rate_is_that_rate(tmp_path):
    """Momentum and Adam see one rate, whoever multiplied it."""
    kind, model = MODELS["mlp_regression"]
    for name in ("momentum", "adam"):
        keys = [*model, f"optimizer.name={name}", "batch.size=64", "stop.epochs=1"]
        scaled = run(tmp_path, kind, *keys, "schedule.learning_rate=0.002", "schedule.scaling=linear")
        plain = run(tmp_path, kind, *keys, "schedule.learning_rate=0.001")
        assert scaled["params_sha256"] == plain["params_sha256"]


def test_describe_says_what_each_epoch_has():
    conf = load_conf([], ["data.uri=x", "model.name=ridge", "optimizer.name=sgd", *GROWING, "schedule.scaling=linear"])
    text = "\n".join(describe(conf, datasets("numbers"))["lines"])
    assert "50 rows from epoch 1 (10 steps an epoch), 150 rows from epoch 2 (4 steps" in text
    assert "300 rows from epoch 3 (2 steps an epoch)" in text
    assert "scaling: linear from batches of 50 rows: 1 times the rate for 50 rows" in text
    assert "0.01 at the first step, 0.03 after one epoch, 0.06 at the last step" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch: {size: full, growth: 2}", "batch.growth, but batch.size is full"),
        ("optimizer: {name: gd}\nbatch: {growth: 2}", "batch.growth, but batch.size is full"),
        ("batch: {size: 64, growth: {max: 64}}", "batch.growth.max 64 is not above batch.size 64"),
        ("batch: {growth: 1}", "batch.growth is 1, expected"),
        ("batch: {growth: {factr: 2}}", "unknown key 'batch.growth.factr'"),
        ("schedule: {scaling: critical}", "schedule.scaling: critical needs the noise scale schedule.M"),
        ("schedule: {M: 4}", "schedule.M under schedule.scaling: none"),
        ("schedule: {scaling: sqrt, M: 4}", "schedule.M under schedule.scaling: sqrt"),
        ("schedule: {base_batch: 4}", "schedule.base_batch under schedule.scaling: none"),
        ("optimizer: {name: lbfgs}\nschedule: {scaling: linear}", "schedule.scaling: linear, but optimizer 'lbfgs'"),
        ("schedule: {learning_rate: auto, scaling: linear}", "schedule.scaling: linear, but learning_rate: auto"),
    ],
)
def test_what_does_not_go_together(text: str, message: str) -> None:
    with pytest.raises(ConfError) as caught:
        load_text(f"model: {{name: logistic}}\n{text}", "x.yml")
    assert caught.value.message.startswith(message)
    assert caught.value.where.startswith("x.yml:")


def test_a_number_is_the_factor_after_each_epoch(tmp_path):
    kind, model = MODELS["ridge"]
    results = [
        run(tmp_path, kind, *model, "optimizer.name=sgd", "batch.size=100", "stop.epochs=3", f"batch.growth={growth}")
        for growth in ("2", "{factor: 2, every: 1, max: full}", "{}")
    ]
    assert [r["steps"] for r in results] == [5 + 3 + 2] * 3
    assert len({r["params_sha256"] for r in results}) == 1
    assert load_conf([Path(results[0]["run"]) / "conf.yml"]).batch.growth.factor == 2.0


def test_growing_to_the_whole_data_ends_in_full_batches(tmp_path):
    """From the third epoch on a step is gradient descent on all rows, divided by W."""
    X, y = table("numbers")
    keys = ["model.name=linear", "optimizer.name=sgd", "schedule.learning_rate=0.05", "batch.size=150"]
    seen: list[np.ndarray] = []
    run(
        tmp_path, "numbers", *keys, "batch.growth=2", "stop.epochs=4",
        on_step=lambda step, epoch, params: seen.append(params.copy()),
    )  # fmt: skip
    Z = np.column_stack([(X - X.mean(0)) / X.std(0), np.ones(len(y))])
    assert len(seen) == 1 + 4 + 2 + 1 + 1
    for before, after in zip(seen[-3:], seen[-2:], strict=False):
        np.testing.assert_allclose(after, before - 0.05 * 2 * Z.T @ (Z @ before - y) / len(y), rtol=1e-12)
