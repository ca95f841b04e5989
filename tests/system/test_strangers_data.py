"""Data that bigopt did not write: plain zarr-python and pyarrow, no manifest, labels of every kind."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from problems import run_on, table

from bigopt.core.errors import DataError
from bigopt.evaluate import evaluate, predict

FAST = ["optimizer.name=adam", "schedule.learning_rate=0.05", "stop.epochs=15", "batch.size=50"]
LABELS: dict[str, Any] = {
    "one and two": lambda two: np.where(two, 2, 1),
    "signs": lambda two: np.where(two, 1.0, -1.0),
    "text": lambda two: np.where(two, "yes", "no"),
    "boolean": lambda two: two,
}


def two_classes(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    X, y = table("two", n=n)
    X[100:200] = 0.0  # a chunk of zeros: zarr-python leaves it out
    return X, y == "yes"


def write_zarr(path: Path, X: np.ndarray, y: np.ndarray) -> None:
    group = zarr.create_group(str(path))
    group.create_array("X", data=X, chunks=(100, 3))
    if y.dtype.kind == "U":
        labels = group.create_array("y", shape=y.shape, chunks=(100,), dtype="str")
        labels[:] = y.astype(object)
    else:
        group.create_array("y", data=y, chunks=(100,))


def write_parquet(path: Path, X: np.ndarray, y: np.ndarray) -> None:
    path.mkdir()
    for part, rows in enumerate(np.array_split(np.arange(len(X)), 3)):
        columns = {f"x{i}": X[rows, i] for i in range(X.shape[1])} | {"y": y[rows]}
        if part == 1:  # columns are matched by name, not by position
            columns = dict(reversed(columns.items()))
        pq.write_table(pa.table(columns), path / f"part-{part}.parquet", row_group_size=70)
    (path / "_SUCCESS").touch()


@pytest.mark.parametrize("form", ["zarr", "parquet"])
@pytest.mark.parametrize("kind", LABELS)
def test_a_stranger_trains_evaluates_and_predicts(form, kind, tmp_path):
    X, two = two_classes()
    y = LABELS[kind](two)
    path = tmp_path / f"data.{form}"
    (write_zarr if form == "zarr" else write_parquet)(path, X, y)
    result = run_on(path, tmp_path / "runs", "model.name=logistic", "data.target=y", *FAST)
    log = (Path(result["run"]) / "log.txt").read_text()
    assert "verified" in log
    if form == "zarr":
        assert (path / "X" / "c" / "1" / "0").exists() is False
        assert "2 missing" in log or "2 chunks" in log or "2 of" in log, log
    found = evaluate(Path(result["run"]), str(path))
    assert found["rows"] == 400
    confusion = np.array(found["metrics"].pop("confusion"))
    assert found["metrics"] == pytest.approx(result["metrics"], rel=1e-12)
    assert found["metrics"]["accuracy"] == pytest.approx(np.trace(confusion) / 400)
    assert found["metrics"]["accuracy"] > 0.75

    out = tmp_path / "p.csv"
    predict(Path(result["run"]), str(path), str(out))
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [int(r["row"]) for r in rows] == list(range(400))
    right = np.mean([r["prediction"] == str(label) for r, label in zip(rows, y.tolist(), strict=True)])
    assert right == pytest.approx(found["metrics"]["accuracy"])
    classes = sorted(set(y.tolist()))
    for r in rows[:5]:
        assert sum(float(r[f"probability_{c}"]) for c in classes) == pytest.approx(1.0)


def test_zarr_and_parquet_of_the_same_rows_agree_with_a_closed_form(tmp_path):
    X, y = table("numbers", n=400)
    write_zarr(tmp_path / "a.zarr", X, y)
    write_parquet(tmp_path / "b.parquet", X, y)
    exact = np.linalg.lstsq(np.column_stack([X, np.ones(400)]), y, rcond=None)[0]
    for path in (tmp_path / "a.zarr", tmp_path / "b.parquet"):
        keys = ["model.name=linear", "data.target=y", "optimizer.name=gd", "schedule.learning_rate=0.3"]
        result = run_on(path, tmp_path / "runs", *keys, "stop.steps=400")
        model = json.loads((Path(result["run"]) / "model" / "model.json").read_text())["original_scale"]
        coefficients = [model["coefficients"][f"x{i}"][0] for i in range(5)]
        np.testing.assert_allclose([*coefficients, model["intercept"][0]], exact, rtol=1e-9)


def test_predictions_in_parquet_are_the_model_applied_by_hand(tmp_path):
    X, y = table("four", n=300)
    write_parquet(tmp_path / "d.parquet", X, y)
    result = run_on(tmp_path / "d.parquet", tmp_path / "runs", "model.name=softmax", "data.target=y", *FAST)
    predict(Path(result["run"]), str(tmp_path / "d.parquet"), str(tmp_path / "p.parquet"), scores=True)
    model = json.loads((Path(result["run"]) / "model" / "model.json").read_text())["original_scale"]
    weight = np.array([model["coefficients"][f"x{i}"] for i in range(5)])
    scores = X @ weight + np.array(model["intercept"])
    found = pq.read_table(tmp_path / "p.parquet")
    np.testing.assert_allclose(np.column_stack([found[f"score_{c}"].to_numpy() for c in range(4)]), scores, rtol=1e-9)
    np.testing.assert_array_equal(found["prediction"].to_numpy(), np.argmax(scores, axis=1))


def test_a_label_never_seen_in_training_is_refused_at_evaluate(tmp_path):
    X, two = two_classes()
    write_zarr(tmp_path / "a.zarr", X, np.where(two, "yes", "no"))
    result = run_on(tmp_path / "a.zarr", tmp_path / "runs", "model.name=logistic", *FAST)
    labels = np.where(two, "yes", "no").astype("U5")
    labels[7:9] = "maybe"
    write_zarr(tmp_path / "b.zarr", X, labels)
    with pytest.raises(DataError, match=r"label maybe \(2 rows\)"):
        evaluate(Path(result["run"]), str(tmp_path / "b.zarr"))
