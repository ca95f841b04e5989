"""The same epoch with the Map on an engine's workers: what a round of 203k parameters costs on the wire."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.rows.common import SIDES, ratio
from benchmarks.rows.mlp import WIDTHS, keys, steps, table
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar


def sides(scale: Scale) -> Mapping[str, Side]:
    """Runs on local threads, on Dask and on Spark over one store, by shared memory and by sockets."""
    digits = table(scale)
    folder = str(data.arrays(digits, scale.work))
    store = data.stored(digits, scale.work, "zarr")
    referee = {"kind": "network", "folder": folder, "widths": WIDTHS}

    def ours(backend: str, how: str = "Epoch") -> Side:
        conf = keys(scale.work, backend, data__uri=store)
        return Side(f"{SIDES}.ours:{how}", {"keys": conf, "steps": steps(digits), "referee": referee})

    return {
        "local": ours("local"),
        "bigopt": ours("dask"),
        "spark": ours("spark"),
        "sockets": ours("dask", "EpochOnCluster"),
    }


ROW = Row(
    "mlp_engines",
    "the same on dask with 2 workers and on spark local[2], resident, one machine",
    sides,
    (
        Figure("dask over local, shared memory", ratio("bigopt", "local"), Bar("at most", 1.3)),
        Figure("spark over local, shared memory", ratio("spark", "local"), Bar("at most", 1.3)),
        Figure(
            "a step over local, by TCP sockets (a Dask cluster of one's own)",
            lambda r: 1e3 * (r["sockets"]["step"] - r["local"]["step"]),
            Bar("at most", 4),
            "ms",
        ),
        Figure("a step, local", lambda r: 1e3 * r["local"]["step"], None, "ms"),
    ),
    same_loss=((("local", "bigopt", "spark", "sockets"), 0.0),),
    seconds=60,
    quick=False,
)
