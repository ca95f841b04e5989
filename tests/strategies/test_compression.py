"""Compressed gradients under sync: equal bits with any workers, faults and resumes; residuals by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arena import DTYPE, SIZES, Arena, Case, drive, picker
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import MODELS, datasets, files, run, run_on

from bigopt.config import load_conf
from bigopt.core import codec
from bigopt.core.compress import COMPRESSORS, compressor
from bigopt.core.errors import ConfError, DataError, DivergedError
from bigopt.data.cache import BlockCache
from bigopt.data.shares import Shares
from bigopt.describe import describe
from bigopt.fit import resume
from bigopt.strategies import asynchronous, backup, compressed, sync
from bigopt.strategies.base import Setting
from bigopt.strategies.compressed import Compressed
from bigopt.strategies.decoding import CompressedState
from bigopt.strategies.exchanges import Downpour
from bigopt.strategies.gates import Update
from bigopt.strategies.replicas import Replicas
from bigopt.strategies.replicas import begin as begin_replicas
from bigopt.work import Arrival, GradientSum, execute
from bigopt.work_compressed import CompressedSum

KIND, SOFTMAX = MODELS["softmax"]
SGD = [*SOFTMAX, "optimizer.name=momentum", "schedule.learning_rate=0.02", "batch.size=40"]
NAMES = list(COMPRESSORS)


def setting(case: Case, name: str = "top_k", *, fraction: float = 0.4, feedback: bool = True, p: int = 3) -> Setting:
    """A setting with compressed gradients; every call is another run."""
    tokens = iter(range(100))

    def made(replicas: int) -> CompressedSum:
        code = compressor(name, (0, 4, 5), fraction=fraction, seed=5, feedback=feedback)
        gradient = GradientSum(case.model, case.view, case.plan.seed, DTYPE, 16)
        shares = Shares.of(case.plan, replicas)
        return CompressedSum(gradient, shares, case.weight / sum(SIZES), code, feedback, f"{id(tokens)}-{next(tokens)}")

    return replace(case.setting(), compressed=made, options={"replicas": p})


def begin(case: Case, name: str = "top_k", **more: Any) -> tuple[Compressed, Setting]:
    made = setting(case, name, **more)
    return compressed.machine(made, compressed.start(made, case.start())), made


def whole(case: Case, name: str = "top_k", slots: int = 2, seed: int = 0, session: Any = None, **more: Any) -> bytes:
    machine, made = begin(case, name, **more)
    records = drive(machine, session or Arena(slots, picker(seed)), made.rounds, updates=case.steps)
    assert [r.step for r in records] == list(range(1, (case.steps or 0) + 1))
    return machine.params.tobytes()


class Forgetful(Arena):
    """An arena whose workers lose what they keep, before some of their orders."""

    def __init__(self, *args: Any, forget: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self._forget = forget
        self.forgot = 0

    def wait(self) -> Any:
        if self._chance.random() < self._forget:
            self._blocks.kept.drop()
            self.forgot += 1
        return super().wait()


@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_workers_order_or_faults(name: str) -> None:
    case = Case(optimizer="momentum", steps=30)
    found = {whole(case, name, slots, seed) for slots, seed in ((1, 0), (2, 1), (3, 2), (5, 3))}
    found.add(whole(case, name, session=Arena(2, picker(4), lose=0.3, repeat=0.3)))
    session = Forgetful(3, picker(5), forget=0.2, lose=0.1, repeat=0.1)
    found.add(whole(case, name, session=session))
    assert session.forgot > 5
    assert len(found) == 1
    assert found != {whole(case, name, p=2)}  # another number of replicas is another run
    assert found != {whole(case, name, feedback=False)}
    assert whole(case, name, feedback=False) == whole(case, name, feedback=False, slots=3, seed=7)


@pytest.mark.parametrize("name", ["top_k", "sign"])
def test_commits_catch_ups_and_pieces_of_them_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(optimizer="momentum", steps=30)
    plain = whole(case, name)
    monkeypatch.setattr(compressed, "_MOST_STEPS", 7)
    assert whole(case, name) == plain
    monkeypatch.setattr(compressed, "_CHUNK", 80)  # two steps in an order
    session = Forgetful(2, picker(1), forget=0.3)
    assert (whole(case, name, session=session), session.forgot > 5) == (plain, True)
    monkeypatch.setattr(compressed, "_MOST_STEPS", 1)
    assert whole(case, name) == plain


def test_the_residual_stays_away_until_the_driver_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes back with every seventh step, and with those after a worker lost it."""
    monkeypatch.setattr(compressed, "_MOST_STEPS", 7)
    case = Case(steps=21)
    machine, made = begin(case)
    session, seen = Arena(2, picker(0)), list[tuple[int, int]]()
    execute_order = session.wait

    def wait() -> Any:
        arrival = execute_order()
        for value in arrival.nodes.values():
            seen.extend((machine.steps, part.number) for part in value.parts if part.residual is not None)
            seen.extend((machine.steps, part.number) for part in value.parts if part.code is None)
        return arrival

    session.wait = wait  # type: ignore[method-assign]
    drive(machine, session, made.rounds, updates=case.steps)
    assert sorted(seen) == [(step, r) for step in (6, 13, 20) for r in range(3)]
    assert made.rounds.ledger.rounds == 21


