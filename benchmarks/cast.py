"""The players of a row: each side in a process of its own, run one at a time while the others stand still.

A side that cannot go on leaves with its reason, and the row goes on without it. Candidates of a group (solvers of one
peer) are warmed up alike; the fastest stays, under the group's name.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import Peak, compiling_seconds, cpu_seconds, signalled, tree
from benchmarks.parts import Parts
from benchmarks.player import Player, SideError, Skip
from benchmarks.spec import Sample, Side
from benchmarks.statistics import agree, pairs_for

_SHORT_SECONDS: Final = 5.0
"""A candidate whose run takes less is warmed up twice, and judged by the second run."""
_GIVEN_UP_SECONDS: Final = 3.0
_BEHIND: Final = 4.0
"""A candidate that takes so much longer than the fastest so far is given up after that, or those seconds."""
_SETTLING_SECONDS: Final = 0.5
_SETTLING_LOOKS: Final = 20
_SETTLED: Final = 0.05
"""Share of a core that compilers of Java machines take at most before the rounds; how long it is waited for that."""
_LONGEST_SECONDS: Final = 900.0
_PATIENCE_SECONDS: Final = 20.0


class Cast:
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
        self.took: dict[str, float] = {}  # seconds of a side's longest run
        self.parts: dict[str, Parts] = {}
        self.say = say
        for name, side in sides.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            player = Player(side.target, side.arguments, log, **({"python": side.python} if side.python else {}))
            stack.callback(player.close)  # whatever happens; at once where `close` has been
            self.players[name] = player
        for name in list(self.players):
            self.parts[name] = Parts()
            if (seconds := self.guard(name, lambda player: player.ready())) is not None:
                self.parts[name].add("start", seconds)

    def guard(self, name: str, act: Callable[[Player], Any]) -> Any:
        """Do something with a player; one that cannot go on leaves the row with its reason."""
        try:
            return act(self.players[name])
        except (Skip, SideError) as error:
            self.gone[name] = f"{name}: {error}"
            self.say(f"  {name}: {'skipped' if isinstance(error, Skip) else 'failed'}: {error}")
            self.players.pop(name).close(0.0)
            return None

    def run(self, name: str, method: str = "run", patience: float = _LONGEST_SECONDS) -> Sample | None:
        """Run a side once; one that takes longer than `patience` seconds leaves."""
        side = self.sides[name]
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
            sample: Sample | None = self.guard(name, lambda player: player.call(method, timeout=patience))
        if sample is None:
            return None
        wall, cpu = time.perf_counter() - begin, cpu_seconds(tree(pid)) - cpu
        self.took[name] = max(wall, self.took.get(name, 0.0))
        self.parts[name].add("runs" if self.warm else "warm-up", wall)
        sample = {**sample, "run_cpu_seconds": cpu, "run_cores": cpu / wall}
        return sample if peak is None else {**sample, "peak_bytes": peak.bytes}

    def judged(self, name: str, sample: Sample) -> Sample | None:
        """Have a run that counts judged off the clock (a race's loss); keep what others or later rounds need of it."""
        side = self.sides[name]
        with self.parts[name].of("judging"):
            found = self.guard(name, lambda player: player.call("judge"))
        if found is None:
            return None
        sample = {**sample, **found}
        if "loss" in sample:
            self.losses[name] = sample["loss"]
        if side.once or (side.slow and self.quick and self.warm):
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

    def pairs(self) -> int:
        """Return how many rounds are wanted, by the longest run so far of those that are here for more than one."""
        took = [self.took.get(name, 0.0) for name in self.players if not self.sides[name].once]
        return pairs_for(max(took, default=0.0), quick=self.quick)

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
                    self.players[group], self.sides[group], self.parts[group] = player, side, self.parts.pop(name)
                    self.took[group] = self.took[name]
                    if name in self.losses:
                        self.losses[group] = self.losses[name]
                else:
                    player.close(0.0)
            if len(candidates) > 1:
                seen = ", ".join(f"{n} {timed[n]['seconds']:.4g} s" for n in candidates)
                self.say(f"  {group}: {best} of {seen}")

    def warm_up(self, names: Sequence[str]) -> tuple[dict[str, Sample], dict[str, float]]:
        """Run sides once, candidates twice where that is short, and ask for their losses; return samples and losses."""
        timed: dict[str, Sample] = {}
        losses: dict[str, float] = {}
        for name in names:
            if name not in self.players:
                continue
            sample = self.run(name, self.sides[name].warm, self._patience(name, timed))
            if sample is None:
                continue
            if (judged := self.judged(name, sample)) is None:
                continue
            if (checked := self._check(name)) is not None:
                losses[name] = checked
            if name in self.players and self.sides[name].group and self.took[name] < _SHORT_SECONDS:
                judged = self.run(name) or judged
            timed[name] = judged
        return timed, losses

    def settle(self) -> None:
        """Wait until the Java machines have compiled what their start and the warm-up had them compile, or too long.

        They do so beside whatever runs; a long training would hardly notice.
        """
        pids = [pid for player in self.players.values() for pid in tree(player.pid)]
        for _ in range(_SETTLING_LOOKS):
            before = compiling_seconds(pids)
            time.sleep(_SETTLING_SECONDS)
            if compiling_seconds(pids) - before < _SETTLED * _SETTLING_SECONDS:
                return

    def _check(self, name: str) -> float | None:
        """Return the loss of a side that has one to compare."""
        with self.parts[name].of("judging"):
            checked = self.guard(name, lambda player: player.call("check"))
        return None if checked is None else checked.get("loss")

    def _patience(self, name: str, timed: Mapping[str, Sample]) -> float:
        """Return how many seconds a candidate is waited for where others of its group have run."""
        group = self.sides[name].group
        took = [self.took[other] for other in timed if group and self.sides[other].group == group]
        return max(_GIVEN_UP_SECONDS, _BEHIND * min(took)) if took else _LONGEST_SECONDS

    def compare(self, names: Sequence[str], tolerance: float, losses: Mapping[str, float]) -> None:
        """Check that sides reach the same loss; a side that does not is no peer and leaves the row."""
        found = {n: v for n, v in losses.items() if n in names or self.sides[n].group in names}
        if len(found) < 2:
            return
        shown = ", ".join(f"{n} {v:.7g}" for n, v in found.items())
        if agree(list(found.values()), tolerance):
            self.say(f"  same loss: {shown}")
            return
        self.say(f"  DIFFERENT losses (allowed {tolerance:g}): {shown}")
        for name in names:
            if name in self.players:
                self.gone[name] = f"{name} reaches another loss"
                self.players.pop(name).close(0.0)

    def close(self) -> None:
        """Ask all players to end, then wait for each: clusters and contexts go down side by side."""
        for player in self.players.values():
            player.end()
        end = time.monotonic() + _PATIENCE_SECONDS
        for player in self.players.values():
            player.close(max(0.0, end - time.monotonic()))
