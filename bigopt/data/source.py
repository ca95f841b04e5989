"""What the rest of bigopt knows about data: partitions of global rows, and sources that yield their rows in pieces.

A dataset is n rows in a fixed order, cut into **partitions**: contiguous ranges of global row numbers, a function of
what is stored (manifest, chunks, row groups), never of workers or memory. A **source** is a frozen descriptor that
travels to a worker, opens the store there and yields a partition's rows in consecutive **pieces** of at most about a
chunk or a row group, so that whoever reads holds little more than one piece beside what it keeps. Pieces come in the
stored dtype: casting, encoding of labels and checks of values belong to the view. A **sparse** source yields CSR rows,
columns increasing within each row, and knows how many values each partition stores; nothing is ever densified.

This module needs NumPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import DataError

if TYPE_CHECKING:
    from bigopt.data.manifest import Manifest

Array = npt.NDArray[Any]
TargetKind = Literal["number", "integer", "boolean", "text", "category"]
BadRows = Literal["error", "skip"]

PARTITION_BYTES = 16 << 20
"""Decoded bytes that a partition is chosen to have, about."""
PARTITION_ROWS = 1 << 20
"""Most rows of a chosen partition."""
MIN_PARTITIONS = 8
"""Partitions that a chosen partitioning has at least, where there are enough rows."""

SMALL = frozenset({"bool", "int8", "uint8", "int16", "uint16", "float16", "float32"})
"""Stored dtypes whose every value a float32 holds exactly."""
NUMERIC = SMALL | {"int32", "uint32", "int64", "uint64", "float64"}
"""Dtypes a feature may be stored in."""


class Rows(NamedTuple):
    """Consecutive rows of a partition, as stored.

    Parameters
    ----------
    X : ndarray or CSR, shape (k, d)
        Bool, integer or floating; may be read-only; convertible by ``astype`` or ``np.copyto(..., casting="unsafe")``.
        CSR where the source is sparse, columns in range and strictly increasing within each row.
    y : ndarray, shape (k,) or (k, q), or None
        Raw labels: numbers, booleans or text (NumPy ``U``). None where the dataset was opened without a target.
    weight : ndarray, shape (k,), or None
        Sample weights as stored.
    bytes_read : int
        Bytes that came from the store (compressed) for this piece; bytes shared by pieces are counted with the first.
    bad : ndarray of bool, shape (k,), or None
        Rows with a null, only under ``on_bad_rows="skip"``; their null cells hold zeros or empty text.
    """

    X: Any
    y: Array | None
    weight: Array | None
    bytes_read: int = 0
    bad: npt.NDArray[np.bool_] | None = None


@wire
@dataclass(frozen=True)
class Partition:
    """Global rows [start, start + rows).

    Parameters
    ----------
    index : int
        Place among the dataset's partitions, from 0.
    start, rows : int
        First global row, and number of rows.
    """

    index: int
    start: int
    rows: int

    @property
    def stop(self) -> int:
        """First global row after the partition."""
        return self.start + self.rows


@runtime_checkable
class Source(Protocol):
    """A frozen, registered (`wire`) descriptor of a store that a worker opens by itself."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the selected features, in the order of X's columns (`bigopt.data.columns` where there are many)."""
        ...

    @property
    def sparse(self) -> bool:
        """Whether pieces hold CSR rows."""
        ...

    def nonzeros(self, partition: Partition) -> int:
        """Return how many values a partition stores: rows x d of dense data; at most that many come in its pieces."""
        ...

    @property
    def stored(self) -> str:
        """NumPy dtype name of the X that `pieces` yields (see `common_dtype`, `block_dtype`)."""
        ...

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows in order; verifies what a manifest or checksum covers.

        Raises
        ------
        DataError
            Naming file, chunk or row group, column and row.
        """
        ...

    def place(self, partition: Partition, row: int) -> str:
        """Say where row `row` of the partition (0 is its first) lies, for messages."""
        ...

    def identity(self) -> str:
        """Read the manifest (or a foreign dataset's metadata) again and return its fingerprint, SHA-256 in hex."""
        ...


@dataclass(frozen=True)
class Dataset:
    """An opened dataset: where its rows are and what they mean.

    Parameters
    ----------
    source : Source
    partitions : tuple of Partition
        In order, covering rows 0 to n.
    target : tuple of str
        Names of the target columns; empty where opened without.
    manifest : Manifest or None
        None for foreign data.
    warnings : tuple of str
        To be shown once by whoever opened it.
    classes : tuple or None
        Labels declared in the manifest.
    target_kind : str or None
        ``number`` (floating), ``integer``, ``boolean``, ``text`` or ``category``; None without target.
    weight : str or None
        Name of the weight column.
    row_bytes : int
        Decoded bytes of one row as stored, on average: features, target and weight (text counted as 16 bytes).
    row_bytes_read : float
        Bytes that reading a row takes from the store, on average.
    piece_bytes : int
        Decoded bytes of X of the largest piece: a reader needs about twice that beside what it keeps.
    """

    source: Source
    partitions: tuple[Partition, ...]
    target: tuple[str, ...] = ()
    manifest: Manifest | None = None
    warnings: tuple[str, ...] = ()
    classes: tuple[Any, ...] | None = None
    target_kind: TargetKind | None = None
    weight: str | None = None
    row_bytes: int = 0
    row_bytes_read: float = 0.0
    piece_bytes: int = 0

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return self.partitions[-1].stop if self.partitions else 0

    @property
    def columns(self) -> Sequence[str]:
        """Names of the selected features."""
        return self.source.columns

    @property
    def sparse(self) -> bool:
        """Whether rows are CSR."""
        return self.source.sparse

    @property
    def nonzeros(self) -> int:
        """Values that are stored; n d of dense data."""
        return sum(self.source.nonzeros(partition) for partition in self.partitions)

    @property
    def stored(self) -> str:
        """NumPy dtype name of X as stored."""
        return self.source.stored


def common_dtype(names: Sequence[str]) -> str:
    """Return the dtype of X for columns stored as `names`: theirs where all agree, else float32 or float64.

    Parameters
    ----------
    names : sequence of str
        NumPy dtype names, all in `NUMERIC`.
    """
    distinct = set(names)
    if len(distinct) == 1:
        return next(iter(distinct))
    return "float32" if distinct <= SMALL else "float64"


def block_dtype(stored: str, asked: str | None = None) -> np.dtype[Any]:
    """Return the dtype blocks are computed in (``data.dtype``).

    Parameters
    ----------
    stored : str
        ``Source.stored``.
    asked : str or None
        ``data.dtype``; None: float32 where every value is exact in it, else float64.
    """
    if asked is not None:
        return np.dtype(asked)
    return np.dtype(np.float32 if stored in SMALL else np.float64)


def target_kind(dtype: np.dtype[Any]) -> TargetKind:
    """Return what kind of label a NumPy dtype holds.

    Raises
    ------
    DataError
        For complex numbers, dates and objects.
    """
    kinds: dict[str, TargetKind] = {
        "f": "number", "i": "integer", "u": "integer", "b": "boolean", "U": "text", "T": "text", "S": "text"
    }  # fmt: skip
    if dtype.kind not in kinds:
        raise DataError(f"a target of dtype {dtype} cannot be used", hint="numbers, booleans or text")
    return kinds[dtype.kind]


def chosen_partition_rows(rows: int, row_bytes: int) -> int:
    """Return the rows of a partition where nobody said: about 16 MB decoded, at least 8 partitions, at most 2^20 rows.

    The partitions are equal, up to a row: lanes of as many partitions then give as many rows to a batch.

    Parameters
    ----------
    rows : int
        Rows of the dataset.
    row_bytes : int
        Decoded bytes of a row.
    """
    return -(-rows // -(-rows // _most_partition_rows(rows, row_bytes)))


def _most_partition_rows(rows: int, row_bytes: int) -> int:
    share = -(-rows // MIN_PARTITIONS)
    return max(1, min(PARTITION_BYTES // max(1, row_bytes), PARTITION_ROWS, share))


def partitions_of(sizes: Sequence[int]) -> tuple[Partition, ...]:
    """Return consecutive partitions of the given numbers of rows."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + int(size))
    return tuple(Partition(i, start, int(size)) for i, (start, size) in enumerate(zip(starts, sizes, strict=False)))


def partition_sizes(rows: int, partition_rows: int | Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of partitions of `rows` rows: equal ones with a shorter last, or those given.

    Raises
    ------
    DataError
        Where given sizes do not add up to the rows.
    """
    if isinstance(partition_rows, int):
        if partition_rows < 1:
            raise DataError(f"partition_rows is {partition_rows}", hint="at least 1")
        whole, rest = divmod(rows, partition_rows)
        return (partition_rows,) * whole + ((rest,) if rest else ())
    sizes = tuple(int(size) for size in partition_rows)
    if sum(sizes) != rows or min(sizes, default=0) < 0:
        raise DataError(f"partition sizes {sizes} do not add up to {rows} rows")
    return sizes


def coalesce(sizes: Sequence[int], row_bytes: int) -> tuple[int, ...]:
    """Join neighbouring chunks or row groups to partitions of about 16 MB, yet at least 8 where the chunks allow.

    Parameters
    ----------
    sizes : sequence of int
        Rows of each chunk or row group, in order; none is ever split here.
    row_bytes : int
        Decoded bytes of a row.

    Returns
    -------
    tuple of int
        Rows of each partition.
    """
    limit = _most_partition_rows(sum(sizes), row_bytes)
    joined: list[int] = []
    for size in sizes:
        if joined and joined[-1] + size <= limit:
            joined[-1] += size
        else:
            joined.append(size)
    return tuple(joined)


def chunk_rows_of(partition_rows: int, row_bytes: int) -> int:
    """Return the rows of a chunk for equal partitions: the partition, or a divisor of it of at most about 16 MB.

    Parameters
    ----------
    partition_rows : int
        Rows of a partition; itself the answer where it has no divisor of a useful size.
    row_bytes : int
        Decoded bytes of a row.
    """
    most = max(1, PARTITION_BYTES // max(1, row_bytes))
    low = [k for k in range(1, math.isqrt(partition_rows) + 1) if partition_rows % k == 0]
    best = max(k for divisor in low for k in (divisor, partition_rows // divisor) if k <= most)
    return best if 64 * best >= min(most, partition_rows) else partition_rows


def common_chunk_rows(sizes: Sequence[int], row_bytes: int) -> int:
    """Return the rows of a chunk for given partitions: their common divisor where it is not small, else their mean.

    Parameters
    ----------
    sizes : sequence of int
        Rows of the partitions, none of them 0.
    row_bytes : int
        Decoded bytes of a row.
    """
    if not sizes:
        return 1
    divisor, mean = math.gcd(*sizes), -(-sum(sizes) // len(sizes))
    rows = divisor if 8 * divisor >= mean else mean
    return min(rows, max(1, PARTITION_BYTES // max(1, row_bytes)))
