"""Whole runs with several rounds a step: Newton, L-BFGS and line searches against closed forms and scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from problems import MODELS, SIZES, datasets, files, run, run_on, table
from sklearn.linear_model import LogisticRegression

from bigopt import bundle
from bigopt.config import resume_conf
from bigopt.core.errors import ConfError, DivergedError
from bigopt.data.memory import from_arrays
from bigopt.fit import _Run
from bigopt.problem import Datasets
from bigopt.rundir import RunDir

SEARCHES = {
    "newton": ["optimizer.name=newton"],
    "lbfgs": ["optimizer.name=lbfgs", "optimizer.history=3"],
    "owlqn": ["optimizer.name=lbfgs", "model.l1=0.02"],
    "exact": ["optimizer.name=gd", "schedule.name=exact_line_search"],
    "backtracking": ["optimizer.name=gd", "schedule.name=backtracking"],
}
PLAIN = ["model.standardize=false", "model.init=zeros"]


def memory(X: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> Datasets:
    sizes = [len(y) // 3, 1, len(y) - len(y) // 3 - 1]
    return Datasets(from_arrays(X, y, weight, partition_rows=sizes), None)


def lines(result: dict) -> list[dict]:
    return [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("weighted", [False, True])
def test_worked_number_4_ridge_by_newton_in_one_step(tmp_path, weighted):
    X, y = table("numbers")
    rng = np.random.default_rng(1)
    s = rng.uniform(0.5, 2.0, len(y)) if weighted else np.ones(len(y))
    start = tmp_path / "start.npy"
    np.save(start, rng.normal(size=6) * 100)
    data = memory(X, y, s if weighted else None)
    keys = ["model.name=ridge", "model.l2=0.1", "model.standardize=false", f"model.init={start}"]
    result = run(tmp_path, "", *keys, "optimizer.name=newton", "stop.steps=1", data=data)
    found = bundle.load(Path(result["run"])).params
    mean, centre = np.average(X, axis=0, weights=s), np.average(y, weights=s)
    Z = X - mean
    w = np.linalg.solve((Z.T * s) @ Z / s.sum() + 0.1 * np.eye(5), Z.T @ (s * (y - centre)) / s.sum())
    np.testing.assert_allclose(found, [*w, centre - mean @ w], rtol=1e-11)
    assert (result["steps"], result["epochs"]) == (1, 1.0)
    assert result["rounds"] == 4  # facts, Hessian, line, the final evaluation: rounds, neither steps nor epochs
    assert lines(result)[-1]["learning_rate"] == 1.0


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", ["ridge", "huber", "logistic", "softmax", "mlp_classes"])
def test_equal_bits_for_any_number_of_workers_and_for_rows_sent_to_the_driver(tmp_path, name, search):
    if (name, search) == ("mlp_classes", "newton"):
        pytest.skip("refused, and tested as such")
    kind, keys = MODELS[name]
    results = [
        run(
            tmp_path,
            kind,
            *keys,
            *SEARCHES[search],
            "stop.steps=4",
            f"backend.workers={workers}",
            f"model.backprop={where}",
        )
        for workers, where in ((1, "map"), (2, "map"), (3, "map"), (2, "driver"))
    ]
    assert len({r["params_sha256"] for r in results}) == 1
    assert len({r["rounds"] for r in results}) == 1


@pytest.mark.parametrize("search", SEARCHES)
def test_a_run_stopped_after_any_step_and_resumed_is_the_same_run(tmp_path, search):
    kind, model = MODELS["softmax"]
    keys = [*model, "model.l2=0.01", *SEARCHES[search], "run.audit=true"]
    whole = run(tmp_path, kind, *keys, "stop.steps=5")
    for k in (1, 3):
        path = Path(run(tmp_path, kind, *keys, f"stop.steps={k}")["run"])
        folder = RunDir.open(path)
        try:
            conf = resume_conf(path / "conf.yml", ["stop.steps=5", f"backend.workers={k}"])
            again = _Run(conf, datasets(kind), folder).go(resume=True)
        finally:
            folder.close()
        for key in ("params_sha256", "audit_sha256", "steps", "rounds", "epochs"):
            assert again[key] == whole[key]


def conditioned(cond: float, classes: int, n: int = 500, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Rows with feature variances from 1 to 1/cond in random axes, and labels that no plane separates."""
    rng = np.random.default_rng(classes)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    deviation = np.sqrt(np.geomspace(1.0, 1.0 / cond, d))
    X = rng.normal(size=(n, d)) * deviation @ Q.T
    score = X @ Q @ (rng.normal(size=(d, classes)) / deviation[:, None])
    return X, np.argmax(score + 1.5 * rng.gumbel(size=(n, classes)), axis=1)


