"""A run of bigopt that is let through a few steps at a time.

`fit.train` runs in a thread, as a user's program would call it, with everything that belongs to a step: orders, Map,
Reduce, update, metrics. Its ``on_step`` callback is the gate: it hands the parameters out and waits until more steps
are asked for, so that steps can be timed in turn with a peer's, and nothing is started or loaded again in between.
"""

from __future__ import annotations

import tempfile
import threading
import time
import traceback
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.looking import Looks
from benchmarks.player import SideError, Skip

Array = npt.NDArray[Any]


class _Enough(Exception):
    """Ends a run from its callback."""


class GatedRun:
    """See the module's docstring.

    Parameters
    ----------
    keys : list of str
        ``key=value`` of the conf.
    data : Datasets or None
        Opened data; None opens ``data.uri``.
    """

    def __init__(self, keys: list[str], data: Any = None) -> None:
        from bigopt.config import load_conf
        from bigopt.core.errors import ConfError

        self._folder = tempfile.TemporaryDirectory(prefix="bigopt-bench-")
        every = ["stop.epochs=1e9", "checkpoint.every_seconds=1e6", f"run.dir={self._folder.name}"]
        try:
            self.conf = load_conf([], [*every, *keys])
        except ConfError as error:
            raise Skip(f"this bigopt has no such conf: {error.message}") from error
        self._data = data
        self._target = 0
        self._changed = threading.Condition()
        self._begin = self.seconds_to_start = 0.0
        self._end = 0.0
        self._waiting, self._ended, self._closing = False, False, False
        self._error = ""
        self.step = 0
        self.epoch = 0.0
        self.params: Array = np.zeros(0)
        self._thread = threading.Thread(target=self._train, name="bigopt-run", daemon=True)
        self._began = time.perf_counter()
        self._thread.start()
        self._wait()
        self.seconds_to_start = self._end - self._began

    def _train(self) -> None:
        from bigopt.fit import train

        try:
            train(self.conf, data=self._data, on_step=self._on_step)
        except _Enough:
            pass
        except BaseException as error:
            traceback.print_exc()
            self._error = f"{type(error).__name__}: {error}"
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _on_step(self, step: int, epoch: float, params: Array) -> None:
        if step < self._target:
            return
        now = time.perf_counter()
        with self._changed:
            self.step, self.epoch, self.params, self._end = step, epoch, params, now
            self._waiting = True
            self._changed.notify_all()
            while self._waiting and not self._closing:
                self._changed.wait()
            if self._closing:
                raise _Enough
        self._begin = time.perf_counter()

    def _wait(self) -> None:
        with self._changed:
            while not (self._waiting or self._ended):
                self._changed.wait()
        if self._ended:
            raise SideError(self._error or "the run ended by itself")

    def advance(self, steps: int) -> float:
        """Let the run make some steps; return their seconds."""
        with self._changed:
            self._target = self.step + steps
            self._waiting = False
            self._changed.notify_all()
        self._wait()
        return self._end - self._begin

    def profile(self, steps: int) -> dict[str, Any]:
        """Let the run make some steps while its threads are looked at; return where they were (`Looks.found`)."""
        with Looks({threading.get_ident()}) as looks:
            self.advance(steps)
        return looks.found()

    def close(self) -> None:
        """End the run and its workers."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(30)
        self._folder.cleanup()
