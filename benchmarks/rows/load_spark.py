"""From Parquet to the end of the first iteration on Spark, against MLlib's way to its first."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.rows.common import SIDES, descent, linear_table, ratio
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar


def sides(scale: Scale) -> Mapping[str, Side]:
    """Both in a SparkContext that is there already, the files in the page cache."""
    table = linear_table(scale)
    store = data.stored(table, scale.work, "parquet")
    heap = f"{max(1, round(6 * table.bytes / 1e9))}g"
    keys = descent("spark", data__uri=store, model__standardize="false")
    return {
        "bigopt": Side(f"{SIDES}.racing:FirstStep", {"keys": keys, "spark": True}),
        "mllib": Side(f"{SIDES}.spark_cpu:Load", {"path": str(store), "heap": heap}, slow=True),
    }


ROW = Row(
    "load_spark",
    "load to first iteration, from Parquet, spark",
    sides,
    (
        Figure("faster than MLlib's read + assemble + cache", ratio("mllib", "bigopt"), Bar("at least", 3)),
        Figure("to the first step", lambda r: r["bigopt"]["seconds"], None, "s"),
        Figure("of it, until all rows are read and checked", lambda r: r["bigopt"]["facts"], None, "s"),
    ),
    seconds=125,
    quick=False,
)
