"""Metrics as mergeable sums: built block by block where the rows are, merged along the tree, divided on the driver.

There are two kinds of sums: `RegressionSums` and `ClassSums`. All are weighted by s_i and accumulate in float64.

=====================  ====================================================================
loss                   mean of the model's own loss, without penalty
mse, rmse, mae         mean over rows, averaged over the outputs; rmse is the root of mse
r2                     1 - sum e^2 / sum (y - mean)^2 of each output, averaged over them
accuracy               share of the weight whose predicted class is right
log_loss               mean of -log p(true class), from the logits: never clipped; none without probabilities
auc                    area under the ROC curve (two classes) of the scores, see `bigopt.models.ranking`
precision, recall, f1  of the positive one of two classes, else macro: `bigopt.models.confusion`
top_k                  share of the weight whose class is among the five largest scores
confusion              weights by actual and predicted class, a matrix
=====================  ====================================================================
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from bigopt.core.arrays import to_host
from bigopt.core.codec import wire
from bigopt.core.sums import Moments, added
from bigopt.models.base import Model
from bigopt.models.confusion import Confusion
from bigopt.models.losses import Loss
from bigopt.models.ranking import Ranking

Array = npt.NDArray[np.float64]

TOP_K: Final = 5
_ORDER: Final = ("loss", "accuracy", "log_loss", "auc", "precision", "recall", "f1", "top_k")


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
        """Return the metrics that are numbers by name; NaN where the rows do not determine one."""
        ...

    def tables(self) -> dict[str, list[list[float]]]:
        """Return the metrics that are tables by name."""
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

    def tables(self) -> dict[str, list[list[float]]]:
        """Return nothing."""
        return {}


@wire
class ClassSums(NamedTuple):
    """Sums for classes.

    Parameters
    ----------
    loss, weight : float
        sum s_i loss_i and sum s_i.
    rows : int
    log_loss : bool
        Whether the loss is a cross-entropy: then its mean is the log loss.
    near : float
        sum s_i over the rows whose class is among those with the `TOP_K` largest scores.
    confusion : Confusion
        By class.
    ranking : Ranking or None
        For the AUC of two classes.
    """

    loss: float
    weight: float
    rows: int
    log_loss: bool
    near: float
    confusion: Confusion
    ranking: Ranking | None

    def merge(self, other: ClassSums) -> ClassSums:
        """Add the sums of other rows."""
        ranking = self.ranking
        if ranking is not None and other.ranking is not None:
            ranking = ranking.merge(other.ranking)
        return ClassSums(
            self.loss + other.loss,
            self.weight + other.weight,
            self.rows + other.rows,
            self.log_loss,
            self.near + other.near,
            self.confusion.merge(other.confusion),
            ranking,
        )

    def values(self) -> dict[str, float]:
        """Return loss, accuracy, log_loss (of a cross-entropy), auc (of two classes), precision, recall, f1, top_k."""
        loss = _ratio(self.loss, self.weight)
        found = {"loss": loss, **self.confusion.values(), "top_k": _ratio(self.near, self.weight)}
        if self.log_loss:
            found["log_loss"] = loss
        if self.ranking is not None:
            found["auc"] = self.ranking.auc()
        return {name: found[name] for name in _ORDER if name in found}

    def tables(self) -> dict[str, list[list[float]]]:
        """Return the confusion matrix, unless there are too many classes."""
        matrix = self.confusion.table()
        return {} if matrix is None else {"confusion": matrix}


def metric_names(loss: Loss, outputs: int) -> tuple[str, ...]:
    """Return the names of the metrics that are numbers, for a model's loss and number of outputs."""
    if loss.task == "regression":
        return ("loss", "mse", "rmse", "mae", "r2")
    absent = (*(["log_loss"] if loss.task == "sign" else []), *(["auc"] if outputs > 2 else []))
    return tuple(name for name in _ORDER if name not in absent)


def predicted_class(loss: Loss, scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the index of the predicted class of each row, shape (rows,).

    Parameters
    ----------
    loss : Loss
        The model's.
    scores : ndarray, shape (rows, q)
        One logit: class 1 where it is above 0. One score of a loss on -1 and +1: class 1 where it is 0 or above.
        Several: the largest, the first of equals.
    """
    if scores.shape[1] > 1:
        return np.asarray(np.argmax(scores, axis=1), dtype=np.int64)
    score = scores[:, 0]
    return (score >= 0 if loss.task == "sign" else score > 0).astype(np.int64)


def _near(scores: Array, actual: npt.NDArray[np.int64], weight: Array) -> float:
    """Return the weight of the rows with fewer than `TOP_K` classes before their own; of equals the last is first."""
    if scores.shape[1] <= TOP_K:
        return float(weight.sum())
    own = np.take_along_axis(scores, actual[:, None], axis=1)
    later = np.arange(scores.shape[1]) > actual[:, None]
    before = np.where(later, ~(scores < own), ~(scores <= own)).sum(axis=1)  # NaN is before everything
    return float(weight[before < TOP_K].sum())


def metric_sums(
    loss: Loss, values: npt.NDArray[Any], y: npt.NDArray[Any], weight: npt.NDArray[Any] | None
) -> RegressionSums | ClassSums:
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
    one = values.shape[1] == 1
    label = np.argmax(y, axis=1) if y.ndim == 2 and not one else y.reshape(-1)
    actual = (label > 0 if one else label).astype(np.int64)
    classes = max(2, values.shape[1])
    confusion = Confusion.of(actual, predicted_class(loss, values), s, classes)
    ranking = None
    if classes == 2:
        margin = values[:, 0] if values.shape[1] == 1 else values[:, 1] - values[:, 0]
        ranking = Ranking.of(margin, actual == 1, s)
    return ClassSums(loss_sum, total, rows, loss.task != "sign", _near(values, actual, s), confusion, ranking)


def evaluate_block(model: Model, params: Any, X: Any, y: Any, weight: Any | None) -> RegressionSums | ClassSums:
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