def objective(X: np.ndarray, y: np.ndarray, W: np.ndarray, b: np.ndarray, l2: float) -> tuple[float, float, float]:
    """f, max|gradient| and cond(H) without the free shifts of the classes, for C columns of scores."""
    n, C = len(y), W.shape[1]
    V = X @ W + b
    peak = V.max(1, keepdims=True)
    total = np.log(np.exp(V - peak).sum(1)) + peak[:, 0]
    P = np.exp(V - total[:, None])
    G = P - np.eye(C)[y]
    Z = np.c_[X, np.ones(n)]
    H = np.zeros((C, Z.shape[1], C, Z.shape[1]))
    for c in range(C):
        for k in range(C):
            H[c, :, k] = (Z * (P[:, c] * ((c == k) - P[:, k]))[:, None]).T @ Z / n
        H[c, :-1, c, :-1] += 2 * l2 * np.eye(X.shape[1])
    values = np.linalg.eigvalsh(H.reshape(C * Z.shape[1], -1))[1:]  # the first is the shift of the intercepts
    f = float(np.mean(total - V[np.arange(n), y]) + l2 * (W**2).sum())
    return f, max(np.abs(X.T @ G / n + 2 * l2 * W).max(), np.abs(G.mean(0)).max()), values[-1] / values[0]


@pytest.mark.parametrize("optimizer", ["lbfgs", "newton"])
@pytest.mark.parametrize(
    ("classes", "cond", "l2", "steps", "cond_of_H"),
    [(2, 250, 1e-4, 80, 1e3), (2, 3000, 1e-5, 120, 1e4), (4, 50, 3e-4, 150, 427), (4, 650, 1.3e-5, 700, 9.6e3)],
)
def test_cross_entropies_reach_the_optimum_of_scikit_learn(tmp_path, optimizer, classes, cond, l2, steps, cond_of_H):
    X, y = conditioned(cond, classes)
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-12, C=1 / (2 * len(y) * l2), max_iter=1000).fit(
        X, y
    )
    name = "logistic" if classes == 2 else "softmax"
    keys = [f"model.name={name}", f"model.l2={l2}", *PLAIN, f"optimizer.name={optimizer}"]
    result = run(tmp_path, "", *keys, f"stop.steps={steps if optimizer == 'lbfgs' else 12}", data=memory(X, y))
    q = reference.coef_.shape[0]
    params = bundle.load(Path(result["run"])).params
    W, b = params[: 6 * q].reshape(6, q), params[6 * q :]
    V, c = reference.coef_.T, reference.intercept_
    if classes == 2:  # one logit: the same model as two scores v/2 and -v/2, whose penalty is half as large

        def both(w: np.ndarray, e: np.ndarray) -> tuple[float, float, float]:
            f, g, k = objective(X, y, np.c_[-w, w] / 2, np.r_[-e, e] / 2, 2 * l2)
            return f, 2 * g, k

        found, best = both(W, b), both(V, c)
    else:
        found, best = objective(X, y, W, b, l2), objective(X, y, V, c, l2)
        b, c = b - b.mean(), c - c.mean()
    assert best[2] == pytest.approx(cond_of_H, rel=0.05)
    assert found[1] <= 1e-8
    assert abs(found[0] - best[0]) / best[0] <= 1e-8
    if cond_of_H <= 1e3:
        np.testing.assert_allclose(np.r_[W, b[None]], np.r_[V, c[None]], rtol=1e-4, atol=1e-4 * np.abs(V).max())
    per_step = (result["rounds"] - 2) / result["steps"]
    assert per_step <= (1.35 if optimizer == "lbfgs" else 2.3)


