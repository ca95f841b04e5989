"""The block cache: its budget, what it keeps, and decoding ahead of the computing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from bigopt.core.errors import DataError
from bigopt.core.sums import Sums
from bigopt.data.cache import BlockCache
from bigopt.data.loading import Loader
from bigopt.data.meter import Meter
from bigopt.data.plan import Plan, whole
from bigopt.data.view import Block
from bigopt.strategies.sync import Sync
from bigopt.work import Order, execute

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


def test_the_plan_announces_every_partition_before_a_lane_enters_it():
    counts = np.array([30, 50, 20, 0, 40, 60, 35, 45, 10, 25])
    plan = Plan(counts, 16, 3, 5, "block")
    entered, announced, steps = set(), {}, 0
    for epoch in range(3):
        for step in range(plan.steps_per_epoch):
            units = plan.units(epoch, step)
            for partition, when, *_ in units.tolist():
                if (when, partition) not in entered and steps:
                    assert partition in announced[int(plan.walks.of[partition])]
                entered.add((when, partition))
            coming = plan.coming(units)
            assert coming.shape == (len(units), 2)
            for (partition, _, _, stop), (after, left) in zip(units.tolist(), coming.tolist(), strict=True):
                lane = int(plan.walks.of[partition])
                assert plan.walks.of[after] == lane
                assert left == counts[partition] - stop
                announced.setdefault(lane, set()).add(after)
            steps += 1
    assert len(entered) == 3 * 9
    for sampling in ("permuted", "subset"):
        other = Plan(counts, 16, 3 if sampling == "permuted" else 0, 5, sampling)
        assert other.coming(other.units(0, 0)).shape == (0, 2)


def test_a_slot_is_told_which_partition_it_needs_soonest():
    order = Order(1, 0, 0, None, (), 4, 0, np.zeros((2, 4), dtype=np.int64))
    coming = np.array([[5, 30], [6, 10], [7, 0], [8, 4]])
    first, second = Sync._announced([order, replace(order, slot=1, start=2)], coming)
    assert (first.ahead, second.ahead) == ((6, 5), (7, 8))
    assert Sync._announced([order], coming[:0])[0].ahead == ()
