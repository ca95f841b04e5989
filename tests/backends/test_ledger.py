"""The ledger without any engine: every unit is accepted once, whatever arrives, and in whatever order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probes import MEMORY, SIZES, direct, same, vector, view

from bigopt.backends.ledger import Ledger, Round, Rounds
from bigopt.backends.testing import Probe
from bigopt.core.errors import ClusterError, DataError
from bigopt.data.cache import BlockCache
from bigopt.data.plan import homes, whole
from bigopt.work import Arrival, Order, execute

UNITS = whole(np.arange(len(SIZES)), SIZES)
WORK = Probe(view())


def new(slots: int = 3, retries: int = 2) -> tuple[Round, list[Order], Ledger]:
    ledger = Ledger()
    round_ = Rounds(ledger, retries).new(WORK, (vector(),), UNITS, homes(SIZES, slots), where="step 12")
    return round_, round_.orders(), ledger


def done(order: Order, **keys: Any) -> Arrival:
    nodes, stats = execute(BlockCache(MEMORY), order.work, order.inputs, order.leaves, order.start, order.units)
    return Arrival(order, nodes, stats, sent=10, received=20, **keys)


def split(order: Order, start: int, stop: int, attempt: int = 0) -> Order:
    """Part of the units of an order that covers the whole round."""
    units = order.units[start - order.start : stop - order.start]
    return Order(order.ticket, attempt, 0, order.work, order.inputs, order.leaves, start, units)


def test_a_round_is_complete_when_all_orders_are_done():
    round_, orders, ledger = new()
    assert [order.slot for order in orders] == [0, 1, 2]
    assert [order.start for order in orders] == [0, *(order.stop for order in orders[:-1])]
    for order in orders:
        assert not round_.done
        with pytest.raises(RuntimeError, match="not complete"):
            _ = round_.value
        assert round_.accept(done(order)) == []
    assert round_.done
    assert same(round_.value, direct(vector()))
    assert ledger == Ledger(
        rounds=1, planned=7, accepted=7, executed=7, messages=3, bytes_sent=30, bytes_received=60, rows=SIZES.sum()
    )


def test_a_second_copy_is_dropped_and_counted():
    round_, orders, ledger = new()
    round_.accept(done(orders[0]))
    assert round_.accept(done(orders[0])) == []
    for order in orders[1:]:
        round_.accept(done(order))
    assert same(round_.value, direct(vector()))
    size = len(orders[0].units)
    assert (ledger.accepted, ledger.executed, ledger.duplicates) == (7, 7 + size, size)


def test_an_overlap_is_dropped_whole_and_the_rest_is_ordered_again():
    round_, orders, ledger = new(slots=1)
    assert round_.accept(done(split(orders[0], 2, 4))) == []
    again = round_.accept(done(orders[0]))
    assert [(o.start, o.stop, o.attempt) for o in again] == [(0, 2, 1), (4, 7, 1)]
    assert not round_.done
    for order in again:
        round_.accept(done(order))
    assert same(round_.value, direct(vector()))
    assert (ledger.accepted, ledger.duplicates, ledger.lost) == (7, 7, 5)


def test_lost_units_are_ordered_again_until_the_retries_are_used_up():
    round_, orders, ledger = new(retries=2)
    order = orders[1]
    for attempt in (1, 2):
        (order,) = round_.accept(Arrival(order, lost="worker pid 7 is gone"))
        assert (order.attempt, order.start, order.ticket) == (attempt, orders[1].start, orders[1].ticket)
    assert ledger.lost == 2 * len(order.units)
    with pytest.raises(ClusterError, match="3 times: worker pid 7 is gone") as caught:
        round_.accept(Arrival(order, lost="worker pid 7 is gone"))
    first, last = order.units[0][0], order.units[-1][0]
    assert f"partitions {first}..{last} of round 1" in str(caught.value)
    assert caught.value.where == "step 12"
    assert caught.value.exit_code == 5


def test_what_was_lost_but_is_done_elsewhere_is_not_ordered():
    round_, orders, _ = new(slots=1)
    round_.accept(done(split(orders[0], 0, 5)))
    (again,) = round_.accept(Arrival(orders[0], lost="gone"))
    assert (again.start, again.stop) == (5, 7)


def test_a_copy_that_is_lost_too_often_ends_nothing():
    round_, orders, ledger = new(slots=1, retries=0)
    round_.accept(done(orders[0]))
    assert round_.accept(Arrival(orders[0], lost="gone")) == []
    assert (ledger.accepted, ledger.lost) == (7, 0)


def test_an_arrival_of_an_old_round_is_dropped():
    rounds = Rounds(ledger := Ledger(), 2)
    make = lambda: rounds.new(WORK, (vector(),), UNITS, homes(SIZES, 1), where="x")  # noqa: E731
    old, new_ = make(), make()
    assert old.ticket != new_.ticket
    late = done(old.orders()[0])
    assert new_.accept(late) == []
    assert not new_.done
    assert new_.accept(Arrival(late.order, lost="gone")) == []
    assert ledger.duplicates == 14
    new_.accept(done(new_.orders()[0]))
    assert same(new_.value, direct(vector()))


def test_a_result_that_was_not_ordered_is_no_result():
    round_, orders, _ = new(slots=1, retries=1)
    arrival = done(orders[0])
    wrong = Arrival(orders[0], {(0, 0): next(iter(arrival.nodes.values()))}, arrival.stats)
    (again,) = round_.accept(wrong)
    assert again.attempt == 1
    assert not round_.done
    with pytest.raises(ClusterError, match="not what was ordered"):
        round_.accept(Arrival(again, None))


def test_an_error_of_the_data_is_raised_as_it_is():
    round_, orders, _ = new()
    error = DataError("column 'a' is nan", where="part 3")
    with pytest.raises(DataError) as caught:
        round_.accept(Arrival(orders[0], error=error))
    assert caught.value is error


def test_a_round_needs_units():
    with pytest.raises(ValueError, match="without units"):
        Rounds(Ledger(), 1).new(WORK, (vector(),), UNITS[:0], homes(SIZES, 1)[:0], where="x")


@given(data=st.data(), slots=st.integers(1, 7))
def test_any_history_gives_the_same_bits_and_counts_every_unit_once(data, slots):
    """Arrivals in any order, some lost, some repeated, some cut in two by an engine that runs half an order first."""
    round_, open_, ledger = new(slots, retries=50)
    copies = events = 0
    while not round_.done:
        order = open_.pop(data.draw(st.integers(0, len(open_) - 1)))
        events += 1
        fate = data.draw(st.sampled_from(["done", "lost", "twice", "half"])) if events < 30 else "done"
        if fate == "lost":
            open_ += round_.accept(Arrival(order, lost="gone"))
        elif fate == "half" and len(order.units) > 1:
            half = split(order, order.start, order.start + len(order.units) // 2, order.attempt)
            open_ += round_.accept(done(half))
            open_.append(order)  # and then all of it
        else:
            open_ += round_.accept(done(order))
            if fate == "twice":
                copies += 1
                open_ += round_.accept(done(order))
    assert same(round_.value, direct(vector()))
    assert ledger.accepted == ledger.planned == 7
    assert ledger.executed == ledger.accepted + ledger.duplicates
    assert ledger.rows == SIZES.sum()
    assert ledger.duplicates >= copies
