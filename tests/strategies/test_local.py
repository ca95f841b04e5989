"""Replicas without an engine: local SGD against sync, downpour and easgd by hand, any order of arrival."""

from __future__ import annotations

import numpy as np
import pytest
from arena import SIZES, Arena, Case, drive, picker
from hypothesis import given, settings
from hypothesis import strategies as st

from bigopt.core import codec
from bigopt.core.errors import ConfError
from bigopt.data.plan import Plan, rows_of
from bigopt.data.shares import Shares, cut
from bigopt.strategies import sync
from bigopt.strategies.exchanges import Downpour, Elastic
from bigopt.strategies.gates import Update
from bigopt.strategies.local import LocalSgd, LocalState
from bigopt.strategies.replicas import Replicas, ReplicasState, begin
from bigopt.strategies.turns import Averaging


def run_sync(case: Case) -> np.ndarray:
    setting = case.setting()
    machine = sync.Sync(setting, sync.start(setting, case.start()))
    drive(machine, Arena(1, picker(0)), setting.rounds, updates=case.steps)
    return machine.params


def run_local(case: Case, p: int, k: int, slots: int = 2, seed: int = 0, **more) -> tuple[Averaging[LocalState], list]:
    arena = Arena(slots, picker(seed), **{key: more.pop(key) for key in ("lose", "repeat") if key in more})
    setting = case.setting()
    state = LocalState(case.start(), None if "outer" not in more else more["outer"].start(case.start())[0], 0, p)
    machine = Averaging(setting, state, LocalSgd(setting, case.local(p, "average"), case.rates, local_steps=k, **more))
    return machine, drive(machine, arena, setting.rounds)


def run_replicas(case: Case, exchange, p: int, slots: int, seed: int, **more):
    arena = Arena(slots, picker(seed), **{key: more.pop(key) for key in ("lose", "repeat") if key in more})
    setting, log = case.setting(), list[Update]()
    machine = Replicas(
        setting,
        begin(exchange, case.start(), p),
        exchange,
        case.local(p, "replica"),
        case.rates,
        log=log.append,
        **more,
    )
    return machine, drive(machine, arena, setting.rounds), log


@given(
    size=st.one_of(st.none(), st.integers(5, 150)),
    lanes=st.sampled_from([0, 2, 3]),
    p=st.integers(1, 5),
    step=st.integers(0, 30),
)
@settings(max_examples=30, deadline=None)
def test_shares_are_the_rows_of_the_batch_cut_evenly(size: int | None, lanes: int, p: int, step: int) -> None:
    plan = Plan(np.array(SIZES), size, lanes, 5)
    shares = Shares.of(plan, p)
    epoch, position = divmod(step, plan.steps_per_epoch)
    batch = plan.units(epoch, position)
    parts = [shares.units(r, step) for r in range(p)]
    assert [rows_of(units) for units, _ in parts] == [rows for _, rows in parts]
    assert sum(rows for _, rows in parts) == rows_of(batch)
    assert max(rows for _, rows in parts) - min(rows for _, rows in parts) <= 1

    def cells(units: np.ndarray) -> list[tuple[int, int]]:
        return [(int(u[0]), row) for u in units for row in range(u[2], u[3])]

    assert [cell for units, _ in parts for cell in cells(units)] == cells(batch)


def test_a_cut_splits_units() -> None:
    units = np.array([[0, 3, 4, 9], [2, 3, 0, 2], [5, 3, 7, 10]])
    assert cut(units, 3, 8).tolist() == [[0, 3, 7, 9], [2, 3, 0, 2], [5, 3, 7, 8]]


@pytest.mark.parametrize("sampling", ["subset", "bernoulli", "replacement"])
def test_drawn_batches_are_drawn_for_each_replica(sampling: str) -> None:
    shares = Shares.of(Plan(np.array(SIZES), 31, 0, 5, sampling), 3)  # type: ignore[arg-type]
    sizes = [shares.units(r, 4)[1] for r in range(3)]
    assert sum(sizes) == 31
    drawn = [shares.units(r, t)[0].tolist() for r in range(3) for t in range(3)]
    assert len({str(units) for units in drawn}) == 9


