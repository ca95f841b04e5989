"""A Reduce among workers, seen from a worker: slot j adds slice j of the gradient, and the driver moves p numbers.

In a round of `Exchange` orders every worker has a *board* where its peers look for what they need
(`bigopt.backends.boards`). Slot j::

    from the driver    slice j of the params, and its units
    shows              that slice               looks at the others' boards: now it has the params
    computes           the nodes of the round's tree that cover its units
    shows              the nodes                looks for slice j of the others' nodes, adds them along the tree
    to the driver      slice j of the root

So the driver sends p numbers and receives p, whatever the workers; each worker sends and receives about p times its
nodes. Adding is elementwise and the tree depends on the units alone: the bits are those of a Reduce on the driver.

An order that misses somebody ends with `Apart`, and the driver deals the round anew (`bigopt.backends.peers_round`).
Nodes that were computed for the same units are used again.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.boards import PARAMS, SUMS, Lonely, Peer, PeerAt, Want
from bigopt.backends.slices import cut
from bigopt.core import tree
from bigopt.core.codec import wire
from bigopt.core.sums import Sums, merging
from bigopt.data.cache import BlockCache
from bigopt.data.kept import Kept
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView
from bigopt.work import GradientSum, Stats, execute

Array = npt.NDArray[Any]

_PEER: Final = "peer"


@wire
class Found(NamedTuple):
    """The answer of `FindPeer`: where, and which slot this is; or why others cannot reach this worker."""

    at: PeerAt | None
    slot: int = 0
    reason: str = ""

    def merge(self, other: Found) -> Found:
        """Refuse: an order finds one worker."""
        raise TypeError("places are not added")


@wire
class Apart(NamedTuple):
    """The answer to an order that was given up.

    Parameters
    ----------
    reason : str
    gone : tuple of int
        Workers that were not reached.
    """

    reason: str
    gone: tuple[int, ...]


def bounds(size: int, index: int, count: int) -> slice:
    """Return which entries of a vector worker `index` of `count` owns."""
    return slice(size * index // count, size * (index + 1) // count)


class Member(Peer):
    """A worker that takes part, with the nodes that it computed last.

    Parameters
    ----------
    kept : Kept
    patience : float
        See `bigopt.backends.boards.Peer`.
    """

    def __init__(self, kept: Kept, patience: float) -> None:
        super().__init__(kept, patience)
        self._computed: tuple[tuple[int, ...], dict[tree.Node, Any], Stats] | None = None

    def sums(
        self, ticket: int, blocks: BlockCache, work: GradientSum, params: Array, leaves: int, start: int, *rest: Any
    ) -> tuple[dict[tree.Node, Any], Stats]:
        """Return the nodes of some units, which may be computed already where the round is dealt again."""
        key = (ticket, leaves, start, len(rest[0]))
        if self._computed is None or self._computed[0] != key:
            nodes, stats = execute(blocks, work, (params,), leaves, start, *rest)
            self._computed = key, nodes, stats
        return self._computed[1:]

    def forget(self, ticket: int) -> None:
        """Give up what other rounds have computed, so that its memory is used again."""
        if self._computed is not None and self._computed[0][0] != ticket:
            self._computed = None


@wire
@dataclass(frozen=True)
class FindPeer:
    """Be found by other workers from now on, and say where.

    Parameters
    ----------
    view : DataView
        Of the run: every worker proves that it reads the same data.
    run : str
        Token of the run.
    patience : float
    """

    view: DataView
    run: str
    patience: float

    def prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Found:
        """Begin to listen, unless that has been done here."""
        kept = meter.blocks.kept
        if not kept.secret:
            return Found(None, kept.slot, "they were placed without a channel")
        peer = kept.get(self.run, _PEER, 0, 0)
        if peer is None:
            try:
                peer = Member(kept, self.patience)
            except OSError as error:
                reason = f"one on {socket.gethostname()} cannot listen on the network of {kept.towards}: {error}"
                return Found(None, kept.slot, reason)
            kept.put(self.run, _PEER, 0, 0, peer)
        return Found(peer.at, kept.slot)


@wire
@dataclass(frozen=True)
class Exchange:
    """A round's work in one order: collect the params, compute, add a slice of what all have computed.

    The inputs are the worker's slice of the params and ``[its number, the deal]``.

    Parameters
    ----------
    work : GradientSum
    run : str
        Token of the run.
    peers : tuple of PeerAt
        Who takes part, by number.
    """

    work: GradientSum
    run: str
    peers: tuple[PeerAt, ...]

    @property
    def view(self) -> DataView:
        """The rows it works on."""
        return self.work.view

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.work.device

    def prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Refuse: it is an order as a whole, see `execute`."""
        raise TypeError("an exchange is between resident workers")

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Sums:
        """Refuse: it is an order as a whole, see `execute`."""
        raise TypeError("an exchange is between resident workers")

    def execute(
        self,
        blocks: BlockCache,
        ticket: int,
        inputs: tuple[Any, ...],
        leaves: int,
        start: int,
        units: Ints,
        ahead: tuple[int, ...],
    ) -> tuple[dict[tree.Node, Any], Stats]:
        """Return this worker's slice of the root, or `Apart`, and what it cost."""
        root = (tree.height(leaves), 0)
        piece, (number, deal) = inputs[0], inputs[1].tolist()
        peer = blocks.kept.get(self.run, _PEER, 0, 0)
        if peer is None or peer.at.token != self.peers[number].token:
            return {root: Apart(f"worker {number} of the round is not here any more", (number,))}, Stats()
        peer.board.begin((ticket, deal))
        try:
            peer.forget(ticket)
            params = self._params(blocks, peer, ticket, deal, number, piece)
            nodes, stats = peer.sums(ticket, blocks, self.work, params, leaves, start, units, ahead)
            peer.board.show(SUMS, nodes)
            return {root: self._root(blocks, peer, ticket, deal, number, leaves, nodes)}, stats
        except Lonely as error:
            peer.board.give_up()
            return {root: Apart(error.reason, error.gone)}, Stats()
        except BaseException:
            peer.board.give_up()
            raise

    def _bounds(self, number: int) -> slice:
        return bounds(self.work.model.layout.size, number, len(self.peers))

    def _params(self, blocks: BlockCache, peer: Member, ticket: int, deal: int, number: int, piece: Array) -> Array:
        """Show this worker's slice of the params and collect the others'."""
        params: Array = blocks.buffers.lend(self.work.model.layout.size, piece.dtype)
        own = self._bounds(number)
        params[own] = piece
        peer.board.show(PARAMS, {(0, 0): params[own]})
        for index, shown in peer.ask(self.peers, Want(ticket, deal, PARAMS, 0, 0)):
            params[self._bounds(index)] = shown.values[0]
        return params

    def _root(
        self,
        blocks: BlockCache,
        peer: Member,
        ticket: int,
        deal: int,
        number: int,
        leaves: int,
        nodes: dict[tree.Node, Any],
    ) -> Sums:
        """Add this worker's slice of all nodes along the round's tree."""
        own = self._bounds(number)
        fold: tree.Fold[Any] = tree.Fold(leaves, merging(blocks.buffers))
        for node, value in nodes.items():
            fold.add(node, _unwritten(cut(value, own)))
        for _, shown in peer.ask(self.peers, Want(ticket, deal, SUMS, own.start, own.stop)):
            for level, value in zip(shown.levels, shown.values, strict=True):
                fold.add(level, value)
        root: Sums = fold.root
        return root


def _unwritten(value: Sums) -> Sums:
    """Return sums that nothing is added into: others look at them, and a round may be dealt again."""
    if isinstance(value.grad, np.ndarray):
        value.grad.flags.writeable = False  # of the view: `cut` made it
    return value
