"""Sparse rows against the dense path of the same rows, and against scikit-learn on SciPy's matrices."""

from __future__ import annotations

import builtins
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from problems import run

from bigopt import bundle
from bigopt.bundle import coefficients, load
from bigopt.core import arrays
from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError, DataError
from bigopt.core.sums import packed, whole
from bigopt.core.vectors import SparseVector
from bigopt.data.memory import from_arrays
from bigopt.facts import Datasets
from bigopt.models.build import build_model
from bigopt.models.rows import hessian_vector_sum, noise_sum, row_curvature
from bigopt.models.second import hessian_sum, line_of_margins, margins
from bigopt.work_profile import moments
from bigopt.work_rows import sum_rows

scipy_sparse = pytest.importorskip("scipy.sparse")

N, D = 240, 30
SIZES = [100, 60, 3, 0, 77]
LINEAR = {
    "ridge": {"name": "ridge", "targets": 1},
    "two targets": {"name": "linear", "targets": 2},
    "huber": {"name": "linear", "targets": 1, "loss": "huber"},
    "logistic": {"name": "logistic", "classes": 2},
    "softmax": {"name": "softmax", "classes": 4},
    "perceptron": {"name": "perceptron", "classes": 2},
    "svm": {"name": "svm", "classes": 2, "loss": "squared_hinge"},
}


def features(n=N, d=D, density=0.2, seed=3):
    """Dense and sparse twins: an empty row, an empty column and one that is full and constant."""
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((n, d)) < density, rng.normal(size=(n, d)) * np.arange(1, d + 1), 0.0)
    dense[7], dense[:, 5], dense[:, 6] = 0.0, 0.0, 2.0
    rows = scipy_sparse.csr_array(dense)
    return dense, CSR(rows.data, rows.indices, rows.indptr.astype(np.int64), d)


def target(kind, dense, seed=4):
    rng = np.random.default_rng(seed)
    score = dense @ rng.normal(size=(dense.shape[1], 4)) / np.arange(1, 5) + rng.normal(size=(len(dense), 4))
    if kind == "numbers":
        return score[:, 0]
    if kind == "two":
        return np.where(score[:, 0] > np.median(score[:, 0]), "yes", "no")
    return np.argmax(score - score.mean(axis=0), axis=1)


def problem(case, dtype=np.float64, **more):
    """A model, params, twins of X, and y as its loss takes them."""
    dense, rows = features()
    model = build_model(**LINEAR[case], features=D, **more)
    rng = np.random.default_rng(5)
    params = (rng.normal(size=model.layout.size) * 0.1).astype(dtype)
    q = model.outputs
    y = {
        "regression": rng.normal(size=(N, q)).astype(dtype),
        "binary": rng.integers(0, 2, N).astype(dtype),
        "sign": (2 * rng.integers(0, 2, N) - 1).astype(dtype),
        "multiclass": rng.integers(0, q, N),
    }[model.loss.task]
    return model, params, dense.astype(dtype), rows.astype(dtype), y


