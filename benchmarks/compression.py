"""What compressed gradients cost in loss and save in bytes: an MLP on Fashion-MNIST, two replicas.

``python -m benchmarks.compression [--cases NAME ...] [--seeds 0,1,2] [--backend local|dask|spark] [--runs N]``

784-128-10 with ReLU, pixels / 255 and centred, batch 128, 5 epochs, learning rate to 0 by cosine, params in float32.
For each case: the training loss at the end over that of the uncompressed run with the same optimizer and seed, mean
over the seeds; how many times fewer bytes the codes are than the gradients; and, on an engine with processes, how many
times fewer all bytes up (residuals, headers, evaluation), down, and both ways together. The bars are on the loss with
sgd and momentum (without error feedback: visibly worse, which is taken as 5 %) and on the gradients' bytes.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np

from benchmarks.fashion import MLP, Row, Runs, merged, options

OPTIMIZERS: Final = {
    "sgd": ("optimizer.name=sgd", "schedule.learning_rate=0.1"),
    "momentum": ("optimizer.name=momentum", "schedule.learning_rate=0.01"),
    "adam": ("optimizer.name=adam", "schedule.learning_rate=0.001"),
}
COMPRESSIONS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "top_k": ("strategy.compression.name=top_k",),
    "top_k, no feedback": ("strategy.compression.name=top_k", "strategy.compression.error_feedback=false"),
    "random_k": ("strategy.compression.name=random_k",),
    "sign": ("strategy.compression.name=sign",),
    "int8": ("strategy.compression.name=int8",),
}
CASES: Final = [f"{optimizer}/{compression}" for optimizer in OPTIMIZERS for compression in COMPRESSIONS]
COMMON: Final = (*MLP, "model.init=he_uniform", "run.dtype=float32")
FEWER: Final = {"top_k": 30.0, "top_k, no feedback": 30.0, "sign": 30.0, "int8": 3.9}
WORSE: Final = 1.05
NEAR: Final = 1.02


def bars(case: str) -> tuple[float | None, float | None, float | None]:
    """Return the bars of a case: loss at most, loss at least, times fewer bytes."""
    optimizer, compression = case.split("/")
    at_most = NEAR if compression == "top_k" and optimizer != "adam" else None
    at_least = WORSE if compression == "top_k, no feedback" and optimizer != "adam" else None
    return at_most, at_least, FEWER.get(compression)


def row(case: str, found: dict[int, dict[str, Any]], plain: dict[int, dict[str, Any]], seeds: list[int]) -> Row:
    """Return the line of a case."""
    over = [found[seed]["loss"] / plain[seed]["loss"] for seed in found]
    ledgers = [(found[seed]["ledger"], plain[seed]["ledger"]) for seed in found]
    codes = [mine["bytes_uncoded"] / mine["bytes_codes"] for mine, _ in ledgers if mine["bytes_codes"]]
    ways = ("bytes_received",), ("bytes_sent",), ("bytes_received", "bytes_sent")
    wire = [
        f"{np.mean([sum(theirs[k] for k in way) / sum(mine[k] for k in way) for mine, theirs in ledgers]):.2f}"
        if all(mine["bytes_received"] for mine, _ in ledgers)
        else ""
        for way in ways
    ]
    at_most, at_least, fewer = bars(case)
    mean = float(np.mean(over))
    parts = [f"loss at most {at_most}"] * (at_most is not None) + [f"loss at least {at_least}"] * (at_least is not None)
    parts += [f"gradients {fewer} times fewer"] * (fewer is not None)
    good = (at_most is None or mean <= at_most) and (at_least is None or mean >= at_least)
    good = good and (fewer is None or min(codes) >= fewer)
    shown = f"{np.mean(codes):.2f}" if codes else ""
    cells = case, f"{mean:.4f}", " ".join(f"{v:.4f}" for v in over), shown, *wire, ", ".join(parts)
    return Row(cells, good if parts and len(found) == len(seeds) else None)


def main() -> int:
    """Print a line a case."""
    parser = options(__doc__ or "")
    chosen = parser.parse_args()
    runs, rows = Runs("compression", chosen), list[Row]()
    wanted = [case for case in CASES if case.startswith(tuple(chosen.cases) or "")]
    for case in wanted:
        optimizer, compression = case.split("/")
        both = dict[str, dict[int, dict[str, Any]]]()
        for name in dict.fromkeys(("none", compression)):
            keys = merged(COMMON, OPTIMIZERS[optimizer], COMPRESSIONS[name])
            made = {seed: runs(f"{optimizer}/{name}", seed, keys) for seed in chosen.seeds}
            both[name] = {seed: found for seed, found in made.items() if found is not None}
        found = {seed: run for seed, run in both[compression].items() if seed in both["none"]}
        if found:
            rows.append(row(case, found, both["none"], chosen.seeds))
    title = "case", "loss / uncompressed", "by seed", "gradients", "all up", "down", "both", "bar"
    return runs.status(rows, runs.table(title, rows))


if __name__ == "__main__":
    sys.exit(main())
