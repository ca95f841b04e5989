"""One end of a connection: values in, values out, large arrays through shared memory between processes of a machine.

A message is one `Connection.send_bytes`: a table of integers, the header, and the bytes of small arrays. The
table says where each array is: in the message, in a segment of shared memory (`bigopt.backends.segments`) whose
descriptor follows the message once, or, over TCP, in bytes that follow the message, read straight into place. It also
gives back the segments of the other side that nobody looks at here any more.

::

    header bytes, arrays, new, gone, back | place and bytes of each array | numbers of new, gone, given back segments
    header | small arrays
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import weakref
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np

from bigopt.backends.messages import is_short, lengthened, shortened
from bigopt.backends.segments import SMALL, Bytes, Pool, Segment, attach
from bigopt.core import codec

_WITHIN: Final = -1
_FOLLOWS: Final = -2
_HEAD: Final = struct.Struct("<5q")
_FDS: Final = 64
"""Descriptors in one system call."""


class _View(weakref.ref[Bytes]):
    """A view of a segment, for as long as somebody looks at it; a `weakref.finalize` that costs less."""

    __slots__ = ("number", "unused", "views")

    number: int
    views: dict[int, _View]
    unused: deque[int]


def _ended(view: Any) -> None:
    del view.views[id(view)]
    view.unused.append(view.number)


class Wire:
    """A connection that carries values.

    Parameters
    ----------
    connection : Connection
        Authenticated; closed with the wire.
    pool : Pool
        Where this side writes what it shares.
    writable : bool
        Whether arrays that come through shared memory may be written to; the others always may.
    """

    def __init__(self, connection: Connection, pool: Pool, *, writable: bool) -> None:
        self._connection = connection
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._pool = pool
        self._writable = writable
        self.shares = self._socket.family == socket.AF_UNIX
        self._known: set[int] = set()
        self._mapped: dict[int, mmap.mmap] = {}
        self._unused: deque[int] = deque()
        self._views: dict[int, _View] = {}
        if not self.shares:  # send small messages at once; Unix sockets do so by themselves
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """Return the descriptor that messages come from."""
        return self._connection.fileno()

    def send(self, value: Any, origin: object = None) -> int:
        """Send a value; return the bytes it stands for. One thread at a time.

        Parameters
        ----------
        value : object
            What the codec takes.
        origin : object, optional
            What the large arrays belong to; see `Pool.place`.

        Raises
        ------
        OSError
            Where the connection has ended.
        TypeError
            For a value that does not travel; nothing was sent.
        """
        header, *vectors = shortened(value) or codec.dumps(value)
        arrays = [_bytes(vector) for vector in vectors]
        places: list[int] = []
        new: list[Segment] = []
        within: list[Bytes] = []
        following: list[Bytes] = []
        for array in arrays:
            place = _WITHIN if array.nbytes <= SMALL else _FOLLOWS
            if place == _FOLLOWS and self.shares:
                segment = self._pool.place(array, self, origin)
                if segment is not None:
                    place = segment.number
                    if place not in self._known:
                        self._known.add(place)
                        new.append(segment)
            places += [place, array.nbytes]
            if place < 0:
                (within if place == _WITHIN else following).append(array)
        gone = [number for number in self._known if number not in self._pool]
        self._known.difference_update(gone)
        back = [self._unused.popleft() for _ in range(len(self._unused))]
        table = [len(header), len(arrays), len(new), len(gone), len(back), *places, *(s.number for s in new)]
        table += [*gone, *back]
        numbers = struct.pack(f"<{len(table)}q", *table)
        self._connection.send_bytes(b"".join([numbers, header, *(array.data for array in within)]))
        for some in range(0, len(new), _FDS):
            socket.send_fds(self._socket, [b"."], [segment.fd for segment in new[some : some + _FDS]])
        for array in following:
            view = array.data
            while len(view):
                view = view[os.write(self._connection.fileno(), view) :]
        return len(header) + sum(array.nbytes for array in arrays)

    def receive(self) -> tuple[Any, int]:
        """Return the next value and the bytes it stands for. One thread at a time.

        Raises
        ------
        EOFError, OSError
            Where the connection has ended.
        ValueError
            Where the message is none of ours.
        """
        message = self._connection.recv_bytes()
        head = _HEAD.unpack_from(message.ljust(_HEAD.size, b"\xff"))
        length, count, new, gone, back = head
        entries = 2 * count + new + gone + back
        if min(head) < 0 or len(message) < _HEAD.size + 8 * entries + length:
            raise ValueError("not a bigopt message")
        table = struct.unpack_from(f"<{entries}q", message, _HEAD.size)
        numbers = table[2 * count :]
        self._attach(numbers[:new])
        for number in numbers[new : new + gone]:
            self._mapped.pop(number, None)
        for number in numbers[new + gone :]:
            self._pool.give_back(number, self)
        at = _HEAD.size + 8 * entries
        header = message[at : at + length]
        parts, at = [], at + length
        for place, size in zip(table[: 2 * count : 2], table[1 : 2 * count : 2], strict=True):
            if place == _WITHIN:
                parts.append(np.frombuffer(message, np.uint8, size, at).copy())  # aligned, and may be written to
                at += size
            else:
                parts.append(self._following(size) if place == _FOLLOWS else self._shared(place, size))
        value = lengthened(header, parts) if is_short(header) else codec.loads([header, *parts])
        return value, len(header) + sum(part.nbytes for part in parts)

    def _attach(self, numbers: Sequence[int]) -> None:
        for some in range(0, len(numbers), _FDS):
            names = numbers[some : some + _FDS]
            data, fds, _, _ = socket.recv_fds(self._socket, 1, len(names))
            if not data:
                raise EOFError
            if len(fds) != len(names):
                for fd in fds:
                    os.close(fd)
                raise ValueError(f"{len(fds)} of {len(names)} descriptors of shared memory arrived")
            for number, fd in zip(names, fds, strict=True):
                self._mapped[number] = attach(fd, writable=self._writable)

    def _shared(self, number: int, size: int) -> Bytes:
        """Return a view of a segment; when nobody looks at it any more it is given back."""
        whole = self._mapped.get(number)
        if whole is None or not 0 < size <= len(whole):
            raise ValueError(f"not a bigopt message: {size} bytes in segment {number}")
        part = np.frombuffer(whole, np.uint8, size)  # NumPy's views of it hold it, and not each other
        view = _View(part, _ended)
        view.number, view.views, view.unused = number, self._views, self._unused
        self._views[id(view)] = view
        return part

    def _following(self, size: int) -> Bytes:
        part = np.empty(size, dtype=np.uint8)
        view = part.data
        while len(view):
            got = os.readv(self._connection.fileno(), [view])
            if got == 0:
                raise EOFError
            view = view[got:]
        return part

    def hang_up(self) -> None:
        """End the connection for both sides and for whoever is blocked in it; who reads closes it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection and forget what the other side holds of ours."""
        self._socket.close()
        self._connection.close()
        self._pool.forget(self)
        self._mapped.clear()


def _bytes(array: Any) -> Bytes:
    flat: Bytes = array.view(np.uint8) if type(array) is np.ndarray else np.frombuffer(array, dtype=np.uint8)
    return flat
