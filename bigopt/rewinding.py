"""Going back where a run diverges (``run.on_divergence: halve_rate``).

By the time a loss overflows the parameters are lost: the last finite state is no better. So a run remembers the state
at the start of its best epoch, the one with the lowest mean loss so far, and goes on from there with half the rate. All
of it is a function of the steps alone, and a checkpoint holds it: a resumed run goes back at the same step, to the same
state. The price is two copies of the strategy's state, in memory and in each checkpoint.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from bigopt.core.codec import copied, wire

MOST_HALVINGS: Final = 10
"""A rate that is a thousand times too large is a mistake to be told about."""


@wire
class Rewind(NamedTuple):
    """What a checkpoint holds.

    Parameters
    ----------
    start : State
        Of the strategy, at the start of this epoch.
    best : State
        At the start of the epoch with the lowest mean loss; the first state before an epoch is done.
    least : float or None
        That mean loss.
    halvings : int
        How often the rate was halved.
    """

    start: Any
    best: Any
    least: float | None
    halvings: int


class Anchor:
    """Remembers what to go back to.

    Parameters
    ----------
    rewind : Rewind
        Taken over.
    """

    def __init__(self, rewind: Rewind) -> None:
        self.rewind = rewind

    @classmethod
    def at(cls, state: Any) -> Anchor:
        """Return the anchor of a run that begins."""
        first = copied(state)
        return cls(Rewind(first, first, None, 0))

    @property
    def rate(self) -> float:
        """What the learning rate is multiplied by."""
        return math.ldexp(1.0, -self.rewind.halvings)

    @property
    def spent(self) -> bool:
        """Whether the rate was halved as often as it may be."""
        return self.rewind.halvings >= MOST_HALVINGS

    def end_of_epoch(self, mean: float, state: Any) -> None:
        """Take the mean loss of an epoch and the state after it."""
        start, best, least, halvings = self.rewind
        if least is None or mean < least:
            best, least = start, mean
        self.rewind = Rewind(copied(state), best, least, halvings)

    def go_back(self) -> Any:
        """Halve the rate and return the state to go on from, with buffers of its own."""
        best = self.rewind.best
        self.rewind = self.rewind._replace(start=best, halvings=self.rewind.halvings + 1)
        return copied(best)
