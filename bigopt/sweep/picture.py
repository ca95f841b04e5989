"""Draw a sweep: the metric against every key that was swept, and the learning curves of all trials.

A trial on its way to infinity would press all others into one line, so what is far worse than the median lies on the
edge of the panel, as a triangle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bigopt.config.output import flow, safe
from bigopt.sweep.report import Row, short_names

_COLOURS = ("#1f4e9c", "#e09a1a", "#2e8b57", "#7b4fa3", "#c8452e", "#3aa0b8", "#8c6d3f", "#d06fa8")
_INK, _GREY, _BEST = "#30343b", "#8a8f98", "#c8452e"
_MOST_KEYS = 8
_FAR = 4.0
_HUGE = 1e100
_WIDE = 5.0
_MOST_NAMED = len(_COLOURS)


def draw(rows: Sequence[Row], metric: str, folder: Path) -> Path:
    """Draw the ranked rows of a sweep.

    Parameters
    ----------
    rows : sequence of Row
        The best first.
    metric : str
    folder : Path
        Of the sweep.

    Returns
    -------
    Path
        ``sweep.png`` there.
    """
    keys = list(rows[0].settings)[:_MOST_KEYS]
    names = short_names(list(rows[0].settings))
    panels = len(keys) + 1
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.5 * lines + 0.4), layout="constrained")
    shown = [row for row in rows if row.value is not None and not row.failed]
    edge = _edge([row.value for row in shown if row.value is not None])
    title = f"{len(rows)} trials, the star is the best"
    beyond = any(row.value is not None and not _inside(row.value, shown[0].value or 0.0, edge) for row in shown)
    title += ", triangles lie beyond" if beyond else ""
    failed = sum(row.failed for row in rows)
    title += ", rings stopped early" if any(row.status == "stopped early" for row in rows) else ""
    title += f", {failed} failed (not drawn)" if failed else ""
    figure.suptitle(f"{folder.name}: {metric} of {title}", x=0.01, ha="left", fontsize=10.5, color=_INK)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    colours = _by_category(rows, keys)
    for axis, key in zip(axes, keys, strict=False):
        _key(axis, shown, key, colours, edge)
        _style(axis, names[key], metric)
    _curves(axes[len(keys)], shown, metric, colours, edge)
    for axis in axes[panels:]:
        axis.remove()
    path = folder / "sweep.png"
    figure.savefig(path, dpi=120)
    return path


def _style(axis: Axes, xlabel: str, ylabel: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.tick_params(which="both", labelsize=8, colors=_INK)
    axis.set_xlabel(xlabel, fontsize=9, color=_INK)
    axis.set_ylabel(ylabel, fontsize=9, color=_INK)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numeric(rows: Sequence[Row], key: str) -> bool:
    return all(_is_number(row.settings[key]) for row in rows)


def _text(value: Any) -> str:
    return flow(safe(value))


def _by_category(rows: Sequence[Row], keys: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the first key that is no number with few values, and a colour for each of them; empty where none is."""
    for key in keys:
        values = list(dict.fromkeys(_text(row.settings[key]) for row in sorted(rows, key=lambda row: row.number)))
        if not _numeric(rows, key) and 1 < len(values) <= _MOST_NAMED:
            return key, dict(zip(values, _COLOURS, strict=False))
    return "", {}


def _colour(row: Row, colours: tuple[str, dict[str, str]]) -> str:
    key, table = colours
    return table[_text(row.settings[key])] if key else _COLOURS[0]


def _edge(values: Sequence[float]) -> float:
    """Return the worst value that is drawn in its place: four times as far from the best as the median or as 0 is."""
    if not values:
        return math.inf
    best = values[0]
    worst = max(values, key=lambda value: abs(value - best))
    far = _FAR * max(abs(best), median_low(abs(value - best) for value in values))
    return best + math.copysign(min(far, abs(worst - best)), worst - best)


def _inside(value: float, best: float, edge: float) -> bool:
    return abs(value - best) <= abs(edge - best)


