"""Whole sweeps: the runs they make are those that `train` makes, whatever is halved, shared, interrupted or lost."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from problems import files

from bigopt.backends.base import Session
from bigopt.callbacks import Silent
from bigopt.cli import bigopt as group
from bigopt.config import load_conf
from bigopt.core.errors import ClusterError, ConfError, DataError, DivergedError, InterruptedRun
from bigopt.fit import train
from bigopt.sharing import Lent
from bigopt.sweep import read_spec, sweep

RATES = (0.003, 0.03, 0.3, 0.1, 0.01)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files(tmp_path_factory.mktemp("data"), "two", "zarr")


def base(data: Path, **groups: str) -> str:
    told = {"backend": "{name: local, workers: 2}", "stop": "{epochs: 4}", "schedule": "{name: cosine}", **groups}
    rows = f"data: {{uri: {data}, target: y, validation: 0.25}}, model: {{name: logistic}}, batch: {{size: 32}}"
    return f"conf: {{{rows}, {', '.join(f'{k}: {v}' for k, v in told.items())}}}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yml"
    path.write_text(f"{text}dir: {tmp_path / 'out'}\n")
    return path


def keys(rates: tuple[float, ...] = RATES, optimizers: str = "[sgd]") -> str:
    return f"keys: {{optimizer.name: {optimizers}, schedule.learning_rate: {list(rates)}}}\n"


def alone(data: Path, tmp_path: Path, *changes: str) -> tuple[dict[str, Any], dict[float, float]]:
    """Train one conf by itself; return its result and the validation loss by epoch."""
    result = train(
        load_conf(
            [],
            [
                f"data.uri={data}", "data.target=y", "data.validation=0.25", "model.name=logistic", "batch.size=32",
                "backend.name=local", "backend.workers=2", "stop.epochs=4", "schedule.name=cosine",
                f"run.dir={tmp_path / 'alone'}", *changes,
            ],
        )
    )  # fmt: skip
    lines = (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()
    checks = {r["epoch"]: r["validation"]["loss"] for r in map(json.loads, lines) if r.get("validation")}
    return {**json.loads((Path(result["run"]) / "result.json").read_text()), **result}, checks


def test_a_grid_is_its_runs(data: Path, tmp_path: Path) -> None:
    result = sweep(read_spec(write(tmp_path, base(data) + keys((0.01, 0.1), "[sgd, adam]"))))
    assert (result["trials"], result["finished"], result["failed"]) == (4, 4, 0)
    expected = {}
    for name in ("sgd", "adam"):
        for rate in (0.01, 0.1):
            found, checks = alone(data, tmp_path, f"optimizer.name={name}", f"schedule.learning_rate={rate}")
            expected[name, rate] = (checks[4.0], found["params_sha256"], found["ledger"]["bytes_read"])
    rows = result["rows"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    got = {tuple(row["settings"].values()): (row["value"], row["params_sha256"]) for row in rows}
    assert got == {key: value[:2] for key, value in expected.items()}
    assert [row["value"] for row in rows] == sorted(value for value, _, _ in expected.values())
    # the rows were decoded by the first trial alone; its passes are those of one run
    assert result["bytes_read"] == expected["sgd", 0.01][2] > 0
    assert sorted(row["bytes_read"] for row in rows)[:3] == [0, 0, 0]


def test_the_table_and_the_picture(data: Path, tmp_path: Path) -> None:
    result = sweep(read_spec(write(tmp_path, base(data) + keys((0.1, 1e308)) + "metric: accuracy\n")))
    assert (result["metric"], result["better"]) == ("accuracy", "higher")
    table = list(csv.DictReader((tmp_path / "out" / "sweep.csv").read_text().splitlines()))
    assert [row["status"] for row in table] == ["completed", "diverged"]
    assert float(table[0]["accuracy"]) == result["best"]["value"] > 0.5
    assert "the loss is" in table[1]["reason"]
    assert table[1]["accuracy"] == ""
    kept = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert kept["rows"] == json.loads(json.dumps(result["rows"]))
    assert Path(result["picture"]).read_bytes().startswith(b"\x89PNG")
    again = sweep(read_spec(tmp_path / "sweep.yml"))
    assert [row["reason"] for row in again["rows"]] == [row["reason"] for row in result["rows"]]
    assert len(list((tmp_path / "out" / "trials").glob("*/*/conf.yml"))) == 2


def test_halving_keeps_the_best(data: Path, tmp_path: Path) -> None:
    expected = {rate: alone(data, tmp_path, "optimizer.name=sgd", f"schedule.learning_rate={rate}") for rate in RATES}

    def best(rates: list[float], epoch: float) -> list[float]:
        kept = sorted(rates, key=lambda rate: expected[rate][1][epoch])
        return kept[: math.ceil(len(rates) / 2)]

    second = best(list(RATES), 1.0)
    third = best(second, 2.0)
    result = sweep(read_spec(write(tmp_path, base(data) + keys() + "halving: {factor: 2, min_epochs: 1}\n")))
    ends = {row["settings"]["schedule.learning_rate"]: row["epochs"] for row in result["rows"]}
    assert ends == {rate: 4 if rate in third else 2 if rate in second else 1 for rate in RATES}
    assert (result["finished"], result["stopped_early"]) == (len(third), len(RATES) - len(third)) == (2, 3)
    assert [row["epochs"] for row in result["rows"]] == [4, 4, 2, 1, 1]
    for row in result["rows"]:
        rate = row["settings"]["schedule.learning_rate"]
        assert row["value"] == expected[rate][1][row["epochs"]]
        if row["status"] == "completed":  # the schedule was planned for all epochs
            assert row["params_sha256"] == expected[rate][0]["params_sha256"]
    assert result["best"]["settings"]["schedule.learning_rate"] == min(third, key=lambda r: expected[r][1][4.0])


class Interrupting(Silent):
    """Sends SIGTERM in the middle of a trial."""

    def __init__(self, trial: int) -> None:
        self.trial = trial
        self.started = 0

    def start(self, total_steps: int | None, total_epochs: float | None, text: str) -> None:
        self.started += 1

    def update(self, record: dict[str, Any]) -> None:
        if self.started == self.trial and 1.0 < record["epoch"] < 2.0:
            self.trial = 0
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("halving", ["", "halving: {factor: 2, min_epochs: 2}\n"])
def test_it_goes_on_where_it_was_interrupted(halving: str, data: Path, tmp_path: Path) -> None:
    text = base(data, run="{metrics_every_steps: 1}") + keys((0.1, 0.3, 0.01)) + halving
    (tmp_path / "whole").mkdir()
    whole = sweep(read_spec(write(tmp_path / "whole", text)))
    path = write(tmp_path, text)
    with pytest.raises(InterruptedRun) as caught:
        sweep(read_spec(path), progress=Interrupting(2))
    assert f"go on with: bigopt sweep -c {path}" in caught.value.hint
    logs = {log: log.read_text() for log in (tmp_path / "out" / "trials").glob("*/*/log.txt")}
    assert len(logs) == 2
    result = sweep(read_spec(path))
    said = [log.read_text() for log in (tmp_path / "out" / "trials").glob("*/*/log.txt")]
    assert len(said) == 3
    if not halving:
        assert sum("going on from" in text for text in said) == 1
        assert sum(log.read_text() == text for log, text in logs.items()) == 1  # the finished one was left alone

    def essence(found: dict[str, Any]) -> list[tuple[Any, ...]]:
        return [(r["trial"], r["rank"], r["status"], r["value"], r["params_sha256"]) for r in found["rows"]]

    assert essence(result) == essence(whole)


def test_more_samples_are_added(data: Path, tmp_path: Path) -> None:
    text = base(data, stop="{epochs: 1}") + "trials: random\nkeys: {schedule.learning_rate: {log_uniform: [1e-3, 1]}}\n"
    first = sweep(read_spec(write(tmp_path, text + "samples: 2\n")))
    marks = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "trials").glob("*/trial.json")}
    second = sweep(read_spec(write(tmp_path, text + "samples: 3\n")))
    assert (first["trials"], second["trials"]) == (2, 3)
    assert all(path.stat().st_mtime_ns == mark for path, mark in marks.items())
    assert {r["params_sha256"] for r in first["rows"]} < {r["params_sha256"] for r in second["rows"]}


def test_what_ends_a_sweep(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="no trial finished; the first: "):
        sweep(read_spec(write(tmp_path, base(data) + keys((1e308,)))))
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["best"] is None
    with pytest.raises(DataError, match="no trial finished"):
        sweep(read_spec(write(tmp_path, base(tmp_path / "none.zarr") + keys((0.1,)))))
    with pytest.raises(ConfError, match=r"sweep.yml:3: logistic has no r2 \(one of loss, validation_loss, log_loss, "):
        sweep(read_spec(write(tmp_path, base(data) + keys((0.1,)) + "metric: r2\n")))
    held = base(data).replace(", validation: 0.25", "")
    with pytest.raises(ConfError, match=r"sweep.yml:3: metric validation_loss without validation rows"):
        sweep(read_spec(write(tmp_path, held + keys((0.1,)) + "metric: validation_loss\n")))
    (tmp_path / "out" / "trials").mkdir(exist_ok=True)


def test_a_trial_that_fails_is_a_row(data: Path, tmp_path: Path) -> None:
    text = base(data, stop="{epochs: 1}") + "keys: {model.name: [ridge, logistic, mlp], model.hidden: [[4]]}\n"
    result = sweep(read_spec(write(tmp_path, text + "metric: loss\n")))
    status = {row["settings"]["model.name"]: row["status"] for row in result["rows"]}
    assert status == {"ridge": "failed", "logistic": "completed", "mlp": "completed"}
    assert result["rows"][-1]["rank"] == 3
    assert "holds text, ridge needs numbers" in result["rows"][-1]["reason"]


class Fake:
    """A session that counts."""

    slots = 2
    notes = ()

    def __init__(self, fail: bool = False) -> None:
        self.under_way = 0
        self.fail = fail

    def submit(self, order: Any) -> None:
        self.under_way += 1

    def wait(self) -> Any:
        if self.fail:
            raise ClusterError("no worker is left")
        self.under_way -= 1

    def report(self, text: str, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        raise AssertionError("a lent session stays open")


def test_nothing_is_under_way_when_a_session_is_given_back() -> None:
    broken: list[bool] = []
    for fail in (False, True):
        fake = Fake()
        session: Session = fake  # type: ignore[assignment]
        lent = Lent(session, lambda: broken.append(True))
        for _ in range(3):
            lent.submit(None)  # type: ignore[arg-type]
        lent.wait()
        fake.fail = fail
        lent.close()
        assert (fake.under_way, broken) == ((2, [True]) if fail else (0, []))


def test_the_command_line(data: Path, tmp_path: Path) -> None:
    path = write(tmp_path, base(data) + keys((0.1, 1e308)))
    result = CliRunner().invoke(group, ["sweep", "-c", str(path), "--json"])
    value = json.loads(result.stdout)
    assert (result.exit_code, value["status"], value["finished"], value["failed"]) == (0, "completed", 1, 1)
    assert result.stdout.count("\n") == 1
    result = CliRunner().invoke(group, ["sweep", "-c", str(path)])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0].strip() == "validation_loss, lower is better"
    row = next(line.split() for line in lines if line.split()[:1] == ["1"])
    assert row[:3] == ["1", "sgd", "0.1"]
    assert f"picture: {tmp_path / 'out' / 'sweep.png'}" in lines
    result = CliRunner().invoke(group, ["sweep", "-c", str(path), "optimiser.name=adam"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_dask_workers_decode_the_rows_once(data: Path, tmp_path: Path) -> None:
    dask = "{name: dask, workers: 2}"
    one = sweep(read_spec(write(tmp_path, base(data, backend=dask) + keys((0.1,)))))
    (tmp_path / "more").mkdir()
    path = write(tmp_path / "more", base(data, backend=dask) + keys((0.1, 0.3, 0.01)) + "halving: {}\n")
    more = sweep(read_spec(path))
    assert more["bytes_read"] == one["bytes_read"] > 0
    (tmp_path / "local").mkdir()
    text = base(data) + keys((0.1, 0.3, 0.01)) + "halving: {}\n"
    local = sweep(read_spec(write(tmp_path / "local", text)))
    assert [r["params_sha256"] for r in local["rows"]] == [r["params_sha256"] for r in more["rows"]]
