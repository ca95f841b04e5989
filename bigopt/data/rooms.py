"""Where a partition's rows are gathered while it is read: allocated once, filled piece by piece in the block's dtype.

A room takes the kept rows of a piece, casts them and says which value is not finite; `finish` gives up what was not
needed. `DenseRoom` holds an array, `SparseRoom` the three arrays of CSR rows; `LentRoom` keeps rows that are in this
process already, where they are.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core.csr import CSR
from bigopt.data.loading import Memory

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_CHECK_ROWS = 4096
_CHECK_VALUES = 1 << 18
_DOT: Final = 1 << 15


class Wrong(NamedTuple):
    """A value that is not finite: row among those just added, column, value."""

    row: int
    column: int
    value: Any


class Room(Protocol):
    """Holds the rows added so far."""

    def add(self, X: Any, keep: Mask | None) -> Wrong | None:
        """Add the kept rows of a piece (None: all); return the first value that is not finite."""
        ...

    def finish(self) -> Array | CSR:
        """Return all rows."""
        ...


class DenseRoom:
    """Rows of d numbers, C-contiguous.

    Parameters
    ----------
    rows, columns : int
        The most that will come.
    dtype : str
    memory : Memory or None
        Where the rows lie; None: in memory of their own.
    """

    def __init__(self, rows: int, columns: int, dtype: str, memory: Memory | None = None) -> None:
        size = rows * columns * np.dtype(dtype).itemsize
        room = np.empty(size, dtype=np.uint8) if memory is None else memory.take(size)
        self._X: Array = room.view(dtype).reshape(rows, columns)
        self._at = 0

    @property
    def whole(self) -> Array:
        """All of it, to be filled at once."""
        return self._X

    def add(self, X: Array, keep: Mask | None) -> Wrong | None:
        """Add rows."""
        kept = X if keep is None else X[keep]
        part = self._X[self._at : self._at + len(kept)]
        self._at += len(kept)
        with np.errstate(over="ignore", invalid="ignore"):  # found just below
            part[...] = kept
        return first_wrong(part)

    def finish(self) -> Array:
        """Return all rows."""
        return self._X[: self._at]


class LentRoom:
    """Rows of the source's own, which come as one piece in the block's dtype: they are looked at, not copied."""

    def __init__(self) -> None:
        self._X: Array | CSR = np.empty((0, 0))

    def add(self, X: Array | CSR, keep: Mask | None) -> Wrong | None:
        """Take the rows; all of them, once."""
        assert keep is None, "lent rows are all kept"
        assert not len(self._X), "lent rows come as one piece"
        self._X = X
        if not isinstance(X, CSR):
            return first_wrong(X)
        return None if all_finite(X.data) else wrong_of(X, int(np.argmin(np.isfinite(X.data))))

    def finish(self) -> Array | CSR:
        """Return the rows."""
        return self._X


def all_finite(values: Array) -> bool:
    """Return whether all floats are finite: the scalar product of a piece with itself is, unless it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        if values.flags.c_contiguous:
            flat = values.reshape(-1)
            if all(math.isfinite(np.dot(v, v)) for v in (flat[k : k + _DOT] for k in range(0, len(flat), _DOT))):
                return True
    return bool(np.isfinite(values).all())


def first_wrong(X: Array) -> Wrong | None:
    """Return the first value that is not finite."""
    if all_finite(X):
        return None
    for lo in range(0, len(X), _CHECK_ROWS):
        finite = np.isfinite(X[lo : lo + _CHECK_ROWS])
        if not finite.all():
            row, column = (int(v[0]) for v in np.nonzero(~finite))
            return Wrong(lo + row, column, X[lo + row, column])
    return None


def wrong_of(X: CSR, at: int) -> Wrong:
    """Return where the stored value number `at` is."""
    return Wrong(int(np.searchsorted(X.indptr, at, side="right")) - 1, int(X.indices[at]), X.data[at])


class SparseRoom:
    """CSR rows.

    Parameters
    ----------
    rows, values, columns : int
        The most rows and stored values that will come, and d.
    dtype : str
    """

    def __init__(self, rows: int, values: int, columns: int, dtype: str) -> None:
        self._data = np.empty(values, dtype=dtype)
        self._indices = np.empty(values, dtype=index_dtype(columns))
        self._indptr = np.zeros(rows + 1, dtype=np.int64)
        self._columns, self._rows, self._values = columns, 0, 0

    def add(self, X: CSR, keep: Mask | None) -> Wrong | None:
        """Add rows."""
        kept = X if keep is None else X[keep]
        lo, hi = self._values, self._values + len(kept.data)
        if hi > len(self._data):  # what the source announced was too little
            self._data = np.resize(self._data, hi)
            self._indices = np.resize(self._indices, hi)
        with np.errstate(over="ignore", invalid="ignore"):  # found just below
            self._data[lo:hi] = kept.data
        self._indices[lo:hi] = kept.indices
        self._indptr[self._rows + 1 : self._rows + len(kept) + 1] = kept.indptr[1:] + lo
        self._values, self._rows = hi, self._rows + len(kept)
        for start in range(lo, hi, _CHECK_VALUES):
            finite = np.isfinite(self._data[start : min(hi, start + _CHECK_VALUES)])
            if not finite.all():
                at = start + int(np.argmin(finite))
                return wrong_of(kept, at - lo)._replace(value=self._data[at])
        return None

    def finish(self) -> CSR:
        """Return all rows; room that was not needed is given back."""
        for array in (self._data, self._indices):
            array.resize(self._values, refcheck=False)
        return CSR(self._data, self._indices, self._indptr[: self._rows + 1], self._columns)


def index_dtype(columns: int) -> np.dtype[Any]:
    """Return the integers that hold columns 0 to d - 1 in memory: int32 where they fit, else int64."""
    return np.dtype(np.int32 if columns <= np.iinfo(np.int32).max else np.int64)


def finite_rows(X: Array | CSR) -> Mask:
    """Return which rows hold finite values only, shape (k,)."""
    if isinstance(X, CSR):
        good = np.ones(len(X), dtype=np.bool_)
        wrong = np.flatnonzero(~np.isfinite(X.data))
        good[np.searchsorted(X.indptr, wrong, side="right") - 1] = False
        return good
    return np.asarray(np.isfinite(X).all(axis=1))
