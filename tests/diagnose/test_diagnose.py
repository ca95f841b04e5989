"""`diagnose` against numpy.linalg, row-by-row sums and simulated runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import MODELS, datasets, files, table

from bigopt.config import load_conf
from bigopt.core.errors import ConfError, DivergedError
from bigopt.data.memory import from_arrays
from bigopt.diagnose import diagnose
from bigopt.diagnose.theory import gaussian_root
from bigopt.facts import Datasets

RAW = ["model.standardize=false", "model.intercept=false"]


def conf(*keys: str) -> Any:
    return load_conf([], ["data.uri=memory", *keys])


def data(X: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None, rows: int = 64) -> Datasets:
    return Datasets(from_arrays(X, y, weight, partition_rows=rows), None)


def spread(values: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Return Gaussian rows with these eigenvalues of Sigma."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return rng.normal(size=(n, len(values))) * np.sqrt(values) @ Q.T


@pytest.mark.parametrize("l2", [0.0, 0.02])
def test_ridge_against_direct_computation(l2: float) -> None:
    """Weighted rows, an intercept among the features: every figure from explicit row gradients, to 1e-10."""
    rng = np.random.default_rng(1)
    n, d = 150, 4
    X = rng.normal(size=(n, d)) * [1, 2, 0.5, 1] + 0.3
    s = rng.uniform(0.2, 2.0, size=n)
    y = X @ [1.0, -2.0, 0.5, 3.0] + rng.normal(size=n)
    found = diagnose(
        conf("model.name=ridge", f"model.l2={l2}", "model.standardize=false", "batch.size=16", "data.weight=weight"),
        data(X, y, s, rows=40),
    )
    A = np.column_stack([X, np.ones(n)])
    W, D = s.sum(), np.diag([2 * l2] * d + [0.0])
    H = 2 * (A.T * s) @ A / W + D
    best = np.linalg.solve(H, 2 * A.T @ (s * y) / W)

    def rows(w: np.ndarray) -> np.ndarray:
        return (n * s / W * 2 * (A @ w - y))[:, None] * A + D @ w

    from bigopt.models.build import build_model

    start = build_model("ridge", features=d).init("glorot_uniform", 0)
    values = np.linalg.eigvalsh(H)
    g = rows(start)
    mean = g.mean(axis=0)
    trace = ((g - mean) ** 2).sum() / n
    sigma2 = 2 * (rows(best) ** 2).sum() / n
    a = n * s / W
    norms = (A * A).sum(axis=1)
    Sigma = (A.T * a) @ A / n
    F = (A.T * (a * a * norms)) @ A / n
    R2 = np.linalg.eigvals(np.linalg.solve(Sigma, F)).real.max()
    top = np.linalg.eigvalsh(Sigma)[-1]
    M, w = 0.0, start
    for k in range(17):
        if k in (0, 1, 2, 4, 8, 16):
            here = rows(w)
            m = here.mean(axis=0)
            M = max(M, max(0.0, ((here - m) ** 2).sum() / n - sigma2) / (m @ m))
        w = w - rows(w).mean(axis=0) / values[-1]
    expected = {
        "lambda_max": values[-1],
        "lambda_min": values[0],
        "condition_number": values[-1] / values[0],
        "mean_square_x": (a * norms).mean(),
        "lambda_max_sigma": top,
        "r2": R2,
        "sigma2": sigma2,
        "trace_cov": trace,
        "grad_norm2": mean @ mean,
        "b_stable": 1 + (a * norms).mean() / top,
        "b_noise": trace / (mean @ mean),
        "M": M,
        "b_M": M,
        "full_batch_step": 2 / values[-1],
        "gamma_crit": 16 / (10 * values[-1] * (M + 16)),
        "correlation": (mean @ mean) / (g**2).sum(axis=1).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-10), name
    assert M > 0.1  # not a comparison of zeros
    assert found["phase"] == (1 if found["b_noise"] < 16 else 2)
    for step in found["stable_steps"][:-1]:
        b = step["batch"]
        assert step["eta_b"] == pytest.approx(b / (R2 + (b - 1) * top + b * l2), rel=1e-10)
        if l2 == 0.0:
            assert step["gaussian_root"] == pytest.approx(gaussian_root(np.linalg.eigvalsh(Sigma), b), rel=1e-10)
        else:
            assert step["gaussian_root"] is None


@pytest.mark.parametrize("kind", ["logistic", "softmax", "huber", "mlp_regression", "mlp_classes", "mlp_groups"])
def test_noise_and_curvature_against_rows_one_by_one(kind: str) -> None:
    """Row gradients through the model itself, one row at a time; the Hessian by differences of its gradient."""
    problem, keys = MODELS[kind]
    if kind in ("mlp_groups", "mlp_classes"):
        keys = [*keys, "model.activation=tanh"]  # a dead relu has no second derivative to compare with
    X, y = table(problem, 60)
    c = conf(*keys, "model.standardize=false", "model.init=he_normal")
    found = diagnose(c, data(X / 5, y, rows=13))
    from bigopt.models.build import build_model

    task = {"two": "logistic", "four": "softmax"}.get(problem, "linear")
    spec = c.model
    model = build_model(
        spec.name,
        features=X.shape[1],
        targets=1,
        classes=None if task == "linear" else len(np.unique(y)),
        loss=spec.loss,
        hidden=spec.hidden,
        activation=spec.activation,
        groups=spec.groups,
    )
    labels = y.astype(float) if task == "linear" else np.searchsorted(np.unique(y), y)
    labels = labels.astype(float) if model.outputs == 1 else labels
    w = model.init("he_normal", 0)
    held = 2 * spec.l2 * model.layout.penalized

    def mean(at: np.ndarray) -> np.ndarray:
        return model.grad_sum(at, X / 5, labels, None)[0] / 60 + held * at

    g = np.array([model.grad_sum(w, X[i : i + 1] / 5, labels[i : i + 1], None)[0] + held * w for i in range(60)])
    m = g.mean(axis=0)
    assert found["trace_cov"] == pytest.approx(((g - m) ** 2).sum() / 60, rel=1e-10)
    assert found["grad_norm2"] == pytest.approx(m @ m, rel=1e-10)
    e = 1e-6
    H = np.array([(mean(w + e * u) - mean(w - e * u)) / (2 * e) for u in np.eye(len(w))])
    values = np.linalg.eigvalsh(0.5 * (H + H.T))
    assert found["lambda_max"] == pytest.approx(values[-1], rel=1e-3)
    assert found["lambda_min"] == pytest.approx(values[0], rel=0.05, abs=1e-8 * values[-1])
    if values[0] < -1e-3 * values[-1]:
        saddle = found["saddle"]
        assert saddle["eigenvalue"] == found["lambda_min"]
        assert len(saddle["direction"]) == 5
    if kind == "softmax":
        assert found["flat_directions"] == X.shape[1] + 1  # the shift of all classes


def test_condition_number_1000() -> None:
    X = spread(np.geomspace(1e-3, 1.0, 50), 4000)
    y = X @ np.ones(50)
    values = np.linalg.eigvalsh(2 * X.T @ X / len(X))
    found = diagnose(conf("model.name=linear", *RAW), data(X, y, rows=500))
    assert found["lambda_max"] == pytest.approx(values[-1], rel=1e-10)
    assert found["lambda_min"] == pytest.approx(values[0], rel=1e-8)
    # the same problem as an mlp without hidden layers: nothing is formed
    blind = diagnose(conf("model.name=mlp", "model.hidden=[]", *RAW), data(X, y, rows=500))
    assert "Lanczos" in blind["how"]
    assert blind["lambda_max"] == pytest.approx(values[-1], rel=0.01)
    assert blind["lambda_min"] == pytest.approx(values[0], rel=0.05)


@pytest.mark.parametrize("values", [np.geomspace(0.05, 1.0, 12), np.array([1.0, *[0.02] * 11])])
def test_the_threshold_separates_convergence_from_divergence(values: np.ndarray) -> None:
    """Gaussian rows: E||w - w*||^2 shrinks at the printed step / 1.2 and grows at 1.2 times it.

    The oracle is the exact map of P = E (w - w*)(w - w*)^T under a step on these very rows, drawn with replacement,
    iterated until its leading mode is left.
    """
    n, d = 6000, len(values)
    X = spread(values, n)
    best = np.ones(d)
    found = diagnose(conf("model.name=linear", *RAW, "batch.size=16"), data(X, X @ best, rows=1000))
    S = X.T @ X / n
    for step in found["stable_steps"]:
        b = step["batch"]
        if b not in (1, 16, 256, "full"):
            continue
        limit = step["two_over_lambda_max"] if b == "full" else step["gaussian_root"]
        assert found["gaussian"]
        for factor, grows in ((1 / 1.2, False), (1.2, True)):
            eta = limit * factor
            if b == "full":
                T = np.eye(d) - 2 * eta * S
                assert (np.abs(np.linalg.eigvalsh(T)).max() > 1) == grows
                continue
            P = np.eye(d)
            for _ in range(100):
                before, P = np.trace(P), moved(P, X, S, eta, b)
            assert (np.trace(P) > before) == grows, (b, factor)


def moved(P: np.ndarray, X: np.ndarray, S: np.ndarray, eta: float, b: int) -> np.ndarray:
    fourth = (X.T * ((X @ P) * X).sum(axis=1)) @ X / len(X)
    return P - 2 * eta * (S @ P + P @ S) + 4 * eta**2 * (fourth / b + (1 - 1 / b) * S @ P @ S)


def test_worked_number_8_on_rows() -> None:
    d = 7
    X = np.tile(np.eye(d), (20, 1))
    found = diagnose(conf("model.name=linear", *RAW), data(X, X @ np.arange(d)))
    assert found["mean_square_x"] == pytest.approx(1.0, rel=1e-14)
    assert found["r2"] == pytest.approx(1.0, rel=1e-12)
    assert found["lambda_max_sigma"] == pytest.approx(1 / d, rel=1e-12)
    assert found["b_stable"] == pytest.approx(1 + d, rel=1e-12)
    assert found["sigma2"] == pytest.approx(0.0, abs=1e-20)  # worked number 6: every row fitted exactly


def test_worked_number_3() -> None:
    """f = (f1 + f2)/2 with gradients +1 and -1 at 0: tr Cov = 1, grad f = 0, so b_noise is infinite."""
    found = diagnose(conf("model.name=linear", *RAW, "model.init=zeros"), data(np.ones((2, 1)), np.array([-0.5, 0.5])))
    assert found["trace_cov"] == 1.0
    assert found["grad_norm2"] == 0.0
    assert found["b_noise"] == np.inf
    assert found["phase"] == 2


@pytest.mark.parametrize("kind", ["ridge", "logistic", "mlp_classes"])
def test_the_same_on_any_number_of_workers(kind: str) -> None:
    problem, keys = MODELS[kind]
    seen = []
    for workers in (1, 2, 3):
        found = copy.copy(diagnose(conf(*keys, f"backend.workers={workers}"), datasets(problem)))
        for timed in ("knee", "recommendation", "slots"):
            found.pop(timed)
        seen.append(found)
    assert seen[0] == seen[1] == seen[2]


def test_a_wide_problem_is_diagnosed_without_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    X = spread(np.geomspace(0.1, 1.0, 20), 500)
    y = X @ np.ones(20)
    exact = diagnose(conf("model.name=ridge", "model.l2=0.01", *RAW), data(X, y))
    monkeypatch.setattr("bigopt.diagnose.measure._FORMED", 10)
    found = diagnose(conf("model.name=ridge", "model.l2=0.01", *RAW), data(X, y))
    for name in ("lambda_max", "lambda_min", "lambda_max_sigma", "mean_square_x", "trace_cov", "sigma2"):
        assert found[name] == pytest.approx(exact[name], rel=1e-3), name
    assert found["r2"] == pytest.approx((X * X).sum(axis=1).max(), rel=1e-12)
    assert found["r2"] >= exact["r2"]
    assert any("longest row" in note for note in found["notes"])


def test_advice_names_what_it_rests_on() -> None:
    X = spread(np.geomspace(1e-7, 1.0, 10), 400)
    advice = diagnose(conf("model.name=linear", *RAW), data(X, X @ np.ones(10)))["recommendation"]
    assert (advice["optimizer"], advice["momentum"], advice["second_order"]) == ("momentum", 0.99, "newton")
    flat = diagnose(conf("model.name=linear", *RAW), data(np.tile(np.eye(4), (9, 1)), np.arange(36.0)))
    assert (flat["recommendation"]["optimizer"], flat["recommendation"]["momentum"]) == ("sgd", None)
    b = flat["recommendation"]["batch"]
    below = [s["eta_b"] for s in flat["stable_steps"] if s["batch"] != "full" and s["batch"] <= b]
    assert 0 < flat["recommendation"]["learning_rate"] <= 0.5 * max(below) * (1 + 1e-12)


@pytest.mark.parametrize("keys", [["model.name=svm"], ["model.name=perceptron"]])
def test_losses_without_curvature_are_refused(keys: list[str]) -> None:
    with pytest.raises(ConfError, match="no second derivatives"):
        diagnose(conf(*keys), datasets("two"))


def test_features_that_overflow_are_one_clear_error() -> None:
    X = np.random.default_rng(0).normal(size=(50, 3))
    for size, what in ((1e80, "moments"), (1e200, "moments")):
        with pytest.raises(DivergedError, match=what):
            diagnose(conf("model.name=linear", *RAW), data(X * size, X[:, 0]))
    found = diagnose(conf("model.name=linear"), data(X * 1e80, X[:, 0]))  # standardised: nothing to see
    assert found["mean_square_x"] == pytest.approx(3.0)


def test_features_that_are_all_zero() -> None:
    found = diagnose(conf("model.name=linear", *RAW), data(np.zeros((20, 2)), np.arange(20.0)))
    assert (found["lambda_max"], found["r2"], found["grad_norm2"]) == (0.0, 0.0, 0.0)
    assert found["recommendation"]["learning_rate"] is None


def test_columns_that_depend_on_each_other_up_to_rounding() -> None:
    """One-hot columns, standardised, in float32: H is singular but for rounding; w* is found all the same."""
    rng = np.random.default_rng(3)
    hot = np.eye(4)[rng.integers(4, size=800)]
    X = np.column_stack([hot, rng.normal(size=(800, 2))]).astype(np.float32)
    y = np.where(X @ [1, -1, 0.5, 0, 1, -1] + rng.normal(size=800) > 0, 1, 0)
    found = diagnose(conf("model.name=logistic"), data(X, y))
    assert found["flat_directions"] == found["hessian_at_optimum"]["flat_directions"] == 1
    assert found["optimum"]["reached"]
    assert found["optimum"]["grad_norm"] < 1e-8
    assert found["effective_condition_number"] < 1e3


@pytest.mark.slow
def test_the_same_on_dask(tmp_path: Path) -> None:
    uri = files(tmp_path, "two", "zarr")
    seen = []
    for backend in ("local", "dask"):
        keys = [f"data.uri={uri}", f"backend.name={backend}", "backend.workers=2", "model.name=mlp", "model.hidden=[3]"]
        found = diagnose(load_conf([], keys))
        for timed in ("knee", "recommendation"):
            found.pop(timed)
        seen.append(found)
    assert seen[0] == seen[1]
