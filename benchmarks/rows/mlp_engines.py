"""The same epoch with the Map on an engine's workers: what a round of 203k parameters costs on the wire."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.harness import Figure, Row, Scale, Side
from benchmarks.rows.common import SIDES, ratio
from benchmarks.rows.mlp import WIDTHS, keys, steps, table
from benchmarks.statistics import Bar


def sides(scale: Scale) -> Mapping[str, Side]:
    """Runs on local threads, on Dask and on Spark over one store, by shared memory and by sockets."""
    digits = table(scale)
    folder = str(data.arrays(digits, scale.work))
    store = data.stored(digits, scale.work, "zarr")
    referee = {"kind": "network", "folder": folder, "widths": WIDTHS}

    def ours(backend: str, **more: str) -> Side:
        conf = keys(scale.work, backend, data__uri=store, **more)
        return Side(f"{SIDES}.ours:Epoch", {"keys": conf, "steps": steps(digits), "referee": referee})

    return {
        "local": ours("local"),
        "bigopt": ours("dask"),
        "spark": ours("spark"),
        "dask sockets": ours("dask", backend__channel="sockets"),
        "spark sockets": ours("spark", backend__channel="sockets"),
    }


def _per_step(side: str) -> Figure:
    return Figure(
        f"{side}: over local, a step",
        lambda r: 1e3 * (r[side]["step"] - r["local"]["step"]),
        Bar("at most", 4),
        "ms",
    )


ROW = Row(
    "mlp_engines",
    "the same on dask with 2 workers and on spark local[2], resident, one machine",
    sides,
    (
        Figure("dask over local, shared memory", ratio("bigopt", "local"), Bar("at most", 1.3)),
        Figure("spark over local, shared memory", ratio("spark", "local"), Bar("at most", 1.3)),
        _per_step("dask sockets"),
        _per_step("spark sockets"),
        Figure("a step, local", lambda r: 1e3 * r["local"]["step"], None, "ms"),
    ),
    same_loss=((("local", "bigopt", "spark", "dask sockets", "spark sockets"), 0.0),),
)
