"""The block cache: its budget, what it keeps, and decoding ahead of the computing."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigopt.core.errors import DataError
from bigopt.core.sums import Sums
from bigopt.data.cache import BlockCache
from bigopt.data.entry import Entry
from bigopt.data.eviction import Expected
from bigopt.data.loading import Loader
from bigopt.data.meter import Meter
from bigopt.data.plan import Plan, whole
from bigopt.data.view import Block
from bigopt.work import execute

SIZE = 800
"""Bytes of a decoded partition of `Rows`."""


@dataclass
class Rows:
    """A view of equal partitions that notes what is decoded, where, and how much the cache holds meanwhile."""

    fail: int = -1
    gate: threading.Event | None = None
    key: str = "rows"
    loads: list[int] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    watch: Callable[[], int] = lambda: 0
    most: int = 0
    raw: Any = field(init=False)
    source: Any = None
    scratch: Any = None
    targets: Any = None
    lent: bool = False

    def __post_init__(self) -> None:
        self.raw = self

    def decoded_bytes(self, index: int) -> int:
        return SIZE

    def held_bytes(self, index: int) -> int:
        return SIZE

    def loading_bytes(self, index: int, loader: Loader) -> int:
        return SIZE

    def load(self, index: int, loader: Loader) -> Block:
        self.loads.append(index)
        self.threads.append(threading.current_thread().name)
        if self.gate is not None:
            assert self.gate.wait(20)
        self.most = max(self.most, self.watch())
        if index == self.fail:
            raise DataError("a broken chunk", where=f"partition {index}")
        return Block(np.full((10, 10), float(index)), None, None, 0, 100 + index)


@dataclass
class Adding:
    """A work that adds the rows of its partition; `each` is called while it computes."""

    view: Any
    each: Callable[[int], None] = lambda index: None

    def prepare(self, inputs: Any) -> Any:
        return inputs

    def __call__(self, inputs: Any, unit: Any, meter: Meter) -> Sums:
        with meter.block(self.view, int(unit[0])) as entry:
            self.each(int(unit[0]))
            return Sums(entry.block.X.sum(axis=0), 0.0, 10.0, 10)


def run(blocks: BlockCache, work: Adding, count: int = 8) -> Any:
    units = whole(np.arange(count), np.full(count, 10))
    return execute(blocks, work, (), count, 0, units)


def idle(blocks: BlockCache) -> bool:
    return not blocks._decoding_ahead


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_the_next_partition_is_decoded_while_the_work_computes():
    rows = Rows()
    blocks = BlockCache(100 * SIZE)
    following: list[bool] = []

    def each(index: int) -> None:  # without decoding ahead this would wait in vain
        if index < 7:
            following.append(wait_until(lambda: index + 1 in rows.loads))

    nodes, stats = run(blocks, Adding(rows, each))
    assert following == [True] * 7
    assert rows.loads == list(range(8))
    assert all(name.startswith("bigopt-chunks") for name in rows.threads[1:])
    assert stats.bytes_read == sum(100 + k for k in range(8))
    assert nodes[3, 0].grad.tolist() == [280.0] * 10
    assert run(blocks, Adding(rows))[1].bytes_read == 0
    assert rows.loads == list(range(8))


@pytest.mark.parametrize("budget", [2, 3, 4, 5, 7, 30])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_budget_holds_and_the_bits_are_the_same(budget, slots):
    if budget < 2 * slots:
        pytest.skip("the slots themselves need more")
    rows, blocks = Rows(), BlockCache(budget * SIZE)
    rows.watch = lambda: blocks.held
    work = Adding(rows, lambda index: time.sleep(0.0005))
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.extend(run(blocks, work, 9) for _ in range(5))) for _ in range(slots)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wait_until(lambda: idle(blocks))
    assert len(results) == 5 * slots
    assert {nodes[4, 0].grad.tobytes() for nodes, _ in results} == {np.full(10, 360.0).tobytes()}
    assert rows.most <= budget * SIZE
    assert blocks.held == sum(entry.charge for entry in blocks._entries.values()) <= budget * SIZE
    if slots == 1 and budget == 2:
        # there is room for nothing beside the block in use
        assert not any(name.startswith("bigopt-chunks") for name in rows.threads)


def test_a_cyclic_pass_keeps_what_fits():
    """Decoding ahead must not throw away what the next pass begins with."""
    rows, blocks = Rows(), BlockCache(12 * SIZE)
    for _ in range(3):
        run(blocks, Adding(rows), 16)
        assert wait_until(lambda: idle(blocks))
    assert rows.loads[:16] == list(range(16))
    assert len(rows.loads) <= 16 + 2 * 10


def test_what_is_wrong_with_a_block_is_said_where_it_is_used():
    rows, blocks = Rows(fail=3), BlockCache(100 * SIZE)
    used: list[int] = []
    with pytest.raises(DataError, match="a broken chunk"):
        run(blocks, Adding(rows, used.append))
    assert used == [0, 1, 2]
    assert wait_until(lambda: idle(blocks))
    assert blocks.held == sum(entry.charge for entry in blocks._entries.values())


def test_who_needs_a_block_that_is_being_decoded_waits_for_it():
    rows, blocks = Rows(gate=threading.Event()), BlockCache(100 * SIZE)
    blocks.prefetch(rows, 5)
    assert wait_until(lambda: rows.loads == [5])
    blocks.prefetch(rows, 5)
    got: list[int] = []

    def use() -> None:
        with blocks.block(rows, 5) as (_, bytes_read):
            got.append(bytes_read)

    thread = threading.Thread(target=use)
    thread.start()
    rows.gate.set()
    thread.join(20)
    assert rows.loads == [5]
    assert got == [105]


def test_what_was_decoded_ahead_is_given_up_last():
    rows, blocks = Rows(), BlockCache(4 * SIZE)
    for index in (0, 1):
        with blocks.block(rows, index):
            pass
    blocks.prefetch(rows, 2)
    assert wait_until(lambda: ("rows", 2) in blocks._entries)
    with blocks.block(rows, 3):
        assert ("rows", 2) in blocks._entries
    with blocks.block(rows, 2) as (_, bytes_read):
        assert bytes_read == 102
    with blocks.block(rows, 2) as (_, bytes_read):
        assert bytes_read == 0


def test_what_later_orders_need_is_decoded_during_the_last_unit():
    rows, blocks = Rows(), BlockCache(100 * SIZE)
    units = whole(np.arange(3), np.full(9, 10))
    for expected in ([0, 1, 2, 7], [0, 1, 2, 7, 8], [0, 1, 2, 7, 8]):
        execute(blocks, Adding(rows), (), 3, 0, units, ahead=(7, 8))
        assert wait_until(lambda: idle(blocks))
        assert rows.loads == expected


def entered(plan: Plan, epochs: int) -> list[tuple[int, int, int]]:
    """The place of each step that goes to a partition, among all steps, with the epoch and the partition."""
    found: dict[tuple[int, int], int] = {}
    steps = [(e, s) for e in range(epochs) for s in range(plan.steps_per_epoch)]
    for place, (epoch, step) in enumerate(steps):
        for partition, when, *_ in plan.units(epoch, step).tolist():
            found.setdefault((when, partition), place)
    return sorted((place, *key) for key, place in found.items())


def test_the_plan_announces_what_lanes_go_to_in_the_order_in_which_they_do():
    counts = np.array([30, 50, 20, 0, 40, 60, 35, 45, 10, 25])
    plan = Plan(counts, 16, 3, 5, "block")
    visits = entered(plan, 4)
    assert len(visits) == 4 * 9
    for slots in (1, 2, 3):
        for epoch in range(3):
            for step in range(plan.steps_per_epoch):
                units = plan.units(epoch, step)
                now = epoch * plan.steps_per_epoch + step
                home = plan.homes(units, slots)
                for slot in range(slots):
                    mine = units[home == slot]
                    lanes = set(plan.walks.of[mine[:, 0]].tolist())
                    ahead = plan.ahead(mine)
                    assert sorted(ahead) == [m for m in np.flatnonzero(counts) if plan.walks.of[m] in lanes]
                    due = {m: min(v for v, _, k in visits if k == m and v > now) for m in ahead}
                    places = [due[m] for m in ahead]
                    assert all(b >= a - 1 for a, b in itertools.pairwise(places))  # lanes are a row or two apart
                    for lane in lanes:
                        own = [due[m] for m in ahead if plan.walks.of[m] == lane]
                        assert own == sorted(own)
    for sampling in ("permuted", "subset"):
        other = Plan(counts, 16, 3 if sampling == "permuted" else 0, 5, sampling)
        assert other.ahead(other.units(0, 0)) == ()
    assert plan.ahead(plan.units(0, 0)[:0]) == ()


def test_what_is_announced_is_the_farthest_at_most(monkeypatch):
    plan = Plan(np.full(20, 8), 8, 2, 5, "block")
    whole_of_it = plan.ahead(plan.units(0, 3))
    assert len(whole_of_it) == 20
    monkeypatch.setattr("bigopt.data.lanes.FARTHEST", 5)
    assert Plan(np.full(20, 8), 8, 2, 5, "block").ahead(plan.units(0, 3)) == whole_of_it[:5]


def fewest_loads(visits: list[int], room: int) -> int:
    """Loads of the best of all ways to keep `room` partitions, one of them in use: by trying all."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for visit in visits:
        after: dict[frozenset[int], int] = {}
        for kept, loads in states.items():
            more = kept | {visit}
            cost = loads + (visit not in kept)
            for gone in [None] if len(more) <= room else [k for k in more if k != visit]:
                now = frozenset(more - {gone})
                after[now] = min(cost, after.get(now, cost))
        states = after
    return min(states.values())


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 5))
def test_no_rule_loads_fewer_partitions(seed, partitions, room):
    plan = Plan(np.full(partitions, 4), 2, 1, seed, "block")
    rows, blocks = Rows(), BlockCache((room + 1) * SIZE)  # one more to decode in
    visits: list[int] = []
    for epoch in range(4):
        for step in range(plan.steps_per_epoch):
            units = plan.units(epoch, step)
            blocks.expect(0, rows, plan.ahead(units))
            visits += units[:, 0].tolist()
            with blocks.block(rows, visits[-1]) as (entry, _):
                entry.open = bool(units[0, 3] < 4)
            assert len(blocks._entries) <= room
    assert len(rows.loads) == fewest_loads(visits, room)


