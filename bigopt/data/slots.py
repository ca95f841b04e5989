"""What belongs to the thread that asks: its working memory, its card, and the way there.

Slots of one process are threads; what one of them computes in must not be another's. Cards are known by their number:
threads that compute on one card share what lies there.
"""

from __future__ import annotations

import threading

from bigopt.core import arrays
from bigopt.core.buffers import Buffers
from bigopt.core.staging import Stage
from bigopt.data.card import CardBlocks


class Slots:
    """What the slots of a process have each; safe for threads.

    Attributes
    ----------
    given_card : int or None
        The GPU that an engine gave this process.
    """

    def __init__(self) -> None:
        self.given_card: int | None = None
        self._own = threading.local()
        self._cards: dict[int, CardBlocks] = {}
        self._taking = threading.Lock()

    @property
    def buffers(self) -> Buffers:
        """The working memory of the calling thread."""
        kept: Buffers | None = getattr(self._own, "buffers", None)
        if kept is None:
            kept = self._own.buffers = Buffers()
        return kept

    def use_card(self, slot: int) -> None:
        """Let the calling thread compute on its card: the one that the engine gave this process, else by its slot."""
        arrays.use_card(slot if self.given_card is None else self.given_card)

    @property
    def stage(self) -> Stage:
        """The calling thread's way to its card, for what does not lie there."""
        kept: Stage | None = getattr(self._own, "stage", None)
        if kept is None:
            kept = self._own.stage = arrays.stage()
        return kept

    @property
    def card(self) -> CardBlocks:
        """What lies on the calling thread's card: half of what was free there at the first use, at most."""
        number = arrays.card_number()
        with self._taking:
            if number not in self._cards:
                self._cards[number] = CardBlocks(arrays.free_card_memory() // 2, arrays.send)
            return self._cards[number]
