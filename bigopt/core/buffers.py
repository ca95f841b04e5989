"""Working memory of one thread: arrays by name that are kept from one use to the next.

Fresh memory is not free: the system clears every page of it, and a batch of a few hundred rows is over sooner than
that. Whoever takes an array from here must be done with it before the same name is taken again.

What is handed on to somebody who may keep it is *lent* instead: its memory is used again when nobody holds a view of it
any more. Every view refers to the array that owns the memory, so that its count of references says so.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

LARGE: Final = 1 << 22
"""Bytes of rows up to which they are gathered ahead."""

_HERE: Final = 3
"""References to an array in a list that is being looked at: the list's, the loop's and the question's."""


Gathering = tuple[npt.NDArray[Any], npt.NDArray[Any], int, npt.NDArray[Any]]
"""X, order, start and out: ``out = X[order[start : start + len(out)]]``."""


class Ahead:
    """Rows that are gathered while their thread waits for the order that will most likely ask for them.

    A batch goes on in a permutation where the last one ended, with as many rows, or one more. Each call of `rows`
    notes where that is; `gather` fills it in, in this thread or in another one that has nothing to do: rows in use are
    left alone.
    """

    def __init__(self) -> None:
        self._next: tuple[npt.NDArray[Any], npt.NDArray[Any], int, int] | None = None
        self._filled: tuple[npt.NDArray[Any], int, npt.NDArray[Any]] | None = None
        self._memory = Buffers()
        self._names = "rows", "other rows"
        self._lock = threading.Lock()

    def rows(self, X: npt.NDArray[Any], order: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any] | None:
        """Return ``X[order[start:stop]]`` where it is here already; it lasts until `rows` is called again.

        Parameters
        ----------
        X : ndarray, shape (n, d)
        order : ndarray, shape (n,)
            A permutation, known by its identity.
        start, stop : int
        """
        with self._lock:  # another thread may be about to have them
            filled, size = self._filled, stop - start
            self._next = X, order, stop, min(stop + size + 1, len(order))
            if filled is None or filled[0] is not order or filled[1] != start or size > len(filled[2]):
                return None
            return filled[2][:size]

    def gather(self) -> None:
        """Gather what was noted last, if it is not large and not here yet, and let go of where it comes from."""
        with self._lock:
            following = self._following()
            if following is not None:
                X, order, start, out = following
                np.take(X, order[start : start + len(out)], axis=0, out=out, mode="clip")
                self._filled = order, start, out

    def begin(self) -> Gathering | None:
        """Return what `gather` would gather, for a thread that fills it in before `rows` is called again.

        X, order and out are in C order; rows that are not are left to whoever asks for them.
        """
        with self._lock:
            following = self._following()
            if following is None or not (following[0].flags.c_contiguous and following[1].flags.c_contiguous):
                return None
            self._filled = following[1:]
            return following

    def _following(self) -> Gathering | None:
        following, self._next = self._next, None
        if following is None:
            return None
        X, order, start, stop = following
        self._filled = None
        if start >= stop or (stop - start) * X[0].nbytes > LARGE:
            return None
        self._names = self._names[::-1]
        return X, order, start, self._memory.take(self._names[0], (stop - start, X.shape[1]), X.dtype)

    def forget(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._next = self._filled = None


class Shared(Protocol):
    """Memory that other processes can look at."""

    def lend(self, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        """Return a vector as `Buffers.lend` does, which other processes are done with too; None: take your own."""
        ...


class Casts:
    """The last vector in another dtype, made once for all threads of a round.

    It is known by its identity: what is cast is a snapshot that nobody changes.

    Parameters
    ----------
    shared : Shared or None
        Where it is to lie; None: in this process's own memory.
    """

    def __init__(self, shared: Shared | None = None) -> None:
        self._lock = threading.Lock()
        self._memory = Buffers()
        self._memory.shared = shared
        self._of: Callable[[], object] = _nothing
        self._made: npt.NDArray[Any] = np.empty(0)

    def lend(self, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return room for a vector in another dtype, for whoever makes both at once; see `Buffers.lend`."""
        with self._lock:
            return self._memory.lend(size, dtype)

    def keep(self, vector: npt.NDArray[Any], made: npt.NDArray[Any]) -> None:
        """Take what has been made of `vector` in room that was lent: it need not be cast."""
        with self._lock:
            self._of, self._made = weakref.ref(vector), made

    def found(self, vector: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        """Return what `cast` would, where it is made already."""
        with self._lock:
            return self._made if self._of() is vector and self._made.dtype == dtype else None

    def cast(self, vector: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return `vector`, shape (p,), in `dtype`: not to be written to."""
        with self._lock:
            if self._of() is not vector or self._made.dtype != dtype:
                made = self._memory.lend(vector.size, dtype)
                made[...] = vector
                self._of, self._made = weakref.ref(vector), made
            return self._made


def _nothing() -> None:
    return None


class Buffers:
    """Arrays by name, as large as they ever were.

    Attributes
    ----------
    ahead : Ahead or None
        Where the rows of the next unit may lie; None in a thread that gathers nothing ahead.
    casts : Casts or None
        Where the params of a round lie in the dtype of the blocks; None in a thread that shares them with nobody. Of
        buffers that lend sums to the driver: where it may leave what it makes of them.
    shared : Shared or None
        Where what is lent lies if it is to leave this process and is large enough; None where nothing leaves it.
    """

    ahead: Ahead | None = None
    casts: Casts | None = None
    shared: Shared | None = None

    def __init__(self) -> None:
        self._kept: dict[str, npt.NDArray[Any]] = {}
        self._lent: dict[tuple[int, np.dtype[Any]], list[npt.NDArray[Any]]] = {}

    def lend(self, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an uninitialised vector that is the caller's for as long as anybody holds it, or a view of it.

        As many are kept as were ever held at a time, of one size: a vector of another size replaces those that are
        free.
        """
        if self.shared is not None and (shared := self.shared.lend(size, dtype)) is not None:
            return shared
        key = size, np.dtype(dtype)
        if key not in self._lent:
            self._lent = {k: held for k, kept in self._lent.items() if (held := _held(kept))}
        kept = self._lent.setdefault(key, [])
        for array in kept:
            if sys.getrefcount(array) <= _HERE:
                return array[:]
        kept.append(np.empty(size, dtype=key[1]))
        return kept[-1][:]

    def take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an uninitialised C-contiguous array; it never owns its memory (`array.base` is not None)."""
        kind, size = np.dtype(dtype), math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.dtype != kind or kept.size < size:
            kept = self._kept[name] = np.empty(size, dtype=kind)
        return kept[:size].reshape(shape)


def _held(kept: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    return [array for array in kept if sys.getrefcount(array) > _HERE]


def room(buffers: Buffers | None, name: str, shape: tuple[int, ...], like: Any) -> dict[str, Any]:
    """Return the keyword ``out`` with an array of `like`'s dtype, or none where there are no buffers."""
    return {} if buffers is None else {"out": buffers.take(name, shape, like.dtype)}