def smooth_gradient(X: np.ndarray, y: np.ndarray, W: np.ndarray, b: np.ndarray, l2: float) -> tuple[float, ...]:
    """Value and gradients by W and b of the cross-entropy with l2, for C columns of scores or one logit."""
    V = np.c_[np.zeros(len(y)), X @ W + b] if W.shape[1] == 1 else X @ W + b
    peak = V.max(1, keepdims=True)
    total = np.log(np.exp(V - peak).sum(1)) + peak[:, 0]
    G = np.exp(V - total[:, None]) - np.eye(V.shape[1])[y]
    G = G[:, -W.shape[1] :]
    f = float(np.mean(total - V[np.arange(len(y)), y]) + l2 * (W**2).sum())
    return f, X.T @ G / len(y) + 2 * l2 * W, G.mean(0)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("classes", [2, 4])
def test_l1_by_owl_qn_reaches_the_optimum_of_saga(tmp_path, classes, ratio):
    X, y = conditioned(10, classes, n=300)
    X = np.c_[X, np.random.default_rng(9).normal(size=(300, 4))]  # four columns that mean nothing
    strength = 0.03
    l1, l2 = strength * ratio, strength * (1 - ratio) / 2
    peer = LogisticRegression(solver="saga", l1_ratio=ratio, C=1 / (len(y) * strength), tol=1e-10, max_iter=10**5)
    peer.fit(X, y)
    name = "logistic" if classes == 2 else "softmax"
    keys = [f"model.name={name}", f"model.l1={l1}", f"model.l2={l2}", *PLAIN, "optimizer.name=lbfgs"]
    result = run(tmp_path, "", *keys, "stop.steps=120", data=memory(X, y))
    q, d = peer.coef_.shape
    params = bundle.load(Path(result["run"])).params
    W, b = params[: d * q].reshape(d, q), params[d * q :]
    f, g, h = smooth_gradient(X, y, W, b, l2)
    best = smooth_gradient(X, y, peer.coef_.T, peer.intercept_, l2)[0] + l1 * np.abs(peer.coef_).sum()
    assert result["loss"] == pytest.approx(f + l1 * np.abs(W).sum(), rel=1e-13)
    assert result["loss"] - best <= 1e-6 * best  # not above saga's
    assert best - result["loss"] <= 1e-6 * best
    zero = W == 0.0
    assert np.abs(g[zero]).max() <= l1
    np.testing.assert_allclose(g[~zero], -l1 * np.sign(W[~zero]), atol=1e-8)
    assert np.abs(h).max() <= 1e-8
    assert 0 < zero.sum() < zero.size
    assert lines(result)[-1]["grad_norm"] <= 1e-8
    assert (result["rounds"] - 2) / result["steps"] <= 1.3


@pytest.mark.slow
def test_gradient_descent_with_exact_line_search_at_condition_number_100(tmp_path):
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.normal(size=(200, 5)))[0] * np.sqrt(200 * np.geomspace(1.0, 0.01, 5))
    y = X @ np.array([1.0, -2.0, 3.0, -4.0, 5.0]) + rng.normal(size=200)
    assert np.linalg.cond(X.T @ X) == pytest.approx(100)
    keys = ["model.name=linear", "model.intercept=false", *PLAIN, *SEARCHES["exact"], "stop.steps=1500"]
    result = run(tmp_path, "", *keys, "run.metrics_every_steps=500", data=memory(X, y))
    best = np.linalg.lstsq(X, y, rcond=None)[0]
    error = bundle.load(Path(result["run"])).params - best
    assert np.linalg.norm(error) / np.linalg.norm(best) <= 1e-10
    assert result["rounds"] == 2 + 2 * 1500


