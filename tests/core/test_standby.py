"""A thread that stands by makes the calls that it is given, in order, whether it is awake or asleep."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from bigopt.core import compiled, fused_rows, standby
from bigopt.core.standby import Call, Standby, words

pytestmark = pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())

SIGNATURE = fused_rows.signature("float64")


def gather(X: Any, order: Any, start: int, out: Any) -> Call:
    return Call(compiled.kernel(fused_rows.make_gather, ("float64",), SIGNATURE), (X, order, start, out))


def test_calls_are_made_in_order_by_a_thread_that_is_awake_or_asleep() -> None:
    rng, before = np.random.default_rng(0), set(threading.enumerate())
    X, order = rng.normal(size=(50, 7)), rng.permutation(50)
    thread = Standby("standing", (words(SIGNATURE),))
    try:
        for k in range(40):
            first, second = np.zeros((5, 7)), np.zeros((3, 7))
            thread.post([gather(X, order, k, first), gather(first, np.array([4, 0, 2]), 0, second)])
            thread.wait(1)
            assert (first == X[order[k : k + 5]]).all()
            thread.wait(2)
            assert (second == first[[4, 0, 2]]).all()
            thread.settle()
            if k % 20 == 0:  # longer than it waits
                time.sleep(3 * standby.PATIENCE * 1e-9)
    finally:
        thread.close()
    assert set(threading.enumerate()) == before


def test_what_takes_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "WATCHED", 0)
    X = np.random.default_rng(1).normal(size=(4000, 700))
    out, thread = np.zeros_like(X), Standby("standing", (words(SIGNATURE),))
    thread.post([gather(X, np.arange(4000), 0, out)])
    thread.wait(1)
    assert (out == X).all()
    thread.close()
    thread.close()


def test_one_that_was_given_nothing_has_no_thread() -> None:
    before = set(threading.enumerate())
    thread = Standby("standing", (3,))
    thread.settle()
    thread.close()
    assert set(threading.enumerate()) == before


def test_a_call_takes_other_arrays() -> None:
    rng = np.random.default_rng(2)
    X, order, out = rng.normal(size=(9, 4)), rng.permutation(9), np.zeros((3, 4))
    call = gather(X, order, 0, out)
    call.make()
    assert (out == X[order[:3]]).all()
    other, more = rng.normal(size=(20, 4)), np.zeros((6, 4))
    call.renew((other, order, 2, more))
    call.make()
    assert (more == other[order[2:8]]).all()
    assert (out == X[order[:3]]).all()