def test_shards_are_whole_partitions_and_too_few_are_refused() -> None:
    plan = Plan(np.array(SIZES), 40, 0, 5)
    shares = Shares.of(plan, 2, own=True)
    for r in range(2):
        mine = np.flatnonzero(shares.shard == r)
        seen = np.zeros(len(SIZES), dtype=int)
        steps = -(-int(np.array(SIZES)[mine].sum()) // 20)
        for step in range(steps):
            for unit in shares.units(r, step)[0]:
                seen[unit[0]] += unit[3] - unit[2]
        assert (seen == np.where(shares.shard == r, SIZES, 0)).all()
    with pytest.raises(ConfError, match="6 partitions are too few for 7 replicas"):
        Shares.of(plan, 7, own=True)
    with pytest.raises(ConfError, match="50 replicas share batches of 40 rows"):
        Shares.of(plan, 50)


@pytest.mark.parametrize("size", [32, None, sum(SIZES) - 1])  # the last: every other batch is a row
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_one_local_step_is_sync(size: int | None, weighted: bool, p: int) -> None:
    case = Case(size=size, weighted=weighted)
    machine, _ = run_local(case, p, 1)
    reference = run_sync(case)
    assert np.abs(machine.params - reference).max() <= 1e-12 * np.abs(reference).max()


@pytest.mark.parametrize("k", [1, 4, 1000])
def test_bits_do_not_depend_on_the_workers(k: int) -> None:
    found = [
        run_local(Case(), 3, k, slots, seed)[0].params.tobytes() for slots, seed in ((1, 0), (2, 1), (3, 2), (5, 3))
    ]
    assert len(set(found)) == 1
    faulty, _ = run_local(Case(), 3, k, 2, 4, lose=0.3, repeat=0.3)
    assert faulty.params.tobytes() == found[0]


def test_records_count_rows_steps_and_epochs() -> None:
    case = Case(steps=30)  # 7 steps an epoch
    machine, records = run_local(case, 2, 4)
    assert [r.step for r in records] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert [r.end_of_epoch for r in records] == [s // 7 > max(0, s - 4) // 7 for s in (4, 8, 12, 16, 20, 24, 28)] + [
        False
    ]
    rows = np.cumsum([r.rows for r in records])
    assert rows[-1] == 4 * sum(SIZES) + 2 * 32
    assert machine.epochs == pytest.approx(rows[-1] / sum(SIZES))


def test_a_local_run_goes_on_with_the_same_bits() -> None:
    case, whole = Case(), run_local(Case(), 2, 4)[0].params
    setting = case.setting()
    start, rule = (
        LocalState(case.start(), None, 0, 2),
        LocalSgd(setting, case.local(2, "average"), case.rates, local_steps=4),
    )
    machine = Averaging(setting, start, rule)
    drive(machine, Arena(2, picker(1)), setting.rounds, updates=4)
    state = codec.loads(codec.dumps(machine.snapshot()))
    machine = Averaging(setting, state, LocalSgd(setting, case.local(2, "average"), case.rates, local_steps=4))
    drive(machine, Arena(3, picker(2)), setting.rounds)
    assert machine.params.tobytes() == whole.tobytes()


def test_plain_averaging_is_the_outer_sgd_at_rate_one() -> None:
    case = Case()
    plain, _ = run_local(case, 2, 5)
    outer, _ = run_local(case, 2, 5, outer=case.method("sgd", 1.0, penalty=False))
    assert np.abs(plain.params - outer.params).max() < 1e-14
    ahead, _ = run_local(case, 2, 5, outer=case.method("nesterov", 0.7, penalty=False))
    assert np.abs(plain.params - ahead.params).max() > 1e-6


def test_one_shot_averaging_is_the_mean_of_separate_runs() -> None:
    case = Case(size=None, steps=25)
    machine, records = run_local(case, 2, 10**6)
    assert len(records) == 1
    alone = [run_local_alone(case, r) for r in range(2)]
    n = sum(SIZES)
    shares = Shares.of(case.plan, 2)
    sizes = [shares.units(r, 0)[1] for r in range(2)]
    assert np.allclose(machine.params, sum(s * w for s, w in zip(sizes, alone, strict=True)) / n, rtol=1e-12)


def run_local_alone(case: Case, replica: int) -> np.ndarray:
    """Gradient descent on the replica's rows by hand."""
    shares = Shares.of(case.plan, 2)
    units, rows = shares.units(replica, 0)
    X = np.concatenate([case.view.load(int(u[0])).X[u[2] : u[3]] for u in units])
    y = np.concatenate([case.view.load(int(u[0])).y[u[2] : u[3]] for u in units])[:, 0]
    A, w = np.column_stack([X, np.ones(len(X))]), np.zeros(5)
    for _ in range(case.steps or 0):
        grad = 2 * A.T @ (A @ w - y) / rows
        grad[:4] += 2 * case.penalty.l2 * w[:4]
        w = w - case.rate * grad
    return w


def exchanges(case: Case) -> dict:
    server = case.method("sgd", case.rate, penalty=False)
    return {
        "downpour": Downpour(server, 2, 2),
        "fetch seldom": Downpour(server, 2, 6),
        "push seldom": Downpour(server, 6, 2),
        "easgd": Elastic(0.45, 3),
    }


@pytest.mark.parametrize("name", ["downpour", "fetch seldom", "push seldom", "easgd"])
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 4), faults=st.sampled_from([0.0, 0.3]))
@settings(max_examples=5, deadline=None)
def test_every_turn_meets_the_server_once(name: str, seed: int, slots: int, faults: float) -> None:
    case = Case(steps=21)
    machine, records, _ = run_replicas(case, exchanges(case)[name], 3, slots, seed, lose=faults, repeat=faults)
    assert machine.steps == 21
    state = machine.snapshot()
    assert sum(replica.steps for replica in state.replicas) == 63
    assert records[-1].step == 21
    again, _, _ = run_replicas(Case(steps=21), exchanges(case)[name], 3, 1, 0, order=[r.worker for r in records])
    assert again.params.tobytes() == machine.params.tobytes()


