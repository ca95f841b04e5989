"""A view: what a dataset looks like to a model.

A view says which rows are used (training or validation side of the split, bad rows left out), in which dtype blocks are
computed, how features are standardised and how targets are encoded. It is a frozen value that travels to the workers;
`DataView.load` reads one partition and returns a `Block` with only the used rows, C-contiguous, finite, checked; sparse
data stays sparse (`bigopt.core.csr`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import codec, rng
from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.errors import DataError
from bigopt.data.loading import Filling, Lending, Loader, Reading
from bigopt.data.preparation import Preparation, Scaling, TargetKind, Targets, Whitening
from bigopt.data.rooms import DenseRoom, LentRoom, Room, SparseRoom, Wrong, finite_rows, first_wrong, index_dtype
from bigopt.data.source import Partition, Rows, Source

__all__ = ["Block", "DataView", "Preparation", "Scaling", "Split", "TargetKind", "Targets", "Whitening"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


NO_FEATURES: Final = np.empty((0, 0))


class Block(NamedTuple):
    """Decoded used rows of one partition.

    Parameters
    ----------
    X : ndarray or CSR, shape (k, d)
        Block dtype, C-contiguous, finite; CSR where the source is sparse, columns increasing within each row.
    y : ndarray, shape (k,) or (k, q)
        Raw labels, or encoded targets where the view has `Targets`.
    weight : ndarray, shape (k,), float64, or None
    skipped : int
        Bad rows left out.
    bytes_read : int
        Bytes read from the store.
    """

    X: Any
    y: Array | None
    weight: Array | None
    skipped: int
    bytes_read: int

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(a.nbytes for a in (self.X, self.y, self.weight) if a is not None)


@wire
@dataclass(frozen=True)
class Split:
    """One side of a validation split by keyed hash of the global row number.

    Parameters
    ----------
    seed : int
    fraction : float
        Share of the rows on the validation side.
    validation : bool
        Which side this is.
    """

    seed: int
    fraction: float
    validation: bool

    def mask(self, partition: Partition) -> npt.NDArray[np.bool_]:
        """Return which rows of a partition are on this side, shape (rows,)."""
        held_out = rng.hash_rows(self.seed, "validation", partition.start, partition.rows) < self.fraction
        return held_out if self.validation else ~held_out


@wire
@dataclass(frozen=True)
class DataView:
    """Used rows, dtype, scaling and targets of a dataset.

    Parameters
    ----------
    source : Source
        Where the rows are; workers open the store themselves.
    bounds : ndarray, shape (P + 1,), int64
        Partition m is the global rows ``[bounds[m], bounds[m + 1])``.
    dtype : str
        Block dtype, float32 or float64.
    skip_bad : bool
        Leave out rows with nulls or non-finite values instead of refusing them.
    split : Split or None
    scaling : Scaling, Whitening or None
    targets : Targets or None
        None leaves raw labels.
    class_weight : tuple of float
        What the weight of a row is multiplied by, for each class of `targets`; empty for 1.
    scratch : tuple of (str, int) or None
        Folder and bytes on each node's own disk where prepared blocks are kept for all its workers (`data.scratch`);
        no part of the `key`.
    """

    source: Source
    bounds: Array
    dtype: str
    skip_bad: bool = False
    split: Split | None = None
    scaling: Preparation | None = None
    targets: Targets | None = None
    class_weight: tuple[float, ...] = ()
    scratch: tuple[str, int] | None = None

    @property
    def partitions(self) -> int:
        """Number of partitions P."""
        return len(self.bounds) - 1

    def partition(self, index: int) -> Partition:
        """Return a partition by number."""
        start, stop = int(self.bounds[index]), int(self.bounds[index + 1])
        return Partition(index, start, stop - start)

    @cached_property
    def raw(self) -> DataView:
        """The same rows, neither scaled nor encoded."""
        return replace(self, scaling=None, targets=None, class_weight=())

    @cached_property
    def key(self) -> str:
        """Digest of everything that decides what a block holds."""
        tree, arrays = codec.pack(replace(self, source=None, scratch=None))  # type: ignore[arg-type]
        digest = hashlib.sha256(json.dumps([self.source.identity(), tree], default=str).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def decoded_bytes(self, index: int) -> int:
        """Bytes that a whole decoded partition may hold: features, targets, weight and a permutation.

        A nonzero of sparse rows takes its value, its column, and its place among the partition's own columns.
        """
        partition, d, item = self.partition(index), len(self.source.columns), np.dtype(self.dtype).itemsize
        if not self.source.sparse:
            return partition.rows * (d * item + 24)
        return self.source.nonzeros(partition) * (item + index_dtype(d).itemsize + 4) + partition.rows * 32 + 8

    @cached_property
    def lent(self) -> bool:
        """Whether features are used where they lie in this process, without a copy of this view's own."""
        whole = self.split is None and self.scaling is None and not self.skip_bad and self.scratch is None
        return whole and isinstance(self.source, Lending) and self.source.lends(self.dtype)

    def held_bytes(self, index: int) -> int:
        """Bytes that a block of a partition takes in a cache: `decoded_bytes`, without features that are lent."""
        if not self.lent:
            return self.decoded_bytes(index)
        partition = self.partition(index)
        return 32 * partition.rows + 4 * self.source.nonzeros(partition) if self.source.sparse else 24 * partition.rows

    @cached_property
    def all_bytes(self) -> int:
        """`decoded_bytes` of all partitions."""
        return sum(self.decoded_bytes(index) for index in range(self.partitions))

    @cached_property
    def row_bytes(self) -> float:
        """Decoded bytes of a row's features in the block dtype: d values, or the nonzeros of an average row."""
        d, item, rows = len(self.source.columns), np.dtype(self.dtype).itemsize, int(self.bounds[-1] - self.bounds[0])
        if not self.source.sparse:
            return d * item
        nonzeros = sum(self.source.nonzeros(self.partition(m)) for m in range(self.partitions))
        return 8 + nonzeros / max(1, rows) * (item + index_dtype(d).itemsize)

    def loading_bytes(self, index: int, loader: Loader) -> int:
        """Bytes that loading a partition takes beside its block, at most."""
        if self.lent:
            return 0
        partition, size = self.partition(index), self.decoded_bytes(index)
        beside = self.filling(range(partition.start, partition.stop), loader)
        return size if beside is None else min(size, beside)

    def load(
        self, index: int, loader: Loader | None = None, labels: Block | None = None, *, checked: bool = True
    ) -> Block:
        """Read, check, convert and prepare one partition; what `labels` returned of it is not read again.

        Features that are known to be finite, with their labels, need not be looked at (`checked`).
        """
        if labels is None:
            return self.prepare(self.load_raw(index, loader))
        assert self.filler is not None, "asked for before"
        partition = self.partition(index)
        reading = self.filler.reading(partition, labels=False)
        loader = Loader() if loader is None else loader
        X = self._features(partition, self._mask(partition), reading, loader, checked=checked)
        if self.scaling is not None:
            self.scaling.apply(X)
        return labels._replace(X=X, bytes_read=labels.bytes_read + reading.bytes_read)

    def labels(self, index: int) -> Block:
        """Read prepared labels and weights of a partition that the source fills: a block without features.

        Raises
        ------
        DataError
            As `load_raw`.
        """
        assert self.filler is not None, "asked for before"
        partition = self.partition(index)
        reading = self.filler.reading(partition)
        y, weight = self._labels(partition, reading, self._mask(partition))
        return self.prepare(Block(NO_FEATURES, y, weight, 0, reading.bytes_read), features=False)

    def prepare(self, raw: Block, *, features: bool = True) -> Block:
        """Scale and encode a raw block; its features are scaled in place (or not at all), lent ones in a copy."""
        if self.scaling is not None and features:
            X = raw.X
            if isinstance(X, np.ndarray) and not X.flags.writeable:
                raw = raw._replace(X=X.copy())
            elif isinstance(X, CSR) and not X.data.flags.writeable:
                raw = raw._replace(X=CSR(X.data.copy(), X.indices, X.indptr, X.columns))
            self.scaling.apply(raw.X)
        if self.targets is None or raw.y is None:
            return raw
        y = self.targets.encode(raw.y, self.dtype)
        if not self.class_weight:
            return raw._replace(y=y)
        index = y if self.targets.kind == "index" else (y > 0).astype(np.int64)
        factor = np.asarray(self.class_weight)[index]
        return raw._replace(y=y, weight=factor if raw.weight is None else raw.weight * factor)

    def load_raw(self, index: int, loader: Loader | None = None) -> Block:
        """Read the used rows of one partition.

        Parameters
        ----------
        index : int
            Partition number.
        loader : Loader or None
            Memory and helpers of this process; None: memory of the block's own, and nobody helps.

        Raises
        ------
        DataError
            Damaged or missing chunks, and non-finite features, labels or weights, with file, row and column.
        """
        partition = self.partition(index)
        mask = self._mask(partition)
        loader = Loader() if loader is None else loader
        if self.filling(range(partition.start, partition.stop), loader) is not None:
            return self._filled(partition, mask, loader)
        gathered = self._room(partition, partition.rows if mask is None else int(mask.sum()), loader)
        labels: list[Array] = []
        weights: list[Array] = []
        row = bytes_read = skipped = 0
        for piece in self.source.pieces(partition):
            rows = len(piece.X)
            keep = np.ones(rows, dtype=np.bool_) if mask is None else mask[row : row + rows]
            good = self._good(partition, row, piece, keep)
            skipped += int((keep & ~good).sum())
            keep = keep & good
            count = int(keep.sum())
            wrong = gathered.add(piece.X, None if count == rows else keep)
            if wrong is not None:
                raise self._refused(partition, row, keep, wrong)
            if piece.y is not None:
                labels.append(piece.y if count == rows else piece.y[keep])
            if piece.weight is not None:
                weights.append(np.asarray(piece.weight, dtype=np.float64)[keep])
            row, bytes_read = row + rows, bytes_read + piece.bytes_read
        if row != partition.rows:
            raise DataError(
                f"{row} rows where {partition.rows} were expected",
                where=self.source.place(partition, max(0, row - 1)),
                hint="the data changed or its metadata is wrong",
            )
        y = _joined(labels)
        return Block(gathered.finish(), y, _joined(weights), skipped, bytes_read)

    @cached_property
    def filler(self) -> Filling | None:
        """The source where it can decode rows to their place, and none may be left out."""
        return self.source if isinstance(self.source, Filling) and not self.skip_bad else None

    def filling(self, rows: range, loader: Loader) -> int | None:
        """Return the bytes beside the rows when the source fills them in place, or None where it does not."""
        if self.filler is None:
            return None
        return self.filler.beside(rows, loader, dtype=self.dtype, all_rows=self.split is None)

    def fills(self, index: int, loader: Loader) -> bool:
        """Return whether the source decodes a partition's rows to their place."""
        partition = self.partition(index)
        return self.filling(range(partition.start, partition.stop), loader) is not None

    def _mask(self, partition: Partition) -> Mask | None:
        return None if self.split is None else self.split.mask(partition)

    def _filled(self, partition: Partition, mask: Mask | None, loader: Loader) -> Block:
        """Load rows that the source decodes to their place; none are left out."""
        assert self.filler is not None, "asked for before"
        reading = self.filler.reading(partition)
        y, weight = self._labels(partition, reading, mask)
        X = self._features(partition, mask, reading, loader)
        return Block(X, y, weight, 0, reading.bytes_read)

    def _features(
        self, partition: Partition, mask: Mask | None, reading: Reading, loader: Loader, *, checked: bool = True
    ) -> Array:
        """Return features of the wanted rows, checked or not."""
        rows = partition.rows if mask is None else int(mask.sum())
        X = DenseRoom(rows, len(self.source.columns), self.dtype, loader.memory).whole
        if not reading.fill(range(partition.start, partition.stop), mask, X, loader, checked=checked):
            self.check_finite(partition, 0, X, mask)
        return X

    def _labels(self, partition: Partition, reading: Reading, mask: Mask | None) -> tuple[Array | None, Array | None]:
        """Return checked labels and weights of the wanted rows."""
        keep = np.ones(partition.rows, dtype=np.bool_) if mask is None else mask
        y, weight = reading.y, reading.weight
        self._good(partition, 0, Rows(NO_FEATURES, y, weight), keep)
        return (
            None if y is None else np.ascontiguousarray(y if mask is None else y[mask]),
            None if weight is None else np.asarray(weight, dtype=np.float64)[keep],
        )

    def check_finite(self, partition: Partition, row: int, X: Array, mask: Mask | None = None) -> None:
        """Refuse rows, the wanted ones from a row of the partition on, that are not finite."""
        wrong = first_wrong(X)
        if wrong is not None:
            raise self._refused(partition, row, np.ones(len(X), dtype=np.bool_) if mask is None else mask, wrong)

    def _refused(self, partition: Partition, row: int, keep: Mask, wrong: Wrong) -> DataError:
        return DataError(
            f"column '{self.source.columns[wrong.column]}' is {wrong.value} as {self.dtype}",
            where=self.source.place(partition, row + int(np.flatnonzero(keep)[wrong.row])),
            hint="correct the row, or data.on_bad_rows=skip (or data.dtype=float64 where float32 overflows)",
        )

    def _room(self, partition: Partition, rows: int, loader: Loader) -> Room:
        d = len(self.source.columns)
        if self.lent:
            return LentRoom()
        if self.source.sparse:
            return SparseRoom(rows, self.source.nonzeros(partition), d, self.dtype)
        return DenseRoom(rows, d, self.dtype, loader.memory)

    def _good(self, partition: Partition, row: int, piece: Rows, keep: Array) -> npt.NDArray[np.bool_]:
        """Rows of a piece that may be used; raises for the first bad one unless bad rows are skipped."""
        good = np.ones(len(keep), dtype=np.bool_) if piece.bad is None else ~piece.bad
        checks: list[tuple[str, npt.NDArray[np.bool_]]] = []
        if piece.y is not None and piece.y.dtype.kind == "f":
            finite = np.isfinite(piece.y)
            checks.append(("the target", finite if finite.ndim == 1 else np.asarray(finite.all(axis=1))))
        if piece.weight is not None:
            weight = np.asarray(piece.weight, dtype=np.float64)
            checks.append(("the weight", np.isfinite(weight) & (weight >= 0)))
        if self.skip_bad and piece.X.dtype.kind == "f":
            checks.append(("a feature", finite_rows(piece.X)))
        for name, fine in checks:
            if not self.skip_bad and not fine[keep].all():
                at = int(np.flatnonzero(keep & ~fine)[0])
                values = piece.weight if name == "the weight" else piece.y
                assert values is not None
                raise DataError(
                    f"{name} is {values[at]!s}",
                    where=self.source.place(partition, row + at),
                    hint="correct the row, or set data.on_bad_rows=skip",
                )
            good &= fine
        return good


def _joined(parts: Sequence[Array]) -> Array | None:
    if not parts:
        return None
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
