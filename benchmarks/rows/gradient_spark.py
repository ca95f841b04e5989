"""The same gradient on Spark: resident workers, one job a round, MLlib, and the loop a user writes on RDDs."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.rows.common import LEARNING_RATE, SIDES, descent, extra_ms, linear_table, ratio
from benchmarks.spec import Figure, Round, Row, Scale, Side
from benchmarks.statistics import Bar

STEPS = 40
"""Two seconds or more: what a run does now and then, such as its post to Spark's pages, is due after each pause."""


def sides(scale: Scale) -> Mapping[str, Side]:
    """Runs on local threads and on Spark over one store; MLlib; RDDs by hand; an empty job."""
    table = linear_table(scale)
    folder = str(data.arrays(table, scale.work))
    store = data.stored(table, scale.work, "parquet")
    referee = {"kind": "logistic", "folder": folder}
    steps = scale.pick(STEPS, 10, 10)
    heap = f"{max(1, round(6 * table.bytes / 1e9))}g"

    def ours(backend: str, how: str = "Steps", peak: bool = False, **more: str) -> Side:
        keys = descent(backend, data__uri=store, **more)
        return Side(f"{SIDES}.ours:{how}", {"keys": keys, "steps": steps, "referee": referee}, peak=peak)

    mllib = {"path": str(store), "folder": folder, "heap": heap, "iterations": 20}
    found = {
        "local": ours("local"),
        "bigopt": ours("spark", peak=True),
        "one job": ours("spark", "StepsAndEmptyJobs", backend__channel="off"),
        "mllib": Side(f"{SIDES}.spark_cpu:Logistic", mllib, peak=True, slow=True, warm="short"),
    }
    if not scale.quick:  # a JVM that takes a quarter of a minute to start
        by_hand = {"folder": folder, "learning_rate": LEARNING_RATE, "steps": 1}
        found["rdd"] = Side(f"{SIDES}.spark_cpu:ByHand", by_hand)
    return found


def _one_job(r: Round) -> float:
    return 1e3 * (r["one job"]["seconds"] - r["local"]["seconds"] - r["one job"]["empty"])


ROW = Row(
    "gradient_spark",
    "the same on spark local[2]",
    sides,
    (
        Figure("over local, resident", extra_ms("bigopt", "local"), Bar("at most", 2), "ms"),
        Figure("over local and an empty job, one job a round", _one_job, Bar("at most", 10), "ms"),
        Figure("faster than MLlib's marginal iteration, resident", ratio("mllib", "bigopt"), Bar("at least", 5)),
        Figure("faster than MLlib's marginal iteration, one job", ratio("mllib", "one job"), Bar("at least", 2.5)),
        Figure("faster than a hand-written RDD loop", ratio("rdd", "bigopt"), Bar("at least", 10)),
        Figure("20 iterations, faster than MLlib's fit", lambda r: r["mllib"]["fit"] / (20 * r["bigopt"]["seconds"]),
               Bar("at least", 5)),
        Figure("peak memory over MLlib's", ratio("bigopt", "mllib", "peak_bytes"), Bar("at most", 0.333)),
        Figure("a step", lambda r: 1e3 * r["bigopt"]["seconds"], None, "ms"),
        Figure("an empty job of 2 tasks", lambda r: 1e3 * r["one job"]["empty"], None, "ms"),
    ),
    same_loss=((("local", "bigopt", "one job"), 0.0),),
    seconds=240,
)  # fmt: skip
