"""Batches that grow from epoch to epoch, and the count of steps across epochs of different lengths.

A larger batch lowers the noise of the gradient as a smaller learning rate does, but with fewer and fuller steps, which
more workers can share. The size changes between epochs only, so that an epoch is still every row once. Epochs of one
size make a **stage**.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Growth:
    """Batches of b rows become min(b factor^j, most) in stage j, epochs j every to (j + 1) every - 1.

    Parameters
    ----------
    factor : float
        > 1.
    every : int
        Epochs of a stage.
    most : int or None
        Rows of the largest batch; None for all.
    lanes : bool
        Whether the number of lanes is chosen anew for each size.
    open_lanes : int or None
        Most lanes that the memory allows; None for any number.
    """

    factor: float
    every: int = 1
    most: int | None = None
    lanes: bool = True
    open_lanes: int | None = None


@dataclass(frozen=True)
class Stages:
    """Sizes and steps of all epochs.

    Parameters
    ----------
    rows : int
        n.
    size : int
        Rows of a batch in the first epoch, at most n.
    growth : Growth or None
        None: every epoch is like the first.
    """

    rows: int
    size: int
    growth: Growth | None

    @property
    def _most(self) -> int:
        most = self.rows if self.growth is None or self.growth.most is None else min(self.rows, self.growth.most)
        return max(self.size, most)

    @cached_property
    def last(self) -> int:
        """Number of the stage from which on the size stays."""
        if self.growth is None:
            return 0
        stage = max(0, math.floor(math.log(self._most / self.size, self.growth.factor)) - 1)
        while self.batch(stage) < self._most:
            stage += 1
        return stage

    def stage(self, epoch: int) -> int:
        """Return the stage of an epoch, from 0."""
        return 0 if self.growth is None else min(epoch // self.growth.every, self.last)

    def first(self, stage: int) -> int:
        """Return the first epoch of a stage."""
        return 0 if self.growth is None else stage * self.growth.every

    def batch(self, stage: int) -> int:
        """Return the rows of a batch in a stage."""
        if self.growth is None:
            return self.size
        return min(math.floor(self.size * self.growth.factor**stage + 1e-9), self._most)

    def steps(self, stage: int) -> int:
        """Return the steps of an epoch of a stage: ceil(n / batch)."""
        return -(-self.rows // self.batch(stage))

    def _spans(self) -> Iterator[tuple[int, float]]:
        """Steps of an epoch and number of epochs of each stage; the last has no end."""
        for stage in range(self.last):
            yield self.steps(stage), float(self.first(stage + 1) - self.first(stage))
        yield self.steps(self.last), math.inf

    def steps_before(self, epoch: int) -> int:
        """Return the steps of all epochs before this one."""
        total, left = 0, epoch
        for steps, epochs in self._spans():
            taken = int(min(left, epochs))
            total, left = total + steps * taken, left - taken
            if not left:
                break
        return total

    def steps_until(self, epochs: float) -> int:
        """Return the steps after which that many epochs, the last perhaps in part, are done."""
        whole = math.floor(epochs)
        part = (epochs - whole) * self.steps(self.stage(whole))
        return self.steps_before(whole) + math.ceil(part - 1e-9)

    def epochs_until(self, steps: float) -> float:
        """Return how many epochs that many steps are, the last counted by its steps."""
        done = 0.0
        for per_epoch, epochs in self._spans():
            if steps <= per_epoch * epochs:
                return done + steps / per_epoch
            done, steps = done + epochs, steps - per_epoch * epochs
        raise AssertionError("the last stage has no end")
