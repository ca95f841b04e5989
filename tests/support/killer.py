"""A session that kills workers while they compute."""

from __future__ import annotations

import os
import signal

from bigopt.backends.base import Session
from bigopt.work import Arrival, Order


class Killer:
    """Passes everything on, and kills the worker an order goes to: it is stopped first, so that it cannot answer."""

    def __init__(self, session: Session, at: tuple[int, ...]) -> None:
        self._session = session
        self._at = set(at)
        self._pids: dict[int, int] = {}
        self.killed: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def wait(self) -> Arrival:
        arrival = self._session.wait()
        if arrival.stats.pid:
            self._pids[arrival.order.slot] = arrival.stats.pid
        return arrival

    def submit(self, order: Order) -> None:
        pid = self._pids.get(order.slot)
        if order.ticket not in self._at or pid is None:
            self._session.submit(order)
            return
        self._at.discard(order.ticket)
        os.kill(pid, signal.SIGSTOP)
        self._session.submit(order)
        os.kill(pid, signal.SIGKILL)
        self.killed.append(pid)
