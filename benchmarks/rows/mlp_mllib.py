"""A network on Spark, to the loss that MLlib's MultilayerPerceptronClassifier ends with.

Ours is on the clock from the call of `fit.train`: residents, reading Parquet, the pass over the data and training.
MLlib's clock covers its fit on a table that is cached already.

Both are used as who tunes them would. MLlib has its default solver, and is cut off at 40 iterations: at its default of
100 a round would take 30 s and the row more than its time. Ours has batches and rates that were tried for this loss. A
step on Spark costs a millisecond and more whatever its rows, so batches are large (1,024); and a rate that rises to 0.1
and falls to nothing within the run (one cycle) gets there in 4 epochs, where a constant 0.01 with batches of 256
wanders about this loss from the fifth epoch on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks import data
from benchmarks.data import Table
from benchmarks.machine import cores
from benchmarks.rows.common import SIDES, ratio
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar

WIDTHS: Final = [100, 64, 10]
EPOCHS: Final = 4
"""Of ours, for which the rate is planned; MLlib's loss is reached within the last."""


def sides(scale: Scale) -> Mapping[str, Side]:
    """MLlib first: its loss is our target."""
    table = Table("digits", scale.pick(30_000, 10_000, 3_000), WIDTHS[0], WIDTHS[-1])
    folder = str(data.arrays(table, scale.work))
    store = str(data.stored(table, scale.work, "parquet"))
    iterations = scale.pick(40, 20, 5)
    batch = scale.pick(1_024, 512, 128)
    keys = {
        "data.uri": store,
        "data.task": "classification",
        "data.memory": "2GB",
        "model.name": "mlp",
        "model.hidden": WIDTHS[1:-1],
        "model.activation": "sigmoid",
        "model.standardize": "false",
        "optimizer.name": "adam",
        "schedule.name": "one_cycle",
        "schedule.learning_rate": 0.1,
        "batch.size": batch,
        "backend.name": "spark",
        "backend.workers": len(cores()),
    }
    epoch = -(-table.rows // batch)
    ours = {
        "keys": [f"{key}={value}" for key, value in keys.items()],
        "steps": EPOCHS * epoch,
        "every": max(1, epoch // 8),
        "referee": {"kind": "network", "folder": folder, "widths": WIDTHS, "activation": "sigmoid"},
        "spark": True,
    }
    mllib = {"path": store, "folder": folder, "heap": "4g", "widths": WIDTHS, "iterations": iterations}
    return {
        "mllib": Side(f"{SIDES}.spark_cpu:Perceptron", mllib, slow=True, warm="short"),
        "bigopt": Side(f"{SIDES}.racing:Race", ours, follows="mllib"),
    }


ROW = Row(
    "mlp_mllib",
    "MLlib MultilayerPerceptronClassifier, to the same loss, spark",
    sides,
    (
        Figure("faster than MLlib", ratio("mllib", "bigopt"), Bar("at least", 10)),
        Figure("ours, from the call", lambda r: r["bigopt"]["seconds"], None, "s"),
        Figure("ours, until the first step", lambda r: r["bigopt"]["first_step"], None, "s"),
        Figure("MLlib's fit", lambda r: r["mllib"]["seconds"], None, "s"),
        Figure("the loss", lambda r: r["mllib"]["loss"], None, ""),
    ),
    seconds=90,
    quick=False,
)
