"""Rounds of probes for tests of backends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bigopt.backends.base import Session
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.testing import Probe
from bigopt.config import BackendConf
from bigopt.core import tree
from bigopt.core.sums import Sums, merge
from bigopt.data.plan import homes, whole
from bigopt.data.synthetic import SyntheticSource
from bigopt.data.view import DataView
from bigopt.work import Arrival, Order

SIZES = np.array([50, 400, 30, 170, 640, 90, 300])
"""Seven unequal partitions."""
MEMORY = 10**8


def view(source: SyntheticSource | None = None) -> DataView:
    """Return seven partitions of synthetic rows."""
    return DataView(source or SyntheticSource(3, 8, dtype="float64"), np.cumsum([0, *SIZES]), "float64")


def vector(length: int = 1000) -> np.ndarray:
    """Return params whose multiples round."""
    return np.linspace(0.1, 1.0, length)


def direct(params: np.ndarray) -> Sums:
    """Fold the leaves one by one along the tree, in this process."""
    from bigopt.data.cache import BlockCache
    from bigopt.data.meter import Meter

    work, meter = Probe(view()), Meter(BlockCache(MEMORY))
    units = whole(np.arange(len(SIZES)), SIZES)
    leaves = (work((params,), unit, meter) for unit in units)
    return tree.fold(leaves, len(units), merge)[(tree.height(len(units)), 0)]


class Recorder:
    """A session that keeps every order and arrival."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.slots = session.slots
        self.orders: list[Order] = []
        self.arrivals: list[Arrival] = []

    def submit(self, order: Order) -> None:
        self.orders.append(order)
        self._session.submit(order)

    def wait(self) -> Arrival:
        self.arrivals.append(self._session.wait())
        return self.arrivals[-1]


def run_round(
    session: Any, work: Any, params: np.ndarray, *, slots: int | None = None, rounds: Rounds | None = None
) -> Any:
    """Run one round; return the root and the ledger."""
    rounds = rounds or Rounds(Ledger(), 3)
    ledger = rounds.ledger
    units = whole(np.arange(len(SIZES)), SIZES)
    root = rounds.run(session, work, (params,), units, lambda n: homes(SIZES, slots or n)[units[:, 0]], "step 1")
    return root, ledger


def same(left: Sums, right: Sums) -> bool:
    """Whether two sums have the same bits."""
    return left.grad.tobytes() == right.grad.tobytes() and left[1:] == right[1:]


def conf(name: str, **keys: Any) -> BackendConf:
    """Return a backend's conf."""
    return BackendConf(name=name, **{"workers": 2, "timeout": 30.0, **keys})  # type: ignore[arg-type]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait until something is so; return whether it is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii") as handle:
        return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def started(folder: Any) -> int:
    """Return how many units have been started by probes that leave notes in a folder."""
    return len(os.listdir(folder))


@contextlib.contextmanager
def closing(session: Session) -> Iterator[Any]:
    """Close a session whatever happens."""
    try:
        yield session
    finally:
        session.close()
