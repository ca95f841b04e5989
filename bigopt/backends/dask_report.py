"""What the Dask dashboard is told about a run: plain events, written by the driver, kept by the scheduler.

Two topics, because the scheduler keeps only the last thousand events of each. `TOPIC` carries the present: the newest
record and what every slot does. `CURVE_TOPIC` carries the past, thinned: points are kept at every step to begin with
and then about 1.5 % apart, so that a run of a million steps leaves less than a thousand and a page that is opened late
still shows the whole curve.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

TOPIC: Final = "bigopt"
CURVE_TOPIC: Final = "bigopt-curve"
PAGE_TOPIC: Final = "bigopt-page"

_SPACING: Final = 1.015
_HEARTBEAT: Final = 2.0

Log = Callable[[str, Any], None]


class Reporter:
    """Collects records and sends them when asked to.

    Parameters
    ----------
    run : str
    log : callable
        ``log(topic, event)`` hands an event to the scheduler.
    """

    def __init__(self, run: str, log: Log) -> None:
        self._run = run
        self._log = log
        self._begin = time.time()
        self._text = "preparing"
        self._record: dict[str, Any] = {}
        self._validation: dict[str, Any] = {}
        self._points: list[list[float | None]] = []
        self._kept_step = 0.0
        self._sent: Any = None
        self._sent_at = 0.0

    def add(self, text: str, record: dict[str, Any]) -> None:
        """Take a record (the keys of metrics.jsonl); called from the driver's thread, never blocks."""
        self._text, self._record = text, record
        self._validation = record.get("validation") or self._validation
        step, loss = record.get("step"), record.get("loss")
        if step is None or loss is None:
            return
        validation = (record.get("validation") or {}).get("loss")
        if validation is not None or step >= max(self._kept_step + 1, self._kept_step * _SPACING):
            self._kept_step = float(step)
            self._points.append([float(step), float(loss), None if validation is None else float(validation)])

    def publish(self, slots: list[dict[str, Any]], *, last: bool = False) -> None:
        """Send what is new; with `last` say that the run has ended."""
        points, self._points = self._points, []
        if points:
            self._log(CURVE_TOPIC, {"run": self._run, "points": points})
        record = self._record
        state = (record.get("step"), [[s.get(k) for k in ("state", "round", "worker")] for s in slots], last)
        now = time.monotonic()
        if state == self._sent and now - self._sent_at < _HEARTBEAT:
            return
        self._sent, self._sent_at = state, now
        event = {
            "run": self._run,
            "begin": self._begin,
            "state": "ended" if last else "running" if record else "preparing",
            "text": self._text,
            "record": numbers(record),
            "validation": numbers(self._validation),
            "slots": [] if last else slots,
        }
        self._log(TOPIC, event)


def numbers(record: dict[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a record as msgpack and a page can hold them: None for what is not finite."""
    found = {k: v for k, v in record.items() if isinstance(v, int | float)}
    return {k: v if math.isfinite(v) else None for k, v in found.items()}
