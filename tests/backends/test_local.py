"""The embedded backend, beyond the contract."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from probes import MEMORY, SIZES, Recorder, closing, direct, run_round, same, vector, view
from threadpoolctl import threadpool_info

from bigopt.backends.local import LocalSession
from bigopt.backends.testing import Probe
from bigopt.data.memory import from_arrays
from bigopt.data.view import DataView


def blas_threads() -> set[int]:
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


@pytest.mark.parametrize("slots", [1, 2, 5, 9])
def test_any_number_of_threads_gives_the_same_bits(slots):
    with closing(LocalSession(slots, MEMORY)) as session:
        assert same(run_round(session, Probe(view()), vector())[0], direct(vector()))


def test_slots_run_side_by_side():
    with closing(LocalSession(3, MEMORY)) as session:
        recorder = Recorder(session)
        run_round(recorder, Probe(view(), seconds=0.05), vector())
        total = sum(arrival.stats.seconds for arrival in recorder.arrivals)
        assert total >= 7 * 0.05
        assert max(arrival.stats.seconds for arrival in recorder.arrivals) < total


def test_blas_has_one_thread_while_a_session_is_open():
    before = blas_threads()
    session = LocalSession(2, MEMORY)
    assert blas_threads() == {1}
    session.close()
    assert blas_threads() == before


def test_arrays_in_memory_are_used_where_they_are():
    X = np.random.default_rng(0).normal(size=(int(SIZES.sum()), 8))
    source = from_arrays(X, partition_rows=SIZES.tolist()).source
    with closing(LocalSession(2, MEMORY)) as session:
        sums, ledger = run_round(session, Probe(DataView(source, view().bounds, "float64")), np.ones(1))
    assert sums.rows == len(X)
    assert ledger.bytes_read == 0
    np.testing.assert_allclose(sums.loss, np.abs(X).sum(), rtol=1e-12)


def test_an_unexpected_error_of_a_thread_is_raised_by_wait():
    before = set(threading.enumerate())
    with closing(LocalSession(1, MEMORY)) as session, pytest.raises(ZeroDivisionError, match="broken on purpose"):
        run_round(session, Probe(view(), defect=0), vector())
    assert set(threading.enumerate()) <= before
