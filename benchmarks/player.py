"""A side in a process of its own: ``Player`` is the harness's end, ``main`` the other.

They speak lines of JSON through pipes. What a side prints goes to the log, never between the lines: the process's
standard output is taken away from it at the start.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent


class Skip(Exception):
    """A side cannot run here; the reason is what a person should read."""


class SideError(Exception):
    """A side failed, or did not answer in time."""


class Player:
    """A side's process.

    Parameters
    ----------
    target : str
        ``module:Class`` of the side.
    arguments : dict
        Of the class, plain JSON values.
    log : file
        Where what it prints goes.
    python : str
        Interpreter, for peers that need packages of their own.
    """

    def __init__(self, target: str, arguments: dict[str, Any], log: IO[bytes], python: str = sys.executable) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.player", target, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "SPARK_LOCAL_IP": "127.0.0.1"},
            start_new_session=True,
        )
        self._buffer = b""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ready(self, timeout: float = 600.0) -> float:
        """Wait until the side is made, and return the seconds that it took.

        Raises
        ------
        Skip, SideError
        """
        return float(self._answer(timeout))

    def call(self, method: str, *values: Any, timeout: float = 900.0) -> Any:
        """Call a method of the side and return its value.

        Raises
        ------
        Skip, SideError
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([method, *values]).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(timeout)

    def _answer(self, timeout: float) -> Any:
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise SideError(f"no answer within {timeout:g} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise SideError(f"its process ended (status {self._process.wait()})")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "skip" in answer:
            raise Skip(answer["skip"])
        if "error" in answer:
            raise SideError(answer["error"])
        return answer["value"]

    def end(self) -> None:
        """Ask the side to end, and do not wait for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self, patience: float = 20.0) -> None:
        """Ask the side to end, then end its process group."""
        self.end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the group is the player's own
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _follow_parent(parent: int) -> None:
    """End this process group when the harness is gone, whatever the side is doing."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Make the side, then answer lines until the pipe ends."""
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    module, _, name = sys.argv[1].partition(":")

    def reply(work: Any) -> bool:
        try:
            answer = {"value": work()}
        except Skip as reason:
            answer = {"skip": str(reason)}
        except ImportError as error:
            answer = {"skip": f"not installed: {error.name or error}"}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(answer).encode() + b"\n")
        return "value" in answer

    side: Any = None

    def make() -> float:
        nonlocal side
        begin = time.perf_counter()
        side = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
        return time.perf_counter() - begin

    if reply(make):
        for line in sys.stdin:
            method, *values = json.loads(line)
            reply(lambda method=method, values=values: getattr(side, method)(*values))
    if hasattr(side, "close"):
        side.close()


if __name__ == "__main__":
    import benchmarks.player

    benchmarks.player.main()  # not this module's copy named __main__: its Skip would be another class
