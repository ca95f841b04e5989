"""A million columns are never made dense: readers hold pieces, training stays within data.memory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bigopt.core.csr import CSR
from bigopt.data.cache import BlockCache
from bigopt.data.columns import x_names
from bigopt.data.meter import Meter
from bigopt.data.open import open_dataset
from bigopt.data.view import DataView
from bigopt.data.writer import DatasetWriter

COLUMNS, NONZEROS = 1_000_000, 100
MEMORY, SLACK = 60_000_000, 64_000_000


def rows(count: int, seed: int) -> tuple[CSR, Any]:
    """Rows of exactly 100 values, one in each ten thousand columns, and labels that a linear function decides."""
    rng = np.random.default_rng(seed)
    own = 20
    width = COLUMNS // NONZEROS
    offsets = rng.integers(0, own, (count, NONZEROS))
    indices = offsets * (width // own) + np.arange(NONZEROS) * width
    data = np.round(rng.normal(size=(count, NONZEROS)), 3)
    weights = np.random.default_rng(99).normal(size=(own, NONZEROS))
    score = (data * weights[offsets, np.arange(NONZEROS)]).sum(axis=1)
    indptr = np.arange(0, count * NONZEROS + 1, NONZEROS)
    return CSR(data.ravel(), indices.ravel().astype(np.int32), indptr, COLUMNS), np.where(score > 0, 1, -1)


def write(path: Path, count: int) -> str:
    form, step = path.suffix[1:], 2000
    if form == "svm":
        with path.open("w") as handle:
            for k, start in enumerate(range(0, count, step)):
                X, y = rows(min(step, count - start), k)
                for label, row in zip(y.tolist(), np.arange(len(y)).tolist(), strict=True):
                    at = slice(row * NONZEROS, (row + 1) * NONZEROS)
                    pairs = zip(X.indices[at].tolist(), X.data[at].tolist(), strict=True)
                    handle.write(f"{label:+d} " + " ".join(f"{j}:{v}" for j, v in pairs) + "\n")
        return str(path)
    options: dict[str, Any] = {"columns": x_names(COLUMNS), "target": ["y"], "layout": "sparse"}
    with DatasetWriter(str(path), format=form, **options) as writer:  # type: ignore[arg-type]
        for k, start in enumerate(range(0, count, step)):
            writer.append(*rows(min(step, count - start), k))
    return str(path)


@pytest.mark.parametrize("form", ["zarr", "parquet", "svm"])
def test_readers_hold_pieces_and_blocks_hold_nonzeros(tmp_path: Path, form: str) -> None:
    count = 4000
    dataset = open_dataset(write(tmp_path / f"d.{form}", count))
    bounds = np.array([0, *(p.stop for p in dataset.partitions)])
    view = DataView(dataset.source, bounds, "float64")
    total = sum(view.decoded_bytes(m) for m in range(view.partitions))
    assert abs(total / (count * NONZEROS * 16) - 1) < 0.05
    list(dataset.source.pieces(dataset.partitions[0]))
    meter = Meter(BlockCache(10 * total))
    tracemalloc.start()
    try:
        for m in range(view.partitions):
            with meter.block(view, m) as entry:
                assert isinstance(entry.block.X, CSR)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held <= total
    assert meter.blocks.held == total
    assert peak - held < 24_000_000  # a piece of text and what it is parsed to; the rows as an array take 32 GB


def memory_of(pid: int) -> int:
    """Anonymous and shared memory of a process, bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def peak_of(data: str, runs: Path) -> tuple[int, dict[str, Any]]:
    """Train in a process of its own; return its peak and the result."""
    command = [
        *(sys.executable, "-m", "bigopt.cli", "train", "--json", f"data.uri={data}", f"data.memory={MEMORY}"),
        *("backend.name=local", "backend.workers=2", f"run.dir={runs}", "model.name=logistic"),
        *("model.standardize=false", "optimizer.name=adagrad", "schedule.learning_rate=0.5"),
        *("batch.size=2000", "stop.epochs=2"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate(timeout=800)
    watcher.join()
    assert process.returncode == 0, err
    return peak, json.loads(out)


@pytest.mark.all
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", ["zarr", "parquet", "svm"])
def test_training_stays_within_its_memory(tmp_path: Path, form: str) -> None:
    few, _ = peak_of(write(tmp_path / f"few.{form}", 200), tmp_path / "runs")
    many, result = peak_of(write(tmp_path / f"many.{form}", 100_000), tmp_path / "runs")
    assert "batch.sampling: block" in (Path(result["run"]) / "log.txt").read_text()
    assert result["metrics"]["accuracy"] > 0.9
    print(f"{form}: {(many - few) / 1e6:.0f} MB above {few / 1e6:.0f} MB (bound {MEMORY / 1e6:.0f} + 64)")
    assert psutil.virtual_memory().total > many
    assert many - few <= MEMORY + SLACK
