"""The learning curve of a run, drawn from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bigopt.keeping import delays

_BLUE, _ORANGE, _GREEN, _GREY = "#2f6db3", "#d9822b", "#4c9a6a", "#8a8f98"


def records(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run directory, in order."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def learning_curve(run: Path) -> Path:
    """Draw loss, gradient norm and validation metrics against epochs, below them what the run cost.

    Returns
    -------
    Path
        ``learning_curve.png`` of the run directory.
    """
    found = [r for r in records(run) if r["loss"] is not None]
    checks = [r for r in found if r.get("validation")]
    names = [k for k in (checks[0]["validation"] if checks else {}) if k in ("r2", "accuracy", "auc")]
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for axis in (*axes[0], axes[1, 1]):
        axis.set_xlabel("epoch")
    _loss(axes[0, 0], found, checks)
    axes[0, 1].plot([r["epoch"] for r in found], [r["grad_norm"] for r in found], color=_GREY, lw=1.0)
    axes[0, 1].set_title("gradient norm", loc="left")
    for axis, key in ((axes[0, 0], "loss"), (axes[0, 1], "grad_norm")):
        if all(r[key] > 0 for r in found) and found and max(r[key] for r in found) > 20 * min(r[key] for r in found):
            axis.set_yscale("log")
    axes[0, 2].set_title("validation", loc="left")
    for name in names:
        values = [r["validation"][name] for r in checks]
        axes[0, 2].plot([r["epoch"] for r in checks], values, "o-", ms=3, label=f"{name} {values[-1]:.4f}")
    if names:
        axes[0, 2].legend(frameon=False, fontsize=8)
    else:
        _say(axes[0, 2], "no validation data")
    _seconds(axes[1, 0], found)
    axes[1, 1].set_title("sent, both ways (MB)", loc="left")
    if any(r["bytes_sent"] for r in found):
        axes[1, 1].plot([r["epoch"] for r in found], [r["bytes_sent"] / 1e6 for r in found], color=_BLUE, lw=1.2)
    else:
        _say(axes[1, 1], "nothing: workers in this process")
    _staleness(axes[1, 2], run)
    path = run / "learning_curve.png"
    figure.savefig(path, dpi=130)
    return path


def _loss(axis: Axes, found: list[dict[str, Any]], checks: list[dict[str, Any]]) -> None:
    axis.plot([r["epoch"] for r in found], [r["loss"] for r in found], color=_BLUE, lw=1.2, label="batch, with penalty")
    if checks:
        shown = [r["validation"]["loss"] for r in checks]
        axis.plot([r["epoch"] for r in checks], shown, "o-", color=_ORANGE, ms=3, label="validation")
    axis.set_title("loss", loc="left")
    axis.legend(frameon=False, fontsize=8)


def _seconds(axis: Axes, found: list[dict[str, Any]]) -> None:
    """Where the time of a step went, as the median over the records."""
    parts = ("map", "reduce", "update", "idle")
    middle = [1e3 * median(r[f"seconds_{part}"] for r in found) if found else 0.0 for part in parts]
    bars = axis.barh(parts[::-1], middle[::-1], color=[_GREY, _ORANGE, _GREEN, _BLUE])
    axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axis.margins(x=0.2)
    axis.set_title("a step (ms, median)", loc="left")


def _staleness(axis: Axes, run: Path) -> None:
    """Histogram of the staleness, with the updates of each worker said below."""
    found = delays(run)
    axis.set_title("staleness", loc="left")
    if not found:
        _say(axis, "0: a synchronous strategy")
        return
    counts = {int(k): n for k, n in found["staleness"]["histogram"].items()}
    axis.bar(list(counts), list(counts.values()), color=_BLUE)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    workers = found["updates_by_worker"]
    said = ", ".join(f"{k}: {n}" for k, n in list(workers.items())[:8]) + (", ..." if len(workers) > 8 else "")
    axis.set_xlabel(f"versions; mean {found['staleness']['mean']:.3g}\nupdates by worker: {said}", fontsize=8)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=_GREY, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
