"""Which rows make which batch: a pure function of the counts, the seed and the step.

A **unit** is the rows of one partition that one round uses; the units of a round, in the plan's order, are the leaves
of its reduction tree. The driver only ever handles counts (one integer a partition), never an array of length n: a unit
names a range of the partition's seeded permutation of this epoch, and the worker that holds the partition draws the
permutation itself.

An epoch is cut into **lanes** (`bigopt.data.lanes`). Without ``batch.lanes`` every partition is a lane of its own and
each batch takes its share from every partition. With L lanes the partitions are dealt to L lanes, which walk through
them, so that a batch needs only L partitions at a time.

The samplings ``subset``, ``bernoulli`` and ``replacement`` draw every batch anew: first how many rows each partition
gives (hypergeometric, binomial, multinomial), then, where the partition is, which ones; so a batch is a simple random
sample of all rows. Their "epochs" are ceil(n/size) steps too.

Where batches grow from epoch to epoch (`bigopt.data.growth`), `Plan.at` is the plan of one epoch, with batches of one
size; `Plan.stages` counts across epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from bigopt.core import rng
from bigopt.core.errors import ConfError
from bigopt.data.growth import Growth, Stages
from bigopt.data.lanes import FEW, Lanes, choose_lanes, lanes_within

Ints = npt.NDArray[np.int64]
Sampling = Literal["permuted", "block", "subset", "bernoulli", "replacement"]

ALL: Final = -1
"""Epoch number of a unit that means: all used rows of the partition, in order."""
DISTINCT: Final = -2
"""Epoch number of a unit ``(partition, DISTINCT, step, count)``: `count` distinct rows drawn anew for this step."""
REPEATED: Final = -3
"""The same with replacement."""


def whole(partitions: npt.ArrayLike, counts: Ints) -> Ints:
    """Return the units that use every used row of some partitions, in order.

    Parameters
    ----------
    partitions : array_like of int
        Partition numbers.
    counts : ndarray, shape (P,)
        Used rows of each partition; partitions without rows are no leaf.

    Returns
    -------
    ndarray, shape (k, 4), int64
        Rows ``(partition, ALL, 0, rows)``.
    """
    index = np.asarray(partitions, dtype=np.int64)
    index = index[counts[index] > 0]
    units = np.zeros((len(index), 4), dtype=np.int64)
    units[:, 0], units[:, 1], units[:, 3] = index, ALL, counts[index]
    return units


@dataclass(frozen=True)
class Plan:
    """The sampler: units of every step.

    Parameters
    ----------
    counts : ndarray, shape (P,), int64
        Used rows of each partition.
    size : int or None
        Rows of a batch; None means all rows in every step.
    lanes : int
        Number of lanes; 0 for one a partition.
    seed : int
        The run's seed.
    sampling : str
        ``block`` is ``permuted`` with lanes that fit the memory; see the module's docstring for the others.
    growth : Growth or None
        None for batches of one size; otherwise `size` is that of the first epoch, and so is all that is not `at` one.
    offset : int
        Added to the number of a batch that is drawn anew.
    """

    counts: Ints
    size: int | None
    lanes: int
    seed: int
    sampling: Sampling = "permuted"
    growth: Growth | None = None
    offset: int = 0
    _grown: dict[int, Plan] = field(default_factory=dict, init=False, repr=False, compare=False)
    _homes: dict[int, Ints] = field(default_factory=dict, init=False, repr=False, compare=False)
    _foreseen: dict[tuple[int, int], Ints] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ConfError(f"a batch of {self.size} rows", where="batch.size", hint="at least 1, or full")

    @cached_property
    def rows(self) -> int:
        """Number of used rows n."""
        return int(self.counts.sum())

    @property
    def full(self) -> bool:
        """Whether every step uses all rows."""
        return self.size is None or self.size >= self.rows

    @property
    def redrawn(self) -> bool:
        """Whether every batch is drawn anew from all rows."""
        return self.sampling in ("subset", "bernoulli", "replacement")

    @property
    def steps_per_epoch(self) -> int:
        """ceil(n / size); 1 for a full batch."""
        return 1 if self.size is None or self.full else -(-self.rows // self.size)

    def epochs_at(self, epoch: int, position: int) -> float:
        """Return the epochs that begin at the first batch and end before the batch at a position of an epoch."""
        return float(epoch) if self.full or self.size is None else epoch + position * self.size / self.rows

    def epochs_after(self, steps: int) -> float:
        """Return the rows of the first `steps` batches of a run over n, where batches do not grow."""
        return self.epochs_at(*divmod(steps, self.steps_per_epoch))

    def batch_rows(self, step: int) -> int:
        """Return the rows that a step's gradient is divided by: b; `permuted` gives the remainder to the last one."""
        if self.size is None or self.full:
            return self.rows
        if self.redrawn:
            return self.size
        return min(self.size, self.rows - step * self.size)

    def divisor(self, step: int, weight: float) -> float:
        """Return what makes sums over a step's batch a mean: its share of W, the weight of all rows."""
        return weight if self.full else self.batch_rows(step) * weight / self.rows

    def after(self, epoch: int, position: int) -> tuple[int, int]:
        """Return epoch and position of the batch that follows the one at a position of an epoch."""
        return (epoch + 1, 0) if position + 1 == self.steps_per_epoch else (epoch, position + 1)

    @cached_property
    def stages(self) -> Stages:
        """Sizes and steps of all epochs."""
        return Stages(self.rows, self.rows if self.size is None else min(self.size, self.rows), self.growth)

    def at(self, epoch: int) -> Plan:
        """Return the plan of an epoch, whose batches have one size; this one where they do not grow."""
        growth, stages = self.growth, self.stages
        if growth is None or self.full:
            return self
        stage = stages.stage(epoch)
        if stage not in self._grown:
            lanes = self.lanes
            if growth.lanes:
                lanes = choose_lanes(stages.batch(stage), int(np.count_nonzero(self.counts)))
                lanes = lanes_within(lanes, self.counts, growth.open_lanes)
            first = stages.first(stage)
            offset = stages.steps_before(first) - first * stages.steps(stage)
            self._grown.clear()  # stages follow each other
            self._grown[stage] = replace(self, size=stages.batch(stage), lanes=lanes, growth=None, offset=offset)
        return self._grown[stage]

    @cached_property
    def walks(self) -> Lanes:
        """The lanes of an epoch."""
        return Lanes(self.counts, self.lanes, self.seed)

    def foresee(self, epoch: int, step: int) -> None:
        """Find the units of a step now, while there is nothing else to do."""
        if step < self.steps_per_epoch and (epoch, step) not in self._foreseen:
            found = self._units(epoch, step)
            self._foreseen.clear()
            self._foreseen[epoch, step] = found

    def units(self, epoch: int, step: int) -> Ints:
        """Return the units of one step.

        Parameters
        ----------
        epoch, step : int
            From 0; `step` counts within the epoch.

        Returns
        -------
        ndarray, shape (k, 4), int64
            Rows ``(partition, epoch, start, stop)``: the range of the partition's permutation of this epoch.
        """
        found = self._foreseen.pop((epoch, step), None)
        return self._units(epoch, step) if found is None else found

    def _units(self, epoch: int, step: int) -> Ints:
        if self.size is None or self.full:
            return whole(np.arange(len(self.counts)), self.counts)
        if self.redrawn:
            return self._drawn(self.offset + epoch * self.steps_per_epoch + step, self.size)
        drawn = step * self.size
        return self.walks.pieces(epoch, drawn, drawn + self.batch_rows(step))

    @cached_property
    def announced(self) -> bool:
        """Whether it is said which partitions come next: where they do not fit the memory, and lanes walk there."""
        return self.sampling == "block" and not self.full and not self.walks.single

    def ahead(self, units: Ints) -> tuple[int, ...]:
        """Return the partitions that the lanes of some units of a batch go to next, the first one first; see `Lanes`.

        They say what can be decoded ahead and what is worth keeping; there are none where they are not `announced`.
        """
        return self.walks.ahead(units) if self.announced and len(units) else ()

    def _drawn(self, step: int, size: int) -> Ints:
        """Units of a batch that is drawn anew: how many rows each partition gives, by the exact law of the counts.

        The counts come from a method of NumPy's Generator, on the driver alone: they are the same for the same NumPy,
        which the fingerprint compares.
        """
        source = np.random.Generator(rng.stream(self.seed, "counts", step=step))
        if self.sampling == "subset":
            drawn = source.multivariate_hypergeometric(self.counts, size, method="marginals")
        elif self.sampling == "bernoulli":
            drawn = source.binomial(self.counts, size / self.rows)
        else:
            drawn = source.multinomial(size, self.counts / self.rows)
        used = np.flatnonzero(drawn)
        if len(used) == 0:  # an empty batch is a leaf without rows
            used = np.flatnonzero(self.counts)[:1]
        kind = REPEATED if self.sampling == "replacement" else DISTINCT
        return np.stack([used, np.full_like(used, kind), np.full_like(used, step), drawn[used]], axis=1)

    def homes(self, units: Ints, slots: int) -> Ints:
        """Return the slot each unit goes to, ascending in the plan's order, shape (k,).

        A lane (or partition) has the same home in every round, so that decoded blocks stay where they are; homes hold
        about equal numbers of rows.
        """
        if self.full or self.redrawn:
            return homes(self.counts, slots)[units[:, 0]]
        if slots not in self._homes:
            self._homes[slots] = homes(self.walks.rows, slots)[self.walks.of]
        return self._homes[slots][units[:, 0]]


