"""What loads blocks in a process: memory that is used again, and threads that fetch and decode chunks side by side.

Fresh memory is not free: the system clears every page of it, and that takes as long as half of the decoding. So the
memory of a block that is given up becomes the next one's (`Memory`): what is *lent* comes back by itself when the last
array that lies in it has died, so that nobody who kept a row is ever written over.

The chunks of a partition are brought by whoever needs it, and by *helpers* (`Loader.each`): where chunks come from a
disk, as long as fewer threads decode than the process may use, so that no core idles while another one has chunks
left; where they come from an object store, several requests are in flight, whatever the cores, for they mostly wait.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from bigopt.core.extents import Extents
from bigopt.data.source import Partition

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Job = Callable[[], None]
T = TypeVar("T")

REQUESTS: Final = 8
"""Requests to an object store that a load has in flight."""
_PAGE: Final = 1 << 16
_LINE: Final = 4096


class _Loan:
    """Memory that lies in arrays; when the last of them has died it is given back."""

    def __init__(self, memory: Bytes, back: deque[Bytes]) -> None:
        self._memory, self._back = memory, back
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._back.append(self._memory)


class Memory:
    """Pieces of memory, lent and taken back; safe for threads.

    What is lent and what waits together are never more than what was lent at once, and what `keep` allows.
    """

    def __init__(self) -> None:
        self._spare: deque[Bytes] = deque()
        self._lock = threading.Lock()

    @property
    def spare(self) -> int:
        """Bytes that nobody uses."""
        return sum(piece.nbytes for piece in list(self._spare))

    def take(self, size: int) -> Bytes:
        """Return `size` bytes, uninitialised; they are given back when the last array in them has died."""
        rounded = -(-size // _PAGE) * _PAGE
        with self._lock:
            last = self._spare.pop() if self._spare else None
            if last is not None and last.nbytes == rounded:  # what the search below would find
                return np.asarray(_Loan(last, self._spare))[:size]
            if last is not None:
                self._spare.append(last)
            waiting = sorted(self._drained(), key=lambda piece: piece.nbytes)
            fits = [k for k, piece in enumerate(waiting) if size <= piece.nbytes <= 2 * max(size, _PAGE)]
            # of the smallest the one that came back last: most of it is in a cache of this core yet
            fit = max((k for k in fits if waiting[k].nbytes == waiting[fits[0]].nbytes), default=None)
            if fit is not None:
                memory = waiting.pop(fit)
            else:
                memory, freed = _aligned(rounded), 0
                while waiting and freed < memory.nbytes:
                    freed += waiting.pop(0).nbytes
            self._spare.extend(waiting)
        return np.asarray(_Loan(memory, self._spare))[:size]

    def keep(self, most: int) -> None:
        """Give what nobody uses back to the system, but for so many bytes."""
        with self._lock:
            waiting = self._drained()
            held = sum(piece.nbytes for piece in waiting)
            while waiting and held > most:
                held -= waiting.pop(0).nbytes
            self._spare.extend(waiting)

    def _drained(self) -> list[Bytes]:
        found = []
        while True:  # others append meanwhile
            try:
                found.append(self._spare.popleft())
            except IndexError:
                return found


class _Todo:
    """Jobs that several threads take in order; after an error no more are given out."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs, self._next, self._lock = jobs, 0, threading.Lock()
        self._errors: dict[int, BaseException] = {}

    def __len__(self) -> int:
        return 0 if self._errors else len(self._jobs) - self._next

    def run_one(self) -> bool:
        """Do the next job; False where there is none left."""
        with self._lock:
            number = self._next
            if not len(self):
                return False
            self._next += 1
        try:
            self._jobs[number]()
        except BaseException as error:
            self._errors[number] = error
        return True

    def finish(self) -> None:
        """Raise the error of the first job that failed: those before it were all done."""
        if self._errors:
            raise self._errors[min(self._errors)]


