"""Who is told about a run while it lasts, and who may tell it to end: progress for people, signals."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol


class Progress(Protocol):
    """Who shows a run to a person."""

    def start(self, total_steps: int | None, total_epochs: float | None, text: str) -> None:
        """Begin; totals are None where only time or a target ends the run."""
        ...

    def update(self, record: dict[str, Any]) -> None:
        """Show a record (the keys of metrics.jsonl)."""
        ...

    def note(self, text: str) -> None:
        """Show a line."""
        ...

    def close(self) -> None:
        """End."""
        ...


class Silent:
    """Shows nothing."""

    def start(self, total_steps: int | None, total_epochs: float | None, text: str) -> None:
        """Show nothing."""

    def update(self, record: dict[str, Any]) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


class Signals:
    """Turns the first SIGINT or SIGTERM into a request, the second into an immediate end."""

    def __init__(self) -> None:
        self.received = 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Take over both signals for the length of a with statement."""
        try:
            old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's business
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
