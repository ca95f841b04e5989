"""What a worker computes that holds a block of columns: partial margins, its part of the gradient, its facts.

The margins of a linear model are a sum over columns, v = sum_b X_b W_b + intercept, and its gradient needs of the other
columns only the residual r = dloss/dv: the part of block b is X_b^T r. So a step is

    Map     every block: X_b W_b for the rows of the batch          (rows x q numbers, added over the blocks)
    driver  v, loss and r from the sum and the labels, which the first block brings
    Map     every block: X_b^T r                                    (its own d_b x q numbers)

A leaf of a round's tree is a block: who is added to whom depends on the number of blocks only, whoever holds them.
Inside a block, units and pieces of `block_rows` rows are added in the plan's order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.sums import Moments, added, merge
from bigopt.data.columnview import column_views
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView
from bigopt.models import kernels
from bigopt.work_profile import Profile, ProfileData
from bigopt.work_rows import unit_rows

Array = npt.NDArray[Any]


def leaves(blocks: int, rows: int) -> Ints:
    """Return the leaves of a round over blocks, ``(block, 0, 0, rows)``."""
    found = np.zeros((blocks, 4), dtype=np.int64)
    found[:, 0], found[:, 3] = np.arange(blocks), rows
    return found


@wire
class Margins(NamedTuple):
    """Margins of the rows of a batch over some blocks, before the intercept.

    Parameters
    ----------
    values : ndarray, shape (rows, q)
        sum_b X_b W_b, added in ``run.dtype``.
    y : ndarray, shape (rows,) or (rows, q), or None
        Encoded targets, from the first block.
    weight : ndarray, shape (rows,), or None
        From the first block.
    """

    values: Array
    y: Array | None
    weight: Array | None

    def merge(self, other: Margins) -> Margins:
        """Add the margins over other blocks of the same rows."""
        mine = self.y is not None
        return Margins(
            added(self.values, other.values),
            self.y if mine else other.y,
            self.weight if mine else other.weight,
        )


@wire
class Parts(NamedTuple):
    """One vector for each of some consecutive blocks."""

    vectors: tuple[Array, ...]

    def merge(self, other: Parts) -> Parts:
        """Append the blocks of the right operand."""
        return Parts(self.vectors + other.vectors)


@wire
@dataclass(frozen=True, eq=False)
class Columns:
    """The rows of a batch, block of columns by block of columns; what the work of all rounds has in common.

    Parameters
    ----------
    view : DataView
        With all columns; workers open only those of their blocks.
    cuts : ndarray, shape (B + 1,), int64
        Where blocks begin and end.
    outputs : int
        q.
    seed : int
        Of the plan.
    dtype : str
        ``run.dtype``.
    block_rows : int
    """

    view: DataView
    cuts: Ints
    outputs: int
    seed: int
    dtype: str
    block_rows: int

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.cuts) - 1

    @cached_property
    def views(self) -> tuple[DataView, ...]:
        """The view of each block."""
        return column_views(self.view, self.cuts)

    def width(self, block: int) -> int:
        """Return the columns of a block."""
        return int(self.cuts[block + 1] - self.cuts[block])

    def parameters(self, first: int, last: int) -> slice:
        """Return where the weights of the blocks [first, last) lie within the flat vector."""
        return slice(int(self.cuts[first]) * self.outputs, int(self.cuts[last]) * self.outputs)

    def weights(self, vector: Array, first: int, block: int) -> Array:
        """Return a block's weights, shape (d_b, q), of a vector that begins with those of block `first`."""
        base = self.parameters(first, first).start
        here = self.parameters(block, block + 1)
        return vector[here.start - base : here.stop - base].reshape(self.width(block), self.outputs)

    def rows(self, block: int, units: Ints, meter: Meter) -> Iterator[tuple[Array, Any, Array | None]]:
        """Yield the rows of each unit with the columns of a block, while they are in memory."""
        order = Meter(meter.blocks, order=tuple(units[:, 0].tolist()), buffers=meter.buffers)
        for unit in units:
            with order.block(self.views[block], int(unit[0])) as entry:
                rows = unit_rows(entry, self.seed, unit, meter.buffers)
                yield rows
                meter.rows += len(rows[0]) if block == 0 else 0
        meter.bytes_read += order.bytes_read

    def pieces(self, X: Array) -> Iterator[Array]:
        """Yield the rows of a unit in pieces of `block_rows`."""
        yield from (X[lo : lo + self.block_rows] for lo in range(0, len(X), self.block_rows))

    def margins(self, weights: Array, block: int, units: Ints, meter: Meter) -> Margins:
        """Return X_b W_b of the rows of some units; the first block adds labels and weights."""
        values, labels, masses = [np.empty((0, self.outputs), dtype=self.dtype)], [], []
        for rows in self.rows(block, units, meter):
            for X in self.pieces(rows[0]):
                values.append(kernels.dense(X, weights, None).astype(self.dtype, copy=False))
            if block == 0:
                labels.append(np.array(rows[1]))
                masses += [] if rows[2] is None else [np.array(rows[2])]
        return Margins(
            np.concatenate(values),
            np.concatenate(labels) if labels else None,
            np.concatenate(masses) if masses else None,
        )

    def gradient(self, residual: Array, block: int, units: Ints, meter: Meter) -> Array:
        """Return X_b^T r over the rows of some units, shape (d_b q,), pieces added in ``run.dtype``.

        Parameters
        ----------
        residual : ndarray, shape (rows, q)
            In the block dtype, with the weights of the rows.
        """
        total = np.zeros((self.width(block), self.outputs), dtype=self.dtype)
        part = np.empty(total.shape, dtype=self.view.dtype)
        at = 0
        for rows in self.rows(block, units, meter):
            for X in self.pieces(rows[0]):
                kernels.dense_gradient(X, residual[at : at + len(X)], part, None)
                total += part
                at += len(X)
        return total.reshape(-1)

    def cast(self, vector: Array) -> Array:
        """Return a vector in the block dtype, C-contiguous."""
        return np.ascontiguousarray(vector, dtype=self.view.dtype)


