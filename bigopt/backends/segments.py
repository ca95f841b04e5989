"""Shared memory without names: a vector is written once and read in place by every process of the machine.

A `Segment` is an anonymous file in memory (``memfd_create``) of fixed size. Its descriptor travels over a Unix socket
(``SCM_RIGHTS``), so nothing has a path that a killed process could leave behind and nobody else can open it: the system
frees the pages when the last process that maps them is gone.

Only the process that made a segment writes to it, and only while nobody looks at it. Who receives an array gets a view
of the segment; when the last view has died the segment is *given back* with the next message, and may be written again.
Who makes a vector that is to be sent may have a segment *lent* and make it there: sending it then copies nothing.
There are no torn reads by construction: a work or an optimizer that keeps an array keeps its segment.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import threading
from collections import Counter
from collections.abc import Hashable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

SMALL: Final = 4096
"""Arrays of at most so many bytes are not worth a segment."""
_HERE: Final = 2
"""References to a segment's data of which no view exists: the segment's and the question's."""
_IDLE: Final = 8
"""Segments that a pool keeps for later; the one that was used least recently goes first."""


class Segment:
    """Memory of one size that this process writes.

    Parameters
    ----------
    number : int
        Unique in its pool.
    size : int
        Bytes, a multiple of the page.
    """

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.fd = os.memfd_create(f"bigopt-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.data: Bytes = np.frombuffer(mmap.mmap(self.fd, size), dtype=np.uint8)
        except BaseException:
            os.close(self.fd)
            raise
        self.at = _address(self.data)
        self.holders: Counter[Hashable] = Counter()
        self.source: tuple[object, Bytes] | None = None

    @property
    def free(self) -> bool:
        """Whether nobody looks at it, in this process or in another."""
        return not self.holders and sys.getrefcount(self.data) <= _HERE

    def close(self) -> None:
        """Forget the memory; who has mapped it keeps it."""
        os.close(self.fd)


class Pool:
    """The segments that a process writes, and who looks at each of them; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segments: dict[int, Segment] = {}
        self._places: dict[int, Segment] = {}
        self._count = 0
        self._closed = not hasattr(os, "memfd_create")

    def __contains__(self, number: int) -> bool:
        return number in self._segments

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        with self._lock:
            return sum(segment.size for segment in self._segments.values())

    def lend(self, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        """Return an uninitialised vector to be sent later, the caller's for as long as he or a holder looks at it.

        It must not be written to once it is sent. None where it is too short for a segment, or there is none to give.
        """
        kind = np.dtype(dtype)
        need = size * kind.itemsize
        if need <= SMALL:
            return None
        with self._lock:
            try:
                segment = None if self._closed else self._free(need)
            except OSError:
                return None
            return None if segment is None else segment.data[:need].view(kind)

    def place(self, data: Bytes, holder: Hashable, origin: object = None) -> Segment | None:
        """Write an array for somebody to look at, unless it lies at the beginning of a segment already.

        Parameters
        ----------
        data : ndarray of uint8
            At least one byte, contiguous.
        holder : hashable
            Who will give it back, by `give_back` or `forget`.
        origin : object, optional
            What the array belongs to, such as the inputs of a round: the same array of the same object is written once,
            however many look at it. It is held, and the array must not be changed, for so long.

        Returns
        -------
        Segment or None
            None where this system has no such memory to give: send the bytes themselves.
        """
        with self._lock:
            if self._closed:
                return None
            source = None if origin is None else (origin, data)
            segment = self._places.get(_address(data)) or (self._same(origin, data) if source else None)
            if segment is None:
                try:
                    segment = self._free(data.nbytes)
                except OSError:
                    return None
                np.copyto(segment.data[: data.nbytes], data)
                segment.source = source
            segment.holders[holder] += 1
            return segment

    def _same(self, origin: object, data: Bytes) -> Segment | None:
        for segment in self._segments.values():
            if segment.source is not None and segment.source[0] is origin and _same_bytes(segment.source[1], data):
                return segment
        return None

    def _free(self, need: int) -> Segment:
        """Take the smallest segment that is free and not much too large, the least recently used one's place else."""
        free = [s for s in self._segments.values() if s.free]
        fitting = [s for s in free if need <= s.size <= 2 * need + mmap.PAGESIZE]
        if fitting:
            found = min(fitting, key=lambda s: (s.size, -s.number))
            self._segments[found.number] = self._segments.pop(found.number)  # the most recently used is the last
            return found
        for old in free[: max(0, len(free) + 1 - _IDLE)]:
            del self._places[old.at]
            self._segments.pop(old.number).close()
        self._count += 1
        segment = Segment(self._count, -(-need // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._segments[segment.number] = self._places[segment.at] = segment
        return segment

    def give_back(self, number: int, holder: Hashable) -> None:
        """Note that a holder looks at one of the arrays it was given no more."""
        with self._lock:
            segment = self._segments.get(number)
            if segment is None or segment.holders[holder] < 1:
                raise ValueError(f"segment {number} was not given to this holder")
            segment.holders[holder] -= 1
            if not segment.holders[holder]:
                self._leave(segment, holder)

    def forget(self, holder: Hashable) -> None:
        """Note that a holder is gone."""
        with self._lock:
            for segment in self._segments.values():
                self._leave(segment, holder)

    @staticmethod
    def _leave(segment: Segment, holder: Hashable) -> None:
        del segment.holders[holder]  # a Counter does not mind what is not there
        if not segment.holders:
            segment.source = None

    def close(self) -> None:
        """Give up all segments."""
        with self._lock:
            self._closed = True
            self._places.clear()
            while self._segments:
                self._segments.popitem()[1].close()


def attach(fd: int, *, writable: bool) -> mmap.mmap:
    """Map another process's segment and close the descriptor; raise `OSError` where the system refuses."""
    try:
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(fd, os.fstat(fd).st_size, prot=prot)
    finally:
        os.close(fd)


def _same_bytes(a: Bytes, b: Bytes) -> bool:
    return a.nbytes == b.nbytes and _address(a) == _address(b)


def _address(data: Bytes) -> int:
    return int(data.__array_interface__["data"][0])
