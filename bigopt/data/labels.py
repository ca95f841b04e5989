"""Prepared labels and weights of partitions whose features come and go.

Labels are small and lie in files of their own, often as many as the features have: to open, check and encode them again
in every pass costs several times what decoding as many bytes of features does. So they stay, up to a share of the
budget; beyond it, what came first stays, for passes are cyclic. The lock and the budget are those of whoever owns them.
"""

from __future__ import annotations

from typing import Final

from bigopt.data.view import Block, DataView

Key = tuple[str, int]

SHARE: Final = 16
"""One part in so many of a budget may hold labels of partitions that are not there themselves."""


class Labels:
    """Blocks without features by (view, partition).

    Parameters
    ----------
    most : int
        Bytes that they may hold.

    Attributes
    ----------
    held : int
        Bytes that they hold.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._blocks: dict[Key, Block] = {}

    def get(self, view: DataView, index: int) -> Block | None:
        """Return the labels of a partition, or None where they are not here."""
        return self._blocks.get((view.key, index))

    def takes(self, view: DataView, labels: Block) -> bool:
        """Return whether there is room for labels of a view, if need be in the place of other views'."""
        others = sum(block.nbytes for key, block in self._blocks.items() if key[0] != view.key)
        return self.held - others + labels.nbytes <= self.most

    def make_room(self, view: DataView, labels: Block) -> int:
        """Give up other views' labels where they are in the way of these; return the bytes that they held."""
        before = self.held
        if self.held + labels.nbytes > self.most:
            for other in [other for other in self._blocks if other[0] != view.key]:
                self.held -= self._blocks.pop(other).nbytes
        return before - self.held

    def put(self, view: DataView, index: int, labels: Block) -> int:
        """Keep labels for which there is room; return by how many bytes more are held."""
        key = view.key, index
        if key in self._blocks:  # two read them at a time
            return 0
        self._blocks[key] = labels
        self.held += labels.nbytes
        return labels.nbytes

    def expected(self, view: DataView) -> int:
        """Return the bytes that labels of a view will take yet, judged by those that are here."""
        mine = [block.nbytes for key, block in self._blocks.items() if key[0] == view.key]
        missing = (view.partitions - len(mine)) * max(mine, default=0)
        return min(missing, max(0, self.most - self.held))

    def drop(self) -> int:
        """Give up all of them; return the bytes that they held."""
        held, self.held = self.held, 0
        self._blocks.clear()
        return held
