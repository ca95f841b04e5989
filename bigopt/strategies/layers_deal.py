"""How an MLP is dealt to workers: its stages, the parts of a batch that go through them, and what that sends.

======================  ==================================  ========================  ===================
split                   stages                              pieces of a stage         walks
======================  ==================================  ========================  ===================
units (Megatron-LM)     pairs of layers                     ``blocks``, by units      1
layers (GPipe)          ``blocks``, even in multiply-adds   1, at home on one worker  ``micro_batches``
hybrid                  early layers, and the last pair     ``blocks``: by rows, and  ``replicas``: groups
                                                            by units                  of members
======================  ==================================  ========================  ===================

A walk is a part of a batch on its way up and down the stages (`bigopt.strategies.layers_parallel`).
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bigopt.core import tree
from bigopt.core.errors import ConfError
from bigopt.data.plan import DISTINCT, REPEATED, Ints, Plan, homes, rows_of
from bigopt.data.shares import cut
from bigopt.models.mlp import MLP
from bigopt.models.split import Stage, by_layers, by_units, check_splittable, most_parts
from bigopt.strategies.base import Blocks
from bigopt.work_layers import StageTurn


def dealt(units: Ints, number: int) -> list[Ints]:
    """Return the units of a batch dealt to some takers: runs of rows that are equal within one.

    Rows that were drawn anew belong to their partition's draw and are not cut: whole units are dealt, about evenly.
    """
    if units[0, 1] in (DISTINCT, REPEATED):
        taker = homes(units[:, 3], number)
        return [units[taker == k] for k in range(number)]
    rows = rows_of(units)
    return [cut(units, rows * k // number, rows * (k + 1) // number) for k in range(number)]


class Traffic(NamedTuple):
    """What a step sends: rounds, orders, and bytes of vectors to the workers and back."""

    rounds: int
    orders: int
    down: int
    up: int


@dataclass(frozen=True)
class Deal:
    """How an MLP is cut, and what its stages compute.

    Parameters
    ----------
    model : MLP
    stages : tuple of Stage
        From the input up.
    walks : int
        Parts that a batch is cut into.
    up, down : tuple of StageTurn
        Work of each stage, forward and backward.
    """

    model: MLP
    stages: tuple[Stage, ...]
    walks: int
    up: tuple[StageTurn, ...]
    down: tuple[StageTurn, ...]

    @classmethod
    def of(cls, given: Blocks, stages: tuple[Stage, ...], walks: int, seed: int) -> Deal:
        """Return the deal of a setting's model and rows, under a token of its own."""
        model, run = check_splittable(given.model), secrets.token_hex(8)
        up, down = (
            tuple(
                StageTurn(model, given.view, stage, back, run, seed, given.dtype, given.block_rows) for stage in stages
            )
            for back in (False, True)
        )
        return cls(model, stages, walks, up, down)

    def homes(self, walk: int, at: int, slots: int) -> Ints:
        """Return the slot of each piece of a stage, ascending: the same in every round.

        Stages of whole layers have a slot each; otherwise the members of a walk do, whatever the stage.
        """
        members = max(stage.parts for stage in self.stages)
        if members == 1:
            lanes, number = np.array([at]), len(self.stages)
        else:
            lanes, number = walk * members + np.arange(self.stages[at].parts), self.walks * members
        return lanes.astype(np.int64) * min(slots, number) // number

    def exchanged(self) -> int:
        """Return the numbers a row that the driver holds at most: v below each stage, scores, and a delta."""
        widths = [self.model.layers[stage.first][0] for stage in self.stages[1:]]
        scores = self.model.outputs * self.stages[-1].by_units
        return sum(widths) + scores + max([*widths, scores])

    def traffic(self, rows: int, slots: int, *, value_bytes: int, param_bytes: int) -> Traffic:
        """Return what a step sends, beside the few numbers that name rows.

        Parameters
        ----------
        rows : int
            Of the batch.
        slots : int
        value_bytes, param_bytes : int
            Of a number in the blocks' dtype, and in ``run.dtype``; a label counts as `value_bytes`.
        """
        values = params = orders = rounds = back = grads = 0
        sent: set[tuple[int, int, int]] = set()
        labels = self.model.outputs if self.model.loss.task == "regression" else 1
        for walk in range(self.walks):
            part = rows * (walk + 1) // self.walks - rows * walk // self.walks
            for at, work in enumerate(self.up):
                stage, layers = work.stage, self.model.layers
                runs = _runs(self.homes(walk, at, slots))
                nodes = sum(len(tree.cover(start, stop, stage.parts)) for start, stop, _ in runs)
                summed, single = stage.by_units, stage.last - stage.first == 1
                below = 0 if work.bottom else layers[stage.first][0]
                above = layers[stage.last - 1][1]
                if summed or not work.top:
                    rounds, orders = rounds + 1, orders + len(runs)
                    values += len(runs) * part * below
                    back += part * above * (nodes if summed else 1) + part * labels * (work.bottom and not work.top)
                rounds, orders = rounds + 1, orders + len(runs)
                brought = below + (above if summed or not work.top else 0) + labels * (work.top and not work.bottom)
                values += len(runs) * part * brought
                back += part * below * (nodes if summed and not single else 1)
                grads += sum(piece.layout.size for piece in work.pieces) * (nodes if stage.cut == "rows" else 1)
                for start, stop, slot in runs:
                    for piece in work.pieces if not summed else work.pieces[start:stop]:
                        if (at, piece.part, slot) not in sent:
                            sent.add((at, piece.part, slot))
                            params += piece.layout.size
        down, up = values * value_bytes + params * param_bytes, back * value_bytes + grads * param_bytes
        return Traffic(rounds, orders, down, up)

    def told(self) -> str:
        """Say in a sentence how the model is cut."""
        shown = [_shown(stage) for stage in self.stages]
        if self.stages[0].cut == "rows" or (self.walks > 1 and self.stages[-1].by_units):
            early = f"{shown[0]} with rows dealt to the members, " if len(shown) > 1 else ""
            return f"{self.walks} groups of {self.stages[-1].parts} members: {early}{shown[-1]} by units within a group"
        if any(stage.by_units for stage in self.stages):
            return (
                f"cut by units in {self.stages[0].parts} pieces: {', '.join(shown)}; what they hand on is summed once "
                "forward and once backward"
            )
        work = [sum(n * m for n, m, _ in self.model.layers[s.first : s.last]) for s in self.stages]
        stages = ", ".join(f"{name} ({size:,} multiply-adds)" for name, size in zip(shown, work, strict=True))
        return f"cut by layers in {len(shown)} stages: {stages}; {self.walks} micro-batches follow each other"


