"""What compressed gradients cost in loss and save in bytes: an MLP on Fashion-MNIST, two replicas.

``python -m benchmarks.compression [CASE ...] [--seeds 0 1 2] [--data FOLDER] [--backend local]``

784-128-10 with ReLU, pixels / 255 and centred, batch 128, 5 epochs, learning rate to 0 by cosine. For each case: the
training loss at the end over that of the uncompressed run with the same optimizer and seed, mean over the seeds; the
bytes of the codes; and, on an engine with processes, all bytes up and down per step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bigopt.config import load_conf
from bigopt.facts import Datasets, open_data
from bigopt.fit import train

OPTIMIZERS = {
    "sgd": ("optimizer.name=sgd", "schedule.learning_rate=0.1"),
    "momentum": ("optimizer.name=momentum", "schedule.learning_rate=0.01"),
    "adam": ("optimizer.name=adam", "schedule.learning_rate=0.001"),
}
COMPRESSIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "top_k": ("strategy.compression.name=top_k",),
    "top_k, no feedback": ("strategy.compression.name=top_k", "strategy.compression.error_feedback=false"),
    "random_k": ("strategy.compression.name=random_k",),
    "sign": ("strategy.compression.name=sign",),
    "int8": ("strategy.compression.name=int8",),
}
CASES = [f"{optimizer}/{compression}" for optimizer in OPTIMIZERS for compression in COMPRESSIONS]
COMMON = (
    *("data.task=classification", "model.name=mlp", "model.hidden=[128]", "model.activation=relu"),
    *("model.standardize=center", "model.init=he_uniform", "batch.size=128", "schedule.name=cosine", "stop.epochs=5"),
    *("run.dtype=float32", "backend.workers=2", "checkpoint.every_seconds=null"),
)


def fashion(folder: Path, out: Path) -> str:
    """Write the training images as Zarr, float32 in [0, 1]; return where."""
    from bigopt.data.writer import DatasetWriter

    with np.load(folder / "fashion_mnist_train.npz") as arrays:
        X, y = arrays["X"].astype(np.float32) / np.float32(255), arrays["y"].astype(np.int64)
    path = str(out / "fashion.zarr")
    names = [f"x{i}" for i in range(X.shape[1])]
    with DatasetWriter(path, format="zarr", columns=names, target=["y"], partition_rows=[7500] * 8) as writer:
        writer.append(X, y)
    return path


def run(data: Datasets, uri: str, out: str, case: str, seed: int, backend: str) -> dict[str, Any]:
    """Train one case; return its loss and bytes."""
    optimizer, compression = case.split("/")
    keys = (*COMMON, *OPTIMIZERS[optimizer], *COMPRESSIONS[compression])
    conf = load_conf([], [f"data.uri={uri}", f"run.dir={out}", f"run.seed={seed}", f"backend.name={backend}", *keys])
    result = train(conf, data=data)
    ledger = json.loads((Path(result["run"]) / "result.json").read_text())["ledger"]
    steps = result["steps"]
    return {
        "loss": result["loss"],
        "accuracy": result["metrics"]["accuracy"],
        "ratio": ledger["bytes_uncoded"] / ledger["bytes_codes"] if ledger["bytes_codes"] else 1.0,
        "up": ledger["bytes_received"] / steps,
        "down": ledger["bytes_sent"] / steps,
    }


def main() -> int:
    """Print a row a case, as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=Path("data/raw"))
    parser.add_argument("--backend", default="local")
    options = parser.parse_args()
    wanted = options.cases or CASES
    if unknown := sorted(set(wanted) - set(CASES)):
        parser.error(f"no case {unknown[0]}")
    with tempfile.TemporaryDirectory() as folder:
        uri = fashion(options.data, Path(folder))
        data = open_data(load_conf([], [f"data.uri={uri}", *COMMON]))
        plain: dict[tuple[str, int], float] = {}
        for case in sorted(wanted, key=CASES.index):
            rows = []
            for seed in options.seeds:
                base = case.split("/")[0], seed
                if base not in plain:
                    whole = run(data, uri, folder, f"{base[0]}/none", seed, options.backend)
                    plain[base] = whole["loss"]
                row = whole if case.endswith("/none") else run(data, uri, folder, case, seed, options.backend)
                rows.append({**row, "over": row["loss"] / plain[base]})
            mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            spread = max(row["over"] for row in rows) - min(row["over"] for row in rows)
            print(json.dumps({"case": case, **{k: round(v, 4) for k, v in mean.items()}, "spread": round(spread, 4)}))
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
