"""What every strategy loses against sync: an MLP and softmax regression on Fashion-MNIST, two workers.

``python -m benchmarks.strategies [--only loss|accuracy] [--cases NAME ...] [--seeds 0,1,2]
[--backend local|dask|spark] [--address MASTER] [--shards-on driver|workers] [--runs N]``

Loss: 784-128-10 with ReLU, pixels / 255 and centred, batch 128, 5 epochs over all rows, learning rate to 0 by cosine;
the training loss over all rows at the end over that of sync with the same seed, mean over the seeds. Accuracy: softmax,
sgd 0.1, batch 128, 3 epochs; of the 10,000 test images, as the distance to sync in points too. Each row says its bar
and whether it is reached; the exit status is 1 where one is missed, 3 where runs are left (`benchmarks.fashion`).
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

import numpy as np

from benchmarks.fashion import CENTRED, MLP, Row, Runs, merged, options


class Case(NamedTuple):
    """A line of the table: keys that differ from sync's, and the bar (None: reported only)."""

    name: str
    keys: tuple[str, ...]
    bar: float | None


def _downpour(n: int, optimizer: str, server: float, local: float, batch: int) -> tuple[str, ...]:
    return (
        *("strategy.name=downpour", "strategy.replicas=2", "strategy.shards=2", f"batch.size={batch}"),
        *(f"strategy.n_push={n}", f"strategy.n_fetch={n}", f"strategy.local_learning_rate={local}"),
        *(f"optimizer.name={optimizer}", f"schedule.learning_rate={server}"),
    )


def _easgd(every: int) -> tuple[str, ...]:
    return ("strategy.name=easgd", "strategy.replicas=2", f"strategy.every={every}", "schedule.learning_rate=0.15")


def _local_sgd(k: int) -> tuple[str, ...]:
    return ("strategy.name=local_sgd", "strategy.replicas=2", f"strategy.local_steps={k}")


NEAR: Final = 1.02
LEAST: Final = 0.81
SYNC = Case("sync", (), None)
LOSS = (
    Case("backup", ("strategy.name=backup", "strategy.spares=1"), NEAR),
    Case("async", ("strategy.name=async",), NEAR),
    Case("ssp, bound 3", ("strategy.name=ssp", "strategy.bound=3"), NEAR),
    *(Case(f"local_sgd, {k} steps", _local_sgd(k), NEAR) for k in (4, 16)),
    *(Case(f"easgd, every {k}, rate 0.15", _easgd(k), NEAR) for k in (1, 10)),
    *(
        Case(f"downpour, adagrad 0.01, n = {n}", _downpour(n, "adagrad", 0.01, 0.1, 256), None if n == 10 else NEAR)
        for n in (1, 5, 10)
    ),
    *(
        Case(f"downpour, sgd 0.1, n = {n}", _downpour(n, "sgd", 0.1, 0.1, 256), None if n == 10 else NEAR)
        for n in (5, 10)
    ),
    Case("model_parallel, units", ("strategy.name=model_parallel", "strategy.blocks=2"), NEAR),
    Case("model_parallel, layers", ("strategy.name=model_parallel", "strategy.split=layers"), NEAR),
    Case("hybrid, 2 groups of 2", ("strategy.name=hybrid", "strategy.blocks=2", "strategy.replicas=2"), NEAR),
    Case("hogwild", ("strategy.name=hogwild",), None),
    Case("averaging once", _local_sgd(100_000), None),
)
ACCURACY = (
    Case("backup", ("strategy.name=backup", "strategy.spares=1"), LEAST),
    Case("async", ("strategy.name=async",), LEAST),
    Case("ssp, bound 3", ("strategy.name=ssp", "strategy.bound=3"), LEAST),
    *(Case(f"local_sgd, {k} steps", _local_sgd(k), LEAST) for k in (4, 16)),
    Case("averaging once", _local_sgd(100_000), LEAST),
    Case("hogwild", ("strategy.name=hogwild",), LEAST),
    *(Case(f"downpour, sgd 0.1, n = {n}", _downpour(n, "sgd", 0.1, 0.1, 128), LEAST) for n in (1, 5)),
    *(Case(f"easgd, every {k}, rate 0.15", _easgd(k), LEAST) for k in (1, 10)),
    Case("model_parallel, columns, driver", ("strategy.name=model_parallel", "strategy.blocks=2"), LEAST),
    Case(
        "model_parallel, columns, worker",
        ("strategy.name=model_parallel", "strategy.blocks=2", "strategy.update_on=worker"),
        LEAST,
    ),
    Case(
        "hybrid, 1 group of 2",
        ("strategy.name=hybrid", "strategy.blocks=2", "model.name=mlp", "model.hidden=[]", "model.init=zeros"),
        LEAST,
    ),
)
SGD = ("optimizer.name=sgd", "schedule.learning_rate=0.1")
SOFTMAX = (*CENTRED, *SGD, "model.name=softmax", "stop.epochs=3", "checkpoint.every_seconds=null")


