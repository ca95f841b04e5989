"""Each strategy on Dask: a worker is killed, then the driver, and the run is resumed.

Sync-like strategies end with the bits of the run that nobody killed, the others within its band.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import killed_job
import pytest
from problems import MODELS, files, run_on

from bigopt.fit import resume

pytest.importorskip("distributed")

SOFTMAX = [*MODELS["softmax"][1], "optimizer.name=sgd", "schedule.learning_rate=0.05", "batch.size=64"]
MLP = ["model.name=mlp", "model.hidden=[8]", "data.task=classification", *SOFTMAX[1:]]
DUAL = ["model.name=ridge", "model.l2=0.01", "model.intercept=false", "strategy.name=model_parallel"]
TOP_K = ["strategy.compression.name=top_k", "strategy.compression.fraction=0.3", "strategy.replicas=2"]
PARALLEL = "strategy.name=model_parallel"
STRATEGIES: dict[str, list[str]] = {
    "sync": SOFTMAX,
    "sync, compressed": [*SOFTMAX, *TOP_K],
    "backup": [*SOFTMAX, "strategy.name=backup", "strategy.spares=1"],
    "backup, compressed": [*SOFTMAX, *TOP_K, "strategy.name=backup", "strategy.spares=1"],
    "local_sgd": [*SOFTMAX, "strategy.name=local_sgd", "strategy.replicas=2", "strategy.local_steps=2"],
    "columns, driver": [*SOFTMAX, PARALLEL, "strategy.blocks=2"],
    "columns, worker": [*SOFTMAX, PARALLEL, "strategy.blocks=2", "strategy.update_on=worker"],
    "columns, coordinate": [*SOFTMAX, PARALLEL, "strategy.blocks=2", "strategy.solver=coordinate"],
    "columns, dual": [*DUAL, "strategy.blocks=2", "strategy.solver=dual"],
    "units": [*MLP, PARALLEL, "strategy.blocks=2"],
    "layers": [*MLP, PARALLEL, "strategy.split=layers", "strategy.blocks=2"],
    "hybrid": [*MLP, "strategy.name=hybrid", "strategy.blocks=2", "strategy.replicas=1"],
    "async": [*SOFTMAX, "strategy.name=async"],
    "async, compressed": [*SOFTMAX, *TOP_K[:2], "strategy.name=async"],
    "ssp": [*SOFTMAX, "strategy.name=ssp", "strategy.bound=2"],
    "downpour": [*SOFTMAX, "strategy.name=downpour", "strategy.replicas=2", "strategy.n_push=2", "strategy.n_fetch=2"],
    "easgd": [*SOFTMAX, "strategy.name=easgd", "strategy.replicas=2", "strategy.every=2"],
    "hogwild": [*SOFTMAX, "strategy.name=hogwild", "batch.size=16", "run.kernels=numpy"],
}
WITHIN = ("async", "async, compressed", "ssp", "downpour", "easgd", "hogwild")
ONE_SHOT = ["strategy.name=local_sgd", "strategy.replicas=2", "strategy.local_steps=1000000"]


def kill(folder: Path, kind: str, last: int, *keys: str) -> Path:
    """Run a driver to its death; return what it left."""
    conf = [f"data.uri={folder / kind}.zarr", f"run.dir={folder / 'runs'}", *keys]
    conf += ["backend.name=dask", "backend.workers=2", "checkpoint.every_steps=5"]
    command = [sys.executable, killed_job.__file__, str(last), *conf]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-4000:]
    [left] = (folder / "runs").iterdir()
    return left


@pytest.mark.all
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_worker_and_then_the_driver(tmp_path: Path, name: str) -> None:
    kind = "numbers" if name == "columns, dual" else "four"
    data = files(tmp_path, kind, "zarr")
    keys = [*STRATEGIES[name], "stop.epochs=6" if kind == "four" else "stop.steps=40"]
    layers = dict(key.split("=", 1) for key in keys)
    keys = [f"{key}={value}" for key, value in layers.items()]
    engine = "dask" if name == "hogwild" else "local"  # local threads share one vector, Dask workers' are averaged
    expected = run_on(data, tmp_path / "whole", *keys, f"backend.name={engine}", "backend.workers=2")
    result = resume(kill(tmp_path, kind, 14, *keys), [])
    assert result["steps"] == expected["steps"]
    if name in WITHIN:
        assert result["loss"] == pytest.approx(expected["loss"], rel=0.1)
    else:
        assert result["params_sha256"] == expected["params_sha256"]


@pytest.mark.all
def test_one_shot_averaging_begins_its_only_turn_again(tmp_path: Path) -> None:
    """There is nothing between its beginning and its end that a checkpoint could hold."""
    data = files(tmp_path, "four", "zarr")
    keys = [*SOFTMAX, *ONE_SHOT, "stop.epochs=6"]
    expected = run_on(data, tmp_path / "whole", *keys, "backend.workers=2")
    for newest in sorted((Path(expected["run"]) / "checkpoints").glob("step-*.npz"))[1:]:
        newest.unlink()  # killed before the end: what is left is the checkpoint before the first step
    again = resume(Path(expected["run"]), ["backend.workers=1"])
    assert (again["steps"], again["params_sha256"]) == (expected["steps"], expected["params_sha256"])
