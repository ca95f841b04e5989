"""A shard of the parameter server that lives in a worker: a slice of the vector behind a socket, and who talks to it.

::

    replica (any worker)                              shard s (a thread of some worker's process)
        Fetch()                      ->               Fetched(params, version)
        Push(replica, first, last, grad) ->           Pushed(version, applied)
        Look()                       ->               ShardState          # what a snapshot holds

A push says which local steps of its replica it sums. A shard remembers how far it has applied those of each replica
and drops a push that begins before: a turn that is done again, because nobody knows how far it came, changes nothing
twice. That is part of the snapshot, so it holds across resumes too.

Connections prove a key that both sides have from the driver and that never travels here. Nothing is pickled; large
arrays follow their header. A partner that says nothing for the patience of the run counts as gone, like one whose
connection breaks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
import weakref
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import codec
from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.core.sums import Sums
from bigopt.optim.method import FirstOrder, FirstOrderState

Array = npt.NDArray[Any]
_BACKLOG: Final = 64


@wire
class ShardState(NamedTuple):
    """What a snapshot holds of a shard.

    Parameters
    ----------
    method : FirstOrderState
        ``step`` is the shard's version.
    applied : ndarray, shape (replicas,), int64
        Local steps of each replica up to which its pushes were applied.
    """

    method: FirstOrderState
    applied: Array


@wire
class Seat(NamedTuple):
    """Where a shard is served.

    Parameters
    ----------
    shard : int
    incarnation : int
        How often it was started: connections to earlier ones are of no use.
    host : str
    port : int
    pid : int
    """

    shard: int
    incarnation: int
    host: str
    port: int
    pid: int


@wire
class Fetch(NamedTuple):
    """Asks for the params of a shard."""


@wire
class Look(NamedTuple):
    """Asks for the whole state of a shard."""


@wire
class Fetched(NamedTuple):
    """Params of a shard, and its version."""

    params: Array
    version: int


@wire
class Push(NamedTuple):
    """A piece of the sum of a replica's mean gradients at its local steps first, ..., last - 1.

    `batch` says where the run stands, in batches of all replicas, for the schedule.
    """

    replica: int
    first: int
    last: int
    grad: Array
    batch: float


@wire
class Pushed(NamedTuple):
    """The version after a push, and whether the push was applied; `error` where it made the shard diverge."""

    version: int
    applied: bool
    error: str = ""


def copied(value: Any) -> Any:
    """Return a value of the codec's with arrays of its own."""
    tree, arrays = codec.pack(value)
    return codec.unpack(tree, [array.copy() for array in arrays])


class Shard:
    """A slice of the parameter server, without I/O; one thread at a time.

    Parameters
    ----------
    method : FirstOrder
        Of the slice, without penalty.
    state : ShardState
        Taken over.
    """

    def __init__(self, method: FirstOrder, state: ShardState) -> None:
        self._method = method
        self._state = state.method
        self._applied = state.applied
        self._lock = threading.Lock()

    def answer(self, message: Any) -> Any:
        """Answer a message; safe for threads."""
        with self._lock:
            if isinstance(message, Push):
                return self._push(message)
            if isinstance(message, Look):
                return copied(ShardState(self._state, self._applied))
            return Fetched(self._method.ask(self._state).params, self._state.step)

    def _push(self, push: Push) -> Pushed:
        if push.first < self._applied[push.replica]:
            return Pushed(self._state.step, False)
        try:
            self._state, _ = self._method.tell(self._state, Sums(push.grad, 0.0, 1.0, 1), 1.0, push.batch)
        except DivergedError as error:
            return Pushed(self._state.step, False, error.message)
        self._applied[push.replica] = push.last
        return Pushed(self._state.step, True)


def secret_of(key: bytes) -> bytes:
    """Return what both ends of a connection to a shard prove, from the key of the run's channel."""
    return hashlib.blake2b(key, person=b"bigopt shards").digest()


def own_host(towards: str) -> str:
    """Return this machine's address on the way to a host; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))
        return str(probe.getsockname()[0])


def _patient(connection: socket.socket, seconds: float) -> Connection:
    """Return a connection whose reads and writes fail after so many seconds."""
    connection.settimeout(None)
    patience = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, patience)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(connection.detach())


def send(connection: Connection, value: Any) -> int:
    """Send a value: its header, then each of its arrays; return the bytes."""
    parts = codec.dumps(value)
    for part in parts:
        connection.send_bytes(part)
    return sum(len(part) for part in parts)


def receive(connection: Connection) -> tuple[Any, int]:
    """Return the next value, and its bytes; its arrays may be written to."""
    header = connection.recv_bytes()
    parts = [bytearray(connection.recv_bytes()) for _ in json.loads(header)["a"]]
    return codec.loads([header, *parts]), len(header) + sum(len(part) for part in parts)


@dataclass(eq=False)
class Hosted:
    """A shard that is served here until this handle dies; see `host`."""

    seat: Seat


class _Server:
    """The threads that serve a shard: they hold no reference to the handle."""

    def __init__(self, shard: Shard, listener: socket.socket, secret: bytes) -> None:
        self._shard = shard
        self._listener = listener
        self._secret = secret
        self._open: set[socket.socket] = set()
        self._closed = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="bigopt-shard", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                found, _ = self._listener.accept()
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                return
            with self._lock:
                if self._closed:
                    found.close()
                    return
                self._open.add(found)
            threading.Thread(target=self._serve, args=(found,), name="bigopt-shard-link", daemon=True).start()

    def _serve(self, found: socket.socket) -> None:
        with contextlib.closing(Connection(os.dup(found.fileno()))) as connection:
            try:
                deliver_challenge(connection, self._secret)
                answer_challenge(connection, self._secret)
                while True:
                    send(connection, self._shard.answer(receive(connection)[0]))
            except (AuthenticationError, EOFError, OSError, ValueError):
                pass  # a stranger, a replica whose worker is gone, or one that speaks another protocol
            finally:
                with self._lock:
                    self._open.discard(found)
                    found.close()

    def close(self) -> None:
        """End all connections; safe to call twice."""
        with self._lock:
            self._closed = True
            for found in self._open:
                with contextlib.suppress(OSError):
                    found.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):  # closing a socket does not wake who waits in accept
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def host(shard: Shard, number: int, incarnation: int, towards: str, key: bytes) -> Hosted:
    """Serve a shard from threads of this process; they end with the handle that is returned.

    Parameters
    ----------
    shard : Shard
    number, incarnation : int
    towards : str
        A host that the replicas' workers reach too; loopback for those of one machine.
    key : bytes
        Of the run's channel.
    """
    listener = socket.create_server((own_host(towards), 0), backlog=_BACKLOG)
    address, port = listener.getsockname()[:2]
    hosted = Hosted(Seat(number, incarnation, address, port, os.getpid()))
    server = _Server(shard, listener, secret_of(key))
    weakref.finalize(hosted, server.close).atexit = False
    return hosted


def link(seat: Seat, key: bytes, patience: float) -> Connection:
    """Connect to a shard.

    Raises
    ------
    OSError, EOFError, AuthenticationError
        Where there is none that has the key.
    """
    connection = _patient(socket.create_connection((seat.host, seat.port), timeout=patience), patience)
    try:
        answer_challenge(connection, secret_of(key))
        deliver_challenge(connection, secret_of(key))
    except BaseException:
        connection.close()
        raise
    return connection


def fresh(method: FirstOrder, params: Array, replicas: int) -> ShardState:
    """Return the state of a shard before its first push."""
    return ShardState(method.start(params)[0], np.zeros(replicas, dtype=np.int64))
