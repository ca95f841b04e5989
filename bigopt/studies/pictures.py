"""Draw a study: one figure, a panel a picture, all from the record (and so from what stands in the CSV files)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from bigopt.studies.record import Record, Trace

_COLOURS = ("#c8452e", "#1f4e9c", "#e09a1a", "#2e8b57", "#7b4fa3")
_INK, _GREY = "#30343b", "#8a8f98"
_VALLEY = LinearSegmentedColormap.from_list("valley", ["#f7fbff", "#d5e3f2", "#b3cbe5"])
_CLASSES = LinearSegmentedColormap.from_list("classes", ["#9fc0e6", "#f8f8f6", "#f4b8a5"])
_MARKERS = ("#1f4e9c", "#c8452e")
_STAGES = ("#c9ced6", "#f0b27a", "#2f6db3", "#c8452e", "#7b4fa3")
_SIDE = 3.7
_PALETTE = 256
"""Flat colours need no more, and a third of the bytes."""


def draw(record: Record, folder: Path) -> Path:
    """Draw the panels from left to right into ``NAME.png`` and return its path."""
    study = record.study
    panels: list[tuple[str, Trace | None, int]] = []
    for kind in study.pictures:
        if kind == "surface":
            panels += [(kind, trace, trace.stage(part)) for trace in record.shown(kind) for part in study.stages]
        else:
            panels.append((kind, None, 0))
    columns = len(panels) if len(panels) <= 4 else 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(_SIDE * columns, _SIDE * lines + 0.35), layout="constrained")
    figure.suptitle(study.title, x=0.01, ha="left", fontsize=12, color=_INK, fontweight="bold")
    for axis, (kind, trace, index) in zip(figure.subplots(lines, columns, squeeze=False).flat, panels):
        axis.tick_params(labelsize=8, colors=_INK)
        if kind == "path":
            _path(axis, record)
        elif kind == "curve":
            _curve(axis, record)
        elif kind == "fit":
            _fit(axis, record)
        elif trace is not None:
            _surface(axis, record, trace, index)
    for axis in list(figure.axes)[len(panels) :]:
        axis.remove()
    path = folder / f"{study.name}.png"
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(_PALETTE, Image.Quantize.FASTOCTREE).save(path, optimize=True)
    return path


def _colour(record: Record, trace: Trace) -> str:
    return _COLOURS[list(record.traces).index(trace.name) % len(_COLOURS)]


def _title(axis: Axes, text: str, xlabel: str, ylabel: str) -> None:
    axis.set_title(text, loc="left", fontsize=9.5, color=_INK)
    axis.set_xlabel(xlabel, fontsize=8.5, color=_INK)
    axis.set_ylabel(ylabel, fontsize=8.5, color=_INK)


def _path(axis: Axes, record: Record) -> None:
    """Contours of the objective and the ways of the runs, on equal scales: the gradient is normal to the contours."""
    plane = record.error_surface
    least = float(plane.values.min()) if record.least is None else min(record.least, float(plane.values.min()))
    height = np.sqrt(np.maximum(plane.values - least, 0.0))
    levels = np.linspace(0.0, float(height.max()), 15)
    axis.contourf(plane.x, plane.y, height, levels=levels, cmap=_VALLEY)
    axis.contour(plane.x, plane.y, height, levels=levels[1:], colors="#8fabc9", linewidths=0.6)
    for trace in record.shown("path"):
        few = len(trace.steps) <= 80
        style: dict[str, Any] = {"marker": "o", "ms": 2.4} if few else {}
        axis.plot(*trace.params.T, color=_colour(record, trace), lw=1.2 if few else 0.7, label=trace.name, **style)
    start = record.shown("path")[0].params[0]
    axis.plot(*start, "o", ms=7, mfc="white", mec=_INK, mew=1.3, zorder=4)
    axis.annotate("start", start, xytext=(0, -13), textcoords="offset points", ha="center", fontsize=8, color=_INK)
    if record.minimum is not None:
        axis.plot(*record.minimum, "*", ms=12, mfc="#ffd43b", mec=_INK, mew=0.8, zorder=5)
    axis.set_aspect("equal")
    axis.legend(fontsize=8, loc="best", framealpha=0.85, edgecolor="none")
    _title(axis, "path over the error surface", "weight of x0", "weight of x1")


def _curve(axis: Axes, record: Record) -> None:
    """The objective (above its minimum, where that is known) against steps; epochs where batches differ."""
    traces = record.shown("curve")
    same = len({round(float(t.epochs[-1] / t.steps[-1]), 9) for t in traces}) == 1
    lowest = np.inf
    for trace in traces:
        values = trace.losses if record.least is None else record.excess(trace)
        lowest = min(lowest, float(values.min()))
        x = trace.steps if same else trace.epochs
        style: dict[str, Any] = {"marker": "o", "ms": 3.0} if len(x) <= 30 else {}
        lw = 1.3 if len(x) <= 300 else 0.8
        axis.plot(x, values, color=_colour(record, trace), lw=lw, label=trace.name, **style)
    first = max(float(t.losses[0]) for t in traces)
    if record.least is not None or (lowest > 0 and first > 10 * lowest):
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
        if record.least is None:  # one or two decades: powers of ten alone would be too few marks
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    if record.least is not None and lowest < 1e-13:
        axis.axhline(1e-16, color=_GREY, lw=0.8, ls=":")
        axis.annotate("rounding", (1.0, 1e-16), xycoords=("axes fraction", "data"), xytext=(-2, 3),
                      textcoords="offset points", ha="right", fontsize=7.5, color=_GREY)  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(traces) > 1:
        axis.legend(fontsize=8, frameon=False)
    title = "objective over all rows" + ("" if record.least is None else ", above its minimum")
    _title(axis, title, "step" if same else "epoch (passes over the rows)", "")


def _fit(axis: Axes, record: Record) -> None:
    """Rows of one feature and the fitted functions: a colour a stage for one run, a colour a run for several."""
    X, y = record.table
    traces = record.shown("fit")
    axis.plot(X[:, 0], y, "o", ms=2.6, color="#b4bac4", mec="none", label="rows")
    for trace in traces:
        for number, part in enumerate(record.study.stages):
            k = trace.stage(part)
            last = number == len(record.study.stages) - 1
            colour = _colour(record, trace)
            label = f"{trace.name}, " * (len(traces) > 1) + f"step {trace.steps[k]}"
            axis.plot(
                *record.fitted(trace, k),
                color=colour if last else _STAGES[number % len(_STAGES)],
                lw=1.8 if last else 1.2,
                ls="-" if last else "--",
                label=label,
            )
    low, high = float(y.min()), float(y.max())
    axis.set_ylim(low - 0.15 * (high - low), high + 0.55 * (high - low))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7.5, frameon=False, ncols=2, loc="upper center")
    _title(axis, "the fitted function", "x", "y")


def _surface(axis: Axes, record: Record, trace: Trace, index: int) -> None:
    """P(class 1) as colour, the boundary where it is 1/2, and the rows."""
    plane = record.prediction(trace, index)
    axis.contourf(plane.x, plane.y, plane.values, levels=np.linspace(0.0, 1.0, 11), cmap=_CLASSES)
    if plane.values.min() < 0.5 < plane.values.max():
        axis.contour(plane.x, plane.y, plane.values, levels=[0.5], colors=_INK, linewidths=1.4)
    X, y = record.table
    size = 70 if len(X) <= 20 else 9
    for label, colour in enumerate(_MARKERS):
        inside = X[y == label]
        axis.scatter(inside[:, 0], inside[:, 1], s=size, color=colour, edgecolors="white", linewidths=0.4, zorder=3)
    right = int(((trace.objective.predict(trace.params[index], X) > 0.5) == y).sum())
    where = f"step {trace.steps[index]}"
    name = f"{trace.name}, {where}" if len(record.study.stages) > 1 else trace.name
    _title(axis, f"{name}: {right} of {len(X)} right", "x0", "x1")
