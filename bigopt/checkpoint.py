"""Checkpoints: the whole state of a run between two steps, in one file, in one atomic commit.

A checkpoint holds integers and vectors only: the strategy's snapshot (params, optimizer state, sampler position), the
counters, and the hashes of conf and data that it belongs to. It is written to a temporary name, synced, renamed and the
directory synced, so that at any instant the newest complete one can be loaded; every member carries a CRC-32.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from bigopt.core import codec
from bigopt.core.codec import wire
from bigopt.core.errors import CheckpointError

FORMAT: Final = 1
"""Of the checkpoints that this version writes and reads."""

_NAME = re.compile(r"step-(\d{12})\.npz")


@wire
class Checkpoint(NamedTuple):
    """What is saved.

    Parameters
    ----------
    format : int
        `FORMAT`.
    conf : str
        Digest of the conf keys that may not change.
    data : str
        Identity of the dataset.
    fingerprint : dict
        What decides the bits of a block.
    state : State
        Snapshot of the strategy.
    steps, rounds : int
    epochs : float
    seconds : float
        Run time so far, over all resumes.
    best : float or None
        Best loss of the checks for ``stop.tolerance``.
    stale : int
        Checks since then.
    best_params : ndarray, shape (p,), or None
        Params of the best check, where early stopping watches a validation loss.
    length : int or None
        Steps that were planned at the first start: what a schedule's null period means, also after a resume.
    epoch_mean : tuple
        Sum of losses times rows, and rows, of this epoch so far.
    audit : str
        Chained hash of all steps so far (``run.audit``), else empty.
    rewind : Rewind or None
        What the run goes back to where it diverges (``run.on_divergence: halve_rate``).
    """

    format: int
    conf: str
    data: str
    fingerprint: dict[str, str]
    state: Any
    steps: int
    rounds: int
    epochs: float
    seconds: float
    best: float | None
    stale: int
    best_params: Any
    length: int | None
    epoch_mean: tuple[float, int]
    audit: str
    rewind: Any = None


class Checkpoints:
    """The checkpoints of one run directory.

    Parameters
    ----------
    folder : Path
        ``checkpoints/`` of the run.
    keep : int
        How many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep
        folder.mkdir(mode=0o700, exist_ok=True)
        for torn in folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                torn.unlink()

    def paths(self) -> list[Path]:
        """Return complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then drop the oldest beyond `keep`.

        Raises
        ------
        CheckpointError
            Where the disk refuses; older checkpoints stay as they are.
        """
        path = self.folder / f"step-{checkpoint.steps:012d}.npz"
        codec.save(path, checkpoint)
        for old in self.paths()[: -self._keep]:
            old.unlink(missing_ok=True)
        return path

    def go_back(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and drop all later ones: the run went back to it."""
        path = self.folder / f"step-{checkpoint.steps:012d}.npz"
        codec.save(path, checkpoint)
        for later in self.paths():
            if later > path:
                later.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[Path, Checkpoint]:
        """Return the newest checkpoint that can be read.

        Raises
        ------
        CheckpointError
            Where there is none.
        """
        problems: list[str] = []
        for path in reversed(self.paths()):
            try:
                return path, load(path)
            except CheckpointError as error:
                problems.append(str(error))
        raise CheckpointError(
            "; ".join(problems) or "no checkpoint", where=str(self.folder), hint="the run must be started again"
        )


def load(path: Path) -> Checkpoint:
    """Read one checkpoint; raises `CheckpointError` for anything that is not one."""
    value = codec.load(path)
    if not isinstance(value, Checkpoint) or value.format != FORMAT:
        raise CheckpointError("not a checkpoint of this version", where=str(path))
    return value


class Cadence:
    """When the next checkpoint is due: by seconds, epochs or steps, whichever comes first.

    Parameters
    ----------
    every_seconds, every_epochs, every_steps : float or None
    """

    def __init__(
        self,
        every_seconds: float | None,
        every_epochs: float | None,
        every_steps: int | None,
        *,
        steps: int,
        epochs: float,
    ) -> None:
        self._seconds, self._epochs, self._steps = every_seconds, every_epochs, every_steps
        self._last = (time.monotonic(), epochs, steps)

    def due(self, steps: int, epochs: float) -> bool:
        """Return whether it is time; if so, count from now."""
        now = time.monotonic()
        then, last_epochs, last_steps = self._last
        due = (
            (self._seconds is not None and now - then >= self._seconds)
            or (self._epochs is not None and epochs - last_epochs >= self._epochs - 1e-9)
            or (self._steps is not None and steps - last_steps >= self._steps)
        )
        if due:
            self._last = (now, epochs, steps)
        return due