def test_one_round_of_catch_up_a_loss() -> None:
    case = Case(steps=30)
    machine, made = begin(case)
    session = Arena(2, picker(0))
    drive(machine, session, made.rounds, updates=10)
    session._blocks.kept.drop()
    before = made.rounds.ledger.rounds
    drive(machine, session, made.rounds, updates=20)  # the orders of step 11 were not sent yet
    assert machine.steps == 30
    assert made.rounds.ledger.rounds == before + 20 + 3  # each of the three replicas ran again by itself, once


def by_hand(case: Case, name: str, p: int, *, feedback: bool) -> np.ndarray:
    """Plain SGD, replica by replica, from the definition."""
    code = compressor(name, (0, 4, 5), fraction=0.4, seed=5, feedback=feedback)
    shares, w = Shares.of(case.plan, p), np.zeros(5)
    blocks = [case.view.load(m) for m in range(len(SIZES))]
    orders = {}
    residuals = [np.zeros(5) for _ in range(p)]
    for step in range(case.steps or 0):
        sent, total = np.zeros(5), 0
        for r in range(p):
            units, rows = shares.units(r, step)
            g = np.zeros(5)
            for m, epoch, a, b in units:
                from bigopt.data.plan import draw

                order = orders.setdefault((m, epoch), draw(case.plan.seed, np.array([m, epoch, a, b]), SIZES[m]))
                X, y = blocks[m].X[order[a:b]], blocks[m].y[order[a:b], 0]
                A = np.column_stack([X, np.ones(len(X))])
                g += 2 * A.T @ (A @ w - y)
            u = g / rows + residuals[r]
            back = code.decode(code.encode(u, r, step), r, step)
            residuals[r] = u - back if feedback else residuals[r]
            sent, total = sent + rows * back, total + rows
        grad = sent / total
        grad[:4] += 2 * case.penalty.l2 * w[:4]
        w = w - case.rate * grad
    return w


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_the_definition_says(name: str, feedback: bool) -> None:
    case = Case(steps=25)
    found = np.frombuffer(whole(case, name, feedback=feedback))
    assert np.abs(found - by_hand(case, name, 3, feedback=feedback)).max() < 1e-12


