"""Gates: which arrived gradient may be applied, and which ticket is given out next.

An asynchronous parameter server has p gradients in flight, each with the version of the params it was read from. When
one arrives, a gate decides. `Free` applies whatever came first. `Bounded` (stale synchronous parallel, Ho et al. 2013)
never lets a gradient be applied with a staleness above its bound: it applies an arrival only where every ticket still
out could then be applied in time. `Scripted` repeats a recorded run: the same tickets, read at the same versions,
applied in the same order, hence the same bits.

Why `Bounded` never locks up: let the tickets that are out be sorted by version, r_0 <= r_1 <= ... At version v all can
be applied in time, oldest first, iff v + i - r_i <= bound for every i. A new ticket enters last, with r = v and i below
the number of workers, so a bound of workers - 1 suffices. Applying the oldest shifts all others forward by one place
and keeps every inequality; so the oldest may always be applied once it is there. Where workers join a run and are more
than bound + 1, that many have tickets and the others wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Out(NamedTuple):
    """A ticket that is out: its number in the driver's stream, the version it was read at, whether it has arrived."""

    number: int
    version: int
    arrived: bool


class Update(NamedTuple):
    """A line of a run's log: which ticket was applied, the version of the params it was computed from, and who did it.

    The number of the line is the version it was applied to; the worker is told for people, nothing depends on it.
    """

    ticket: int
    version: int
    worker: int = 0


def no_log(update: Update) -> None:
    """Keep no log."""


class Gate(Protocol):
    """A policy; it sees versions and numbers, never a gradient."""

    def choose(self, out: Sequence[Out], version: int) -> int | None:
        """Return the place within `out` of an arrived ticket to apply now at `version`, or None to wait.

        `out` is in the order of arrival, tickets still on their way last.
        """
        ...

    def issue(self, number: int, version: int) -> int | None:
        """Return the ticket to give out at `version` where `number` is the next of the stream, or None for none now."""
        ...

    def places(self, slots: int, busy: Collection[int]) -> Iterable[int]:
        """Return the slots that are offered a ticket, in order, where `busy` ones have tickets that are out."""
        ...


@dataclass(frozen=True)
class Free:
    """First come, first applied."""

    def choose(self, out: Sequence[Out], version: int) -> int | None:
        """Return the first arrival."""
        return next((i for i, ticket in enumerate(out) if ticket.arrived), None)

    def issue(self, number: int, version: int) -> int | None:
        """Return the next ticket."""
        return number

    def places(self, slots: int, busy: Collection[int]) -> Iterable[int]:
        """Return the slots that have none."""
        return [slot for slot in range(slots) if slot not in busy]


@dataclass(frozen=True)
class Bounded:
    """No gradient is applied with a staleness above `bound`.

    Parameters
    ----------
    bound : int
        At least the number of workers - 1.
    """

    bound: int

    def choose(self, out: Sequence[Out], version: int) -> int | None:
        """Return the first arrival whose application leaves time for all others, or None."""
        for i, ticket in enumerate(out):
            if ticket.arrived and self._in_time([t.version for j, t in enumerate(out) if j != i], version + 1):
                return i
        return None

    def _in_time(self, versions: list[int], now: int) -> bool:
        return all(now + i - read <= self.bound for i, read in enumerate(sorted(versions)))

    def issue(self, number: int, version: int) -> int | None:
        """Return the next ticket."""
        return number

    def places(self, slots: int, busy: Collection[int]) -> Iterable[int]:
        """Return slots that have none, so that bound + 1 tickets are out at most: workers may have joined."""
        free = [slot for slot in range(slots) if slot not in busy]
        return free[: max(0, self.bound + 1 - len(busy))]


@dataclass
class Scripted:
    """Repeats a log.

    Parameters
    ----------
    log : sequence of Update
        All updates of a run, in order.
    """

    log: Sequence[Update]
    _readers: dict[int, list[int]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for update in self.log:
            self._readers.setdefault(update.version, []).append(update.ticket)

    def choose(self, out: Sequence[Out], version: int) -> int | None:
        """Return the arrival that the log names for this version, once every ticket that reads it is given out."""
        if version >= len(self.log) or self._readers.get(version):
            return None
        wanted = self.log[version].ticket
        return next((i for i, ticket in enumerate(out) if ticket.arrived and ticket.number == wanted), None)

    def issue(self, number: int, version: int) -> int | None:
        """Return a ticket that the log read at this version and that is not given out yet."""
        readers = self._readers.get(version)
        return readers.pop(0) if readers else None

    def places(self, slots: int, busy: Collection[int]) -> Iterable[int]:
        """Return all slots again and again: as many tickets are out as the log had, on however many workers."""
        return itertools.cycle(range(slots))