@pytest.mark.parametrize(("n_push", "n_fetch"), [(4, 4), (4, 2), (2, 4)])
def test_the_last_push_leaves_no_gradient_behind(n_push: int, n_fetch: int) -> None:
    """21 steps are no multiple of the period: with sgd at rate 1 the server has moved by the sum of all gradients."""
    case = Case(steps=21)
    exchange = Downpour(case.method("sgd", case.rate, penalty=False), n_push, n_fetch)
    machine, _, _ = run_replicas(case, exchange, 2, 2, 0)
    assert all(not replica.pushed.any() for replica in machine.snapshot().replicas)


def test_downpour_with_one_replica_is_sgd() -> None:
    """n_push = n_fetch = 1: the server takes the gradient at its own params."""
    case = Case(steps=20)
    machine, records, _ = run_replicas(case, Downpour(case.method("sgd", penalty=False), 1, 1), 1, 1, 0)
    assert np.abs(machine.params - run_sync(case)).max() < 1e-13
    assert {r.staleness for r in records} == {0}


def test_downpour_pushes_the_sum_of_its_mean_gradients() -> None:
    case = Case(steps=3)
    machine, _, _ = run_replicas(case, Downpour(case.method("sgd", case.rate, penalty=False), 3, 3), 1, 1, 0)
    reference, _ = run_local(Case(steps=3), 1, 3)  # sgd at the local rate: the sum of the same local gradients
    assert np.abs(machine.params - reference.params).max() < 1e-13


def test_elastic_averaging_by_hand() -> None:
    case, alpha = Case(steps=6), 0.3
    machine, _, _ = run_replicas(case, Elastic(alpha, 2), 1, 1, 0)
    x, c = case.start(), case.start()
    for start in (0, 2, 4):
        unit = np.array([0, 0, start, start + 2])
        x = turn(case, x, unit)
        d = alpha * (x - c)
        x, c = x - d, c + d
    assert np.abs(machine.params - c).max() < 1e-14


def turn(case: Case, params: np.ndarray, unit: np.ndarray) -> np.ndarray:
    from bigopt.data.cache import BlockCache
    from bigopt.data.meter import Meter

    work = case.local(1, "replica")
    return work((params, case.rates(int(unit[2]), int(unit[3]))), unit, Meter(BlockCache(10**8))).params


@pytest.mark.parametrize("name", ["downpour", "fetch seldom", "push seldom", "easgd"])
def test_replicas_go_on_from_a_checkpoint(name: str) -> None:
    case = Case(steps=21)
    setting, exchange = case.setting(), exchanges(case)[name]
    machine = Replicas(setting, begin(exchange, case.start(), 2), exchange, case.local(2, "replica"), case.rates)
    drive(machine, Arena(2, picker(3)), setting.rounds, updates=5)
    state = codec.loads(codec.dumps(machine.snapshot()))
    assert isinstance(state, ReplicasState)
    machine = Replicas(case.setting(), state, exchange, case.local(2, "replica"), case.rates)
    drive(machine, Arena(3, picker(4)), setting.rounds)
    assert sum(replica.steps for replica in machine.snapshot().replicas) == 42


def test_all_come_near_the_optimum() -> None:
    case = Case(size=None, rate=0.02, steps=600)
    scale = np.abs(case.optimum()).max()
    for name, exchange in exchanges(case).items():
        machine, _, _ = run_replicas(case, exchange, 2, 2, 1)
        assert np.abs(machine.params - case.optimum()).max() < 0.1 * scale, name
    machine, _ = run_local(case, 2, 10)
    assert np.abs(machine.params - case.optimum()).max() < 0.05 * scale
