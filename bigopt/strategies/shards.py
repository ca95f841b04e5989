"""The sharded parameter server: the flat vector in contiguous pieces, each with an optimizer state of its own.

DistBelief's parameter server (Dean et al. 2012) is too large for one machine, so it is cut: shard s holds the entries
``bounds[s]:bounds[s + 1]`` of params and of everything that the optimizer remembers of them, and counts its own updates
(its *version*). A push gives every shard its piece of the gradient, a fetch puts the pieces together. No shard knows
another, so rules that look at the whole vector (a trust ratio of a layer, a norm that is clipped) cannot run on it; a
rule that acts entry by entry gives the bits of one server, whatever the cuts.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums
from bigopt.optim.method import Ask, FirstOrder, FirstOrderState, Method, Step, finite_norm, snapshot
from bigopt.optim.transform import Vector


@wire
class ShardsState(NamedTuple):
    """What a checkpoint holds of all shards.

    Parameters
    ----------
    shards : tuple of FirstOrderState
        In the order of the vector; ``step`` is the version of a shard.
    """

    shards: tuple[FirstOrderState, ...]


def bounds(size: int, shards: int) -> tuple[int, ...]:
    """Return where `size` entries are cut into pieces whose lengths differ by one at most: shards + 1 numbers."""
    return tuple(size * s // shards for s in range(shards + 1))


def piece(layout: Layout, start: int, stop: int) -> Layout:
    """Return the layout of a range of the flat vector: the parts of its blocks, flat, penalised as they are."""
    parts = [
        Block(block.name, (min(s.stop, stop) - max(s.start, start),), block.penalized, block.fan_in, block.fan_out)
        for block, s in layout.slices()
        if s.start < stop and s.stop > start
    ]
    return Layout(tuple(parts))


class Sharded:
    """A method whose params and state lie in shards (see `bigopt.optim.method.Method`).

    Parameters
    ----------
    method : FirstOrder
        Of the whole vector, without penalty; its rule acts entry by entry.
    shards : int
    """

    def __init__(self, method: FirstOrder, shards: int) -> None:
        self.bounds = bounds(method.layout.size, shards)
        self.methods = tuple(
            replace(method, layout=piece(method.layout, a, b)) for a, b in itertools.pairwise(self.bounds)
        )

    def cut(self, vector: Vector) -> list[Vector]:
        """Return the shards' pieces of a vector of shape (p,), as views."""
        return [vector[a:b] for a, b in itertools.pairwise(self.bounds)]

    def start(self, params: Vector) -> tuple[ShardsState, Ask]:
        """Return the shards before their first update."""
        pieces = zip(self.methods, self.cut(params), strict=True)
        state = ShardsState(tuple(method.start(part.copy())[0] for method, part in pieces))
        return state, self.ask(state)

    def ask(self, state: ShardsState) -> Ask:
        """Ask for the gradient at the params of all shards."""
        return Ask("gradient", snapshot(np.concatenate([shard.params for shard in state.shards])))

    def tell(self, state: ShardsState, sums: Sums, divisor: float, epoch: float) -> tuple[ShardsState, Step]:
        """Update every shard with its piece, or none where the gradient is not finite; see `FirstOrder.tell`."""
        grad = np.asarray(sums.grad)
        size = finite_norm(grad, state.shards[0].step + 1) / divisor
        told = [
            method.tell(shard, Sums(part.copy(), sums.loss, sums.weight, sums.rows), divisor, epoch)
            for method, shard, part in zip(self.methods, state.shards, self.cut(grad), strict=True)
        ]
        after = ShardsState(tuple(shard for shard, _ in told))
        return after, Step(self.ask(after).params, told[0][1].learning_rate, size)

    def result_params(self, state: ShardsState) -> Vector:
        """Return the params to evaluate and to save, of all shards."""
        parts = zip(self.methods, state.shards, strict=True)
        return snapshot(np.concatenate([method.result_params(shard) for method, shard in parts]))


def sharded(method: Method[Any], shards: int) -> Method[Any]:
    """Return the method on so many shards; on one, the method itself; see `cut`."""
    if shards == 1:
        return method
    assert isinstance(method, FirstOrder), "methods that ask again are refused"
    return cut(method, shards)


def cut(method: FirstOrder, shards: int) -> Sharded:
    """Return the method on so many shards.

    Raises
    ------
    ConfError
        More shards than parameters.
    """
    if shards > method.layout.size:
        raise ConfError(
            f"{method.layout.size} parameters are too few for {shards} shards", where="strategy.shards", hint="fewer"
        )
    return Sharded(method, shards)
