"""A partition's rows as they are decoded, chunk by chunk, while they are still in the cache of a core.

What does not stay in memory need not lie there as a whole either: a pass that wants every row once, in order, takes a
chunk when it is decoded and gives its memory to the next but one. Writing rows to memory and reading them again is
then saved, and so is the room for a block; where a core is idle it decodes the next chunk meanwhile.

Blocks of a stream hold a multiple of `step` rows, but for the last one, so that whoever folds rows in groups of `step`
counted from the partition's first row gets the bits of the whole partition. Where chunks do not, the rows that are left
over are copied to the front of the next chunk's memory.

Whoever can tell from what it made of the rows that all were finite takes them unchecked. Where nothing has to be
decoded, it may read them itself, a whole partition in one call without the interpreter (`Stream.read`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from bigopt.core.extents import Stored
from bigopt.data.loading import Loader
from bigopt.data.preparation import Scaling, Whitening
from bigopt.data.rooms import DenseRoom
from bigopt.data.view import Block, DataView

Array = npt.NDArray[Any]
T = TypeVar("T")

WINDOW: Final = 3
"""Blocks of a stream at a time: one in use, and two that are decoded by a helper and by whoever waits for it."""
_WAIT: Final = 2e-3
"""Seconds that a chunk waits, for a disk or for a core."""


def stream_bytes(view: DataView, index: int, step: int, loader: Loader) -> int | None:
    """Return the bytes that a `stream` holds at a time, or None where a partition cannot be gone through so.

    Rows that are left out would shift those after them; whitening takes rows by thousands.

    Parameters
    ----------
    view : DataView
    index : int
        Partition number.
    step : int
        What the rows of a block are a multiple of.
    loader : Loader
    """
    source = view.filler
    if view.split is not None or isinstance(view.scaling, Whitening) or source is None:
        return None
    if source.waits:  # the chunks of a block are asked for together
        return None
    partition = view.partition(index)
    height = min(source.height, partition.rows)
    beside = view.filling(range(partition.start, partition.start + height), loader)
    if beside is None or not source.begins(partition.start):
        return None
    block = (step + height) * len(source.columns) * np.dtype(view.dtype).itemsize
    return 24 * partition.rows + min(WINDOW, -(-partition.rows // height)) * (beside + block)


class Stream:
    """A partition's prepared rows, as an iterator of consecutive blocks.

    A block is valid until the next is asked for. Where reading waits for a disk, the system is asked for the next chunk
    while one is decoded.

    Parameters
    ----------
    view : DataView
    index : int
        Partition number.
    step : int
        What the rows of a block are a multiple of.
    loader : Loader
    labels : Block
        What `DataView.labels` returned.
    checked : bool
        Whether features that are not finite are refused.

    Raises
    ------
    DataError
        As `DataView.load_raw`.
    """

    def __init__(
        self, view: DataView, index: int, step: int, loader: Loader, labels: Block, *, checked: bool = True
    ) -> None:
        self._view, self._index, self._step, self._loader, self.labels = view, index, step, loader, labels
        self._checked = checked
        self._blocks = _blocks(view, index, step, loader, labels, checked=checked)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Block:
        return next(self._blocks)

    def close(self) -> None:
        """Give up what is left."""
        self._blocks.close()

    def read(self, add: Callable[[Stored], T | None]) -> T | None:
        """Let somebody read the rows where they lie, in files; return what he does.

        Parameters
        ----------
        add : callable
            Takes where the rows are, and memory for as long as it runs. It returns None where it could not read them.

        Returns
        -------
        T or None
            None also where rows are checked, or have to be decoded. The blocks still come as if nothing had been read.
        """
        view, loader = self._view, self._loader
        source = view.filler
        assert source is not None, "asked for before"
        where = None if self._checked else source.extents(view.partition(self._index), view.dtype)
        room, key = stream_bytes(view, self._index, self._step, loader), (view.key, self._index)
        if where is None or room is None or where.room(self._step) > room or key in loader.decoded:
            return None
        scaling = (view.scaling.mean, view.scaling.scale) if isinstance(view.scaling, Scaling) else None
        memory = loader.memory.take(where.room(self._step))
        begin = time.perf_counter() - time.thread_time()
        found = add(Stored(where, view.dtype, self.labels.y, self.labels.weight, scaling, memory, loader.waits))
        loader.waits = time.perf_counter() - time.thread_time() - begin > _WAIT * len(where.paths)
        if found is None:
            loader.decoded.add(key)
        return found


def _blocks(
    view: DataView, index: int, step: int, loader: Loader, labels: Block, *, checked: bool
) -> Generator[Block, None, None]:
    partition, source, alone = view.partition(index), view.filler, loader.alone
    assert source is not None, "asked for before"
    reading = source.reading(partition, labels=False)
    waits: list[int] = []

    def chunk(lo: int) -> Array:
        """Return the prepared rows from `lo` on, behind room for `step` of those before."""
        hi = min(lo + source.height, partition.rows)
        if waits and hi < partition.rows:
            source.soon(range(partition.start + hi, min(partition.stop, partition.start + hi + source.height)))
        begin = time.perf_counter() - time.thread_time()
        room = DenseRoom(step + hi - lo, len(source.columns), view.dtype, loader.memory).whole
        X = room[step:]
        if not reading.fill(range(partition.start + lo, partition.start + hi), None, X, alone, checked=checked):
            view.check_finite(partition, lo, X)
        if time.perf_counter() - time.thread_time() - begin > _WAIT:
            waits.append(lo)
        if view.scaling is not None:
            view.scaling.apply(X)
        return room

    at, before = 0, -labels.bytes_read
    over = np.empty((0, len(source.columns)), dtype=view.dtype)
    for room in loader.ordered([partial(chunk, lo) for lo in range(0, partition.rows, source.height)], WINDOW):
        first = step - len(over)
        room[first:step] = over
        rows = len(room) - first
        rows -= rows % step if at + rows < partition.rows else 0
        over = room[first + rows :].copy()
        read = reading.bytes_read
        y, weight = (None if a is None else a[at : at + rows] for a in (labels.y, labels.weight))
        at += rows
        block = Block(room[first : first + rows], y, weight, 0, read - before)
        before = read
        del room
        yield block
        del block
