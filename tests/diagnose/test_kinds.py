"""Diagnoses of other kinds of problems: an mlp, sparse rows, batch normalisation, a run that has been trained."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.local import LocalSession
from bigopt.checkpoint import load
from bigopt.cli import bigopt
from bigopt.config import load_conf
from bigopt.core.errors import CheckpointError, ConfError
from bigopt.data.memory import from_arrays
from bigopt.diagnose import diagnose
from bigopt.diagnose.measure import Measure, wide
from bigopt.diagnose.optimum import minimise
from bigopt.diagnose.theory import b_stable, eta_b, gamma_crit
from bigopt.facts import Datasets, profile
from bigopt.fit import train
from bigopt.models.build import build_model
from bigopt.models.curvature import gauss_newton_traces
from bigopt.problem import Problem, build

RAW = ["model.standardize=false", "model.intercept=false"]


def conf(*keys: str) -> Any:
    return load_conf([], ["data.uri=memory", *keys])


def data(X: Any, y: np.ndarray, rows: int = 64) -> Datasets:
    return Datasets(from_arrays(X, y, None, partition_rows=rows), None)


def numbers(n: int = 200, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(n, d)) * np.arange(1, d + 1)
    return X, np.tanh(X @ rng.normal(size=d)) + 0.1 * rng.normal(size=n)


def test_an_mlp_by_the_curvature_of_its_rows() -> None:
    X, y = numbers()
    y = 0.1 * y  # small weights at the optimum
    c = conf("model.name=mlp", "model.hidden=[5]", "model.activation=tanh", "model.l2=0.01", *RAW, "batch.size=16")
    found = diagnose(c, data(X, y))
    model = build_model("mlp", features=4, targets=1, hidden=(5,), activation="tanh", intercept=False)
    half = gauss_newton_traces(model, model.init("glorot_uniform", 0), X, y) / 2
    ends = found["lambda_max"], found["hessian_at_optimum"]["lambda_max"]
    curved = found["curved"]
    assert ends[0] > ends[1], "the curved rows are those at w_0"
    assert curved["mean_square"] == pytest.approx(half.mean(), rel=1e-10)
    assert curved["r2"] == pytest.approx(half.max(), rel=1e-10)
    assert curved["r2_least"] == pytest.approx((half**2).mean() / half.mean(), rel=1e-10)
    top = max(ends) / 2 - 0.01
    assert curved["largest"] == pytest.approx(top, rel=1e-10)
    assert found["b_stable"] == pytest.approx(b_stable(curved["mean_square"], top), rel=1e-10)
    for step in found["stable_steps"][:-1]:
        assert step["eta_b"] == pytest.approx(eta_b(step["batch"], curved["r2"], top, 0.01), rel=1e-10)
        assert step["gaussian_root"] is None
    assert found["gaussian"] is None
    assert found["recommendation"]["learning_rate"] == "auto"


def test_an_mlp_without_hidden_layers_is_the_linear_family() -> None:
    """tr G_i / 2 is ||x||^2, and lambda_max(H)/2 - l2 is lambda_max(Sigma)."""
    X, y = numbers()
    linear = diagnose(conf("model.name=ridge", "model.l2=0.02", *RAW), data(X, y))
    mlp = diagnose(conf("model.name=mlp", "model.hidden=[]", "model.l2=0.02", *RAW), data(X, y))
    assert mlp["curved"]["mean_square"] == pytest.approx(linear["mean_square_x"], rel=1e-10)
    assert mlp["curved"]["largest"] == pytest.approx(linear["lambda_max_sigma"], rel=1e-8)
    assert mlp["curved"]["r2_least"] <= linear["r2"] <= mlp["curved"]["r2"]
    assert mlp["b_stable"] == pytest.approx(linear["b_stable"], rel=1e-8)


TIMED = ("knee", "recommendation", "how", "hessian_at_optimum", "notes", "rounds", "optimum")


@pytest.mark.parametrize("kind", ["ridge", "logistic", "softmax"])
@pytest.mark.parametrize("formed", [True, False])
def test_sparse_rows_are_diagnosed_as_dense_ones(kind: str, formed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    if not formed:
        monkeypatch.setattr("bigopt.diagnose.measure._FORMED", 5)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 12)) * (rng.random((300, 12)) < 0.3)
    score = X @ rng.normal(size=(12, 3)) + 0.5 * rng.normal(size=(300, 3))
    y = {"ridge": score[:, 0], "logistic": (score[:, 0] > 0).astype(int), "softmax": score.argmax(axis=1)}[kind]
    keys = [f"model.name={kind}", "model.l2=0.01", "model.standardize=false"]
    dense, found = (diagnose(conf(*keys), data(rows, y)) for rows in (X, sparse.csr_array(X)))
    for name, value in dense.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-6), name
    assert found["curved"] == pytest.approx(dense["curved"], rel=1e-6)
    assert found["stable_steps"][3]["eta_b"] == pytest.approx(dense["stable_steps"][3]["eta_b"], rel=1e-6)


@pytest.fixture
def measured() -> Iterator[Callable[..., tuple[Problem, Any]]]:
    """``measured(X, y, *keys, **more)`` gives a problem and what measures it, until the test is over."""
    with contextlib.ExitStack() as stack:

        def make(X: np.ndarray, y: np.ndarray, *keys: str, **more: Any) -> tuple[Problem, Any]:
            c = conf(*keys)
            session = stack.enter_context(contextlib.closing(LocalSession(2, 10**9)))
            rounds = Rounds(Ledger(), 3)
            sets = data(X, y)
            problem = wide(build(c, sets, profile(c, sets, session, rounds), "cpu"))
            return problem, Measure(problem, session, rounds, 10**9, **more)

        yield make


def test_a_sample_stands_for_all_rows(measured: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 3)) * [1.0, 2.0, 3.0]
    keys = ["model.name=linear", *RAW]
    _, every = measured(X, X[:, 0], *keys)
    _, some = measured(X, X[:, 0], *keys, sample=4000)
    whole, part = every.features(), some.features()
    assert part.mean_square != whole.mean_square
    assert part.mean_square == pytest.approx(14.0, rel=0.05)
    assert part.largest == pytest.approx(whole.largest, rel=0.1)
    assert part.r2 == pytest.approx(whole.r2, rel=0.15)


def test_moments_inside_an_mlp_are_those_at_w_and_are_held(measured: Callable[..., Any]) -> None:
    from dataclasses import replace

    X, y = numbers()
    problem, measure = measured(X, y, "model.name=mlp", "model.hidden=[6,5]", "model.activation=tanh")
    model = replace(problem.model, batchnorm=True)  # type: ignore[type-var]
    measure = replace(measure, problem=replace(problem, model=model))
    start = model.init("he_normal", 1)  # type: ignore[attr-defined]
    w = measure.settled(start)
    free = measure.free
    assert (w[free] == start[free]).all()
    views = model.layout.views(w)
    scaled = (X - X.mean(0)) / X.std(0)
    first = np.tanh(scaled @ views["layer1.weight"] + views["layer1.intercept"])
    np.testing.assert_allclose(views["layer2.mean"], first.mean(0), rtol=1e-10)
    np.testing.assert_allclose(views["layer2.scale"], first.std(0), rtol=1e-10)
    inner = (first - first.mean(0)) / first.std(0)
    second = np.tanh(inner @ views["layer2.weight"] + views["layer2.intercept"])
    np.testing.assert_allclose(views["layer3.mean"], second.mean(0), rtol=1e-10, atol=1e-12)
    here, best = measure.noise(w), minimise(measure, w)
    assert (here.grad[~free] == 0.0).all()
    assert (best.params[~free] == w[~free]).all()
    assert measure.noise(best.params).value < here.value
    assert measure.spectrum(w).direction[~free].max() == 0.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    folder = tmp_path_factory.mktemp("diagnosed")
    X, y = numbers()
    np.savez(folder / "d.npz", X=X, y=y)
    keys = [f"data.uri={folder / 'd.npz'}", f"run.dir={folder}", "model.name=logistic", "optimizer.name=sgd"]
    np.savez(folder / "d.npz", X=X, y=(y > 0).astype(int))
    result = train(
        load_conf([], [*keys, "model.l2=0.01", "batch.size=10", "checkpoint.every_steps=20", "stop.epochs=3"])
    )
    return Path(result["run"]), folder, keys


def test_of_a_run_the_checkpoints_are_looked_at(trained: tuple[Path, Path, list[str]]) -> None:
    run, folder, _ = trained
    before = sorted((p.name, p.stat().st_mtime_ns) for p in run.rglob("*"))
    called = CliRunner().invoke(bigopt, ["diagnose", str(run), "--json"])
    assert called.exit_code == 0, called.stdout
    found = json.loads(called.stdout)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in run.rglob("*")) == before
    saved = [load(p) for p in sorted((run / "checkpoints").glob("*.npz"))]
    assert len(saved) == 3
    with np.load(folder / "d.npz") as arrays:
        X, y = arrays["X"], arrays["y"]
    A = np.column_stack([(X - X.mean(0)) / X.std(0), np.ones(len(X))])
    D = np.diag([0.02] * 4 + [0.0])

    def rows(w: np.ndarray) -> np.ndarray:
        return (1 / (1 + np.exp(-(A @ w))) - y)[:, None] * A + D @ w

    iterates = [np.array(s.state.method.params, dtype=float) for s in saved]
    iterates.append(build_model("logistic", features=4, classes=2).init("glorot_uniform", 0))
    assert found["grad_norm2"] == pytest.approx((rows(iterates[2]).mean(0) ** 2).sum(), rel=1e-8)
    M = 0.0
    for w in iterates:
        g = rows(w)
        m = g.mean(0)
        M = max(M, max(0.0, ((g - m) ** 2).sum() / len(X) - found["sigma2"]) / (m @ m))
    assert found["M"] == pytest.approx(M, rel=1e-8)
    assert (found["tau"], found["tau_from"]) == (1.0, "synchronous steps")
    assert any("newest" in note or "step 60 of the run" in note for note in found["notes"])


def test_the_delay_enters_gamma_crit(trained: tuple[Path, Path, list[str]]) -> None:
    run, _, keys = trained
    for args, tau, why in (
        ([str(run), "--tau", "7"], 7.0, "--tau"),
        (["--tau", "2.5", *keys, "batch.size=10"], 2.5, "--tau"),
    ):
        found = json.loads(CliRunner().invoke(bigopt, ["diagnose", "--json", *args]).stdout)
        assert (found["tau"], found["tau_from"]) == (tau, why)
        assert found["gamma_crit"] == pytest.approx(gamma_crit(10, found["L"], found["M"], tau), rel=1e-12)
        one = next(s for s in found["stable_steps"] if s["batch"] == 1)
        assert one["gamma_crit"] == pytest.approx(gamma_crit(1, found["L"], found["M"], tau), rel=1e-12)
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 61, "staleness": 5}) + "\n" + '{"step": 62, "stale')
    found = json.loads(CliRunner().invoke(bigopt, ["diagnose", "--json", str(run)]).stdout)
    assert (found["tau"], found["tau_from"]) == (5.0, "the largest staleness of the run")
    assert any("N - 1" in note for note in found["notes"])


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    called = CliRunner().invoke(bigopt, ["diagnose", str(tmp_path)])
    assert called.exit_code == 2
    with pytest.raises(ConfError, match="a delay of 0.5"):
        diagnose(conf("model.name=linear"), data(*numbers()), tau=0.5)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        diagnose(conf("model.name=linear"), data(*numbers()), run=tmp_path)
