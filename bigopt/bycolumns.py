"""Metrics of a linear model whose rows no process may hold whole: by blocks of columns.

The rows are taken in groups of whole partitions whose margins are a few megabytes; of each group every block gives its
partial margins in one round, and the driver makes the metrics of their sum. So a worker holds its own columns only, the
driver the margins of a group, and the data are read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.backends.base import Session
from bigopt.backends.ledger import Rounds
from bigopt.core.errors import DataError
from bigopt.core.sums import merge
from bigopt.data.columnview import block_homes
from bigopt.data.plan import Ints, whole
from bigopt.models.linear import LinearModel
from bigopt.models.metrics import MetricSums, metric_sums
from bigopt.work_columns import Margins, PartialMargins, leaves

GROUP: Final = 1 << 20
"""Margins of a group, about."""

Array = npt.NDArray[Any]


def groups(counts: Ints, outputs: int) -> Iterator[Ints]:
    """Yield partitions in groups of about `GROUP` margins, at least one partition each."""
    used = np.flatnonzero(counts)
    number = np.cumsum(counts[used]) * outputs // GROUP
    for value in np.unique(number):
        yield used[number == value]


def metrics_by_columns(
    session: Session, rounds: Rounds, model: LinearModel, params: Array, work: PartialMargins, counts: Ints
) -> MetricSums:
    """Return the metric sums of all used rows.

    Parameters
    ----------
    session : Session
    rounds : Rounds
    model : LinearModel
    params : ndarray, shape (p,)
    work : PartialMargins
        Of the rows to evaluate.
    counts : ndarray, shape (P,)
        Used rows of each partition.
    """
    columns, total = work.columns, None
    weights = params[columns.parameters(0, columns.blocks)]
    for partitions in groups(counts, model.outputs):
        units = whole(partitions, counts)
        found: Margins = rounds.run(
            session,
            work,
            (np.zeros(1, dtype=np.int64), units, weights),
            leaves(columns.blocks, int(units[:, 3].sum())),
            lambda slots: block_homes(columns.blocks, slots),
            "an evaluation",
        )
        v = found.values + params[-model.outputs :] if model.intercept else found.values
        assert found.y is not None, "the first block brings the labels"
        sums = metric_sums(model.loss, v, found.y, found.weight)
        total = sums if total is None else merge(total, sums)
    if total is None:
        raise DataError("no rows were evaluated")
    result: MetricSums = total
    return result
