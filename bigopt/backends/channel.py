"""The channel: the engine places and supervises resident workers, one small connection each carries vectors.

The driver opens a `Hub` behind a `Door` (a Unix socket, and the cluster's address where there may be other machines;
authenticated by a random key) and an engine starts `serve` in as many places as there are slots. A worker connects
back, shows its fingerprint, receives each `Work` once, and then answers orders until it is told to stop or the driver
is gone. One that reaches the Unix socket shares memory with the driver (`bigopt.backends.wire`); vectors of the others
cross TCP. A connection that breaks gives its orders back as lost; whoever connects next fills it. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeGuard

from bigopt.backends.base import check_fingerprint, fingerprint
from bigopt.backends.door import Door, Unreachable
from bigopt.backends.inbox import Inbox
from bigopt.backends.link import Carrier, Link, activity, arrived
from bigopt.backends.messages import Done, Failed, Install, Lost, Prepare, Sit, Stop, Task
from bigopt.backends.resident import Address, serve, untravelled
from bigopt.backends.seats import NOWHERE, Seats, here
from bigopt.backends.segments import Pool
from bigopt.backends.wire import Wire
from bigopt.core import codec
from bigopt.core.buffers import Casts
from bigopt.core.errors import ClusterError
from bigopt.work import Arrival, GradientSum, Order, Work

__all__ = ["Address", "Hub", "Link", "Unreachable", "serve"]


class Hub:
    """The driver's end of all connections; gives a session its `submit` and `wait`.

    Parameters
    ----------
    slots : int
        Number of workers that are expected.
    timeout : float
        Seconds without any worker after which the cluster is lost.
    host : str or None
        Address to listen on for workers of other machines; None for the Unix socket alone.
    bits : str
        ``strict`` refuses workers with another fingerprint, ``any`` warns.

    Attributes
    ----------
    warnings : list of str
        About workers with other fingerprints.
    met : bool
        Whether any worker was ever connected.
    casts : Casts
        Params in the dtype of the blocks, where every worker of this machine sees them: who makes new ones may leave
        them there.
    """

    def __init__(self, slots: int, *, timeout: float, host: str | None = None, bits: str = "strict") -> None:
        self.slots = slots
        self.warnings: list[str] = []
        self.met = False
        self._timeout = timeout
        self._bits = bits
        self._mine = fingerprint()
        self._door = Door(host)
        self._pool = Pool()
        self.casts = Casts(self._pool)
        self._lock = threading.RLock()
        self._links: dict[int, Link] = {}
        self._homeless: list[Order] = []
        self._arrivals: Inbox[Arrival | BaseException] = Inbox()
        self._seats = Seats()
        self._waiter: threading.Thread | None = None
        self._kept: list[Order] = []  # for the worker whose seat is the driver's core: sent last
        self._works: dict[int, tuple[int, Work]] = {}
        self._serial = 0
        self._closed = False
        self._greeted: dict[Carrier, threading.Thread] = {}
        self._door.open(self._enter)

    @property
    def key(self) -> bytes:
        """What workers prove to have."""
        return self._door.key

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where workers connect to: the Unix socket of this machine, then the address for all."""
        return self._door.addresses

    @property
    def where(self) -> str:
        """The address for all, as messages name it."""
        address = self.addresses[-1]
        return address if isinstance(address, str) else "{}:{}".format(*address)

    @property
    def links(self) -> list[Link]:
        """The workers connected now, by slot."""
        with self._lock:
            return [self._links[slot] for slot in sorted(self._links)]

    def grow(self, slots: int) -> None:
        """Take more workers from now on (never fewer: homes of partitions should stay)."""
        with self._lock:
            self.slots = max(self.slots, slots)

    def activity(self) -> list[dict[str, Any]]:
        """Say what every slot does: plain values, one dict a slot.

        Returns
        -------
        list of dict
            slot, worker, host, pid, state (``busy``, ``idle``, ``gone``), round, first and last partition (of the order
            that runs, else of the last one; None before the first), partitions (of the dataset), seconds (since it
            began, else of its Map), orders (finished so far), rss (bytes).
        """
        now = time.monotonic()
        with self._lock:
            return [activity(slot, self._links.get(slot), now) for slot in range(self.slots)]

    def _enter(self, connection: Connection) -> None:
        self.adopt(Wire(connection, self._pool, writable=True), connection)

    def adopt(self, wire: Carrier, connection: Connection | None = None) -> None:
        """Take a worker whose first message is a `Hello`; one that comes by a connection shows the key first."""
        thread = threading.Thread(target=self._greet, args=(connection, wire), name="bigopt-link", daemon=True)
        with self._lock:
            if self._closed:
                wire.close()
                return
            self._greeted[wire] = thread
        thread.start()

    def _greet(self, connection: Connection | None, wire: Carrier) -> None:
        try:
            if connection is None or self._door.knows(connection):
                self._admit(wire)
        finally:
            with self._lock:  # never while another thread looks at its file descriptor
                self._greeted.pop(wire, None)
                wire.close()

    def _admit(self, wire: Carrier) -> None:
        """Compare fingerprints, give a worker that has the key a slot and read what it sends."""
        try:
            hello, _ = wire.receive()
            who = f"worker {hello.name or hello.pid} on {hello.host}"
            warning = check_fingerprint(self._mine, hello.fingerprint, who=who, bits=self._bits)
        except (EOFError, OSError):
            return
        except (ValueError, AttributeError) as error:
            text = f"a worker speaks another protocol: {error}"
            self.fail(ClusterError(text, hint="install the same version of bigopt on all workers"))
            return
        except ClusterError as error:
            self.fail(error)
            return
        with self._lock:
            if warning:
                self.warnings.append(warning)
            for old in list(self._links.values()):
                if hello.name and old.hello.name == hello.name:
                    self._drop(old, f"{who} connected again")
            free = [slot for slot in range(self.slots) if slot not in self._links]
            if self._closed or not free:
                with contextlib.suppress(OSError):
                    wire.send(Stop())
                return
            link = Link(wire, free[0], hello, self._seats.of(free[0], self.slots) if _near(wire) else NOWHERE)
            self._links[link.slot] = link
            self.met = True
            homeless, self._homeless = self._homeless, []
            if link.core != NOWHERE:
                with contextlib.suppress(OSError):
                    wire.send(Sit(link.core))
        if homeless:  # by another thread: this one must read, or two full pipes would wait for each other
            threading.Thread(target=self._resubmit, args=(homeless,), name="bigopt-resubmit", daemon=True).start()
        self._read(link)

    def _resubmit(self, orders: list[Order]) -> None:
        for order in orders:
            self.submit(order)

    def _read(self, link: Link) -> None:
        if self._arrivals.watches and _near(link.wire):
            self._arrivals.watch(link.wire.fileno(), partial(self._read_one, link), link.ended.set)
            link.ended.wait()
        while self._read_one(link):
            pass
        with link.lock:  # whoever was sending to it has been woken by now
            link.gone = True

    def _read_one(self, link: Link) -> bool:
        """Read a message; return whether another may come."""
        try:
            message, size = link.wire.receive()
            self._take(link, message, size)
        except (EOFError, OSError, ValueError) as error:
            self._drop(link, f"worker pid {link.hello.pid} on {link.hello.host} is gone ({type(error).__name__})")
            return False
        return True

    def _take(self, link: Link, message: Done | Lost | Failed, size: int) -> None:
        with self._lock:
            unsaid = link.orders.get(message.serial, (None, 1))[1] == 0
        if unsaid:
            with link.lock:  # the answer was faster than who sent the order, and is about to say how long it was
                pass
        with self._lock:
            order, sent = link.orders.pop(message.serial, (None, 0))
            link.since, link.last, link.finished = time.monotonic(), order or link.last, link.finished + 1
            if isinstance(message, Done):
                link.stats = message.stats
        if order is not None:
            self._arrivals.put(arrived(order, message, sent, size))

    def _drop(self, link: Link, reason: str) -> None:
        with self._lock:
            if self._links.get(link.slot) is link:
                del self._links[link.slot]
            orders, link.orders = link.orders, {}
            link.wire.hang_up()
        for order, _ in orders.values():
            self._arrivals.put(Arrival(order, lost=reason))

    def drop(self, name: str) -> None:
        """Give up a worker that its engine has given up: its orders come back as lost."""
        with self._lock:
            for link in list(self._links.values()):
                if link.hello.name == name:
                    self._drop(link, f"{name} is gone")

    def submit(self, order: Order) -> None:
        """Send an order to its slot, else to the worker with the least to do, else to the next that comes.

        One that would be woken where the driver is now is sent by `wait`.
        """
        link = self._links.get(order.slot)
        waits = threading.current_thread() is self._waiter
        if waits and link is not None and link.core != NOWHERE and link.core == here():
            self._kept.append(order)
        else:
            self._send(order)

    def _send(self, order: Order) -> None:
        with self._lock:
            links = list(self._links.values())
            if not links:
                self._homeless.append(order)
                return
            link = self._links.get(order.slot) or min(links, key=lambda k: (len(k.orders), k.slot))
            number, _ = self._works.setdefault(id(order.work), (len(self._works), order.work))
            self._serial += 1
            serial = self._serial
            if not link.orders:
                link.since = time.monotonic()
            link.orders[serial] = (order, 0)
        try:
            with link.lock:
                if link.gone:
                    raise BrokenPipeError
                if number not in link.installed:
                    link.wire.send(Prepare(codec.modules(order.work)))
                    link.wire.send(Install(number, order.work, order.work.view.source.identity()))
                    link.installed.add(number)
                where = order.ticket, link.slot, order.leaves, order.start, order.units, order.ahead
                inputs = self._cast(order)
                sent = link.wire.send(Task(serial, number, *where, inputs), order.inputs)
                with self._lock:
                    if serial in link.orders:
                        link.orders[serial] = (order, sent)
        except TypeError as error:
            raise untravelled(error) from None
        except OSError as error:
            self._drop(link, f"worker pid {link.hello.pid} on {link.hello.host} is gone ({type(error).__name__})")

    def _cast(self, order: Order) -> tuple[Any, ...]:
        """Return inputs that are cast already, where all that a work does with them is to cast them."""
        work, inputs = order.work, order.inputs
        if type(work) is not GradientSum or work.view.source.sparse:
            return inputs
        found = self.casts.found(inputs[0], work.view.dtype)
        return inputs if found is None else (found,)

    def wait_for_workers(self, count: int = 1, patience: float | None = None) -> int:
        """Wait until `count` workers are connected; return how many are.

        Parameters
        ----------
        count : int
        patience : float, optional
            Seconds to wait for the others once one is there; None: as long as for the first.

        Raises
        ------
        ClusterError
            Where none is connected within ``timeout`` seconds, or one was refused.
        """
        begin = time.monotonic()
        first: float | None = None
        while True:
            self._raise_pending()
            found, now = len(self.links), time.monotonic()
            if found >= count:
                return found
            if found and first is None:
                first = now
            if now - begin > self._timeout or (first is not None and patience is not None and now - first > patience):
                break
            time.sleep(0.01)
        if found == 0:
            raise Unreachable(
                f"no worker connected within {self._timeout:g} seconds",
                where="backend.timeout",
                hint=f"are they free, and can they reach the driver at {self.where}?",
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
        self._waiter = threading.current_thread()
        kept, self._kept = self._kept, []
        for order in kept:
            self._send(order)
        while True:
            try:
                with self._seats.aside([link.core for link in self.links if link.orders]):
                    arrival = self._arrivals.get(1.0)
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
        """Stop all workers, end all connections and remove the socket."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            links, threads = list(self._links.values()), list(self._greeted.values())
        for link in links:
            if not link.orders:  # one that computes learns it from the end of the connection
                with contextlib.suppress(OSError), link.lock:
                    link.wire.send(Stop())
        with self._lock:
            for wire in self._greeted:
                wire.hang_up()
        self._door.close()
        self._arrivals.close()
        for thread in threads:
            thread.join(5.0)
        self._pool.close()


def _near(wire: Carrier) -> TypeGuard[Wire]:
    """Return whether a worker is a process of this machine that came by the Unix socket."""
    return isinstance(wire, Wire) and wire.shares
