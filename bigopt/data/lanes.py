"""Lanes: the partitions of a dataset dealt to a few walks, so that a batch needs only a few of them at a time.

A lane walks its partitions in the epoch's seeded order. Its share of the first T rows of an epoch is the number of its
rows with ``(j + o) / rows < theta`` (o a fixed offset of the lane), theta such that the shares add up to T exactly:
every batch has exactly `size` rows, and every share is proportional within a row or two.

All of it is a function of the counts, the number of lanes and the seed: what an epoch will need, and when, is known
before it begins.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from bigopt.core import rng

Ints = npt.NDArray[np.int64]

FEW: Final = 16
"""So many numbers are handled sooner one by one than by NumPy."""
FARTHEST: Final = 1024
"""Partitions that are announced ahead, at most."""
_GOLDEN: Final = 0.6180339887498949
_PIECE_ROWS: Final = 256


def choose_lanes(size: int, partitions: int) -> int:
    """Return the default number of lanes for a batch: pieces of at least 256 rows, at least two lanes.

    A piece of a batch costs one gradient vector; below a few hundred rows that shows. 0 means that every partition
    gives its share to every batch.
    """
    lanes = max(2, size // _PIECE_ROWS)
    return 0 if lanes >= partitions else lanes


def lanes_within(lanes: int, counts: Ints, most: int | None) -> int:
    """Return the number of lanes, at most `most` (None for any); all partitions where `lanes` is 0."""
    return lanes if most is None else max(1, min(lanes or int(np.count_nonzero(counts)), most))


@dataclass(frozen=True)
class Lanes:
    """See the module's docstring.

    Parameters
    ----------
    counts : ndarray, shape (P,), int64
        Used rows of each partition.
    number : int
        Number of lanes; 0 for one a partition.
    seed : int
        The run's seed.
    """

    counts: Ints
    number: int
    seed: int
    _walks: dict[tuple[int, int], tuple[Ints, Ints]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _shares: dict[int, Ints] = field(default_factory=dict, init=False, repr=False, compare=False)
    _aheads: dict[int, tuple[list[tuple[int, int, int]], tuple[int, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def of(self) -> Ints:
        """Lane of each partition, shape (P,): the longest first, each to the lane with the fewest rows."""
        used = np.flatnonzero(self.counts)
        lane = np.full(len(self.counts), -1, dtype=np.int64)
        if self.number == 0 or self.number >= len(used):
            lane[used] = np.arange(len(used))
            return lane
        load = np.zeros(self.number, dtype=np.int64)
        for index in used[np.argsort(-self.counts[used], kind="stable")]:
            lane[index] = np.argmin(load)
            load[lane[index]] += self.counts[index]
        return lane

    @cached_property
    def rows(self) -> Ints:
        """Rows of each lane, shape (L,)."""
        used = self.of >= 0
        return np.bincount(self.of[used], weights=self.counts[used]).astype(np.int64)

    @cached_property
    def single(self) -> bool:
        """Whether every partition is a lane of its own."""
        return len(self.rows) == np.count_nonzero(self.counts)

    @cached_property
    def _all_rows(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def _offsets(self) -> npt.NDArray[np.float64]:
        return np.asarray((np.arange(1, len(self.rows) + 1) * _GOLDEN) % 1.0, dtype=np.float64)

    def shares(self, drawn: int) -> Ints:
        """Return how many of the first `drawn` rows of an epoch each lane gives, shape (L,); they add up to `drawn`."""
        if drawn not in self._shares:
            for old in list(self._shares)[:-1]:  # the end of a batch is the start of the next
                del self._shares[old]
            self._shares[drawn] = self._share(drawn)
        return self._shares[drawn]

    def _share(self, drawn: int) -> Ints:
        rows = self.rows
        if drawn >= self._all_rows:
            return rows
        offset = self._offsets

        if len(rows) <= FEW:  # a dozen calls of NumPy cost more than a hundred microseconds
            pairs = list(zip(rows.tolist(), offset.tolist(), strict=True))

            def below(theta: float) -> Ints:
                return np.array([min(max(math.ceil(n * theta - o), 0), n) for n, o in pairs], dtype=np.int64)
        else:

            def below(theta: float) -> Ints:
                return np.clip(np.ceil(rows * theta - offset), 0, rows).astype(np.int64)

        low, high = (drawn - len(rows) - 1) / self._all_rows, (drawn + len(rows) + 1) / self._all_rows
        while True:
            middle = 0.5 * (low + high)
            if middle in (low, high):
                break
            total = int(below(middle).sum())
            if total == drawn:
                return below(middle)
            low, high = (middle, high) if total < drawn else (low, middle)
        taken, more = below(low), below(high)  # lanes that tie at theta: the first ones give their row
        ties = np.flatnonzero(more > taken)[: drawn - int(taken.sum())]
        taken[ties] += 1
        return taken

    def walk(self, epoch: int, lane: int) -> tuple[Ints, Ints]:
        """Return partitions of a lane in this epoch's order, and where each starts within the lane, with the end."""
        if (epoch, lane) not in self._walks:
            members = np.flatnonzero(self.of == lane)
            order = rng.permutation(rng.stream(self.seed, "order", epoch=epoch, partition=lane), len(members))
            members = members[order]
            for old in [key for key in self._walks if abs(key[0] - epoch) > 1]:
                del self._walks[old]
            self._walks[epoch, lane] = members, np.concatenate([[0], np.cumsum(self.counts[members])])
        return self._walks[epoch, lane]

    def pieces(self, epoch: int, drawn: int, until: int) -> Ints:
        """Return the units of the rows of an epoch from `drawn` to `until`, lane by lane, shape (k, 4)."""
        first, last = self.shares(drawn), self.shares(until)
        if self.single:
            used = np.flatnonzero(self.counts)
            table = np.stack([used, np.full_like(used, epoch), first, last], axis=1)
            return table[last > first]
        pieces: list[tuple[int, int, int, int]] = []
        for lane, (start, stop) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            if start == stop:
                continue
            members, starts = (array.tolist() for array in self.walk(epoch, lane))
            for k in range(bisect.bisect_right(starts, start) - 1, len(members)):
                a, b = max(start, starts[k]), min(stop, starts[k + 1])
                if a >= b:
                    break
                pieces.append((members[k], epoch, a - starts[k], b - starts[k]))
        return np.array(pieces, dtype=np.int64).reshape(-1, 4)

    def ahead(self, units: Ints) -> tuple[int, ...]:
        """Return the partitions that the lanes of some units will go to, in the order in which they will.

        Parameters
        ----------
        units : ndarray, shape (k, 4)
            Of one batch, lane by lane.

        Returns
        -------
        tuple of int
            Every partition of these lanes once, where it comes next after these units: in this epoch or in the next;
            at most `FARTHEST`.
        """
        last = {lane: (lane, epoch, m) for lane, m, epoch in zip(self.of[units[:, 0]].tolist(), *units.T[:2].tolist())}
        at = list(last.values())
        kept = self._aheads.get(at[0][0])
        if kept is None or kept[0] != at:  # it changes when a lane goes to another partition
            found = [self._following(*place) for place in at]
            members, times = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
            kept = at, tuple(members[np.argsort(times, kind="stable")][:FARTHEST].tolist())
            self._aheads[at[0][0]] = kept
        return kept[1]

    def _following(self, lane: int, epoch: int, partition: int) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Return the partitions that a lane in one of them goes to, and when, in epochs: a batch draws evenly."""
        members, starts = self.walk(epoch, lane)
        following = int(np.flatnonzero(members == partition)[0]) + 1
        again, restarts = self.walk(epoch + 1, lane)
        done = np.isin(again, members[:following])
        times = np.concatenate([starts[following:-1], starts[-1] + restarts[:-1][done]]) / starts[-1]
        return np.concatenate([members[following:], again[done]]), times
