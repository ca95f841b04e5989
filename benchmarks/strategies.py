"""What every strategy loses against sync: an MLP and softmax regression on Fashion-MNIST, two workers.

``python -m benchmarks.strategies [CASE ...] [--only loss|accuracy] [--seeds 0 1 2] [--backend local|dask|spark]
[--address MASTER] [--shards-on driver|workers] [--data FOLDER] [--rows N] [--epochs N]``

Loss: 784-128-10 with ReLU, pixels / 255 and centred, batch 128, 5 epochs over all rows, learning rate to 0 by cosine;
the training loss over all rows at the end over that of sync with the same seed, mean over the seeds. Accuracy: softmax,
sgd 0.1, batch 128, 3 epochs; of the 10,000 test images, as the distance to sync in points too. Each row says its bar
and whether it is reached; the exit status is 1 where one is missed. ``--rows`` and ``--epochs`` make it short, and the
bars meaningless.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigopt.config import load_conf
from bigopt.core.errors import ConfError
from bigopt.facts import Datasets, open_data
from bigopt.fit import train

PARTITIONS = 8


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


SYNC = Case("sync", (), None)
LOSS = (
    Case("async", ("strategy.name=async",), 1.02),
    Case("ssp, bound 3", ("strategy.name=ssp", "strategy.bound=3"), 1.02),
    *(Case(f"local_sgd, {k} steps", _local_sgd(k), 1.02) for k in (4, 16)),
    *(Case(f"easgd, every {k}, rate 0.15", _easgd(k), 1.02) for k in (1, 10)),
    *(
        Case(f"downpour, adagrad 0.01, n = {n}", _downpour(n, "adagrad", 0.01, 0.1, 256), None if n == 10 else 1.02)
        for n in (1, 5, 10)
    ),
    *(
        Case(f"downpour, sgd 0.1, n = {n}", _downpour(n, "sgd", 0.1, 0.1, 256), None if n == 10 else 1.02)
        for n in (5, 10)
    ),
    Case("model_parallel, units", ("strategy.name=model_parallel", "strategy.blocks=2"), 1.02),
    Case("model_parallel, layers", ("strategy.name=model_parallel", "strategy.split=layers"), 1.02),
    Case("hybrid, 2 groups of 2", ("strategy.name=hybrid", "strategy.blocks=2", "strategy.replicas=2"), 1.02),
)
ACCURACY = (
    Case("backup", ("strategy.name=backup", "strategy.spares=1"), 0.81),
    Case("async", ("strategy.name=async",), 0.81),
    Case("ssp, bound 3", ("strategy.name=ssp", "strategy.bound=3"), 0.81),
    Case("local_sgd, 4 steps", _local_sgd(4), 0.81),
    Case("hogwild", ("strategy.name=hogwild",), 0.81),
    *(Case(f"downpour, sgd 0.1, n = {n}", _downpour(n, "sgd", 0.1, 0.1, 128), 0.81) for n in (1, 5)),
    Case("easgd, every 10, rate 0.15", _easgd(10), 0.81),
    Case("model_parallel", ("strategy.name=model_parallel", "strategy.blocks=2"), 0.81),
    Case("hybrid", ("strategy.name=hybrid", "strategy.blocks=2", "model.name=mlp", "model.hidden=[]"), 0.81),
)
CENTRED = ("data.task=classification", "model.standardize=center", "batch.size=128", "backend.workers=2")
SGD = (*CENTRED, "optimizer.name=sgd", "schedule.learning_rate=0.1", "checkpoint.every_seconds=null")
MLP = (*SGD, "model.name=mlp", "model.hidden=[128]", "model.activation=relu", "schedule.name=cosine")
SOFTMAX = (*SGD, "model.name=softmax")


def write(file: Path, path: Path, rows: int | None) -> str:
    """Write images as Zarr, float32 in [0, 1]; return where."""
    from bigopt.data.writer import DatasetWriter

    with np.load(file) as arrays:
        X, y = arrays["X"][:rows].astype(np.float32) / np.float32(255), arrays["y"][:rows].astype(np.int64)
    names = [f"x{i}" for i in range(X.shape[1])]
    cuts = np.diff(np.linspace(0, len(X), PARTITIONS + 1).astype(int)).tolist()
    with DatasetWriter(str(path), format="zarr", columns=names, target=["y"], partition_rows=cuts) as writer:
        writer.append(X, y)
    return str(path)


def merged(*layers: tuple[str, ...]) -> list[str]:
    """Return the keys of layers of ``key=value``, later ones over earlier ones."""
    return [f"{k}={v}" for k, v in dict(key.split("=", 1) for layer in layers for key in layer).items()]


def table(part: str, cases: list[Case], common: tuple[str, ...], where: tuple[str, ...], seeds: list[int]) -> bool:
    """Print the lines of a part as they are done; return whether every bar was reached."""
    opened: dict[str, Datasets] = {}

    def run(case: Case, seed: int) -> dict[str, Any]:
        conf = load_conf([], merged(common, where, case.keys, (f"run.seed={seed}",)))
        if conf.data.uri not in opened:
            opened[str(conf.data.uri)] = open_data(conf)
        return train(conf, data=opened[str(conf.data.uri)])

    value = {"loss": lambda found: found["loss"], "accuracy": lambda found: found["metrics"]["accuracy"]}[part]
    sync = [value(run(SYNC, seed)) for seed in seeds]
    print(f"\n| {part} | {'loss / sync' if part == 'loss' else 'test accuracy'} | by seed | seconds | bar | |")
    print("|---|---|---|---|---|---|")
    print(f"| sync | {np.mean(sync):.4f} | {' '.join(f'{v:.4f}' for v in sync)} | | | |", flush=True)
    reached = True
    for case in cases:
        try:
            results = [run(case, seed) for seed in seeds]
        except ConfError as error:
            print(f"| {case.name} | | | | | not run: {error} |", flush=True)
            reached = False
            continue
        values = [value(found) for found in results]
        if part == "loss":
            values = [mine / theirs for mine, theirs in zip(values, sync, strict=True)]
        mean, bar = float(np.mean(values)), "reported" if case.bar is None else ""
        if case.bar is not None:
            good = mean <= case.bar if part == "loss" else mean >= case.bar and abs(mean - np.mean(sync)) <= 0.01
            bar, reached = "reached" if good else "**missed**", reached and bool(good)
        limit = f"at most {case.bar}" if part == "loss" else f"{case.bar}, within 1 point"
        spent = float(np.mean([found["seconds"] for found in results]))
        by_seed = " ".join(f"{v:.4f}" for v in values)
        print(
            f"| {case.name} | {mean:.4f} | {by_seed} | {spent:.1f} | {limit if case.bar else ''} | {bar} |", flush=True
        )
    return reached


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="beginning of names; none: all")
    parser.add_argument("--only", choices=("loss", "accuracy"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backend", choices=("local", "dask", "spark"), default="local")
    parser.add_argument("--address", help="of a cluster: a Dask scheduler, or a Spark master such as local[2]")
    parser.add_argument("--shards-on", choices=("driver", "workers"), default="driver")
    parser.add_argument("--data", type=Path, default=Path("data/raw"))
    parser.add_argument("--rows", type=int, help="of the training images; all by default")
    parser.add_argument("--epochs", type=float)
    options = parser.parse_args()

    def chosen(cases: tuple[Case, ...]) -> list[Case]:
        names = [case for case in cases if case.name.startswith(tuple(options.cases) or "")]
        return [
            case._replace(keys=(*case.keys, f"strategy.shards_on={options.shards_on}"))
            if case.name.startswith("downpour")
            else case
            for case in names
        ]

    reached = True
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        train_uri = write(options.data / "fashion_mnist_train.npz", out / "train.zarr", options.rows)
        test_uri = write(options.data / "fashion_mnist_test.npz", out / "test.zarr", None)
        where: tuple[str, ...] = (f"data.uri={train_uri}", f"run.dir={folder}", f"backend.name={options.backend}")
        where = where if options.address is None else (*where, f"backend.address={options.address}")
        for part, cases, common, epochs in (("loss", LOSS, MLP, 5), ("accuracy", ACCURACY, SOFTMAX, 3)):
            if options.only in (None, part):
                more = (f"stop.epochs={options.epochs or epochs}",)
                more = more if part == "loss" else (*more, f"data.validation={test_uri}")
                reached = table(part, chosen(cases), common, (*where, *more), options.seeds) and reached
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
