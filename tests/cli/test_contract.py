"""The contract of the command line: exit codes, one JSON object, one line on stderr, whatever happens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import bigopt.fit
from bigopt.cli import bigopt as group
from bigopt.config import options
from bigopt.core.errors import (
    BigoptError,
    CheckpointError,
    ClusterError,
    ConfError,
    DataError,
    DivergedError,
    InterruptedRun,
    SecurityError,
)

KEYS = {"status", "code", "error", "where", "hint", "run"}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(group, list(arguments))


def only_object(result: Result) -> dict[str, Any]:
    assert result.stdout.count("\n") == 1
    value: dict[str, Any] = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return value


ERRORS = [
    (ConfError("bad", where="a.yml:3", hint="write b"), 2, "error"),
    (DataError("a hole", where="x.zarr, chunk 3"), 3, "error"),
    (DivergedError("the loss is nan", where="step 3"), 4, "diverged"),
    (ClusterError("workers lost"), 5, "error"),
    (CheckpointError("disk full", where="run"), 6, "error"),
    (SecurityError("a tag", hint="no tags"), 7, "error"),
    (InterruptedRun("SIGINT after step 3", hint="go on with: bigopt resume RUN", signal=2), 130, "interrupted"),
    (InterruptedRun("SIGTERM after step 3", signal=15), 143, "interrupted"),
]


@pytest.mark.parametrize(("error", "code", "status"), ERRORS)
@pytest.mark.parametrize("as_json", [True, False])
def test_errors(
    error: BigoptError, code: int, status: str, as_json: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error.run = str(tmp_path)  # type: ignore[attr-defined]

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(bigopt.fit, "train", fail)
    result = call("train", *(["--json"] if as_json else []))
    assert result.exit_code == code
    place = f"{error.where}: " if error.where else ""
    tail = f" ({error.hint})" if error.hint else ""
    assert result.stderr == f"bigopt: {status}: {place}{error.message}{tail}\n"
    if not as_json:
        assert result.stdout == ""
        return
    assert only_object(result) == {
        "status": status, "code": code, "error": error.message, "where": error.where or None,
        "hint": error.hint or None, "run": str(tmp_path),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--jsn"], "--jsn"),
        (["train", "-c"], "-c"),
        (["inspect"], "URI"),
        (["evaluate", "run"], "--data"),
        (["predict", "run", "--data", "x"], "--out"),
        (["resume"], "RUN_DIR"),
        (["options", "a", "b"], "unexpected extra argument"),
        (["trian"], "unknown verb 'trian'"),
        (["--nothing"], "--nothing"),
        (["sweep"], "--conf"),
        (["sweep", "-c", "nowhere.yml"], "cannot read the conf file"),
        (["options", "optimiser"], "no key 'optimiser'"),
        (["train", "optimizer.nme=adam"], "unknown key 'optimizer.nme'"),
        (["train", "-c", "nowhere.yml"], "cannot read the conf file"),
        (["train"], "no data"),
        (["describe"], "no data"),
        (["diagnose"], "no data"),
        (["ingest"], "nothing to ingest"),
        (["train", "hello"], "'hello' is not key=value"),
        (["resume", "nowhere"], "not a run directory"),
        (["evaluate", "nowhere", "--data", "x"], "not a run directory"),
        (["predict", "nowhere", "--data", "x", "--out", "y.csv"], "not a run directory"),
    ],
)
def test_usage(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("bigopt: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    result = call(*arguments[:1], "--json", *arguments[1:])
    value = only_object(result)
    assert (result.exit_code, value["status"], value["code"], set(value)) == (2, "error", 2, KEYS)
    assert message in value["error"] or message in str(value["where"])
    assert list(tmp_path.iterdir()) == []


def test_hints_of_usage_errors() -> None:
    assert "did you mean 'train'?" in call("trian").stderr
    assert "see bigopt train --help" in call("train", "--jsn").stderr
    assert "did you mean 'optimizer'?" in call("options", "optimiser").stderr
    assert "did you mean 'sweep'?" in call("swep").stderr


def test_success(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def train(conf: Any, *, progress: Any) -> dict[str, Any]:
        seen["conf"] = conf
        print("a library prints")
        progress.note("hello")
        return {
            "status": "completed", "run": "/r", "steps": np.int64(3), "epochs": 1.5, "loss": float("nan"),
            "metrics": {"r2": np.float64(0.5), "auc": -math.inf, "path": Path("/x"), "rows": np.array([1, 2])},
        }  # fmt: skip

    monkeypatch.setattr(bigopt.fit, "train", train)
    result = call("train", "--json", "data.uri=a", "stop.steps=3")
    assert (result.exit_code, only_object(result)) == (
        0,
        {
            "status": "completed", "run": "/r", "steps": 3, "epochs": 1.5, "loss": None,
            "metrics": {"r2": 0.5, "auc": None, "path": "/x", "rows": [1, 2]},
        },
    )  # fmt: skip
    assert "a library prints" in result.stderr
    assert "hello" in result.stderr
    assert (seen["conf"].data.uri, seen["conf"].stop.steps) == ("a", 3)
    shown = call("train", "data.uri=a")
    assert shown.exit_code == 0
    assert "a library prints" in shown.stdout
    assert "next: bigopt evaluate /r --data URI" in shown.stdout
    assert "hello" not in call("train", "data.uri=a", "-q").stderr


def test_an_error_about_a_key_gets_the_place_of_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def train(*_: object, **__: object) -> None:
        raise ConfError("no column 'z'", where="data.target", hint="one of x, y")

    monkeypatch.setattr(bigopt.fit, "train", train)
    conf = tmp_path / "a.yml"
    conf.write_text("\ndata:\n  target: z\n")
    assert call("train", "-c", str(conf)).stderr == (
        f"bigopt: error: {conf}:3: data.target: no column 'z' (one of x, y)\n"
    )
    assert call("train").stderr == "bigopt: error: data.target: no column 'z' (one of x, y)\n"
    assert call("train", "data.target=z").stderr.startswith("bigopt: error: command line: data.target: no column")


@pytest.mark.parametrize("verbose", [True, False])
def test_what_nobody_thought_of(verbose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines \x1b[31m")

    monkeypatch.setattr(bigopt.fit, "train", train)
    result = call("train", "--json", *(["-v"] if verbose else []))
    value = only_object(result)
    assert (result.exit_code, value["code"], value["status"]) == (1, 1, "error")
    assert value["error"] == "unexpected ZeroDivisionError: two lines ?[31m"
    assert ("Traceback" in result.stderr) is verbose
    assert result.stderr.endswith("bigopt: error: " + value["error"] + f" ({value['hint']})\n")


def test_damage_that_inspect_finds_is_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"rows": 3, "checks": {"errors": ["chunk 1: checksum", "chunk 2: missing"], "ok": False}}
    monkeypatch.setattr("bigopt.data.inspect.inspect_dataset", lambda *_, **__: report)
    result = call("inspect", "x.zarr", "--verify", "--json")
    assert (result.exit_code, only_object(result)["error"]) == (3, "2 damaged: chunk 1: checksum")
    assert "warning: chunk 2: missing" in result.stderr


def test_inspect(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.zeros((5, 2)), y=np.arange(5))
    result = call("inspect", str(tmp_path / "a.npz"), "--json", "--verify")
    value = only_object(result)
    assert (result.exit_code, value["status"], value["rows"], value["features"]) == (0, "completed", 5, 2)
    shown = call("inspect", str(tmp_path / "a.npz"))
    assert shown.exit_code == 0
    assert "float64" in shown.stdout
    assert call("inspect", str(tmp_path / "b.npz")).exit_code == 3
    assert call("inspect", str(tmp_path / "a.npz"), "data.tarjet=z").exit_code == 2


def test_train_resume_evaluate_for_real(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    np.savez(tmp_path / "a.npz", X=X, y=X @ [1.0, 2.0, 3.0])
    uri, runs = f"data.uri={tmp_path}/a.npz", f"run.dir={tmp_path}/runs"
    result = call("train", "--json", "model.name=ridge", uri, runs, "stop.steps=4", "backend.workers=1")
    value = only_object(result)
    assert result.exit_code == 0, result.output
    assert {"status", "run", "steps", "rounds", "epochs", "loss", "metrics", "params_sha256", "seconds"} <= set(value)
    assert (value["status"], value["steps"], Path(value["run"]).is_absolute()) == ("completed", 4, True)
    longer = only_object(call("resume", value["run"], "--json", "stop.steps=6"))
    assert (longer["steps"], longer["run"]) == (6, value["run"])
    refused = call("resume", value["run"], "--json", "run.seed=3")
    assert refused.exit_code == 2
    assert "run.seed: 0 -> 3" in only_object(refused)["error"]
    scored = only_object(call("evaluate", value["run"], "--data", f"{tmp_path}/a.npz", "--json"))
    assert (scored["status"], scored["rows"]) == ("completed", 300)
    assert {"mse", "rmse", "r2"} <= set(scored["metrics"])


def test_keyboard_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bigopt.fit, "train", train)
    result = call("train", "--json")
    assert (result.exit_code, only_object(result)["status"]) == (130, "interrupted")


def test_passwords_are_not_printed() -> None:
    for arguments in (
        ["train", "https://me:CANARY@host/x"],
        ["train", "optimizer.name=https://me:CANARY@host/x"],
        ["train", "model.l2=https://me:CANARY@host/x"],
        ["train", "-c", "https://me:CANARY@host/x.yml"],
    ):
        result = call(*arguments, "--json")
        assert result.exit_code == 2
        assert "CANARY" not in result.output
        assert "host" in result.output


def test_options() -> None:
    result = call("options", "--json")
    value = only_object(result)
    assert (result.exit_code, value["status"]) == (0, "completed")
    rows = {row["key"]: row for row in value["options"]}
    assert list(rows) == [o.key for o in options()]
    assert rows["data.memory"] == {
        "key": "data.memory", "default": 2000000000, "takes": "a size such as 2GB",
        "comment": "bytes of rows each process may hold: decoded blocks, buffers, temporaries",
    }  # fmt: skip
    assert rows["model.hidden"]["default"] == [128]
    assert rows["optimizer.momentum"]["default"] is None
    one = only_object(call("options", "--json", "stop"))["options"]
    assert [row["key"] for row in one] == [k for k in rows if k.startswith("stop.")]
    shown = call("options")
    assert shown.exit_code == 0
    for key in rows:
        assert key in shown.stdout


VERBS = ["ingest", "inspect", "describe", "diagnose", "train", "evaluate", "predict", "resume", "sweep", "options"]


def test_the_verbs() -> None:
    assert sorted(group.commands) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    for part in ("Example:", "Writes ", "Exit codes:", "--json", f"bigopt {verb} "):
        assert part in result.stdout
    example = next(line.split() for line in result.stdout.splitlines() if line.strip().startswith(f"bigopt {verb} "))
    command = group.commands[verb]
    with click.Context(group, info_name="bigopt") as parent:
        assert command.make_context(verb, example[2:], parent=parent).params
    assert call(verb, "--help", "--json").stdout == result.stdout


def test_help_and_version() -> None:
    top = call("--help").stdout
    for verb in VERBS:
        assert f"\n  {verb} " in top or f"bigopt {verb}" in top
    assert call("--version").stdout.startswith("bigopt ")
    assert call("-h").stdout == top