def rows_of(units: Ints) -> int:
    """Return the number of rows that some units stand for."""
    if len(units) <= FEW:
        return sum(stop - (start if epoch >= ALL else 0) for _, epoch, start, stop in units.tolist())
    return int((units[:, 3] - np.where(units[:, 1] >= ALL, units[:, 2], 0)).sum())


def homes(rows: Ints, slots: int) -> Ints:
    """Return a slot for each of some consecutive pieces: contiguous ranges of about equal rows, shape (len(rows),)."""
    total = max(1, int(rows.sum()))
    middle = np.cumsum(rows) - rows / 2
    return np.minimum((middle * slots / total).astype(np.int64), slots - 1)


def redraw(seed: int, unit: Ints, count: int) -> Ints:
    """Return the rows of a unit that is drawn anew.

    Parameters
    ----------
    seed : int
    unit : ndarray, shape (4,)
        ``(partition, DISTINCT or REPEATED, step, rows)``.
    count : int
        Used rows of the partition.

    Returns
    -------
    ndarray, shape (rows,), int64
        Used-row numbers: uniform and independent, or a uniform draw without repetition.
    """
    partition, kind, step, rows = (int(v) for v in unit)
    source = rng.stream(seed, "redraw", step=step, partition=partition)
    if kind == REPEATED:
        return (rng.uniform(source, rows) * count).astype(np.int64)
    if 3 * rows > count:
        return rng.permutation(source, count)[:rows]
    found = np.empty(0, dtype=np.int64)
    while len(found) < rows:  # take what comes, leave out what was there: a uniform draw without repetition
        more = (rng.uniform(source, rows + 16) * count).astype(np.int64)
        found = np.concatenate([found, more])
        found = found[np.sort(np.unique(found, return_index=True)[1])]
    return found[:rows]


def draw(seed: int, unit: Ints, count: int) -> Ints:
    """Return the permutation that a unit's range refers to: used-row numbers of its partition, shape (count,)."""
    return rng.permutation(rng.stream(seed, "rows", epoch=int(unit[1]), partition=int(unit[0])), count)
