"""The same gradient on Dask: what an engine adds to a round, and what its own tools take."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.rows.common import LEARNING_RATE, SIDES, descent, extra_ms, linear_table, ratio
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar

STEPS = 10


def sides(scale: Scale) -> Mapping[str, Side]:
    """Runs on local threads and on Dask over one store; dask.delayed by hand; dask-ml; an empty round of tasks."""
    table = linear_table(scale)
    folder = str(data.arrays(table, scale.work))
    store = data.stored(table, scale.work, "zarr")
    referee = {"kind": "logistic", "folder": folder}

    def ours(backend: str, **more: str) -> Side:
        keys = descent(backend, data__uri=store, **more)
        return Side(f"{SIDES}.ours:Steps", {"keys": keys, "steps": STEPS, "referee": referee})

    return {
        "local": ours("local"),
        "bigopt": ours("dask"),
        "actors": ours("dask", backend__channel="off"),
        "delayed": Side(f"{SIDES}.dask_cpu:ByHand", {"folder": folder, "learning_rate": LEARNING_RATE, "steps": STEPS}),
        "dask-ml": Side(f"{SIDES}.dask_cpu:DaskML", {"folder": folder, "iterations": 2}, slow=True, warm="short"),
    }


ROW = Row(
    "gradient_dask",
    "the same on dask, 2 workers",
    sides,
    (
        Figure("over local, by the channel", extra_ms("bigopt", "local"), Bar("at most", 2), "ms"),
        Figure("over local, by actors", extra_ms("actors", "local"), Bar("at most", 8), "ms"),
        Figure("faster than hand-written dask.delayed", ratio("delayed", "bigopt"), Bar("at least", 3)),
        Figure("faster than an iteration of dask-ml's lbfgs", ratio("dask-ml", "bigopt"), Bar("at least", 25)),
        Figure("a step", lambda r: 1e3 * r["bigopt"]["seconds"], None, "ms"),
        Figure("an empty round of Dask tasks", lambda r: 1e3 * r["delayed"]["empty"], None, "ms"),
    ),
    same_loss=((("local", "bigopt", "actors"), 0.0), (("bigopt", "delayed"), 1e-5)),
    seconds=130,
)
