"""Vectors on their way to the driver: sparse or dense is an encoding of the same bits.

A gradient of rows with few nonzeros is zero wherever none of them has a value. `SparseVector` holds the rest; what it
stands for is the dense vector with +0.0 everywhere else. `added` gives, for any mix of the two, the encoding of exactly
the bits that adding the dense vectors gives, down to the sign of a zero (-0.0 + 0.0 is 0.0). So every node of a tree
may choose the shorter encoding, and only the numbers of nonzeros decide.

A flat vector of a linear model with q outputs is a matrix of rows of q, one for each column of X and one for the
intercepts: a row is what a position names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire

Array = npt.NDArray[Any]

_CROWDED = 2
"""Rows a stored one up to which adding dense vectors is cheaper than sorting positions."""


@wire
class SparseVector(NamedTuple):
    """A flat vector of which some rows are stored.

    Parameters
    ----------
    positions : ndarray, shape (k,), int32 or int64
        Strictly increasing row numbers.
    values : ndarray, shape (k, q)
        Row j stands at ``[positions[j] q, (positions[j] + 1) q)`` of the flat vector.
    size : int
        Length of the flat vector, a multiple of q.
    """

    positions: Array
    values: Array
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.positions.nbytes + self.values.nbytes


Vector = Array | SparseVector
"""Either encoding of a flat vector."""


def dense(vector: Any) -> Array:
    """Return the flat vector, shape (size,): the array itself where it is one."""
    if not isinstance(vector, SparseVector):
        plain: Array = vector
        return plain
    flat = np.zeros(vector.size, dtype=vector.values.dtype)
    flat.reshape(-1, vector.values.shape[1])[vector.positions] = vector.values
    return flat


def encoded(positions: Array, values: Array, size: int) -> Vector:
    """Return the shorter encoding of a vector with these rows; see `SparseVector`."""
    sparse = SparseVector(positions.astype(_integers(size, values.shape[1]), copy=False), values, size)
    return sparse if _shorter(len(positions), sparse) else dense(sparse)


def _integers(size: int, width: int) -> np.dtype[Any]:
    """Return the integers that hold the row numbers of a vector."""
    return np.dtype(np.int32 if size < width << 31 else np.int64)


def _shorter(stored: int, like: SparseVector) -> bool:
    """Return whether so many stored rows take fewer bytes than the dense vector."""
    width, item = like.values.shape[1], like.values.itemsize
    return bool(stored * (_integers(like.size, width).itemsize + width * item) < like.size * item)


def added(left: Vector, right: Vector) -> Vector:
    """Return left + right, in left's buffer where that is dense and may be written."""
    if isinstance(left, SparseVector):
        if isinstance(right, SparseVector):
            return _union(left, right)
        return _spread(dense(left), right)
    if isinstance(right, SparseVector):
        return _scattered(left, right)
    return _spread(left, right)


def _spread(left: Array, right: Array | float) -> Array:
    total: Array = np.add(left, right, out=left if left.flags.writeable else None)
    return total


def _scattered(left: Array, right: SparseVector) -> Array:
    """Add the stored rows, and +0.0 to all others."""
    rows = left.reshape(-1, right.values.shape[1])
    sums = rows[right.positions] + right.values
    total = _spread(left, 0.0)
    total.reshape(rows.shape)[right.positions] = sums
    return total


def _union(left: SparseVector, right: SparseVector) -> Vector:
    """Add on the positions of either; a row that one of them lacks is +0.0 there."""
    rows, width = left.size // left.values.shape[1], left.values.shape[1]
    if _CROWDED * (len(left.positions) + len(right.positions)) > rows:
        return _marked(left, right, rows)
    both = np.concatenate([left.positions, right.positions])
    order = np.argsort(both, kind="stable")  # finds the two runs and merges them
    ordered = both[order]
    first = np.ones(len(both), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    place = np.empty(len(both), dtype=np.intp)
    place[order] = np.cumsum(first) - 1
    positions, cut = ordered[first], len(left.positions)
    total, other = (np.zeros((len(positions), width), dtype=left.values.dtype) for _ in range(2))
    total[place[:cut]], other[place[cut:]] = left.values, right.values
    total += other
    return encoded(positions, total, left.size)


def _marked(left: SparseVector, right: SparseVector, rows: int) -> Vector:
    """Do the same by way of the dense vector."""
    marks = np.zeros(rows, dtype=np.bool_)
    marks[left.positions] = marks[right.positions] = True
    total = _scattered(dense(left), right)
    if not _shorter(int(np.count_nonzero(marks)), left):
        return total
    positions = np.flatnonzero(marks)
    return encoded(positions, total.reshape(rows, -1)[positions], left.size)
