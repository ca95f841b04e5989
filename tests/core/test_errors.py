"""Errors keep everything they say across processes, and carry the exit code of the contract."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest

from bigopt.core import errors

CODES = {
    "ConfError": 2,
    "DataError": 3,
    "DivergedError": 4,
    "ClusterError": 5,
    "CheckpointError": 6,
    "SecurityError": 7,
}


def _raise(name: str, signal: int) -> None:
    if name == "InterruptedRun":
        raise errors.InterruptedRun("stopped after step 7", where="runs/a", hint="bigopt resume runs/a", signal=signal)
    raise errors.ERRORS[name]("column is text", where="x.parquet, row 17", hint="drop it")


def test_the_table_holds_every_code() -> None:
    assert {name: kind.code for name, kind in errors.ERRORS.items()} == CODES
    assert all(issubclass(kind, errors.BigoptError) for kind in errors.ERRORS.values())


@pytest.mark.parametrize(
    ("where", "hint", "text"),
    [
        ("", "", "found"),
        ("conf.yml:3", "", "conf.yml:3: found"),
        ("", "do this", "found (do this)"),
        ("conf.yml:3", "do this", "conf.yml:3: found (do this)"),
    ],
)
def test_one_line_says_where_what_and_what_to_do(where: str, hint: str, text: str) -> None:
    assert str(errors.DataError("found", where=where, hint=hint)) == text


@pytest.mark.parametrize(("signal", "code"), [(2, 130), (15, 143)])
def test_signals_give_128_plus_their_number(signal: int, code: int) -> None:
    assert errors.InterruptedRun("stopped", signal=signal).exit_code == code


def facts(error: BaseException) -> tuple[Any, ...]:
    assert isinstance(error, errors.BigoptError)
    return type(error), error.message, error.where, error.hint, error.exit_code, str(error)


@pytest.mark.parametrize("name", [*CODES, "InterruptedRun"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_loses_nothing(name: str, protocol: int) -> None:
    with pytest.raises(errors.BigoptError) as caught:
        _raise(name, 15)
    again = pickle.loads(pickle.dumps(caught.value, protocol))
    assert facts(again) == facts(caught.value)


@pytest.mark.parametrize("name", ["DataError", "InterruptedRun"])
def test_an_error_crosses_a_process(name: str) -> None:
    here = getattr(errors, name)(
        "found", where="part 3", hint="try again", **({"signal": 15} if name[0] == "I" else {})
    )
    code = "import pickle, sys; e = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(e))"
    there = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(here), capture_output=True, check=True)
    assert facts(pickle.loads(there.stdout)) == facts(here)
