"""Features and logits at the edge of what numbers can hold: a finite loss or one clear error, never a warning."""

from __future__ import annotations

import numpy as np
import pytest
from problems import run

from bigopt.core.errors import BigoptError, DataError, DivergedError
from bigopt.data.memory import from_arrays
from bigopt.facts import Datasets

N = 60
ROWS = np.random.default_rng(0).normal(size=(N, 3))
NUMBERS = ROWS[:, 0] + 0.3 * np.random.default_rng(1).normal(size=N)
CLASSES = (ROWS[:, 0] + 0.5 * np.random.default_rng(2).normal(size=N) > 0) * 1

SEARCHES = {
    "sgd": ["optimizer.name=sgd"],
    "adam": ["optimizer.name=adam"],
    "newton": ["optimizer.name=newton"],
    "lbfgs": ["optimizer.name=lbfgs"],
    "owlqn": ["optimizer.name=lbfgs", "model.l1=0.1"],
    "exact": ["optimizer.name=gd", "schedule.name=exact_line_search"],
    "backtracking": ["optimizer.name=gd", "schedule.name=backtracking"],
}
MODELS = {
    "huber": (NUMBERS, ["model.name=linear", "model.loss=huber"]),
    "logistic": (CLASSES, ["model.name=logistic"]),
    "mlp": (CLASSES, ["model.name=mlp", "model.hidden=[4]", "data.task=classification"]),
}


def outcome(tmp_path, X: np.ndarray, model: str, search: str, *keys: str) -> float | BigoptError:
    """Train four steps; return the loss, or the error of bigopt's own that ended it."""
    y, named = MODELS[model]
    data = Datasets(from_arrays(X, y, None, partition_rows=[40, 20]), None)
    try:
        return float(run(tmp_path, "", *named, *SEARCHES[search], *keys, "stop.steps=4", data=data)["loss"])
    except BigoptError as error:
        return error


def huge(columns: slice = slice(0, 1)) -> np.ndarray:
    X = ROWS.copy()
    X[:, columns] *= 1e300
    return X


@pytest.mark.parametrize("search", SEARCHES)
def test_features_near_1e300_as_they_are(tmp_path, search):
    for model in ("huber", "logistic"):
        found = outcome(tmp_path, huge(), model, search, "model.standardize=false")
        if isinstance(found, BigoptError):
            assert isinstance(found, DivergedError)
            assert found.where.startswith("step ")
            assert found.hint
        else:
            assert np.isfinite(found)
    if search in ("lbfgs", "owlqn", "exact", "backtracking"):
        assert "step 1: the gradient is too large to search along" in str(found)


@pytest.mark.parametrize(
    ("X", "keys", "message"),
    [
        (huge(), ["model.standardize=true"], r"the variance of column x0 overflows \("),
        (huge(slice(0, 2)), ["model.standardize=true"], r"the variance of column x0 overflows \(and of 1 more\)"),
        (huge(), ["model.whiten=true", "model.standardize=false"], "the covariance of the features overflows"),
    ],
)
def test_features_whose_variance_overflows_are_refused_by_name(tmp_path, X, keys, message):
    y, named = MODELS["huber"]
    data = Datasets(from_arrays(X, y, None, partition_rows=[40, 20]), None)
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path, "", *named, *keys, data=data)
    assert "data.features" in caught.value.hint


@pytest.mark.parametrize("model", MODELS)
def test_a_column_of_one_huge_number_is_constant(tmp_path, model):
    X = np.c_[ROWS, np.full(N, 1e299)]
    assert np.isfinite(outcome(tmp_path, X, model, "adam", "model.standardize=true"))


@pytest.mark.parametrize("search", SEARCHES)
def test_logits_of_1e4_and_constant_columns(tmp_path, search):
    """A saturated loss: the gradient of most rows is 0 to the last bit, and some columns say nothing at all."""
    X = np.c_[1e4 * ROWS, np.full(N, 3.0), np.zeros(N)]
    found = outcome(tmp_path, X, "logistic", search, "model.standardize=false")
    if search == "newton":
        assert isinstance(found, DivergedError)
        assert "singular" in str(found)
    else:
        assert np.isfinite(found)
    scaled = outcome(tmp_path, X, "logistic", search, "model.standardize=true", "model.l2=0.01")
    assert np.isfinite(scaled)
    if search not in ("sgd", "adam"):  # whose four steps go nowhere yet
        assert scaled < 0.7


@pytest.mark.parametrize("search", ["adam", "lbfgs", "newton"])
def test_rows_without_any_information(tmp_path, search):
    """All columns constant: what is left is the intercept, and its best is the mean."""
    found = outcome(tmp_path, np.full((N, 2), 7.0), "logistic", search, "model.l2=0.01", "schedule.learning_rate=1")
    p = CLASSES.mean()
    least = -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert found == pytest.approx(least, rel=1e-6 if search != "adam" else 0.5)


@pytest.mark.parametrize("search", ["sgd", "lbfgs", "newton"])
def test_one_class_is_one_clear_error_or_finite(tmp_path, search):
    y, X = np.ones(N, dtype=np.int64), ROWS
    data = Datasets(from_arrays(X, y, None, partition_rows=[40, 20]), None)
    with pytest.raises(DataError, match="one class only"):
        run(tmp_path, "", "model.name=logistic", *SEARCHES[search], data=data)
    keys = ["model.name=logistic", "data.classes=[0, 1]", "model.l2=0.1", "model.intercept=false", "stop.steps=6"]
    assert np.isfinite(run(tmp_path, "", *keys, *SEARCHES[search], data=data)["loss"])
