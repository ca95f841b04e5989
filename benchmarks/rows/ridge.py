"""Ridge regression to the solution that others find by normal equations: ours by one Newton step. For information."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import data
from benchmarks.data import Table
from benchmarks.machine import cores
from benchmarks.rows.common import SIDES, ratio
from benchmarks.spec import Figure, Row, Scale, Side

L2 = 1e-4


def sides(scale: Scale) -> Mapping[str, Side]:
    """scikit-learn's Ridge in memory, MLlib's LinearRegression from Parquet, and Newton's step for each."""
    table = Table("linear", scale.pick(250_000, 100_000, 20_000), 100)
    folder = str(data.arrays(table, scale.work))
    store = str(data.stored(table, scale.work, "parquet"))
    keys = {
        "model.name": "ridge",
        "model.l2": L2,
        "model.init": "zeros",
        "model.standardize": "false",
        "optimizer.name": "newton",
        "data.memory": "4GB",
        "backend.workers": len(cores()),
    }

    def ours(follows: str, more: Mapping[str, Any], **arguments: Any) -> Side:
        conf = [f"{key}={value}" for key, value in {**keys, **more}.items()]
        referee = {"kind": "squared", "folder": folder, "l2": L2}
        return Side(
            f"{SIDES}.racing:Race", {"keys": conf, "steps": 2, "referee": referee, **arguments}, follows=follows
        )

    mllib = {"path": store, "folder": folder, "heap": "2g", "l2": L2}
    return {
        "sklearn": Side(f"{SIDES}.sklearn_cpu:RidgeFit", {"folder": folder, "l2": L2}),
        "mllib": Side(f"{SIDES}.spark_cpu:Ridge", mllib, slow=True),
        "bigopt": ours("sklearn", {}, memory=folder),
        "bigopt spark": ours("mllib", {"backend.name": "spark", "data.uri": store}, spark=True),
    }


ROW = Row(
    "ridge",
    "ridge to the solution (for information)",
    sides,
    (
        Figure("faster than scikit-learn's Ridge, in memory", ratio("sklearn", "bigopt")),
        Figure("faster than MLlib's LinearRegression, from Parquet", ratio("mllib", "bigopt spark")),
        Figure("ours in memory", lambda r: r["bigopt"]["seconds"], None, "s"),
        Figure("ours on spark", lambda r: r["bigopt spark"]["seconds"], None, "s"),
    ),
    seconds=85,
    quick=False,
)
