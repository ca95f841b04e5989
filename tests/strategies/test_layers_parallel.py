"""MLPs whose layers are cut, without an engine: the unsplit trajectory, equal bits in any order of arrival, fill and
drain."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from arena import SIZES, Arena, drive, picker
from hypothesis import given, settings
from hypothesis import strategies as st

from bigopt.backends.ledger import Ledger, Rounds
from bigopt.core import codec
from bigopt.core.errors import ConfError, DivergedError
from bigopt.data.memory import from_arrays
from bigopt.data.plan import Plan, rows_of
from bigopt.data.view import DataView, Targets
from bigopt.models.build import build_model
from bigopt.models.mlp import MLP
from bigopt.models.penalties import Penalty
from bigopt.optim.build import build_transform
from bigopt.optim.method import FirstOrder
from bigopt.optim.schedules import SCHEDULES
from bigopt.strategies import hybrid, layers_deal, layers_parallel, sync
from bigopt.strategies.base import Blocks, Evaluation, Setting
from bigopt.strategies.layers_deal import dealt
from bigopt.strategies.layers_parallel import Layers
from bigopt.work import GradientSum

CUTS: dict[str, dict[str, Any]] = {
    "units": {"split": "units", "blocks": 2},
    "layers": {"split": "layers", "blocks": 2, "micro_batches": 3},
    "hybrid": {"blocks": 2, "replicas": 2},
}


class Deep:
    """An MLP on six unequal partitions."""

    def __init__(
        self,
        hidden: tuple[int, ...] = (6, 4),
        *,
        activation: str = "tanh",
        classes: int | None = None,
        optimizer: str = "sgd",
        size: int | None = 32,
        lanes: int = 0,
        sampling: str = "permuted",
        weighted: bool = False,
        dtype: str = "float64",
        memory: int = 10**9,
    ) -> None:
        rng = np.random.default_rng(3)
        n = sum(SIZES)
        X = rng.normal(size=(n, 4))
        score = np.tanh(X @ rng.normal(size=(4, 3))) + 0.1 * rng.normal(size=(n, 3))
        y = score[:, :2] if classes is None else np.argmax(score[:, :classes], axis=1)
        weight = rng.uniform(0.5, 2.0, size=n) if weighted else None
        data = from_arrays(X, y, weight, partition_rows=list(SIZES))
        targets = Targets("values") if classes is None else Targets("index", tuple(range(classes)))
        self.view = DataView(data.source, np.cumsum([0, *SIZES]), dtype, targets=targets)
        model = build_model("mlp", features=4, targets=2, classes=classes, hidden=hidden, activation=activation)
        assert isinstance(model, MLP)
        self.model = model
        self.weight = float(n if weight is None else weight.sum())
        self.plan = Plan(np.array(SIZES), size, lanes, 5, sampling)  # type: ignore[arg-type]
        self.penalty = Penalty(0.001)
        self.optimizer, self.memory = optimizer, memory
        self.ledger = Ledger()

    def setting(self, **options: Any) -> Setting:
        layout = self.model.layout
        work = GradientSum(self.model, self.view, self.plan.seed, "float64", 16)
        rate = SCHEDULES["constant"](0.1 if self.optimizer == "sgd" else 0.01)
        slots = options.pop("slots", 2)
        return Setting(
            method=FirstOrder(
                build_transform(self.optimizer),
                rate,
                layout,
                penalty=lambda grad, params: self.penalty.add_gradient(grad, params, layout),
            ),
            plan=self.plan,
            evaluate=lambda kind: Evaluation(work, lambda inputs, root: root),
            penalty=lambda params: self.penalty.value(params, layout),
            total_weight=self.weight,
            rounds=Rounds(self.ledger, 50),
            options=options,
            blocks=lambda: self.blocks(options.get("blocks") or slots, slots),
        )

    def blocks(self, number: int, slots: int) -> Blocks:
        known = {
            "model": self.model,
            "view": self.view,
            "number": number,
            "dtype": "float64",
            "block_rows": 16,
            "device": "cpu",
            "kernels": "numpy",
            "memory": self.memory,
            "slots": slots,
            "penalty": self.penalty,
        }
        return Blocks(**{field.name: known[field.name] for field in fields(Blocks)})

    def sync(self, steps: int) -> sync.Sync:
        setting = self.setting()
        machine = sync.Sync(setting, sync.start(setting, self.start()))
        drive(machine, Arena(1, picker(0)), setting.rounds, updates=steps)
        return machine

    def machine(self, state: Any = None, **options: Any) -> tuple[Layers, Setting]:
        setting = self.setting(**options)
        room = layers_parallel if "split" in options else hybrid
        return room.machine(setting, state or room.start(setting, self.start())), setting

    def run(self, steps: int, slots: int = 2, seed: int = 0, faults: dict[str, float] | None = None, **options: Any):
        machine, setting = self.machine(**options)
        records = drive(machine, Arena(slots, picker(seed), **(faults or {})), setting.rounds, updates=steps)
        return machine, records

    def start(self) -> np.ndarray:
        return self.model.init("glorot_uniform", 1)


@functools.cache
def trajectory(hidden: tuple[int, ...], activation: str, classes: int | None, optimizer: str) -> tuple[Deep, Any]:
    """The whole model after 200 steps."""
    case = Deep(hidden, activation=activation, classes=classes, optimizer=optimizer, lanes=2)
    return case, case.sync(200).params


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("hidden", "activation", "classes", "optimizer"),
    [
        ((5,), "relu", 3, "sgd"),
        ((6, 4), "tanh", None, "adam"),
        ((6, 4, 5), "sigmoid", 3, "adam"),
    ],
)
@pytest.mark.parametrize("other", [False, pytest.param(True, marks=pytest.mark.all)])
def test_the_trajectory_is_that_of_the_whole_model(
    cut: str, hidden: tuple[int, ...], activation: str, classes: int | None, optimizer: str, other: bool
) -> None:
    if other:  # each depth with another activation, task and optimizer too
        activation = {"relu": "tanh", "tanh": "sigmoid", "sigmoid": "relu"}[activation]
        classes, optimizer = None if classes else 3, {"sgd": "adam", "adam": "sgd"}[optimizer]
    case, whole = trajectory(hidden, activation, classes, optimizer)
    machine, records = case.run(200, **CUTS[cut])
    assert np.abs(machine.params - whole).max() <= 1e-10 * np.abs(whole).max()
    assert np.abs(whole - case.start()).max() > 0.1
    assert [record.rows for record in records[:7]] == [32] * 6 + [8]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "more",
    [
        {"weighted": True},
        {"weighted": True, "classes": 3},
        {"size": None},
        {"lanes": 2},
        {"sampling": "subset"},
        {"sampling": "replacement"},
        {"sampling": "bernoulli", "size": 6},
    ],
)
def test_every_sampling_gives_the_batches_of_sync(cut: str, more: dict[str, Any]) -> None:
    case = Deep(**more)
    whole = case.sync(15)
    machine, _ = case.run(15, **CUTS[cut])
    assert np.abs(machine.params - whole.params).max() <= 1e-12 * np.abs(whole.params).max()
    assert machine.epochs == whole.epochs


@pytest.mark.parametrize("cut", CUTS)
def test_losses_are_those_of_sync(cut: str) -> None:
    case = Deep((6, 4, 5), weighted=True)
    setting = case.setting()
    expected = drive(
        sync.Sync(setting, sync.start(setting, case.start())), Arena(1, picker(0)), setting.rounds, updates=9
    )
    _, records = case.run(9, **CUTS[cut])
    assert np.allclose([r.loss for r in records], [r.loss for r in expected], rtol=1e-12)
    assert [(r.step, r.epoch, r.end_of_epoch) for r in records] == [(r.step, r.epoch, r.end_of_epoch) for r in expected]


@pytest.mark.parametrize("cut", CUTS)
def test_without_hidden_layers_too(cut: str) -> None:
    case = Deep(())
    options = {**CUTS[cut], "blocks": 1} if cut == "layers" else CUTS[cut]
    whole = case.sync(10).params
    assert np.abs(case.run(10, **options)[0].params - whole).max() <= 1e-13 * np.abs(whole).max()


@given(
    cut=st.sampled_from(list(CUTS)),
    slots=st.integers(1, 5),
    seed=st.integers(0, 2**16),
    lose=st.sampled_from([0.0, 0.2]),
    repeat=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=12, deadline=None)
def test_any_order_of_arrival_gives_the_same_bits(cut: str, slots: int, seed: int, lose: float, repeat: float) -> None:
    case = Deep((6, 4, 5), classes=3)
    expected = case.run(4, 1, **CUTS[cut])[0].params.tobytes()
    found, _ = case.run(4, slots, seed, {"lose": lose, "repeat": repeat}, **CUTS[cut])
    assert found.params.tobytes() == expected


@pytest.mark.parametrize("cut", CUTS)
def test_a_run_goes_on_with_the_same_bits(cut: str) -> None:
    case = Deep((6, 4, 5), optimizer="adam")
    whole = case.run(12, **CUTS[cut])[0].params
    state = codec.loads(codec.dumps(case.run(5, **CUTS[cut])[0].snapshot()))
    machine, setting = case.machine(state, **CUTS[cut])
    drive(machine, Arena(3, picker(2)), setting.rounds, updates=7)
    assert machine.params.tobytes() == whole.tobytes()


def test_stages_work_at_the_same_time() -> None:
    """Four micro-batches in two stages: fill, both busy, drain."""
    case = Deep((6, 4))
    machine, _ = case.machine(split="layers", blocks=2, micro_batches=4)
    arena = Arena(2, lambda busy: busy[0])
    queues, busy = arena._queues, list[tuple[int, int]]()
    for order in machine.more(2):
        arena.submit(order)
    assert (len(queues[0]), len(queues[1])) == (4, 0)  # fill: only the first stage has work
    while arena.pending:
        busy.append((len(queues[0]), len(queues[1])))
        # both stages finish what is first in their queues
        arrivals = []
        for slot in [k for k in (0, 1) if queues[k]]:
            arena._pick = lambda _, slot=slot: slot  # type: ignore[misc]
            arrivals.append(arena.wait())
        for arrival in arrivals:
            for order in machine.handle(arrival):
                arena.submit(order)
    together = sum(a > 0 and b > 0 for a, b in busy)
    # stage 1 has 4 forward and 4 backward turns, stage 2 four that are both: 12 turns in 8 + 1 or 2 ticks
    assert together >= 3
    assert len(busy) <= 10
    assert machine.advance() is not None


def test_one_micro_batch_never_overlaps() -> None:
    case = Deep((6, 4))
    machine, _ = case.machine(split="layers", blocks=2, micro_batches=1)
    orders = machine.more(2)
    arena = Arena(2, picker(0))
    for _ in range(3):
        assert len(orders) == 1
        arena.submit(orders[0])
        orders = machine.handle(arena.wait())
    assert orders == []
    assert machine.advance() is not None


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("hidden", [(6,), (6, 4), (6, 4, 5)])
@pytest.mark.parametrize(("slots", "classes"), [(1, 3), (2, None), (4, 3)])
def test_what_a_step_sends_is_what_describe_says(
    cut: str, hidden: tuple[int, ...], slots: int, classes: int | None
) -> None:
    case = Deep(hidden, classes=classes, size=24)
    machine, _ = case.machine(**CUTS[cut])
    arena = Arena(slots, picker(0))
    down, up, params, orders = 0, 0, dict.fromkeys(range(slots), 0), 0
    for order in machine.more(slots):
        arena.submit(order)
    while arena.pending:
        arrival = arena.wait()
        order = arrival.order
        carried = order.work.carried
        for name, array in zip(carried, order.inputs, strict=False):
            down += array.nbytes if name not in ("units", "bounds") else 0
        params[order.slot] += sum(p.nbytes for p in order.inputs[len(carried) :])
        for value in (arrival.nodes or {}).values():
            up += value.out.nbytes + value.grad.nbytes + value.y.nbytes
        orders += 1
        for more in machine.handle(arrival):
            arena.submit(more)
    assert machine.advance() is not None
    found = machine._deal.traffic(24, slots, value_bytes=8, param_bytes=8)
    assert (down + sum(params.values()), up, orders) == (found.down, found.up, found.orders)
    assert case.ledger.rounds == found.rounds
    if cut != "hybrid":
        assert sum(params.values()) == 8 * case.model.layout.size


def test_a_worker_without_parameters_is_sent_them() -> None:
    case = Deep((6, 4, 5))
    expected = case.run(6, **CUTS["units"])[0].params.tobytes()
    machine, _ = case.machine(**CUTS["units"])
    arena = Arena(2, picker(0))
    for order in machine.more(2):
        arena.submit(order)
    while machine.steps < 6:
        arena._blocks.kept.drop()  # as if every order met a new process
        for order in machine.handle(arena.wait()):
            arena.submit(order)
        while machine.advance() is not None:
            pass
        for order in machine.more(2):
            arena.submit(order)
    assert machine.params.tobytes() == expected
    assert case.ledger.rounds > 6 * 4 * 2


def test_a_batch_is_dealt_evenly_and_drawn_rows_by_units() -> None:
    plan = Plan(np.array(SIZES), 50, 0, 5)
    parts = dealt(plan.units(0, 1), 4)
    assert [rows_of(part) for part in parts] == [12, 13, 12, 13]
    drawn = Plan(np.array(SIZES), 50, 0, 5, "subset").units(0, 1)
    assert np.concatenate(dealt(drawn, 4)).tolist() == drawn.tolist()


def test_more_micro_batches_than_rows_in_the_last_batch() -> None:
    case = Deep((5,), size=66)  # 200 rows: the last batch has 2
    whole = case.sync(4).params
    found, records = case.run(4, split="layers", blocks=2, micro_batches=5)
    assert records[3].rows == 2
    assert np.abs(found.params - whole).max() <= 1e-13 * np.abs(whole).max()


def test_float32_blocks() -> None:
    case = Deep((6, 4), dtype="float32")
    whole = case.sync(10).params
    for options in CUTS.values():
        found = case.run(10, **options)[0].params
        assert 0 < np.abs(found - whole).max() <= 1e-5 * np.abs(whole).max()


def test_null_takes_what_there_is() -> None:
    case = Deep((3, 2))

    def cut(room: Any, **options: Any) -> Any:
        setting = case.setting(**options)
        return room.deal(setting.blocks(), setting.options, setting.plan)

    assert len(cut(layers_deal, split="layers", slots=9).stages) == 3
    assert cut(layers_deal, split="layers", slots=9).walks == 6
    assert {s.parts for s in cut(layers_deal, slots=9).stages} == {2}
    assert cut(hybrid, blocks=2, slots=7).walks == 3


def test_refused_with_numbers() -> None:
    with pytest.raises(ConfError, match="4 stages of 3 layers"):
        Deep((6, 4)).machine(split="layers", blocks=4)
    with pytest.raises(ConfError, match="5 pieces of 4 units of layer 3"):
        Deep((6, 4)).machine(split="units", blocks=5)
    with pytest.raises(ConfError, match="a batch of 32 rows in 33 parts"):
        Deep((6, 4)).machine(split="layers", blocks=2, micro_batches=33)
    with pytest.raises(ConfError, match="a batch of 3 rows in 4 parts"):
        Deep((6, 4, 5), size=3).machine(blocks=2, replicas=2)
    with pytest.raises(ConfError, match="the activations of 200 rows that stages exchange take 1.28 MB on the driver"):
        Deep((6, 400), size=None, memory=1000).machine(split="units", blocks=2)


@pytest.mark.parametrize("cut", CUTS)
def test_a_divergence_names_the_step_and_keeps_the_state(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Deep((6, 4), activation="relu")
    huge = 1e200 * (-1.0) ** np.arange(case.model.layout.size)
    monkeypatch.setattr(case, "start", lambda: huge)
    machine, setting = case.machine(**CUTS[cut])
    with pytest.raises(DivergedError, match="the loss is (inf|nan)"):
        drive(machine, Arena(2, picker(0)), setting.rounds, updates=1)
    assert machine.steps == 0
    assert np.isfinite(machine.params).all()
