"""The channel: the engine places and supervises resident workers, one small connection each carries vectors.

The driver opens a `Hub` (loopback, a Unix socket or the cluster's address; authenticated by a random key) and an engine
starts `serve` in as many places as there are slots. A worker connects back, shows its fingerprint, receives each `Work`
once, and then answers orders until it is told to stop or the driver is gone. A connection that breaks gives its orders
back as lost; whoever connects next fills the slot. Messages are made by `core.codec`: nothing is pickled.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import shutil
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, NamedTuple

from bigopt.backends.base import check_fingerprint, fingerprint, one_blas_thread, rss_bytes
from bigopt.core import codec
from bigopt.core.codec import wire
from bigopt.core.errors import ERRORS, BigoptError, ClusterError, ConfError
from bigopt.core.tree import Node
from bigopt.data import cache
from bigopt.work import Arrival, Order, Stats, Work, execute

Address = str | tuple[str, int]


@wire
class Hello(NamedTuple):
    """First message of a worker."""

    pid: int
    host: str
    name: str
    fingerprint: dict[str, str]


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


def _send(connection: Connection, value: Any) -> int:
    parts = codec.dumps(value)
    connection.send_bytes(len(parts).to_bytes(4, "little"))
    for part in parts:
        connection.send_bytes(part)
    return sum(len(part) for part in parts)


def _receive(connection: Connection) -> tuple[Any, int]:
    count = int.from_bytes(connection.recv_bytes(4), "little")
    parts = [connection.recv_bytes() for _ in range(count)]
    return codec.loads(parts), sum(len(part) for part in parts)


def _no_delay(connection: Connection) -> None:
    """Send small messages at once (TCP_NODELAY); Unix sockets do so by themselves."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as handle:
        if handle.family != socket.AF_UNIX:
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


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
        _no_delay(connection)
        _send(connection, Hello(os.getpid(), socket.gethostname(), name, fingerprint()))
        cache.configure(memory)
        works: dict[int, Work] = {}
        try:
            while True:
                message, _ = _receive(connection)
                if isinstance(message, Stop):
                    return
                _answer(connection, message, works)
        except (EOFError, OSError):  # the driver is gone; whoever placed this worker learns it from the driver
            return
        finally:
            cache.release()


def _answer(connection: Connection, message: Any, works: dict[int, Work]) -> None:
    if isinstance(message, Install):
        works[message.number] = message.work
        found = message.work.view.source.identity()
        if found != message.identity:
            text = f"this worker reads another dataset ({found[:12]}) than the driver ({message.identity[:12]})"
            _send(connection, Failed(-1, "DataError", text, f"{socket.gethostname()} pid {os.getpid()}", "same path?"))
        return
    try:
        nodes, stats = execute(works[message.work], message.inputs, message.leaves, message.start, message.units)
    except BigoptError as error:
        _send(connection, Failed(message.serial, type(error).__name__, error.message, error.where, error.hint))
    else:
        stats = stats._replace(rss=rss_bytes(), pid=os.getpid())
        _send(connection, Done(message.serial, tuple(nodes), tuple(nodes.values()), stats))


