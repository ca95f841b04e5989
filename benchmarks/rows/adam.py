"""The Adam step, on vectors that fit the cache and on vectors that do not."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.rows.common import SIDES
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar

_SIZES = (200_000, 10_000_000)
_DTYPES = ("float32", "float64")
_SHORT = {200_000: "2e5", 10_000_000: "1e7"}


def sides(scale: Scale) -> Mapping[str, Side]:
    """Both in place on the same vectors."""
    steps = {200_000: scale.pick(400, 400, 10), 10_000_000: scale.pick(8, 5, 1)}
    cases = [(size, dtype, steps[size]) for size in _SIZES for dtype in _DTYPES]
    return {
        "bigopt": Side(f"{SIDES}.updates:AdamSteps", {"cases": cases}),
        "torch": Side(f"{SIDES}.updates:TorchSteps", {"cases": cases}),
    }


def _figure(size: int, dtype: str, tell: str, bar: Bar | None) -> Figure:
    name = f"{size} {dtype}"
    what = "the whole update" if tell else "the step"
    return Figure(
        f"{what}, {_SHORT[size]} {dtype}, over torch's fused Adam",
        lambda r: r["bigopt"][tell + name] / r["torch"][name],
        bar,
    )


ROW = Row(
    "adam",
    "Adam step, 2e5 and 1e7 parameters, float32 and float64",
    sides,
    (
        *(_figure(size, dtype, "", Bar("at most", 1.1)) for size in _SIZES for dtype in _DTYPES),
        *(_figure(size, dtype, "tell ", None) for size in _SIZES for dtype in _DTYPES),
    ),
    same_loss=((("bigopt", "torch"), 1e-6),),
    seconds=20,
)
