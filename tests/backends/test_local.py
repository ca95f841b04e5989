"""The embedded backend, beyond the contract."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from probes import MEMORY, SIZES, Recorder, closing, direct, run_round, same, vector, view
from threadpoolctl import threadpool_info

from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.local import LocalSession
from bigopt.backends.testing import Probe
from bigopt.data.memory import from_arrays
from bigopt.data.plan import homes, whole
from bigopt.data.view import DataView
from bigopt.models.linear import LinearModel
from bigopt.models.losses import SquaredLoss
from bigopt.work import GradientSum


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


@dataclass(frozen=True, eq=False)
class Seen(GradientSum):
    """Gradient sums that note which thread computes the units of which partition."""

    threads: dict[int, str] = field(default_factory=dict)

    def __call__(self, inputs, unit, meter):
        self.threads[int(unit[0])] = threading.current_thread().name
        return super().__call__(inputs, unit, meter)


def seen() -> Seen:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(int(SIZES.sum()), 8))
    source = from_arrays(X, X @ rng.normal(size=8), partition_rows=SIZES.tolist()).source
    model = LinearModel(8, 1, SquaredLoss())
    return Seen(model, DataView(source, view().bounds, "float64"), seed=0, dtype="float64", block_rows=100)


@pytest.mark.parametrize(("slots", "joins"), [(1, True), (2, True), (3, True), (2, False)])
def test_who_waits_computes_the_first_slot(slots, joins):
    params, work = np.linspace(-1.0, 1.0, 9), seen()
    with closing(LocalSession(1, MEMORY, joins=False)) as session:
        expected = run_round(session, work, params)[0]
    assert set(work.threads.values()) == {"bigopt-slot-0"}
    with closing(LocalSession(slots, MEMORY, joins=joins)) as session:
        for _ in range(2):
            assert same(run_round(session, work, params)[0], expected)
    names = [f"bigopt-slot-{slot}" for slot in range(slots)]
    if joins:
        names[0] = threading.current_thread().name
    assert work.threads == {unit: names[slot] for unit, slot in enumerate(homes(SIZES, slots).tolist())}


def test_who_waits_for_several_rounds_leaves_them_to_the_slots():
    params, works, rounds = np.zeros(9), (seen(), seen()), Rounds(Ledger(), 0)
    units = whole(np.arange(len(SIZES)), SIZES)
    made = [rounds.new(work, (params,), units, homes(SIZES, 1)[units[:, 0]], where="step") for work in works]
    with closing(LocalSession(1, MEMORY)) as session:
        for order in [order for round_ in made for order in round_.orders()]:
            session.submit(order)
        for round_ in made:
            round_.accept(session.wait())
    assert same(made[0].value, made[1].value)
    assert {name for work in works for name in work.threads.values()} == {"bigopt-slot-0"}
