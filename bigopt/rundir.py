"""The run directory: everything a run leaves behind, in plain formats.

::

    conf.yml        resolved, written first
    manifest.json   versions, machine, command, data, what null became
    facts.npz       what the first pass over the data found (counts, moments, classes)
    metrics.jsonl   one line a record
    log.txt         what was printed
    checkpoints/    the last K states
    model/          params and layout (npz), model.json with coefficients on the original scale
    *.png           pictures
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from bigopt import __version__
from bigopt.core import codec
from bigopt.core.errors import CheckpointError, ConfError


def plain(value: Any) -> Any:
    """Return a value for JSON: NaN and infinities become null, tuples lists, NumPy scalars numbers."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class RunDir:
    """A run directory that this process holds the lock of.

    Parameters
    ----------
    path : Path
        Exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock = self._take_lock()
        self._metrics: IO[str] | None = None

    @classmethod
    def create(cls, parent: Path, name: str) -> RunDir:
        """Make a new directory ``<time>-<name>[-k]`` below `parent`.

        Raises
        ------
        CheckpointError
            Where it cannot be made.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for k in range(10_000):
                path = parent / (f"{stamp}-{name}" if k == 0 else f"{stamp}-{name}-{k}")
                with contextlib.suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                    return cls(path)
        except OSError as error:
            raise CheckpointError(f"cannot make a run directory: {error.strerror}", where=str(parent)) from error
        raise CheckpointError("too many runs in one second", where=str(parent))

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open an existing run directory and take its lock."""
        if not (path / "conf.yml").is_file():
            raise ConfError("not a run directory (no conf.yml)", where=str(path), hint="give what train printed as run")
        return cls(path)

    def _take_lock(self) -> IO[str]:
        try:
            handle = open(self.path / ".lock", "a+", encoding="ascii")  # noqa: SIM115  held for the life of the run
        except OSError as error:
            raise CheckpointError(f"cannot write: {error.strerror}", where=str(self.path)) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            raise ConfError("another process is using this run directory", where=str(self.path)) from error
        return handle

    def write_text(self, name: str, text: str) -> Path:
        """Write a small text file atomically."""
        path = self.path / name
        try:
            with codec.atomic_file(path) as handle:
                handle.write(text.encode())
        except OSError as error:
            raise CheckpointError(f"cannot write: {error.strerror}", where=str(path)) from error
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file atomically."""
        return self.write_text(name, json.dumps(plain(value), indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read: {error}", where=str(path)) from error

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self._append("metrics.jsonl", json.dumps(plain(record)) + "\n")

    def cut_metrics(self, steps: int) -> None:
        """Forget records after `steps`: a resumed run makes them again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) is not None and (_step_of(line) or 0) <= steps]
            self.write_text("metrics.jsonl", "".join(line + "\n" for line in kept))

    def update(self, ticket: int, version: int, worker: int) -> None:
        """Append one line to updates.csv: ticket applied, version its gradient was read from, worker."""
        self._append("updates.csv", f"{ticket},{version},{worker}\n")

    def cut_updates(self, updates: int) -> None:
        """Begin updates.csv, or forget the lines after so many updates."""
        path = self.path / "updates.csv"
        lines = path.read_text(encoding="ascii").splitlines() if path.exists() else ["ticket,version,worker"]
        self.write_text("updates.csv", "".join(line + "\n" for line in lines[: updates + 1]))

    def log(self, text: str) -> None:
        """Append a line to log.txt."""
        self._append("log.txt", f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")

    def _append(self, name: str, text: str) -> None:
        try:
            with open(self.path / name, "a", encoding="utf-8") as handle:
                handle.write(text)
        except OSError as error:
            raise CheckpointError(f"cannot write: {error.strerror}", where=str(self.path / name)) from error

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()


def _step_of(line: str) -> int | None:
    """Step of a metrics line; None for a torn one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def machine() -> dict[str, Any]:
    """Return what the manifest says about this machine and its software."""
    import importlib.metadata as metadata

    versions = {"python": platform.python_version(), "bigopt": __version__}
    for package in ("numpy", "zarr", "pyarrow", "dask", "distributed", "pyspark", "cupy-cuda13x"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "versions": versions,
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "command": sys.argv,
    }
