"""Metrics of a linear model whose rows no process may hold whole: by blocks of columns.

The rows are taken in groups of whole partitions whose margins are a few megabytes; of each group every block gives its
partial margins in one round, and the driver makes the metrics of their sum. So a worker holds its own columns only, the
driver the margins of a group, and the data are read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.base import Session
from bigopt.backends.ledger import Rounds
from bigopt.core.errors import DataError
from bigopt.core.sums import merge
from bigopt.data.columnview import block_homes, column_views
from bigopt.data.plan import Ints, whole
from bigopt.data.rooms import finite_rows
from bigopt.data.view import DataView
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


class Scored(NamedTuple):
    """Scores of some rows.

    Parameters
    ----------
    values : ndarray, shape (rows, q)
        Those of a bad row are the intercepts.
    bad : ndarray of bool, shape (rows,)
        Rows with a value that is missing or not finite.
    """

    values: Array
    bad: npt.NDArray[np.bool_]


def scored(view: DataView, cuts: Ints, model: LinearModel, params: Array) -> Iterator[Scored]:
    """Yield the scores of each partition, read a block of columns at a time in this process.

    Parameters
    ----------
    view : DataView
        Scaled, without labels.
    cuts : ndarray, shape (B + 1,)
    model : LinearModel
    params : ndarray, shape (p,), in the block dtype
    """
    views, q = column_views(view, cuts), model.outputs
    for index in range(view.partitions):
        partition = view.partition(index)
        values, bad = np.zeros((partition.rows, q), dtype=view.dtype), np.zeros(partition.rows, dtype=np.bool_)
        for block, own in enumerate(views):
            weights = params[cuts[block] * q : cuts[block + 1] * q].reshape(-1, q)
            at = 0
            for rows in own.source.pieces(partition):
                X, part = np.array(rows.X, dtype=view.dtype, order="C"), slice(at, at + len(rows.X))
                if own.scaling is not None:
                    own.scaling.apply(X)
                wrong = ~finite_rows(X)
                X[wrong] = 0
                bad[part] |= wrong if rows.bad is None else wrong | rows.bad
                values[part] += X @ weights
                at = part.stop
        values[bad] = 0
        yield Scored(values + params[-q:] if model.intercept else values, bad)
