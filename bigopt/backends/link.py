"""A connected worker as the driver sees it, and what is told about it to people who watch."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from bigopt.backends.messages import Done, Failed, Hello, Lost
from bigopt.backends.seats import NOWHERE
from bigopt.core.errors import ERRORS, ClusterError
from bigopt.work import Arrival, Order, Stats


class Carrier(Protocol):
    """One end of a connection to a worker, whatever carries the messages; see `bigopt.backends.wire.Wire`."""

    def send(self, value: Any, origin: object = None) -> int:
        """Send a value; return the bytes it stands for. Raise `OSError` where the worker is gone."""
        ...

    def receive(self) -> tuple[Any, int]:
        """Return the next value and the bytes it stands for. Raise `EOFError` or `OSError` at the end."""
        ...

    def hang_up(self) -> None:
        """End the connection; wake whoever is blocked in it."""
        ...

    def close(self) -> None:
        """Give up what this end holds."""
        ...


@dataclass(eq=False)
class Link:
    """A connected worker as the driver sees it.

    `last` is what it finished last, `since` when its state changed; `core` is its seat; `ended`
    is set when nobody reads from it any more.
    """

    wire: Carrier
    slot: int
    hello: Hello
    core: int = NOWHERE
    orders: dict[int, tuple[Order, int]] = field(default_factory=dict)
    installed: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    last: Order | None = None
    stats: Stats = field(default_factory=Stats)
    since: float = field(default_factory=time.monotonic)
    finished: int = 0
    gone: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


def arrived(order: Order, message: Done | Lost | Failed, sent: int, received: int) -> Arrival:
    """Return the end of an order as a session says it, from what a worker said of it."""
    if isinstance(message, Failed):
        kind = ERRORS.get(message.kind, ClusterError)
        return Arrival(order, error=kind(message.message, where=message.where, hint=message.hint))
    if isinstance(message, Lost):
        return Arrival(order, lost=message.reason)
    nodes = dict(zip(message.levels, message.values, strict=True))
    return Arrival(order, nodes, message.stats, sent=sent, received=received)


def activity(slot: int, link: Link | None, now: float) -> dict[str, Any]:
    """Return what a slot does, as `Hub.activity` says it."""
    if link is None:
        return {"slot": slot, "worker": "", "state": "gone", "round": None, "first": None, "last": None}
    busy = next((order for order, _ in link.orders.values()), None)
    order = busy or link.last
    return {
        "slot": slot,
        "worker": link.hello.name,
        "host": link.hello.host,
        "pid": link.hello.pid,
        "state": "idle" if busy is None else "busy",
        "round": None if order is None else order.ticket,
        "first": None if order is None else int(order.units[:, 0].min()),
        "last": None if order is None else int(order.units[:, 0].max()),
        "partitions": None if order is None else order.work.view.partitions,
        "seconds": link.stats.seconds if busy is None else now - link.since,
        "orders": link.finished,
        "rss": link.stats.rss,
    }
