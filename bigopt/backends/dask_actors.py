"""Dask without the channel: a resident *actor* on each worker, for workers that cannot connect to the driver.

The protocol is the channel's, message for message (`bigopt.backends.resident`), and so is the driver's end, the `Hub`.
Only what carries the messages is another: a call of an actor's method takes an order to the worker and brings back the
answer. Such a call passes Dask's scheduler where the driver cannot reach the workers, but makes no task of its own.

What Dask does not promise about actors is seen to here. Calls may overtake each other: a wire makes one at a time. An
actor dies with its worker, and a call that was under way then may never return: who waits for it looks up again and
again whether the supervisor has given the worker up. Its orders are then lost like any others.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import weakref
from typing import Any, Final

import numpy as np

from bigopt.backends.base import fingerprint, one_blas_thread
from bigopt.backends.messages import Hello, Stop, Task
from bigopt.backends.resident import Resident
from bigopt.backends.segments import Bytes
from bigopt.core import codec
from bigopt.data.cache import BlockCache

_LOOK_SECONDS: Final = 0.5

Parts = list[Bytes]
"""A message as Dask carries it without copies: the codec's header, then arrays of bytes."""


def to_parts(value: Any) -> Parts:
    """Return a value as arrays of bytes that share its memory."""
    return [np.frombuffer(part, np.uint8) for part in codec.dumps(value)]


def from_parts(parts: Parts) -> Any:
    """Return the value again; its arrays are aligned and may be written to."""
    header, *arrays = parts
    return codec.loads([header.tobytes(), *(np.array(array) for array in arrays)])


def size_of(parts: Parts) -> int:
    """Return the bytes of a message."""
    return sum(part.nbytes for part in parts)


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
        self._resident = Resident(BlockCache(memory))
        stack = contextlib.ExitStack()
        stack.enter_context(one_blas_thread())
        weakref.finalize(self, stack.close).atexit = False

    def turn(self, *messages: Parts) -> Parts:
        """Take messages and return the answer to the last of them, an order; without messages say who this is."""
        reply: Any = None
        for message in messages:
            reply = self._resident.answer(from_parts(message))
        if not messages:
            reply = Hello(os.getpid(), socket.gethostname(), self._name, fingerprint())
        return to_parts(reply)


class ActorWire:
    """The driver's end of an actor (see `bigopt.backends.link.Carrier`).

    Parameters
    ----------
    actor : distributed.Actor
        A `ResidentActor`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._before: list[Parts] = []
        self._calls: queue.SimpleQueue[tuple[Parts, ...] | None] = queue.SimpleQueue()
        self._calls.put(())  # the first answer is a `Hello`
        self._ended = threading.Event()

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
            self._calls.put(tuple(self._before))
            self._before = []
        return size_of(parts)

    def receive(self) -> tuple[Any, int]:
        """Make the next call and return its answer and the bytes of it. One thread at a time."""
        messages = self._calls.get()
        if messages is None:
            raise EOFError
        try:
            call = self._actor.turn(*messages)
        except Exception as error:  # Dask knows already that it is lost
            raise ConnectionResetError(str(error)) from error
        while not self.ended:
            try:
                parts: Parts = call.result(timeout=_LOOK_SECONDS)
            except TimeoutError:
                continue
            except Exception as error:  # its worker died, or the way to it is closed
                raise ConnectionResetError(str(error)) from error
            return from_parts(parts), size_of(parts)
        raise EOFError

    def hang_up(self) -> None:
        """Wake who waits for an answer."""
        self._ended.set()
        self._calls.put(None)

    def close(self) -> None:
        """Let go of the actor."""
        self.hang_up()
        self._actor = None
