"""What a row of the table is: sides that compute the same, figures of what they took, and bars for the figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.statistics import Bar

Sample = Mapping[str, Any]
"""What a run of a side gives: ``seconds`` of one unit of its work, and whatever else the row's figures need."""


@dataclass(frozen=True)
class Scale:
    """How large the rows are made.

    Parameters
    ----------
    quick : bool
        Small sizes and 3 rounds.
    tiny : bool
        Sizes for a test of the suite itself; the figures mean nothing.
    work : Path
        Where data lies.
    budget : float
        Seconds of a row; while they last, rounds that were thrown away are made again.
    """

    quick: bool
    tiny: bool
    work: Path
    budget: float = math.inf

    def pick(self, full: int, quick: int, tiny: int) -> int:
        """Return the size that goes with this scale."""
        return tiny if self.tiny else quick if self.quick else full


@dataclass(frozen=True)
class Side:
    """Who computes.

    Parameters
    ----------
    target : str
        ``module:Class``: a `benchmarks.sides.Base` with ``run() -> Sample``.
    arguments : dict
    group : str
        Sides of one group are candidates (solvers of one peer): the fastest is chosen once, after the warm-up, and
        goes by the group's name.
    python : str or None
        Interpreter with the side's packages.
    peak : bool
        Whether the memory of its processes is followed (as ``peak_bytes`` of its samples).
    warm : str
        Method of its warm-up: shorter than ``run`` where that would take long.
    once : bool
        Whether it is run in the first round only, because its figure has no spread.
    slow : bool
        Whether ``--quick`` measures it in the first round only (after its warm-up), and takes that for all rounds.
    follows : str
        A side or group whose ``loss`` is this one's target: told by ``aim`` before each run.
    """

    target: str
    arguments: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    python: str | None = None
    peak: bool = False
    warm: str = "run"
    once: bool = False
    slow: bool = False
    follows: str = ""


Round = Mapping[str, Sample]


@dataclass(frozen=True)
class Figure:
    """A number of the table.

    Parameters
    ----------
    label : str
    of : callable
        ``of(round) -> float``; a side that was skipped raises `Skip` when it is asked for.
    bar : Bar or None
        None for information.
    unit : str
        ``x`` (a ratio), ``ms``, ``GB/s``, ...
    """

    label: str
    of: Callable[[Round], float]
    bar: Bar | None = None
    unit: str = "x"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Parameters
    ----------
    name : str
        What ``ROWS=`` takes.
    title : str
    sides : callable
        ``sides(scale) -> {name: Side}``; makes the data they need.
    figures : sequence of Figure
    same_loss : sequence of (names, relative tolerance)
        Sides whose ``check()`` must give the same loss.
    ours : str
        The side whose profile is shown where a bar is missed.
    seconds : float
        What it takes at full size on 2 idle cores, about: its part of the budget of all rows.
    quick : bool
        Whether ``--quick`` makes it unasked. Not where small sizes save nothing, for engines take the time to start.
    """

    name: str
    title: str
    sides: Callable[[Scale], Mapping[str, Side]]
    figures: Sequence[Figure]
    same_loss: Sequence[tuple[tuple[str, ...], float]] = ()
    ours: str = "bigopt"
    seconds: float = 60.0
    quick: bool = True
