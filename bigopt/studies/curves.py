"""The learning curve of a run, drawn from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#2f6db3", "#d9822b", "#8a8f98"


def records(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run directory, in order."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def learning_curve(run: Path) -> Path:
    """Draw loss, gradient norm and validation metrics against epochs; return the picture's path."""
    found = [r for r in records(run) if r["loss"] is not None]
    epochs = [r["epoch"] for r in found]
    checks = [r for r in found if r.get("validation")]
    names = [k for k in (checks[0]["validation"] if checks else {}) if k in ("r2", "accuracy", "auc")]
    figure = Figure(figsize=(9.0 if names else 7.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 3 if names else 2)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_xlabel("epoch")
    axes[0].plot(epochs, [r["loss"] for r in found], color=_BLUE, lw=1.2, label="batch, with penalty")
    if checks:
        shown = [r["validation"]["loss"] for r in checks]
        axes[0].plot([r["epoch"] for r in checks], shown, "o-", color=_ORANGE, ms=3, label="validation")
    axes[0].set_title("loss", loc="left")
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].plot(epochs, [r["grad_norm"] for r in found], color=_GREY, lw=1.0)
    axes[1].set_title("gradient norm", loc="left")
    for axis, key in ((axes[0], "loss"), (axes[1], "grad_norm")):
        if all(r[key] > 0 for r in found) and found and max(r[key] for r in found) > 20 * min(r[key] for r in found):
            axis.set_yscale("log")
    if names:
        for name in names:
            values = [r["validation"][name] for r in checks]
            axes[2].plot([r["epoch"] for r in checks], values, "o-", ms=3, label=f"{name} {values[-1]:.4f}")
        axes[2].set_title("validation", loc="left")
        axes[2].legend(frameon=False, fontsize=8)
    path = run / "learning_curve.png"
    figure.savefig(path, dpi=130)
    return path
