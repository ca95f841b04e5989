"""What a sweep means: its file, its trials, its rungs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigopt.core.errors import BigoptError, ConfError, SecurityError
from bigopt.sweep.report import short_names
from bigopt.sweep.spec import read_spec
from bigopt.sweep.trials import plan, rungs

GRID = """\
conf: {data: {uri: x.zarr}, stop: {epochs: 9}}
keys:
  optimizer.name: [sgd, adam]
  schedule.learning_rate: [0.1, 1]
"""
RANDOM = """\
conf: {data: {uri: x.zarr}}
trials: random
samples: 40
seed: 3
keys:
  optimizer.name: [sgd, adam]
  schedule.learning_rate: {log_uniform: [1e-4, 1]}
  model.l2: {uniform: [0.5, 2]}
  batch.size: {integers: [1, 3]}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yml"
    path.write_text(text)
    return path


def settings(path: Path, *overrides: str) -> list[tuple[object, ...]]:
    return [tuple(trial.settings.values()) for trial in plan(read_spec(path, overrides))[1]]


def test_grid(tmp_path: Path) -> None:
    path = write(tmp_path, GRID)
    assert settings(path) == [("sgd", 0.1), ("sgd", 1), ("adam", 0.1), ("adam", 1)]
    trials = plan(read_spec(path))[1]
    confs = [trial.conf for trial in trials]
    assert [(c.optimizer.name, c.schedule.learning_rate, c.stop.epochs) for c in confs if c] == [
        ("sgd", 0.1, 9), ("sgd", 1.0, 9), ("adam", 0.1, 9), ("adam", 1.0, 9)
    ]  # fmt: skip
    assert len({trial.name for trial in trials}) == 4
    assert confs[0] is not None
    assert confs[0].run.dir == f"data/runs/sweeps/sweep/trials/{trials[0].name}"
    assert confs[0].origin("optimizer.name") == f"{path}:3"


def test_equal_trials_are_one(tmp_path: Path) -> None:
    path = write(tmp_path, GRID.replace("[0.1, 1]", "[0.1, 1, 1.0, 1e-1]"))
    assert settings(path) == [("sgd", 0.1), ("sgd", 1), ("adam", 0.1), ("adam", 1)]


def test_overrides_are_for_all_trials(tmp_path: Path) -> None:
    trials = plan(read_spec(write(tmp_path, GRID), ["batch.size=7", "stop.epochs=2"]))[1]
    assert {(t.conf.batch.size, t.conf.stop.epochs) for t in trials if t.conf} == {(7, 2)}


def test_draws(tmp_path: Path) -> None:
    path = write(tmp_path, RANDOM)
    draws = settings(path)
    assert len(draws) == 40
    assert draws == settings(path)
    names, rates, penalties, sizes = zip(*draws, strict=True)
    assert set(names) == {"sgd", "adam"}
    assert set(sizes) == {1, 2, 3}
    assert all(1e-4 <= rate <= 1 for rate in rates)
    assert all(0.5 <= value <= 2 for value in penalties)
    assert sum(rate < 1e-2 for rate in rates) in range(12, 29)  # half of them, within 2.5 deviations
    assert all(float(f"{rate:.4g}") == rate for rate in rates)


def test_a_draw_depends_on_seed_number_and_key_alone(tmp_path: Path) -> None:
    draws = settings(write(tmp_path, RANDOM))
    assert settings(write(tmp_path, RANDOM.replace("40", "5"))) == draws[:5]
    without = write(tmp_path, RANDOM.replace("  model.l2: {uniform: [0.5, 2]}\n", ""))
    assert settings(without) == [(a, b, d) for a, b, _, d in draws]
    assert settings(write(tmp_path, RANDOM.replace("seed: 3", "seed: 4"))) != draws


def test_values_that_do_not_go_together_are_a_failed_trial(tmp_path: Path) -> None:
    keys = "keys: {optimizer.name: [newton, sgd], batch.size: [full, 10]}"
    text = f"conf: {{data: {{uri: x.zarr}}, model: {{name: mlp}}}}\n{keys}\n"
    trials = plan(read_spec(write(tmp_path, text)))[1]
    refused = [trial for trial in trials if trial.conf is None]
    assert {trial.settings["optimizer.name"] for trial in refused} == {"newton"}
    assert len(trials) == 4
    assert isinstance(refused[0].error, ConfError)


def test_rungs(tmp_path: Path) -> None:
    def of(halving: str, epochs: float | None = 9) -> tuple[float, ...]:
        return rungs(read_spec(write(tmp_path, GRID + f"halving: {halving}\n")), epochs)

    assert of("{factor: 3, min_epochs: 1}") == (1, 3, 9)
    assert of("{}") == (1, 3, 9)
    assert of("{factor: 2}", 12) == (1, 2, 4, 8, 12)
    assert of("{min_epochs: 10}") == (9,)
    assert of("null") == ()
    with pytest.raises(ConfError, match=r"sweep.yml:5: halving needs stop.epochs"):
        of("{}", None)


