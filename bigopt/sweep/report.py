"""What a sweep ends with: a ranked row for every trial, as CSV, as JSON, in the terminal and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bigopt.callbacks import Progress
from bigopt.config.output import flow, safe


@dataclass
class Row:
    """What is known of a trial.

    Parameters
    ----------
    number : int
        Place in the sweep, from 1.
    name : str
    settings : dict
        Swept key to value.
    """

    number: int
    name: str
    settings: dict[str, Any]
    status: str = "not run"
    failed: bool = False
    reason: str | None = None
    run: str | None = None
    rung: int = 0
    value: float | None = None
    epochs: float = 0.0
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0
    bytes_read: int = 0
    params_sha256: str | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)

    def take(self, done: Mapping[str, Any], folder: Path, metric: str, rung: int) -> None:
        """Take what the trial reached at the end of a rung."""
        self.rung = rung
        self.metrics, self.loss = dict(done["metrics"]), done["loss"]
        self.epochs, self.steps, self.seconds = done["epochs"], done["steps"], done["seconds"]
        self.bytes_read += done["bytes_read"]  # of this rung alone
        self.params_sha256 = done["params_sha256"]
        self.run = str((folder / done["run"]).resolve())
        self.value = self.loss if metric == "loss" else self.metrics.get(metric)

    def record(self, rank: int) -> dict[str, Any]:
        """Return the row for JSON."""
        return {
            "rank": rank,
            "trial": self.name,
            "number": self.number,
            "settings": self.settings,
            "status": self.status,
            "value": self.value,
            "epochs": self.epochs,
            "steps": self.steps,
            "loss": self.loss,
            "metrics": self.metrics,
            "seconds": self.seconds,
            "bytes_read": self.bytes_read,
            "params_sha256": self.params_sha256,
            "run": self.run,
            "reason": self.reason,
        }


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return a short name for every key: its last part where no other key ends so and it is not ``name``."""
    last = [path.rpartition(".")[2] for path in paths]
    return {p: n if last.count(n) == 1 and n != "name" else p for p, n in zip(paths, last, strict=True)}


def named(settings: Mapping[str, Any]) -> str:
    """Return the settings of a trial on one line."""
    return ", ".join(f"{path}={flow(safe(value))}" for path, value in settings.items())


def as_csv(rows: Sequence[Row], metric: str) -> str:
    """Return the ranked rows as CSV; values as in a conf, full digits."""
    keys = list(rows[0].settings)
    metrics = sorted({name for row in rows for name in row.metrics} - {metric})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    others = [name for name in ("loss", *metrics) if name != metric]
    writer.writerow(
        [
            "rank",
            "trial",
            *keys,
            "status",
            metric,
            "epochs",
            "steps",
            *others,
            "seconds",
            "params_sha256",
            "run",
            "reason",
        ]
    )
    for rank, row in enumerate(rows, 1):
        found = {"loss": row.loss, **row.metrics}
        writer.writerow(
            [
                rank,
                row.name,
                *(flow(safe(row.settings[key])) for key in keys),
                row.status,
                row.value,
                row.epochs,
                row.steps,
                *(found.get(name) for name in others),
                f"{row.seconds:.3f}",
                row.params_sha256,
                row.run,
                row.reason,
            ]
        )
    return text.getvalue()


def columns_and_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the table for people of a sweep's result."""
    rows = result["rows"]
    names = short_names(list(rows[0]["settings"]))
    columns = ["rank", *names.values(), result["metric"], "epochs", "seconds", "status", "trial"]
    table = []
    for row in rows:
        status = row["status"] if row["reason"] is None else f"{row['status']}: {row['reason']}"
        values = [v if isinstance(v := row["settings"][path], (int, float, str)) else flow(v) for path in names]
        value = row["value"]
        table.append([row["rank"], *values, value, row["epochs"], round(row["seconds"], 2), status, row["trial"]])
    return columns, table


def drawn(rows: Sequence[Row], metric: str, folder: Path, progress: Progress) -> str | None:
    """Draw the picture where matplotlib is installed; return its path."""
    try:
        from bigopt.sweep.picture import draw
    except ImportError:
        progress.note("no picture: matplotlib is not installed (pip install 'bigopt[plots]')")
        return None
    try:
        with np.errstate(over="ignore"):
            return str(draw(rows, metric, folder))
    except OverflowError:
        progress.note("no picture: the values are beyond the scale of a picture")
        return None
