"""async and ssp without an engine: any order of arrival, losses and repeats; staleness, replay, resume."""

from __future__ import annotations

import numpy as np
import pytest
from arena import Arena, Case, drive, picker
from hypothesis import given, settings
from hypothesis import strategies as st

from bigopt.core import codec
from bigopt.strategies import sync
from bigopt.strategies.asynchronous import Async, AsyncState, start
from bigopt.strategies.gates import Bounded, Free, Out, Scripted, Update
from bigopt.strategies.sync import Sync


def run_sync(case: Case) -> np.ndarray:
    setting = case.setting()
    machine = Sync(setting, sync.start(setting, case.start()))
    drive(machine, Arena(1, picker(0)), setting.rounds, updates=case.steps)
    return machine.params


def run_async(case: Case, slots: int, seed: int, **more) -> tuple[Async, list, list[Update]]:
    arena = Arena(slots, picker(seed), **{k: more.pop(k) for k in ("lose", "repeat") if k in more})
    setting, log = case.setting(), list[Update]()
    machine = Async(setting, start(setting, case.start()), log=log.append, **more)
    records = drive(machine, arena, setting.rounds)
    return machine, records, log


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("size", [32, None])
def test_one_worker_is_sync_to_the_bit(optimizer: str, size: int | None) -> None:
    case = Case(optimizer=optimizer, size=size)
    machine, records, _ = run_async(case, 1, 0)
    assert machine.params.tobytes() == run_sync(case).tobytes()
    assert {record.staleness for record in records} == {0}


@given(seed=st.integers(0, 10**6), slots=st.integers(1, 5), faults=st.sampled_from([0.0, 0.3]))
@settings(max_examples=20, deadline=None)
def test_every_ticket_is_applied_once_whatever_comes(seed: int, slots: int, faults: float) -> None:
    case = Case(steps=25)
    machine, records, log = run_async(case, slots, seed, lose=faults, repeat=faults)
    assert machine.steps == len(records) == len(log) == 25
    assert sorted(update.ticket for update in log) == list(range(25))
    assert [r.staleness for r in records] == [v - update.version for v, update in enumerate(log)]
    assert case.ledger.accepted == case.ledger.planned
    if slots > 1 and not faults:
        assert max(r.staleness for r in records) > 0


@given(seed=st.integers(0, 10**6), slots=st.integers(2, 5), slack=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_ssp_keeps_its_bound_and_never_locks_up(seed: int, slots: int, slack: int) -> None:
    bound = slots - 1 + slack
    _, records, _ = run_async(Case(steps=30), slots, seed, gate=Bounded(bound))
    assert len(records) == 30
    assert max(r.staleness for r in records) <= bound


def test_ssp_lets_the_fast_worker_run_up_to_the_bound_and_no_further() -> None:
    case, bound = Case(steps=30), 3
    setting = case.setting()
    machine = Async(setting, start(setting, case.start()), gate=Bounded(bound))
    arena = Arena(2, lambda busy: min(busy))  # worker 1 is never done unless it is the only busy one
    records = drive(machine, arena, setting.rounds, updates=bound)
    assert [r.worker for r in records] == [0] * bound
    more = drive(machine, arena, setting.rounds, updates=1)
    assert (more[0].worker, more[0].staleness) == (1, bound)


@pytest.mark.parametrize("slots", [2, 4])
def test_a_replay_has_the_bits_of_the_run(slots: int) -> None:
    case = Case(optimizer="momentum")
    machine, records, log = run_async(case, slots, 11)
    assert len({r.staleness for r in records}) > 1
    for seed in (1, 2):
        again, _, second = run_async(Case(optimizer="momentum"), slots + 1, seed, gate=Scripted(log))
        assert [u[:2] for u in second] == [u[:2] for u in log]
        assert again.params.tobytes() == machine.params.tobytes()


def test_a_resumed_run_gives_out_the_open_tickets_first() -> None:
    case = Case(steps=30)
    setting, log = case.setting(), list[Update]()
    machine = Async(setting, start(setting, case.start()), log=log.append)
    drive(machine, Arena(3, picker(5)), setting.rounds, updates=12)
    state = codec.loads(codec.dumps(machine.snapshot()))
    assert isinstance(state, AsyncState)
    assert (state.steps, len(state.open)) == (12, 2)
    assert sorted([*(u.ticket for u in log), *state.open]) == list(range(state.ticket))
    setting = case.setting()
    machine = Async(setting, state, log=log.append)
    drive(machine, Arena(3, picker(6)), setting.rounds)
    assert sorted(u.ticket for u in log) == list(range(30))
    assert {u.ticket for u in log[12:14]} | {u.ticket for u in log[12:]} >= set(state.open)


def test_it_converges_to_the_optimum() -> None:
    case = Case(size=None, rate=0.05, steps=400)
    for gate in (Free(), Bounded(3)):
        machine, _, _ = run_async(case, 3, 2, gate=gate)
        assert np.abs(machine.params - case.optimum()).max() < 1e-9


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=5), st.integers(0, 8))
def test_the_oldest_may_always_be_applied(tickets: list[tuple[int, bool]], slack: int) -> None:
    """Once all are there, a set that can be applied in time is applied to its end, within the bound."""
    versions = sorted(v for v, _ in tickets)
    now = versions[-1]
    bound = max(now + i - v for i, v in enumerate(versions)) + slack
    out = [Out(n, v, True) for n, (v, _) in enumerate(tickets)]
    gate = Bounded(bound)
    while out:
        chosen = gate.choose(out, now)
        assert chosen is not None
        assert now - out[chosen].version <= bound
        out.pop(chosen)
        now += 1


def test_a_replay_needs_no_more_workers_than_one() -> None:
    case = Case(optimizer="momentum")
    machine, _, log = run_async(case, 4, 11)
    again, records, second = run_async(Case(optimizer="momentum"), 1, 0, gate=Scripted(log))
    assert [u[:2] for u in second] == [u[:2] for u in log]
    assert again.params.tobytes() == machine.params.tobytes()
    assert len(records) == 40


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_ssp_goes_on_within_its_bound_where_more_workers_join_than_it_allows(bound: int) -> None:
    _, records, log = run_async(Case(steps=30), 4, 3, gate=Bounded(bound))
    assert sorted(u.ticket for u in log) == list(range(30))
    assert max(r.staleness for r in records) <= bound
    assert {u.worker for u in log} == set(range(bound + 1))


@pytest.mark.parametrize("slots", [2, 4])
def test_every_ticket_carries_the_newest_params_so_a_broadcast_could_send_no_newer_ones(slots: int) -> None:
    """``reply: broadcast``: had every update been sent to every worker, a ticket would begin with the same bits."""
    case = Case(steps=30)
    setting = case.setting()
    machine, arena, choose = Async(setting, start(setting, case.start())), Arena(slots, picker(3)), picker(4)
    broadcast = [machine.params] * slots  # what each worker was sent last

    def give() -> None:
        for order in machine.more(slots):
            assert order.inputs[0].tobytes() == broadcast[order.slot].tobytes()
            arena.submit(order)

    give()
    while arena.pending:
        for _ in range(choose([1, 2, 3])):  # several may arrive before any is applied
            if arena.pending:
                machine.handle(arena.wait())
        while machine.advance() is not None:
            broadcast = [machine.params] * slots
        give()
    assert machine.steps == 30