def test_short_names() -> None:
    found = short_names(["optimizer.name", "schedule.learning_rate", "model.l2", "a.l2"])
    assert list(found.values()) == ["optimizer.name", "learning_rate", "model.l2", "a.l2"]


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("keys:", "kyes:"), 2, "unknown key 'kyes' of a sweep (did you mean 'keys'?)"),
        (("optimizer.name", "optimiser.name"), 3, "unknown key 'optimiser.name' (did you mean 'optimizer'?)"),
        (("sgd", "sdg"), 3, "did you mean 'sgd'?"),
        (("[0.1, 1]", "[0.1, fast]"), 4, "schedule.learning_rate is fast"),
        (("[0.1, 1]", "0.1"), 4, "schedule.learning_rate has no list of values"),
        (("[0.1, 1]", "[]"), 4, "schedule.learning_rate has no list of values"),
        (("[0.1, 1]", "{uniform: [0, 1]}"), 4, "a grid takes a list, not a range (trials: random)"),
        (("schedule.learning_rate", "backend.name"), 4, "backend.name is the same for all trials"),
        (("schedule.learning_rate: [0.1, 1]", "optimizer: [a]"), 4, "optimizer"),
        (("x.zarr}", "x.zarr}, modle: {name: ridge}"), 1, "unknown group 'modle'"),
        (("conf: {data: {uri: x.zarr}, stop: {epochs: 9}}", "conf: nowhere.yml"), 1, "conf 'nowhere.yml': cannot read"),
        (("keys:", "samples: 3\nkeys:"), 2, "samples without draws"),
        (("keys:", "trials: random\nkeys:"), 2, "trials: random without samples"),
        (("keys:", "trials: bayes\nkeys:"), 2, "unknown trials bayes (one of grid, random)"),
        (("keys:", "metric: acuracy\nkeys:"), 2, "unknown metric acuracy (did you mean 'accuracy'?)"),
        (("keys:", "halving: {factor: 1}\nkeys:"), 2, "factor is 1 (an integer from 2 to 1000)"),
        (("keys:", "halving: {eta: 3}\nkeys:"), 2, "unknown key 'eta' of halving"),
        (("keys:", "dir: [a]\nkeys:"), 2, "dir is not a path"),
        (("conf: {", "# {"), 0, "a sweep without conf"),
        (("keys:\n", "keys: {}\nx:\n"), 3, "unknown key 'x'"),
    ],
)
def test_one_clear_line(change: tuple[str, str], line: int, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, GRID.replace(*change))
    with pytest.raises(ConfError) as caught:
        read_spec(path)
    assert caught.value.where == (f"{path}:{line}" if line else str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{log_uniform: [0, 1]}", "log_uniform from 0"),
        ("{log_uniform: [1, 0.1]}", "low below high"),
        ("{uniform: [0.1]}", "uniform takes two numbers"),
        ("{integers: [0.5, 2]}", "integers takes two integers"),
        ("{normal: [0, 1]}", "no range"),
        ("{uniform: [-2, 1]}", "schedule.learning_rate"),
    ],
)
def test_ranges(written: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, RANDOM.replace("{log_uniform: [1e-4, 1]}", written))
    with pytest.raises(ConfError, match=r"sweep.yml:7: ") as caught:
        read_spec(path)
    assert message in str(caught.value)


def test_a_key_is_set_once(tmp_path: Path) -> None:
    with pytest.raises(ConfError, match="optimizer.name is swept and set on the command line"):
        read_spec(write(tmp_path, GRID), ["optimizer.name=adam"])
    with pytest.raises(ConfError, match=r"stop.epochs is swept, but halving sets it"):
        read_spec(write(tmp_path, GRID + "  stop.epochs: [1, 2]\nhalving: {}\n"))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SecurityError):
        read_spec(write(tmp_path, GRID.replace("[0.1, 1]", "!!python/object:os.system [0.1]")))
    big = ", ".join(str(k) for k in range(101))
    with pytest.raises(ConfError, match="a grid of 10201 trials"):
        plan(read_spec(write(tmp_path, f"conf: {{}}\nkeys: {{run.seed: [{big}], batch.seed: [{big}]}}\n".replace(
            "batch.seed", "model.l2"
        ))))  # fmt: skip


def test_all_refused_is_the_error(tmp_path: Path) -> None:
    text = "conf: {data: {uri: x.zarr}, model: {name: mlp}}\nkeys: {optimizer.name: [newton]}\n"
    with pytest.raises(BigoptError, match=r"newton"):
        plan(read_spec(write(tmp_path, text)))
