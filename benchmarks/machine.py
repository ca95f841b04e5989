"""What the machine did and is: CPU time of process trees and cores, memory, versions. Linux's /proc; elsewhere nothing
is known, every round counts, and the report says so.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from benchmarks.statistics import Load

PACKAGES: Final = (
    "bigopt", "numpy", "numba", "scipy", "scikit-learn", "torch", "dask", "distributed", "dask-ml", "pyspark",
    "pyarrow", "zarr", "numcodecs", "matplotlib",
)  # fmt: skip

_COMPILERS: Final = ("C1 Compiler", "C2 Compiler")
_LOOK_SECONDS: Final = 0.5
_GLANCES: Final = 10
"""How often children that nobody waits for are looked at between two looks at the whole tree."""


def cores() -> list[int]:
    """Return the numbers of the cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def busy_seconds() -> float:
    """Return the CPU time, in seconds since boot, that was not idle on our cores (stolen time included)."""
    mine = {f"cpu{number}" for number in cores()}
    total = 0
    for line in _lines("/proc/stat"):
        name, *fields = line.split()
        if name in mine:
            user, nice, system, _, _, irq, softirq, *rest = (int(field) for field in fields[:8])
            total += user + nice + system + irq + softirq + (rest[0] if rest else 0)
    return total / _tick()


def tree(root: int) -> list[int]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def signalled(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time of processes, of their ended children as well."""
    total = 0
    for pid in pids:
        if fields := _stat(pid):
            total += sum(int(field) for field in fields[11:15])
    return total / _tick()


def compiling_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that the compiler threads of Java machines among processes have taken."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                text = "".join(_lines(f"/proc/{pid}/task/{thread}/stat"))
                name, _, fields = text.partition("(")[2].rpartition(")")
                if name.startswith(_COMPILERS):
                    total += sum(int(field) for field in fields.split()[11:13])
    return total / _tick()


def held_bytes(pids: Iterable[int]) -> int:
    """Return the memory of processes, pages they share counted once (PSS)."""
    total = 0
    for pid in pids:
        for line in _lines(f"/proc/{pid}/smaps_rollup"):
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


class Watch:
    """Reads the clocks of the machine at the beginning and at the end of a run.

    The CPU time of a process that ends goes to who waits for it. PySpark's daemon waits for nobody (it ignores SIGCHLD,
    and the kernel forgets the time of its workers): who does so is looked for every half second, and what the children
    of such a process had used is looked at twenty times a second, in files that name them, so that a worker that ends
    takes at most a twentieth of a second of our time with it.

    Parameters
    ----------
    root : int
        The process whose tree is ours.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self.known = bool(_lines("/proc/stat")) and bool(_stat(root))
        self._unwaited: dict[int, float] = {}
        self._deaf: set[int] = set()
        self._end = threading.Event()
        self._begin = self._read()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        if self.known:
            self._thread.start()

    def _follow(self) -> None:
        number = 0
        while not self._end.wait(_LOOK_SECONDS / _GLANCES):
            number += 1
            if number % _GLANCES == 0:
                self._look()
            for pid in [child for parent in self._deaf for child in _children(parent)]:
                self._unwaited[pid] = cpu_seconds([pid]) or self._unwaited.get(pid, 0.0)

    def _look(self) -> list[int]:
        found = tree(self._root)
        for pid in found:
            if (fields := _stat(pid)) and _ignores_children(parent := int(fields[1])):
                self._deaf.add(parent)
                self._unwaited[pid] = cpu_seconds([pid])
        return found

    def _read(self) -> tuple[float, float, float]:
        if not self.known:
            return time.perf_counter(), 0.0, 0.0
        found = self._look()
        gone = sum(used for pid, used in self._unwaited.items() if pid not in found)
        return time.perf_counter(), cpu_seconds(found) + gone, busy_seconds()

    def load(self) -> Load:
        """Return what happened since the beginning."""
        if self.known and not self._end.is_set():
            self._end.set()
            self._thread.join()
        wall, ours, machine = (end - begin for end, begin in zip(self._read(), self._begin, strict=True))
        return Load(wall, ours, machine, len(cores()))


def _children(pid: int) -> list[int]:
    """Return the children of a process that has one thread, where the kernel names them."""
    return [int(child) for line in _lines(f"/proc/{pid}/task/{pid}/children") for child in line.split()]


def _ignores_children(pid: int) -> bool:
    """Return whether a process lets its children end unheard."""
    return bool(int(_field(f"/proc/{pid}/status", "SigIgn") or "0", 16) >> (signal.SIGCHLD - 1) & 1)


class Peak:
    """Follows the largest memory of a process tree while a with statement lasts, ten times a second at most.

    Looking at it walks the tables of all pages: it is done so often only that it takes a twentieth of a core.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.bytes = 0

    def _follow(self) -> None:
        while not self._end.is_set():
            begin = time.perf_counter()
            self.bytes = max(self.bytes, held_bytes(tree(self._root)))
            self._end.wait(max(0.1, 19.0 * (time.perf_counter() - begin)))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, system and the versions of what is compared."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(cores()),
        "memory_gb": round(int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 1e6, 1),
        "system": platform.platform(),
        "java": _java(),
        "busy_check": bool(_lines("/proc/stat")),
        "versions": versions,
    }


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java" if home is None else os.path.join(home, "bin", "java"))
    if java is None:
        return "none"
    out = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    return out.splitlines()[0] if out else "unknown"


def _field(path: str, name: str) -> str:
    for line in _lines(path):
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on (state, ppid, ...); empty where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def _tick() -> int:
    return int(os.sysconf("SC_CLK_TCK"))
