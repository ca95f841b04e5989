"""Metrics against scikit-learn's, merged over any split; the AUC against the exact one on large and nasty data."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigopt.core.codec import dumps, loads
from bigopt.models.confusion import MOST_CLASSES
from bigopt.models.linear import LinearModel
from bigopt.models.losses import LOSSES, BinaryCrossEntropy, CategoricalCrossEntropy, SignedSquaredLoss, SquaredLoss
from bigopt.models.metrics import evaluate_block, metric_names, metric_sums, predicted_class
from bigopt.models.mlp import MLP
from bigopt.models.ranking import LIMIT, Ranking

sklearn = pytest.importorskip("sklearn.metrics")

CUTS = [0, 1, 40, 41, 200, 300]


def folded(loss: Any, values: np.ndarray, y: np.ndarray, weight: np.ndarray | None, cuts: list[int]) -> Any:
    parts = []
    for a, b in itertools.pairwise(cuts):
        sums = metric_sums(loss, values[a:b], y[a:b], None if weight is None else weight[a:b])
        parts.append(loads([bytes(part) for part in dumps(sums)]))
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    assert total.rows == cuts[-1]
    return total


def _weight(weighted: bool) -> np.ndarray | None:
    return np.random.default_rng(9).uniform(0, 2, 300) if weighted else None


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression(weighted: bool, outputs: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(loc=100.0, size=(300, outputs))
    p = y + rng.normal(size=y.shape)
    w = _weight(weighted)
    found = folded(SquaredLoss(), p, y, w, CUTS).values()
    assert set(found) == {"loss", "mse", "rmse", "mae", "r2"}
    mse = sklearn.mean_squared_error(y, p, sample_weight=w)
    assert found["mse"] == pytest.approx(mse, rel=1e-13)
    assert found["rmse"] == pytest.approx(math.sqrt(mse), rel=1e-13)
    assert found["loss"] == pytest.approx(mse * outputs, rel=1e-13)
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(y, p, sample_weight=w), rel=1e-13)
    assert found["r2"] == pytest.approx(sklearn.r2_score(y, p, sample_weight=w), rel=1e-12)


def test_regression_targets_of_one_dimension() -> None:
    y = np.array([1.0, 2.0, 4.0])
    assert metric_sums(SquaredLoss(), y[:, None] + 1.0, y, None).values()["mse"] == 1.0


def test_r2_of_a_constant_target_is_scikit_learns() -> None:
    y = np.full((4, 1), 2.0)
    assert metric_sums(SquaredLoss(), y, y, None).values()["r2"] == sklearn.r2_score(y, y) == 1.0
    assert metric_sums(SquaredLoss(), y + 1, y, None).values()["r2"] == sklearn.r2_score(y, y + 1) == 0.0
    assert math.isnan(metric_sums(SquaredLoss(), y[:1], y[:1], None).values()["r2"])


@pytest.mark.parametrize("logits", [1, 2])
def test_two_classes(weighted: bool, logits: int) -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 300)
    v = np.round(rng.normal(loc=y - 0.5, scale=2.0), 1)[:, None]
    w = _weight(weighted)
    scores = v if logits == 1 else np.hstack([-v / 2, v / 2])
    loss = BinaryCrossEntropy() if logits == 1 else CategoricalCrossEntropy()
    found = folded(loss, scores, y.astype(float) if logits == 1 else y, w, CUTS).values()
    p = 1 / (1 + np.exp(-v[:, 0]))
    assert list(found) == ["loss", "accuracy", "log_loss", "auc", "precision", "recall", "f1", "top_k"]
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(y, v[:, 0] > 0, sample_weight=w), rel=1e-13)
    assert found["log_loss"] == found["loss"] == pytest.approx(sklearn.log_loss(y, p, sample_weight=w), rel=1e-12)
    assert found["auc"] == pytest.approx(sklearn.roc_auc_score(y, v[:, 0], sample_weight=w), rel=1e-12)


@pytest.mark.parametrize("one_hot", [False, True])
def test_many_classes(weighted: bool, one_hot: bool) -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 4, 300)
    v = rng.normal(size=(300, 4)) + np.eye(4)[y]
    w = _weight(weighted)
    found = folded(CategoricalCrossEntropy(), v, np.eye(4)[y] if one_hot else y, w, CUTS).values()
    p = np.exp(v) / np.exp(v).sum(axis=1, keepdims=True)
    assert list(found) == ["loss", "accuracy", "log_loss", "precision", "recall", "f1", "top_k"]
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(y, v.argmax(1), sample_weight=w), rel=1e-13)
    assert found["log_loss"] == pytest.approx(sklearn.log_loss(y, p, sample_weight=w), rel=1e-12)


def _by_class(found: Any, y: np.ndarray, predicted: np.ndarray, w: np.ndarray | None, average: str) -> None:
    values = found.values()
    for name in ("precision", "recall", "f1"):
        peer = getattr(sklearn, f"{name}_score")
        expected = peer(y, predicted, average=average, zero_division=0, sample_weight=w)
        assert values[name] == pytest.approx(expected, rel=1e-13, abs=1e-300), name
    labels = range(found.confusion.hit.size)
    np.testing.assert_allclose(
        found.tables()["confusion"],
        sklearn.confusion_matrix(y, predicted, labels=list(labels), sample_weight=w),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("shift", [0.0, 0.7, 9.0, -9.0], ids=["even", "more", "all", "none"])
def test_two_classes_are_judged_by_the_positive_one(weighted: bool, shift: float) -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 300)
    v = rng.normal(loc=y - 0.5 + shift, size=300)
    w = _weight(weighted)
    one = folded(BinaryCrossEntropy(), v[:, None], y.astype(float), w, CUTS)
    two = folded(CategoricalCrossEntropy(), np.stack([-v / 2, v / 2], axis=1), y, w, CUTS)
    for found in (one, two):
        _by_class(found, y, (v > 0).astype(int), w, "binary")
        assert found.values()["top_k"] == 1.0


@pytest.mark.parametrize("absent", [(), (3,), (0, 7)], ids=["all there", "one absent", "two absent"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_many_classes_are_averaged_over_those_that_occur(weighted: bool, absent: Any, one_hot: bool) -> None:
    """A class that occurs neither as label nor as prediction does not count; one that is never hit counts 0."""
    rng = np.random.default_rng(2)
    y = rng.choice([c for c in range(8) if c not in absent], 300)
    v = rng.normal(size=(300, 8)) + 1.5 * np.eye(8)[y] * (y != 5)[:, None]
    v[:, list(absent)] = -9.0
    v[y == 4, 6] += 9.0
    w = _weight(weighted)
    if w is not None:
        w[y == 1] = 0.0
    found = folded(CategoricalCrossEntropy(), v, np.eye(8)[y] if one_hot else y, w, CUTS)
    _by_class(found, y, v.argmax(axis=1), w, "macro")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(3, 9), cut=st.integers(0, 12), weights=st.booleans())
def test_top_k_is_scikit_learns_with_ties(seed: int, classes: int, cut: int, weights: bool) -> None:
    rng = np.random.default_rng(seed)
    y, v = rng.integers(0, classes, 12), rng.integers(-2, 3, (12, classes)).astype(float)
    w = rng.uniform(0.1, 2.0, 12) if weights else None
    found = folded(CategoricalCrossEntropy(), v, y, w, [0, cut, 12]).values()["top_k"]
    if classes <= 5:
        assert found == 1.0
    else:
        labels = np.arange(classes)
        expected = sklearn.top_k_accuracy_score(y, v, k=5, labels=labels, sample_weight=w)
        assert found == pytest.approx(expected, rel=1e-13)


def test_counts_are_whole_numbers_and_a_huge_matrix_is_left_out() -> None:
    y, v = np.array([0, 2, 2]), np.eye(3)[[0, 1, 2]]
    table = metric_sums(CategoricalCrossEntropy(), v, y, None).tables()["confusion"]
    assert json.dumps(table) == "[[1, 0, 0], [0, 0, 0], [0, 1, 1]]"
    halves = metric_sums(CategoricalCrossEntropy(), v, y, np.full(3, 0.5)).tables()["confusion"]
    assert json.dumps(halves) == "[[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]]"
    many = metric_sums(CategoricalCrossEntropy(), np.eye(MOST_CLASSES + 1)[:3], np.array([0, 1, 1]), None)
    assert many.tables() == {}
    assert many.values()["accuracy"] == pytest.approx(2 / 3)
    assert many.values()["recall"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metric_sums(SquaredLoss(), v, v, None).tables() == {}


@pytest.mark.parametrize(
    "loss",
    [*(LOSSES[k]() for k in ("perceptron", "hinge", "squared_hinge")), SignedSquaredLoss()],
    ids=lambda v: v.name,
)
def test_signs_have_scores_and_no_log_loss(loss: Any, weighted: bool) -> None:
    rng = np.random.default_rng(1)
    y = 2.0 * rng.integers(0, 2, 300) - 1.0
    v = np.round(rng.normal(loc=y, scale=2.0), 0)
    w = _weight(weighted)
    found = folded(loss, v[:, None], y, w, CUTS)
    values = found.values()
    assert list(values) == ["loss", "accuracy", "auc", "precision", "recall", "f1", "top_k"]
    assert (v == 0).any()
    sign = np.where(v >= 0, 1.0, -1.0)
    assert values["accuracy"] == pytest.approx(sklearn.accuracy_score(y, sign, sample_weight=w), rel=1e-13)
    assert values["auc"] == pytest.approx(sklearn.roc_auc_score(y, v, sample_weight=w), rel=1e-12)
    _by_class(found, (y > 0).astype(int), (v >= 0).astype(int), w, "binary")
    if loss.name == "hinge":
        assert values["loss"] == pytest.approx(sklearn.hinge_loss(y, v, sample_weight=w), rel=1e-13)


def test_names_of_metrics_are_those_of_the_sums() -> None:
    cases: list[tuple[Any, int, Any]] = [
        (SquaredLoss(), 2, np.ones((3, 2))),
        (BinaryCrossEntropy(), 1, np.ones(3)),
        (LOSSES["hinge"](), 1, np.ones(3)),
        (CategoricalCrossEntropy(), 2, np.ones(3, dtype=int)),
        (CategoricalCrossEntropy(), 3, np.ones(3, dtype=int)),
    ]
    for loss, outputs, y in cases:
        assert metric_names(loss, outputs) == tuple(metric_sums(loss, np.ones((3, outputs)), y, None).values())


def test_all_right_is_exactly_one() -> None:
    rng = np.random.default_rng(0)
    y, w = rng.integers(0, 7, 1000), rng.uniform(size=1000)
    found = metric_sums(CategoricalCrossEntropy(), np.eye(7)[y], y, w).values()
    assert [found[k] for k in ("accuracy", "precision", "recall", "f1", "top_k")] == [1.0] * 5


def test_log_loss_is_not_clipped() -> None:
    found = metric_sums(BinaryCrossEntropy(), np.array([[1e4]]), np.array([0.0]), None).values()
    assert found["log_loss"] == 1e4


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.integers(-5, 5), min_size=2, max_size=60),
    seed=st.integers(0, 1000),
    cut=st.integers(0, 60),
)
def test_auc_is_exact_on_few_scores(scores: list[int], seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    v, y = np.array(scores, dtype=float), rng.integers(0, 2, len(scores)).astype(bool)
    w = rng.integers(0, 4, len(scores)).astype(float)
    merged = Ranking.of(v[:cut], y[:cut], w[:cut]).merge(Ranking.of(v[cut:], y[cut:], w[cut:]))
    wins = (v[y][:, None] > v[~y]) + 0.5 * (v[y][:, None] == v[~y])
    pairs = w[y][:, None] * w[~y]
    if pairs.sum() == 0:
        assert math.isnan(merged.auc())
    else:
        assert merged.auc() == pytest.approx(float((pairs * wins).sum() / pairs.sum()), rel=1e-12, abs=1e-15)


N = 300_000


def _normal(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y = rng.random(N) < 0.3
    return rng.normal(loc=y * 1.0), y


def _useless(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=N), rng.random(N) < 0.3


def _drifting(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    v, y = _normal(rng)
    order = np.argsort(v)
    return v[order], y[order]


def _crowded(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    v, y = _normal(rng)
    return np.where(rng.random(N) < 0.95, 3.0 + 1e-9 * v, 1e3 * v), y


def _tied(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    v, y = _normal(rng)
    return np.where(rng.random(N) < 0.5, 0.25, v), y


def _rare(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y = rng.random(N) < 0.001
    return rng.normal(loc=2.0 * y), y


def _one_class_after_the_other(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    v, y = _normal(rng)
    order = np.argsort(y, kind="stable")
    return v[order], y[order]


def _nearly_separated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y = rng.random(N) < 0.3
    return rng.normal(loc=6.0 * y), y


@pytest.mark.parametrize(
    "case",
    [_normal, _useless, _drifting, _crowded, _tied, _rare, _one_class_after_the_other, _nearly_separated],
)
@pytest.mark.parametrize("blocks", [37, 600])
def test_auc_of_many_scores_is_bounded_and_close(case: Any, blocks: int) -> None:
    """Blocks merged one after the other, the worst shape of a fold, and weights."""
    v, y = case(np.random.default_rng(3))
    w = np.random.default_rng(4).uniform(0.5, 2, v.size)
    total = None
    for part in np.array_split(np.arange(v.size), blocks):
        block = Ranking.of(v[part], y[part], w[part])
        total = block if total is None else total.merge(block)
        assert total.score.size <= LIMIT
    assert total is not None
    assert total.auc() == pytest.approx(sklearn.roc_auc_score(y, v, sample_weight=w), abs=2e-5)
    assert total.positive.sum() + total.negative.sum() == pytest.approx(w.sum(), rel=1e-12)


def test_auc_knows_what_it_cannot_say() -> None:
    ones = np.ones(3)
    assert math.isnan(Ranking.of(np.arange(3.0), np.array([True] * 3), ones).auc())
    assert math.isnan(Ranking.of(np.array([]), np.array([], dtype=bool), np.array([])).auc())
    assert math.isnan(Ranking.of(np.array([1.0, np.nan, 2.0]), np.array([True, False, False]), ones).auc())
    infinite = Ranking.of(np.array([-np.inf, 0.0, np.inf]), np.array([False, False, True]), ones)
    assert infinite.auc() == 1.0


def test_many_scores_without_weight_stay_bounded() -> None:
    n = LIMIT + 10
    ranking = Ranking.of(np.arange(float(n)), np.ones(n, dtype=bool), np.zeros(n))
    assert ranking.score.size <= LIMIT
    assert math.isnan(ranking.auc())


def test_no_rows_are_neutral() -> None:
    rng = np.random.default_rng(0)
    for loss, v, y in (
        (SquaredLoss(), rng.normal(size=(5, 2)), rng.normal(size=(5, 2))),
        (BinaryCrossEntropy(), rng.normal(size=(5, 1)), np.array([0.0, 1, 0, 1, 1])),
        (CategoricalCrossEntropy(), rng.normal(size=(5, 3)), np.array([0, 1, 2, 1, 1])),
    ):
        expected = metric_sums(loss, v, y, None).values()
        left: Any = metric_sums(loss, v[:0], y[:0], None).merge(metric_sums(loss, v, y, None))
        right: Any = metric_sums(loss, v, y, None).merge(metric_sums(loss, v[:0], y[:0], None))
        assert left.values() == pytest.approx(expected, rel=1e-15)
        assert right.values() == pytest.approx(expected, rel=1e-15)
        assert all(math.isnan(x) for x in metric_sums(loss, v[:0], y[:0], None).values().values())


def test_a_block_is_judged_by_what_the_model_predicts(rows_of: Any, params_of: Any) -> None:
    """Values after the output activation for regression, logits for classification."""
    model = MLP(3, (4,), 2, SquaredLoss(), output_activation="sigmoid")
    rows, params = rows_of(model, weighted=True), params_of(model)
    found = evaluate_block(model, params, *rows)
    assert found.loss / found.weight == pytest.approx(np.divide(*model.loss_sum(params, *rows)), rel=1e-14)
    error = (model.predict(params, rows.X) - rows.y) ** 2
    assert found.values()["mse"] == pytest.approx(np.average(error.mean(axis=1), weights=rows.weight), rel=1e-13)

    logistic = LinearModel(3, 1, BinaryCrossEntropy())
    rows, params = rows_of(logistic, weighted=True), params_of(logistic)
    judged = evaluate_block(logistic, params, *rows)
    right = (logistic.predict(params, rows.X)[:, 1] > 0.5) == rows.y
    assert judged.values()["accuracy"] == pytest.approx(np.average(right, weights=rows.weight), rel=1e-14)


def test_ties_go_to_the_first_class() -> None:
    binary, categorical = BinaryCrossEntropy(), CategoricalCrossEntropy()
    np.testing.assert_array_equal(predicted_class(binary, np.array([[0.0], [1e-9], [-1.0]])), [0, 1, 0])
    np.testing.assert_array_equal(predicted_class(LOSSES["hinge"](), np.array([[0.0], [-0.0], [-1.0]])), [1, 1, 0])
    np.testing.assert_array_equal(predicted_class(categorical, np.array([[0.0, 0.0], [1.0, 2.0]])), [0, 1])


def test_the_conf_knows_every_metric_that_is_a_number() -> None:
    from bigopt.config import names

    number = metric_sums(SquaredLoss(), np.ones((3, 1)), np.ones(3), None)
    classes = metric_sums(BinaryCrossEntropy(), np.ones((3, 1)), np.ones(3), None)
    assert {*names.METRICS} == {*number.values(), *classes.values()} - {"loss"}
