"""One open engine for many runs: its workers stay, and with them the rows that they have decoded.

Starting workers and decoding rows costs more than many a short run. `Shared` opens a session once and lends it: each
run gets a `Lent` that looks like a session of its own, and that at the end of the run, however it ends, waits for the
orders still under way, so that no arrival of one run reaches the next. Decoded blocks lie in the workers under the
view's key, so runs on the same rows, prepared in the same way, find them; the first pass over the data, whose raw
blocks are gone once they are prepared, is kept here by all that it depends on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bigopt import sessions
from bigopt.backends.base import Casting, Session
from bigopt.core.buffers import Casts
from bigopt.core.errors import BigoptError
from bigopt.facts import Datasets, Facts, open_data
from bigopt.work import Arrival, Order

if TYPE_CHECKING:
    from bigopt.config import Conf

_PROFILED = ("model.name", "model.loss", "model.standardize", "model.whiten", "run.seed", "run.dtype")


class Lent:
    """A session for the length of one run (see `bigopt.backends.base.Session`).

    Parameters
    ----------
    session : Session
        Stays open.
    broken : callable
        Called where what is under way cannot be waited for.
    """

    def __init__(self, session: Session, broken: Callable[[], None]) -> None:
        self._session = session
        self._broken = broken
        self._under_way = 0
        self.notes: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Number of orders that can run at a time."""
        return self._session.slots

    @property
    def casts(self) -> Casts | None:
        """Where the session takes params in the dtype of the blocks, if it does."""
        return self._session.casts if isinstance(self._session, Casting) else None

    def submit(self, order: Order) -> None:
        """Send an order."""
        self._session.submit(order)
        self._under_way += 1

    def wait(self) -> Arrival:
        """Return the next arrival."""
        arrival = self._session.wait()
        self._under_way -= 1
        return arrival

    def report(self, text: str, record: dict[str, Any]) -> None:
        """Show the run's state where people who watch this engine look."""
        self._session.report(text, record)

    def close(self) -> None:
        """Give the session back with nothing under way."""
        try:
            while self._under_way > 0:
                self.wait()
        except BaseException as error:
            self._broken()
            if not isinstance(error, BigoptError):
                raise


class Shared:
    """What the runs of a sweep share: the engine, the opened data, the first passes over them.

    Parameters
    ----------
    conf : Conf
        Its ``backend.*``, ``data.memory`` and ``run.bits`` are those of the engine.
    name : str
        What engines call it.
    say : callable
        Takes what a person should know of the engine when it is opened.
    """

    def __init__(self, conf: Conf, name: str, say: Callable[[str], None]) -> None:
        self._say = say
        self._conf = conf
        self._name = name
        self._session: Session | None = None
        self._data: dict[str, Datasets] = {}
        self._facts: dict[str, Facts] = {}

    @property
    def session(self) -> Session:
        """The open session; opened where there is none."""
        from bigopt.config import choose_backend

        if self._session is None:
            backend, notice = choose_backend(self._conf, under_spark=sessions.under_spark())
            self._session = sessions.open_session(self._conf, backend, self._name)
            for line in (notice, f"backend: {backend}, {self._session.slots} slots", *self._session.notes):
                if line:
                    self._say(line)
        return self._session

    def lend(self) -> Lent:
        """Return the session for the length of a run."""
        return Lent(self.session, self.close)

    def data(self, conf: Conf) -> Datasets:
        """Open the data of a conf, once for all confs that mean the same."""
        key = _values(conf, "data.")
        if key not in self._data:
            self._data[key] = open_data(conf)
        return self._data[key]

    def facts(self, conf: Conf, data: Datasets, find: Callable[[], Facts]) -> Facts:
        """Return what the first pass over the data finds, from an earlier run where it asked the same."""
        identity = data.train.source.identity()
        key = _values(conf, "data.", *_PROFILED) + identity
        if key not in self._facts:
            self._facts[key] = find()
        return self._facts[key]

    def close(self) -> None:
        """Stop the workers; the next `lend` starts others."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(BigoptError):
                session.close()


def _values(conf: Conf, *prefixes: str) -> str:
    """Return the values of keys with these prefixes, as text."""
    from bigopt.config.layers import values_of

    return repr([(key, value) for key, value in values_of(conf).items() if key.startswith(prefixes)])
