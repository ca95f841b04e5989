"""The worker's end of the channel: what `Hub` (`bigopt.backends.channel`) and a resident worker say to each other.

A resident worker is one function, `serve`: it connects back to the driver, shows its fingerprint, receives each `Work`
once and answers orders until it is told to stop or the driver is gone. Messages are made by `core.codec`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import traceback
from multiprocessing.connection import Client, Connection
from typing import Any, NamedTuple

import numpy as np

from bigopt.backends.base import fingerprint, one_blas_thread, rss_bytes
from bigopt.core import codec
from bigopt.core.codec import wire
from bigopt.core.errors import BigoptError, DataError
from bigopt.core.tree import Node
from bigopt.data.cache import BlockCache
from bigopt.work import Stats, Work, execute

Address = str | tuple[str, int]


@wire
class Hello(NamedTuple):
    """First message of a worker."""

    pid: int
    host: str
    name: str
    fingerprint: dict[str, str]


@wire
class Prepare(NamedTuple):
    """Modules whose types come next."""

    modules: tuple[str, ...]


@wire
class Install(NamedTuple):
    """A work to keep under a number, and the identity of the dataset that the driver reads."""

    number: int
    work: Any
    identity: str


@wire
class Task(NamedTuple):
    """An order on the wire."""

    serial: int
    work: int
    leaves: int
    start: int
    units: Any
    inputs: tuple[Any, ...]


@wire
class Done(NamedTuple):
    """The nodes of an order."""

    serial: int
    levels: tuple[Node, ...]
    values: tuple[Any, ...]
    stats: Stats


@wire
class Failed(NamedTuple):
    """An error that no repetition will cure."""

    serial: int
    kind: str
    message: str
    where: str
    hint: str


@wire
class Stop(NamedTuple):
    """The clean end."""


def send(connection: Connection, value: Any) -> int:
    """Send a value; return its bytes.

    One message of the connection with the header and the sizes of the arrays, then the bytes of the arrays themselves:
    a message each would be copied twice on its way in.
    """
    header, *arrays = codec.dumps(value)
    sizes = np.array([len(array) for array in arrays], dtype="<i8").tobytes()
    connection.send_bytes(len(arrays).to_bytes(4, "little") + sizes + header)
    for array in arrays:
        view = memoryview(array)
        while len(view):
            view = view[os.write(connection.fileno(), view) :]
    return len(header) + sum(len(array) for array in arrays)


def receive(connection: Connection) -> tuple[Any, int]:
    """Return the next value and its bytes; its arrays may be written to.

    Raises
    ------
    EOFError, OSError
        Where the connection has ended.
    ValueError
        Where the message is none of ours.
    """
    message = connection.recv_bytes()
    count = int.from_bytes(message[:4], "little")
    sizes = np.frombuffer(message[4 : 4 + 8 * count], dtype="<i8")
    parts: list[Any] = [message[4 + 8 * count :]]
    for size in sizes:
        part = np.empty(size, dtype=np.uint8)
        view = part.data
        while len(view):
            got = os.readv(connection.fileno(), [view])
            if got == 0:
                raise EOFError
            view = view[got:]
        parts.append(part)
    return codec.loads(parts), sum(len(part) for part in parts)


def no_delay(connection: Connection) -> None:
    """Send small messages at once (TCP_NODELAY); Unix sockets do so by themselves."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as handle:
        if handle.family != socket.AF_UNIX:
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def hang_up(connection: Connection) -> None:
    """End a connection for both sides and for whoever is blocked in it; its reader closes it."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as handle:
        handle.shutdown(socket.SHUT_RDWR)


def serve(address: Address, key: bytes, memory: int, name: str = "") -> None:
    """Be a resident worker: connect to the driver and answer orders until the end.

    Parameters
    ----------
    address : str or (host, port)
        The hub's address.
    key : bytes
        Its authentication key.
    memory : int
        Bytes for decoded rows in this process.
    name : str
        What the engine calls this worker.
    """
    with Client(address, authkey=key) as connection, one_blas_thread():
        no_delay(connection)
        send(connection, Hello(os.getpid(), socket.gethostname(), name, fingerprint()))
        blocks = BlockCache(memory)
        works: dict[int, Work | BigoptError] = {}
        try:
            while True:
                message, _ = receive(connection)
                if isinstance(message, Stop):
                    return
                _answer(connection, message, blocks, works)
        except (EOFError, OSError):  # the driver is gone; whoever placed this worker learns it from the driver
            return


def _answer(connection: Connection, message: Any, blocks: BlockCache, works: dict[int, Work | BigoptError]) -> None:
    me = f"worker pid {os.getpid()} on {socket.gethostname()}"
    if isinstance(message, Prepare):
        for name in message.modules:
            if name.split(".")[0] != "bigopt":
                raise ValueError(f"module {name} is none of bigopt's")
            importlib.import_module(name)
        return
    if isinstance(message, Install):
        works[message.number] = _checked(message, me)
        return
    try:
        work = works[message.work]
        if isinstance(work, BigoptError):
            raise work
        nodes, stats = execute(blocks, work, message.inputs, message.leaves, message.start, message.units)
    except BigoptError as error:
        send(connection, Failed(message.serial, type(error).__name__, error.message, error.where, error.hint))
    except Exception as error:  # a defect: repeating it elsewhere would only hide where it happened
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno}, {last.name})"
        hint = "lower data.memory" if isinstance(error, MemoryError) else "please report it"
        send(connection, Failed(message.serial, "ClusterError", text, me, hint))
    else:
        stats = stats._replace(rss=rss_bytes(), pid=os.getpid())
        send(connection, Done(message.serial, tuple(nodes), tuple(nodes.values()), stats))


def _checked(message: Install, me: str) -> Work | BigoptError:
    """Return the work, or why this worker cannot read what the driver reads."""
    try:
        found = message.work.view.source.identity()
    except BigoptError as error:
        text = f"{me} cannot read the data: {error.message}"
        return type(error)(text, where=error.where, hint=error.hint or "every worker needs the same path")
    if found == message.identity:
        work: Work = message.work
        return work
    text = f"this worker reads another dataset ({found[:12]}) than the driver ({message.identity[:12]})"
    return DataError(text, where=me, hint="every worker needs the same data under the same path")
