"""``learning_rate: auto``: the search by itself, runs against runs with that number, and against a grid of rates."""

from __future__ import annotations

import itertools
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import MODELS, datasets, files, run

from bigopt.callbacks import Silent
from bigopt.config import load_conf, load_text
from bigopt.core.errors import ConfError, DivergedError, InterruptedRun
from bigopt.describe import describe
from bigopt.diagnose import diagnose
from bigopt.diagnose.race import PARTS, ROWS, Stage, race, rounded, stages
from bigopt.facts import Datasets
from bigopt.fit import resume, train
from bigopt.optim.cycles import Cosine
from bigopt.optim.schedules import Compressed


class Lines(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    @property
    def rate(self) -> float:
        line = next(line for line in self.lines if line.startswith("schedule.learning_rate = "))
        return float(line.split()[2])


def quiet(_: str) -> None:
    pass


def bowl(best: float, wall: float = math.inf) -> Any:
    """Return a loss with its minimum at a rate, infinite above another one."""
    return lambda rate, steps: math.inf if rate > wall else 1.0 + math.log10(rate / best) ** 2


@pytest.mark.parametrize("start", [1e-6, 0.02, 30.0])
@pytest.mark.parametrize("best", [3e-4, 0.7])
def test_the_race_ends_next_to_the_best_rate(start: float, best: float) -> None:
    found = race(bowl(best, 2.0 * best), start, stages(1000, 100, 10_000), quiet)
    assert abs(math.log10(found.learning_rate / best)) <= 0.5 / PARTS + 0.002  # three digits
    asked = [(t.learning_rate, t.steps) for t in found.trials]
    assert len(set(asked)) == len(asked)


def test_the_race_follows_a_best_rate_that_falls_with_the_length() -> None:
    """The noise of a constant step: shorter trials want larger ones."""
    found = race(lambda rate, steps: abs(math.log(rate * steps)), 1.0, stages(4096, 16, 1000), quiet)
    assert found.learning_rate == pytest.approx(1 / 4096, rel=0.16)


def test_the_race_says_so_where_all_diverges() -> None:
    with pytest.raises(DivergedError, match=r"every rate down to 1e-09"):
        race(lambda rate, steps: math.nan, 1.0, [Stage(8, PARTS)], quiet)


@pytest.mark.parametrize(
    ("length", "batch", "rows"),
    [(384, 8192, 261_900), (2345, 128, 60_000), (10**6, 256, 10**8), (5, 2, 10), (1, 10, 10), (100, 10**6, 10**6)],
)
def test_stages_grow_to_what_is_affordable(length: int, batch: int, rows: int) -> None:
    found = stages(length, batch, rows)
    steps = [stage.steps for stage in found]
    assert steps == sorted(steps)
    assert 1 <= steps[-1] <= length
    assert found[-1].gap == (1 if steps[-1] == length else PARTS // 4)
    assert all(a.gap >= b.gap for a, b in itertools.pairwise(found))
    if batch < rows:
        assert 6 * steps[-1] * batch <= max(rows, ROWS)


def test_a_compressed_schedule_ends_where_the_schedule_ends() -> None:
    rule = Cosine(1.0, period=100.0)
    short = Compressed(rule, 100 / 10)
    assert [short(float(k)) for k in range(11)] == [rule(10.0 * k) for k in range(11)]


CASES = [
    ("ridge", ["optimizer.name=adam", "schedule.name=cosine", "batch.size=64"]),
    ("ridge", ["optimizer.name=sgd", "schedule.name=inverse_sqrt", "batch.size=16", "stop.epochs=2"]),
    ("logistic", ["optimizer.name=gd", "stop.epochs=8"]),
    ("softmax", ["optimizer.name=nesterov", "batch.size=64", "schedule.name=one_cycle", "stop.epochs=3"]),
    ("mlp_classes", ["optimizer.name=adam", "batch.size=64", "stop.epochs=2"]),
]


@pytest.mark.parametrize(
    ("kind", "keys"), [pytest.param(*case, marks=() if case in CASES[2::2] else pytest.mark.all) for case in CASES]
)
def test_a_run_with_auto_is_the_run_with_its_number(tmp_path: Path, kind: str, keys: list[str]) -> None:
    problem, model = MODELS[kind]
    seen = set()
    for workers in (1, 3):
        said = Lines()
        found = run(
            tmp_path, problem, *model, *keys, "schedule.learning_rate=auto", f"backend.workers={workers}", progress=said
        )
        seen.add((said.rate, found["params_sha256"], found["steps"], found["epochs"]))
    assert len(seen) == 1
    plain = run(tmp_path, problem, *model, *keys, f"schedule.learning_rate={said.rate}")
    assert (said.rate, plain["params_sha256"], plain["steps"], plain["epochs"]) in seen
    assert found["rounds"] > plain["rounds"]


@pytest.mark.slow
def test_the_same_rate_on_dask(tmp_path: Path) -> None:
    uri = files(tmp_path, "two", "zarr")
    seen = []
    for backend in ("local", "dask"):
        keys = [f"data.uri={uri}", f"run.dir={tmp_path}", f"backend.name={backend}", "backend.workers=2"]
        keys += ["model.name=logistic", "optimizer.name=sgd", "batch.size=50", "stop.epochs=2"]
        found = train(load_conf([], [*keys, "schedule.learning_rate=auto"]), progress=(said := Lines()))
        seen.append((said.rate, found["params_sha256"], found["loss"]))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "name", ["downpour", pytest.param("local_sgd", marks=pytest.mark.all), pytest.param("easgd", marks=pytest.mark.all)]
)
def test_local_steps_take_the_rate_of_synchronous_trials(tmp_path: Path, name: str) -> None:
    keys = ["model.name=ridge", "batch.size=40", f"strategy.name={name}", "strategy.replicas=2", "stop.epochs=2"]
    said = Lines()
    found = run(tmp_path, "numbers", *keys, "schedule.learning_rate=auto", progress=said)
    assert math.isfinite(found["loss"])
    assert said.rate > 0.0


def test_describe_says_that_the_rate_is_found_later(tmp_path: Path) -> None:
    uri = files(tmp_path, "numbers", "zarr")
    keys = [f"data.uri={uri}", "model.name=ridge", "optimizer.name=adam", "schedule.name=cosine"]
    lines = describe(load_conf([], [*keys, "schedule.learning_rate=auto"]))["lines"]
    assert any("found by short trials" in line for line in lines)


@pytest.mark.all
@pytest.mark.parametrize(("kind", "keys"), CASES)
def test_auto_is_as_good_as_a_grid(tmp_path: Path, kind: str, keys: list[str]) -> None:
    problem, model = MODELS[kind]
    auto = run(tmp_path, problem, *model, *keys, "schedule.learning_rate=auto")["loss"]
    best = math.inf
    for rate in np.geomspace(1e-4, 10.0, 9):
        try:
            loss = run(tmp_path, problem, *model, *keys, f"schedule.learning_rate={rate}")["loss"]
        except DivergedError:
            continue
        best = min(best, loss)
    assert auto <= 1.01 * best


def test_plain_gradients_start_at_half_of_the_stable_step(tmp_path: Path) -> None:
    keys = ["optimizer.name=momentum", "optimizer.momentum=0.8", "batch.size=16", "model.l2=0.01", "stop.steps=20"]
    said = Lines()
    run(tmp_path, "numbers", "model.name=ridge", *keys, "schedule.learning_rate=auto", progress=said)
    begin = next(line for line in said.lines if line.startswith("learning_rate: auto: trials start at "))
    conf = load_conf([], ["data.uri=memory", "model.name=ridge", *keys])
    step = next(s["eta_b"] for s in diagnose(conf, datasets("numbers"))["stable_steps"] if s["batch"] == 16)
    assert float(begin.split()[5]) == rounded(step / 2 * (1 - 0.8))


def test_a_resumed_run_keeps_its_rate(tmp_path: Path) -> None:
    X, y = np.random.default_rng(0).normal(size=(2, 300, 3))
    np.savez(tmp_path / "d.npz", X=X, y=y[:, 0])
    keys = [f"data.uri={tmp_path / 'd.npz'}", f"run.dir={tmp_path}", "model.name=ridge", "batch.size=20"]
    keys += ["optimizer.name=momentum", "schedule.name=cosine", "schedule.learning_rate=auto", "schedule.period=60"]
    said = Lines()
    whole = train(load_conf([], [*keys, "stop.steps=60"]), progress=said)
    part = train(load_conf([], [*keys, "stop.steps=25"]), progress=(first := Lines()))
    ended = resume(Path(part["run"]), ["stop.steps=60"], progress=(again := Lines()))
    assert again.rate == first.rate
    assert any("as at the first start" in line for line in again.lines)
    assert not any("trials" in line for line in again.lines)
    if first.rate == said.rate:  # which the length of the run may change
        assert ended["params_sha256"] == whole["params_sha256"]


def test_a_signal_ends_the_search_and_resume_begins_it_anew(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(300, 3))
    np.savez(tmp_path / "d.npz", X=X, y=X[:, 0])
    keys = [f"data.uri={tmp_path / 'd.npz'}", f"run.dir={tmp_path}", "model.name=ridge", "batch.size=20"]
    keys += ["optimizer.name=sgd", "schedule.learning_rate=auto"]

    class Killer(Lines):
        def note(self, text: str) -> None:
            super().note(text)
            if "trials start at" in text:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRun, match="before step 1, in the trials") as caught:
        train(load_conf([], keys), progress=Killer())
    ended = resume(Path(caught.value.run), progress=(said := Lines()))
    plain = train(load_conf([], [*keys[:-1], f"schedule.learning_rate={said.rate}"]))
    assert ended["params_sha256"] == plain["params_sha256"]


