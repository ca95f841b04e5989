"""Right and wrong by class: the sums behind accuracy, precision, recall, f1 and the confusion matrix.

Three vectors say all but the matrix: for each class the weight that is predicted right, the weight that it has, and the
weight that is predicted as it. The matrix itself is kept for up to `MOST_CLASSES` classes.

=========  =============================
precision  hit / predicted
recall     hit / actual
f1         2 hit / (actual + predicted)
=========  =============================

A ratio without a denominator is 0. Two classes are judged by the positive one (class 1). More are averaged with equal
weight (macro) over the classes that occur, as a label or as a prediction, which is what scikit-learn does.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.sums import added

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

MOST_CLASSES: Final = 1000


@wire
class Confusion(NamedTuple):
    """Weights by actual and predicted class.

    Parameters
    ----------
    hit, actual, predicted : ndarray, shape (C,), float64
        sum s_i over the rows of each class that are predicted right, over all its rows, and over all rows that are
        predicted as it.
    seen : ndarray of bool, shape (C,)
        Classes that occur in rows or predictions, whatever their weight.
    matrix : ndarray, shape (C, C), float64
        Actual by predicted class; shape (0, 0) for more than `MOST_CLASSES` classes.
    """

    hit: Array
    actual: Array
    predicted: Array
    seen: npt.NDArray[np.bool_]
    matrix: Array

    @classmethod
    def of(cls, actual: Index, predicted: Index, weight: Array, classes: int) -> Confusion:
        """Build from rows: class indices and weights, all of shape (rows,)."""
        right = actual == predicted
        seen = np.zeros(classes, dtype=np.bool_)
        seen[actual] = seen[predicted] = True
        matrix = np.zeros((0, 0))
        if classes <= MOST_CLASSES:
            matrix = _weights(actual * classes + predicted, weight, classes * classes).reshape(classes, classes)
        return cls(
            _weights(actual[right], weight[right], classes),
            _weights(actual, weight, classes),
            _weights(predicted, weight, classes),
            seen,
            matrix,
        )

    def merge(self, other: Confusion) -> Confusion:
        """Add the weights of other rows."""
        return Confusion(
            added(self.hit, other.hit),
            added(self.actual, other.actual),
            added(self.predicted, other.predicted),
            self.seen | other.seen,
            added(self.matrix, other.matrix),
        )

    def values(self) -> dict[str, float]:
        """Return accuracy, precision, recall and f1; NaN where the rows have no weight."""
        total = float(self.actual.sum())
        if not total:
            return dict.fromkeys(("accuracy", "precision", "recall", "f1"), math.nan)
        judged = np.array([1]) if self.hit.size == 2 else np.flatnonzero(self.seen)
        hit, actual, predicted = self.hit[judged], self.actual[judged], self.predicted[judged]
        return {
            "accuracy": float(self.hit.sum()) / total,
            "precision": float(_share(hit, predicted).mean()),
            "recall": float(_share(hit, actual).mean()),
            "f1": float(_share(2.0 * hit, actual + predicted).mean()),
        }

    def table(self) -> list[list[float]] | None:
        """Return the matrix as lists, in integers where all are; None for more than `MOST_CLASSES` classes."""
        if not self.matrix.size:
            return None
        whole = bool((self.matrix == np.floor(self.matrix)).all())
        rows: list[list[float]] = (self.matrix.astype(np.int64) if whole else self.matrix).tolist()
        return rows


def _weights(index: Index, weight: Array, size: int) -> Array:
    """Return the weight at each index, shape (size,); bincount of nothing would be integers."""
    return np.bincount(index, weight, size).astype(np.float64, copy=False)


def _share(part: Array, whole: Array) -> Array:
    """Return part / whole of each class, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0.0)