def table(part: str, cases: list[Case], common: list[str], runs: Runs, seeds: list[int]) -> tuple[list[Row], str]:
    """Train what is not kept; return the lines of a part, and them as a table."""
    value = "loss" if part == "loss" else "accuracy"
    sync, rows = dict[int, float](), list[Row]()
    for case in (SYNC, *cases):
        found = {seed: runs(f"{part}/{case.name}", seed, merged(common, case.keys)) for seed in seeds}
        values = {seed: run[value] for seed, run in found.items() if run is not None}
        if case is SYNC:
            sync = values
        values = {seed: v for seed, v in values.items() if seed in sync}
        if not values:
            continue
        over = [v / sync[seed] if part == "loss" and case is not SYNC else v for seed, v in values.items()]
        spent = np.mean([run["seconds"] for run in found.values() if run is not None])
        mean, points = float(np.mean(over)), float(np.mean(over) - np.mean([sync[seed] for seed in values]))
        good = mean <= (case.bar or 0) if part == "loss" else mean >= (case.bar or 0) and abs(points) <= 0.01
        bar = "" if case.bar is None else f"at most {case.bar}" if part == "loss" else f"{case.bar}, within 1 point"
        cells = case.name, f"{mean:.4f}", " ".join(f"{v:.4f}" for v in over), f"{spent:.0f}", bar
        rows.append(Row(cells, bool(good) if case.bar is not None and len(values) == len(seeds) else None))
    return rows, runs.table(
        (part, "loss / sync" if part == "loss" else "test accuracy", "by seed", "seconds", "bar"), rows
    )


def main() -> int:
    """Print both tables."""
    parser = options(__doc__ or "")
    parser.add_argument("--only", choices=("loss", "accuracy"))
    parser.add_argument("--shards-on", choices=("driver", "workers"), default="driver")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    chosen = parser.parse_args()
    name = "strategies" if chosen.shards_on == "driver" else "strategies-shards-on-workers"
    parts = [("loss", LOSS, merged(MLP, SGD)), ("accuracy", ACCURACY, list(SOFTMAX))]
    parts = [part for part in parts if chosen.only in (None, part[0])]
    if chosen.list:
        print("\n".join(f"{part}: {case.name}" for part, cases, _ in parts for case in cases))
        return 0
    runs, rows, texts = Runs(name, chosen), list[Row](), list[str]()
    for part, cases, common in parts:
        wanted = [case for case in cases if case.name.startswith(tuple(chosen.cases) or "")]
        if chosen.shards_on == "workers":
            wanted = [
                case._replace(keys=(*case.keys, "strategy.shards_on=workers"))
                for case in wanted
                if case.name.startswith("downpour")
            ]
        more = [] if part == "loss" else [f"data.validation={runs.test}"]
        found, text = table(part, wanted, common + more, runs, chosen.seeds)
        rows += found
        texts.append(text)
    return runs.status(rows, "\n\n".join(texts))


if __name__ == "__main__":
    sys.exit(main())
