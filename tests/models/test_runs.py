"""Whole runs: the perceptron, the svm and their losses under an mlp; shortcuts; metrics and predictions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import SIZES, files, run, run_on, table

from bigopt import bundle
from bigopt.core.errors import ConfError, DataError
from bigopt.data.memory import from_arrays
from bigopt.evaluate import evaluate, predict
from bigopt.facts import Datasets
from bigopt.models.mlp import MLP

sklearn = pytest.importorskip("sklearn")

GD = ["optimizer.name=gd", "model.intercept=false", "stop.steps=400"]


def scaled() -> tuple[np.ndarray, np.ndarray]:
    X, y = table("two")
    return (X - X.mean(axis=0)) / X.std(axis=0), np.where(y == "yes", 1.0, -1.0)


def weights(result: dict[str, Any]) -> np.ndarray:
    return bundle.load(Path(result["run"])).params


def test_squared_hinge_reaches_scikit_learns_svm(tmp_path: Path) -> None:
    from sklearn.svm import LinearSVC

    l2 = 0.05
    Z, y = scaled()
    keys = ["model.name=svm", "model.loss=squared_hinge", f"model.l2={l2}", "schedule.learning_rate=0.2", *GD]
    result = run(tmp_path, "two", *keys)
    peer = LinearSVC(C=1 / (2 * len(y) * l2), fit_intercept=False, dual=False, tol=1e-10, max_iter=10_000).fit(Z, y)
    np.testing.assert_allclose(weights(result), peer.coef_[0], rtol=1e-5)


def test_squared_error_on_signs_is_least_squares(tmp_path: Path) -> None:
    Z, y = scaled()
    keys = ["model.name=perceptron", "model.loss=squared", "model.l2=0.1", "schedule.learning_rate=0.2", *GD]
    result = run(tmp_path, "two", *keys)
    best = np.linalg.solve(Z.T @ Z / len(y) + 0.1 * np.eye(5), Z.T @ y / len(y))
    np.testing.assert_allclose(weights(result), best, rtol=1e-10)
    assert {"mse", "r2"}.isdisjoint(result["metrics"])


@pytest.mark.slow
def test_a_perceptron_separates_what_can_be_separated(tmp_path: Path) -> None:
    """Started at zero, on separable rows, plain SGD with the perceptron's loss ends with no mistake."""
    X, y = table("two")
    margin = X @ np.arange(1.0, 6.0)
    y = np.where(margin > np.median(margin), 1, 0)
    far = abs(margin - np.median(margin)) > 2.0
    data = Datasets(from_arrays(X[far], y[far], partition_rows=100), None)
    keys = ["model.name=perceptron", "model.init=zeros", "optimizer.name=sgd", "batch.size=1", "stop.epochs=8"]
    result = run(tmp_path, "two", *keys, "schedule.learning_rate=1", data=data)
    assert result["metrics"]["accuracy"] == 1.0
    assert result["loss"] == 0.0


@pytest.mark.parametrize(
    "model", [["svm"], ["perceptron"], ["mlp", "model.loss=hinge", "model.hidden=[4]"]], ids="".join
)
def test_evaluate_and_predict_speak_of_labels_and_scores(tmp_path: Path, model: list[str]) -> None:
    from sklearn import metrics

    path = files(tmp_path, "two", "zarr")
    result = run_on(path, tmp_path, f"model.name={model[0]}", *model[1:], "stop.epochs=3")
    found = evaluate(Path(result["run"]), str(path))["metrics"]
    out = tmp_path / "predicted.csv"
    predict(Path(result["run"]), str(path), str(out))
    with open(out, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["row", "prediction", "score"]
    y, label = table("two")[1], np.array([r["prediction"] for r in rows])
    score = np.array([float(r["score"]) for r in rows])
    np.testing.assert_array_equal(label, np.where(score >= 0, "yes", "no"))
    assert "log_loss" not in found
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, label), rel=1e-13)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(y == "yes", score), rel=1e-13)
    for name in ("precision", "recall", "f1"):
        assert found[name] == pytest.approx(getattr(metrics, f"{name}_score")(y, label, pos_label="yes"), rel=1e-13)
    assert found["confusion"] == metrics.confusion_matrix(y, label).tolist()