@dataclass(eq=False)
class Link:
    """A connected worker as the driver sees it."""

    connection: Connection
    slot: int
    hello: Hello
    orders: dict[int, tuple[Order, int]] = field(default_factory=dict)
    installed: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Hub:
    """The driver's end of all connections; gives a session its `submit` and `wait`.

    Parameters
    ----------
    slots : int
        Number of workers that are expected.
    timeout : float
        Seconds without any worker after which the cluster is lost.
    host : str or None
        Address to listen on for workers of other machines; None for a Unix socket.
    bits : str
        ``strict`` refuses workers with another fingerprint, ``any`` warns.
    """

    def __init__(self, slots: int, *, timeout: float, host: str | None = None, bits: str = "strict") -> None:
        self.slots = slots
        self.key = secrets.token_bytes(32)
        self.warnings: list[str] = []
        self._timeout = timeout
        self._bits = bits
        self._mine = fingerprint()
        self._folder = None if host else tempfile.mkdtemp(prefix="bigopt-")
        where: Any = (host, 0) if host else os.path.join(str(self._folder), "hub")
        self._listener = Listener(where, authkey=self.key, backlog=64)
        self._lock = threading.RLock()
        self._links: dict[int, Link] = {}
        self._homeless: list[Order] = []
        self._arrivals: queue.SimpleQueue[Arrival | BaseException] = queue.SimpleQueue()
        self._works: dict[int, tuple[int, Work]] = {}
        self._serial = 0
        self._closed = False
        threading.Thread(target=self._accept, name="bigopt-hub", daemon=True).start()

    @property
    def address(self) -> Address:
        """Where workers connect to."""
        address: Address = self._listener.address
        return address

    @property
    def links(self) -> list[Link]:
        """The workers connected now, by slot."""
        with self._lock:
            return [self._links[slot] for slot in sorted(self._links)]

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except (AuthenticationError, EOFError, ConnectionError):
                continue  # a stranger, or a worker that died while it connected
            except OSError:
                return  # closed
            threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection: Connection) -> None:
        _no_delay(connection)
        try:
            hello, _ = _receive(connection)
            who = f"worker {hello.name or hello.pid} on {hello.host}"
            warning = check_fingerprint(self._mine, hello.fingerprint, who=who, bits=self._bits)
        except (EOFError, OSError, ValueError):
            connection.close()
            return
        except ClusterError as error:
            connection.close()
            self._arrivals.put(error)
            return
        with self._lock:
            if warning:
                self.warnings.append(warning)
            free = [slot for slot in range(self.slots) if slot not in self._links]
            if self._closed or not free:
                with contextlib.suppress(OSError):
                    _send(connection, Stop())
                connection.close()
                return
            link = Link(connection, free[0], hello)
            self._links[link.slot] = link
            homeless, self._homeless = self._homeless, []
        for order in homeless:
            self.submit(order)
        self._read(link)

    def _read(self, link: Link) -> None:
        try:
            while True:
                message, size = _receive(link.connection)
                self._take(link, message, size)
        except (EOFError, OSError, ValueError) as error:
            self._drop(link, f"worker pid {link.hello.pid} on {link.hello.host} is gone ({type(error).__name__})")

    def _take(self, link: Link, message: Done | Failed, size: int) -> None:
        with self._lock:
            order, sent = link.orders.pop(message.serial, (None, 0))
        if isinstance(message, Failed):
            error = ERRORS[message.kind](message.message, where=message.where, hint=message.hint)
            self._arrivals.put(error if order is None else Arrival(order, error=error))
        elif order is not None:
            nodes = dict(zip(message.levels, message.values, strict=True))
            self._arrivals.put(Arrival(order, nodes, message.stats, sent=sent, received=size))

    def _drop(self, link: Link, reason: str) -> None:
        with self._lock:
            if self._links.get(link.slot) is link:
                del self._links[link.slot]
            orders, link.orders = link.orders, {}
        link.connection.close()
        for order, _ in orders.values():
            self._arrivals.put(Arrival(order, lost=reason))

    def submit(self, order: Order) -> None:
        """Send an order to its slot, else to the worker with the least to do, else to the next that comes."""
        with self._lock:
            links = list(self._links.values())
            if not links:
                self._homeless.append(order)
                return
            link = self._links.get(order.slot) or min(links, key=lambda k: (len(k.orders), k.slot))
            number, _ = self._works.setdefault(id(order.work), (len(self._works), order.work))
            self._serial += 1
            serial = self._serial
            link.orders[serial] = (order, 0)
        try:
            with link.lock:
                if number not in link.installed:
                    _send(link.connection, Install(number, order.work, order.work.view.source.identity()))
                    link.installed.add(number)
                sent = _send(
                    link.connection, Task(serial, number, order.leaves, order.start, order.units, order.inputs)
                )
        except OSError as error:
            self._drop(link, f"worker pid {link.hello.pid} on {link.hello.host} is gone ({type(error).__name__})")
            return
        with self._lock:
            if serial in link.orders:
                link.orders[serial] = (order, sent)

    def wait_for_workers(self, count: int = 1) -> int:
        """Wait until `count` workers are connected or the time is over; return how many are."""
        end = time.monotonic() + self._timeout
        while (found := len(self.links)) < count and time.monotonic() < end:
            self._raise_pending()
            time.sleep(0.02)
        if found == 0:
            raise ClusterError(
                f"no worker connected within {self._timeout:g} seconds", where="backend.timeout", hint="is it running?"
            )
        return found

    def _raise_pending(self) -> None:
        with contextlib.suppress(queue.Empty):
            waiting = self._arrivals.get_nowait()
            if isinstance(waiting, BaseException):
                raise waiting
            self._arrivals.put(waiting)

    def wait(self) -> Arrival:
        """Return the next arrival; raise `ClusterError` where no worker is left for ``timeout`` seconds."""
        alone_since: float | None = None
        while True:
            try:
                arrival = self._arrivals.get(timeout=1.0)
            except queue.Empty:
                now = time.monotonic()
                alone_since = None if self.links else (alone_since or now)
                if alone_since is not None and now - alone_since > self._timeout:
                    raise ClusterError(
                        f"all workers are gone and none came back within {self._timeout:g} seconds",
                        where="backend.timeout",
                        hint="look at the engine's logs; resume goes on from the last checkpoint",
                    ) from None
                continue
            if isinstance(arrival, BaseException):
                raise arrival
            return arrival

    def fail(self, error: BaseException) -> None:
        """Let the session's supervisor end the run: the next `wait` raises `error`."""
        self._arrivals.put(error)

    def close(self) -> None:
        """Stop all workers and remove the socket."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
        for link in links:
            with contextlib.suppress(OSError), link.lock:
                _send(link.connection, Stop())
        self._listener.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def check_slots(found: int, asked: int | None) -> int:
    """Return how many of the workers that were found are used."""
    if asked is not None and asked < 1:
        raise ConfError(f"{asked} workers", where="backend.workers", hint="at least 1")
    return found if asked is None else min(found, asked)
