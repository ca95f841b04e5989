"""Shared by the models' tests: targets that suit a loss, blocks of rows, and every model that is built."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from bigopt.models.base import Model
from bigopt.models.losses import (
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    HingeLoss,
    HuberLoss,
    Loss,
    PerceptronLoss,
    SignedSquaredLoss,
    SquaredHingeLoss,
    SquaredLoss,
)


class Rows(NamedTuple):
    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None

    def __getitem__(self, rows: Any) -> Rows:  # type: ignore[override]
        return Rows(self.X[rows], self.y[rows], None if self.weight is None else self.weight[rows])


def make_rows(model: Model, *, n: int = 9, weighted: bool, seed: int = 1, one_hot: bool = False) -> Rows:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, model.features))
    y: np.ndarray
    if model.loss.task == "regression":
        y = rng.normal(scale=2.0, size=(n, model.outputs))
    elif model.loss.task == "binary":
        y = rng.integers(0, 2, n).astype(float)
    elif model.loss.task == "sign":
        y = 2.0 * rng.integers(0, 2, n) - 1.0
    else:
        y = rng.integers(0, model.outputs, n)
        y = np.eye(model.outputs)[y] if one_hot else y
    return Rows(X, y, rng.uniform(0.0, 3.0, n) if weighted else None)


def make_params(model: Model, *, seed: int = 2) -> np.ndarray:
    """Params with intercepts that are not zero, so that a lost intercept shows."""
    return np.random.default_rng(seed).normal(scale=0.7, size=model.layout.size)


LOSSES_AND_OUTPUTS: dict[str, tuple[Loss, int]] = {
    "squared": (SquaredLoss(), 1),
    "squared-3": (SquaredLoss(), 3),
    "huber": (HuberLoss(1.3), 1),
    "huber-3": (HuberLoss(0.7), 3),
    "binary": (BinaryCrossEntropy(), 1),
    "categorical": (CategoricalCrossEntropy(), 4),
    "perceptron": (PerceptronLoss(), 1),
    "hinge": (HingeLoss(), 1),
    "squared_hinge": (SquaredHingeLoss(), 1),
    "signed": (SignedSquaredLoss(), 1),
}


@pytest.fixture(params=list(LOSSES_AND_OUTPUTS))
def loss_outputs(request: pytest.FixtureRequest) -> tuple[Loss, int]:
    return LOSSES_AND_OUTPUTS[request.param]


@pytest.fixture(params=[False, True], ids=["unweighted", "weighted"])
def weighted(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def rows_of() -> Any:
    return make_rows


@pytest.fixture
def params_of() -> Any:
    return make_params