def near(got, expected, tolerance=1e-12):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("case", LINEAR)
def test_every_sum_is_that_of_the_dense_rows(case, intercept, weighted):
    model, params, dense, rows, y = problem(case, intercept=intercept)
    weight = np.random.default_rng(6).random(N) * 3 if weighted else None
    near(model.scores(params, rows), model.scores(params, dense))
    near(model.predict(params, rows), model.predict(params, dense))
    for got, expected in (
        (model.grad_sum(params, rows, y, weight), model.grad_sum(params, dense, y, weight)),
        (model.loss_sum(params, rows, y, weight), model.loss_sum(params, dense, y, weight)),
        (noise_sum(model, params, rows, y, weight), noise_sum(model, params, dense, y, weight)),
    ):
        for a, b in zip(got, expected, strict=True):
            near(a, b)
    vector = np.random.default_rng(7).normal(size=params.shape)
    kept = [margins(model, params, vector, X) for X in (rows, dense)]
    lines = [line_of_margins(model.loss, k, (0.0, 0.3), y, weight, slopes=True) for k in kept]
    near(lines[0].values, lines[1].values)
    near(lines[0].slopes, lines[1].slopes)
    if case != "perceptron":
        near(row_curvature(model, params, rows, y), row_curvature(model, params, dense, y))
        products = [hessian_vector_sum(model, params, vector, X, y, weight) for X in (rows, dense)]
        near(*products)
        for a, b in zip(*(hessian_sum(model, params, X, y, weight) for X in (rows, dense)), strict=True):
            near(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", LINEAR)
def test_a_unit_is_computed_on_its_own_columns_and_travels_as_it_is_shorter(case, dtype):
    model, params, dense, rows, y = problem(case, dtype)
    tolerance = 1e-12 if dtype == np.float64 else 1e-4
    for part, kind in ((slice(0, 2), SparseVector), (slice(0, N), np.ndarray)):
        got = sum_rows(model, params, (rows[part], y[part], None), block_rows=64, dtype="float64")
        expected = sum_rows(model, params, (dense[part], y[part], None), block_rows=64, dtype="float64")
        assert isinstance(packed(got, model.outputs).grad, kind)
        assert whole(got).grad.dtype == np.float64
        near(whole(got).grad, expected.grad, tolerance)
        near(got.loss, expected.loss, tolerance)
        assert (got.weight, got.rows) == (expected.weight, expected.rows)


def test_an_empty_unit_and_a_row_of_one_value():
    model, params, _, rows, y = problem("logistic")
    none = whole(sum_rows(model, params, (rows[:0], y[:0], None), block_rows=8, dtype="float64"))
    assert (none.rows, none.loss, none.weight, none.grad.any()) == (0, 0.0, 0.0, np.False_)
    one = whole(sum_rows(model, params, (rows[7:8], y[7:8], None), block_rows=8, dtype="float64"))
    assert np.flatnonzero(one.grad).tolist() == [6, D]  # its one value, and the intercept


def test_huge_widths_are_never_densified():
    d = 10**7
    rng = np.random.default_rng(8)
    indices = np.sort(rng.integers(0, d // 40, (40, 40)), axis=1) + np.arange(40) * (d // 40)
    rows = CSR(rng.normal(size=1600), np.sort(indices, axis=1).ravel(), np.arange(0, 1601, 40), d)
    model = build_model("logistic", features=d, classes=2)
    params, y = np.zeros(d + 1), rng.integers(0, 2, 40).astype(float)
    tracemalloc.start()
    try:
        sums = sum_rows(model, params, (rows, y, None), block_rows=8192, dtype="float64")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # one vector of d values is 80 MB
    assert sums.grad.nbytes < 12 * 1601 + 1


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_count_what_is_not_stored_as_zero(weighted):
    dense, rows = features()
    weight = np.random.default_rng(9).random(N) if weighted else None
    got, expected = moments(rows, weight), moments(dense, weight)
    near(got.weight, expected.weight)
    near(got.mean, expected.mean)
    near(got.spread, expected.spread, 1e-10)
    assert got.spread[5] == 0.0
    assert got.spread[6] <= 1e-24 * N
    merged = moments(rows[:90], None if weight is None else weight[:90]).merge(
        moments(rows[90:], None if weight is None else weight[90:])
    )
    near(merged.spread, expected.spread, 1e-10)


def trained(tmp, X, y, *keys, **more):
    data = Datasets(from_arrays(X, y, partition_rows=SIZES, **more), None)
    return run(tmp, "", *keys, data=data)


FULL = ["model.standardize=false", "optimizer.name=lbfgs", "stop.steps=8", "batch.size=full"]
MINI = ["model.standardize=false", "optimizer.name=adagrad", "batch.size=32", "stop.epochs=2"]
RUNS = {
    "logistic, lbfgs": ("two", ["model.name=logistic", "model.l2=0.01", *FULL]),
    "logistic, adagrad": ("two", ["model.name=logistic", "model.l2=0.01", *MINI]),
    "ridge, newton": ("numbers", ["model.name=ridge", "model.l2=0.1", *FULL, "optimizer.name=newton"]),
    "softmax, adam": ("four", ["model.name=softmax", *MINI, "optimizer.name=adam", "data.validation=0.2"]),
    "svm, gd": ("two", ["model.name=svm", *FULL, "optimizer.name=gd", "stop.steps=20"]),
    "perceptron, sgd": ("two", ["model.name=perceptron", *MINI, "optimizer.name=sgd", "batch.sampling=replacement"]),
    "ridge, line": ("numbers", ["model.name=ridge", *FULL, "optimizer.name=gd", "schedule.name=exact_line_search"]),
    "logistic, bernoulli": ("two", ["model.name=logistic", *MINI, "batch.size=4", "batch.sampling=bernoulli"]),
}


def once(keys):
    """Later keys win."""
    return [f"{k}={v}" for k, v in dict(key.split("=", 1) for key in keys).items()]


@pytest.mark.parametrize("case", RUNS)
def test_a_run_is_that_on_the_dense_rows_and_has_the_same_bits_on_any_number_of_slots(case, tmp_path):
    kind, keys = RUNS[case]
    dense, rows = features()
    y, keys = target(kind, dense), once(keys)
    expected = trained(tmp_path / "dense", dense, y, *keys)
    results = [trained(tmp_path / str(k), rows, y, *keys, f"backend.workers={k}") for k in (1, 3)]
    if case == "logistic, adagrad":
        results.append(trained(tmp_path / "driver", rows, y, *keys, "model.backprop=driver"))
    assert len({r["params_sha256"] for r in results}) == 1
    assert results[0]["loss"] == pytest.approx(expected["loss"], rel=1e-9)
    got, reference = (load(Path(r["run"])).params for r in (results[0], expected))
    near(got, reference, 1e-9)
    assert results[0]["metrics"] == pytest.approx(expected["metrics"], rel=1e-9)


def test_features_are_scaled_and_not_centred(tmp_path, capsys):
    dense, rows = features()
    y = target("two", dense)
    deviation = dense.std(axis=0)
    deviation[deviation == 0.0] = 1.0
    keys = once(["model.name=logistic", "model.l2=0.01", *FULL])
    expected = trained(tmp_path / "dense", dense / deviation, y, *keys)
    got = trained(tmp_path / "sparse", rows, y, *once([*keys, "model.standardize=true"]))
    kept = load(Path(got["run"]))
    near(kept.params, load(Path(expected["run"])).params, 1e-9)
    original = coefficients(kept)
    assert original is not None
    weight = np.array([v[0] for v in original["coefficients"].values()])
    near(dense @ weight + original["intercept"][0], (dense / deviation) @ kept.params[:-1] + kept.params[-1], 1e-9)
    log = (Path(got["run"]) / "log.txt").read_text()
    assert "scaled, not centred" in log
    assert "constant columns are not scaled: x5, x6" in log


def test_logistic_and_softmax_are_scikit_learns(tmp_path):
    from sklearn.linear_model import LogisticRegression

    dense, rows = features()
    dense, rows = dense / 10, CSR(rows.data / 10, rows.indices, rows.indptr, rows.columns)
    X = scipy_sparse.csr_matrix(dense)
    for name, kind in (("logistic", "two"), ("softmax", "four")):
        y, l2 = target(kind, dense), 0.01
        keys = [f"model.name={name}", f"model.l2={l2}", "model.standardize=false", "optimizer.name=lbfgs"]
        got = trained(tmp_path / name, rows, y, *keys, "stop.steps=120", "batch.size=full")
        peer = LogisticRegression(C=1 / (2 * N * l2), tol=1e-10, max_iter=2000).fit(X, y)
        kept = load(Path(got["run"]))
        q = kept.model.outputs
        weight, shift = kept.params[: D * q].reshape(D, q), kept.params[D * q :]
        near(weight.T, peer.coef_, 1e-4)
        near(shift - (shift.mean() if q > 1 else 0.0), peer.intercept_ - (peer.intercept_.mean() if q > 1 else 0), 1e-4)


def test_ridge_by_newton_is_scikit_learns(tmp_path):
    from sklearn.linear_model import Ridge

    dense, rows = features()
    y, weight = target("numbers", dense), np.random.default_rng(11).integers(0, 4, N)
    keys = ["model.name=ridge", "model.l2=0.05", "model.standardize=false", "optimizer.name=newton", "stop.steps=2"]
    got = trained(tmp_path, rows, y, *keys, weight=weight)
    peer = Ridge(alpha=weight.sum() * 0.05).fit(dense, y, sample_weight=weight)
    kept = load(Path(got["run"])).params
    near(kept[:-1], peer.coef_, 1e-9)
    near(kept[-1], peer.intercept_, 1e-9)


def test_an_svm_is_scikit_learns(tmp_path):
    from sklearn.svm import LinearSVC

    dense, rows = features()
    dense, rows = dense / 10, CSR(rows.data / 10, rows.indices, rows.indptr, rows.columns)
    y, l2 = target("two", dense), 0.02
    keys = ["model.name=svm", "model.loss=squared_hinge", f"model.l2={l2}", "model.standardize=false"]
    keys += ["model.intercept=false", "optimizer.name=lbfgs", "stop.steps=100", "batch.size=full"]
    got = trained(tmp_path, rows, y, *keys)
    fit = LinearSVC(C=1 / (2 * N * l2), fit_intercept=False, tol=1e-10, max_iter=10**5, dual=False)
    peer = fit.fit(scipy_sparse.csr_matrix(dense), y)
    near(load(Path(got["run"])).params, peer.coef_[0], 1e-4)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["model.name=logistic", "model.standardize=center"], "not centred"),
        (["model.name=logistic", "model.whiten=true", "model.standardize=false"], "not whitened"),
        (["model.name=mlp", "data.task=classification"], "mlp takes no sparse rows"),
        (["model.name=logistic", "optimizer.name=newton", "data.memory=5000000"], "lbfgs needs no Hessian"),
    ],
)
def test_what_would_fill_the_rows_is_refused_by_name(tmp_path, keys, words):
    n, d = 12, 1000
    rows = CSR(np.ones(n), np.arange(n, dtype=np.int32) * 7, np.arange(n + 1), d)
    y = np.where(np.arange(n) % 3, "yes", "no")
    with pytest.raises(ConfError, match=words):
        run(tmp_path, "", *keys, data=Datasets(from_arrays(rows, y), None))


