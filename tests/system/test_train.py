"""Whole runs on the local backend: right answers, same bits, kill and resume, stopping, divergence."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from problems import MODELS, SIZES, datasets, run, table

from bigopt import bundle
from bigopt.checkpoint import Checkpoints
from bigopt.config import load_conf
from bigopt.core.errors import CheckpointError, ConfError, DataError, DivergedError
from bigopt.data.memory import from_arrays
from bigopt.facts import Datasets
from bigopt.fit import _Run, train
from bigopt.rundir import RunDir

MINI = ["optimizer.name=adam", "batch.size=64", "stop.epochs=2"]


def ridge_optimum(X: np.ndarray, y: np.ndarray, l2: float, weight: np.ndarray | None = None) -> np.ndarray:
    """(X^T S X / W + l2 I) w = X^T S y / W on standardised, centred columns; coefficients on the original scale."""
    s = np.ones(len(y)) if weight is None else weight
    mean, y_mean = np.average(X, axis=0, weights=s), np.average(y, weights=s)
    scale = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=s))
    Z = (X - mean) / scale
    H = (Z.T * s) @ Z / s.sum() + l2 * np.eye(X.shape[1])
    return np.linalg.solve(H, Z.T @ (s * (y - y_mean)) / s.sum()) / scale


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_descent_on_ridge_reaches_the_normal_equations(tmp_path, weighted):
    X, y = table("numbers")
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(y)) if weighted else None
    data = Datasets(from_arrays(X, y, weight, partition_rows=list(SIZES)), None)
    keys = ["model.name=ridge", "model.l2=0.1", "optimizer.name=gd", "schedule.learning_rate=0.3", "stop.steps=300"]
    result = run(tmp_path, "numbers", *keys, data=data)
    found = bundle.coefficients(bundle.load(Path(result["run"])))
    np.testing.assert_allclose(
        [found["coefficients"][f"x{i}"][0] for i in range(5)], ridge_optimum(X, y, 0.1, weight), rtol=1e-10
    )
    assert result["steps"] == 300
    assert result["epochs"] == 300.0


def test_the_final_loss_is_the_objective(tmp_path):
    X, y = table("numbers")
    result = run(tmp_path, "numbers", "model.name=ridge", "model.l2=0.2", *MINI)
    kept = bundle.load(Path(result["run"]))
    Z = (X - X.mean(0)) / X.std(0)
    error = Z @ kept.params[:5] + kept.params[5] - y
    assert result["loss"] == pytest.approx(np.mean(error**2) + 0.2 * kept.params[:5] @ kept.params[:5], rel=1e-12)
    assert result["metrics"]["mse"] == pytest.approx(np.mean(error**2), rel=1e-12)


def test_worked_number_1_one_row_at_a_time_and_in_pairs(tmp_path):
    """SPEC 9.1: rows in stored order, as full batches over what each step uses."""
    X, y = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], float), np.array([1.0, 1, -1, -1])
    base = ["model.name=linear", "model.intercept=false", "model.standardize=false", "model.init=zeros"]
    keys = [*base, "optimizer.name=gd", "schedule.learning_rate=0.5", "stop.steps=1"]

    def step(rows: list[int], start: np.ndarray) -> np.ndarray:
        # one step from w on some rows: shift y by what w already explains, start from zero
        data = Datasets(from_arrays(X[rows], y[rows] - X[rows] @ start, partition_rows=[len(rows)]), None)
        result = run(tmp_path, "numbers", *keys, data=data)
        return start + bundle.load(Path(result["run"])).params

    w = step([0], np.zeros(2))
    np.testing.assert_array_equal(w, [0, 1])
    np.testing.assert_array_equal(step([1], w), [0, 1])
    w = step([0, 1], np.zeros(2))
    np.testing.assert_array_equal(w, [0.5, 1])
    np.testing.assert_array_equal(step([2, 3], w), [-0.25, 1])


@pytest.mark.parametrize("name", MODELS)
def test_equal_bits_for_any_number_of_workers_and_for_rows_sent_to_the_driver(tmp_path, name):
    kind, keys = MODELS[name]
    hashes = {
        run(tmp_path, kind, *keys, *MINI, f"backend.workers={workers}", f"model.backprop={backprop}")["params_sha256"]
        for workers, backprop in ((1, "map"), (2, "map"), (3, "map"), (2, "driver"))
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "keys",
    [
        ["batch.lanes=0"],
        ["batch.lanes=2"],
        ["batch.sampling=block"],
        ["batch.size=full"],
        ["batch.sampling=subset"],
        ["batch.sampling=bernoulli", "batch.size=40"],
        ["batch.sampling=replacement"],
    ],
)
def test_every_sampling_learns_and_repeats_itself(tmp_path, keys):
    kind, model = MODELS["logistic"]
    length = "stop.steps=80" if keys == ["batch.size=full"] else "stop.epochs=10"
    fast = ["optimizer.name=adam", "schedule.learning_rate=0.05", length]
    results = [run(tmp_path, kind, *model, *fast, *keys) for _ in range(2)]
    assert results[0]["params_sha256"] == results[1]["params_sha256"]
    assert results[0]["metrics"]["accuracy"] > 0.85


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adagrad", "adadelta"])
def test_a_run_stopped_after_any_step_and_resumed_is_the_same_run(tmp_path, optimizer):
    kind, model = MODELS["mlp_regression"]
    keys = [*model, f"optimizer.name={optimizer}", "batch.size=100", "schedule.name=cosine", "schedule.period=4"]
    keys.append("run.audit=true")
    whole = run(tmp_path, kind, *keys, "stop.steps=7")
    for k in range(1, 7):
        part = run(tmp_path, kind, *keys, f"stop.steps={k}")
        assert part["params_sha256"] != whole["params_sha256"]
        again = go_on(Path(part["run"]), kind, "stop.steps=7", f"backend.workers={1 + k % 3}")
        assert [again[k] for k in ("params_sha256", "audit_sha256", "steps", "rounds")] == [
            whole[k] for k in ("params_sha256", "audit_sha256", "steps", "rounds")
        ]


def go_on(path: Path, kind: str, *overrides: str) -> dict:
    """`bigopt.fit.resume` on data in memory."""
    from bigopt.config import resume_conf

    folder = RunDir.open(path)
    try:
        return _Run(resume_conf(path / "conf.yml", list(overrides)), datasets(kind), folder).go(resume=True)
    finally:
        folder.close()


def test_a_resume_on_other_data_or_with_another_conf_is_refused(tmp_path):
    kind, model = MODELS["ridge"]
    path = Path(run(tmp_path, kind, *model, *MINI)["run"])
    with pytest.raises(ConfError, match=r"optimizer\.name: adam -> sgd"):
        go_on(path, kind, "optimizer.name=sgd")
    other = table("numbers", seed=9)
    folder = RunDir.open(path)
    conf = load_conf([path / "conf.yml"], ["stop.epochs=3"])
    data = Datasets(from_arrays(*other, partition_rows=list(SIZES)), None)
    with pytest.raises(DataError, match="not what this run was started with"):
        _Run(conf, data, folder).go(resume=True)
    folder.close()


def test_two_processes_cannot_use_one_run_directory(tmp_path):
    kind, model = MODELS["ridge"]
    path = Path(run(tmp_path, kind, *model, *MINI)["run"])
    folder = RunDir.open(path)
    with pytest.raises(ConfError, match="another process"):
        RunDir.open(path)
    folder.close()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    kind, model = MODELS["ridge"]
    path = Path(run(tmp_path, kind, *model, *MINI, "checkpoint.every_steps=3")["run"])
    saved = Checkpoints(path / "checkpoints", 3)
    assert len(saved.paths()) == 3
    data = bytearray(saved.paths()[-1].read_bytes())
    data[len(data) // 2] ^= 1
    saved.paths()[-1].write_bytes(data)
    assert saved.newest()[0] == saved.paths()[-2]


def test_divergence_ends_with_the_last_finite_state(tmp_path):
    kind, model = MODELS["ridge"]
    keys = [*model, "optimizer.name=gd", "schedule.learning_rate=1e6", "stop.steps=200"]
    with pytest.raises(DivergedError, match=r"step \d+") as caught:
        run(tmp_path, kind, *keys)
    path = Path(caught.value.run)
    state = Checkpoints(path / "checkpoints", 3).newest()[1].state
    assert np.isfinite(state.method.params).all()
    assert state.steps > 10


def test_limits_and_targets_end_a_run(tmp_path):
    kind, model = MODELS["logistic"]
    fast = [*model, "optimizer.name=adam", "schedule.learning_rate=0.05"]
    assert run(tmp_path, kind, *fast, "stop.steps=3")["steps"] == 3
    assert run(tmp_path, kind, *fast, "stop.epochs=0.5", "batch.size=50")["steps"] == 5
    target = run(tmp_path, kind, *fast, "stop.epochs=500", "stop.target_metric={accuracy: 0.8}")
    assert target["epochs"] < 100
    assert target["metrics"]["accuracy"] >= 0.8
    assert run(tmp_path, kind, *fast, "stop.epochs=500", "stop.target_loss=0.5")["epochs"] < 100
    patient = run(tmp_path, kind, *fast, "stop.epochs=500", "stop.tolerance=0.5", "stop.patience=2")
    assert patient["epochs"] < 20
    assert run(tmp_path, kind, *fast, "stop.seconds=0.2")["seconds"] >= 0.2


def test_the_run_directory_holds_what_it_promises(tmp_path):
    kind, model = MODELS["softmax"]
    result = run(tmp_path, kind, *model, *MINI, "data.validation=0.25", "run.metrics_every_steps=1")
    path = Path(result["run"])
    names = {p.name for p in path.iterdir()}
    assert {"conf.yml", "manifest.json", "metrics.jsonl", "log.txt", "checkpoints", "model"} <= names
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, result["steps"] + 1))
    expected = "step round epoch loss grad_norm learning_rate rows bytes_read bytes_sent seconds_map seconds_reduce"
    more = "seconds_update seconds_idle rss staleness"
    assert set(f"{expected} {more}".split()) <= set(lines[0])
    assert {"loss", "accuracy", "log_loss"} <= set(lines[-1]["validation"])
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["data"]["training_rows"] + manifest["data"]["validation_rows"] == sum(SIZES)
    model_json = json.loads((path / "model" / "model.json").read_text())
    assert model_json["params_sha256"] == result["params_sha256"]
    assert load_conf([path / "conf.yml"]).batch.size == 64
    assert os.stat(path).st_mode & 0o077 == 0


def test_constant_columns_are_named_and_harmless(tmp_path):
    X, y = table("numbers")
    X[:, 2] = 0.1
    data = Datasets(from_arrays(X, y, partition_rows=list(SIZES)), None)
    result = run(tmp_path, "numbers", *MODELS["ridge"][1], *MINI, data=data)
    log = (Path(result["run"]) / "log.txt").read_text()
    assert "constant columns are not scaled: x2" in log
    assert np.isfinite(result["loss"])


def test_huge_but_finite_features_train_or_end_with_one_clear_error(tmp_path):
    X, y = table("numbers")
    X[:, 0] *= 1e150
    data = Datasets(from_arrays(X, y, partition_rows=list(SIZES)), None)
    assert np.isfinite(run(tmp_path, "numbers", *MODELS["ridge"][1], *MINI, data=data)["loss"])


@pytest.mark.parametrize(
    ("labels", "keys", "message"),
    [
        (np.repeat(1, 451), ["model.name=logistic"], "one class only"),
        (np.arange(451) % 3, ["model.name=logistic"], r"3 classes.*softmax"),
        (np.array(["a", "b", "c"])[np.arange(451) % 3], ["model.name=ridge"], "holds text"),
        (np.arange(451) % 3, ["model.name=softmax", "data.classes=[0, 1]"], r"label 2 \(\d+ rows\)"),
    ],
)
def test_labels_a_model_cannot_take_are_refused(tmp_path, labels, keys, message):
    X, _ = table("numbers")
    data = Datasets(from_arrays(X, labels, partition_rows=list(SIZES)), None)
    with pytest.raises(DataError, match=message):
        run(tmp_path, "numbers", *keys, data=data)


def test_one_class_is_taken_where_classes_are_declared_and_the_penalty_bounds_the_weights(tmp_path):
    X, _ = table("numbers")
    data = Datasets(from_arrays(X, np.repeat("a", 451), partition_rows=list(SIZES)), None)
    keys = ["model.name=logistic", "data.classes=[a, b]", "model.l2=0.1", "model.intercept=false", "stop.epochs=1"]
    result = run(tmp_path, "numbers", *keys, data=data)
    assert "one class only" in (Path(result["run"]) / "log.txt").read_text()


def test_an_mlp_on_integers_asks_for_the_task(tmp_path):
    with pytest.raises(ConfError, match="numbers or classes") as caught:
        run(tmp_path, "four", "model.name=mlp")
    assert "data.task" in str(caught.value)


def test_labels_1_and_2_take_the_larger_as_positive(tmp_path):
    X, y = table("two")
    numbers = np.where(y == "yes", 2, 1)
    fast = ["model.name=logistic", "optimizer.name=adam", "schedule.learning_rate=0.05", "stop.epochs=5"]
    results = [
        run(tmp_path, "two", *fast, data=Datasets(from_arrays(X, labels, partition_rows=list(SIZES)), None))
        for labels in (numbers, y, numbers == 2, (numbers * 2 - 3).astype(float))
    ]
    assert len({r["params_sha256"] for r in results}) == 1
    assert "2 is the positive one" in (Path(results[0]["run"]) / "log.txt").read_text()


def test_a_signal_checkpoints_and_the_resumed_run_has_the_same_bits(tmp_path):
    script = textwrap.dedent(
        """
        import sys, pathlib
        sys.path.insert(0, sys.argv[1])
        from problems import run, MODELS
        from bigopt.core.errors import InterruptedRun
        kind, model = MODELS["mlp_regression"]
        class Tell:
            def start(self, *a): print("started", flush=True)
            def update(self, record): print("step", record["step"], flush=True)
            def note(self, text): pass
            def close(self): pass
        try:
            run(pathlib.Path(sys.argv[2]), kind, *model, "stop.steps=100000", "batch.size=16", progress=Tell())
        except InterruptedRun as error:
            print("interrupted", error.exit_code, error.run, flush=True)
        """
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parents[1] / "support"), str(tmp_path)]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step") and len(lines) == 5:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    word, code, path = lines[-1].split()
    assert (word, code) == ("interrupted", "143")
    reached = Checkpoints(Path(path) / "checkpoints", 3).newest()[1].steps
    kind, model = MODELS["mlp_regression"]
    again = go_on(Path(path), kind, f"stop.steps={reached + 20}")
    whole = run(tmp_path, kind, *model, f"stop.steps={reached + 20}", "batch.size=16")
    assert again["params_sha256"] == whole["params_sha256"]


def test_a_gpu_that_is_not_there_is_an_error(tmp_path):
    from bigopt.core.arrays import gpu_reason

    if gpu_reason() is None:
        pytest.skip("this machine has a GPU")
    kind, model = MODELS["ridge"]
    with pytest.raises(ConfError, match="device gpu"):
        train(load_conf([], ["data.uri=x", f"run.dir={tmp_path}", *model, "backend.device=gpu"]), data=datasets(kind))


@pytest.mark.parametrize("model", ["ridge", "mlp_regression"])
def test_whitened_features_have_the_identity_as_covariance_and_coefficients_are_undone(tmp_path, model):
    X, y = table("numbers")
    X = X @ np.random.default_rng(3).normal(size=(5, 5)) + 5.0
    X = np.column_stack([X, X[:, 0] + X[:, 1]])  # a direction without variance of its own
    data = Datasets(from_arrays(X, y, partition_rows=list(SIZES)), None)
    name = ["model.name=ridge"] if model == "ridge" else MODELS[model][1]
    keys = [*name, "model.whiten=true", "optimizer.name=gd", "schedule.learning_rate=0.4", "stop.steps=60"]
    result = run(tmp_path, "numbers", *keys, data=data)
    kept = bundle.load(Path(result["run"]))
    white = X.copy()
    kept.scaling.apply(white)
    covariance = np.cov(white.T, bias=True)
    values = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(values, [0, 1, 1, 1, 1, 1], atol=1e-9)
    assert "1 directions" in (Path(result["run"]) / "log.txt").read_text()
    if model == "ridge":  # condition number 1: gradient descent is at the least-squares fit
        found = bundle.coefficients(kept)
        fit = X @ [found["coefficients"][f"x{i}"][0] for i in range(6)] + found["intercept"][0]
        A = np.column_stack([X, np.ones(len(y))])
        np.testing.assert_allclose(fit, A @ np.linalg.lstsq(A, y, rcond=None)[0], rtol=1e-6)


def test_a_warm_start_from_a_run_predicts_what_that_run_predicted(tmp_path):
    kind, model = MODELS["mlp_classes"]
    first = run(tmp_path, kind, *model, *MINI)
    X, y = table(kind)
    other = Datasets(from_arrays(X * 3.0 + 1.0, y, partition_rows=list(SIZES)), None)
    # one step at a rate that moves nothing
    still = ["optimizer.name=sgd", "schedule.learning_rate=1e-300", "batch.size=full", "stop.steps=1"]
    again = run(tmp_path, kind, *model, *still, f"model.init={first['run']}")
    assert again["params_sha256"] == first["params_sha256"]
    kept = bundle.load(Path(first["run"]))
    moved = bundle.load(Path(run(tmp_path, kind, *model, *still, f"model.init={first['run']}", data=other)["run"]))
    rows = X * 3.0 + 1.0
    old, new = rows.copy(), rows.copy()
    kept.scaling.apply(old)
    moved.scaling.apply(new)
    np.testing.assert_allclose(
        moved.model.scores(moved.params, new), kept.model.scores(kept.params, old), rtol=1e-9, atol=1e-9
    )


def test_a_vector_in_a_file_is_the_start_and_must_fit(tmp_path):
    kind, model = MODELS["ridge"]
    start = np.arange(6.0) + 1.0
    np.save(tmp_path / "w.npy", start)
    still = ["optimizer.name=sgd", "schedule.learning_rate=1e-300", "batch.size=full", "stop.steps=1"]
    result = run(tmp_path, kind, *model, *still, f"model.init={tmp_path / 'w.npy'}")
    np.testing.assert_array_equal(bundle.load(Path(result["run"])).params, start)
    np.save(tmp_path / "w.npy", np.arange(7.0))
    with pytest.raises(ConfError, match="the model has 6 parameters"):
        run(tmp_path, kind, *model, *still, f"model.init={tmp_path / 'w.npy'}")
    np.savez(tmp_path / "w.npz", w=start)
    (tmp_path / "w.npz").rename(tmp_path / "w.npy")
    with pytest.raises(CheckpointError, match="cannot read a vector"):
        run(tmp_path, kind, *model, *still, f"model.init={tmp_path / 'w.npy'}")


def test_a_batch_too_large_for_the_driver_is_refused(tmp_path):
    kind, model = MODELS["ridge"]
    keys = ["model.backprop=driver", "batch.size=full", "data.memory=17KB"]
    with pytest.raises(ConfError, match="would be sent to the driver"):
        run(tmp_path, kind, *model, "optimizer.name=gd", *keys)


def test_early_stopping_keeps_the_parameters_of_the_best_check(tmp_path):
    kind, _ = MODELS["mlp_regression"]
    keys = ["model.name=mlp", "model.hidden=[64]", "optimizer.name=adam", "schedule.learning_rate=0.03"]
    more = ["batch.size=32", "data.validation=0.5", "stop.epochs=200", "stop.tolerance=0.0", "stop.patience=4"]
    result = run(tmp_path, kind, *keys, *more)
    lines = [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    checks = [line["validation"]["mse"] for line in lines if line.get("validation")]
    assert result["epochs"] < 200
    assert len(checks) == checks.index(min(checks)) + 5
    assert result["metrics"]["mse"] == pytest.approx(min(checks), rel=1e-12)
    # the run itself goes on from where it was, not from the best check
    part = run(tmp_path, kind, *keys, *more[:2], "stop.epochs=3", "stop.tolerance=0.0", "stop.patience=4")
    again = go_on(Path(part["run"]), kind, *more[2:])
    assert again["params_sha256"] == result["params_sha256"]


def test_a_period_of_null_is_the_length_at_the_first_start_also_after_a_resume(tmp_path):
    kind, model = MODELS["ridge"]
    keys = [*model, "optimizer.name=sgd", "batch.size=64", "schedule.name=cosine", "run.metrics_every_steps=1"]
    part = run(tmp_path, kind, *keys, "stop.steps=8")
    go_on(Path(part["run"]), kind, "stop.steps=12")
    lines = (Path(part["run"]) / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in lines]
    np.testing.assert_allclose(rates, [0.005 * (1 + np.cos(np.pi * (k % 8) / 8)) for k in range(12)], rtol=1e-12)


def test_l1_reaches_the_optimality_condition_with_exact_zeros(tmp_path):
    X, y = table("numbers")
    X = np.column_stack([X, np.random.default_rng(5).normal(size=(len(X), 4))])
    data = Datasets(from_arrays(X, y, partition_rows=list(SIZES)), None)
    keys = ["model.name=linear", "model.l1=0.6", "optimizer.name=gd", "schedule.learning_rate=0.3", "stop.steps=500"]
    result = run(tmp_path, "numbers", *keys, data=data)
    w = bundle.load(Path(result["run"])).params[:-1]
    Z = (X - X.mean(0)) / X.std(0)
    g = 2 * Z.T @ (Z @ w - (y - y.mean())) / len(y)
    zero = w == 0
    assert zero.any()
    assert not zero.all()
    assert (np.abs(g[zero]) <= 0.6 + 1e-9).all()
    np.testing.assert_allclose(g[~zero], -0.6 * np.sign(w[~zero]), atol=1e-8)
    assert result["loss"] == pytest.approx(result["metrics"]["mse"] + 0.6 * np.abs(w).sum(), rel=1e-12)


def test_a_run_killed_before_its_first_checkpoint_is_resumed_from_the_beginning(tmp_path):
    kind, model = MODELS["ridge"]
    whole = run(tmp_path, kind, *model, *MINI)
    path = Path(whole["run"])
    for name in [p.name for p in path.iterdir() if p.name != "conf.yml"]:  # what a kill in the first second leaves
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
    assert go_on(path, kind)["params_sha256"] == whole["params_sha256"]


def test_a_checkpoint_is_there_before_the_first_step(tmp_path):
    kind, model = MODELS["ridge"]
    path = Path(run(tmp_path, kind, *model, *MINI, "checkpoint.keep=9")["run"])
    assert Checkpoints(path / "checkpoints", 9).paths()[0].name == "step-000000000000.npz"


def test_the_mean_loss_of_an_epoch_survives_a_resume(tmp_path):
    kind, model = MODELS["ridge"]
    keys = [*model, "optimizer.name=sgd", "batch.size=64", "stop.epochs=2", "stop.tolerance=0.0"]
    whole = run(tmp_path, kind, *keys)
    part = run(tmp_path, kind, *model, *keys[2:4], "stop.steps=5", "stop.tolerance=0.0")
    go_on(Path(part["run"]), kind, "stop.epochs=2")
    best = [Checkpoints(Path(r["run"]) / "checkpoints", 3).newest()[1].best for r in (whole, part)]
    assert best[0] == best[1]


@pytest.mark.parametrize("backprop", ["map", "driver"])
def test_an_empty_bernoulli_batch_moves_by_the_penalty_alone(tmp_path, backprop):
    kind, _ = MODELS["ridge"]
    seen: list[np.ndarray] = []
    keys = ["model.name=ridge", "model.l2=0.25", "optimizer.name=sgd", "schedule.learning_rate=0.1"]
    more = ["batch.sampling=bernoulli", "batch.size=1", "stop.steps=30", f"model.backprop={backprop}"]
    run(tmp_path, kind, *keys, *more, on_step=lambda step, epoch, params: seen.append(params.copy()))
    shrunk = [np.allclose(b[:-1], a[:-1] * (1 - 0.1 * 2 * 0.25), rtol=1e-14) for a, b in itertools.pairwise(seen)]
    assert 3 < sum(shrunk) < 25  # a batch of one is empty with probability 1/e
