"""Out of core with a Map that takes longer than decoding: reading should hide behind computing."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.data import Table
from benchmarks.machine import cores
from benchmarks.rows.common import SIDES, ratio
from benchmarks.rows.mlp import BATCH, WIDTHS, steps
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar

HIDDEN = 512
PARTITION_ROWS = 500


def sides(scale: Scale) -> Mapping[str, Side]:
    """The same run with a fifth of the memory, and with enough; decoding alone."""
    digits = Table("digits", scale.pick(60_000, 30_000, 10_000), WIDTHS[0], WIDTHS[-1])
    store = data.stored(digits, scale.work, "zarr", partition_rows=PARTITION_ROWS)

    def ours(memory: int, **more: bool) -> Side:
        keys = {
            "data.uri": store,
            "data.task": "classification",
            "data.memory": memory,
            "model.name": "mlp",
            "model.hidden": [HIDDEN],
            "optimizer.name": "adam",
            "batch.size": BATCH,
            "backend.workers": len(cores()),
        }
        arguments = {"keys": [f"{k}={v}" for k, v in keys.items()], "steps": steps(digits)}
        return Side(f"{SIDES}.ours:Epoch", arguments, **more)

    return {
        "bigopt": ours(digits.bytes // 5),
        "watched": ours(digits.bytes // 5, peak=True, once=True),  # whoever looks takes time
        "in memory": ours(8 * digits.bytes),
        "decode": Side(f"{SIDES}.limits:Decode", {"path": str(store)}),
    }


ROW = Row(
    "out_of_core_mlp",
    "out of core, a model whose Map is slower than decoding (MLP)",
    sides,
    (
        Figure("of the same epoch from memory", ratio("in memory", "bigopt"), Bar("at least", 0.85)),
        Figure("decoding alone, over the epoch from memory", ratio("decode", "in memory")),
        Figure("an epoch", lambda r: r["bigopt"]["seconds"], None, "s"),
        Figure("memory of the process", lambda r: r["watched"]["peak_bytes"] / 1e6, None, "MB"),
    ),
    seconds=35,
    quick=False,
)
