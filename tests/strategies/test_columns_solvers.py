"""Block coordinate descent and dual coordinate ascent: steps by hand, optima, bits, and what they refuse."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arena import Case
from problems import MODELS, files, run, run_on, table

from bigopt import bundle
from bigopt.core.errors import ConfError
from bigopt.data.memory import from_arrays
from bigopt.facts import Datasets
from bigopt.fit import resume
from bigopt.strategies import model_parallel
from bigopt.strategies.base import Blocks
from bigopt.work_dual import ascend_logistic, ascend_squared


def params(result: dict[str, Any]) -> np.ndarray:
    return np.asarray(bundle.load(Path(result["run"])).params)


def apart(result: dict[str, Any], other: dict[str, Any]) -> float:
    return float(np.abs(params(result) - params(other)).max() / np.abs(params(other)).max())


COORDINATE = ["strategy.name=model_parallel", "strategy.solver=coordinate", "strategy.blocks=2", "batch.size=full"]


@pytest.mark.parametrize("weighted", [False, True])
def test_exact_blocks_reach_the_optimum(tmp_path: Path, weighted: bool) -> None:
    """Gauss-Seidel by blocks: the loss falls with every sweep, to that of the normal equations."""
    X, y = table("numbers")
    weight = np.random.default_rng(1).uniform(0.2, 3.0, len(y)) if weighted else None
    data = Datasets(from_arrays(X, y, weight, partition_rows=100), None)
    keys = ["model.name=ridge", "model.l2=0.01", "optimizer.name=newton"]
    optimum = run(tmp_path, "", *keys, "stop.steps=1", data=data)
    keys += [*COORDINATE, "stop.steps=40", "run.metrics_every_steps=1"]
    found = [run(tmp_path, "", *keys, f"backend.workers={k}", data=data) for k in (1, 2)]
    assert found[0]["params_sha256"] == found[1]["params_sha256"]
    assert apart(found[0], optimum) < 1e-12
    assert found[0]["rounds"] == 1 + 40 * 3 + 1  # the first pass, sweeps over two blocks, the evaluation
    lines = (Path(found[0]["run"]) / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert all(after <= before * (1 + 1e-14) for before, after in itertools.pairwise(losses))


def test_one_sweep_by_hand(tmp_path: Path) -> None:
    """Three blocks, one step each along the gradient at the weights as the others have left them."""
    X, y = table("numbers", d=3)
    keys = ["model.name=linear", "model.standardize=false", "model.init=zeros", "optimizer.name=gd", "stop.steps=2"]
    keys += ["schedule.learning_rate=0.01", "model.l1=0.5", *COORDINATE[:2], "strategy.blocks=3"]
    found = run(tmp_path, "", *keys, data=Datasets(from_arrays(X, y, partition_rows=100), None))
    w, b = np.zeros(3), 0.0
    for _ in range(2):
        b -= 0.01 * 2 * (X @ w + b - y).mean()
        for j in range(3):
            u = w[j] - 0.01 * 2 * (X[:, j] @ (X @ w + b - y)) / len(y)
            w[j] = np.sign(u) * max(abs(u) - 0.01 * 0.5, 0.0)
    assert np.allclose(params(found), [*w, b], rtol=1e-11)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_sweeps_over_batches_learn_and_go_on(tmp_path: Path, kind: str) -> None:
    problem, model = MODELS[kind]
    data = files(tmp_path, problem, "zarr")
    keys = [*model, "optimizer.name=sgd", "schedule.learning_rate=0.3", "batch.size=64", *COORDINATE[:3]]
    whole = run_on(data, tmp_path, *keys, "stop.steps=24", "backend.workers=2")
    part = run_on(data, tmp_path, *keys, "stop.steps=10", "backend.workers=1")
    assert resume(Path(part["run"]), ["stop.steps=24"])["params_sha256"] == whole["params_sha256"]
    assert whole["metrics"]["accuracy"] > 0.8


DUAL = ["strategy.name=model_parallel", "strategy.solver=dual", "model.intercept=false"]


@pytest.mark.parametrize(("kind", "groups", "steps"), [("ridge", 1, 60), ("ridge", 3, 60), ("logistic", 2, 60)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_dual_reaches_the_optimum(tmp_path: Path, kind: str, groups: int, steps: int, weighted: bool) -> None:
    """The gap bounds what is left, and closes; equal groups give equal bits."""
    X, y = table({"ridge": "numbers", "logistic": "two"}[kind])
    weight = np.random.default_rng(1).choice([0.0, 0.5, 3.0], len(y)) if weighted else None
    data = Datasets(from_arrays(X, y, weight, partition_rows=100), None)
    keys = [f"model.name={kind}", "model.l2=0.3", "model.intercept=false"]
    optimum = run(tmp_path, "", *keys, "optimizer.name=newton", "stop.steps=15", data=data)
    keys += [*DUAL[:2], f"strategy.blocks={groups}", f"stop.steps={steps}"]
    found = [run(tmp_path, "", *keys, f"backend.workers={k}", data=data) for k in (1, 2, 3)]
    assert len({result["params_sha256"] for result in found}) == 1
    gap = json.loads((Path(found[0]["run"]) / "result.json").read_text())["duality_gap"]
    assert 0.0 <= found[0]["loss"] - optimum["loss"] + 1e-13 <= gap + 2e-13
    assert gap < 1e-9
    assert apart(found[0], optimum) < 1e-4


def test_dual_steps_by_hand() -> None:
    """New alphas are the maxima of the row's dual function, found here by a fine search."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        alpha, a, c, q, y = (
            rng.normal(),
            rng.normal(),
            rng.uniform(0.1, 3),
            rng.uniform(0.01, 5),
            rng.choice([-1.0, 1.0]),
        )

        def squared(new: np.ndarray, alpha=alpha, a=a, c=c, q=q, y=y) -> np.ndarray:
            return new * y - new**2 / (4 * c) - a * (new - alpha) - q / 2 * (new - alpha) ** 2

        found = ascend_squared(alpha, a, y, c, q)
        assert squared(np.array(found)) >= squared(found + np.linspace(-1, 1, 2001)).max()
        beta = c * rng.uniform(0, 1)

        def logistic(new: np.ndarray, beta=beta, a=a, c=c, q=q, y=y) -> np.ndarray:
            s = new / c
            return -c * (s * np.log(s) + (1 - s) * np.log1p(-s)) - y * a * (new - beta) - q / 2 * (new - beta) ** 2

        found = y * ascend_logistic(y * beta, a, y, c, q)
        assert 0 < found < c
        assert logistic(np.array(found)) + 1e-14 >= logistic(np.linspace(1e-9, 1 - 1e-9, 4001) * c).max()
    assert ascend_logistic(0.0, -1e4, 1.0, 1.0, 1e-8) == pytest.approx(1.0)
    assert 0 <= ascend_logistic(1.0, 1e4, 1.0, 1.0, 1e-8) < 1e-300


