"""Dual coordinate ascent for ridge and logistic regression (``strategy.solver: dual``), rows in groups: CoCoA+.

The rows, cut into ``strategy.blocks`` groups of whole partitions, have a dual variable each. A step is one round and
one pass over the data: from the same w every group moves its own variables one after the other (`bigopt.work_dual`),
and what they add to w is added up. There is no rate to choose. The difference between the loss and the value of the
dual, the gap, bounds how far the loss is from its minimum; it is kept with the state and goes into the run's result.

A group's variables travel with its orders, a number a row: so a turn is a pure function of its inputs, a lost worker
costs nothing but time, and equal groups give equal bits whatever the workers. The driver holds all of them, 8 n bytes,
which is refused where they exceed ``data.memory``. It starts at alpha = 0, that is w = 0.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError, DivergedError
from bigopt.data.columnview import block_homes
from bigopt.data.plan import Ints, homes
from bigopt.models.linear import LinearModel
from bigopt.models.losses import BinaryCrossEntropy, SquaredLoss
from bigopt.strategies.base import Setting, StepRecord
from bigopt.strategies.rounds import OneRound
from bigopt.work import Arrival, Order
from bigopt.work_dual import Ascended, DualAscent

Array = npt.NDArray[Any]


@wire
class DualState(NamedTuple):
    """What a checkpoint holds.

    Parameters
    ----------
    params : ndarray, shape (d,), float64
    alpha : ndarray, shape (n,), float64
        Dual variables, partition by partition.
    steps : int
        Passes so far.
    gap : float
        Loss minus dual value before the last pass, penalty included; NaN before the first.
    """

    params: Array
    alpha: Array
    steps: int
    gap: float

    @property
    def delays(self) -> Mapping[str, Any]:
        """What the run's result says of it."""
        return {"duality_gap": self.gap}


def start(setting: Setting, params: Array) -> DualState:
    """Return the state before the first pass."""
    n = int(setting.plan.counts.sum())
    memory = setting.blocks().memory
    if 8 * n > memory:
        raise ConfError(
            f"the dual variables of {n} rows take {8e-6 * n:.0f} MB, data.memory is {memory / 1e6:.0f} MB",
            where="strategy.solver",
            hint="gradient, or coordinate",
        )
    return DualState(np.zeros(len(params)), np.zeros(n), 0, np.nan)


def machine(setting: Setting, state: DualState) -> Dual:
    """Return the machine of ``strategy.solver: dual``."""
    given, counts = setting.blocks(), setting.plan.counts
    model = given.model
    assert isinstance(model, LinearModel)
    if not isinstance(model.loss, SquaredLoss | BinaryCrossEntropy) or model.outputs != 1:
        found = f"{model.outputs} outputs" if model.outputs != 1 else model.loss.name
        raise ConfError(
            f"dual coordinate ascent is for one output with squared errors or binary cross-entropy, not {found}",
            where="strategy.solver",
            hint="gradient",
        )
    shard = homes(counts, given.number)
    if len(np.unique(shard[counts > 0])) < given.number:
        raise ConfError(
            f"{np.count_nonzero(counts)} partitions are too few for {given.number} groups of rows",
            where="strategy.blocks",
            hint="fewer blocks, or write the data again with a smaller ingest.partition_rows",
        )
    groups = np.searchsorted(shard, np.arange(given.number + 1))
    mean = setting.total_weight / float(counts.sum())
    decoded = sum(given.view.decoded_bytes(m) for m in range(given.view.partitions))
    mixed = 2 * decoded <= given.memory  # a function of conf and data alone, as all that decides bits
    work = DualAscent(model, given.view, counts, groups, setting.plan.seed, mean, given.penalty.l2, mixed)
    return Dual(setting, state, work, given.dtype)


class Dual:
    """Passes over all rows.

    Parameters
    ----------
    setting : Setting
        Its method is not used.
    state : DualState
    work : DualAscent
    dtype : str
        ``run.dtype``, of the parameters that are given out.
    """

    def __init__(self, setting: Setting, state: DualState, work: DualAscent, dtype: str) -> None:
        self._setting = setting
        self._state = state
        self._work = work
        self._dtype = dtype
        self._round = OneRound(setting.rounds, self._filled)

    @property
    def notes(self) -> tuple[str, ...]:
        """How the rows are cut."""
        order = "all of a group in one random order" if self._work.mixed else "partition after partition (data.memory)"
        return (f"strategy.blocks: {self._work.number} groups of rows, {order}",)

    @property
    def steps(self) -> int:
        """Passes so far."""
        return self._state.steps

    @property
    def params(self) -> Array:
        """The current parameters."""
        params = self._state.params.astype(self._dtype)
        params.flags.writeable = False
        return params

    @property
    def epochs(self) -> float:
        """Passes so far."""
        return float(self._state.steps)

    def snapshot(self) -> DualState:
        """Return the state between two passes."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the next turn of every group."""
        if self._round.open:
            return []
        state, work = self._state, self._work
        units = np.zeros((work.number, 4), dtype=np.int64)
        units[:, 0], units[:, 1] = np.arange(work.number), state.steps
        units[:, 3] = self._sizes()
        return self._round.begin(work, (), units, block_homes(work.number, slots), f"step {state.steps + 1}")

    def _sizes(self) -> Ints:
        found = [self._work.rows(k, k + 1) for k in range(self._work.number)]
        return np.array([rows.stop - rows.start for rows in found], dtype=np.int64)

    def _filled(self, orders: list[Order]) -> list[Order]:
        """Give each order the dual variables of its groups."""
        w, alpha, rows = self._state.params, self._state.alpha, self._work.rows
        return [replace(o, inputs=(w, np.array([o.start]), alpha[rows(o.start, o.stop)])) for o in orders]

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat."""
        return self._round.handle(arrival)

    def advance(self) -> StepRecord | None:
        """Add what all groups bring.

        Raises
        ------
        DivergedError
            Where the loss is not finite: features beyond the range of float64.
        """
        done = self._round.take()
        if done is None:
            return None
        begin, state, l2 = time.perf_counter(), self._state, self._work.l2
        turn: Ascended = done.value
        n = float(turn.rows)
        loss = turn.loss / n + self._setting.penalty(state.params)
        if not (np.isfinite(loss) and np.isfinite(turn.delta).all()):
            raise DivergedError(f"the loss is {loss}", where=done.where, hint="model.standardize=true")
        gap = loss + turn.conjugate / n + l2 * float(np.dot(state.params, state.params))
        grad = turn.grad / n + 2.0 * l2 * state.params
        self._state = DualState(state.params + turn.delta, np.concatenate(turn.alphas), state.steps + 1, float(gap))
        return StepRecord(
            step=state.steps + 1,
            epoch=state.steps,
            end_of_epoch=True,
            loss=float(loss),
            grad_norm=float(np.sqrt(np.dot(grad, grad))),
            learning_rate=1.0,
            rows=turn.rows,
            staleness=0,
            seconds_map=done.seconds_map,
            seconds_reduce=time.perf_counter() - begin,
            seconds_update=0.0,
            rss=done.rss,
        )
