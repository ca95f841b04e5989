"""The worker's end of the channel: what `Hub` (`bigopt.backends.channel`) and a resident worker say to each other.

A resident worker is one function, `serve`: it connects back to the driver, shows its fingerprint, receives each `Work`
once and answers orders until it is told to stop or the driver is gone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection
from typing import Any, Final, Protocol

from bigopt.backends.base import Watched, fingerprint, one_blas_thread
from bigopt.backends.messages import Done, Failed, Hello, Install, Lost, Prepare, Sit, Stop, Task
from bigopt.backends.peers import Exchange
from bigopt.backends.seats import cores, woken_on
from bigopt.backends.segments import Pool
from bigopt.backends.slices import Keeper, Slice
from bigopt.backends.wire import Wire
from bigopt.core.buffers import Ahead
from bigopt.core.errors import BigoptError, ConfError, DataError
from bigopt.data.cache import BlockCache
from bigopt.work import GradientSum, Work, execute, on_card

Address = str | tuple[str, int]
_PATIENCE: Final = 10.0


class End(Protocol):
    """The worker's end of whatever carries the messages."""

    def send(self, value: Any) -> int:
        """Send an answer; return its bytes."""
        ...

    def receive(self) -> tuple[Any, int]:
        """Return the next message and its bytes; raise `EOFError` or `OSError` at the end."""
        ...


def serve(addresses: Sequence[Address], key: bytes, memory: int, name: str = "", card: int | None = None) -> None:
    """Be a resident worker: connect to the driver and answer orders until the end.

    Parameters
    ----------
    addresses : sequence of str or (host, port)
        The hub's; the first that answers is taken.
    key : bytes
        Its authentication key.
    memory : int
        Bytes for decoded rows in this process.
    name : str
        What the engine calls this worker.
    card : int or None
        The GPU that the engine gave this worker; None: the slots of a machine take its cards in turn.
    """
    pool = Pool()
    with (
        contextlib.closing(pool),
        contextlib.closing(Wire(_connect(addresses, key), pool, writable=False)) as wire,
        one_blas_thread(),
    ):
        wire.send(Hello(os.getpid(), socket.gethostname(), name, fingerprint()))
        resident = Resident(BlockCache(memory), pool=pool if wire.shares else None)
        resident.blocks.kept.secret = key
        if not isinstance(addresses[-1], str):
            resident.blocks.kept.towards = addresses[-1][0]
        resident.blocks.given_card = card
        with contextlib.suppress(EOFError, OSError):  # the driver is gone; who placed this worker learns it from there
            while resident.turn(wire):
                pass


def _connect(addresses: Sequence[Address], key: bytes) -> Connection:
    """Connect to the first address that answers: a Unix socket that is there is the driver's machine."""
    *near, last = addresses
    for address in near:
        with contextlib.suppress(OSError):
            return Client(address, authkey=key)
    if not isinstance(last, str):  # behind a firewall that swallows packets connecting would take minutes to fail
        socket.create_connection(last, timeout=_PATIENCE).close()
    return Client(last, authkey=key)


@dataclass
class Resident:
    """A resident's state: caches and the works it was sent.

    `pool` is where gradient sums are made that the driver is to see; None where they cross as bytes. `seat` is where it
    is woken; empty for anywhere.
    """

    blocks: BlockCache
    works: dict[int, Work | BigoptError] = field(default_factory=dict)
    watched: Watched = field(default_factory=Watched)
    keeper: Keeper = field(default_factory=Keeper)
    ahead: Ahead = field(default_factory=Ahead)
    pool: Pool | None = None
    seat: frozenset[int] = frozenset()
    anywhere: frozenset[int] = field(default_factory=lambda: frozenset(cores()))

    def turn(self, wire: End) -> bool:
        """Answer one message; return whether another may come.

        The inputs die with the call of `answer`, so that their memory is given back with the reply. While the driver
        makes its step the next rows are gathered.
        """
        self.blocks.buffers.ahead = self.ahead
        with woken_on(self.seat, self.anywhere):
            message, _ = wire.receive()
        reply = self.answer(message)
        del message
        if isinstance(reply, Stop):
            return False
        if reply is not None:
            wire.send(reply)
            del reply
            self.ahead.gather()
        return True

    def answer(self, message: Any) -> Done | Lost | Failed | Stop | None:
        """Do what a message asks for; only an order has an answer, and `Stop`, which is returned."""
        if isinstance(message, Stop):
            return message
        if isinstance(message, Prepare):
            for name in message.modules:
                if name.split(".")[0] != "bigopt":
                    raise ValueError(f"module {name} is none of bigopt's")
                importlib.import_module(name)
            return None
        if isinstance(message, Sit):
            self.seat = frozenset({message.core}) & self.anywhere
            return None
        if isinstance(message, Install):
            self.works[message.number] = checked(message)
            return None
        work = self.works[message.work]
        self.blocks.buffers.shared = self.pool if type(work) is GradientSum else None  # nothing else of it is kept here
        reply = answer(self.blocks, work, message, self.watched, self.keeper)
        if len(message.units) > 1:
            self.ahead.forget()
        return reply


def answer(
    blocks: BlockCache, work: Work | BigoptError, task: Task, watched: Watched, keeper: Keeper
) -> Done | Lost | Failed:
    """Execute an order; whatever goes wrong is the answer."""
    try:
        if isinstance(work, BigoptError):
            raise work
        blocks.kept.slot = task.slot
        if on_card(work):
            blocks.use_card(task.slot)
        where = task.leaves, task.start, task.units, task.ahead
        if isinstance(work, Slice):
            found = keeper.execute(blocks, work, task.ticket, task.inputs, *where)
            if found is None:
                return Lost(task.serial, "a slice was asked for where the whole is not kept")
            nodes, stats = found
        elif isinstance(work, Exchange):
            nodes, stats = work.execute(blocks, task.ticket, task.inputs, *where)
        else:
            nodes, stats = execute(blocks, work, task.inputs, *where)
    except BigoptError as error:
        return Failed(task.serial, type(error).__name__, error.message, error.where, error.hint)
    except Exception as error:  # a defect: repeating it elsewhere would only hide where it happened
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno}, {last.name})"
        hint = "lower data.memory" if isinstance(error, MemoryError) else "please report it"
        return Failed(task.serial, "ClusterError", text, _me(), hint)
    return Done(task.serial, tuple(nodes), tuple(nodes.values()), stats._replace(rss=watched.rss(), pid=os.getpid()))


def _me() -> str:
    return f"worker pid {os.getpid()} on {socket.gethostname()}"


def checked(message: Install) -> Work | BigoptError:
    """Return the work, or why this worker cannot read what the driver reads."""
    me = _me()
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


def untravelled(error: TypeError) -> ConfError:
    """Say that a work holds what cannot be sent: a type without @wire, such as the arrays of a MemorySource."""
    return ConfError(
        f"this cannot be sent to other processes: {error}",
        where="backend.name",
        hint="write the data as Zarr or Parquet, or use backend.name=local",
    )
