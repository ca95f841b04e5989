"""Batch normalisation inside the MLP in runs: moments by one Map-Reduce an epoch, constants in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import MODELS, SIZES, datasets, run, table

from bigopt import bundle
from bigopt.config import load_text, names, resume_conf
from bigopt.core.errors import ConfError
from bigopt.data.memory import from_arrays
from bigopt.evaluate import evaluate
from bigopt.facts import Datasets
from bigopt.fit import _Run
from bigopt.models.mlp import MLP
from bigopt.rundir import RunDir

DEEP = ["model.name=mlp", "model.hidden=[6,4]", "model.activation=tanh"]


def go_on(path: Path, kind: str, *overrides: str) -> dict[str, Any]:
    folder = RunDir.open(path)
    try:
        return _Run(resume_conf(path / "conf.yml", list(overrides)), datasets(kind), folder).go(resume=True)
    finally:
        folder.close()


def constants(model: MLP) -> np.ndarray:
    """Mask of the entries of params that hold moments."""
    mask = np.zeros(model.layout.size, dtype=bool)
    for block, part in model.layout.slices():
        mask[part] = block.name.endswith((".mean", ".scale"))
    return mask


@pytest.mark.parametrize("how", ["true", "center"])
def test_full_batches_against_torch_with_moments_held_fixed(tmp_path, how):
    """Each step: moments of all rows with the lower layers' last ones, then a gradient step in which they are fixed."""
    torch = pytest.importorskip("torch")
    X, y = table("numbers")
    weight = np.random.default_rng(3).uniform(0.5, 2.0, len(y))
    data = Datasets(from_arrays(X, y, weight, partition_rows=list(SIZES)), None)
    keys = [*DEEP, f"model.batchnorm={how}", "optimizer.name=gd", "schedule.learning_rate=0.002", "stop.steps=6"]
    seen: list[np.ndarray] = []
    result = run(tmp_path, "numbers", *keys, data=data, on_step=lambda step, epoch, params: seen.append(params.copy()))
    model = bundle.load(Path(result["run"])).model
    s = torch.tensor(weight)
    mean = np.average(X, axis=0, weights=weight)
    Z = torch.tensor((X - mean) / np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weight)))
    target = torch.tensor(y)[:, None]
    w = {k: torch.tensor(v.copy()) for k, v in model.layout.views(seen[0]).items()}
    moments: list[tuple[Any, Any]] = []

    def forward(upto: int) -> Any:
        a = Z
        for k in range(1, upto + 1):
            a = torch.tanh(a @ w[f"layer{k}.weight"] + w[f"layer{k}.intercept"])
            if k <= len(moments) and k < upto:
                a = (a - moments[k - 1][0]) / moments[k - 1][1]
        return a

    def of(a: Any) -> tuple[Any, Any]:
        m = (s[:, None] * a).sum(0) / s.sum()
        scale = ((s[:, None] * (a - m) ** 2).sum(0) / s.sum()).sqrt() if how == "true" else torch.ones_like(m)
        return m, scale

    for step in range(1, 7):
        with torch.no_grad():
            if not moments:  # lower to upper
                moments.append(of(forward(1)))
                moments.append(of(forward(2)))
            else:  # one pass: layer 2 is seen through the old moments of layer 1
                moments[:] = [of(forward(1)), of(forward(2))]
        trained = [v.requires_grad_() for k, v in w.items() if k.endswith(("weight", "intercept"))]
        top = (forward(2) - moments[1][0]) / moments[1][1]
        out = top @ w["layer3.weight"] + w["layer3.intercept"]
        loss = (s[:, None] * (out - target) ** 2).sum() / s.sum()
        for v, g in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            with torch.no_grad():
                v -= 0.002 * g
        found = model.layout.views(seen[step])
        for name, value in w.items():
            if name.endswith(("weight", "intercept")):
                np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=1e-9, atol=1e-12)
        for k in (2, 3):
            np.testing.assert_allclose(found[f"layer{k}.mean"], moments[k - 2][0].numpy(), rtol=1e-9, atol=1e-12)
            if how == "true":
                np.testing.assert_allclose(found[f"layer{k}.scale"], moments[k - 2][1].numpy(), rtol=1e-9)


def test_rounds_are_counted_and_bits_are_the_same_on_any_workers_and_after_a_resume(tmp_path):
    kind = "four"
    keys = [*DEEP, "data.task=classification", "model.batchnorm=true", "batch.size=100", "run.audit=true"]
    whole = run(tmp_path, kind, *keys, "stop.epochs=3", "backend.workers=1")
    # the first pass, 15 steps, two layers before the first epoch, one round before each other one, the last evaluation
    assert (whole["steps"], whole["rounds"]) == (15, 1 + 15 + 2 + 2 + 1)
    for steps in (4, 5, 7):  # within the first epoch, at its end, within the second
        part = run(tmp_path, kind, *keys, f"stop.steps={steps}", "backend.workers=3")
        again = go_on(Path(part["run"]), kind, "stop.epochs=3", "backend.workers=2")
        assert [again[k] for k in ("params_sha256", "audit_sha256")] == [
            whole[k] for k in ("params_sha256", "audit_sha256")
        ]
        assert again["rounds"] == whole["rounds"]
    driver = run(tmp_path, kind, *keys, "stop.epochs=3", "model.backprop=driver")
    assert driver["params_sha256"] == whole["params_sha256"]


