"""Idle time of workers by a clock of the test's, and what a run of each strategy records and shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from problems import MODELS, run

from bigopt import recording
from bigopt.studies import curves
from bigopt.work import Arrival, Order, Stats

KIND, MODEL = MODELS["softmax"]
KEYS = [*MODEL, "optimizer.name=sgd", "schedule.learning_rate=0.05", "batch.size=64", "stop.epochs=3"]
STRATEGIES = {
    "sync": [],
    "backup": [],
    "async": [],
    "ssp": [],
    "local_sgd": ["strategy.local_steps=2"],
    "hogwild": ["run.kernels=numpy"],
    "downpour": ["strategy.n_push=2", "strategy.n_fetch=2", "strategy.shards=2"],
    "easgd": ["strategy.every=2"],
    "model_parallel": ["strategy.blocks=2", "strategy.update_on=worker"],
    "hybrid": ["strategy.blocks=2", "model.name=mlp", "model.hidden=[]", "data.task=classification"],
}


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(recording, "time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


def arrival(slot: int, seconds: float) -> Arrival:
    order = Order(1, 0, slot, None, (), 1, 0, np.zeros((1, 4), dtype=np.int64))  # type: ignore[arg-type]
    return Arrival(order, {}, Stats(seconds))


def test_idle_is_what_the_maps_leave(clock: Clock) -> None:
    idle = recording.Idleness()
    clock.now += 5
    idle.begin()  # what was before the first step does not count
    clock.now += 2
    idle.arrived(arrival(0, 1.5), 2)
    clock.now += 1
    idle.arrived(arrival(1, 3.0), 2)
    assert idle.lap() == pytest.approx(3 - 4.5 / 2)
    assert idle.shares() == pytest.approx({"0": 0.5, "1": 0.0})
    clock.now += 7
    idle.pause(7)  # a look at validation data
    clock.now += 1
    idle.arrived(arrival(0, 1.0), 2)
    assert idle.lap() == pytest.approx(0.5)
    assert idle.shares() == pytest.approx({"0": 1 - 2.5 / 4, "1": 0.25})


def test_an_order_longer_than_a_lap_counts_in_the_next(clock: Clock) -> None:
    idle = recording.Idleness()
    clock.now += 1
    idle.arrived(arrival(0, 3.0), 1)
    assert idle.lap() == 0
    clock.now += 2
    assert idle.lap() == pytest.approx(0)
    clock.now += 1
    assert idle.lap() == pytest.approx(1)


def test_a_worker_that_joins_is_not_idle_before(clock: Clock) -> None:
    idle = recording.Idleness()
    clock.now += 10
    idle.arrived(arrival(0, 10.0), 1)
    clock.now += 1
    idle.arrived(arrival(0, 1.0), 2)
    clock.now += 4
    idle.arrived(arrival(1, 1.0), 2)
    assert idle.shares() == pytest.approx({"0": 4 / 15, "1": 0.75})


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_records_and_shows_its_workers(tmp_path: Path, monkeypatch, name: str) -> None:
    drawn: list[list[str]] = []
    real = curves.Figure.savefig

    def saved(figure, *args, **keys):
        drawn.append([axis.get_title(loc="left") for axis in figure.axes])
        return real(figure, *args, **keys)

    monkeypatch.setattr(curves.Figure, "savefig", saved)
    keys = [*KEYS, f"strategy.name={name}", *STRATEGIES[name], "backend.workers=2", "run.metrics_every_steps=1"]
    layers = dict(key.split("=", 1) for key in keys)
    result = run(tmp_path, KIND, *(f"{key}={value}" for key, value in layers.items()))
    found = json.loads((Path(result["run"]) / "result.json").read_text())
    lines = [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert set(found["idle_by_worker"]) == {"0", "1"}
    assert all(0 <= share < 1 for share in found["idle_by_worker"].values())
    assert all(
        line["seconds_idle"] >= 0 and line["bytes_sent"] == line["bytes_down"] + line["bytes_up"] for line in lines
    )
    if name in ("async", "ssp", "downpour", "easgd"):
        assert sum(found["updates_by_worker"].values()) == sum(found["staleness"]["histogram"].values()) > 0
    delay = "tau" if name == "hogwild" else "staleness"
    cost = ["a step (ms, median)", "workers idle (% of the time)", "updates", delay]
    assert drawn == [["loss", "gradient norm", "validation", "sent (MB)", *cost]]
