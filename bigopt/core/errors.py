"""Every error a user can meet, and the exit code that goes with it.

::

    BigoptError                 (abstract: message, where, hint, code)
    ├── ConfError          2    usage or configuration
    ├── DataError          3    a dataset, file, chunk, row or label
    ├── DivergedError      4    a loss or gradient stopped being finite
    ├── ClusterError       5    workers, engine or handshake
    ├── CheckpointError    6    reading or writing a checkpoint, run directory or model
    ├── SecurityError      7    refused for security
    └── InterruptedRun     130 / 143   SIGINT / SIGTERM

A message says what was found; `where` says where (``file:line``, chunk, row, conf path); `hint` what to do.
"""

from __future__ import annotations

from typing import ClassVar


class BigoptError(Exception):
    """Base of all errors that bigopt raises on purpose.

    Parameters
    ----------
    message : str
        One line: what was found.
    where : str
        File, line, chunk, row or conf path; empty where there is none.
    hint : str
        What to do about it; empty where there is nothing to say.
    """

    code: ClassVar[int] = 1
    run: str | None = None
    """Run directory of the run that the error ended, where there is one."""

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    @property
    def exit_code(self) -> int:
        """Exit status of the command line."""
        return self.code

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.hint})" if self.hint else text


class ConfError(BigoptError):
    """Usage or configuration: unknown key, wrong type, refused combination."""

    code = 2


class DataError(BigoptError):
    """A dataset, file, chunk, row, label or weight that cannot be used."""

    code = 3


class DivergedError(BigoptError):
    """The loss or the gradient is no longer finite."""

    code = 4


class ClusterError(BigoptError):
    """Workers lost beyond the retries, no worker in time, or workers that disagree."""

    code = 5


class CheckpointError(BigoptError):
    """A checkpoint, model or run directory that cannot be read or written."""

    code = 6


class SecurityError(BigoptError):
    """Refused for security."""

    code = 7


class InterruptedRun(BigoptError):
    """A signal ended the run after a checkpoint."""

    def __init__(self, message: str, *, where: str = "", hint: str = "", signal: int = 2) -> None:
        super().__init__(message, where=where, hint=hint)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


ERRORS: dict[str, type[BigoptError]] = {
    kind.__name__: kind for kind in (ConfError, DataError, DivergedError, ClusterError, CheckpointError, SecurityError)
}
