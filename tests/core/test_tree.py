"""The tree against a reference recursion, on values that record the order of association."""

from __future__ import annotations

import itertools
import math
from functools import reduce
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigopt.core.tree import Fold, Node, cover, fold, height, merges, span


def bracket(left: str, right: str) -> str:
    """The free magma: two strings are equal only where the same operands met in the same order and nesting."""
    return f"({left}{right})"


def leaf(index: int) -> str:
    return f"<{index}>"


def reference(node: Node, n: int) -> str:
    """The definition in the module's docstring, written as a recursion."""
    level, k = node
    if level == 0:
        return leaf(k)
    left = reference((level - 1, 2 * k), n)
    if (2 * k + 1) << (level - 1) >= n:
        return left
    return bracket(left, reference((level - 1, 2 * k + 1), n))


def all_nodes(n: int) -> list[Node]:
    return [(level, k) for level in range(height(n) + 1) for k in range(math.ceil(n / (1 << level)))]


def fewest(start: int, stop: int, n: int) -> int:
    """Fewest nodes that tile [start, stop), by dynamic programming over all nodes of the tree."""
    spans = {span(node, n) for node in all_nodes(n)}
    best = {start: 0}
    for end in range(start + 1, stop + 1):
        ways = [best[a] + 1 for a, b in spans if b == end and a in best]
        if ways:
            best[end] = min(ways)
    return best[stop]


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 3000))
    start = draw(st.integers(0, n - 1))
    return start, draw(st.integers(start + 1, n)), n


@st.composite
def shuffled_covers(draw: st.DrawFn) -> tuple[int, list[Node]]:
    """A tree cut into contiguous ranges; their covers in any order of arrival."""
    n = draw(st.integers(1, 70))
    cuts = sorted(draw(st.sets(st.integers(1, n), max_size=8)) | {0, n})
    nodes = [node for a, b in itertools.pairwise(cuts) for node in cover(a, b, n)]
    return n, draw(st.permutations(nodes))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 1000, 1023, 1024, 1025])
def test_height_is_the_ceiling_of_log2(n: int) -> None:
    assert height(n) == math.ceil(math.log2(n))
    assert span((height(n), 0), n) == (0, n)


@pytest.mark.parametrize("n", [*range(1, 20), 31, 32, 33])
def test_cover_is_exact_and_minimal_for_every_range(n: int) -> None:
    for start, stop in itertools.combinations(range(n + 1), 2):
        nodes = cover(start, stop, n)
        leaves = [i for node in nodes for i in range(*span(node, n))]
        assert leaves == list(range(start, stop))
        assert len(nodes) == fewest(start, stop, n)
        assert len(nodes) <= max(1, 2 * math.log2(n))


@given(ranges())
def test_cover_stays_small(case: tuple[int, int, int]) -> None:
    start, stop, n = case
    nodes = cover(start, stop, n)
    assert [i for node in nodes for i in range(*span(node, n))] == list(range(start, stop))
    assert len(nodes) <= max(1, 2 * math.log2(n))
    assert set(nodes) <= set(all_nodes(n))


@pytest.mark.parametrize(("start", "stop", "n"), [(0, 0, 4), (-1, 2, 4), (3, 2, 4), (0, 5, 4), (0, 1, 0)])
def test_cover_refuses_what_is_not_a_range(start: int, stop: int, n: int) -> None:
    with pytest.raises(ValueError, match="are not a range within"):
        cover(start, stop, n)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 8, 11, 16, 17, 100])
def test_fold_of_all_leaves_is_the_reference(n: int) -> None:
    assert fold(map(leaf, range(n)), n, bracket) == {(height(n), 0): reference((height(n), 0), n)}


@given(shuffled_covers())
def test_any_order_of_arrival_gives_the_same_association(case: tuple[int, list[Node]]) -> None:
    n, nodes = case
    state: Fold[str] = Fold(n, bracket)
    for count, node in enumerate(nodes):
        assert count == 0 or (height(n), 0) not in state.nodes
        state.add(node, reference(node, n))
    assert state.root == reference((height(n), 0), n)
    assert list(state.nodes) == [(height(n), 0)]


@given(st.integers(1, 70).flatmap(lambda n: st.tuples(st.just(n), st.permutations(range(n)))))
def test_single_leaves_in_any_order(case: tuple[int, list[int]]) -> None:
    n, order = case
    state: Fold[str] = Fold(n, bracket)
    for index in order:
        state.add((0, index), leaf(index))
    assert state.root == reference((height(n), 0), n)


@given(ranges())
def test_a_range_folds_to_its_cover(case: tuple[int, int, int]) -> None:
    start, stop, n = case
    stop = min(stop, start + 200)
    nodes = fold(map(leaf, range(start, stop)), n, bracket, start=start)
    assert list(nodes) == list(cover(start, stop, n))
    assert nodes == {node: reference(node, n) for node in nodes}


@given(ranges())
def test_a_range_may_be_folded_elsewhere(case: tuple[int, int, int]) -> None:
    start, stop, n = case
    stop = min(stop, start + 200)
    values = [leaf(index) for index in range(start, stop)]
    pairs, nodes = merges(start, stop, n)
    for left, right in pairs:
        values[left] = bracket(values[left], values[right])
    assert [(node, values[k]) for node, k in nodes] == list(
        fold(map(leaf, range(start, stop)), n, bracket, start=start).items()
    )


def test_the_order_of_arrival_would_change_the_bits_of_a_plain_sum() -> None:
    values = [1e16, 1.0, -1e16, 1.0, 3.0, 1e-3, 7.0]
    by_tree = set()
    in_arrival = set()
    for order in itertools.permutations(range(7)):
        state: Fold[float] = Fold(7, lambda a, b: a + b)
        for index in order:
            state.add((0, index), values[index])
        by_tree.add(state.root)
        in_arrival.add(reduce(add, (values[i] for i in order)))  # sum() compensates since Python 3.12
    assert len(by_tree) == 1
    assert len(in_arrival) > 1


def test_missing_leaves_have_no_root() -> None:
    state: Fold[str] = Fold(3, bracket)
    state.add((0, 0), leaf(0))
    state.add((0, 2), leaf(2))
    with pytest.raises(KeyError):
        _ = state.root
    assert state.nodes == {(0, 0): "<0>", (1, 1): "<2>"}


def test_an_open_node_is_not_added_twice() -> None:
    state: Fold[str] = Fold(4, bracket)
    state.add((0, 2), leaf(2))
    with pytest.raises(ValueError, match=r"\(0, 2\) was added twice"):
        state.add((0, 2), leaf(2))
    assert state.nodes == {(0, 2): "<2>"}