def _shown(stage: Stage) -> str:
    first, last = stage.first + 1, stage.last
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def _runs(slots: Ints) -> list[tuple[int, int, int]]:
    """Return (start, stop, slot) of the leaves of each order."""
    cuts = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
    return [(a, b, int(slots[a])) for a, b in itertools.pairwise(cuts)]


def deal(given: Blocks, options: Mapping[str, Any], plan: Plan) -> Deal:
    """Return how ``strategy.split`` cuts the model.

    Raises
    ------
    ConfError
        More pieces than there are units, layers or rows; a batch whose activations do not fit.
    """
    model, asked = check_splittable(given.model), options.get("blocks")
    if options.get("split") == "layers":
        stages = by_layers(model, asked or min(given.number, len(model.layers)))
        walks = options.get("micro_batches") or min(2 * len(stages), plan.batch_rows(0))
    else:
        stages, walks = by_units(model, asked or min(given.number, most_parts(model))), 1
    return checked(Deal.of(given, stages, walks, plan.seed), given, plan)


def checked(found: Deal, given: Blocks, plan: Plan) -> Deal:
    """Return a deal, where batches can be cut so and the driver can hold what is exchanged.

    Raises
    ------
    ConfError
        Naming the batch, with what it takes.
    """
    rows, fewest = plan.stages.batch(plan.stages.last), plan.stages.batch(0)
    takers = found.walks * (found.stages[0].parts if found.stages[0].cut == "rows" else 1)
    if fewest < takers:
        raise ConfError(f"a batch of {fewest} rows in {takers} parts", where="batch.size", hint="a larger batch")
    size = rows * found.exchanged() * np.dtype(given.view.dtype).itemsize
    if size > given.memory:
        raise ConfError(
            f"the activations of {rows} rows that stages exchange take {size / 1e6:.3g} MB on the driver, data.memory "
            f"is {given.memory / 1e6:.3g} MB",
            where="batch.size",
            hint="a smaller batch.size",
        )
    return found
