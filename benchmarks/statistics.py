"""What is done with measured numbers: medians and quartiles of paired figures, bars, and which rounds count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

FOREIGN_SHARE: Final = 0.05
"""Part of the cores' time that others may use during a run that counts (0.05 of 2 cores: a tenth of a core)."""
TICK_SECONDS: Final = 0.02
"""Linux counts CPU time in ticks of 10 ms: what two readings may be off."""
LONG_RUN_SECONDS: Final = 15.0
"""A peer whose single run takes longer is paired `FEW_PAIRS` times."""
PAIRS: Final = 7
FEW_PAIRS: Final = 3


class Spread(NamedTuple):
    """Median and quartiles of a figure over the rounds that count.

    Parameters
    ----------
    median, low, high : float
        The 50th, 25th and 75th percentiles, linearly interpolated.
    rounds : int
    """

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles.

    Raises
    ------
    ValueError
        For no values, or values that are not finite.
    """
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"no spread of {list(values)}")
    ordered = sorted(values)
    median, low, high = (_percentile(ordered, q) for q in (0.5, 0.25, 0.75))
    return Spread(median, low, high, len(ordered))


def _percentile(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@dataclass(frozen=True)
class Bar:
    """What a figure should reach.

    Parameters
    ----------
    kind : {"at least", "at most"}
    value : float
    """

    kind: Literal["at least", "at most"]
    value: float

    def reached(self, value: float) -> bool:
        """Return whether a value meets the bar."""
        return value >= self.value if self.kind == "at least" else value <= self.value

    def verdict(self, found: Spread) -> Literal["reached", "not reached", "close"]:
        """Judge by the median; ``close`` says that the quartiles lie on both sides of the bar and it is missed."""
        if self.reached(found.median):
            return "reached"
        return "close" if self.reached(found.low) or self.reached(found.high) else "not reached"

    def __str__(self) -> str:
        return f"{'>=' if self.kind == 'at least' else '<='} {self.value:g}"


class Load(NamedTuple):
    """What the cores did during a run, or several, in seconds.

    Parameters
    ----------
    wall : float
        Length of the run.
    ours : float
        CPU time of the benchmark's processes.
    machine : float
        CPU time that was not idle on the cores we may use, time stolen by a hypervisor included.
    cores : int
        Number of those cores.
    """

    wall: float
    ours: float
    machine: float
    cores: int

    @property
    def foreign(self) -> float:
        """CPU seconds that went to others."""
        return max(0.0, self.machine - self.ours)

    @property
    def foreign_cores(self) -> float:
        """Cores that others used."""
        return self.foreign / self.wall if self.wall else 0.0


def together(loads: Iterable[Load]) -> Load:
    """Return what the cores did in several intervals."""
    found = list(loads)
    wall, ours, machine = (sum(load[i] for load in found) for i in range(3))
    return Load(wall, ours, machine, max((load.cores for load in found), default=0))


def disagreement(load: Load) -> str:
    """Say why a run, or the runs of a round together, do not count; empty where they do.

    CPU time and wall time agree where all that the cores did, they did for us: others (other processes, the kernel on
    their behalf, a hypervisor) may have had `FOREIGN_SHARE` of the cores' time at most.
    """
    allowed = FOREIGN_SHARE * load.cores * load.wall + TICK_SECONDS * load.cores
    if load.foreign <= allowed:
        return ""
    return f"others used {load.foreign_cores:.2f} of {load.cores} cores for {load.wall:.1f} s"


def pairs_for(longest: float, *, quick: bool) -> int:
    """Return how many rounds to make when the longest single run of a side takes `longest` seconds."""
    return FEW_PAIRS if quick or longest > LONG_RUN_SECONDS else PAIRS


def agree(losses: Sequence[float], tolerance: float) -> bool:
    """Return whether losses are equal up to a relative tolerance of the largest."""
    if not all(math.isfinite(v) for v in losses):
        return False
    return max(losses) - min(losses) <= tolerance * max(abs(v) for v in losses)
