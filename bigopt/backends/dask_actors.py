"""Dask without the channel: a resident *actor* on each worker, for workers that cannot connect to the driver.

The protocol is the channel's, message for message (`bigopt.backends.resident`), and so is the driver's end, the `Hub`.
Only what carries the messages is another: a call of an actor's method takes an order to the worker and brings back the
answer. Such a call passes Dask's scheduler where the driver cannot reach the workers, but makes no task of its own.

A round waits for every hand that a call goes through, and the code that it runs has left the caches of a core that
computed meanwhile. So a call is short: one string of bytes goes each way unless there are large arrays; the driver's
event loop calls, and puts the answer where it is waited for; the actor's method is a coroutine of the worker's event
loop, and a thread of its own computes.

What Dask does not promise about actors is seen to here. Calls may overtake each other: a wire makes one at a time. An
actor dies with its worker, and a call that was under way then may never return: who waits for it is woken when the
supervisor gives the worker up. Its orders are then lost like any others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from bigopt.backends.base import fingerprint, one_blas_thread
from bigopt.backends.messages import Hello, Stop, Task, is_short, lengthened, shortened
from bigopt.backends.resident import Resident
from bigopt.core import codec
from bigopt.data.cache import BlockCache

_WHOLE: Final = 1 << 16
"""Bytes up to which arrays are copied into one string."""
_FOLLOWS: Final = -1
_HEAD: Final = struct.Struct("<2q")

Parts = bytes | list[Any]
"""A message as Dask carries it: bytes, then large arrays of bytes, without copies.

::

    count of arrays, bytes of header | bytes of each array, or -1: it follows | header | arrays
"""


def to_parts(value: Any) -> Parts:
    """Return a value as a string of bytes, or one and arrays of bytes that share its memory."""
    header, *vectors = shortened(value) or codec.dumps(value)
    arrays = [np.frombuffer(vector, np.uint8) for vector in vectors]
    within = sum(array.nbytes for array in arrays) <= _WHOLE
    sizes = [array.nbytes if within else _FOLLOWS for array in arrays]
    table = _HEAD.pack(len(sizes), len(header)) + struct.pack(f"<{len(sizes)}q", *sizes)
    if within:
        return b"".join([table, header, *(array.data for array in arrays)])
    return [table + header, *arrays]


def from_parts(parts: Parts) -> Any:
    """Return the value again; its arrays are aligned and may be written to.

    Raises
    ------
    ValueError
        For parts that `to_parts` cannot have made.
    """
    message, *following = [parts] if isinstance(parts, bytes) else parts
    try:
        count, length = _HEAD.unpack_from(message)
        sizes = struct.unpack_from(f"<{count}q", message, _HEAD.size)
    except struct.error as error:
        raise ValueError(f"not a bigopt message: {error}") from error
    at = _HEAD.size + 8 * count
    header, at, arrays = message[at : at + length], at + length, []
    within = sum(size for size in sizes if size != _FOLLOWS)
    if length < 0 or min(sizes, default=0) < _FOLLOWS or at + within != len(message):
        raise ValueError(f"not a bigopt message: {len(message)} bytes")
    if sizes.count(_FOLLOWS) != len(following):
        raise ValueError(f"not a bigopt message: {len(following)} arrays follow it")
    for size in sizes:
        if size == _FOLLOWS:
            arrays.append(np.array(following.pop(0)))
        else:
            arrays.append(np.frombuffer(message, np.uint8, size, at).copy())
            at += size
    return lengthened(header, arrays) if is_short(header) else codec.loads([header, *arrays])


def size_of(parts: Parts) -> int:
    """Return the bytes of a message."""
    return len(parts) if isinstance(parts, bytes) else sum(len(part) for part in parts)


class _Asked(NamedTuple):
    """What a worker's event loop waits for."""

    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Parts]

    def settle(self, act: Callable[[Any], None], value: Any) -> None:
        """Set result or exception from another thread; nobody may be waiting any more."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._settle, act, value)

    def _settle(self, act: Callable[[Any], None], value: Any) -> None:
        if not self.answer.done():
            act(value)


class _Desk:
    """The worker's end: where calls arrive, for a `Resident` that takes one message after another."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[_Asked, tuple[Parts, ...]] | None] = queue.SimpleQueue()
        self._asked: _Asked | None = None
        self._messages: deque[Parts] = deque()

    def receive(self) -> tuple[Any, int]:
        """Return the next message, of this call or the next one; `EOFError` at the end."""
        while not self._messages:
            call = self.calls.get()
            if call is None:
                raise EOFError
            self._asked = call[0]
            self._messages.extend(call[1])
            del call
        parts = self._messages.popleft()
        return from_parts(parts), size_of(parts)

    def send(self, value: Any) -> int:
        """Answer the call."""
        parts = to_parts(value)
        if self._asked is not None:
            self._asked.settle(self._asked.answer.set_result, parts)
        return size_of(parts)

    def fail(self, error: Exception) -> None:
        """Answer the call by an error."""
        self._messages.clear()
        if self._asked is not None:
            self._asked.settle(self._asked.answer.set_exception, error)


