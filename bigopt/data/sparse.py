"""Sparse rows as sources hand them out: checked CSR, some of its columns, and partitions by nonzeros.

A partition of sparse rows is chosen by the values it stores, not by d: about 16 MB of them, at least 8 partitions where
there are enough rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.core.csr import CSR
from bigopt.core.errors import DataError
from bigopt.data.source import MIN_PARTITIONS, PARTITION_BYTES, PARTITION_ROWS

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

MAX_COLUMNS = 1 << 40
"""Most columns of sparse data."""
ROW_BYTES = 8
"""Bytes of a row beside its values: where it starts."""


def checked(X: CSR, place: Callable[[int], str]) -> CSR:
    """Return the rows, verified: bounds that grow and end at the last value, columns in range and increasing.

    Parameters
    ----------
    X : CSR
    place : callable
        Says where a row of X lies, for messages.

    Raises
    ------
    DataError
        Naming the first wrong row.
    """
    hint = "damaged, or columns not sorted: X.sum_duplicates() of SciPy sorts them and adds up what stands twice"
    counts = np.diff(X.indptr)
    if len(counts) and (int(counts.min()) < 0 or int(X.indptr[0]) != 0 or int(X.indptr[-1]) != len(X.data)):
        row = int(np.argmin(counts))
        found = f"row bounds {int(X.indptr[row])} to {int(X.indptr[row + 1])} of {len(X.data)} values"
        raise DataError(found, where=place(row), hint="damaged: restore the data or write it again")
    if len(X.indices) != len(X.data):
        raise DataError(f"{len(X.indices)} columns for {len(X.data)} values", where=place(0), hint=hint)
    if not len(X.indices):
        return X
    wrong = -1
    if int(X.indices.min()) < 0 or int(X.indices.max()) >= X.columns:
        wrong = int(np.argmax((X.indices < 0) | (X.indices >= X.columns)))
        found = f"column {int(X.indices[wrong])} of {X.columns}"
    rising = X.indices[1:] > X.indices[:-1]
    starts = X.indptr[1:-1]
    rising[starts[(starts > 0) & (starts < len(X.indices))] - 1] = True
    if wrong < 0 and not rising.all():
        wrong = int(np.argmin(rising)) + 1
        found = f"column {int(X.indices[wrong])} after column {int(X.indices[wrong - 1])}"
    if wrong >= 0:
        raise DataError(found, where=place(int(np.searchsorted(X.indptr, wrong, side="right")) - 1), hint=hint)
    return X


def picked(X: CSR, picks: Ints | None) -> CSR:
    """Return some columns of some rows, in the order asked for.

    Parameters
    ----------
    X : CSR
    picks : ndarray, shape (d',), int64, or None
        The columns wanted; None: all.
    """
    if picks is None:
        return X
    order = np.argsort(picks, kind="stable")
    at = np.minimum(np.searchsorted(picks, X.indices, sorter=order), max(0, len(picks) - 1))
    new = order[at]
    kept = np.asarray(picks[new] == X.indices)
    indptr = np.concatenate([[0], np.cumsum(kept)])[X.indptr].astype(np.int64)
    data, indices = X.data[kept], new[kept].astype(np.int64)
    if np.any(np.diff(picks) < 0):
        rows = np.repeat(np.arange(len(X)), np.diff(indptr))
        order = np.lexsort((indices, rows))
        data, indices = data[order], indices[order]
    return CSR(data, indices, indptr, len(picks))


def cut_by_nonzeros(starts: Ints, nonzeros: Ints, item: int) -> Ints:
    """Return which of some rows begin a partition.

    Parameters
    ----------
    starts : ndarray, shape (k + 1,), int64
        Rows at which a partition may begin, then n.
    nonzeros : ndarray, shape (k + 1,), int64
        Values before each of them.
    item : int
        Bytes of a value and its column.

    Returns
    -------
    ndarray of int64
        Places in `starts`, the first 0, the last k.
    """
    size = nonzeros * item + starts * ROW_BYTES
    limit = max(1, min(PARTITION_BYTES, -(-int(size[-1] - size[0]) // MIN_PARTITIONS)))
    cuts = [0]
    while cuts[-1] < len(starts) - 1:
        here = cuts[-1]
        far = int(np.searchsorted(size, size[here] + limit, side="right")) - 1
        far = min(far, int(np.searchsorted(starts, starts[here] + PARTITION_ROWS, side="right")) - 1)
        cuts.append(max(here + 1, far))
    return np.array(cuts, dtype=np.int64)


def from_scipy(X: Any) -> CSR:
    """Return a SciPy CSR matrix or array as `CSR`, sharing its values.

    Raises
    ------
    DataError
        For another format, and for rows whose columns are not sorted.
    """
    if X.format != "csr":
        raise DataError(f"a sparse matrix in {X.format} format", hint="X.tocsr()")
    rows = CSR(X.data, X.indices, np.asarray(X.indptr, dtype=np.int64), int(X.shape[1]))
    return checked(rows, lambda row: f"row {row} in memory")
