"""Small problems in memory, and a way to train on them, for tests of whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bigopt.config import load_conf
from bigopt.data.memory import from_arrays
from bigopt.facts import Datasets
from bigopt.fit import train

SIZES = (100, 70, 3, 0, 97, 130, 50, 1)
"""Eight unequal partitions, one of them empty."""


def table(kind: str, n: int = sum(SIZES), d: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features and a target: numbers, two classes (text) or four."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.arange(1, d + 1) + 2.0
    score = X @ rng.normal(size=(d, 4)) + rng.normal(size=(n, 4))
    if kind == "numbers":
        return X, score[:, 0]
    if kind == "two":
        return X, np.where(score[:, 0] > np.median(score[:, 0]), "yes", "no")
    return X, np.argmax((score - score.mean(0)) / score.std(0), axis=1)


MODELS: dict[str, tuple[str, list[str]]] = {
    "ridge": ("numbers", ["model.name=ridge", "model.l2=0.01"]),
    "huber": ("numbers", ["model.name=linear", "model.loss=huber"]),
    "logistic": ("two", ["model.name=logistic", "model.l2=0.001"]),
    "softmax": ("four", ["model.name=softmax"]),
    "mlp_regression": ("numbers", ["model.name=mlp", "model.hidden=[6,4]", "model.activation=tanh"]),
    "mlp_classes": ("four", ["model.name=mlp", "model.hidden=[8]", "data.task=classification"]),
    "mlp_groups": ("two", ["model.name=mlp", "model.hidden=[8,6]", "model.groups=[1,2]"]),
}


def datasets(kind: str, sizes: tuple[int, ...] = SIZES) -> Datasets:
    """Return the problem's rows cut into partitions."""
    X, y = table(kind, sum(sizes))
    return Datasets(from_arrays(X, y, partition_rows=list(sizes)), None)


def run(tmp: Path, kind: str, *keys: str, data: Datasets | None = None, **more: Any) -> dict[str, Any]:
    """Train on a problem in memory and return the result."""
    conf = load_conf([], ["data.uri=memory", f"run.dir={tmp}", *keys])
    return train(conf, data=data or datasets(kind), **more)


def files(folder: Path, kind: str, form: str) -> Path:
    """Write a problem as a Zarr or Parquet dataset with the partitions of `SIZES`."""
    from bigopt.data.writer import DatasetWriter

    X, y = table(kind)
    path = folder / f"{kind}.{form}"
    names = [f"x{i}" for i in range(X.shape[1])]
    options: dict[str, Any] = {"columns": names, "target": ["y"], "partition_rows": list(SIZES)}
    with DatasetWriter(str(path), format=form, **options) as writer:  # type: ignore[arg-type]
        writer.append(X, y)
    return path


def run_on(path: Path, tmp: Path, *keys: str) -> dict[str, Any]:
    """Train on a dataset on disk."""
    return train(load_conf([], [f"data.uri={path}", f"run.dir={tmp}", *keys]))
