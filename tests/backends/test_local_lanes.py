"""Rounds whose slots need no interpreter: the same bits, told from those that are for the slots' threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import datasets, run, run_on, table

from bigopt.backends import local_lanes
from bigopt.backends.local_lanes import Lanes
from bigopt.core import blas, compiled
from bigopt.core.errors import DivergedError
from bigopt.data.memory import from_arrays
from bigopt.data.writer import DatasetWriter
from bigopt.facts import Datasets

pytestmark = pytest.mark.skipif(
    bool(compiled.missing()) or blas.routines("float32") is None, reason="no compiled kernels, or NumPy's BLAS unknown"
)

KEYS = {
    "model.name": "mlp",
    "model.hidden": "[9,6]",
    "optimizer.name": "adam",
    "batch.size": 30,
    "batch.lanes": 2,
    "data.dtype": "float32",
    "data.task": "classification",
    "stop.epochs": 4,
    "run.kernels": "compiled",
}


def keys(*more: str, workers: int) -> list[str]:
    found = {**KEYS, **dict(key.split("=") for key in more), "backend.workers": workers}
    return [f"{key}={value}" for key, value in found.items()]


def standing() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("bigopt-standby")]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each round that was offered went to the lanes; there are cores for all."""
    found: list[bool] = []
    begin = Lanes.begin

    def watched(lanes: Lanes, orders: Any) -> bool:
        found.append(begin(lanes, orders))
        return found[-1]

    monkeypatch.setattr(Lanes, "begin", watched)
    monkeypatch.setattr(local_lanes, "_cores", lambda: 8)
    return found


@pytest.mark.parametrize("more", [(), ("batch.lanes=3",), ("data.dtype=float64",), ("run.dtype=float32",)])
def test_the_bits_are_those_of_one_slot(tmp_path: Path, taken: list[bool], more: tuple[str, ...]) -> None:
    alone = run(tmp_path, "four", *keys(*more, workers=1))
    assert not any(taken)
    for workers in (2, 3):
        taken.clear()
        assert run(tmp_path, "four", *keys(*more, workers=workers))["params_sha256"] == alone["params_sha256"]
        assert (sum(taken) > 20) == ((3 if "batch.lanes=3" in more else 2) == workers)
    assert not standing()


def test_weighted_rows_and_lanes_that_go_on_in_their_next_partition(tmp_path: Path, taken: list[bool]) -> None:
    rng = np.random.default_rng(5)
    X, y, weight = rng.normal(size=(400, 6)), rng.integers(0, 3, 400), rng.random(400)
    data = Datasets(from_arrays(X, y, weight, partition_rows=[50] * 8), None)
    more = "data.classes=[0,1,2]", "data.weight=weight"
    ends = [run(tmp_path, "four", *keys(*more, workers=w), data=data) for w in (1, 2)]
    assert ends[0]["params_sha256"] == ends[1]["params_sha256"]
    assert sum(taken) > len(taken) // 2  # the first epoch's are offered before their rows are known


def test_rows_that_cannot_all_stay(tmp_path: Path, taken: list[bool]) -> None:
    X, y = table("four", 20_000, 32)
    names = [f"x{i}" for i in range(32)]
    options: dict[str, Any] = {"columns": names, "target": ["y"], "partition_rows": 1000, "dtype": "float32"}
    with DatasetWriter(str(tmp_path / "four.zarr"), format="zarr", **options) as writer:
        writer.append(X, y)
    found = {}
    for memory, workers in (("50MB", 1), ("1500KB", 2)):  # the rows take 2.6 MB
        taken.clear()
        more = f"data.memory={memory}", "batch.size=200", "stop.epochs=2"
        done = run_on(tmp_path / "four.zarr", tmp_path, *keys(*more, workers=workers))
        found[memory] = done["params_sha256"]
    assert len(set(found.values())) == 1
    assert 0 < sum(taken) < len(taken)  # the others' blocks were not decoded yet


@pytest.mark.parametrize("key", ["run.kernels=numpy", "model.activation=tanh", "model.batchnorm=true", "batch.lanes=0"])
def test_other_rounds_are_for_the_threads_of_the_slots(tmp_path: Path, taken: list[bool], key: str) -> None:
    run(tmp_path, "four", *keys(key, "stop.epochs=2", workers=2))
    assert not any(taken)


def test_a_run_that_diverges_says_so_and_leaves_no_thread(tmp_path: Path, taken: list[bool]) -> None:
    more = "optimizer.name=sgd", "schedule.learning_rate=1e30"
    with pytest.raises(DivergedError):
        run(tmp_path, "four", *keys(*more, workers=2), data=datasets("four", (60, 60)))
    assert not standing()