def test_dual_variables_must_fit_the_driver() -> None:
    case = Case()
    given = Blocks(case.model, case.view, 3, "float64", 16, "cpu", "numpy", 1500, 2, case.penalty)
    setting = case.setting(blocks=lambda: given, options={"solver": "dual"})
    with pytest.raises(ConfError, match="dual variables of 200 rows"):
        model_parallel.start(setting, case.start())


def test_the_dual_of_sparse_rows_and_a_resume(tmp_path: Path) -> None:
    from scipy import sparse

    rng = np.random.default_rng(2)
    X = sparse.random(300, 40, density=0.2, random_state=3, format="csr")
    y = np.where(X @ rng.normal(size=40) > 0, "yes", "no")
    path = tmp_path / "sparse.npz"
    np.savez(path, data=X.data, indices=X.indices, indptr=X.indptr, shape=X.shape, y=y)
    keys = ["model.name=logistic", "model.l2=0.01", "model.standardize=false", "model.intercept=false"]
    optimum = run_on(path, tmp_path, *keys, "optimizer.name=lbfgs", "stop.steps=100")
    keys += [*DUAL[:2], "strategy.blocks=2"]
    whole = run_on(path, tmp_path, *keys, "stop.steps=30")
    assert whole["loss"] == pytest.approx(optimum["loss"], rel=1e-8)
    part = run_on(path, tmp_path, *keys, "stop.steps=12")
    assert resume(Path(part["run"]), ["stop.steps=30"])["params_sha256"] == whole["params_sha256"]


REFUSED = {
    "no penalty": ([*DUAL, "strategy.blocks=2", "model.l2=0"], "needs a penalty"),
    "intercept": ([*DUAL[:2], "model.l2=1"], "has no intercept"),
    "rate": ([*DUAL, "model.l2=1", "optimizer.name=adam"], "without optimizer"),
    "few rows": ([*DUAL, "model.l2=1", "strategy.blocks=8"], "7 partitions are too few for 8 groups"),
    "adam": ([*COORDINATE, "optimizer.name=adam"], "solves for it .newton., not adam"),
    "search": ([*COORDINATE, "optimizer.name=gd", "schedule.name=backtracking"], "backtracking searches for it"),
    "exact l1": ([*COORDINATE, "optimizer.name=newton", "model.l1=0.1"], "l1 penalty"),
    "exact huber": ([*COORDINATE, "optimizer.name=newton", "model.loss=huber"], "not of huber"),
    "clipped": ([*COORDINATE, "optimizer.name=sgd", "optimizer.clip_value=1"], "clip_value does not go"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_the_solvers_refuse(tmp_path: Path, name: str) -> None:
    keys, message = REFUSED[name]
    blocks = [] if any(key.startswith("strategy.blocks") for key in keys) else ["strategy.blocks=2"]
    with pytest.raises(ConfError, match=message):
        run(tmp_path, "numbers", "model.name=ridge", *blocks, *keys)
