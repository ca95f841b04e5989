"""A view: what a dataset looks like to a model.

A view says which rows are used (training or validation side of the split, bad rows left out), in which dtype blocks are
computed, how features are standardised and how targets are encoded. It is a frozen value that travels to the workers;
`DataView.load` reads one partition and returns a `Block` with only the used rows, C-contiguous, finite, checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import codec, rng
from bigopt.core.codec import wire
from bigopt.core.errors import DataError
from bigopt.data.source import Partition, Rows, Source

Array = npt.NDArray[Any]
TargetKind = Literal["values", "binary", "sign", "index", "onehot"]

_CHECK_ROWS = 4096


class Block(NamedTuple):
    """Decoded used rows of one partition.

    Parameters
    ----------
    X : ndarray, shape (k, d)
        Block dtype, C-contiguous, finite.
    y : ndarray, shape (k,) or (k, q)
        Raw labels, or encoded targets where the view has `Targets`.
    weight : ndarray, shape (k,), float64, or None
    skipped : int
        Bad rows left out.
    bytes_read : int
        Bytes read from the store.
    """

    X: Array
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
class Scaling:
    """Features are used as (x - mean) / scale, column by column.

    Parameters
    ----------
    mean, scale : ndarray, shape (d,), float64
    """

    mean: Array
    scale: Array

    def apply(self, X: Array) -> None:
        """Standardise a block of shape (k, d) in place, computed in float64."""
        for lo in range(0, len(X), _CHECK_ROWS):
            part = X[lo : lo + _CHECK_ROWS]
            part[...] = (part.astype(np.float64) - self.mean) / self.scale

    def undo(self, weight: Array, shift: Array) -> tuple[Array, Array]:
        """Return (d, q) coefficients and (q,) intercepts on the original features: w/scale, b - mean.(w/scale)."""
        weight = weight / self.scale[:, None]
        return weight, shift - self.mean @ weight

    def redo(self, weight: Array, shift: Array) -> tuple[Array, Array]:
        """Return the coefficients on prepared features that do what `weight` and `shift` do on the original ones."""
        return weight * self.scale[:, None], shift + self.mean @ weight


@wire
@dataclass(frozen=True)
class Whitening:
    """Features are used as (x - mean) T, so that their covariance is the identity.

    Parameters
    ----------
    mean : ndarray, shape (d,), float64
    matrix : ndarray, shape (d, d), float64
        T: the inverse root of the covariance; 0 along directions without variance.
    """

    mean: Array
    matrix: Array

    def apply(self, X: Array) -> None:
        """Whiten a block of shape (k, d) in place, computed in float64."""
        for lo in range(0, len(X), _CHECK_ROWS):
            part = X[lo : lo + _CHECK_ROWS]
            part[...] = (part.astype(np.float64) - self.mean) @ self.matrix

    def undo(self, weight: Array, shift: Array) -> tuple[Array, Array]:
        """Return (d, q) coefficients and (q,) intercepts on the original features: T w, b - mean.(T w)."""
        weight = self.matrix @ weight
        return weight, shift - self.mean @ weight

    def redo(self, weight: Array, shift: Array) -> tuple[Array, Array]:
        """Return the coefficients on prepared features that do what `weight` and `shift` do on the original ones."""
        return np.linalg.pinv(self.matrix) @ weight, shift + self.mean @ weight


Preparation = Scaling | Whitening
"""What is done to the features."""


@wire
@dataclass(frozen=True)
class Targets:
    """How raw labels become what a loss takes.

    Parameters
    ----------
    kind : str
        ``values`` floats (k, q); ``binary`` 0/1 (k,), 1 for the larger class; ``sign`` -1/+1 (k,), +1 for the larger;
        ``index`` int64 class numbers (k,); ``onehot`` floats (k, C), as stored.
    classes : tuple
        Sorted labels; empty for ``values``.
    """

    kind: TargetKind
    classes: tuple[Any, ...] = ()

    def encode(self, y: Array, dtype: str) -> Array:
        """Return the encoded targets of raw labels of shape (k,) or (k, q).

        Raises
        ------
        DataError
            A label that is none of the classes, with its count.
        """
        if self.kind in ("values", "onehot"):
            return np.ascontiguousarray(_numbers(y if y.ndim == 2 else y[:, None]), dtype=dtype)
        classes = np.asarray(self.classes)
        y = y.reshape(-1)
        if (classes.dtype.kind == "U") != (y.dtype.kind == "U"):
            y = y.astype(str) if classes.dtype.kind == "U" else _numbers(y)
        order = np.argsort(classes)
        index = order[np.minimum(np.searchsorted(classes, y, sorter=order), len(classes) - 1)]
        wrong = classes[index] != y
        if wrong.any():
            label = y[wrong][0]
            raise DataError(
                f"label {label!s} ({int((y == label).sum())} rows) is none of the {len(classes)} training classes",
                hint=f"the classes are {', '.join(map(str, self.classes[:10]))}",
            )
        if self.kind == "sign":
            index = 2 * index - 1
        return index.astype(np.int64) if self.kind == "index" else index.astype(dtype)


def _numbers(y: Array) -> Array:
    """Read text labels as numbers; others pass."""
    if y.dtype.kind != "U":
        return y
    try:
        return y.astype(np.float64)
    except ValueError as error:
        raise DataError(f"the target holds text where the model has numbers: {error}") from error


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
    """

    source: Source
    bounds: Array
    dtype: str
    skip_bad: bool = False
    split: Split | None = None
    scaling: Preparation | None = None
    targets: Targets | None = None

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
        return replace(self, scaling=None, targets=None)

    @cached_property
    def key(self) -> str:
        """Digest of everything that decides what a block holds."""
        tree, arrays = codec.pack(replace(self, source=None))  # type: ignore[arg-type]
        digest = hashlib.sha256(json.dumps([self.source.identity(), tree], default=str).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def decoded_bytes(self, index: int) -> int:
        """Bytes that a whole decoded partition may hold: features, targets, weight and a permutation."""
        rows = int(self.bounds[index + 1] - self.bounds[index])
        return rows * (len(self.source.columns) * np.dtype(self.dtype).itemsize + 24)

    def load(self, index: int) -> Block:
        """Read, check, convert and prepare one partition."""
        return self.prepare(self.load_raw(index))

    def prepare(self, raw: Block) -> Block:
        """Scale and encode a raw block; its features are scaled in place."""
        if self.scaling is not None:
            self.scaling.apply(raw.X)
        if self.targets is None or raw.y is None:
            return raw
        return raw._replace(y=self.targets.encode(raw.y, self.dtype))

    def load_raw(self, index: int) -> Block:
        """Read the used rows of one partition.

        Raises
        ------
        DataError
            Damaged or missing chunks, and non-finite features, labels or weights, with file, row and column.
        """
        partition = self.partition(index)
        mask = None if self.split is None else self.split.mask(partition)
        room = partition.rows if mask is None else int(mask.sum())
        X = np.empty((room, len(self.source.columns)), dtype=self.dtype)
        labels: list[Array] = []
        weights: list[Array] = []
        at = row = bytes_read = skipped = 0
        for piece in self.source.pieces(partition):
            rows = len(piece.X)
            keep = np.ones(rows, dtype=np.bool_) if mask is None else mask[row : row + rows]
            good = self._good(partition, row, piece, keep)
            skipped += int((keep & ~good).sum())
            keep = keep & good
            count = int(keep.sum())
            with np.errstate(over="ignore", invalid="ignore"):  # found just below
                X[at : at + count] = piece.X if count == rows else piece.X[keep]
            self._check_finite(X[at : at + count], keep, partition, row)
            if piece.y is not None:
                labels.append(piece.y if count == rows else piece.y[keep])
            if piece.weight is not None:
                weights.append(np.asarray(piece.weight, dtype=np.float64)[keep])
            at, row, bytes_read = at + count, row + rows, bytes_read + piece.bytes_read
        if row != partition.rows:
            raise DataError(
                f"{row} rows where {partition.rows} were expected",
                where=self.source.place(partition, max(0, row - 1)),
                hint="the data changed or its metadata is wrong",
            )
        y = _joined(labels)
        return Block(X[:at], y, _joined(weights), skipped, bytes_read)

    def _good(self, partition: Partition, row: int, piece: Rows, keep: Array) -> npt.NDArray[np.bool_]:
        """Rows of a piece that may be used; raises for the first bad one unless bad rows are skipped."""
        good = np.ones(len(piece.X), dtype=np.bool_) if piece.bad is None else ~piece.bad
        checks: list[tuple[str, npt.NDArray[np.bool_]]] = []
        if piece.y is not None and piece.y.dtype.kind == "f":
            finite = np.isfinite(piece.y)
            checks.append(("the target", finite if finite.ndim == 1 else np.asarray(finite.all(axis=1))))
        if piece.weight is not None:
            weight = np.asarray(piece.weight, dtype=np.float64)
            checks.append(("the weight", np.isfinite(weight) & (weight >= 0)))
        if self.skip_bad and piece.X.dtype.kind == "f":
            checks.append(("a feature", np.asarray(np.isfinite(piece.X).all(axis=1))))
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

    def _check_finite(self, X: Array, keep: Array, partition: Partition, row: int) -> None:
        for lo in range(0, len(X), _CHECK_ROWS):
            finite = np.isfinite(X[lo : lo + _CHECK_ROWS])
            if finite.all():
                continue
            at, column = (int(v[0]) for v in np.nonzero(~finite))
            place = row + int(np.flatnonzero(keep)[lo + at])
            raise DataError(
                f"column '{self.source.columns[column]}' is {X[lo + at, column]} as {self.dtype}",
                where=self.source.place(partition, place),
                hint="correct the row, or set data.on_bad_rows=skip (or data.dtype=float64 where float32 overflows)",
            )


def _joined(parts: Sequence[Array]) -> Array | None:
    if not parts:
        return None
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