def _serve(memory: int, desk: _Desk) -> None:
    """Answer calls until the actor is gone; what is wrong with a call is its answer."""
    resident = Resident(BlockCache(memory))
    with contextlib.suppress(EOFError):
        while True:
            try:
                resident.turn(desk)
            except EOFError:
                raise
            except Exception as error:
                desk.fail(error)


class ResidentActor:
    """Answers a driver's orders in a Dask worker; BLAS has one thread there for as long as Dask keeps the actor.

    Parameters
    ----------
    memory : int
        Bytes for decoded rows in this process.
    name : str
        What Dask calls this worker.
    """

    def __init__(self, memory: int, name: str) -> None:
        self._name = name
        desk = _Desk()
        self._calls = desk.calls
        threading.Thread(target=_serve, args=(memory, desk), name="bigopt-resident", daemon=True).start()
        stack = contextlib.ExitStack()
        stack.enter_context(one_blas_thread())
        stack.callback(self._calls.put, None)
        weakref.finalize(self, stack.close).atexit = False

    async def turn(self, *messages: Parts) -> Parts:
        """Take messages and return the answer to the last of them, an order; without messages say who this is."""
        if not messages:
            return to_parts(Hello(os.getpid(), socket.gethostname(), self._name, fingerprint()))
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Parts] = loop.create_future()
        self._calls.put((_Asked(loop, answer), messages))
        return await answer


class Loop(Protocol):
    """An event loop of another thread, such as that of a `distributed.Client`."""

    def add_callback(self, callback: Callable[[], Any]) -> None:
        """Let it run a function or a coroutine function."""
        ...


class ActorWire:
    """The driver's end of an actor (see `bigopt.backends.link.Carrier`).

    Parameters
    ----------
    actor : distributed.Actor
        A `ResidentActor`.
    loop : Loop
        Makes the calls.
    """

    def __init__(self, actor: Any, loop: Loop) -> None:
        self._actor = actor
        self._loop = loop
        self._before: list[Parts] = []
        self._calls: deque[tuple[Parts, ...]] = deque([()])  # the first answer is a `Hello`
        self._calling = False
        self._answers: queue.SimpleQueue[Parts | Exception | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        loop.add_callback(self._call)

    @property
    def ended(self) -> bool:
        """Whether nothing will come of this actor any more."""
        return self._ended.is_set()

    def send(self, value: Any, origin: object = None) -> int:
        """Send a value with the next order; return its bytes. One thread at a time."""
        if self.ended:
            raise BrokenPipeError
        if isinstance(value, Stop):  # an actor ends when nobody holds it
            return 0
        parts = to_parts(value)
        self._before.append(parts)
        if isinstance(value, Task):
            self._calls.append(tuple(self._before))
            self._before = []
            self._loop.add_callback(self._call)
        return size_of(parts)

    async def _call(self) -> None:
        """Make the calls that wait, one after the other, on the event loop."""
        if self._calling:
            return
        self._calling = True
        try:
            while self._calls and not self.ended:
                self._answers.put(await self._actor.turn(*self._calls.popleft()))
        except Exception as error:  # its worker died, or the way to it is closed
            self._answers.put(error)
        finally:
            self._calling = False

    def receive(self) -> tuple[Any, int]:
        """Return the next answer and the bytes of it. One thread at a time."""
        parts = self._answers.get()
        if parts is None or self.ended:
            raise EOFError
        if isinstance(parts, Exception):
            raise ConnectionResetError(str(parts)) from parts
        return from_parts(parts), size_of(parts)

    def hang_up(self) -> None:
        """Wake who waits for an answer."""
        self._ended.set()
        self._answers.put(None)

    def close(self) -> None:
        """Let go of the actor."""
        self.hang_up()
        self._actor = None
