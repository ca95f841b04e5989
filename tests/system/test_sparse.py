"""Sparse rows from a file to a prediction: train, evaluate, predict, warm start, resume."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import run_on

from bigopt.bundle import load
from bigopt.core.csr import CSR
from bigopt.data.columns import x_names
from bigopt.data.writer import DatasetWriter
from bigopt.evaluate import evaluate, predict
from bigopt.fit import resume

pytest.importorskip("scipy.sparse")

N, D, EACH = 400, 3000, 9
KEYS = ["model.name=logistic", "model.l2=0.001", "optimizer.name=adagrad", "batch.size=50"]


def rows(seed: int) -> tuple[CSR, Any]:
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.integers(0, D // EACH, (N, EACH)) + np.arange(EACH) * (D // EACH), axis=1)
    X = CSR(rng.normal(size=N * EACH) * 3, indices.ravel().astype(np.int32), np.arange(N + 1) * EACH, D)
    score = np.bincount(np.repeat(np.arange(N), EACH), X.data * np.sin(X.indices), N)
    return X, np.where(score > 0, "spam", "ham")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "rows"
    X, y = rows(0)
    options: dict[str, Any] = {"columns": x_names(D), "target": ["y"], "partition_rows": 90, "layout": "sparse"}
    with DatasetWriter(str(path), format="zarr", dtype="float64", **options) as writer:
        writer.append(X, y)
    return path


@pytest.fixture(scope="module")
def trained(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_on(stored, tmp_path_factory.mktemp("run"), *KEYS, "stop.epochs=8", "model.standardize=true")


def test_evaluate_and_predict_see_what_training_saw(stored, trained, tmp_path):
    found = evaluate(Path(trained["run"]), str(stored))
    assert found["rows"] == N
    for name, value in trained["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-12)
    predict(Path(trained["run"]), str(stored), str(tmp_path / "p.csv"))
    with (tmp_path / "p.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    X, y = rows(0)
    kept = load(Path(trained["run"]))
    scaling: Any = kept.scaling
    logits = X.dense() / scaling.scale @ kept.params[:-1] + kept.params[-1]
    assert [float(line["probability_spam"]) for line in lines] == pytest.approx(1 / (1 + np.exp(-logits)), rel=1e-9)
    right = np.mean([line["prediction"] == label for line, label in zip(lines, y, strict=True)])
    assert right == pytest.approx(trained["metrics"]["accuracy"], rel=1e-12)


def test_a_model_starts_where_another_ended(stored, trained, tmp_path):
    more = ["stop.steps=1", "optimizer.name=sgd", "schedule.learning_rate=1e-12", "batch.size=full"]
    keys = [key for key in KEYS if "optimizer" not in key and "batch" not in key]
    for name in ("true", "false"):  # the second takes the coefficients back to the original scale
        init = f"model.init={trained['run']}"
        again = run_on(stored, tmp_path, *keys, *more, init, f"model.standardize={name}")
        assert again["metrics"]["log_loss"] == pytest.approx(trained["metrics"]["log_loss"], rel=1e-6)


def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(stored, tmp_path):
    keys = [*KEYS, "checkpoint.every_steps=5"]
    straight = run_on(stored, tmp_path / "a", *keys, "stop.steps=14")
    half = run_on(stored, tmp_path / "b", *keys, "stop.steps=6")
    assert resume(Path(half["run"]), ["stop.steps=14"])["params_sha256"] == straight["params_sha256"]