class Loader:
    """Memory and helpers of a process.

    Parameters
    ----------
    threads : int
        Threads that decode at a time, callers and helpers.

    Attributes
    ----------
    waits : bool
        Whether the last files that were read without the interpreter had to be waited for.
    decoded : set of (str, int)
        View and number of partitions whose files could not be read so: they are not tried again.
    """

    def __init__(self, threads: int = 1) -> None:
        self.memory = Memory()
        self.waits = False
        self.decoded = set[tuple[str, int]]()
        self.threads = threads
        self._decoding = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def each(self, jobs: Sequence[Job], *, waits: bool) -> None:
        """Do all jobs, in this thread and in helpers; return when all are done.

        Parameters
        ----------
        jobs : sequence of callable
        waits : bool
            Whether they mostly wait (for an object store): `REQUESTS` of them are under way.

        Raises
        ------
        BaseException
            Of the first job in order that failed, when those that had begun have ended.
        """
        todo, helpers = _Todo(jobs), list[Future[None]]()
        self._count(1)
        try:
            while len(todo):
                while len(todo) > 1 and self._wanted(len(helpers), waits):
                    helpers.append(self._submit(todo, waits))
                todo.run_one()
        finally:
            self._count(-1)
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
        todo.finish()

    @cached_property
    def alone(self) -> Loader:
        """The same memory, and nobody helps."""
        alone = Loader()
        alone.memory = self.memory
        return alone

    def ordered(self, jobs: Sequence[Callable[[], T]], window: int) -> Iterator[T]:
        """Yield what the jobs return, in order; while a core is idle a helper does the next one.

        Parameters
        ----------
        jobs : sequence of callable
        window : int
            Results that there are at a time, with the one that was yielded last.

        Raises
        ------
        BaseException
            Of the first job that failed.
        """
        ahead, begun = deque[Future[T]](), 0
        self._count(1)
        try:
            for _ in jobs:
                while ahead and not ahead[0].done():
                    if ahead[0].cancel():  # no helper came to it
                        ahead[0] = _done(jobs[begun - len(ahead)])
                    elif begun < len(jobs) and len(ahead) < window:
                        ahead.append(_done(jobs[begun]))
                        begun += 1
                    else:
                        ahead[0].exception()
                if ahead:
                    made = ahead.popleft().result()
                else:
                    made, begun = jobs[begun](), begun + 1
                while begun < len(jobs) and len(ahead) + 1 < window and self._wanted(len(ahead), False):
                    ahead.append(self._start(jobs[begun]))
                    begun += 1
                yield made
                del made
        finally:
            self._count(-1)
            for future in ahead:
                if not future.cancel():
                    future.exception()

    def flight(self, *, waits: bool) -> int:
        """Return how many jobs of a load are under way at most."""
        return REQUESTS if waits else self.threads

    def _wanted(self, helpers: int, waits: bool) -> bool:
        return helpers < REQUESTS - 1 if waits else self._decoding < self.threads

    def _submit(self, todo: _Todo, waits: bool) -> Future[None]:
        return self._start(partial(self._help, todo, waits))

    def later(self, job: Job) -> None:
        """Let a helper do a job that nobody waits for, and that says itself what it does about errors."""
        self._helpers().submit(job)

    def _start(self, job: Callable[[], T]) -> Future[T]:
        self._count(1)
        helper = self._helpers().submit(job)
        helper.add_done_callback(lambda _: self._count(-1))
        return helper

    def _helpers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max(self.threads, REQUESTS), "bigopt-chunks")
            return self._pool

    def _help(self, todo: _Todo, waits: bool) -> None:
        while todo.run_one():
            if not waits and self._decoding > self.threads:
                return

    def _count(self, change: int) -> None:
        with self._lock:
            self._decoding += change


def _aligned(size: int) -> Bytes:
    """Return memory that begins with a page: systems copy files four times slower to 16 bytes behind one."""
    whole = np.empty(size + _LINE, dtype=np.uint8)
    start = -whole.__array_interface__["data"][0] % _LINE
    return whole[start : start + size]


def _done(job: Callable[[], T]) -> Future[T]:
    """Do a job here and now."""
    future = Future[T]()
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
    return future


@runtime_checkable
class Lending(Protocol):
    """A source whose rows lie in this process, so that they may be used where they are."""

    def lends(self, dtype: str) -> bool:
        """Return whether they are as kernels want them: of this dtype, C-contiguous, aligned, a partition a piece."""
        ...


class Reading(Protocol):
    """A partition that is being read: labels and weights of all its rows, and features where they are wanted."""

    y: Array | None
    weight: Array | None

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the store for it until now."""
        ...

    def fill(self, rows: range, keep: Mask | None, X: Array, loader: Loader, *, checked: bool = True) -> bool:
        """Write some global rows, the wanted ones of them (None: all), to X; return whether they are all finite.

        Unchecked ones are said to be.
        """
        ...


@runtime_checkable
class Filling(Protocol):
    """A source that can read a partition's features straight into the memory where they are wanted."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the features."""
        ...

    @property
    def height(self) -> int:
        """Rows that are stored together."""
        ...

    @property
    def waits(self) -> bool:
        """Whether reading mostly waits (for an object store)."""
        ...

    def begins(self, row: int) -> bool:
        """Whether nothing before a row has to be read to have those from there on."""
        ...

    def beside(self, rows: range, loader: Loader, *, dtype: str, all_rows: bool) -> int | None:
        """Return the bytes that `Reading.fill` takes beside some rows; None where rows come in `pieces` only."""
        ...

    def reading(self, partition: Partition, *, labels: bool = True) -> Reading:
        """Read labels and weights of a partition, where they are wanted, and return what reads its features."""
        ...

    def soon(self, rows: range) -> None:
        """Let the system fetch what some rows are decoded from."""
        ...

    def extents(self, partition: Partition, dtype: str) -> Extents | None:
        """Return where a partition's features lie in local files as they are used; None where they are decoded."""
        ...