@pytest.mark.parametrize("size", [32, None])
@pytest.mark.parametrize("weighted", [False, True])
def test_all_entries_are_the_uncompressed_gradient(size: int | None, weighted: bool) -> None:
    case = Case(size=size, weighted=weighted, optimizer="momentum", steps=30)
    plain = case.setting()
    machine = sync.Sync(plain, sync.start(plain, case.start()))
    records = drive(machine, Arena(1, picker(0)), plain.rounds, updates=case.steps)
    other, made = begin(case, fraction=1.0, p=1 if size is None else 3)
    found = drive(other, Arena(2, picker(0)), made.rounds, updates=case.steps)
    assert np.abs(other.params - machine.params).max() < 1e-13
    for a, b in zip(found, records, strict=True):
        assert (a.step, a.epoch, a.end_of_epoch, a.rows, a.staleness) == (b.step, b.epoch, b.end_of_epoch, b.rows, 0)
        assert (a.loss, a.grad_norm, a.learning_rate) == pytest.approx((b.loss, b.grad_norm, b.learning_rate))
    assert other.epochs == machine.epochs


@pytest.mark.parametrize("sampling", ["subset", "bernoulli", "replacement"])
def test_batches_that_are_drawn_anew(sampling: str) -> None:
    case = Case(sampling=sampling, steps=60, rate=0.05)
    found = whole(case, fraction=0.4)
    assert found == whole(case, fraction=0.4, slots=3, seed=3)
    assert np.abs(np.frombuffer(found) - case.optimum()).max() < 0.5


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_machine_goes_on_from_any_step(name: str, feedback: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_MOST_STEPS", 6)
    case = Case(optimizer="adam", steps=20)
    plain = whole(case, name, feedback=feedback)
    for stop in (1, 5, 6, 7, 15):
        machine, made = begin(case, name, feedback=feedback)
        drive(machine, Arena(2, picker(3)), made.rounds, updates=stop)
        state = codec.loads(codec.dumps(machine.snapshot()))
        assert isinstance(state, CompressedState)
        assert (state.number, state.committed) == (3, 6 * (stop // 6) if feedback else stop)
        made = setting(case, name, feedback=feedback)
        machine = compressed.machine(made, state)
        assert machine.steps == stop
        drive(machine, Arena(3, picker(4)), made.rounds, updates=20 - stop)
        assert machine.params.tobytes() == plain, stop


def test_a_snapshot_stays_as_it_is() -> None:
    case = Case(optimizer="adam", steps=12)
    machine, made = begin(case)
    drive(machine, Arena(2, picker(0)), made.rounds, updates=5)
    state = machine.snapshot()
    before = b"".join(codec.dumps(state))
    drive(machine, Arena(2, picker(0)), made.rounds, updates=case.steps)
    assert b"".join(codec.dumps(state)) == before


def test_an_order_that_comes_twice_finds_what_it_began_with() -> None:
    case = Case()
    made = setting(case)
    assert made.compressed is not None
    work, params, arena = made.compressed(3), case.start(), Arena(1, picker(0))
    for step in range(3):
        units = np.array([[0, step, step, step + 1]])
        first, _ = execute(arena._blocks, work, (params,), 1, 0, units)
        again, _ = execute(arena._blocks, work, (params,), 1, 0, units)
        assert b"".join(codec.dumps(first[0, 0])) == b"".join(codec.dumps(again[0, 0]))
    late, _ = execute(arena._blocks, work, (params,), 1, 0, np.array([[0, 1, 1, 2]]))
    assert type(late[0, 0].parts[0]).__name__ == "Missing"
    other, _ = execute(arena._blocks, replace(work, run="other"), (params,), 1, 0, np.array([[0, 3, 3, 4]]))
    assert type(other[0, 0].parts[0]).__name__ == "Missing"


@pytest.mark.parametrize("name", ["top_k", "sign"])
def test_without_feedback_it_ends_elsewhere(name: str) -> None:
    """Full batches, so that nothing but compression can be to blame."""
    case = Case(size=None, rate=0.05, steps=150)
    best = case.optimum()
    fed = np.frombuffer(whole(case, name, fraction=0.2, p=1))
    alone = np.frombuffer(whole(case, name, fraction=0.2, p=1, feedback=False))
    assert np.abs(fed - best).max() < 0.05
    if name == "sign":
        assert np.abs(alone - best).max() > 2 * np.abs(fed - best).max()


def test_divergence_is_named_and_the_state_stays_finite() -> None:
    case = Case(rate=1e200, steps=60)
    machine, made = begin(case, fraction=0.2)
    with pytest.raises(DivergedError, match="loss"):
        drive(machine, Arena(2, picker(0)), made.rounds, updates=case.steps)
    assert np.isfinite(machine.params).all()


@pytest.mark.parametrize("name", ["int8", "random_k"])
def test_spare_copies_change_nothing(name: str) -> None:
    """Without error feedback, which has no place for a residual of several holders."""
    case = Case(optimizer="momentum", steps=30)
    plain = whole(case, name, feedback=False)
    for slots, spares, faults in ((1, 1, 0.0), (3, 1, 0.0), (4, 2, 0.0), (3, 1, 0.2)):
        made = setting(case, name, feedback=False)
        made = replace(made, options={**made.options, "spares": spares})
        machine = backup.compressed_machine(made, compressed.start(made, case.start()))
        session = Arena(slots, picker(slots), lose=faults, repeat=faults)
        drive(machine, session, made.rounds, updates=case.steps)
        assert machine.params.tobytes() == plain
        assert slots == 1 or made.rounds.ledger.duplicates > 0


def mirrored(case: Case, name: str, session: Any, spares: int, log: list[int] | None = None) -> tuple[bytes, Any]:
    made = setting(case, name)
    made = replace(made, options={**made.options, "spares": spares}, slots=session.slots)
    machine = backup.compressed_machine(made, compressed.start(made, case.start()))
    drive(machine, session, made.rounds, updates=case.steps)
    return machine.params.tobytes(), made.rounds.ledger


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    slots=st.integers(1, 9),
    spares=st.integers(1, 2),
    seed=st.integers(0, 99),
    faults=st.sampled_from([0.0, 0.1]),
    forget=st.sampled_from([0.0, 0.1]),
    every=st.sampled_from([3, 2000]),
)
def test_mirrors_of_a_residual_have_the_bits_of_sync(
    name: str, slots: int, spares: int, seed: int, faults: float, forget: float, every: int
) -> None:
    """Whoever of a group's holders answers first, dies, forgets, or comes late."""
    case = Case(optimizer="momentum", steps=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "_MOST_STEPS", every)
        session = Forgetful(slots, picker(seed), forget=forget, lose=faults, repeat=faults)
        found, ledger = mirrored(case, name, session, spares)
    assert (ledger.accepted, ledger.accepted >= 12 * 3) == (ledger.planned, True)
    assert found == whole(case, name)


class Apart(Arena):
    """Slots that are processes: what one keeps another does not have; some are slow."""

    def __init__(self, slots: int, slow: tuple[int, ...] = ()) -> None:
        def pick(busy: list[int]) -> int:
            self.turn += 1
            prompt = [slot for slot in busy if slot not in slow]
            return busy[0] if not prompt or self.turn % 50 == 0 else min(prompt, key=lambda slot: self.done[slot])

        super().__init__(slots, pick)
        self.turn = 0
        self.done = dict.fromkeys(range(slots), 0)
        self._each = [self._blocks, *(BlockCache(10**8) for _ in range(slots - 1))]

    def dies(self, slot: int) -> None:
        self._each[slot].kept.drop()

    def wait(self) -> Any:
        busy = [slot for slot, queue in enumerate(self._queues) if queue]
        slot = self._pick(busy)
        order = self._queues[slot].popleft()
        self.done[slot] += 1
        nodes, stats = execute(self._each[slot], order.work, order.inputs, order.leaves, order.start, order.units)
        return Arrival(order, nodes, stats)


def test_a_slow_holder_of_a_residual_delays_nobody() -> None:
    """Six workers, three groups with a spare each, one worker slow: no group is caught up, and few orders wait."""
    case = Case(steps=120)
    session = Apart(6, slow=(1,))
    found, ledger = mirrored(case, "top_k", session, 1)
    assert ledger.rounds == 120  # not one round more: the spare of the slow one had the residual
    assert session.done[1] < 40
    assert all(session.done[slot] > 100 for slot in (0, 2, 3, 4, 5))
    assert found == whole(case, "top_k")


def test_a_spare_takes_over_from_a_dead_holder_without_a_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the dead one's place gets the residual with the step after the next commit."""
    monkeypatch.setattr(compressed, "_MOST_STEPS", 20)
    case = Case(steps=60)
    made = setting(case)
    made = replace(made, options={**made.options, "spares": 1}, slots=6)
    machine = backup.compressed_machine(made, compressed.start(made, case.start()))
    session = Apart(6)
    drive(machine, session, made.rounds, updates=30)
    session.dies(0)
    drive(machine, session, made.rounds, updates=30)
    session.dies(3)  # the spare of the same group: by now the first has it again
    case = Case(steps=90)
    drive(machine, session, made.rounds, updates=30)
    assert machine.params.tobytes() == whole(case, "top_k")
    assert made.rounds.ledger.rounds == 90


def asynchronous_run(
    case: Case, slots: int, seed: int, name: str = "top_k", replay: list[Update] | None = None, **more: Any
) -> tuple[asynchronous.Async, list[Update]]:
    log = list[Update]()
    made = replace(setting(case, name), log=log.append, replay=replay, slots=slots)
    machine = asynchronous.machine(made, asynchronous.start(made, case.start()))
    session = Forgetful(slots, picker(seed), **{"forget": 0.0, **more})
    drive(machine, session, made.rounds)
    assert machine.steps == case.steps
    return machine, log


@pytest.mark.parametrize("name", NAMES)
def test_async_with_one_worker_is_sync_with_one_replica(name: str) -> None:
    case = Case(optimizer="momentum", steps=30)
    machine, log = asynchronous_run(case, 1, 0, name)
    assert machine.params.tobytes() == whole(case, name, p=1)
    assert {number - update.version for number, update in enumerate(log)} == {0}


@pytest.mark.parametrize("name", ["top_k", "int8"])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_an_asynchronous_run_is_repeated_on_any_number_of_workers(name: str, slots: int) -> None:
    case = Case(optimizer="momentum", steps=40)
    first, log = asynchronous_run(case, 3, 5, name, repeat=0.3)
    assert max(number - update.version for number, update in enumerate(log)) >= 1
    again, same = asynchronous_run(case, slots, 8, name, replay=log)
    assert again.params.tobytes() == first.params.tobytes()
    assert same == log  # the owner of each residual too
    assert again.params.tobytes() != asynchronous_run(case, 2, 5, name)[0].params.tobytes()


def test_an_asynchronous_run_survives_what_workers_forget() -> None:
    case = Case(steps=300, rate=0.02)
    machine, log = asynchronous_run(case, 3, 1, forget=0.1, lose=0.1, repeat=0.1)
    assert sorted(update.ticket for update in log) == list(range(300))
    assert np.abs(machine.params - case.optimum()).max() < 0.3
    assert all(residual.vector is not None for residual in machine.snapshot().residuals)


def test_an_asynchronous_run_goes_on_with_its_residuals() -> None:
    case = Case(steps=300, rate=0.02)
    made = replace(setting(case), slots=2)
    machine = asynchronous.machine(made, asynchronous.start(made, case.start()))
    drive(machine, Arena(2, picker(1)), made.rounds, updates=220)
    state = codec.loads(codec.dumps(machine.snapshot()))
    assert [residual.version > 0 for residual in state.residuals] == [True, True]
    made = replace(setting(case), slots=2)
    machine = asynchronous.machine(made, state)
    drive(machine, Arena(2, picker(2)), made.rounds)
    assert machine.steps == 300
    assert np.abs(machine.params - case.optimum()).max() < 0.3


def downpour(
    case: Case, slots: int, seed: int, name: str = "top_k", order: list[int] | None = None, **more: Any
) -> tuple[Replicas, list[int]]:
    made = setting(case, name, fraction=more.pop("fraction", 0.4)) if name else case.setting()
    exchange = Downpour(case.method("sgd", case.rate, penalty=False), 3, 3)
    machine = Replicas(
        made, begin_replicas(exchange, case.start(), 2), exchange, case.local(2, "replica"), case.rates, order=order
    )
    records = drive(machine, Forgetful(slots, picker(seed), **{"forget": 0.0, **more}), made.rounds)
    assert machine.steps == case.steps
    return machine, [record.worker for record in records]


@pytest.mark.parametrize("name", NAMES)
def test_pushes_are_compressed_and_the_run_is_repeated(name: str) -> None:
    case = Case(steps=31)
    machine, order = downpour(case, 2, 3, name, repeat=0.3, lose=0.2)
    again, _ = downpour(case, 1, 0, name, order=order)
    assert again.params.tobytes() == machine.params.tobytes()
    plain, _ = downpour(case, 1, 0, "", order=order)
    assert np.abs(plain.params - machine.params).max() > 1e-6


def test_whole_pushes_are_those_of_downpour() -> None:
    """Up to the last turn: who has no turn left fetches no more either way."""
    case = Case(steps=30)
    machine, order = downpour(case, 2, 3, fraction=1.0)
    plain, _ = downpour(case, 1, 0, "", order=order)
    assert np.abs(plain.params - machine.params).max() < 1e-14


def test_pushes_survive_what_workers_forget_and_a_resume() -> None:
    case = Case(steps=400, rate=0.02)
    machine, _ = downpour(case, 3, 1, forget=0.1, lose=0.1, repeat=0.1)
    assert np.abs(machine.params - case.optimum()).max() < 0.3
    state = codec.loads(codec.dumps(machine.snapshot()))
    assert [residual.version > 100 for residual in state.residuals] == [True, True]
    more = Case(steps=430, rate=0.02)
    made, exchange = setting(more), Downpour(more.method("sgd", more.rate, penalty=False), 3, 3)
    machine = Replicas(made, state, exchange, more.local(2, "replica"), more.rates)
    drive(machine, Arena(2, picker(2)), made.rounds)
    assert machine.steps == 430
    assert np.abs(machine.params - case.optimum()).max() < 0.3


def train(tmp: Path, *keys: str, name: str = "top_k") -> dict[str, Any]:
    tmp.mkdir(exist_ok=True)
    fraction = [f"strategy.compression.fraction={0.2}"] if name in ("top_k", "random_k") else []
    return run(tmp, KIND, *SGD, f"strategy.compression.name={name}", *fraction, *keys)


def test_a_run_from_a_conf(tmp_path: Path) -> None:
    import json

    plain = run(tmp_path, KIND, *SGD, "stop.epochs=2", "backend.workers=2")
    for name in ("top_k", "int8"):
        found = [
            train(tmp_path, f"backend.workers={k}", "strategy.replicas=2", "stop.epochs=2", name=name) for k in (1, 3)
        ]
        assert len({result["params_sha256"] for result in found}) == 1
        assert found[0]["loss"] < 1.1 * plain["loss"]
        ledger = json.loads((Path(found[0]["run"]) / "result.json").read_text())["ledger"]
        assert ledger["bytes_uncoded"] == found[0]["steps"] * 2 * 24 * 8
        assert 0 < ledger["bytes_codes"] < ledger["bytes_uncoded"] / 3
        conf = load_conf([Path(found[0]["run"]) / "conf.yml"], [])
        said = describe(conf, datasets(KIND))
        assert said["round"]["bytes_up"] * found[0]["steps"] == ledger["bytes_codes"]
        assert any(line.startswith(f"compression {name}: ") for line in said["lines"])
    one, two = (
        train(tmp_path, f"backend.workers={k}", "stop.epochs=1") for k in (1, 2)
    )  # replicas: the workers at the start
    assert one["params_sha256"] != two["params_sha256"]
    assert found[1]["rounds"] == plain["rounds"]


@pytest.mark.parametrize("name", ["top_k"])
def test_a_run_that_was_cut_goes_on_elsewhere(tmp_path: Path, name: str) -> None:
    keys = [*SGD, f"strategy.compression.name={name}", "strategy.replicas=2", "stop.epochs=4"]
    data = files(tmp_path, KIND, "parquet")
    whole_run = run_on(data, tmp_path / "whole", *keys, "backend.workers=2")
    part = run_on(data, tmp_path / "part", *keys, "backend.workers=3", "stop.steps=21", "checkpoint.every_steps=5")
    for old in sorted((Path(part["run"]) / "checkpoints").glob("step-*.npz"))[-1:]:
        old.unlink()  # from the one before the last: a crash
    rest = resume(Path(part["run"]), ["stop.epochs=4", "backend.workers=1"])
    assert rest["params_sha256"] == whole_run["params_sha256"]
    assert rest["steps"] == whole_run["steps"]


STRATEGIES = {
    "async": ["strategy.compression.name=top_k", "strategy.compression.fraction=0.3"],
    "ssp": ["strategy.compression.name=sign", "strategy.bound=2"],
    "downpour": ["strategy.compression.name=int8", "strategy.replicas=2"],
    "backup": ["strategy.compression.name=int8", "strategy.replicas=2"],
}


@pytest.mark.all
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_other_strategies_from_a_conf(tmp_path: Path, name: str) -> None:
    """They learn what they learn without compression, and are repeated from their log and from a checkpoint."""
    sgd = ["optimizer.name=sgd", "schedule.learning_rate=0.1", "batch.size=40", "stop.epochs=3", "backend.workers=2"]
    common = [*SOFTMAX, *sgd, f"strategy.name={name}"]
    data = files(tmp_path, KIND, "parquet")
    plain = run_on(data, tmp_path / "plain", *common)
    found = run_on(data, tmp_path / "coded", *common, *STRATEGIES[name], "checkpoint.every_steps=10")
    assert found["steps"] == plain["steps"]
    assert found["loss"] < 1.2 * plain["loss"]
    assert found["params_sha256"] != plain["params_sha256"]
    if name != "backup":
        log = f"strategy.replay={Path(found['run']) / 'updates.csv'}"
        again = run_on(data, tmp_path / "again", *common, *STRATEGIES[name], log)
        assert again["params_sha256"] == found["params_sha256"]
    newest = max((Path(found["run"]) / "checkpoints").glob("step-*.npz"))
    newest.unlink()
    rest = resume(Path(found["run"]), ["backend.workers=3"])
    assert (rest["steps"], rest["loss"] < 1.2 * plain["loss"]) == (found["steps"], True)
    assert name != "backup" or rest["params_sha256"] == found["params_sha256"]


def test_what_compression_does_not_go_with(tmp_path: Path) -> None:
    on = "strategy.compression.name=top_k"
    for keys, said in (
        (["optimizer.name=lbfgs"], "methods of one gradient a step"),
        (["optimizer.name=gd", "schedule.name=backtracking"], "methods of one gradient a step"),
        (["model.backprop=driver"], "rows are sent, not gradients"),
        (["batch.growth=2", "batch.size=10", "optimizer.name=sgd"], "batch.growth"),
        (["run.on_divergence=halve_rate"], "at the rate they were made with"),
        (["strategy.name=downpour", "strategy.n_push=2"], "n_push is 2 and n_fetch 5"),
        (["strategy.name=downpour", "strategy.shards_on=workers", "backend.name=dask"], "sends none there"),
        (["strategy.name=local_sgd"], "strategy.compression.name is not used by strategy 'local_sgd'"),
    ):
        with pytest.raises(ConfError, match=said):
            run(tmp_path, KIND, *SOFTMAX, on, *keys)
    with pytest.raises(ConfError, match="does not go with compressed"):
        run(tmp_path, "numbers", "model.name=mlp", "model.hidden=[4]", "model.batchnorm=true", on)
    with pytest.raises((ConfError, DataError), match="replicas share batches"):
        run(tmp_path, KIND, *SGD, on, "strategy.replicas=41")
