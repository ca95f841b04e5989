"""Rows, rounds and figures: run every side of a row in turn, keep the rounds that count, sum them up."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import Peak, Watch, cpu_seconds, signalled, tree
from benchmarks.player import Player, SideError, Skip
from benchmarks.statistics import Bar, Load, Spread, agree, disagreement, pairs_for, spread

Sample = Mapping[str, Any]
"""What a run of a side gives: ``seconds`` of one unit of its work, and whatever else the row's figures need."""

RETRIES_PER_PAIR: Final = 2
"""Rounds on busy cores that may be repeated, over the rounds wanted."""
_PAUSE_SECONDS: Final = 2.0


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
    """

    quick: bool
    tiny: bool
    work: Path

    def pick(self, full: int, quick: int, tiny: int) -> int:
        """Return the size that goes with this scale."""
        return tiny if self.tiny else quick if self.quick else full


@dataclass(frozen=True)
class Side:
    """Who computes.

    Parameters
    ----------
    target : str
        ``module:Class``; the class has ``run() -> Sample``, and may have ``check() -> {"loss": ...}``, ``profile()``
        and ``close()``.
    arguments : dict
    group : str
        Sides of one group are candidates (solvers of one peer): the fastest is chosen once, after the warm-up, and
        goes by the group's name.
    python : str or None
        Interpreter with the side's packages.
    peak : bool
        Whether the memory of its processes is followed (as ``peak_bytes`` of its samples).
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
    """

    name: str
    title: str
    sides: Callable[[Scale], Mapping[str, Side]]
    figures: Sequence[Figure]
    same_loss: Sequence[tuple[tuple[str, ...], float]] = ()
    ours: str = "bigopt"


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


class _Cast:
    """The players of a row."""

    def __init__(
        self, sides: Mapping[str, Side], folder: Path, stack: ExitStack, say: Callable[[str], None], quick: bool
    ) -> None:
        self.sides = dict(sides)
        self.quick, self.warm = quick, False
        self.players: dict[str, Player] = {}
        self.gone: dict[str, str] = {}
        self.losses: dict[str, float] = {}
        self.fixed: dict[str, Sample] = {}
        self.say = say
        for name, side in sides.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            player = Player(side.target, side.arguments, log, **({"python": side.python} if side.python else {}))
            stack.callback(player.close, 20.0)
            self.players[name] = player
        for name in list(self.players):
            self.guard(name, lambda player: player.ready())

    def guard(self, name: str, act: Callable[[Player], Any]) -> Any:
        """Do something with a player; one that cannot go on leaves the row with its reason."""
        try:
            return act(self.players[name])
        except (Skip, SideError) as error:
            self.gone[name] = f"{name}: {error}"
            self.say(f"  {name}: {'skipped' if isinstance(error, Skip) else 'failed'}: {error}")
            self.players.pop(name).close(0.0)
            return None

    def run(self, name: str) -> Sample | None:
        """Run a side once."""
        side = self.sides[name]
        if name in self.fixed:
            return self.fixed[name]
        if side.follows:
            if side.follows not in self.losses:
                self.gone[name] = f"{name}: no loss to reach"
                self.players.pop(name).close(0.0)
                return None
            self.guard(name, lambda player: player.call("aim", self.losses[side.follows]))
            if name not in self.players:
                return None
        pid = self.players[name].pid
        cpu, begin = cpu_seconds(tree(pid)), time.perf_counter()
        with self._alone(name), Peak(pid) if side.peak else nullcontext() as peak:
            sample: Sample | None = self.guard(name, lambda player: player.call("run"))
        if sample is not None:
            wall, cpu = time.perf_counter() - begin, cpu_seconds(tree(pid)) - cpu
            sample = {**sample, "run_cpu_seconds": cpu, "run_cores": cpu / wall}
        if sample is not None and "loss" in sample:
            self.losses[name] = sample["loss"]
        if sample is not None and peak is not None:
            sample = {**sample, "peak_bytes": peak.bytes}
        if sample is not None and (side.once or (side.slow and self.quick and self.warm)):
            self.fixed[name] = sample
        return sample

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Stop the others for the length of a run: a cluster that waits still takes a tenth of a core a process."""
        pids = [pid for other, player in self.players.items() if other != name for pid in tree(player.pid)]
        signalled(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            signalled(pids, signal.SIGCONT)

    def choose(self, timed: Mapping[str, Sample]) -> None:
        """Keep the fastest candidate of each group, under the group's name."""
        for group in {side.group for side in self.sides.values() if side.group}:
            candidates = [n for n in self.players if self.sides[n].group == group]
            if not candidates:
                self.gone[group] = "; ".join(self.gone[n] for n in self.gone if self.sides[n].group == group)
                continue
            best = min(candidates, key=lambda n: timed[n]["seconds"])
            for name in candidates:
                player, side = self.players.pop(name), self.sides[name]
                if name == best:
                    self.players[group], self.sides[group] = player, side
                    if name in self.losses:
                        self.losses[group] = self.losses[name]
                else:
                    player.close(0.0)
            if len(candidates) > 1:
                seen = ", ".join(f"{n} {timed[n]['seconds']:.4g} s" for n in candidates)
                self.say(f"  {group}: {best} of {seen}")


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
        Count rounds on busy cores too (and say so).
    say : callable
    """
    begin = time.monotonic()
    result = RowResult(row.name, row.title)

    def note(text: str) -> None:
        result.notes.append(text.strip())
        say(text)

    say(f"{row.name}: {row.title}")
    with ExitStack() as stack:
        sides = row.sides(scale)
        cast = _Cast(sides, folder, stack, note, scale.quick or scale.tiny)
        first = [name for name, side in sides.items() if not side.follows]
        timed, losses = _warm_up(cast, first)
        cast.choose(timed)
        later, their_losses = _warm_up(cast, [name for name in sides if name not in first])
        timed, losses = timed | later, losses | their_losses
        for names, tolerance in row.same_loss:
            _compare(names, tolerance, losses, cast, note)
        cast.warm = True
        longest = max((s.get("run_seconds", s["seconds"]) for s in timed.values()), default=0.0)
        wanted = pairs_for(longest, quick=scale.quick or scale.tiny)
        rounds, loads, discarded = _rounds(cast, wanted, root, anyway, note)
        result.outcomes = [_outcome(figure, rounds, cast.gone) for figure in row.figures]
        if len(rounds) < wanted:
            for outcome in result.outcomes:
                outcome.spread, outcome.reason = None, "machine busy"
        missed = any(o.verdict in ("not reached", "close") for o in result.outcomes)
        if missed and row.ours in cast.players:
            result.profile = cast.guard(row.ours, _profile)
        result.sides = _summary(rounds, losses, cast)
        result.sides["rounds"] = {
            "kept": len(rounds),
            "thrown away": discarded,
            "foreign cores": [round(load.foreign / load.wall, 3) for load in loads],
        }
    result.seconds = time.monotonic() - begin
    for outcome in result.outcomes:
        say(f"  {describe(outcome)}")
    return result


def _profile(player: Player) -> Any:
    try:
        return player.call("profile")
    except SideError:
        return None


def _warm_up(cast: _Cast, names: Sequence[str]) -> tuple[dict[str, Sample], dict[str, float]]:
    """Run every side twice (the second run is the one that chooses among candidates) and ask for its loss between."""
    timed: dict[str, Sample] = {}
    losses: dict[str, float] = {}
    for name in names:
        if name not in cast.players:
            continue
        begin = time.perf_counter()
        sample = cast.run(name)
        if sample is None:
            continue
        took = time.perf_counter() - begin
        if (checked := cast.guard(name, lambda player: player.call("check"))) is not None and "loss" in checked:
            losses[name] = checked["loss"]
        if name in cast.players and cast.sides[name].group and took < 5.0:
            sample = cast.run(name) or sample
        timed[name] = {**sample, "run_seconds": took}
    return timed, losses


def _compare(
    names: Sequence[str], tolerance: float, losses: Mapping[str, float], cast: _Cast, note: Callable[[str], None]
) -> None:
    """Check that sides reach the same loss; a side that does not is no peer and leaves the row."""
    groups = {n: s.group for n, s in cast.sides.items()}
    found = {n: v for n, v in losses.items() if n in names or groups.get(n) in names}
    if len(found) < 2:
        return
    shown = ", ".join(f"{n} {v:.7g}" for n, v in found.items())
    if agree(list(found.values()), tolerance):
        note(f"  same loss: {shown}")
        return
    note(f"  DIFFERENT losses (allowed {tolerance:g}): {shown}")
    for name in names:
        if name in cast.players:
            cast.gone[name] = f"{name} reaches another loss"
            cast.players.pop(name).close(0.0)


def _rounds(
    cast: _Cast, wanted: int, root: int, anyway: bool, note: Callable[[str], None]
) -> tuple[list[dict[str, Sample]], list[Load], int]:
    kept: list[dict[str, Sample]] = []
    loads: list[Load] = []
    discarded = number = 0
    while len(kept) < wanted and discarded <= wanted * RETRIES_PER_PAIR and cast.players:
        names = list(cast.players)
        turn = number % len(names)
        number += 1
        watch = Watch(root)
        samples = {name: cast.run(name) for name in names[turn:] + names[:turn] if name in cast.players}
        load = watch.load()
        reason = disagreement(load)
        if reason and not anyway:
            discarded += 1
            note(f"  a round thrown away: {reason}")
            time.sleep(_PAUSE_SECONDS)
            continue
        if reason:
            note(f"  counted anyway: {reason}")
        loads.append(load)
        kept.append({name: sample for name, sample in samples.items() if sample is not None})
    if len(kept) < wanted:
        note(f"  machine busy: {len(kept)} of {wanted} rounds, {discarded} thrown away")
    return kept, loads, discarded


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


def _summary(rounds: Sequence[Mapping[str, Sample]], losses: Mapping[str, float], cast: _Cast) -> dict[str, Any]:
    """Return for each side the median of what its samples hold, for the JSON."""
    found: dict[str, Any] = {}
    for name in cast.players:
        samples = [r[name] for r in rounds if name in r]
        keys = {key for sample in samples for key, value in sample.items() if isinstance(value, int | float)}
        found[name] = {key: spread([s[key] for s in samples if key in s]).median for key in sorted(keys)}
    for name, loss in losses.items():
        found.setdefault(name, {})["loss"] = loss
    for name, reason in cast.gone.items():
        found[name] = {"skipped": reason}
    return found


def describe(outcome: Outcome) -> str:
    """Return a figure as one line."""
    if outcome.spread is None:
        return f"{outcome.label}: {outcome.reason}"
    s, bar = outcome.spread, f" (bar {outcome.bar}: {outcome.verdict})" if outcome.bar else ""
    return f"{outcome.label}: {s.median:.3g} {outcome.unit} [{s.low:.3g}, {s.high:.3g}] over {s.rounds} rounds{bar}"
