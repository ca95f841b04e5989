"""The area under the ROC curve as a mergeable sum of bounded size.

AUC is the chance that a random positive scores above a random negative, ties counted half. It needs the order of the
scores only, so a sorted list of distinct scores, with the weight of positives and of negatives at each, is all one has
to keep; two such lists merge by sorting them together. That is exact. When a list grows beyond `LIMIT` scores, runs of
neighbours are joined until `KEPT` are left, each run holding at most a 1/KEPT share of the positives and negatives
(or a single score). Pairs within a run then count half: one joining moves the AUC by at most 1/(2 KEPT), 1.6e-5. The
order within a run is nearly random, so hundreds of joinings together stay some 1e-8 to 1e-6 from the exact value.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire

Array = npt.NDArray[np.float64]

LIMIT: Final = 1 << 16
KEPT: Final = 1 << 15


@wire
class Ranking(NamedTuple):
    """Weights of positives and negatives at sorted distinct scores.

    Parameters
    ----------
    score : ndarray, shape (k,), float64
        Rising; k is at most `LIMIT`.
    positive, negative : ndarray, shape (k,), float64
        sum s_i over the positive and the negative rows at each score.
    """

    score: Array
    positive: Array
    negative: Array

    @classmethod
    def of(cls, score: npt.NDArray[Any], positive: npt.NDArray[np.bool_], weight: Array) -> Ranking:
        """Build from rows: scores, whether each is positive, and weights, all of shape (rows,)."""
        weight = weight.astype(np.float64, copy=False)
        return _sorted(score.astype(np.float64), np.where(positive, weight, 0.0), np.where(positive, 0.0, weight))

    def merge(self, other: Ranking) -> Ranking:
        """Merge two lists."""
        return _sorted(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def auc(self) -> float:
        """Return the area under the ROC curve; NaN where one class has no weight, or a score is NaN."""
        positives, negatives = float(self.positive.sum()), float(self.negative.sum())
        if positives == 0.0 or negatives == 0.0 or np.isnan(self.score[-1]):
            return math.nan
        below = np.cumsum(self.negative) - 0.5 * self.negative
        return float((self.positive * below).sum() / (positives * negatives))


def _sorted(score: Array, positive: Array, negative: Array) -> Ranking:
    """Sort by score, join equal scores, and join neighbours where there are too many."""
    order = np.argsort(score, kind="stable")
    score = score[order]
    fresh = np.ones(score.size, dtype=np.bool_)
    np.not_equal(score[1:], score[:-1], out=fresh[1:])
    starts = np.flatnonzero(fresh)
    if starts.size == 0:
        return Ranking(score, positive, negative)
    ranking = Ranking(score[starts], np.add.reduceat(positive[order], starts), np.add.reduceat(negative[order], starts))
    return ranking if starts.size <= LIMIT else _joined(ranking)


def _joined(ranking: Ranking) -> Ranking:
    """Join neighbours of small weight; a run keeps the score at the middle of its weight."""
    parts = [part / part.sum() for part in (ranking.positive, ranking.negative) if part.any()]
    if not parts:
        return Ranking(ranking.score[:1], ranking.positive[:1], ranking.negative[:1])
    share = sum(parts[1:], start=parts[0]) / len(parts)
    upto = np.cumsum(share)
    cell = np.minimum((upto - 0.5 * share) * KEPT, KEPT - 1).astype(np.int64)
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    stops = np.append(starts[1:], cell.size)
    middle = (upto[starts] - share[starts] + upto[stops - 1]) / 2
    index = np.clip(np.searchsorted(upto, middle), starts, stops - 1)
    return Ranking(
        ranking.score[index],
        np.add.reduceat(ranking.positive, starts),
        np.add.reduceat(ranking.negative, starts),
    )