@pytest.mark.parametrize(
    "text",
    ["optimizer: {name: newton}", "optimizer: {name: lbfgs}", "optimizer: {name: gd}\nschedule: {name: backtracking}"],
)
def test_line_searches_take_no_auto(text: str) -> None:
    with pytest.raises(ConfError, match="finds every step by a line search"):
        load_text(text, "x.yml", ["schedule.learning_rate=auto"])


def test_data_of_which_nothing_can_be_said_starts_at_the_default(tmp_path: Path) -> None:
    from bigopt.data.memory import from_arrays

    data = Datasets(from_arrays(np.zeros((40, 2)), np.arange(40.0)), None)
    said = Lines()
    keys = ["model.name=linear", "model.intercept=false", "model.standardize=false", "optimizer.name=sgd"]
    run(tmp_path, "numbers", *keys, "schedule.learning_rate=auto", data=data, progress=said)
    assert any("the features are all 0" in line for line in said.lines)
    assert said.rate > 0.0


DEMOS = {
    "flights": np.geomspace(1e-3, 10.0, 9),
    "flights_late": np.geomspace(1e-3, 10.0, 9),
    "flights_carrier": np.geomspace(1e-3, 10.0, 9),
    "fashion_mnist": np.geomspace(1e-5, 1e-1, 9),
    "wordnet": np.geomspace(1e-3, 10.0, 9),
}
ROOT = Path(__file__).parents[2]


@pytest.mark.all
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("task", list(DEMOS))
def test_auto_on_the_demo_tasks(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1 % of the best of nine log-spaced rates: same optimizer, schedule and epochs, mean f of three seeds."""
    monkeypatch.chdir(ROOT)
    path = ROOT / "conf" / f"{task}.yml"
    if not Path(load_conf([path]).data.uri or "").exists():
        pytest.skip(f"{task} is not ingested: see {path.name}")

    def mean(rate: float | str) -> float:
        losses = []
        for seed in range(3):
            keys = [f"schedule.learning_rate={rate}", f"run.seed={seed}", f"run.dir={tmp_path}"]
            try:
                losses.append(train(load_conf([path], keys))["loss"])
            except DivergedError:
                return math.inf
        return float(np.mean(losses))

    found = {float(rate): mean(float(rate)) for rate in DEMOS[task]}
    auto = mean("auto")
    print(task, {f"{rate:.3g}": f"{loss:.5g}" for rate, loss in found.items()}, f"auto: {auto:.5g}")
    assert auto <= 1.01 * min(found.values())
