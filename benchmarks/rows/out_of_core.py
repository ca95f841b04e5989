"""Data five times the memory budget, logistic with d = 100: every round reads and decodes nearly all of it again."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.data import Table
from benchmarks.rows.common import SIDES, descent, ratio
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar

STEPS = 2


def sides(scale: Scale) -> Mapping[str, Side]:
    """Runs on Zarr with zstd and without, decoding alone, and a run with memory for everything."""
    table = Table("linear", scale.pick(1_250_000, 500_000, 500_000), 100)
    folder = str(data.arrays(table, scale.work))
    referee = {"kind": "logistic", "folder": folder}
    packed = data.stored(table, scale.work, "zarr")
    raw = data.stored(table, scale.work, "zarr", compressed=False)

    def ours(store: object, memory: int, **more: bool) -> Side:
        keys = descent(data__uri=store, data__memory=memory)
        return Side(f"{SIDES}.ours:Steps", {"keys": keys, "steps": STEPS, "referee": referee}, **more)

    return {
        "bigopt": ours(packed, table.bytes // 5),
        "bigopt raw": ours(raw, table.bytes // 5),
        "in memory": ours(packed, 8 * table.bytes),
        "watched": ours(packed, table.bytes // 5, peak=True, once=True),  # whoever looks takes time
        "decode": Side(f"{SIDES}.limits:Decode", {"path": str(packed)}),
        "decode raw": Side(f"{SIDES}.limits:Decode", {"path": str(raw)}),
    }


ROW = Row(
    "out_of_core",
    "out of core, data 5 x the memory budget, logistic d = 100",
    sides,
    (
        Figure("of the store's decode rate, zstd", ratio("decode", "bigopt"), Bar("at least", 0.85)),
        Figure("of the store's decode rate, uncompressed", ratio("decode raw", "bigopt raw"), Bar("at least", 0.80)),
        Figure("decode rate, zstd", lambda r: r["decode"]["gb_per_s"], None, "GB/s"),
        Figure("decode rate, uncompressed", lambda r: r["decode raw"]["gb_per_s"], None, "GB/s"),
        Figure("a round from memory, over one out of core", ratio("in memory", "bigopt")),
        Figure("memory of the process", lambda r: r["watched"]["peak_bytes"] / 1e6, None, "MB"),
    ),
    same_loss=((("bigopt", "in memory"), 0.0), (("bigopt", "bigopt raw"), 1e-6)),
    seconds=28,
)
