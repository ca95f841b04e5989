"""model_parallel of an MLP: its layers cut by units or into stages, the optimizer on the driver.

A batch, or a part of it, goes through the stages as a **walk**: up with v, and down again with dloss/dv. Each turn of a
walk is one round whose leaves are the pieces of the stage (`bigopt.work_layers`), and its root is what the next turn
begins with, so that a walk goes on when its own round is done and waits for no other (`bigopt.strategies.layers_deal`).

With several walks stages work at the same time: while one micro-batch is in stage 2 the next one is in stage 1 (fill
and drain). At the top a stage of whole layers goes back at once; one that is cut by units must first sum its scores.
The gradients of walks are added along a fixed tree by number, so that neither workers nor the order of arrival show in
the bits; the update follows when all walks are back, and nothing is in flight between two steps.

A worker is sent the parameters of its pieces once a step.

Shoeybi et al. (2019), Huang et al. (2019), Krizhevsky (2014).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core import tree
from bigopt.core.sums import Sums, added
from bigopt.data.plan import Ints, rows_of
from bigopt.strategies import layers_deal
from bigopt.strategies.base import Setting, StepRecord
from bigopt.strategies.layers_deal import Deal, dealt
from bigopt.strategies.rounds import GradientSteps, Spent, SyncState, start
from bigopt.work import Arrival, Order
from bigopt.work_layers import Handed

__all__ = ["Layers", "machine", "start"]

Array = npt.NDArray[Any]

_HERE: Final = np.empty(0)
"""In place of parameters that the worker has."""


@dataclass(eq=False)
class _Walk:
    """A part of a batch on its way."""

    number: int
    units: Ints
    bounds: Ints
    at: int = 0
    back: bool = False
    round: Round | None = None
    v: dict[int, Array] = field(default_factory=dict)  # by the stage that takes it
    brought: dict[str, Array] = field(default_factory=dict)
    seconds: float = 0.0


class Layers(GradientSteps):
    """Walks up and down the stages, and an update when all are back.

    Parameters
    ----------
    setting : Setting
        Its method asks for one gradient a step.
    state : SyncState
    deal : Deal
    """

    def __init__(self, setting: Setting, state: SyncState, deal: Deal) -> None:
        super().__init__(setting, state)
        self._deal = deal
        self._walks: list[_Walk] = []
        self._slots = 1
        self._params: list[list[Array]] = []
        self._sent: set[tuple[int, int, int]] = set()  # stage, piece, slot
        self._sums: list[tree.Fold[Array]] = []
        self._rss = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """How the model is cut."""
        return (self._deal.told(),)

    def more(self, slots: int) -> list[Order]:
        """Send the next batch on its way."""
        if self._walks:
            return []
        state, deal = self._state, self._deal
        params = self._current
        self._slots, self._sent = slots, set()
        self._params = [[piece.take(params) for piece in work.pieces] for work in deal.up]
        parts = [units for units in dealt(self._plan.units(state.epoch, state.position), deal.walks) if len(units)]
        self._walks = [self._walk(number, units) for number, units in enumerate(parts)]
        self._sums = [tree.Fold(len(parts), added) for _ in deal.stages]
        self._rss = 0
        return [order for walk in self._walks for order in self._turn(walk)]

    def _walk(self, number: int, units: Ints) -> _Walk:
        lowest = self._deal.stages[0]
        members = dealt(units, lowest.parts) if lowest.cut == "rows" else [units]
        bounds = np.cumsum([0, *(len(part) for part in members)])
        return _Walk(number, np.concatenate(members), bounds)

    def _turn(self, walk: _Walk, *, all_params: bool = False) -> list[Order]:
        """Order the next turn of a walk."""
        deal, stage, step = self._deal, self._deal.stages[walk.at], self._state.steps
        walk.back = walk.back or (walk.at == len(deal.stages) - 1 and not stage.by_units)
        work = (deal.down if walk.back else deal.up)[walk.at]
        have = {"units": walk.units, "bounds": walk.bounds, "v": walk.v.get(walk.at), **walk.brought}
        inputs = tuple(have[name] for name in work.carried)
        leaves = np.zeros((stage.parts, 4), dtype=np.int64)
        leaves[:, 0], leaves[:, 1], leaves[:, 2] = np.arange(stage.parts), walk.number, step
        slots = deal.homes(walk.number, walk.at, self._slots)
        way = "backward" if walk.back else "forward"
        where = f"step {step + 1}, {way} through layers {stage.first + 1}..{stage.last}"
        walk.round = self._setting.rounds.new(work, inputs, leaves, slots, where=where)
        return self._given(walk, walk.round.orders(), all_params=all_params)

    def _given(self, walk: _Walk, orders: list[Order], *, all_params: bool) -> list[Order]:
        """Give orders the parameters of their pieces, where their slot has not been sent them in this step."""
        stage, found = self._deal.stages[walk.at], list[Order]()
        for order in orders:
            mine: list[Array] = []
            for piece, params in enumerate(self._params[walk.at]):
                place = walk.at, piece, order.slot
                wanted = not stage.by_units or order.start <= piece < order.stop
                send = wanted and (all_params or place not in self._sent)
                mine.append(params if send else _HERE)
                if send:
                    self._sent.add(place)
            found.append(replace(order, inputs=(*order.inputs, *mine)))
        return found

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat, or those of the walk's next turn."""
        for walk in self._walks:
            if walk.round is not None and walk.round.ticket == arrival.order.ticket:
                again = walk.round.accept(arrival)
                if walk.round.done:
                    return self._landed(walk, walk.round)
                return self._given(walk, again, all_params=True)
        self._setting.rounds.late(arrival)
        return []

    def _landed(self, walk: _Walk, done: Round) -> list[Order]:
        """Take what a turn came to, and order the next one."""
        handed, deal = done.value, self._deal
        assert isinstance(handed, Handed)
        walk.seconds, self._rss, walk.round = walk.seconds + done.seconds_map, max(self._rss, done.rss), None
        if handed.missing:
            return self._turn(walk, all_params=True)
        if walk.back:
            return self._went_down(walk, handed)
        if walk.at == len(deal.stages) - 1:
            walk.brought["scores"], walk.back = handed.out, True
            return self._turn(walk)
        if walk.at == 0:
            walk.brought["y"], walk.brought["weight"] = handed.y, handed.weight
        walk.at += 1
        walk.v[walk.at] = handed.out
        return self._turn(walk)

    def _went_down(self, walk: _Walk, handed: Handed) -> list[Order]:
        if walk.at == len(self._deal.stages) - 1:
            walk.brought["loss"] = np.array([handed.loss, handed.total])
            walk.brought["rows"] = np.array([handed.rows])
        with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told so by its sums
            self._sums[walk.at].add((0, walk.number), handed.grad)
        walk.v.pop(walk.at, None)
        if walk.at == 0:
            walk.at = -1
            return []
        walk.brought["delta"] = handed.out
        walk.at -= 1
        return self._turn(walk)

    def advance(self) -> StepRecord | None:
        """Update where all walks are back.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the state stays the last finite one.
        """
        walks = self._walks
        if not walks or any(walk.at >= 0 for walk in walks):
            return None
        begin = time.perf_counter()
        grad, self._walks = self._gradient(), []
        loss, weight = np.sum([walk.brought["loss"] for walk in walks], axis=0).tolist()
        told = Sums(grad, loss, weight, int(sum(walk.brought["rows"][0] for walk in walks)))
        if told.rows != sum(rows_of(walk.units) for walk in walks):
            raise RuntimeError(f"{self._where}: {told.rows} rows came through the stages")
        mean = self._finite(loss / self._divisor + self._setting.penalty(self._current))
        mapped, reduced = max(walk.seconds for walk in walks), time.perf_counter() - begin
        self._spent = Spent(mean, mapped, reduced, rss=self._rss)
        return self._told(told)

    def _gradient(self) -> Array:
        """Return the gradient sum, put together from the stages'."""
        grad = np.empty_like(self._current)
        for work, sums in zip(self._deal.down, self._sums, strict=True):
            start, found = 0, sums.root
            for piece in work.pieces:
                piece.put(found[start : start + piece.layout.size], grad)
                start += piece.layout.size
        return grad


def machine(setting: Setting, state: SyncState) -> Layers:
    """Return the machine of an MLP under ``strategy.name: model_parallel``."""
    return Layers(setting, state, layers_deal.deal(setting.blocks(), setting.options, setting.plan))