@pytest.mark.parametrize("name", [n for n, entry in names.OPTIMIZERS.items() if not entry.full_batch])
def test_no_optimizer_moves_or_penalises_the_moments(tmp_path, name):
    """Within an epoch they stay to the bit, whatever decays, clips, penalises or remembers."""
    entry = names.OPTIMIZERS[name]
    keys = ["optimizer.weight_decay=0.1"] if "weight_decay" in entry.uses else []
    keys += ["model.l1=0.01"] if entry.l1 else []
    seen: list[tuple[float, np.ndarray]] = []
    more = ["model.batchnorm=true", "model.l2=0.1", "optimizer.clip_norm=1", "optimizer.clip_value=0.5"]
    result = run(
        tmp_path,
        "numbers",
        *DEEP,
        *more,
        *keys,
        f"optimizer.name={name}",
        "schedule.learning_rate=0.01",
        "batch.size=64",
        "stop.steps=12",
        on_step=lambda step, epoch, params: seen.append((epoch, params.copy())),
    )
    model = bundle.load(Path(result["run"])).model
    mask = constants(model)
    first, second = [p for e, p in seen[1:] if e <= 1.0], [p for e, p in seen if e > 1.0]
    for part in (first, second):
        assert len({p[mask].tobytes() for p in part}) == 1
        assert len({p[~mask].tobytes() for p in part}) == len(part)
    assert (first[0][mask] != second[0][mask]).all()
    weights = sum(float(np.sum(v**2)) for k, v in model.layout.views(seen[-1][1]).items() if k.endswith("weight"))
    ones = sum(float(np.abs(v).sum()) for k, v in model.layout.views(seen[-1][1]).items() if k.endswith("weight"))
    penalty = 0.1 * weights + (0.01 * ones if entry.l1 else 0.0)
    assert result["loss"] - result["metrics"]["mse"] == pytest.approx(penalty, rel=1e-9)


def test_evaluate_uses_the_stored_moments(tmp_path):
    X, y = table("numbers")
    path = tmp_path / "rows.npz"
    np.savez(path, X=X, y=y)
    keys = [*DEEP, "model.batchnorm=true", "optimizer.name=adam", "stop.epochs=2"]
    result = run(tmp_path, "numbers", *keys)
    found = evaluate(Path(result["run"]), str(path), ["data.target=y"])
    assert found["metrics"]["mse"] == pytest.approx(result["metrics"]["mse"], rel=1e-12)
    part = evaluate(Path(result["run"]), str(path), ["data.target=y", "backend.workers=1"])
    assert part["metrics"]["mse"] == found["metrics"]["mse"]


def test_it_helps_where_hidden_units_are_far_from_standardised(tmp_path):
    """A deep stack of sigmoids: each layer hands on numbers near 1/2 with ever less spread, and nothing is learnt."""
    keys = ["model.name=mlp", "model.hidden=[8,8,8,8]", "model.activation=sigmoid", "optimizer.name=sgd"]
    keys += ["schedule.learning_rate=0.1", "batch.size=32", "stop.epochs=8"]
    found = {how: run(tmp_path, "two", *keys, f"model.batchnorm={how}")["metrics"] for how in ("false", "true")}
    assert found["false"]["accuracy"] < 0.55
    assert found["true"]["accuracy"] > 0.95


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {name: lbfgs}\nmodel: {batchnorm: true}", "lbfgs could never keep a pair"),
        (
            "optimizer: {average: true}\nmodel: {batchnorm: center}",
            "the moments are the parameters', not their average's",
        ),
        ("strategy: {name: async}\nmodel: {batchnorm: true}", "strategy 'async'"),
        ("model: {batchnorm: half}", "model.batchnorm is half, expected"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfError, match=message) as caught:
        load_text(f"{text}\ndata: {{task: regression}}", "x.yml")
    assert caught.value.exit_code == 2


def test_without_hidden_layers_there_is_nothing_to_normalise(tmp_path):
    keys = ["model.name=mlp", "model.hidden=[]", "stop.epochs=1"]
    with_it, without = (run(tmp_path, "numbers", *keys, f"model.batchnorm={how}") for how in ("true", "false"))
    assert with_it["params_sha256"] == without["params_sha256"]
    assert "there is no hidden layer" in (Path(with_it["run"]) / "log.txt").read_text()
    lines = (Path(with_it["run"]) / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["round"] == with_it["rounds"] - 1


def test_other_models_say_that_they_do_not_use_it(tmp_path):
    kind, model = MODELS["ridge"]
    result = run(tmp_path, kind, *model, "model.batchnorm=true", "stop.epochs=1")
    assert "model.batchnorm (command line) is not used by ridge" in (Path(result["run"]) / "log.txt").read_text()
