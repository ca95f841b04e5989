"""Sparse rows: the three arrays of compressed sparse rows (CSR), as they are stored, sliced and sent.

Row i has the values ``data[indptr[i]:indptr[i + 1]]`` in the columns ``indices[indptr[i]:indptr[i + 1]]``; everything
else is zero. This is a container, not a matrix library: models compute on the arrays (`bigopt.models.sparse`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire

Array = npt.NDArray[Any]

_MARKED = 32
"""Columns a value up to which marking them all is cheaper than sorting the values."""


@wire
@dataclass(frozen=True, eq=False)
class CSR:
    """Rows with few nonzeros.

    Parameters
    ----------
    data : ndarray, shape (nnz,)
    indices : ndarray, shape (nnz,), int32 or int64
        Columns, strictly increasing within a row.
    indptr : ndarray, shape (k + 1,), int64
        Where each row starts; the first is 0, the last nnz.
    columns : int
        Number of columns d.
    """

    data: Array
    indices: Array
    indptr: Array
    columns: int

    def __len__(self) -> int:
        """Return the number of rows k."""
        return len(self.indptr) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self), self.columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.data.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.data.nbytes + self.indices.nbytes + self.indptr.nbytes

    def __getitem__(self, rows: slice | Array) -> CSR:
        """Return some rows.

        A slice without step shares values and columns (all rows: self); an index or mask array copies them.
        """
        if isinstance(rows, slice):
            lo, hi, step = rows.indices(len(self))
            if step != 1:
                raise IndexError("a slice of CSR rows has step 1")
            hi = max(lo, hi)
            if hi - lo == len(self):
                return self
            first, last = int(self.indptr[lo]), int(self.indptr[hi])
            return CSR(self.data[first:last], self.indices[first:last], self.indptr[lo : hi + 1] - first, self.columns)
        chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        starts = self.indptr[chosen]
        counts = self.indptr[chosen + 1] - starts
        indptr = np.zeros(len(chosen) + 1, dtype=np.int64)
        np.cumsum(counts, out=indptr[1:])
        at = np.repeat(starts - indptr[:-1], counts) + np.arange(indptr[-1])
        return CSR(self.data[at], self.indices[at], indptr, self.columns)

    def astype(self, dtype: npt.DTypeLike) -> CSR:
        """Return the rows with values of another dtype (the same arrays where it is theirs)."""
        return CSR(self.data.astype(dtype, copy=False), self.indices, self.indptr, self.columns)

    def own(self) -> tuple[Array, CSR]:
        """Return the distinct columns that occur, and the rows over them alone.

        Found once and kept with the rows, which a cached block asks for in every round. Rows without values get column
        0, so that there is always one.

        Returns
        -------
        columns : ndarray, shape (m,), int32 or int64
            Increasing.
        rows : CSR
            Column j of it is ``columns[j]``; values and row bounds are shared, indices are int32.
        """
        kept: tuple[Array, CSR] | None = self.__dict__.get("_own")
        if kept is None:
            columns, local = _distinct(self.indices, self.columns)
            kept = columns, CSR(self.data, local, self.indptr, len(columns))
            self.__dict__["_own"] = kept
        return kept

    def dense(self) -> Array:
        """Return the rows as an array of shape (k, d); for tests and small blocks."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        full = np.zeros(self.shape, dtype=self.dtype)
        full[rows, self.indices] = self.data
        return full


def _distinct(indices: Array, columns: int) -> tuple[Array, Array]:
    """Return the sorted distinct values, and the place of each among them as int32."""
    if len(indices) == 0:
        return np.zeros(1, dtype=indices.dtype), np.zeros(0, dtype=np.int32)
    if columns > _MARKED * len(indices):
        found, local = np.unique(indices, return_inverse=True)
        return found, local.astype(np.int32)
    marks = np.zeros(columns, dtype=np.bool_)
    marks[indices] = True
    found = np.flatnonzero(marks).astype(indices.dtype)
    if len(found) == columns and indices.dtype == np.int32:
        return found, indices
    places = np.empty(columns, dtype=np.int32)
    places[found] = np.arange(len(found), dtype=np.int32)
    return found, places[indices]


def stacked(parts: list[CSR]) -> CSR:
    """Return consecutive pieces as one; at least one is needed, all with the same columns."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0] + [len(part.data) for part in parts])
    starts = [part.indptr[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
    return CSR(
        np.concatenate([part.data for part in parts]),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([*starts, offsets[-1:]]).astype(np.int64),
        parts[0].columns,
    )