@dataclass
class Filled(Rows):
    """The same, filled by a source beside labels of their own, and more than fit."""

    targets: Any = "classes"
    all_bytes: int = 10**9
    checks: list[tuple[int, bool]] = field(default_factory=list)

    def fills(self, index: int, loader: Loader) -> bool:
        return True

    def labels(self, index: int) -> Block:
        return Block(np.zeros((0, 0)), np.zeros(1), None, 0, 0)

    def load(self, index: int, loader: Loader, labels: Block | None = None, *, checked: bool = True) -> Block:
        self.checks.append((index, checked))
        return super().load(index, loader)


def test_rows_that_were_finite_are_not_looked_at_when_they_come_again():
    rows, blocks = Filled(fail=2), BlockCache(2 * SIZE)
    other = Filled(key="other")
    for view, index in [(rows, 0), (rows, 1), (rows, 0), (other, 1), (rows, 1), (other, 1)]:
        with blocks.block(view, index):
            pass
    assert rows.checks == [(0, True), (1, True), (0, False), (1, False)]
    assert other.checks == [(1, True), (1, False)]
    for _ in range(2):  # what was refused is looked at again
        with pytest.raises(DataError, match="a broken chunk"), blocks.block(rows, 2):
            pass
    assert rows.checks[4:] == [(2, True), (2, True)]


