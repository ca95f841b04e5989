"""The search for a learning rate: a race of rates in trials that become longer and rates that become closer.

::

    stage       steps of a trial    rates compared
    first       T/4^j               decades around the start
    ...         four times more     half-decades, then quarters around the best one so far
    last        up to T             closer still; eighths where trials are whole runs

In each stage the search goes on while the best rate is at an end of those tried; a trial is never made twice. What a
trial is, and the loss it is judged by, is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from bigopt.core.errors import DivergedError

Log = Callable[[str], None]

PARTS: Final = 8
"""Rates stand on a grid of 8 a decade."""

ROWS: Final = 3_000_000
_LAST_TRIALS: Final = 6
_FEWEST_STEPS: Final = 8
_FULL_BATCHES: Final = 64
_DECADES: Final = 8


class Stage(NamedTuple):
    """Steps of each trial, and the distance between the rates that are compared, in eighths of a decade."""

    steps: int
    gap: int


class Trial(NamedTuple):
    """A rate, the steps it was tried for, and the loss it is judged by (infinite: diverged)."""

    learning_rate: float
    steps: int
    loss: float


class Choice(NamedTuple):
    """The rate, and how it was found.

    Parameters
    ----------
    learning_rate : float
    start : float
        Where the search began.
    trials : tuple of Trial
        In their order.
    """

    learning_rate: float
    start: float
    trials: tuple[Trial, ...]


def rows_budget(rows: int) -> int:
    """Return about how many rows all trials draw together: an epoch, at least three million."""
    return max(rows, ROWS)


def stages(length: int, batch: int, rows: int) -> list[Stage]:
    """Return the stages of a search.

    Trials become four times longer until they are as long as is affordable, while the rates that are compared move
    together: decades, half-decades, quarters, and eighths where trials are whole runs.

    Parameters
    ----------
    length : int
        Steps T of the run.
    batch, rows : int
        Rows of a batch, and n.

    Returns
    -------
    list of Stage
        The last trials have T steps where six of them stay within `rows_budget`. Full batches of big data get some
        sixty steps in all.
    """
    affordable = max(rows_budget(rows) // batch, _FULL_BATCHES) // _LAST_TRIALS
    last = max(1, min(affordable, length))
    steps = [last]
    while steps[0] // 4 >= _FEWEST_STEPS:
        steps.insert(0, steps[0] // 4)
    found = [Stage(s, max(PARTS >> j, PARTS // 4)) for j, s in enumerate(steps)]
    finest = PARTS // 8 if last == length else PARTS // 4
    while found[-1].gap > finest:
        found.append(Stage(last, found[-1].gap // 2))
    return found


def race(score: Callable[[float, int], float], start: float, plan: Iterable[Stage], log: Log) -> Choice:
    """Find the rate with the lowest score.

    Parameters
    ----------
    score : callable
        ``score(rate, steps)``: the loss of a trial; infinite or NaN where it diverged.
    start : float
    plan : iterable of Stage
    log : callable
        Takes a line a stage.

    Raises
    ------
    DivergedError
        Where every rate diverges.
    """
    best = 0
    tried: dict[tuple[int, int], Trial] = {}

    def at(k: int, steps: int) -> float:
        if (k, steps) not in tried:
            rate = rounded(start * 10.0 ** (k / PARTS))
            loss = score(rate, steps)
            tried[k, steps] = Trial(rate, steps, loss if math.isfinite(loss) else math.inf)
        return tried[k, steps].loss

    todo = list(plan)
    for stage, (steps, gap) in enumerate(todo):
        center: int | None = None
        found = math.inf
        while center != best and abs(best) <= PARTS * _DECADES:
            center, best = best, min((best, best - gap, best + gap), key=lambda k: at(k, steps))
            found = at(best, steps)
            if not math.isfinite(found):
                best = center - gap
        shown = {t.learning_rate: t.loss for t in tried.values() if t.steps == steps}
        if stage + 1 == len(todo) or todo[stage + 1].steps != steps or not math.isfinite(found):
            log(f"  {steps} steps: " + ", ".join(f"{rate:g}: {_shown(shown[rate])}" for rate in sorted(shown)))
        if not math.isfinite(found):
            raise DivergedError(
                f"every rate down to {min(shown):g} diverges",
                where="schedule.learning_rate: auto",
                hint="model.standardize=true, or give a number",
            )
    return Choice(rounded(start * 10.0 ** (best / PARTS)), rounded(start), tuple(tried.values()))


def rounded(rate: float) -> float:
    """Return a rate with three digits: what is printed, and what a conf with that number would run."""
    return float(f"{rate:.3g}")


def _shown(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else "diverged"