def test_softmax_evaluates_to_scikit_learns_figures(tmp_path: Path) -> None:
    from sklearn import metrics

    path = files(tmp_path, "four", "parquet")
    result = run_on(path, tmp_path, "model.name=softmax", "stop.epochs=2", "data.validation=0.3")
    found = evaluate(Path(result["run"]), str(path))["metrics"]
    out = tmp_path / "predicted.csv"
    predict(Path(result["run"]), str(path), str(out))
    label = np.loadtxt(out, delimiter=",", skiprows=1)[:, 1].astype(int)
    y = table("four")[1]
    for name in ("precision", "recall", "f1"):
        peer = getattr(metrics, f"{name}_score")(y, label, average="macro", zero_division=0)
        assert found[name] == pytest.approx(peer, rel=1e-13)
    assert found["confusion"] == metrics.confusion_matrix(y, label).tolist()
    assert set(found) == {"accuracy", "log_loss", "precision", "recall", "f1", "top_k", "confusion"}
    assert set(result["metrics"]) == set(found) - {"confusion"}


def test_backprop_on_the_driver_gives_the_same_bits(tmp_path: Path) -> None:
    keys = ["model.name=svm", "batch.size=32", "stop.epochs=2"]
    first = run(tmp_path, "two", *keys)
    assert run(tmp_path, "two", *keys, "model.backprop=driver")["params_sha256"] == first["params_sha256"]


def test_stop_at_a_metric_that_the_model_has(tmp_path: Path) -> None:
    result = run(tmp_path, "two", "model.name=svm", "batch.size=32", "stop.epochs=50", "stop.target_metric={f1: 0.5}")
    assert result["epochs"] < 50
    with pytest.raises(ConfError, match="hinge has no log_loss"):
        run(tmp_path, "two", "model.name=svm", "stop.target_metric={log_loss: 0.5}")
    with pytest.raises(ConfError, match="squared has no accuracy"):
        run(tmp_path, "numbers", "model.name=ridge", "stop.target_metric={accuracy: 0.5}")


def test_refusals(tmp_path: Path) -> None:
    for name in ("svm", "perceptron"):
        with pytest.raises(DataError, match=rf"4 classes, {name} separates two .*softmax"):
            run(tmp_path, "four", f"model.name={name}")
    with pytest.raises(ConfError, match="perceptron is for classification"):
        run(tmp_path, "two", "model.name=perceptron", "data.task=regression")
    with pytest.raises(ConfError, match=r"loss 'hinge' under data\.task: regression"):
        run(tmp_path, "two", "model.loss=hinge", "data.task=regression")
    one_hot = from_arrays(table("four")[0], np.eye(4)[table("four")[1]], partition_rows=list(SIZES))
    with pytest.raises(ConfError, match="one-hot columns take categorical_cross_entropy, not hinge"):
        run(tmp_path, "four", "model.loss=hinge", data=Datasets(one_hot, None))


def test_a_shortcut_trains_by_name_and_says_where_there_is_none(tmp_path: Path) -> None:
    keys = ["model.hidden=[5,5,5]", "model.shortcut=true", "stop.epochs=2", "batch.size=32"]
    plain = run(tmp_path, "numbers", *keys[:1], *keys[2:])
    result = run(tmp_path, "numbers", *keys)
    model = bundle.load(Path(result["run"])).model
    assert isinstance(model, MLP)
    assert model.shortcuts == (True, True, True)
    assert result["params_sha256"] != plain["params_sha256"]
    assert "so there is none" not in (Path(result["run"]) / "log.txt").read_text()
    none = run(tmp_path, "numbers", "model.hidden=[4,3]", *keys[1:])
    assert "model.shortcut: no hidden layer is as wide as its input" in (Path(none["run"]) / "log.txt").read_text()
