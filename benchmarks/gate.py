"""A run of bigopt that is let through a few steps at a time.

`fit.train` runs in a thread, as a user's program would call it, with everything that belongs to a step: orders, Map,
Reduce, update, metrics. Its ``on_step`` callback is the gate: it hands the parameters out and waits until more steps
are asked for, so that steps can be timed in turn with a peer's, and nothing is started or loaded again in between.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.player import SideError, Skip

Array = npt.NDArray[Any]


def _short(path: str) -> str:
    """Return the path of a module within its package's folder."""
    return path.rpartition("/site-packages/")[2].rpartition("/bigopt/")[2]


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
        """Let the run make some steps while its threads are looked at every 2 ms; return where they were.

        Returns
        -------
        dict
            ``seconds`` of a step, and for each group of threads the share of looks at which it was in a line of code,
            the most frequent first. A thread inside NumPy or a compiled kernel is seen at the line that called it.
        """
        seen: dict[str, Counter[str]] = {}
        done = threading.Event()
        mine = threading.get_ident()

        def look() -> None:
            while not done.wait(0.002):
                names = {t.ident: t.name for t in threading.enumerate()}
                for ident, frame in sys._current_frames().items():
                    name = names.get(ident, "?").rstrip("0123456789")
                    if ident not in (mine, threading.get_ident()) and name.startswith("bigopt"):
                        place = f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"
                        caller = frame.f_back
                        if caller is not None:
                            place += f" {frame.f_code.co_name} < {caller.f_code.co_name}:{caller.f_lineno}"
                        seen.setdefault(name, Counter())[place] += 1

        looker = threading.Thread(target=look, daemon=True)
        looker.start()
        seconds = self.advance(steps)
        done.set()
        looker.join()
        threads = {
            name: {place: round(n / counts.total(), 3) for place, n in counts.most_common(12)}
            for name, counts in seen.items()
        }
        return {"seconds": seconds / steps, "threads": threads}

    def close(self) -> None:
        """End the run and its workers."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(30)
        self._folder.cleanup()