def _key(axis: Axes, rows: Sequence[Row], key: str, colours: tuple[str, dict[str, str]], edge: float) -> None:
    """The metric against one key; rings are trials that were stopped early, the star is the best."""
    if not rows:
        return
    values = [row.value for row in rows if row.value is not None]
    if _numeric(rows, key):
        x = [float(row.settings[key]) for row in rows]
        if min(x) > 0 and max(x) > 20 * min(x):
            axis.set_xscale("log")
    else:
        texts = list(dict.fromkeys(_text(row.settings[key]) for row in sorted(rows, key=lambda row: row.number)))
        x = [float(texts.index(_text(row.settings[key]))) for row in rows]
        axis.set_xticks(range(len(texts)), texts, rotation=30 if len(texts) > 4 else 0)
        axis.set_xlim(-0.5, len(texts) - 0.5)
    for at, value, row in zip(x, values, rows, strict=True):
        colour = _colour(row, colours)
        whole = row.status == "completed"
        inside = _inside(value, values[0], edge)
        marker = "o" if inside else "^" if value > values[0] else "v"
        axis.plot(at, value if inside else edge, marker, ms=5, mec=colour, mfc=colour if whole else "none", alpha=0.85)
    axis.plot(x[0], values[0], "*", ms=13, mfc="#ffd43b", mec=_INK, mew=0.8, zorder=5)
    _scale(axis, [value for value in values if _inside(value, values[0], edge)])


def _scale(axis: Axes, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > _WIDE * min(values):
        axis.set_yscale("log")


def _curves(axis: Axes, rows: Sequence[Row], metric: str, colours: tuple[str, dict[str, str]], edge: float) -> None:
    """The metric by epoch, where it was taken on rows held out, else the loss of batches."""
    everything: list[float] = []
    held_out = False
    for rank, row in reversed(list(enumerate(rows))):
        x, y, validation = _curve(row, metric)
        held_out |= validation
        everything += y
        if validation:
            y = [min(max(value, -_HUGE), _HUGE) for value in y]
        first = rank == 0
        style: dict[str, Any] = {"marker": "o", "ms": 3} if len(x) <= 30 else {}
        axis.plot(x, y, color=_colour(row, colours), lw=2.4 if first else 1.0, alpha=1.0 if first else 0.6, **style)
        if first and x:
            axis.plot(x[-1], y[-1], "*", ms=13, mfc="#ffd43b", mec=_INK, mew=0.8, zorder=5)
    if held_out and rows:
        best = rows[0].value or 0.0
        inside = [value for value in everything if _inside(value, best, edge)]
        _scale(axis, inside)
        low, high = min(*inside, best, edge), max(*inside, best, edge)
        room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        log = axis.get_yscale() == "log"
        axis.set_ylim(0.9 * low if log else low - room, 1.1 * high if log else high + room)
    else:
        _scale(axis, everything)
    key, table = colours
    for name, colour in table.items():
        axis.plot([], [], color=colour, label=name)
    if table:
        axis.legend(title=short_names([key])[key], frameon=False, fontsize=8, title_fontsize=8)
    axis.set_title("learning curves, the best one thick", loc="left", fontsize=9, color=_INK)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _style(axis, "epoch", metric if held_out else "loss of a batch")


def _curve(row: Row, metric: str) -> tuple[list[float], list[float], bool]:
    """Return epochs and values of a trial, and whether they were taken on rows held out."""
    if row.run is None or not (Path(row.run) / "metrics.jsonl").exists():
        return [], [], False
    lines = (Path(row.run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    name = "loss" if metric == "validation_loss" else metric
    checks = [(r["epoch"], (r.get("validation") or {}).get(name)) for r in records] if metric != "loss" else []
    points = [(x, y) for x, y in checks if y is not None]
    validation = bool(points)
    points = points or [(r["epoch"], r["loss"]) for r in records if r["loss"] is not None]
    return [p[0] for p in points], [p[1] for p in points], validation
