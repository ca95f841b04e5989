"""Rounds: every side once, in rotating order, and what ran on busy cores again, right away.

Whether the cores were busy is asked of every run by itself, and of the runs of a round together. A run on busy cores is
played again as soon as others seem to be gone, 5 s later at most: it stays in its round, close in time to what it is
compared with. Where a side would be played again more than `AGAIN` times, the round is thrown away. (A long round would
hardly ever pass as a whole: one busy second costs all of it, and the next round has another one.)

Runs that do not count may take what the row's budget of seconds leaves over the rounds that are still to come;
`RETRIES_OVER_BUDGET` of them are played again in any case.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.cast import Cast
from benchmarks.machine import Watch
from benchmarks.parts import Parts
from benchmarks.spec import Sample
from benchmarks.statistics import Load, disagreement, together

AGAIN: Final = 3
"""How often a side is played again within a round."""
RETRIES_PER_PAIR: Final = 2
"""Rounds that may be thrown away, over the rounds wanted."""
RETRIES_OVER_BUDGET: Final = 2
"""Runs on busy cores that are played again where the row's budget of seconds is spent."""
_LOOK_SECONDS: Final = 0.5
_LOOKS: Final = 10
"""How long and how often it is looked whether others have left the cores, before a run is played again."""


@dataclass
class Rounds:
    """What came of the rounds of a row.

    Parameters
    ----------
    kept : list of {side: sample}
        The rounds that count.
    loads : list of Load
        What the cores did while the runs of each of them lasted.
    thrown : int
        Rounds that were thrown away.
    again : Counter
        How often each side was played again.
    """

    kept: list[dict[str, Sample]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    thrown: int = 0
    again: Counter[str] = field(default_factory=Counter)


class _Busy(Exception):
    """A round has to be thrown away."""


class Play:
    """Plays the rounds of a row.

    Parameters
    ----------
    cast : Cast
    root : int
        The benchmark's own process: its tree's CPU time is ours.
    anyway : bool
        Count runs on busy cores too (and say so).
    note : callable
    parts : Parts
        Seconds of the row, those of the rounds are added: ``rounds``, ``thrown away``, ``played again``.
    budget : float
        Seconds of the row.
    """

    def __init__(
        self, cast: Cast, root: int, *, anyway: bool, note: Callable[[str], None], parts: Parts, budget: float
    ) -> None:
        self._cast, self._root, self._anyway = cast, root, anyway
        self._note, self._parts, self._budget = note, parts, budget
        self._found = Rounds()
        self._busy, self._over = 0, False  # runs that did not count; whether another one cannot be afforded

    def rounds(self) -> Rounds:
        """Make the rounds that are wanted, or as many as the machine lets us."""
        found, cast = self._found, self._cast
        while len(found.kept) < cast.pairs() and cast.players and not self._over:
            names = list(cast.players)
            turn = len(found.kept) % len(names)  # whoever follows another one's loss never begins the first round
            before, begin, part = self._parts.total, time.perf_counter(), "rounds"
            try:
                samples, load = self._round(names[turn:] + names[:turn])
                found.kept.append(samples)
                found.loads.append(load)
            except _Busy as reason:
                found.thrown, part = found.thrown + 1, "thrown away"
                self._note(f"  a round thrown away: {reason}")
            self._parts.add(part, time.perf_counter() - begin - (self._parts.total - before))
        if found.again:
            self._note("  played again: " + ", ".join(f"{name} {times} x" for name, times in found.again.items()))
        if len(found.kept) < cast.pairs():
            self._note(f"  machine busy: {len(found.kept)} of {cast.pairs()} rounds, {found.thrown} thrown away")
        return found

    def _round(self, names: Sequence[str]) -> tuple[dict[str, Sample], Load]:
        """Run every side on cores that are ours; raise `_Busy` where that cannot be had."""
        samples = {name: self._cast.fixed[name] for name in names if name in self._cast.fixed}
        loads: dict[str, Load] = {}
        again: Counter[str] = Counter()
        waiting = [name for name in names if name not in samples]
        while waiting:
            begin, busy = time.perf_counter(), waiting.pop(0)
            reason = self._play(busy, samples, loads)
            if not (reason or waiting or self._anyway):  # each passes by itself: so must all together
                busy = max(loads, key=lambda name: loads[name].foreign_cores, default="")
                reason = disagreement(together(loads.values()))
            if not reason:
                continue
            again[busy] += 1
            self._busy += 1
            self._over = not self._patient()
            if self._over or again[busy] > AGAIN:
                raise _Busy(f"{busy}: {reason}")
            self._found.again[busy] += 1
            waiting.insert(0, busy)
            self._settle()
            self._parts.add("played again", time.perf_counter() - begin)
        return samples, together(loads.values())

    def _play(self, name: str, samples: dict[str, Sample], loads: dict[str, Load]) -> str:
        """Run a side and keep its sample; return why it does not count, where it does not."""
        if name not in self._cast.players:  # it has left
            return ""
        watch = Watch(self._root)
        sample = self._cast.run(name)
        load = watch.load()
        reason = disagreement(load)
        if sample is None or (reason and not self._anyway):
            return "" if sample is None else reason
        if reason:
            self._note(f"  counted anyway: {name}: {reason}")
        if (judged := self._cast.judged(name, sample)) is not None:
            samples[name], loads[name] = judged, load
        return ""

    def _settle(self) -> None:
        """Wait until others leave the cores alone, for some seconds at most."""
        for _ in range(_LOOKS):
            watch = Watch(self._root)
            time.sleep(_LOOK_SECONDS)
            if not disagreement(watch.load()):
                return

    def _patient(self) -> bool:
        """Return whether there is time for one more run that does not count."""
        found, pairs = self._found, self._cast.pairs()
        if found.thrown >= pairs * RETRIES_PER_PAIR:
            return False
        if self._busy <= RETRIES_OVER_BUDGET:
            return True
        one = self._parts.seconds.get("rounds", 0.0) / max(1, len(found.kept))
        return self._parts.total + (pairs - len(found.kept)) * one < self._budget