def test_a_gpu_is_refused_by_name_and_left_out_by_auto(tmp_path, monkeypatch):
    dense, rows = features()
    monkeypatch.setattr(arrays, "resolve_device", lambda asked: "gpu")
    keys = ["model.name=logistic", "stop.steps=1"]
    with pytest.raises(ConfError, match="sparse rows are computed on the CPU"):
        trained(tmp_path, rows, target("two", dense), *keys, "backend.device=gpu")
    result = trained(tmp_path, rows, target("two", dense), *keys, "backend.device=auto")
    assert "sparse rows are not computed on a GPU" in (Path(result["run"]) / "log.txt").read_text()


def test_labels_and_weights_are_checked_as_on_dense_rows(tmp_path):
    dense, rows = features()
    with pytest.raises(DataError, match="weight is -1"):
        trained(tmp_path, rows, target("two", dense), "model.name=logistic", weight=np.full(N, -1.0))
    with pytest.raises(DataError, match="4 classes"):
        trained(tmp_path, rows, target("four", dense), "model.name=logistic")


def test_without_scipy_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    dense, rows = features()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfError, match="SciPy, which is not installed") as caught:
        trained(tmp_path, rows, target("two", dense), "model.name=logistic")
    assert "bigopt[sparse]" in caught.value.hint


def test_the_coefficients_of_many_columns_are_a_file(tmp_path):
    n, d = 40, bundle._LISTED + 1
    rng = np.random.default_rng(12)
    rows = CSR(rng.normal(size=n), np.sort(rng.integers(0, d, n)).astype(np.int32), np.arange(n + 1), d)
    data = Datasets(from_arrays(rows, np.where(rng.random(n) < 0.5, 1, 2)), None)
    keys = ["model.name=logistic", "model.standardize=true", "optimizer.name=adagrad", "stop.steps=3"]
    folder = Path(run(tmp_path, "", *keys, data=data)["run"]) / "model"
    summary = json.loads((folder / "model.json").read_text())
    assert summary["features"] == {"count": d, "first": "x0", "last": f"x{d - 1}"}
    assert summary["original_scale"]["coefficients"] == "coefficients.npy"
    named = coefficients(load(folder.parent))
    assert named is not None
    assert np.load(folder / "coefficients.npy").tolist() == list(named["coefficients"].values())