def test_who_goes_first():
    block = Block(np.zeros((1, 1)), None, None, 0, 0)
    uses = {"pinned": 9, "open": 2, "awaited": 3, "next": 4, "last": 5, "other slot": 6, "old": 1, "new": 7}
    entries = {("v", k): Entry(block, 8, last_use=use) for k, use in enumerate(uses.values())}
    numbers = dict(zip(uses, range(len(uses)), strict=True))
    entries["v", numbers["pinned"]].pins = 1
    entries["v", numbers["open"]].open = True
    entries["v", numbers["awaited"]].awaited = True
    expected = Expected()
    expected.say(0, "v", (numbers["next"], numbers["awaited"], numbers["last"], numbers["open"]))
    expected.say(1, "v", (90, 91, numbers["other slot"], 92, 93, 94))
    left, gone = dict(entries), []
    while (key := expected.first(left)) is not None:
        gone.append(list(uses)[key[1]])
        del left[key]
    assert gone == ["new", "old", "last", "other slot", "next", "awaited", "open"]
    expected.say(0, "v", (90, numbers["last"]))  # nothing of what it said before
    expected.say(1, "w", (numbers["other slot"],))  # of another view
    names = [list(uses)[k] for _, k in sorted(entries, key=lambda key: -expected.until(key))]
    assert names[-1] == "last"
    assert expected.until(("v", numbers["last"])) == 1.0
    assert expected.until(("v", numbers["next"])) == expected.until(("v", numbers["other slot"])) == np.inf
    expected.say(0, "v", ())
    expected.say(1, "v", ())
    assert expected.first(entries) == ("v", numbers["new"])


