"""The learning curve of a run, drawn from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bigopt.finishing import delays

_BLUE, _ORANGE, _GREEN, _GREY = "#2f6db3", "#d9822b", "#4c9a6a", "#8a8f98"
_LABELLED = 12


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
    figure = Figure(figsize=(12.4, 6.2), layout="constrained")
    axes = figure.subplots(2, 4)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for axis in axes[0]:
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
    left = _left(run)
    _sent(axes[0, 3], found, left)
    _seconds(axes[1, 0], found)
    _idle(axes[1, 1], left)
    _updates(axes[1, 2], left)
    _staleness(axes[1, 3], left)
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


def _left(run: Path) -> dict[str, Any]:
    """Return what the run's result says of its workers; of a run that has none yet, what its log says."""
    path = run / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else delays(run)


def _sent(axis: Axes, found: list[dict[str, Any]], left: dict[str, Any]) -> None:
    """Vectors to the workers and back, added up; runs of older versions know the sum only."""
    axis.set_title("sent (MB)", loc="left")
    codes, uncoded = (left.get("ledger", {}).get(key, 0) / 1e6 for key in ("bytes_codes", "bytes_uncoded"))
    if codes:
        axis.set_xlabel(f"gradients: {codes:.3g}, uncompressed {uncoded:.3g} (1/{uncoded / codes:.3g})")
    if not any(r["bytes_sent"] for r in found):
        _say(axis, "nothing: workers in this process")
        return
    ways = (("bytes_down", _BLUE, "to workers"), ("bytes_up", _ORANGE, "to the driver"))
    for key, color, label in ways if "bytes_up" in found[0] else (("bytes_sent", _BLUE, "both ways"),):
        axis.plot([r["epoch"] for r in found], [r[key] / 1e6 for r in found], color=color, lw=1.2, label=label)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8)


def _seconds(axis: Axes, found: list[dict[str, Any]]) -> None:
    """Where the time of a step went, as the median over the records; idle, which comes in bursts, as the mean."""
    parts = ("map", "reduce", "update", "idle, mean")
    middle = [1e3 * median(r[f"seconds_{part}"] for r in found) if found else 0.0 for part in parts[:3]]
    middle.append(1e3 * fmean(r["seconds_idle"] for r in found) if found else 0.0)
    bars = axis.barh(parts[::-1], middle[::-1], color=[_GREY, _ORANGE, _GREEN, _BLUE])
    axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axis.margins(x=0.2)
    axis.set_title("a step (ms, median)", loc="left")


def _idle(axis: Axes, left: dict[str, Any]) -> None:
    """Share of its time that each worker computed no rows."""
    axis.set_title("workers idle (% of the time)", loc="left")
    shares = {k: 100.0 * v for k, v in left.get("idle_by_worker", {}).items()}
    if not shares:
        _say(axis, "not recorded")
        return
    _bars(axis, shares, _GREY, "%.0f")
    axis.set_ylim(0, 110)
    axis.set_xlabel("worker")


def _updates(axis: Axes, left: dict[str, Any]) -> None:
    """Updates that came from each worker, or replica."""
    axis.set_title("updates", loc="left")
    if "updates_by_worker" not in left:
        _say(axis, "all workers have a part in each")
        return
    _bars(axis, left["updates_by_worker"], _GREEN, "%d")
    axis.set_xlabel("worker or replica they came from")


def _bars(axis: Axes, values: dict[str, float], color: str, form: str) -> None:
    bars = axis.bar([int(k) for k in values], list(values.values()), color=color)
    if len(values) <= _LABELLED:
        axis.bar_label(bars, fmt=form, padding=2, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(y=0.15)


def _staleness(axis: Axes, left: dict[str, Any]) -> None:
    """Histogram of the staleness, or of Hogwild's tau."""
    name = next((name for name in ("staleness", "tau") if name in left), "")
    axis.set_title(name or "staleness", loc="left")
    if not name:
        _say(axis, "0: a synchronous strategy")
        return
    found = left[name]
    counts = {int(k): n for k, n in found["histogram"].items()}
    if name == "tau":  # bins that are powers of two
        axis.bar([f"{k}" for k in counts], list(counts.values()), color=_BLUE)
        axis.tick_params(axis="x", labelsize=7, rotation=90 if len(counts) > _LABELLED else 0)
    else:
        axis.bar(list(counts), list(counts.values()), color=_BLUE)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    unit = "versions" if name == "staleness" else "gradients missing in x"
    axis.set_xlabel(f"{unit}; mean {found['mean']:.3g}, most {found['max']:,}", fontsize=8)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=_GREY, fontsize=9)
    axis.set_xlabel("")
    axis.set_xticks([])
    axis.set_yticks([])
