"""An epoch of mini-batches of a small network: many short steps, where everything but the products shows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import data
from benchmarks.data import Table
from benchmarks.machine import cores
from benchmarks.rows.common import SIDES, ratio
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar

WIDTHS: Final = [784, 256, 10]
BATCH: Final = 512
LEARNING_RATE: Final = 1e-3


def table(scale: Scale) -> Table:
    """Return 60,000 digits of 784 pixels."""
    return Table("digits", scale.pick(60_000, 30_000, 3_000), WIDTHS[0], WIDTHS[-1])


def steps(table: Table) -> int:
    """Return the steps of an epoch."""
    return -(-table.rows // BATCH)


def start(work: Path) -> Path:
    """Make the parameters that everybody starts with, in bigopt's order."""
    path = work / f"start-{'-'.join(map(str, WIDTHS))}.npy"
    if not path.exists():
        rng = np.random.default_rng(5)
        parts = [
            part
            for n, m in itertools.pairwise(WIDTHS)
            for part in (rng.uniform(-1, 1, n * m) * (6 / (n + m)) ** 0.5, np.zeros(m))
        ]
        np.save(path, np.concatenate(parts))
    return path


def keys(work: Path, backend: str = "local", **more: Any) -> list[str]:
    """Return the conf of the network with Adam."""
    found = {
        "model.name": "mlp",
        "model.hidden": WIDTHS[1:-1],
        "model.activation": "relu",
        "model.init": start(work),
        "data.task": "classification",
        "data.classes": list(range(WIDTHS[-1])),
        "data.memory": "4GB",
        "optimizer.name": "adam",
        "schedule.learning_rate": LEARNING_RATE,
        "batch.size": BATCH,
        "backend.name": backend,
        "backend.workers": len(cores()),
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return [f"{key}={value}" for key, value in found.items()]


def sides(scale: Scale) -> Mapping[str, Side]:
    """An epoch of a run with params in float64 (the default) and in float32; PyTorch by slices and by DataLoader."""
    digits = table(scale)
    folder = str(data.arrays(digits, scale.work))
    referee = {"kind": "network", "folder": folder, "widths": WIDTHS}
    torch = {
        "folder": folder,
        "widths": WIDTHS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "init": str(start(scale.work)),
    }

    def ours(**more: str) -> Side:
        arguments = {"keys": keys(scale.work, **more), "steps": steps(digits), "memory": folder, "referee": referee}
        return Side(f"{SIDES}.ours:Epoch", arguments)

    def peer(group: str, **more: Any) -> Side:
        return Side(f"{SIDES}.torch_cpu:MiniBatches", {**torch, **more}, group=group)

    return {
        "bigopt": ours(),
        "bigopt float32": ours(run__dtype="float32"),
        "torch fused": peer("torch slices"),
        "torch foreach": peer("torch slices", fused=False),
        "torch loader": peer("torch DataLoader", loader=0),
        "torch loader, 2 processes": peer("torch DataLoader", loader=2),
        "sklearn": Side(
            f"{SIDES}.sklearn_cpu:NetworkEpoch",
            {"folder": folder, "hidden": WIDTHS[1:-1], "batch": BATCH, "learning_rate": LEARNING_RATE},
        ),
        "products": Side(f"{SIDES}.limits:MatrixProduct", {"rows": BATCH, "widths": WIDTHS}),
    }


ROW = Row(
    "mlp",
    "MLP 784-256-10, batch 512, Adam, epoch over 60,000 rows, local, default lanes",
    sides,
    (
        Figure("of PyTorch's slicing loop", ratio("torch slices", "bigopt"), Bar("at least", 1)),
        Figure("of PyTorch's DataLoader", ratio("torch DataLoader", "bigopt"), Bar("at least", 1.5)),
        Figure("of the slicing loop, params in float32 (run.dtype)", ratio("torch slices", "bigopt float32")),
        Figure("of scikit-learn's MLPClassifier", ratio("sklearn", "bigopt")),
        Figure("a step", lambda r: 1e3 * r["bigopt"]["step"], None, "ms"),
        Figure("of a step, its matrix products", lambda r: r["products"]["seconds"] / r["bigopt"]["step"]),
        Figure("rate of the products", lambda r: r["products"]["gflop_per_s"], None, "GFLOP/s"),
    ),
    same_loss=((("bigopt", "bigopt float32"), 0.01), (("bigopt", "torch slices", "torch DataLoader"), 0.05)),
    seconds=70,
)