def test_lbfgs_trains_an_mlp_to_a_stationary_point(tmp_path):
    X = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]] * 8)
    y = X.sum(1) % 2
    keys = ["model.name=mlp", "model.hidden=[4]", "model.activation=tanh", "data.task=regression", "model.l2=1e-3"]
    result = run(tmp_path, "", *keys, "optimizer.name=lbfgs", "stop.steps=300", "run.seed=1", data=memory(X, y))
    assert result["metrics"]["mse"] < 0.05  # XOR is solved
    assert lines(result)[-1]["grad_norm"] < 1e-8


def test_softmax_without_a_penalty_is_pinned_and_reaches_a_stationary_point(tmp_path):
    X, y = table("four")
    result = run(tmp_path, "", "model.name=softmax", "optimizer.name=newton", "stop.steps=15", data=memory(X, y))
    assert lines(result)[-1]["grad_norm"] < 1e-10


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["model.name=mlp", "model.hidden=[3]"], "newton needs the Hessian, which only the linear family forms"),
        (["model.name=svm"], "newton needs second derivatives, which the hinge loss has not"),
        (["model.name=logistic", "data.memory=100000"], None),
    ],
)
def test_newton_is_refused_by_name_where_there_is_no_hessian(tmp_path, keys, message):
    if message is None:
        X = np.random.default_rng(0).normal(size=(40, 120))
        data, message = memory(X, np.arange(40) % 2), r"the Hessian of 121 parameters takes .* data\.memory allows"
    else:
        data = datasets("two")
    with pytest.raises(ConfError, match=message) as caught:
        run(tmp_path, "", *keys, "optimizer.name=newton", data=data)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("keys", "who"),
    [
        (["optimizer.name=lbfgs"], "optimizer 'lbfgs'"),
        (["optimizer.name=lbfgs", "model.l1=0.1"], "optimizer 'lbfgs'"),
        (["optimizer.name=newton"], "optimizer 'newton'"),
        (["optimizer.name=sgd", "schedule.name=backtracking"], "schedule 'backtracking'"),
        (["optimizer.name=sgd", "schedule.name=exact_line_search"], "schedule 'exact_line_search'"),
    ],
)
def test_a_mini_batch_is_refused_by_name_where_steps_are_searched_for(tmp_path, keys, who):
    with pytest.raises(ConfError, match=f"{who} takes all rows in every step, but batch.size is 32") as caught:
        run(tmp_path, "two", "model.name=logistic", *keys, "batch.size=32")
    assert caught.value.exit_code == 2


def test_a_singular_hessian_names_damping_and_the_penalty(tmp_path):
    X, y = table("numbers")
    X = np.c_[X, X[:, 1]]
    keys = ["model.name=linear", "optimizer.name=newton"]
    with pytest.raises(
        DivergedError, match=r"step 1: the Hessian is singular.*damping or model\.l2.*last finite state"
    ):
        run(tmp_path, "", *keys, data=memory(X, y))
    result = run(tmp_path, "", *keys, "optimizer.damping=1e-6", "stop.steps=5", data=memory(X, y))
    assert lines(result)[-1]["grad_norm"] < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("search", SEARCHES)
def test_dask_gives_the_same_bits(tmp_path, search):
    kind, keys = MODELS["softmax"]
    more = [*keys, "model.l2=0.01", *SEARCHES[search], "stop.steps=3"]
    path = files(tmp_path, kind, "zarr")
    local = run_on(path, tmp_path, *more, "backend.workers=1")
    dask = run_on(path, tmp_path, *more, "backend.name=dask", "backend.workers=2")
    assert dask["params_sha256"] == local["params_sha256"]
    assert dask["rounds"] == local["rounds"]
    assert sum(SIZES) == 451
