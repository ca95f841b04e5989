"""Progress for people: a bar on a terminal, plain lines elsewhere, silence with ``--quiet``.

A run reports records (the lines of metrics.jsonl) to a `Progress`; what is shown of them is where the run is
on its way to the first limit, the loss, rows per second and the time that is left. Everything goes to stderr.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from bigopt.callbacks import Progress

_LINE_SECONDS = 5.0
_WINDOW = 20


class Pace:
    """How far a run is, how fast, and how long it will take.

    Parameters
    ----------
    total_steps, total_epochs : number or None
        The limits; the one that is nearer decides.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self, total_steps: int | None, total_epochs: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total_steps = total_steps
        self.total_epochs = total_epochs
        self._clock = clock
        self._marks: deque[tuple[float, float, float]] = deque(maxlen=_WINDOW)  # time, rows so far, fraction
        self._marks.append((clock(), 0.0, 0.0))

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record in."""
        if len(self._marks) == 2 and self._marks[0][1:] == (0.0, 0.0):
            self._marks.popleft()  # a resumed run did not start at 0
        self._marks.append((self._clock(), float(record.get("rows") or 0.0), self._fraction(record) or 0.0))

    def _fraction(self, record: Mapping[str, Any]) -> float | None:
        parts = []
        if self.total_steps:
            parts.append(float(record.get("step") or 0) / self.total_steps)
        if self.total_epochs:
            parts.append(float(record.get("epoch") or 0) / self.total_epochs)
        return min(1.0, max(parts)) if parts else None

    @property
    def fraction(self) -> float | None:
        """Part of the run that is done, None where no limit in steps or epochs is set."""
        return self._marks[-1][2] if self.total_steps or self.total_epochs else None

    @property
    def rows_per_second(self) -> float | None:
        """Rows per second over the last records."""
        (t0, r0, _), (t1, r1, _) = self._marks[0], self._marks[-1]
        return (r1 - r0) / (t1 - t0) if t1 > t0 and r1 > r0 else None

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the last records."""
        (t0, _, f0), (t1, _, f1) = self._marks[0], self._marks[-1]
        return (1.0 - f1) * (t1 - t0) / (f1 - f0) if t1 > t0 and f1 > f0 else None


def count(value: float) -> str:
    """Return a number as people read it: 950, 1.2k, 34M."""
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000.0
    return f"{value:.3g}T"


def clock_text(seconds: float | None) -> str:
    """Return seconds as h:mm:ss, or dashes where nobody knows."""
    if seconds is None or not seconds < 1e7:
        return "-:--:--"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def status(record: Mapping[str, Any], pace: Pace) -> str:
    """Return one line about a record: ``step 200/2340  epoch 0.43/5  loss 0.6931  45k rows/s  ETA 0:00:21``."""
    parts = []
    if record.get("step") is not None:
        parts.append(f"step {record['step']}" + (f"/{pace.total_steps}" if pace.total_steps else ""))
    if record.get("epoch") is not None:
        parts.append(f"epoch {record['epoch']:.2f}" + (f"/{pace.total_epochs:g}" if pace.total_epochs else ""))
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.6g}")
    if pace.rows_per_second is not None:
        parts.append(f"{count(pace.rows_per_second)} rows/s")
    if pace.fraction is not None:
        parts.append(f"ETA {clock_text(pace.seconds_left)}")
    return "  ".join(parts)


class Quiet:
    """Say nothing but warnings."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def start(self, total_steps: int | None, total_epochs: float | None, text: str) -> None:
        """Say nothing."""

    def update(self, record: Mapping[str, Any]) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Print warnings only."""
        if text.lower().startswith("warning"):
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class Lines:
    """Plain lines, at most one every few seconds, and the last one at the end."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._pace = Pace(None, None, clock)
        self._next = 0.0
        self._waiting: Mapping[str, Any] | None = None

    def start(self, total_steps: int | None, total_epochs: float | None, text: str) -> None:
        """Print the text."""
        self._pace = Pace(total_steps, total_epochs, self._clock)
        self._next = self._clock()
        self.note(text)

    def update(self, record: Mapping[str, Any]) -> None:
        """Print the record where the last line is old enough."""
        self._pace.add(record)
        self._waiting = record
        if self._clock() >= self._next:
            self._flush()

    def _flush(self) -> None:
        if self._waiting is not None:
            self.note(status(self._waiting, self._pace))
            self._next = self._clock() + _LINE_SECONDS
            self._waiting = None

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Print the last record if that was not done."""
        self._flush()


class Bar:
    """A live bar on a terminal; notes scroll above it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console

        self._console = Console(file=stream or sys.stderr, highlight=False, markup=False)
        self._pace = Pace(None, None)
        self._live: Any = None
        self._task: Any = None

    def start(self, total_steps: int | None, total_epochs: float | None, text: str) -> None:
        """Draw the bar."""
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.close()
        self._pace = Pace(total_steps, total_epochs)
        self._live = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
        )
        self._live.start()
        limited = total_steps is not None or total_epochs is not None
        self._task = self._live.add_task(text, total=1.0 if limited else None, status="")

    def update(self, record: Mapping[str, Any]) -> None:
        """Move the bar."""
        self._pace.add(record)
        if self._live is not None:
            self._live.update(self._task, completed=self._pace.fraction or 0.0, status=status(record, self._pace))

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def choose(*, quiet: bool, stream: TextIO | None = None) -> Progress:
    """Return the progress that suits the terminal."""
    out = stream or sys.stderr
    if quiet:
        return Quiet(out)
    return Bar(out) if out.isatty() else Lines(out)
