"""From Parquet to MLlib's final loss on Spark: reading included, the start of the engine not."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.data import Table
from benchmarks.rows.common import SIDES, descent, ratio
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar


def sides(scale: Scale) -> Mapping[str, Side]:
    """MLlib with its defaults; L-BFGS of bigopt."""
    table = Table("linear", scale.pick(1_250_000, 200_000, 20_000), 100)
    folder = str(data.arrays(table, scale.work))
    store = str(data.stored(table, scale.work, "parquet"))
    heap = f"{max(1, round(6 * table.bytes / 1e9))}g"
    keys = [k for k in descent("spark", data__uri=store, optimizer__name="lbfgs") if not k.startswith("schedule.")]
    ours = {
        "keys": [*keys, "model.standardize=false"],
        "steps": 10,
        "referee": {"kind": "logistic", "folder": folder},
        "spark": True,
    }
    return {
        "mllib": Side(
            f"{SIDES}.spark_cpu:FromParquet", {"path": store, "folder": folder, "heap": heap}, slow=True, warm="short"
        ),
        "bigopt": Side(f"{SIDES}.racing:Race", ours, follows="mllib"),
    }


ROW = Row(
    "race_mllib",
    "time to MLlib's final loss, from Parquet, spark",
    sides,
    (
        Figure("faster than MLlib", ratio("mllib", "bigopt"), Bar("at least", 3)),
        Figure("ours, from the call", lambda r: r["bigopt"]["seconds"], None, "s"),
        Figure("ours, until the first step", lambda r: r["bigopt"]["first_step"], None, "s"),
        Figure("ours, steps", lambda r: r["bigopt"]["steps"], None, ""),
        Figure("MLlib: read, assemble, cache", lambda r: r["mllib"]["load"], None, "s"),
        Figure("MLlib: fit", lambda r: r["mllib"]["fit"], None, "s"),
    ),
    seconds=170,
    quick=False,
)
