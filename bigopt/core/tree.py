"""The fixed reduction tree: who is added to whom depends on the number of leaves only.

A **node** ``(level, k)`` stands for the leaves ``[k 2^level, min((k+1) 2^level, n))``. The value of a node is
``merge(left child, right child)``; where the right child lies beyond the last leaf the left child is passed up
unchanged. The root has level ``ceil(log2 n)``. Neither workers, nor the order of arrival, nor retries appear in this
definition, so floating-point sums along it have the same bits on every backend.

A worker that holds the leaves ``[start, stop)`` folds what it can and returns the values of the nodes in
``cover(start, stop, n)``: at most ``2 log2 n`` of them (one where n is 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Generic, TypeVar

Node = tuple[int, int]
T = TypeVar("T")


def height(n: int) -> int:
    """Return the level of the root of a tree with `n` >= 1 leaves: ceil(log2 n)."""
    return (n - 1).bit_length()


def span(node: Node, n: int) -> tuple[int, int]:
    """Return the leaves ``[start, stop)`` below a node of a tree with `n` leaves."""
    level, k = node
    return k << level, min((k + 1) << level, n)


def cover(start: int, stop: int, n: int) -> tuple[Node, ...]:
    """Return the fewest nodes whose leaves are exactly ``[start, stop)``, in order.

    Parameters
    ----------
    start, stop : int
        A non-empty range of leaves, ``0 <= start < stop <= n``.
    n : int
        Number of leaves of the tree.

    Returns
    -------
    tuple of Node
        At most ``max(1, 2 log2 n)`` nodes.
    """
    if not 0 <= start < stop <= n:
        raise ValueError(f"leaves [{start}, {stop}) are not a range within {n} leaves")
    nodes: list[Node] = []
    while start < stop:
        level, top = 0, height(n)
        while level < top and start % (2 << level) == 0 and min(start + (2 << level), n) <= stop:
            level += 1
        nodes.append((level, start >> level))
        start = span(nodes[-1], n)[1]
    return tuple(nodes)


class Fold(Generic[T]):
    """Adds node values as they come and keeps only what cannot be merged yet.

    Parameters
    ----------
    n : int
        Number of leaves of the tree.
    merge : callable
        ``merge(left, right)``; it may reuse the buffers of its left operand.
    keep : callable or None
        ``keep(value)`` is kept in place of a value that nothing can be merged with when it comes: for values whose
        memory is used again after `add`.
    """

    def __init__(self, n: int, merge: Callable[[T, T], T], keep: Callable[[T], T] | None = None) -> None:
        self.n = n
        self._merge = merge
        self._keep = keep
        self._open: dict[Node, T] = {}

    def add(self, node: Node, value: T) -> None:
        """Add the value of one node and merge upwards as far as siblings are there."""
        level, k = node
        top, given = height(self.n), value
        while level < top:
            sibling = (level, k ^ 1)
            if sibling in self._open:
                other = self._open.pop(sibling)
                value = self._merge(other, value) if k & 1 else self._merge(value, other)
            elif k & 1 or (k + 1) << level < self.n:
                break
            level, k = level + 1, k >> 1
        if (level, k) in self._open:
            raise ValueError(f"node {(level, k)} was added twice")
        self._open[(level, k)] = self._keep(value) if self._keep is not None and value is given else value

    @property
    def nodes(self) -> dict[Node, T]:
        """The values that are not merged yet, by node."""
        return dict(sorted(self._open.items(), key=lambda item: item[0][1] << item[0][0]))

    @property
    def root(self) -> T:
        """The value of the whole tree; raises `KeyError` while leaves are missing."""
        return self._open[(height(self.n), 0)]


def fold(
    leaves: Iterable[T],
    n: int,
    merge: Callable[[T, T], T],
    *,
    start: int = 0,
    keep: Callable[[T], T] | None = None,
) -> dict[Node, T]:
    """Fold consecutive leaves ``start, start + 1, ...`` of a tree with `n` leaves; `keep` as in `Fold`.

    Returns
    -------
    dict
        The values of the nodes of ``cover(start, start + len(leaves), n)``, in order.
    """
    state: Fold[T] = Fold(n, merge, keep)
    for index, value in enumerate(leaves, start):
        state.add((0, index), value)
    return state.nodes


@lru_cache(maxsize=64)
def merges(start: int, stop: int, n: int) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[Node, int], ...]]:
    """Return how `fold` adds the leaves ``[start, stop)`` of a tree with `n` leaves, for who adds them elsewhere.

    Parameters
    ----------
    start, stop, n : int
        As of `cover`.

    Returns
    -------
    pairs : tuple of (int, int)
        The j-th leaf of the range is added to the i-th one, in this order.
    nodes : tuple of (Node, int)
        Which leaf has the value of each node of the cover in the end.
    """
    pairs: list[tuple[int, int]] = []

    def merge(left: int, right: int) -> int:
        pairs.append((left, right))
        return left

    nodes = fold(range(stop - start), n, merge, start=start)
    return tuple(pairs), tuple(nodes.items())
