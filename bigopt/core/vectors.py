"""Vectors on their way to the driver: sparse or dense is an encoding of the same bits.

A gradient of rows with few nonzeros is zero wherever none of them has a value. `SparseVector` holds the rest; what it
stands for is the dense vector with +0.0 everywhere else. `added` gives, for any mix of the two, the encoding of exactly
the bits that adding the dense vectors gives, down to the sign of a zero (-0.0 + 0.0 is 0.0). So every node of a tree
may choose the encoding that is cheaper to add, and every message the shorter one; only the vector itself decides.

A gradient of one block is in the block's dtype, and its tree adds in ``run.dtype``. Where that is wider every number
of the first is one of the second: `Narrow` is the vector in its own dtype, half as long on its way, and widened by who
adds it.

A flat vector of a linear model with q outputs is a matrix of rows of q, one for each column of X and one for the
intercepts: a row is what a position names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.buffers import Buffers, Casts
from bigopt.core.codec import wire

Array = npt.NDArray[Any]

_CROWDED = 16
"""Rows a stored one up to which adding dense vectors is cheaper than merging positions."""


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


@wire
class Narrow(NamedTuple):
    """A flat vector of numbers that fit a smaller dtype.

    Parameters
    ----------
    values : ndarray, shape (p,)
    dtype : str
        Of the vector it stands for: one that holds every value of `values`.
    """

    values: Array
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.values.nbytes


class Unadded(NamedTuple):
    """The sum of two narrow vectors, for somebody who walks along it once and may as well add on his way.

    It never travels.

    Parameters
    ----------
    left, right : ndarray, shape (p,)
        Of one dtype.
    into : ndarray, shape (p,)
        Where the sum belongs, in the dtype it has.
    casts : Casts or None
        Where new params in the dtype of left and right are wanted, if he makes some of the sum.
    """

    left: Array
    right: Array
    into: Array
    casts: Casts | None = None


Vector = Array | SparseVector | Narrow | Unadded
"""Any encoding of a flat vector."""


def dense(vector: Any) -> Array:
    """Return the flat vector, shape (size,): the array itself where it is one."""
    if isinstance(vector, Unadded):
        both: Array = np.add(vector.left, vector.right, out=vector.into, dtype=vector.into.dtype)
        return both
    if isinstance(vector, Narrow):
        return vector.values.astype(vector.dtype)
    if not isinstance(vector, SparseVector):
        plain: Array = vector
        return plain
    flat = np.zeros(vector.size, dtype=vector.values.dtype)
    flat.reshape(-1, vector.values.shape[1])[vector.positions] = vector.values
    return flat


def encoded(positions: Array, values: Array, size: int) -> Vector:
    """Return a vector with these rows (see `SparseVector`) in the encoding that is cheaper to add to others."""
    sparse = SparseVector(positions.astype(_integers(size, values.shape[1]), copy=False), values, size)
    return dense(sparse) if _crowded(len(positions), sparse) else sparse


def packed(vector: Vector, width: int) -> Vector:
    """Return the shorter encoding of a vector with rows of `width`, for the wire: rows of +0.0 alone are left out."""
    if not isinstance(vector, np.ndarray):
        return vector
    table = vector.reshape(-1, width)
    kept = table.view(f"i{vector.itemsize}") != 0  # -0.0 is not 0 here
    rows = kept[:, 0] if width == 1 else kept.any(axis=1)
    integers = _integers(len(vector), width)
    if np.count_nonzero(rows) * (integers.itemsize + width * vector.itemsize) >= vector.nbytes:
        return vector
    positions = np.flatnonzero(rows)
    return SparseVector(positions.astype(integers), table[positions], len(vector))


def _crowded(stored: int, like: SparseVector) -> bool:
    return bool(_CROWDED * stored * like.values.shape[1] > like.size)


def _integers(size: int, width: int) -> np.dtype[Any]:
    """Return the integers that hold the row numbers of a vector."""
    return np.dtype(np.int32 if size < width << 31 else np.int64)


def added(left: Vector, right: Vector, buffers: Buffers | None = None, *, lazy: bool = False) -> Vector:
    """Return left + right, in left's buffer where that is dense and may be written.

    What is added to a narrow vector needs memory: it is lent by `buffers`, where there are any. If `lazy`, two narrow
    vectors are left `Unadded`.
    """
    if isinstance(left, Unadded):
        left = dense(left)
    if isinstance(right, Unadded):
        right = dense(right)
    if lazy and buffers is not None and isinstance(left, Narrow) and isinstance(right, Narrow):
        return Unadded(left.values, right.values, buffers.lend(left.values.size, left.dtype), buffers.casts)
    if isinstance(right, Narrow):
        right = right.values if not isinstance(left, SparseVector) else dense(right)  # NumPy widens as it adds
    if isinstance(left, Narrow):
        if isinstance(right, SparseVector):
            return added(dense(left), right)
        out = None if buffers is None else buffers.lend(right.size, left.dtype)
        total: Array = np.add(left.values, right, out=out, dtype=left.dtype)
        return total
    if isinstance(left, SparseVector):
        if isinstance(right, SparseVector) and not _crowded(len(left.positions) + len(right.positions), left):
            return _union(left, right)
        left = dense(left)
    return _scattered(left, right) if isinstance(right, SparseVector) else _spread(left, right)


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


def _union(left: SparseVector, right: SparseVector) -> SparseVector:
    """Add on the positions of either; a row that one of them lacks is +0.0 there."""
    both = np.concatenate([left.positions, right.positions])
    order = np.argsort(both, kind="stable")  # finds the two runs and merges them
    ordered = both[order]
    first = np.ones(len(both), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    place = np.empty(len(both), dtype=np.intp)
    place[order] = np.cumsum(first) - 1
    positions, cut = ordered[first], len(left.positions)
    total, other = (np.zeros((len(positions), left.values.shape[1]), dtype=left.values.dtype) for _ in range(2))
    total[place[:cut]], other[place[cut:]] = left.values, right.values
    total += other
    return SparseVector(positions, total, left.size)
