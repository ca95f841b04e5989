"""Class weights multiply the weights of the training rows; metrics do not see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from problems import MODELS, SIZES, run, table

from bigopt import bundle
from bigopt.config import load_conf
from bigopt.core.errors import ConfError
from bigopt.data.memory import from_arrays
from bigopt.facts import Datasets

EXACT = ["optimizer.name=lbfgs", "stop.steps=60", "model.standardize=false"]


def uneven(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows whose classes are not equally frequent, with sample weights."""
    X, y = table(kind)
    kept = np.random.default_rng(0).random(len(y)) < np.where(y == y[0], 1.0, 0.3)
    X, y = X[kept], y[kept]
    return X, y, np.random.default_rng(1).uniform(0.5, 2.0, len(y))


def cut(n: int) -> list[int]:
    """Partitions of some rows, in the proportions of `SIZES`."""
    ends = np.round(np.cumsum(SIZES) / sum(SIZES) * n).astype(int)
    return np.diff([0, *ends]).tolist()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kind", "name"), [("two", "logistic"), ("four", "softmax")])
def test_the_optimum_is_that_of_scikit_learn(tmp_path, kind, name, weighted):
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils.class_weight import compute_class_weight

    X, y, s = uneven(kind)
    X = (X - X.mean(0)) / X.std(0)
    data = Datasets(from_arrays(X, y, s if weighted else None, partition_rows=cut(len(y))), None)
    sample = s if weighted else np.ones(len(y))
    classes = np.unique(y)
    given = dict(zip(classes.tolist(), (3.0, 0.5, 1.0, 2.0), strict=False))
    text = "{" + ", ".join(f'"{k}": {v}' for k, v in given.items()) + "}"
    for spec, weights in (("balanced", "balanced"), (text, given)):
        factor = compute_class_weight(weights, classes=classes, y=y, sample_weight=sample)
        rows = sample * factor[np.searchsorted(classes, y)]
        keys = [f"model.name={name}", "model.l2=0.01", *EXACT, f"data.class_weight={spec}"]
        result = run(tmp_path, kind, *keys, data=data)
        peer = LogisticRegression(C=1 / (2 * rows.sum() * 0.01), solver="newton-cholesky", tol=1e-12, max_iter=1000)
        peer.fit(X, y, sample_weight=rows)
        found = bundle.coefficients(bundle.load(Path(result["run"])))
        w = np.array([found["coefficients"][f"x{i}"] for i in range(X.shape[1])]).T
        np.testing.assert_allclose(w, peer.coef_, rtol=1e-4, atol=1e-6)
        chance = peer.predict_proba(X)[np.arange(len(y)), np.searchsorted(classes, y)]
        penalty = 0.01 * np.sum(peer.coef_**2)
        assert result["loss"] == pytest.approx(np.average(-np.log(chance), weights=rows) + penalty, rel=1e-8)
        # what is reported is weighted by the sample weights alone
        assert result["metrics"]["log_loss"] == pytest.approx(np.average(-np.log(chance), weights=sample), rel=1e-5)
        right = peer.predict(X) == y
        assert result["metrics"]["accuracy"] == pytest.approx(np.average(right, weights=sample), rel=1e-12)


def test_bits_batches_and_the_other_kinds_of_labels(tmp_path):
    """Factors of 1 change no bit; the same bits on any workers; perceptron (-1, +1) and mlp take them too."""
    kind, model = MODELS["mlp_classes"]
    keys = [*model, "batch.size=100", "stop.epochs=1"]
    ones, none, two, other = (
        run(tmp_path, kind, *keys, *more)["params_sha256"]
        for more in (
            ["data.class_weight={'0': 1, '3': 1.0}"],
            [],
            ["data.class_weight={'0': 2}", "backend.workers=1"],
            ["data.class_weight={'0': 2}", "backend.workers=3"],
        )
    )
    assert ones == none
    assert two == other != none
    keys = ["model.name=svm", "optimizer.name=gd", "stop.steps=2", "model.init=zeros", "model.standardize=false"]
    seen: list[np.ndarray] = []
    run(
        tmp_path, "two", *keys, "data.class_weight={yes: 3}", "schedule.learning_rate=0.1",
        on_step=lambda step, epoch, params: seen.append(params.copy()),
    )  # fmt: skip
    X, y = table("two")
    v, s = np.where(y == "yes", 1.0, -1.0), np.where(y == "yes", 3.0, 1.0)
    g = -(s * v) @ np.column_stack([X, np.ones(len(y))]) / s.sum()  # every margin is below 1 at w = 0
    np.testing.assert_allclose(seen[1], -0.1 * g, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("numbers", ["model.name=ridge", "data.class_weight=balanced"], "needs one column of labels"),
        ("two", ["model.name=logistic", "data.class_weight={maybe: 2}"], "no class is 'maybe'"),
    ],
)
def test_what_has_no_such_classes_is_refused(tmp_path, kind, keys, message):
    with pytest.raises(ConfError, match=message) as caught:
        run(tmp_path, kind, *keys)
    assert caught.value.exit_code == 2


def test_factors_are_positive_numbers():
    for text in ("heavy", "{yes: 0}", "{yes: -1}", "2"):
        with pytest.raises(ConfError, match=r"data\.class_weight is .*, expected"):
            load_conf([], [f"data.class_weight={text}"])
