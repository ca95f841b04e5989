"""Host arrays on their way to a card while it computes: two lanes of page-locked memory.

A copy from ordinary memory holds up whoever asks for it; one from page-locked ("pinned") memory runs beside the
kernels. So each piece of rows is copied into a lane's pinned memory, sent to the lane's place on the card by a stream
of its own, and handed out when it is there; meanwhile the next piece is under way in the other lane. Nothing of a lane
is overwritten before it was used: the copy to the card waits for the kernels that read the lane's last piece, and the
host waits for the copy that read its pinned memory.

What a card can do is said by `Card`; the one made of CuPy is in `bigopt.core.arrays`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Piece = tuple[Any | None, ...]
"""Arrays that are used together (X, y, weight of some rows); None where there is none."""


class Card(Protocol):
    """Memory and two streams of a card: one computes, one copies. Events mark a place in a stream."""

    def pinned(self, size: int, dtype: np.dtype[Any]) -> Any:
        """Return an uninitialised vector in page-locked host memory."""
        ...

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        """Return an uninitialised vector on the card."""
        ...

    def shaped(self, vector: Any, shape: tuple[int, ...]) -> Any:
        """Return the same memory of the card as an array of another shape."""
        ...

    def copy(self, source: Any, target: Any) -> None:
        """Let the copying stream copy pinned memory to the card."""
        ...

    def copied(self) -> Any:
        """Return an event after all copies asked for so far."""
        ...

    def computed(self) -> Any:
        """Return an event after all kernels asked for so far."""
        ...

    def copy_after(self, event: Any) -> None:
        """Let the copying stream wait for an event."""
        ...

    def compute_after(self, event: Any) -> None:
        """Let the computing stream wait for an event."""
        ...

    def host_after(self, event: Any) -> None:
        """Wait here until an event has happened."""
        ...


@dataclass
class _Lane:
    pinned: dict[tuple[int, str], Any] = field(default_factory=dict)
    device: dict[tuple[int, str], Any] = field(default_factory=dict)
    copied: Any = None
    computed: Any = None


class Stage:
    """Two lanes to a card; for one thread.

    Parameters
    ----------
    card : Card
    """

    def __init__(self, card: Card) -> None:
        self._card = card
        self._lanes = (_Lane(), _Lane())
        self._turn = 0

    def stream(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield each piece on the card; it may be used until the next one is asked for.

        Parameters
        ----------
        pieces : iterable of tuple
            Host arrays.
        """
        under_way: tuple[_Lane, Piece] | None = None
        for piece in pieces:
            sent = self._send(piece)
            if under_way is not None:
                yield from self._hand_out(*under_way)
            under_way = sent
        if under_way is not None:
            yield from self._hand_out(*under_way)

    def _hand_out(self, lane: _Lane, piece: Piece) -> Iterator[Piece]:
        self._card.compute_after(lane.copied)
        yield piece
        lane.computed = self._card.computed()

    def _send(self, piece: Piece) -> tuple[_Lane, Piece]:
        card, lane = self._card, self._lanes[self._turn]
        self._turn = 1 - self._turn
        if lane.copied is not None:
            card.host_after(lane.copied)
        if lane.computed is not None:
            card.copy_after(lane.computed)
        sent = tuple(None if array is None else self._copied(lane, i, array) for i, array in enumerate(piece))
        lane.copied = card.copied()
        return lane, sent

    def _copied(self, lane: _Lane, place: int, array: Any) -> Any:
        key, size = (place, array.dtype.str), math.prod(array.shape)
        if key not in lane.pinned or lane.pinned[key].shape[0] < size:
            lane.pinned[key] = self._card.pinned(size, array.dtype)
            lane.device[key] = self._card.empty(size, array.dtype)
            self._card.copy_after(self._card.computed())  # kernels may be at work on what lay there before
        near, far = lane.pinned[key][:size], lane.device[key][:size]
        near.reshape(array.shape)[...] = array
        self._card.copy(near, far)
        return self._card.shaped(far, array.shape)
