"""Values over one connection: through shared memory, through TCP, and what is left behind (nothing)."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from bigopt.backends.segments import Pool
from bigopt.backends.wire import Wire

Pair = tuple[Wire, Wire]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = socket.create_connection(server.getsockname())
        return left, server.accept()[0]


def wires(make: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair) -> Pair:
    """A driver's and a worker's end, each with a pool of its own."""
    left, right = make()
    return (
        Wire(Connection(left.detach()), Pool(), writable=True),
        Wire(Connection(right.detach()), Pool(), writable=False),
    )


@pytest.fixture(params=["unix", "tcp"])
def ends(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = wires(socket.socketpair if request.param == "unix" else tcp_pair)
    assert pair[0].shares == (request.param == "unix")
    yield pair
    for wire in pair:
        wire.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = wires()
    yield pair
    for wire in pair:
        wire.close()


def cross(sender: Wire, receiver: Wire, value: Any, origin: object = None) -> tuple[Any, int]:
    """Send from another thread, as what does not fit the pipe needs a reader."""
    thread = threading.Thread(target=sender.send, args=(value, origin))
    thread.start()
    got = receiver.receive()
    thread.join()
    return got


@pytest.mark.parametrize("value", [
    np.zeros(0), np.arange(5.0), np.arange(3_000_000.0), np.zeros((3, 0), "f4"), np.array(["a", "bc"]),
    np.arange(6).reshape(2, 3).T, np.arange(6000).reshape(20, 300).T, np.arange(513, dtype="f4"),
])  # fmt: skip
def test_arrays_of_any_size_cross_and_the_driver_may_write_to_them(ends, value):
    driver, worker = ends
    (got, text, first), size = cross(worker, driver, (value, "x", value[:1]))
    assert got.dtype == value.dtype
    assert text == "x"
    np.testing.assert_array_equal(got, value)
    np.testing.assert_array_equal(first, value[:1])
    assert size >= value.nbytes
    assert got.flags.aligned
    if value.dtype.kind != "U" and value.size:
        assert got.flags.writeable


def test_a_worker_cannot_write_to_what_it_shares_with_others(pair):
    driver, worker = pair
    (got,), _ = cross(driver, worker, (np.ones(10_000),))
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 2.0


def test_a_segment_is_written_again_only_when_nobody_looks_at_it(pair):
    driver, worker = pair
    seen = [cross(worker, driver, np.full(10_000, float(k)))[0] for k in range(5)]
    assert [float(a[0]) for a in seen] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert all((a == k).all() for k, a in enumerate(seen))
    tail = seen[2][9_000:].reshape(10, 100)  # a view of a view
    del seen
    for k in range(5, 10):  # given back with the driver's next message
        cross(driver, worker, "go on")
        got, _ = cross(worker, driver, np.full(10_000, float(k)))
        assert (got == k).all()
        assert (tail == 2.0).all()
    assert worker._pool.size == 5 * 81_920


def test_rounds_need_no_new_memory(pair):
    driver, worker = pair
    for k in range(20):
        params, _ = cross(driver, worker, np.full(10_000, float(k)), (k,))
        grad = params * 2.0
        del params
        got, _ = cross(worker, driver, grad)
        assert (got == 2.0 * k).all()
    assert driver._pool.size == 81_920
    assert worker._pool.size <= 2 * 81_920


def test_what_belongs_to_one_round_is_written_once_for_all_and_what_changed_is_written_again():
    pool = Pool()
    links = []
    for _ in range(3):
        left, right = socket.socketpair()
        links.append(
            (
                Wire(Connection(left.detach()), pool, writable=True),
                Wire(Connection(right.detach()), Pool(), writable=False),
            )
        )
    params = np.zeros(10_000)
    inputs = (params,)
    first = [cross(*link, inputs, inputs)[0][0] for link in links]
    assert pool.size == 81_920
    params += 1.0  # a driver that uses its buffer again, in another round, while a worker still looks at the first
    inputs = (params,)
    second = [cross(*link, inputs, inputs)[0][0] for link in links]
    assert pool.size == 2 * 81_920
    assert all((a == 0.0).all() for a in first)
    assert all((a == 1.0).all() for a in second)
    links[0][0].close()  # the first worker is gone with what it looked at
    del first, second
    for driver, worker in links[1:]:
        cross(worker, driver, "done")
    got = [cross(*link, (params,), None)[0][0] for link in links[1:]]
    assert pool.size == 2 * 81_920
    assert all((a == 1.0).all() for a in got)
    del got
    for driver, worker in links:
        driver.close()
        worker.close()
    pool.close()


def test_sizes_that_are_not_needed_any_more_are_let_go_on_both_sides(pair):
    driver, worker = pair
    for k in range(40):
        got, _ = cross(worker, driver, np.ones(1000 * (k + 1) ** 2))
        del got
        cross(driver, worker, "go on")
    assert len(worker._pool._segments) <= 9
    assert len(driver._mapped) <= 9


def test_many_arrays_in_one_message(pair):
    driver, worker = pair
    value = tuple(np.full(1000, float(k)) for k in range(150))
    got, _ = cross(worker, driver, value)
    assert all((a == k).all() for k, a in enumerate(got))


def test_without_such_memory_the_bytes_themselves_are_sent(pair, monkeypatch):
    driver, worker = pair

    def refuse(*args: object) -> int:
        raise OSError(12, "no memory")

    monkeypatch.setattr(os, "memfd_create", refuse)
    got, _ = cross(worker, driver, np.arange(300_000.0))
    np.testing.assert_array_equal(got, np.arange(300_000.0))
    assert worker._pool.size == 0


@pytest.mark.parametrize("message", [b"", b"\x00" * 40, b"\xff" * 400, np.arange(50, dtype="<i8").tobytes()])
def test_a_message_of_something_else_is_a_value_error(pair, message):
    driver, worker = pair
    worker._connection.send_bytes(message)
    worker.close()
    with pytest.raises((ValueError, EOFError)):
        driver.receive()


def test_a_segment_that_was_never_sent_is_a_value_error(pair):
    driver, worker = pair
    table = np.array([2, 1, 0, 0, 0, 7, 100], dtype="<i8")
    worker._connection.send_bytes(table.tobytes() + b"{}")
    with pytest.raises(ValueError, match="segment 7"):
        driver.receive()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def maps() -> int:
    with open("/proc/self/maps", encoding="utf-8") as handle:
        return sum("memfd:bigopt" in line for line in handle)


def test_nothing_is_left_of_a_closed_wire_but_what_somebody_holds():
    gc.collect()
    before, mapped = descriptors(), maps()
    driver, worker = wires()
    kept, _ = cross(worker, driver, np.ones(50_000))
    cross(driver, worker, np.ones(50_000))
    for wire in (driver, worker):
        wire.close()
        wire._pool.close()
    assert (kept == 1.0).all()
    del driver, worker, wire
    gc.collect()
    assert maps() == mapped + 1
    del kept
    gc.collect()
    assert maps() == mapped
    assert descriptors() == before


def test_segments_have_no_name_and_cannot_be_cut_short(pair):
    driver, worker = pair
    got, _ = cross(worker, driver, np.ones(50_000))
    (segment,) = worker._pool._segments.values()
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(segment.fd, 0)
    assert not any("bigopt" in name for name in os.listdir("/dev/shm"))
    assert (got == 1.0).all()


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_a_vector_made_where_it_is_shared_is_sent_without_a_copy_and_its_memory_waits_for_both_sides(pair):
    driver, worker = pair
    pool = worker._pool
    vector = pool.lend(10_000, "f8")
    vector[:] = 1.0
    got, _ = cross(worker, driver, (vector, 3))
    vector[7] = 5.0  # which nobody does: it shows that there is one memory
    assert got[0][7] == 5.0
    assert pool.size == 81_920
    at = address(vector)
    others = [pool.lend(10_000, "f8")]
    assert address(others[-1]) != at  # looked at on both sides
    del got
    cross(driver, worker, "given back")
    part = vector[100:200]
    del vector
    others.append(pool.lend(10_000, "f8"))
    assert address(others[-1]) != at  # a part of it is looked at here
    del part
    assert address(pool.lend(10_000, "f8")) == at


def test_short_vectors_and_a_closed_pool_lend_nothing():
    pool = Pool()
    assert pool.lend(1024, "f4") is None
    assert pool.lend(1025, "f4").shape == (1025,)
    pool.close()
    assert pool.lend(1025, "f4") is None


def test_a_part_of_a_vector_that_lies_in_a_segment_crosses_too(pair):
    driver, worker = pair
    vector = worker._pool.lend(10_000, "f8")
    vector[:] = np.arange(10_000)
    for part in (slice(0, 5_000), slice(5_000, 10_000)):
        got, _ = cross(worker, driver, vector[part])
        np.testing.assert_array_equal(got, vector[part])
