"""Sparse rows as sources hand them out: checked CSR, some of its columns, and partitions by nonzeros.

A partition of sparse rows is chosen by the values it stores, not by d: about 16 MB of them, at least 8 partitions where
there are enough rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.csr import CSR
from bigopt.core.errors import DataError
from bigopt.data.manifest import Manifest
from bigopt.data.source import MIN_PARTITIONS, PARTITION_BYTES, PARTITION_ROWS, Partition

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Picks = tuple[tuple[int, int], ...]

ROW_BYTES = 8
"""Bytes of a row beside its values: where it starts."""
PIECE_VALUES = 1 << 17
PIECE_ROWS = 1 << 16
_SCAN_ROWS = 1 << 12


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


def picked(X: CSR, picks: Picks | None) -> CSR:
    """Return some columns of some rows, in the order asked for.

    Parameters
    ----------
    X : CSR
    picks : tuple of (start, stop), or None
        Ranges of the columns wanted (`bigopt.data.columns.places`); None: all.
    """
    if picks is None:
        return X
    table = np.array(picks, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(table[:, 1] - table[:, 0])])
    order = np.argsort(table[:, 0], kind="stable")
    table, begin = table[order], offsets[:-1][order]
    k = np.searchsorted(table[:, 0], X.indices, side="right") - 1
    kept = (k >= 0) & (X.indices < table[k, 1])
    k, indices = k[kept], X.indices[kept]
    indices = indices - table[k, 0] + begin[k]
    indptr = np.concatenate([[0], np.cumsum(kept)])[X.indptr].astype(np.int64)
    data = X.data[kept]
    if np.any(np.diff(begin) < 0):
        by_row = np.lexsort((indices, np.repeat(np.arange(len(X)), np.diff(indptr))))
        data, indices = data[by_row], indices[by_row]
    return CSR(data, indices, indptr, int(offsets[-1]))


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


class Ahead:
    """A stored vector that is read once from left to right, in whole chunks.

    Parameters
    ----------
    read : callable
        Takes start and stop, returns the values.
    chunk, size : int
        Values of a chunk, and of the vector.
    """

    def __init__(self, read: Callable[[int, int], Array], chunk: int, size: int) -> None:
        self._read, self._chunk, self._size = read, max(1, chunk), size
        self._held: Array | None = None
        self._start = 0

    def take(self, start: int, stop: int) -> Array:
        """Return values [start, stop); `start` never falls."""
        held, first = self._held, self._start
        if held is None or start >= first + len(held):
            held, first = self._read(start, self._whole(stop)), start
        elif stop > first + len(held):
            more = self._read(first + len(held), self._whole(stop))
            held, first = np.concatenate([held[start - first :], more]), start
        self._held, self._start = held, first
        return held[start - first : stop - first]

    def _whole(self, stop: int) -> int:
        return min(self._size, -(-stop // self._chunk) * self._chunk)


class Vectors(NamedTuple):
    """The three stored vectors of CSR rows."""

    data: Ahead
    indices: Ahead
    indptr: Ahead


def stored_rows(
    vectors: Vectors, partition: Partition, columns: int, nonzeros: int, place: Callable[[int], str]
) -> Iterator[CSR]:
    """Yield a partition's rows in pieces of about a megabyte, verified.

    Parameters
    ----------
    vectors : Vectors
    partition : Partition
    columns : int
    nonzeros : int
        Values of the partition when the data were opened.
    place : callable
        Says where a row of the partition lies.

    Raises
    ------
    DataError
        For bounds that fall, columns that are out of range or not sorted, and other bounds than at the opening.
    """
    bounds = vectors.indptr.take(partition.start, partition.stop + 1).astype(np.int64)
    falls = np.diff(bounds) < 0
    if falls.any() or bounds[0] < 0 or bounds[-1] - bounds[0] != nonzeros:
        row = int(np.argmax(falls)) if falls.any() else partition.rows - 1
        found = f"row bounds {bounds[row]} to {bounds[row + 1]}, {bounds[-1] - bounds[0]} values of {nonzeros}"
        raise DataError(found, where=place(row), hint="indptr is damaged: restore the data or write it again")
    row = 0
    while row < partition.rows:
        stop = int(np.searchsorted(bounds, bounds[row] + PIECE_VALUES, side="right")) - 1
        stop = min(max(stop, row + 1), row + PIECE_ROWS, partition.rows)
        lo, hi = int(bounds[row]), int(bounds[stop])
        indices = vectors.indices.take(lo, hi)
        X = CSR(vectors.data.take(lo, hi), indices, bounds[row : stop + 1] - lo, columns)
        yield checked(X, lambda k, first=row: place(first + k))  # type: ignore[misc]
        row = stop


def bounds_of(indptr: Ahead, rows: int, values: int, item: int, where: str) -> tuple[Ints, Ints]:
    """Scan the row bounds of foreign data and return partitions: their first rows (and n), and values before each.

    Parameters
    ----------
    indptr : Ahead
    rows, values : int
        n and the number of stored values.
    item : int
        Bytes of a value and its column.
    where : str
        For messages.

    Raises
    ------
    DataError
        Where they do not start at 0, fall, or do not end at the number of values.
    """
    step = max(1, min(_SCAN_ROWS, rows // (8 * MIN_PARTITIONS)))
    starts, nonzeros, last = [0], [0], 0
    for row in range(0, rows, step):
        stop = min(rows, row + step)
        bounds = indptr.take(row, stop + 1).astype(np.int64)
        if int(bounds[0]) != last or (np.diff(bounds) < 0).any():
            raise DataError(f"indptr falls, or does not start at 0, in rows {row} to {stop}", where=where)
        last = int(bounds[-1])
        starts.append(stop)
        nonzeros.append(last)
    if last != values:
        raise DataError(f"indptr ends at {last}, there are {values} values", where=where)
    cuts = cut_by_nonzeros(np.array(starts), np.array(nonzeros), item)
    return np.array(starts)[cuts], np.array(nonzeros)[cuts]


def stored_counts(manifest: Manifest, uri: str, values: int | None = None) -> tuple[int, ...]:
    """Return the stored values of each partition, which the writer kept in the manifest.

    Parameters
    ----------
    manifest : Manifest
    uri : str
        For messages.
    values : int or None
        What they must add up to, where it is known.

    Raises
    ------
    DataError
        Where it did not, or they do not add up.
    """
    counts = manifest.extra.get("nonzeros")
    plain = isinstance(counts, list) and all(type(v) is int and v >= 0 for v in counts)
    if isinstance(counts, list) and plain and len(counts) == len(manifest.partitions) and values in (None, sum(counts)):
        return tuple(counts)
    raise DataError("the manifest's nonzeros do not fit its partitions and values", where=uri, hint="ingest again")


def piece_bytes(sizes: Sequence[int], counts: Sequence[int], item: int) -> int:
    """Return the bytes of a large piece: of a whole small partition, or what a piece holds unless a row is longer."""
    largest = max((count * item + (rows + 1) * 8 for rows, count in zip(sizes, counts, strict=True)), default=0)
    return min(largest, PIECE_VALUES * item + PIECE_ROWS * 8)
