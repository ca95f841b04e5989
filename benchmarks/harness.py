"""Rows: start the sides, warm them up, compare their losses, make rounds (`benchmarks.rounds`), sum them up.

The seconds of a row are those of its parts: ``data`` (made once, kept), ``start`` of the sides' processes with their
engines, ``warm-up`` (with the losses), ``rounds`` that count, runs ``played again``, rounds ``thrown away``, and the
``end``. A row has a budget of seconds: while it lasts, what ran on busy cores is run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cast import Cast
from benchmarks.parts import Parts
from benchmarks.player import Player, SideError, Skip
from benchmarks.rounds import Play
from benchmarks.spec import Figure, Row, Sample, Scale
from benchmarks.statistics import Bar, Spread, spread


@dataclass
class Outcome:
    """A figure's result: a spread, or why there is none."""

    label: str
    unit: str
    bar: Bar | None
    spread: Spread | None = None
    values: list[float] = field(default_factory=list)
    reason: str = ""

    @property
    def verdict(self) -> str:
        """``reached``, ``not reached``, ``close``, ``skipped``, or nothing for information."""
        if self.spread is None:
            return "skipped"
        return "" if self.bar is None else self.bar.verdict(self.spread)


@dataclass
class RowResult:
    """What came of a row."""

    name: str
    title: str
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    sides: dict[str, Any] = field(default_factory=dict)
    profile: Any = None

    @property
    def reached(self) -> bool:
        """Whether every bar of the row is reached."""
        return self.barred and all(o.verdict == "reached" for o in self.outcomes if o.bar is not None)

    @property
    def barred(self) -> bool:
        """Whether the row has a bar, or failed before it could have one; else it is for information."""
        return not self.outcomes or any(o.bar is not None for o in self.outcomes)


class _Present(dict[str, Sample]):
    """The samples of a round; a side that is not there raises the reason."""

    def __init__(self, samples: Mapping[str, Sample], gone: Mapping[str, str]) -> None:
        super().__init__(samples)
        self._gone = gone

    def __missing__(self, name: str) -> Sample:
        raise Skip(self._gone.get(name, f"no side {name}"))


def run_row(row: Row, scale: Scale, folder: Path, root: int, *, anyway: bool, say: Callable[[str], None]) -> RowResult:
    """Run one row.

    Parameters
    ----------
    row : Row
    scale : Scale
    folder : Path
        For logs.
    root : int
        The benchmark's own process: its tree's CPU time is ours.
    anyway : bool
        Count runs on busy cores too (and say so).
    say : callable
    """
    result, parts = RowResult(row.name, row.title), Parts()

    def note(text: str) -> None:
        result.notes.append(text.strip())
        say(text)

    say(f"{row.name}: {row.title}")
    with ExitStack() as stack:
        with parts.of("data"):
            sides = row.sides(scale)
        with parts.of("start"):
            cast = Cast(sides, folder, stack, note, scale.quick or scale.tiny)
        with parts.of("warm-up"):
            first = [name for name, side in sides.items() if not side.follows]
            timed, losses = cast.warm_up(first)
            cast.choose(timed)
            losses |= cast.warm_up([name for name in sides if name not in first])[1]
            for names, tolerance in row.same_loss:
                cast.compare(names, tolerance, losses)
            cast.settle()
        cast.warm = True
        played = Play(cast, root, anyway=anyway, note=note, parts=parts, budget=scale.budget).rounds()
        rounds = played.kept
        result.outcomes = [_outcome(figure, rounds, cast.gone) for figure in row.figures]
        if len(rounds) < cast.pairs():
            for outcome in result.outcomes:
                outcome.spread, outcome.reason = None, "machine busy"
        missed = any(o.verdict in ("not reached", "close") for o in result.outcomes)
        with parts.of("end"):
            if missed and row.ours in cast.players:
                result.profile = cast.guard(row.ours, _profile)
            result.sides = _summary(rounds, losses, cast)
            cast.close()
        result.sides["rounds"] = {
            "kept": len(rounds),
            "thrown away": played.thrown,
            "played again": dict(played.again),
            "foreign cores": [round(load.foreign_cores, 3) for load in played.loads],
        }
    result.seconds, result.parts = parts.total, parts.seconds
    say(f"  {result.seconds:.0f} s{_of_budget(result.seconds, scale.budget)}: {parts}")
    for outcome in result.outcomes:
        say(f"  {describe(outcome)}")
    return result


def _of_budget(seconds: float, budget: float) -> str:
    return "" if math.isinf(budget) else f" of {budget:.0f} s" + (" (over)" if seconds > budget else "")


def _profile(player: Player) -> Any:
    try:
        return player.call("profile")
    except SideError:
        return None


def _outcome(figure: Figure, rounds: Sequence[Mapping[str, Sample]], gone: Mapping[str, str]) -> Outcome:
    outcome = Outcome(figure.label, figure.unit, figure.bar)
    try:
        outcome.values = [figure.of(_Present(samples, gone)) for samples in rounds]
    except Skip as reason:
        outcome.reason = str(reason)
    if outcome.values and not outcome.reason:
        outcome.spread = spread(outcome.values)
    elif not outcome.reason:
        outcome.reason = "no round"
    return outcome


def _summary(rounds: Sequence[Mapping[str, Sample]], losses: Mapping[str, float], cast: Cast) -> dict[str, Any]:
    """Return for each side the median of what its samples hold, for the JSON."""
    found: dict[str, Any] = {}
    for name in cast.players:
        samples = [r[name] for r in rounds if name in r]
        keys = {key for sample in samples for key, value in sample.items() if isinstance(value, int | float)}
        found[name] = {key: spread([s[key] for s in samples if key in s]).median for key in sorted(keys)}
    for name, loss in losses.items():
        found.setdefault(name, {})["loss"] = loss
    for name, took in cast.parts.items():
        found.setdefault(name, {})["parts"] = {part: round(seconds, 2) for part, seconds in took.seconds.items()}
    for name, reason in cast.gone.items():
        found[name] = {"skipped": reason}
    return found


def describe(outcome: Outcome) -> str:
    """Return a figure as one line."""
    if outcome.spread is None:
        return f"{outcome.label}: {outcome.reason}"
    s, bar = outcome.spread, f" (bar {outcome.bar}: {outcome.verdict})" if outcome.bar else ""
    return f"{outcome.label}: {s.median:.3g} {outcome.unit} [{s.low:.3g}, {s.high:.3g}] over {s.rounds} rounds{bar}"
