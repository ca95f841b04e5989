"""A core for each worker of a machine: where it is woken, not where it stays.

Whoever sends an order wakes the worker, and Linux likes to put who is woken on the core of who woke it. On a busy
machine it hardly looks for an idle one, so that two workers begin on one core while another idles, or a worker takes
the driver's core before the driver has sent the next order; a tick or two, of 4 ms each, pass until that is mended. A
round of a small network takes as long.

So where a run has as many workers on a machine as there are cores, each of them has a *seat*, and asks to be woken
there. While it computes it may be moved as ever, and the threads that it starts are bound to nothing. The driver waits
on a core whose worker is done, and sends the order of that core last: then it has nothing to do but to wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Final

NOWHERE: Final = -1
"""The seat of a worker that has none."""


class Seats:
    """The seats of a run's workers on the driver's machine."""

    def __init__(self) -> None:
        self._cores = cores()
        self._anywhere = frozenset(self._cores)

    def of(self, slot: int, slots: int) -> int:
        """Return a slot's core, where there are as many slots as cores, and more than one; else `NOWHERE`."""
        return self._cores[slot] if slots == len(self._cores) > 1 else NOWHERE

    def aside(self, busy: Iterable[int]) -> contextlib.AbstractContextManager[None]:
        """Let this thread wait where nobody computes, if everybody who does has a seat and a core is left.

        Parameters
        ----------
        busy : iterable of int
            Seats of those who compute.
        """
        taken = set(busy)
        free = self._anywhere - taken if taken and NOWHERE not in taken else frozenset()
        return woken_on(free, self._anywhere)


def cores() -> tuple[int, ...]:
    """Return the cores that this thread may use; none where the system does not say, or not which one it is on."""
    known = hasattr(os, "sched_setaffinity") and _where() is not None
    return tuple(sorted(os.sched_getaffinity(0))) if known else ()


def here() -> int:
    """Return the core that this thread is on; -1 where the system does not say."""
    where = _where()
    return -1 if where is None else where()


@contextlib.contextmanager
def woken_on(wanted: frozenset[int], allowed: frozenset[int]) -> Iterator[None]:
    """Let this thread wait within a with statement for what wakes it on one of some cores.

    Parameters
    ----------
    wanted, allowed : frozenset of int
        The cores, and those that it may use before and afterwards. Where none is wanted nothing is asked for.
    """
    asked = bool(wanted) and _bound(wanted)
    try:
        yield
    finally:
        if asked:
            _bound(allowed)


def _bound(to: frozenset[int]) -> bool:
    try:
        os.sched_setaffinity(0, to)
    except OSError:  # cores that were taken from this process meanwhile
        return False
    return True


@cache
def _where() -> Callable[[], int] | None:
    try:
        found: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
    except (AttributeError, OSError, TypeError):
        return None
    return found
