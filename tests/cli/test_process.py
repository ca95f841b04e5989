"""The contract in a process of its own: real file descriptors, children that print, signals, imports, pipes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

STUB = """
import os, subprocess, sys, time
import bigopt.fit
from bigopt.cli import main

def train(conf, *, progress=None):
{body}

bigopt.fit.train = train
main(["train", "--json"])
"""


def script(body: str) -> list[str]:
    return [sys.executable, "-c", STUB.format(body=textwrap.indent(textwrap.dedent(body), "    "))]


def test_nothing_else_reaches_stdout() -> None:
    body = """
    print("python")
    os.write(1, b"descriptor\\n")
    subprocess.run(["echo", "child"], check=True)
    sys.__stdout__.write("kept aside\\n")
    sys.__stdout__.flush()
    return {"loss": float("nan")}
    """
    done = subprocess.run(script(body), capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"status": "completed", "loss": None}
    for word in ("python", "descriptor", "child", "kept aside"):
        assert word in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_signals(number: signal.Signals, code: int) -> None:
    body = """
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
    """
    before = signal.signal(number, signal.SIG_DFL)  # where tests run in the background, SIGINT is ignored and inherited
    try:
        started = subprocess.Popen(script(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    with started as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    value = json.loads(out)
    assert (value["status"], value["code"], value["run"]) == ("interrupted", code, None)
    assert "Traceback" not in err


def test_usage_errors_in_a_process(tmp_path: Path) -> None:
    for arguments in (["--json", "train"], ["train", "--json", "x"], ["--json"], ["nothing", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "bigopt.cli", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 2
        assert json.loads(done.stdout)["code"] == 2
        assert done.stderr.startswith("bigopt: error: ")


def test_a_tag_in_a_conf_is_exit_7(tmp_path: Path) -> None:
    conf = tmp_path / "evil.yml"
    conf.write_text(f"model: !!python/object/apply:os.system ['touch {tmp_path}/canary']\n")
    done = subprocess.run(
        [sys.executable, "-m", "bigopt.cli", "train", "-c", str(conf), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    assert json.loads(done.stdout)["where"] == f"{conf}:1"
    assert [p.name for p in tmp_path.iterdir()] == ["evil.yml"]


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m bigopt.cli options | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_the_command_line_starts_light() -> None:
    code = """
    import sys
    import bigopt.cli
    engines = {"zarr", "pyarrow", "dask", "distributed", "pyspark", "cupy", "matplotlib", "fsspec"}
    print(sorted((engines | {"numpy", "yaml", "msgspec", "rich"}) & set(sys.modules)))
    from bigopt.config import load_conf
    load_conf([], ["stop.steps=1"])
    print(sorted(engines & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
