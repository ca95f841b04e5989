"""What the first passes over the data compute: counts, labels, moments and co-deviations of the raw features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.errors import DataError
from bigopt.core.sums import Moments, Scatter
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView

Array = npt.NDArray[Any]

_MOMENT_ROWS = 4096
_MOST_LABELS = 100_000
_COUNTED = 1 << 16


@wire
class Profile(NamedTuple):
    """What one pass over the data finds: counts a partition, weight, feature moments, labels.

    Parameters
    ----------
    partitions, used, skipped : ndarray, shape (k,), int64
        Partition numbers with their used and skipped rows.
    moments : Moments
        Of the raw features, weighted; empty where they were not asked for.
    labels, label_rows : ndarray
        Sorted distinct labels and their rows; empty where not asked for.
    label_weight : ndarray, float64
        sum_i s_i over the rows of each label.
    width : int
        Columns of the target.
    """

    partitions: Ints
    used: Ints
    skipped: Ints
    moments: Moments
    labels: Array
    label_rows: Ints
    label_weight: Array
    width: int

    def merge(self, other: Profile) -> Profile:
        """Append the counts, merge the moments and the labels."""
        found = [p for p in (self, other) if len(p.labels)] or [self]
        labels, inverse = np.unique(np.concatenate([p.labels for p in found]), return_inverse=True)
        rows = np.zeros(len(labels), dtype=np.int64)
        np.add.at(rows, inverse, np.concatenate([p.label_rows for p in found]))
        weight = np.zeros(len(labels))
        np.add.at(weight, inverse, np.concatenate([p.label_weight for p in found]))
        if len(labels) > _MOST_LABELS:
            raise DataError(f"more than {_MOST_LABELS} distinct labels", hint="is the task a regression? set data.task")
        return Profile(
            np.concatenate([self.partitions, other.partitions]),
            np.concatenate([self.used, other.used]),
            np.concatenate([self.skipped, other.skipped]),
            self.moments.merge(other.moments),
            labels,
            rows,
            weight,
            max(self.width, other.width),
        )


@wire
@dataclass(frozen=True)
class ProfileData:
    """Decode, check and count every used row once.

    Parameters
    ----------
    view : DataView
    labels : bool
        Whether to collect the distinct labels.
    features : bool
        Whether the moments of the features are wanted; else they are empty, with the weight alone.
    """

    view: DataView
    labels: bool
    features: bool = True

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Profile:
        """Return the partition's profile."""
        part = int(unit[0])
        with meter.block(self.view, part) as entry:
            X, y, weight, skipped, _ = entry.block
            meter.rows += len(X)
            labels, rows, mass = np.empty(0), np.empty(0, dtype=np.int64), np.empty(0)
            width = 0 if y is None else y.shape[1] if y.ndim == 2 else 1
            if self.labels and y is not None and len(y) and width == 1:
                labels, rows, mass = distinct(y.reshape(-1), weight)
            if self.features:
                found = moments(X, weight)
            else:
                found = Moments(float(len(X)) if weight is None else float(weight.sum()), np.empty(0), np.empty(0))
            counted = (np.array([part]), np.array([len(X)]), np.array([skipped]))
            return Profile(*counted, found, labels, rows, mass, width)


def distinct(y: Array, weight: Array | None) -> tuple[Array, Ints, Array]:
    """Return the sorted distinct labels of a block, their rows, and their weights; integers are counted, not sorted."""
    if y.dtype.kind in "iub" and y.dtype != np.uint64:
        low, high = int(y.min()), int(y.max())
        if high - low < _COUNTED:
            place = np.subtract(y, low, dtype=np.int64)
            rows = np.bincount(place)
            found = np.flatnonzero(rows)
            mass = np.bincount(place, weights=weight)[found].astype(np.float64)
            return (found + low).astype(y.dtype), rows[found], mass
    labels, index, rows = np.unique(y, return_inverse=True, return_counts=True)
    mass = np.bincount(index.reshape(-1), weights=weight, minlength=len(labels)).astype(np.float64)
    return labels, rows, mass


def moments(X: Array | CSR, weight: Array | None) -> Moments:
    """Return the moments of a block of shape (k, d), in float64; dense rows are folded in pieces of 4096."""
    if isinstance(X, CSR):
        return _sparse_moments(X, weight)
    total = Moments(0.0, np.zeros(X.shape[1]), np.zeros(X.shape[1]))
    for lo in range(0, len(X), _MOMENT_ROWS):
        part = X[lo : lo + _MOMENT_ROWS].astype(np.float64)
        w = np.ones(len(part)) if weight is None else weight[lo : lo + _MOMENT_ROWS]
        mass = float(w.sum())
        if mass == 0.0:
            continue
        mean = (w @ part) / mass
        part -= mean
        total = total.merge(Moments(mass, mean, w @ (part * part)))
    return total


def _sparse_moments(X: CSR, weight: Array | None) -> Moments:
    """Moments of sparse rows: a value that is not stored is a zero and counts like any other.

    With n_j the weight of the rows that store a value in column j:
    ``spread_j = sum_stored s_i (x_ij - mean_j)^2 + (W - n_j) mean_j^2``.
    """
    w = np.ones(len(X)) if weight is None else weight
    mass, mean, spread = float(w.sum()), np.zeros(X.columns), np.zeros(X.columns)
    if mass == 0.0:
        return Moments(0.0, mean, spread)
    columns, own = X.own()
    values, each = own.data.astype(np.float64), np.repeat(w, np.diff(own.indptr))
    at, m = own.indices, own.columns
    middle = np.bincount(at, each * values, m) / mass
    absent = np.maximum(0.0, mass - np.bincount(at, each, m))  # weights that are not integers round
    mean[columns] = middle
    spread[columns] = np.bincount(at, each * np.square(values - middle[at]), m) + absent * np.square(middle)
    return Moments(mass, mean, spread)


@wire
@dataclass(frozen=True)
class ScatterData:
    """The co-deviations of the features, for whitening."""

    view: DataView

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Scatter:
        """Return the partition's `Scatter`, folded in pieces of 4096 rows in float64."""
        with meter.block(self.view, int(unit[0])) as entry:
            X, weight = entry.block.X, entry.block.weight
            meter.rows += len(X)
            d = X.shape[1]
            total = Scatter(0.0, np.zeros(d), np.zeros((d, d)))
            for lo in range(0, len(X), _MOMENT_ROWS):
                part = X[lo : lo + _MOMENT_ROWS].astype(np.float64)
                w = np.ones(len(part)) if weight is None else weight[lo : lo + _MOMENT_ROWS]
                mass = float(w.sum())
                if mass:
                    mean = (w @ part) / mass
                    part -= mean
                    total = total.merge(Scatter(mass, mean, (part * w[:, None]).T @ part))
            return total
