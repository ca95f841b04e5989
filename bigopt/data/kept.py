"""What a worker keeps for a run between two orders: values by name, number and version, never the only copy.

Work is pure: what it returns is a function of its inputs and its rows. Some inputs are too large to travel with every
order and change with every order: the residual of a compressed gradient, a block of columns of a model. They may stay
where they were computed, because the driver can always make them again:

1. An order names the **version** of the value that it needs (how often it was changed since the run began). A worker
   that has it goes on from there and keeps the outcome as the next version.
2. A worker that does not have it, because it is new, or was given another worker's place, or because an order was
   repeated much later, answers `Missing`: a value like any other, not an error.
3. The driver's state is a **commit**, all values as they were at some version, and a **log** of what has happened
   since, which is small and lets it repeat those steps. It answers `Missing` with a **catch-up**: the committed value
   and the inputs of the steps since then, which the worker goes through again with the same bits. From time to time an
   order asks for the value itself; then the driver commits it and the log begins anew.

So a checkpoint is commit and log, a lost worker costs time and no bit, and what lies here is a cache. The last two
versions are kept, so that an order that is repeated after it was done finds what it began with.

A run is named by a token that whoever makes its work draws anew at every start, resume and going back: versions of one
token never mean two values. Values of one token are kept at a time: the first value of another run gives up the rest.
They are not charged to ``data.memory``: like params and gradients they are vectors, which `describe` counts apart.
"""

from __future__ import annotations

import threading
from typing import Any, Final, NamedTuple

from bigopt.core.codec import wire

_VERSIONS: Final = 2


@wire
class Missing(NamedTuple):
    """The answer of a worker that does not have what an order goes on from.

    Parameters
    ----------
    name : str
    number : int
        Whose value it is: a replica, a group of units, a block.
    version : int
        The one that was asked for.
    """

    name: str
    number: int
    version: int


class Kept:
    """The values that a process keeps for one run at a time; safe for threads.

    Attributes
    ----------
    secret : bytes
        The key of the channel that this worker was placed with: what it proves to other workers. Empty without one.
    towards : str
        A host on whose network they meet: the driver's.
    slot : int
        Which this process is for the driver, as its last order said.
    """

    def __init__(self) -> None:
        self.secret = b""
        self.towards = "127.0.0.1"
        self.slot = 0
        self._run = ""
        self._values: dict[tuple[str, int], dict[int, Any]] = {}
        self._lock = threading.Lock()

    def get(self, run: str, name: str, number: int, version: int) -> Any | None:
        """Return a value, or None where it is not here; nobody may change it.

        Parameters
        ----------
        run : str
            The run's token.
        name : str
            What it is ("residual", "block").
        number : int
            Whose it is.
        version : int
        """
        with self._lock:
            if run != self._run:
                return None
            return self._values.get((name, number), {}).get(version)

    def put(self, run: str, name: str, number: int, version: int, value: Any) -> None:
        """Keep a value, which belongs to this store from now on, and the version before it; drop all others.

        A version that is older than the one before the newest (an order that comes again, much later) changes nothing.
        """
        with self._lock:
            if run != self._run:
                self._run, self._values = run, {}
            versions = self._values.setdefault((name, number), {})
            versions[version] = value
            for old in sorted(versions)[:-_VERSIONS]:
                del versions[old]

    def drop(self) -> None:
        """Give up everything."""
        with self._lock:
            self._run, self._values = "", {}
