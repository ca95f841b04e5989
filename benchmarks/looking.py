"""Where the time goes: looks at every thread of this process, again and again, and counts in which line it is.

A thread inside NumPy or a compiled kernel is seen at the line that called it; one that waits,
where it waits. The CPU time of each kind of thread says how much of that was work.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
from collections import Counter
from typing import Any

from benchmarks.player import ROOT

_STDLIB = sysconfig.get_path("stdlib")
_EVERY_SECONDS = 0.002
_SHOWN = 12


class Looks:
    """Looks while a with statement lasts.

    Parameters
    ----------
    but : set of int
        Threads that are left out (identifiers).
    """

    def __init__(self, but: set[int] | None = None) -> None:
        self._but = but or set()
        self._seen: dict[str, Counter[str]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._seconds = 0.0
        self._before: dict[int, tuple[str, float]] = {}
        self._cpu: dict[str, float] = {}

    def __enter__(self) -> Looks:
        self._begin = time.perf_counter()
        self._before = _clocks()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._seconds = time.perf_counter() - self._begin
        for ident, (name, seconds) in _clocks().items():
            if ident not in self._but:
                self._cpu[name] = self._cpu.get(name, 0.0) + seconds - self._before.get(ident, ("", 0.0))[1]

    def _look(self) -> None:
        while not self._done.wait(_EVERY_SECONDS):
            names = {t.ident: t.name for t in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident in self._but or ident == self._thread.ident:
                    continue
                name = _kind(names.get(ident, "?"))
                place = f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"
                if (caller := frame.f_back) is not None:
                    place += f" {frame.f_code.co_name} < {caller.f_code.co_name}:{caller.f_lineno}"
                self._seen.setdefault(name, Counter())[place] += 1

    def found(self) -> dict[str, Any]:
        """Return ``seconds``, CPU seconds, and the share of looks at a line of code, both for each kind of thread."""
        threads = {
            name: {place: round(n / counts.total(), 3) for place, n in counts.most_common(_SHOWN)}
            for name, counts in self._seen.items()
        }
        return {
            "seconds": self._seconds,
            "cpu": {name: self._cpu.get(name, 0.0) for name in threads},
            "threads": threads,
        }


def _kind(name: str) -> str:
    return name.rstrip("0123456789-_")


def _clocks() -> dict[int, tuple[str, float]]:
    """Return the kind and the CPU seconds of each thread, where the system says them."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return {}
    return {
        t.ident: (_kind(t.name), time.clock_gettime(time.pthread_getcpuclockid(t.ident)))
        for t in threading.enumerate()
        if t.ident is not None and t.is_alive()
    }


def _short(path: str) -> str:
    """Return the path of a module within its package's folder."""
    for folder in ("/site-packages/", "/bigopt/", f"{ROOT}/", f"{_STDLIB}/"):
        path = path.rpartition(folder)[2]
    return path