@wire
@dataclass(frozen=True, eq=False)
class PartialMargins:
    """X_b W_b of the rows of a batch.

    Its leaves are blocks, ``(block, 0, 0, rows)``; its inputs the number of the first block that weights are sent for,
    shape (1,), the batch's units, and the weights of that block and those after it.

    Parameters
    ----------
    columns : Columns
    """

    columns: Columns

    @property
    def view(self) -> DataView:
        """The rows it works on."""
        return self.columns.view

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast the weights to the block dtype."""
        return int(inputs[0][0]), inputs[1], self.columns.cast(inputs[2])

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Margins:
        """Return the margins of a block."""
        first, units, vector = inputs
        block = int(unit[0])
        return self.columns.margins(self.columns.weights(vector, first, block), block, units, meter)


@wire
@dataclass(frozen=True, eq=False)
class BlockGradient:
    """X_b^T r of the rows of a batch; leaves as in `PartialMargins`, inputs the units and r, shape (rows, q).

    Parameters
    ----------
    columns : Columns
    """

    columns: Columns

    @property
    def view(self) -> DataView:
        """The rows it works on."""
        return self.columns.view

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing: the residual comes in the block dtype."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Parts:
        """Return the gradient of a block."""
        return Parts((self.columns.gradient(inputs[1], int(unit[0]), inputs[0], meter),))


@wire
class Profiles(NamedTuple):
    """Profiles of consecutive blocks of columns, each of the partitions seen so far.

    Parameters
    ----------
    first : int
        Block of the first.
    parts : tuple of Profile
    """

    first: int
    parts: tuple[Profile, ...]

    def merge(self, other: Profiles) -> Profiles:
        """Merge where both have parts of the same block, and append the others."""
        if self.first + len(self.parts) - 1 == other.first:
            both: Profile = merge(self.parts[-1], other.parts[0])
            return Profiles(self.first, (*self.parts[:-1], both, *other.parts[1:]))
        return Profiles(self.first, self.parts + other.parts)

    def joined(self) -> Profile:
        """Return the profile of the whole rows: that of the first block with the moments of all columns."""
        first, moments = self.parts[0], [part.moments for part in self.parts]
        mean, spread = (np.concatenate([m[k] for m in moments]) for k in (1, 2))
        return first._replace(moments=Moments(first.moments.weight, mean, spread))


@wire
@dataclass(frozen=True, eq=False)
class ProfileColumns:
    """Decode, check and count every used row once, a block of columns at a time.

    Its leaves are partitions of blocks, ``(block P + partition, ALL, 0, rows)``, block by block, so that a worker that
    keeps a block reads it once.

    Parameters
    ----------
    view : DataView
        With all columns, neither scaled nor encoded.
    cuts : ndarray, shape (B + 1,)
    labels, features : bool
        As in `bigopt.work_profile.ProfileData`.
    """

    view: DataView
    cuts: Ints
    labels: bool
    features: bool

    @cached_property
    def _works(self) -> tuple[ProfileData, ...]:
        views = column_views(self.view, self.cuts)
        return tuple(ProfileData(view, self.labels and not b, self.features) for b, view in enumerate(views))

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Profiles:
        """Return the profile of a partition's columns."""
        block, partition = divmod(int(unit[0]), self.view.partitions)
        own = Meter(meter.blocks)
        found = self._works[block](inputs, np.array([partition, *unit[1:]]), own)
        meter.bytes_read += own.bytes_read
        meter.rows += own.rows if block == 0 else 0
        return Profiles(block, (found,))
