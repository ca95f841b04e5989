"""Metrics as mergeable sums: built block by block where the rows are, merged along the tree, divided on the driver.

There is one kind of sums a task: `RegressionSums`, `BinarySums` (two classes, whether the model has one logit or two)
and `ClassSums`. All are weighted by s_i and accumulate in float64.

==============  ====================================================================
loss            mean of the model's own loss, without penalty
mse, rmse, mae  mean over rows, averaged over the outputs; rmse is the root of mse
r2              1 - sum e^2 / sum (y - mean)^2 of each output, averaged over them
accuracy        share of the weight whose predicted class is right
log_loss        mean of -log p(true class), from the logits: never clipped
auc             area under the ROC curve (two classes), see `bigopt.models.ranking`
==============  ====================================================================
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from bigopt.core.arrays import to_host
from bigopt.core.codec import wire
from bigopt.core.sums import Moments, added
from bigopt.models.base import Model
from bigopt.models.losses import Loss
from bigopt.models.ranking import Ranking

Array = npt.NDArray[np.float64]


class MetricSums(Protocol):
    """What `metric_sums` returns: a value that a tree can fold and that travels."""

    @property
    def weight(self) -> float:
        """sum_i s_i."""
        ...

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    def merge(self, other: Self) -> Self:
        """Add the sums of other rows."""
        ...

    def values(self) -> dict[str, float]:
        """Return the metrics by name; NaN where the rows do not determine one."""
        ...


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


@wire
class RegressionSums(NamedTuple):
    """Sums for numbers.

    Parameters
    ----------
    loss, weight : float
        sum s_i loss_i and sum s_i.
    rows : int
    squared, absolute : ndarray, shape (q,), float64
        sum s_i e_i^2 and sum s_i |e_i| of each output.
    target : Moments
        Of y, for r2.
    """

    loss: float
    weight: float
    rows: int
    squared: Array
    absolute: Array
    target: Moments

    def merge(self, other: RegressionSums) -> RegressionSums:
        """Add the sums of other rows."""
        return RegressionSums(
            self.loss + other.loss,
            self.weight + other.weight,
            self.rows + other.rows,
            added(self.squared, other.squared),
            added(self.absolute, other.absolute),
            self.target.merge(other.target),
        )

    def values(self) -> dict[str, float]:
        """Return loss, mse, rmse, mae and r2.

        A constant target has r2 = 1 where every error is 0, else 0; fewer than two rows have none (NaN).
        """
        mse = _ratio(float(self.squared.mean()), self.weight)
        spread = self.target.spread
        known = spread > 0.0
        r2 = np.where(known, 1.0 - self.squared / np.where(known, spread, 1.0), np.where(self.squared == 0.0, 1.0, 0.0))
        r2[np.isnan(self.squared)] = math.nan
        return {
            "loss": _ratio(self.loss, self.weight),
            "mse": mse,
            "rmse": math.sqrt(mse),
            "mae": _ratio(float(self.absolute.mean()), self.weight),
            "r2": float(r2.mean()) if self.rows > 1 and self.weight else math.nan,
        }


@wire
class BinarySums(NamedTuple):
    """Sums for two classes.

    Parameters
    ----------
    loss, weight : float
        sum s_i loss_i and sum s_i; the loss is a cross-entropy, so its mean is the log loss.
    rows : int
    correct : float
        sum s_i over the rows whose predicted class is right.
    ranking : Ranking
        For the AUC.
    """

    loss: float
    weight: float
    rows: int
    correct: float
    ranking: Ranking

    def merge(self, other: BinarySums) -> BinarySums:
        """Add the sums of other rows."""
        return BinarySums(
            self.loss + other.loss,
            self.weight + other.weight,
            self.rows + other.rows,
            self.correct + other.correct,
            self.ranking.merge(other.ranking),
        )

    def values(self) -> dict[str, float]:
        """Return loss, accuracy, log_loss and auc."""
        loss = _ratio(self.loss, self.weight)
        accuracy = _ratio(self.correct, self.weight)
        return {"loss": loss, "accuracy": accuracy, "log_loss": loss, "auc": self.ranking.auc()}


@wire
class ClassSums(NamedTuple):
    """Sums for three classes or more.

    Parameters
    ----------
    loss, weight : float
        sum s_i loss_i and sum s_i; the loss is a cross-entropy, so its mean is the log loss.
    rows : int
    correct : float
        sum s_i over the rows whose predicted class is right.
    """

    loss: float
    weight: float
    rows: int
    correct: float

    def merge(self, other: ClassSums) -> ClassSums:
        """Add the sums of other rows."""
        return ClassSums(
            self.loss + other.loss,
            self.weight + other.weight,
            self.rows + other.rows,
            self.correct + other.correct,
        )

    def values(self) -> dict[str, float]:
        """Return loss, accuracy and log_loss."""
        loss = _ratio(self.loss, self.weight)
        return {"loss": loss, "accuracy": _ratio(self.correct, self.weight), "log_loss": loss}


def predicted_class(scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the index of the predicted class of each row, shape (rows,).

    Parameters
    ----------
    scores : ndarray, shape (rows, q)
        One logit: class 1 where it is above 0. Several: the largest, the first of equals.
    """
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).astype(np.int64)
    return np.asarray(np.argmax(scores, axis=1), dtype=np.int64)


def metric_sums(
    loss: Loss, values: npt.NDArray[Any], y: npt.NDArray[Any], weight: npt.NDArray[Any] | None
) -> RegressionSums | BinarySums | ClassSums:
    """Build the sums of one block.

    Parameters
    ----------
    loss : Loss
        The model's; its task chooses the kind of sums.
    values : ndarray, shape (rows, q)
        Predicted values for regression, scores (logits) for classification.
    y : ndarray
        Targets as the loss takes them.
    weight : ndarray, shape (rows,), or None for ones
    """
    rows = values.shape[0]
    values = values.astype(np.float64, copy=False)
    s = np.ones(rows) if weight is None else weight.astype(np.float64, copy=False)
    total = float(s.sum())
    loss_sum = float((loss.value(values, y) * s).sum())
    if loss.task == "regression":
        target = y.reshape(values.shape).astype(np.float64, copy=False)
        error = np.abs(target - values)
        column = s[:, None]
        mean = (column * target).sum(axis=0) / total if total else np.zeros(values.shape[1])
        moments = Moments(total, mean, (column * (target - mean) ** 2).sum(axis=0))
        squared, absolute = (column * error**2).sum(axis=0), (column * error).sum(axis=0)
        return RegressionSums(loss_sum, total, rows, squared, absolute, moments)
    actual = (y if y.ndim == 1 else np.argmax(y, axis=1)).astype(np.int64)
    correct = float(s[predicted_class(values) == actual].sum())
    if loss.task == "binary" or values.shape[1] == 2:
        margin = values[:, 0] if values.shape[1] == 1 else values[:, 1] - values[:, 0]
        return BinarySums(loss_sum, total, rows, correct, Ranking.of(margin, actual == 1, s))
    return ClassSums(loss_sum, total, rows, correct)


def evaluate_block(
    model: Model, params: Any, X: Any, y: Any, weight: Any | None
) -> RegressionSums | BinarySums | ClassSums:
    """Predict one block on its device and build its sums on the host.

    Parameters
    ----------
    model : Model
    params : array, shape (p,)
        In X's dtype.
    X, y, weight : array
        As in `Model.grad_sum`.
    """
    values = model.predict(params, X) if model.loss.task == "regression" else model.scores(params, X)
    return metric_sums(model.loss, to_host(values), to_host(y), None if weight is None else to_host(weight))
