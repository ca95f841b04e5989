"""Rows that are already in this process: for the local backend, for Python users and for tests.

The source *is* the arrays, so it does not travel: it is no `wire` type, and a backend with other processes refuses it.
Rows that are stored as kernels want them are lent: blocks are views of them, and nothing is copied. What they are is
known by checksums of their bytes, a megabyte at a time: a training may be short, and must not spend half of its time on
a cryptographic digest of rows that nobody forged. Needs NumPy alone.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.core.csr import CSR
from bigopt.core.errors import DataError
from bigopt.data.columns import x_names
from bigopt.data.rooms import index_dtype
from bigopt.data.source import (
    NUMERIC,
    Array,
    Dataset,
    Partition,
    Rows,
    chosen_partition_rows,
    partition_sizes,
    partitions_of,
    target_kind,
)
from bigopt.data.sparse import ROW_BYTES, checked, cut_by_nonzeros, from_scipy

_SUMMED: Final = 1 << 20
"""Bytes of a checksum."""


@dataclass(frozen=True)
class MemorySource:
    """Arrays held in process; nobody changes them as long as they are used.

    Parameters
    ----------
    X : ndarray or CSR, shape (n, d)
    y : ndarray, shape (n,) or (n, q), or None
    weight : ndarray, shape (n,), or None
    columns : sequence of str
    """

    X: Array | CSR
    y: Array | None
    weight: Array | None
    columns: Sequence[str]

    @property
    def sparse(self) -> bool:
        """Whether X is CSR."""
        return isinstance(self.X, CSR)

    def nonzeros(self, partition: Partition) -> int:
        """Return how many values the partition holds."""
        if isinstance(self.X, CSR):
            return int(self.X.indptr[partition.stop] - self.X.indptr[partition.start])
        return partition.rows * len(self.columns)

    @property
    def stored(self) -> str:
        """NumPy dtype name of X."""
        return self.X.dtype.name

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition as one piece of read-only views; nothing is read from any store."""
        rows = slice(partition.start, partition.stop)
        X = self.X
        if isinstance(X, CSR):
            part = X[rows]
            part = CSR(_view(part.data, slice(None)), _view(part.indices, slice(None)), part.indptr, part.columns)
            yield Rows(part, _maybe(self.y, rows), _maybe(self.weight, rows))
        else:
            yield Rows(_view(X, rows), _maybe(self.y, rows), _maybe(self.weight, rows))

    def cut(self, start: int, stop: int, *, labels: bool) -> MemorySource:
        """Return the same rows with the features [start, stop) alone; see `bigopt.data.columnview`."""
        assert not isinstance(self.X, CSR), "sparse columns are not cut"
        return MemorySource(self.X[:, start:stop], self.y if labels else None, self.weight, self.columns[start:stop])

    def place(self, partition: Partition, row: int) -> str:
        """Say where a row of the partition lies."""
        return f"row {partition.start + row} in memory"

    def lends(self, dtype: str) -> bool:
        """Return whether blocks of this dtype may be views of X."""
        X = self.X
        if not isinstance(X, CSR):
            return _as(X, dtype)
        return _as(X.data, dtype) and _as(X.indices, index_dtype(X.columns)) and _as(X.indptr, np.int64)

    def identity(self) -> str:
        """Return a digest of names, shapes, dtypes and bytes, as they are when it is asked for first.

        It is the SHA-256 of the former and of the checksums of each megabyte: CRC-32C, which finds every change within
        32 bits, and any other but for one in 2^32.
        """
        return self._identity

    @cached_property
    def _identity(self) -> str:
        name, value = _checksum()
        digest = hashlib.sha256(f"{name} {self.columns!r}".encode())
        X = (self.X.data, self.X.indices, self.X.indptr) if isinstance(self.X, CSR) else (self.X,)
        for array in (*X, self.y, self.weight):
            if array is None:
                digest.update(b"none")
                continue
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            block = max(1, _SUMMED // max(1, array.itemsize * (array.size // max(1, len(array)))))
            for start in range(0, len(array), block):
                part = np.ascontiguousarray(array[start : start + block]).reshape(-1).view(np.uint8)
                digest.update(value(part).to_bytes(4, "little"))
        return digest.hexdigest()


def _checksum() -> tuple[str, Callable[[Any], int]]:
    """Return CRC-32C and its name, where it is compiled here (google-crc32c comes with Zarr); else zlib's CRC-32."""
    try:
        import google_crc32c
    except ImportError:
        return "crc32", zlib.crc32
    return ("crc32c", google_crc32c.value) if google_crc32c.implementation == "c" else ("crc32", zlib.crc32)


def _as(array: Array, dtype: npt.DTypeLike) -> bool:
    return bool(array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned)


def _view(array: Array, rows: slice) -> Array:
    view = array[rows].view()
    view.flags.writeable = False
    return view


def _maybe(array: Array | None, rows: slice) -> Array | None:
    return None if array is None else _view(array, rows)


def from_arrays(
    X: npt.ArrayLike | CSR,
    y: npt.ArrayLike | None = None,
    weight: npt.ArrayLike | None = None,
    *,
    partition_rows: int | Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    target: str | Sequence[str] = "y",
    classes: Sequence[Any] | None = None,
) -> Dataset:
    """Make a dataset of arrays held in this process.

    Parameters
    ----------
    X : array_like, CSR or SciPy CSR matrix, shape (n, d)
        Bool, integers or floating; no copy of an array. Sparse rows stay sparse.
    y : array_like, shape (n,) or (n, q), optional
        Numbers, booleans or text.
    weight : array_like, shape (n,), optional
    partition_rows : int or sequence of int, optional
        Rows of each partition, or the sizes of all; chosen where None (`chosen_partition_rows`).
    columns : sequence of str, optional
        Names of the features; ``x0, x1, ...`` where None.
    target : str or sequence of str
        Names of the target columns.
    classes : sequence, optional
        Declared labels.

    Raises
    ------
    DataError
        Where shapes disagree or a dtype cannot be used.
    """
    features = _features(X)
    if len(features.shape) != 2 or features.dtype.name not in NUMERIC:
        raise DataError(f"X has shape {features.shape} and dtype {features.dtype}", hint="2-D numbers or booleans")
    n, d = features.shape
    labels = None if y is None else np.asarray(y)
    weights = None if weight is None else np.asarray(weight)
    if labels is not None and (labels.ndim not in (1, 2) or len(labels) != n):
        raise DataError(f"y has shape {labels.shape}, X has {n} rows")
    if weights is not None and (weights.shape != (n,) or weights.dtype.name not in NUMERIC):
        raise DataError(f"weight has shape {weights.shape} and dtype {weights.dtype}, X has {n} rows")
    if n == 0:
        raise DataError("X has no rows")
    sparse = isinstance(features, CSR)
    names: Sequence[str] = x_names(d) if sparse else tuple(f"x{j}" for j in range(d))
    if columns is not None:
        names = tuple(columns)
        if len(names) != d or len(set(names)) != d:
            raise DataError(f"{len(names)} column names ({len(set(names))} distinct) for {d} features")
    q = 1 if labels is None or labels.ndim == 1 else labels.shape[1]
    targets = (target,) if isinstance(target, str) else tuple(target)
    if len(targets) == 1 and q > 1:
        targets = tuple(f"{targets[0]}{k}" for k in range(q))
    if isinstance(features, CSR):
        row_bytes = ROW_BYTES + -(-len(features.data) * (features.dtype.itemsize + 4) // n)
        cuts = cut_by_nonzeros(np.arange(n + 1), features.indptr, features.dtype.itemsize + 4)
        sizes = tuple(np.diff(cuts).tolist()) if partition_rows is None else partition_sizes(n, partition_rows)
    else:
        row_bytes = d * features.dtype.itemsize
        sizes = partition_sizes(n, chosen_partition_rows(n, row_bytes) if partition_rows is None else partition_rows)
    total = row_bytes + sum(a.nbytes // n for a in (labels, weights) if a is not None)
    return Dataset(
        source=MemorySource(features, labels, weights, names),
        partitions=partitions_of(sizes),
        target=() if labels is None else targets,
        classes=None if classes is None else tuple(classes),
        target_kind=None if labels is None else target_kind(labels.dtype),
        weight=None if weights is None else "weight",
        row_bytes=total,
        piece_bytes=max(sizes) * row_bytes,
    )


def _features(X: Any) -> Array | CSR:
    if isinstance(X, CSR):
        return checked(X, lambda row: f"row {row} in memory")
    return from_scipy(X) if hasattr(X, "format") and hasattr(X, "tocsr") else np.asarray(X)
