"""A sharded parameter server gives the bits of one server; what needs the whole vector is refused by name."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from arena import Arena, Case, drive, picker
from problems import MODELS, files, run, run_on

from bigopt.config.names import LAYERWISE
from bigopt.core import codec, compiled
from bigopt.core.errors import ConfError, DivergedError
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums
from bigopt.fit import resume
from bigopt.optim.build import build_transform
from bigopt.optim.fused import fused
from bigopt.optim.method import FirstOrder
from bigopt.optim.schedules import SCHEDULES
from bigopt.optim.table import OPTIMIZERS
from bigopt.strategies.exchanges import Downpour
from bigopt.strategies.replicas import Replicas, begin
from bigopt.strategies.shards import Sharded, ShardsState, bounds, piece, sharded

LAYOUT = Layout((Block("a.weight", (7, 5), True, 7, 5), Block("a.bias", (5,), False), Block("b.weight", (5, 3), True)))
KIND, SOFTMAX = MODELS["softmax"]
KEYS = [*SOFTMAX, "batch.size=40", "stop.epochs=3", "backend.workers=2", "strategy.name=downpour"]
KEYS += ["schedule.learning_rate=0.02", "strategy.replicas=2", "strategy.n_push=3", "strategy.n_fetch=3"]


ELEMENTWISE = [name for name in OPTIMIZERS if name not in LAYERWISE]


def method(name: str, average: bool | float = False, *, compile_: bool = False) -> FirstOrder:
    transform = build_transform(name)
    if compile_:
        transform = fused(transform)
    return FirstOrder(transform, SCHEDULES["constant"](0.05), LAYOUT, average=average)


def walk(server, gradients: np.ndarray) -> tuple[np.ndarray, object]:
    state, _ = server.start(np.linspace(-1.0, 1.0, LAYOUT.size))
    for grad in gradients:
        state, step = server.tell(state, Sums(grad.copy(), 0.0, 1.0, 1), 1.0, 0.0)
        assert step.params.tobytes() == server.ask(state).params.tobytes()
    return server.result_params(state), state


def test_pieces_cover_the_vector_and_keep_what_is_penalised() -> None:
    for shards in (1, 2, 3, 7, LAYOUT.size):
        cuts = bounds(LAYOUT.size, shards)
        lengths = np.diff(cuts)
        assert (cuts[0], cuts[-1]) == (0, LAYOUT.size)
        assert lengths.min() >= 1
        assert lengths.max() - lengths.min() <= 1
        masks = [piece(LAYOUT, a, b).penalized for a, b in itertools.pairwise(cuts)]
        assert np.concatenate(masks).tolist() == LAYOUT.penalized.tolist()


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shards", [2, 3, 11])
def test_shards_have_the_bits_of_one_server(name: str, shards: int) -> None:
    gradients = np.random.default_rng(1).normal(size=(6, LAYOUT.size))
    one, _ = walk(method(name), gradients)
    several, state = walk(Sharded(method(name), shards), gradients)
    assert several.tobytes() == one.tobytes()
    assert isinstance(state, ShardsState)
    assert {shard.step for shard in state.shards} == {6}
    assert codec.loads(codec.dumps(state)).shards[1].params.tobytes() == state.shards[1].params.tobytes()


@pytest.mark.parametrize("average", [True, 0.9])
def test_averages_too(average: bool | float) -> None:
    gradients = np.random.default_rng(2).normal(size=(5, LAYOUT.size))
    one, _ = walk(method("adam", average), gradients)
    several, _ = walk(Sharded(method("adam", average), 4), gradients)
    assert several.tobytes() == one.tobytes()


def test_a_gradient_that_is_not_finite_changes_no_shard() -> None:
    server = Sharded(method("adagrad"), 3)
    _, state = walk(server, np.ones((2, LAYOUT.size)))
    before = b"".join(bytes(part) for part in codec.dumps(state))
    grad = np.ones(LAYOUT.size)
    grad[-1] = np.inf
    with pytest.raises(DivergedError):
        server.tell(state, Sums(grad, 0.0, 1.0, 1), 1.0, 0.0)
    assert b"".join(bytes(part) for part in codec.dumps(state)) == before


def test_replicas_do_not_notice_the_shards() -> None:
    case = Case(steps=21)
    server = case.method("adagrad", 0.05, penalty=False)

    def trained(exchange: Downpour, slots: int, order: list[int] | None = None) -> tuple[np.ndarray, list[int]]:
        setting, work = case.setting(), case.local(3, "replica")
        machine = Replicas(setting, begin(exchange, case.start(), 3), exchange, work, case.rates, order=order)
        records = drive(machine, Arena(slots, picker(5)), setting.rounds)
        return machine.params, [record.worker for record in records]

    one, order = trained(Downpour(server, 2, 2), 2)
    several, _ = trained(Downpour(sharded(server, 3), 2, 2), 1, order)
    assert several.tobytes() == one.tobytes()


def test_a_run_with_shards_is_the_run_without_and_goes_on(tmp_path: Path) -> None:
    one = run(tmp_path / "one", KIND, *KEYS)
    replay = f"strategy.replay={one['run']}/updates.csv"
    for shards in (2, 5):
        several = run(tmp_path / str(shards), KIND, *KEYS, f"strategy.shards={shards}", replay)
        assert several["params_sha256"] == one["params_sha256"]
    data = files(tmp_path, KIND, "zarr")
    part = run_on(data, tmp_path / "part", *KEYS, "strategy.shards=3", "stop.steps=9")
    rest = resume(Path(part["run"]), ["stop.epochs=3"])
    assert rest["steps"] == one["steps"]


def test_what_shards_cannot_do(tmp_path: Path) -> None:
    for keys, message in (
        (["optimizer.name=lars"], "lars looks at whole layers"),
        (["optimizer.name=lamb"], "lamb looks at whole layers"),
        (["optimizer.clip_norm=1"], "clip_norm is of the whole gradient"),
        (["strategy.shards=1000"], "parameters are too few for 1000 shards"),
    ):
        with pytest.raises(ConfError, match=message):
            run(tmp_path, KIND, *KEYS, *(keys if "shards" in keys[0] else ["strategy.shards=2", *keys]))
    assert run(tmp_path, KIND, *KEYS, "optimizer.name=lamb", "strategy.shards=1")["status"] == "completed"


@pytest.mark.skipif(bool(compiled.missing()), reason="numba is not installed")
def test_compiled_updates_too() -> None:
    gradients = np.random.default_rng(3).normal(size=(6, LAYOUT.size))
    for name in ("adagrad", "adam", "sgd", "momentum"):
        one, _ = walk(method(name, compile_=True), gradients)
        several, _ = walk(Sharded(method(name, compile_=True), 3), gradients)
        assert several.tobytes() == one.tobytes(), name


@pytest.mark.parametrize("unit", ["step", "epoch"])
@pytest.mark.parametrize(
    "schedule", [["cosine"], ["step", "schedule.gamma=0.3"], ["inverse_time", "schedule.decay=0.2"]]
)
def test_the_server_goes_by_the_schedule_of_the_run(tmp_path: Path, schedule: list[str], unit: str) -> None:
    """One replica that pushes and fetches with every step is sync; the 451 rows are whole batches."""
    name, *more = schedule
    keys = [*SOFTMAX, "batch.size=41", "stop.epochs=3", "optimizer.name=sgd", "schedule.learning_rate=0.1"]
    keys += [f"schedule.name={name}", f"schedule.unit={unit}", *more, "run.metrics_every_steps=1"]
    keys += [] if name != "step" else [f"schedule.every={5 if unit == 'step' else 1}"]
    sync = run(tmp_path, KIND, *keys)
    server = ("strategy.name=downpour", "strategy.replicas=1", "strategy.n_push=1", "strategy.n_fetch=1")
    found = run(tmp_path, KIND, *keys, *server, "strategy.shards=2")
    assert found["loss"] == pytest.approx(sync["loss"], rel=1e-12)


@pytest.mark.parametrize("name", ["downpour", "easgd"])
def test_the_last_turns_keep_the_last_rate(tmp_path: Path, name: str) -> None:
    """They reach beyond the last batch, where a cosine begins anew."""
    every = ["strategy.n_push=5", "strategy.n_fetch=5"] if name == "downpour" else ["strategy.every=5"]
    keys = [*SOFTMAX, "batch.size=40", "stop.epochs=3", "optimizer.name=sgd", "schedule.learning_rate=0.1"]
    keys += ["schedule.name=cosine", f"strategy.name={name}", "strategy.replicas=3", "backend.workers=1", *every]
    found = run(tmp_path, KIND, *keys, "run.metrics_every_steps=1")
    lines = (Path(found["run"]) / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in lines]
    assert max(rates[-3:]) < 0.01 < max(rates)