def test_an_order_that_draws_from_a_batch_says_what_its_slot_expects():
    rows, blocks = Rows(), BlockCache(100 * SIZE)
    units, drawn = whole(np.arange(2), np.full(9, 10)), np.array([[0, 3, 0, 10]])
    execute(blocks, Adding(rows), (), 1, 0, drawn, ahead=(7, 8), slot=1)
    assert blocks._expected.until(("rows", 8)) == 1.0
    execute(blocks, Adding(rows), (), 2, 0, units)  # a pass over all rows in between
    execute(blocks, Adding(rows), (), 1, 0, drawn)  # another slot
    assert blocks._expected.until(("rows", 7)) == 0.5
    execute(blocks, Adding(rows), (), 1, 0, drawn, slot=1)
    assert blocks._expected.until(("rows", 7)) == np.inf
    assert wait_until(lambda: idle(blocks))


@dataclass
class Drawing:
    """A work that adds the rows which a unit draws, and says whether its partition has more to give."""

    view: Any

    def prepare(self, inputs: Any) -> Any:
        return inputs

    def __call__(self, inputs: Any, unit: Any, meter: Meter) -> Sums:
        with meter.block(self.view, int(unit[0])) as entry:
            rows = entry.order(3, unit)[unit[2] : unit[3]]
            entry.open = bool(unit[3] < 10)
            return Sums(np.sqrt(entry.block.X[rows] + rows[:, None]).sum(axis=0), 0.0, 1.0, len(rows))


def epochs_of(plan: Plan, budget: int, ahead: Callable[[Any], tuple[int, ...]]) -> tuple[list[bytes], int]:
    """Two slots of one process go through some epochs; return the bits of all sums and how much was decoded."""
    rows, blocks = Rows(), BlockCache(budget * SIZE, 2)
    rows.watch, found = lambda: blocks.held, []
    with ThreadPoolExecutor(2) as slots:
        for epoch in range(5):
            for step in range(plan.steps_per_epoch):
                units = plan.units(epoch, step)
                home, k = plan.homes(units, 2), len(units)
                parts = [
                    (slot, int(np.flatnonzero(home == slot)[0]), units[home == slot]) for slot in set(home.tolist())
                ]
                orders = [
                    slots.submit(execute, blocks, Drawing(rows), (), k, start, part, ahead(part), slot)
                    for slot, start, part in parts
                ]
                nodes = [value for order in orders for _, value in sorted(order.result()[0].items())]
                found += [value.grad.tobytes() for value in nodes]
                assert rows.most <= budget * SIZE
    assert wait_until(lambda: idle(blocks))
    return found, len(rows.loads)


@pytest.mark.parametrize("budget", [6, 9])
def test_what_is_said_to_come_changes_no_bit_and_saves_decoding(budget):
    plan = Plan(np.full(16, 10), 8, 2, 5, "block")
    told, few = epochs_of(plan, budget, plan.ahead)
    untold, some = epochs_of(plan, budget, lambda units: ())
    wrong, _ = epochs_of(plan, budget, lambda units: plan.ahead(units)[::-1])
    assert told == untold == wrong
    assert (told, 16) == epochs_of(plan, 100, plan.ahead)
    # a block that is kept to the next epoch saves one, and what was decoded ahead is not thrown away
    assert 5 * 16 - 4 * budget <= min(few, some) <= max(few, some) <= 5 * 16 - budget // 2
