"""Seats: where a thread is woken, and where the driver waits."""

import os
import threading

import pytest
from probes import MEMORY, direct, run_round, same, vector, view

from bigopt.backends import channel
from bigopt.backends.channel import Hub, serve
from bigopt.backends.seats import cores, here, woken_on
from bigopt.backends.testing import Probe

pytestmark = pytest.mark.skipif(len(cores()) < 2, reason="needs two cores, and a system that says which they are")


def test_a_thread_is_bound_while_it_waits_and_only_this_thread():
    allowed = frozenset(cores())
    first = frozenset({min(allowed)})
    with woken_on(first, allowed):
        assert os.sched_getaffinity(0) == first
        assert here() in first
    assert os.sched_getaffinity(0) == allowed


def test_nothing_is_asked_for_where_nothing_is_wanted_or_there():
    allowed = frozenset(cores())
    for wanted in (frozenset(), frozenset({1 << 12})):
        with woken_on(wanted, allowed):
            assert os.sched_getaffinity(0) == allowed
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("more", [0, 1])
def test_as_many_workers_as_cores_have_seats_and_the_one_where_the_driver_is_comes_last(more, monkeypatch):
    slots, sent = len(cores()) + more, []
    hub = Hub(slots, timeout=30.0)
    threads = [threading.Thread(target=serve, args=(hub.addresses, hub.key, MEMORY), daemon=True) for _ in range(slots)]
    monkeypatch.setattr(channel, "here", lambda: cores()[0])
    try:
        for thread in threads:
            thread.start()
        assert hub.wait_for_workers(slots) == slots
        assert [link.core for link in hub.links] == ([-1] * slots if more else list(cores()))
        assert same(run_round(hub, Probe(view()), vector())[0], direct(vector()))
        send = hub._send
        monkeypatch.setattr(hub, "_send", lambda order: (sent.append(order.slot), send(order))[1])
        assert same(run_round(hub, Probe(view()), vector())[0], direct(vector()))
        assert sent == (list(range(slots)) if more else [*range(1, slots), 0])
        assert os.sched_getaffinity(0) == set(cores())
    finally:
        hub.close()
    for thread in threads:
        thread.join(5.0)
        assert not thread.is_alive()
