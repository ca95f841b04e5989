"""The rows of a turn of Hogwild, where a batch is one row: a pure function of the counts, the seed and the steps.

A turn's rows are a batch of the plan that is as large as the turn. Within a partition an epoch's order is one of
*blocks of `BLOCK` rows*, which stay together and in order: memory is fast in order only.

Epochs come in pairs: the second one takes the rows of the first *backwards*. What one order adds to the error, because
the last rows count more than the first, the other takes away again, so that fewer epochs come to the same loss
(FlipFlop: Rajput, Lee, Papailiopoulos 2022).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from bigopt.core import rng
from bigopt.data.plan import DISTINCT, REPEATED, Ints, Plan, redraw, rows_of
from bigopt.data.shares import Shares

Piece = tuple[int, Ints, int]
"""Partition, row numbers in it, and how many of the rows asked for come before."""

BLOCK: Final = 64
"""Rows that stay together in an epoch's order."""


def turn_pieces(shares: Shares, turn: int, first: int, last: int, most: int) -> list[Piece]:
    """Return the rows of steps first, ..., last - 1 of one turn, in order, in pieces.

    Parameters
    ----------
    shares : Shares
        Counts, lanes, seed and sampling.
    turn : int
        Steps of a whole turn; those of an epoch begin at its multiples.
    first, last : int
        Steps of batches of one row, over the whole run.
    most : int
        Rows of a piece, at most.
    """
    total = int(shares.counts.sum())
    epoch, start = divmod(first, total)
    stop = start + last - first
    plan = Plan(shares.counts, turn, shares.lanes, shares.seed, shares.sampling)
    if plan.redrawn or epoch % 2 == 0:
        return _pieces(plan, epoch, start, stop, most)
    forward = _pieces(plan, epoch - 1, total - stop, total - start, most)
    return [(partition, rows[::-1].copy(), last - first - at - len(rows)) for partition, rows, at in reversed(forward)]


def _pieces(plan: Plan, epoch: int, start: int, stop: int, most: int) -> list[Piece]:
    """Return the rows at places start, ..., stop - 1 of an epoch's order."""
    assert plan.size is not None
    found: list[Piece] = []
    for number in range(start // plan.size, -(-stop // plan.size)):
        at = number * plan.size
        for unit in plan.units(epoch, number):
            partition, rows = int(unit[0]), rows_of(unit[None])
            if at + rows > start and at < stop:
                order = row_order(plan.seed, unit, int(plan.counts[partition]))
                lows = range(max(0, start - at), min(rows, stop - at), most)
                found += [(partition, order[lo : min(lo + most, lows.stop)], at + lo - start) for lo in lows]
            at += rows
    return found


def row_order(seed: int, unit: Ints, count: int) -> Ints:
    """Return the rows that a unit of a turn stands for: a range of the shuffled blocks, or rows drawn anew.

    Parameters
    ----------
    seed : int
    unit : ndarray, shape (4,)
        Of a plan whose batches are turns.
    count : int
        Used rows of its partition.
    """
    partition, epoch, start, stop = (int(v) for v in unit)
    if epoch in (DISTINCT, REPEATED):
        return redraw(seed, unit, count)
    if epoch < 0:
        return np.arange(start, stop)
    blocks = rng.permutation(rng.stream(seed, "rows", epoch=epoch, partition=partition), -(-count // BLOCK))
    rows = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    return rows[rows < count][start:stop]
