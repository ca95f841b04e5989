"""Blocks of columns: the same rows, seen by a worker that holds only some of their features.

A `ColumnBlock` is a source like any other whose X has the features [start, stop). Zarr reads only the chunks that hold
them (a group chunked both ways is read once by all blocks together), Parquet only those columns; NPY files and
fixed-size lists are read whole and the others dropped piece by piece. One block, the first, brings the labels; the
weights, which every block needs for the moments of its columns, come with all.

`column_cuts` says where blocks begin: about equal, at the bounds of column chunks where there are enough of them, a
function of the dataset and the number of blocks alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.data.preparation import Preparation, Scaling
from bigopt.data.source import Partition, Rows, Source
from bigopt.data.view import DataView

Ints = npt.NDArray[np.int64]


@runtime_checkable
class Cuttable(Protocol):
    """A source that can leave out features."""

    def cut(self, start: int, stop: int, *, labels: bool) -> Source:
        """Return the same rows with the features [start, stop) alone, and the labels where they are wanted."""
        ...


@wire
@dataclass(frozen=True)
class ColumnBlock:
    """Some columns of a source; its `identity` says which, so that their blocks are never taken for the whole rows.

    Parameters
    ----------
    inner : Source
        The source, cut.
    start, stop : int
        Its columns among those of the uncut source.
    labels : bool
        Whether pieces have their y.
    """

    inner: Any
    start: int
    stop: int
    labels: bool

    @property
    def columns(self) -> Sequence[str]:
        """Names of the block's features."""
        names: Sequence[str] = self.inner.columns
        return names

    @property
    def sparse(self) -> bool:
        """Whether pieces hold CSR rows."""
        return bool(self.inner.sparse)

    @property
    def stored(self) -> str:
        """NumPy dtype name of X."""
        return str(self.inner.stored)

    def nonzeros(self, partition: Partition) -> int:
        """Return how many values a partition stores."""
        return int(self.inner.nonzeros(partition))

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows."""
        yield from self.inner.pieces(partition)

    def place(self, partition: Partition, row: int) -> str:
        """Say where a row lies, and which columns of it were read."""
        return f"{self.inner.place(partition, row)}, columns {self.start} to {self.stop - 1}"

    def identity(self) -> str:
        """Return the fingerprint of the dataset and the columns."""
        return f"{self.inner.identity()}[{self.start}:{self.stop}{' with labels' if self.labels else ''}]"


def column_cuts(source: Source, number: int) -> Ints:
    """Return where blocks of columns begin and end, shape (number + 1,), from 0 to d.

    Parameters
    ----------
    source : Source
    number : int
        Blocks.

    Raises
    ------
    ConfError
        More blocks than columns, or data that is not cut: sparse rows.
    """
    d, where = len(source.columns), "strategy.blocks"
    if source.sparse or not isinstance(source, Cuttable):
        hint = "strategy sync, or dense data" if source.sparse else "write it as Zarr or Parquet"
        raise ConfError("blocks of columns are cut of dense rows", where="strategy.name", hint=hint)
    if number > d:
        raise ConfError(f"{number} blocks of {d} columns", where=where, hint=f"at most {d}")
    even = np.arange(number + 1, dtype=np.int64) * d // number
    chunk = int(getattr(source, "chunk_columns", 1))
    if -(-d // chunk) < number:
        return even
    chunks = np.arange(number + 1, dtype=np.int64) * -(-d // chunk) // number
    return np.minimum(chunks * chunk, d)


def column_views(view: DataView, cuts: Ints) -> tuple[DataView, ...]:
    """Return the view of each block: its columns, its part of the scaling; the first with the labels.

    Parameters
    ----------
    view : DataView
        Of all columns, dense.
    cuts : ndarray, shape (B + 1,)
        As `column_cuts` gives them.
    """
    source = view.source
    assert isinstance(source, Cuttable)
    views = []
    for block in range(len(cuts) - 1):
        start, stop, labels = int(cuts[block]), int(cuts[block + 1]), block == 0
        views.append(
            replace(
                view,
                source=ColumnBlock(source.cut(start, stop, labels=labels), start, stop, labels),
                scaling=_cut(view.scaling, start, stop),
                targets=view.targets if labels else None,
                class_weight=view.class_weight if labels else (),
                scratch=None,
            )
        )
    return tuple(views)


def _cut(scaling: Preparation | None, start: int, stop: int) -> Scaling | None:
    if scaling is None:
        return None
    assert isinstance(scaling, Scaling), "whitening mixes all columns"
    return Scaling(scaling.mean[start:stop], scaling.scale[start:stop])


def block_homes(blocks: int, slots: int) -> Ints:
    """Return the slot that holds each block, ascending, shape (blocks,): the same in every round."""
    return np.arange(blocks, dtype=np.int64) * min(slots, blocks) // blocks


def cuts_within(view: DataView, memory: int) -> Ints | None:
    """Return the fewest blocks of columns of which a partition can be decoded within some memory.

    Parameters
    ----------
    view : DataView
    memory : int
        Bytes, for what is decoded and for what is kept of it.

    Returns
    -------
    ndarray, shape (B + 1,), or None
        None where whole rows fit, and where they cannot be cut.
    """
    source, d = view.source, len(view.source.columns)
    largest = max((view.decoded_bytes(m) for m in range(view.partitions)), default=0)
    number = -(-2 * largest // max(1, memory))
    if number <= 1 or source.sparse or not isinstance(source, Cuttable):
        return None
    while number <= d:
        cuts = column_cuts(source, number)
        widest = column_views(view, cuts)[int(np.argmax(np.diff(cuts)))]
        if 2 * max(widest.decoded_bytes(m) for m in range(widest.partitions)) <= memory:
            return cuts
        number += 1
    return None
