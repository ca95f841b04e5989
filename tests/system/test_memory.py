"""Data four times larger than ``data.memory`` trains on every backend, and no process holds more than its bound.

CONTRACTS: peak anonymous + shared memory stays below (memory after all imports and one warm-up block) + data.memory +
the vectors + 64 MB. The first term is measured by the same command on a few rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from bigopt.data.writer import DatasetWriter

MEMORY = 100_000_000
COLUMNS = 50
ROWS = 4 * MEMORY // (8 * COLUMNS)
SLACK = 64_000_000


def write(path: Path, rows: int) -> Path:
    """Incompressible float64 features and a linear target."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=COLUMNS)
    names = [f"x{i}" for i in range(COLUMNS)]
    form = path.suffix[1:]
    with DatasetWriter(str(path), format=form, columns=names, target=["y"]) as writer:  # type: ignore[arg-type]
        for start in range(0, rows, 20_000):
            X = rng.normal(size=(min(20_000, rows - start), COLUMNS))
            writer.append(X, X @ w)
    return path


def memory_of(pid: int) -> int:
    """Anonymous and shared memory of a process, bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def peaks(data: Path, runs: Path, backend: str, *keys: str) -> tuple[int, int, dict]:
    """Train in a process of its own; return the peaks of the driver and of the largest worker, and the result."""
    command = [
        *(sys.executable, "-m", "bigopt.cli", "train", "--json", f"data.uri={data}", f"data.memory={MEMORY}"),
        *(f"backend.name={backend}", "backend.workers=2", f"run.dir={runs}", "model.name=ridge"),
        *("optimizer.name=adam", "schedule.learning_rate=0.03", "batch.size=2000", "stop.epochs=2", *keys),
    ]
    seen: dict[int, int] = {}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def watch() -> None:
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                found = [parent, *parent.children(recursive=True)]
                pids = [p.pid for p in found if "python" in p.name()]
            except psutil.Error:
                continue
            for pid in pids:
                seen[pid] = max(seen.get(pid, 0), memory_of(pid))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate(timeout=500)
    watcher.join()
    assert process.returncode == 0, err
    driver = seen.pop(process.pid)
    return driver, max(seen.values(), default=0), json.loads(out)


@pytest.mark.all
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", ["zarr", "parquet"])
@pytest.mark.parametrize("backend", ["local", "dask", "spark"])
def test_out_of_core_training_stays_within_its_memory(tmp_path, form, backend, record_property):
    few, many = write(tmp_path / f"few.{form}", 2_000), write(tmp_path / f"many.{form}", ROWS)
    before = peaks(few, tmp_path / "runs", backend)
    after = peaks(many, tmp_path / "runs", backend)
    log = (Path(after[2]["run"]) / "log.txt").read_text()
    assert "batch.sampling: block" in log
    assert after[2]["metrics"]["r2"] > 0.99
    for role, low, high in zip(("driver", "worker"), before, after, strict=False):
        grown = high - low
        record_property(role, f"{grown / 1e6:.0f} MB above {low / 1e6:.0f} MB")
        print(f"{backend} {form} {role}: {grown / 1e6:.0f} MB above {low / 1e6:.0f} MB (bound {MEMORY / 1e6:.0f} + 64)")
        assert grown <= MEMORY + SLACK
