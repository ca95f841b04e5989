"""What a run says about itself while it lasts: a line of metrics.jsonl, the same line to people, the mean of an epoch.

The loss of a step is that of its batch before the update, so a single one says little; the mean over the rows of an
epoch is what targets and early stopping look at where there is no validation data. It survives a resume: a checkpoint
holds the sum so far.

A worker is *idle* whenever it computes no rows of an order: while it waits for others, for the driver or for a message.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from bigopt.backends.base import Session
from bigopt.backends.ledger import Ledger
from bigopt.callbacks import Progress
from bigopt.rundir import RunDir
from bigopt.strategies.base import Machine, StepRecord
from bigopt.work import Arrival


class Idleness:
    """How long the workers of a run were idle since it was started: the time that passed less that of their Maps."""

    def __init__(self) -> None:
        self._lap = self._seen = time.perf_counter()
        self._joined: list[float] = []  # when each slot was first there
        self._busy: defaultdict[int, float] = defaultdict(float)
        self._since = 0.0  # busy seconds of all workers since the last lap

    def begin(self) -> None:
        """Count from now on."""
        self.pause(time.perf_counter() - self._seen)

    def pause(self, seconds: float) -> None:
        """Leave out time that has been spent on something else than steps."""
        self._lap += seconds
        self._seen += seconds
        self._joined = [joined + seconds for joined in self._joined]

    def arrived(self, arrival: Arrival, slots: int) -> None:
        """Note an arrival, where a run has so many slots."""
        first = not self._joined
        before, self._seen = self._seen, time.perf_counter()
        self._joined += [before if first else self._seen] * (slots - len(self._joined))
        for thread in range(getattr(arrival.order.work, "threads", 1)):  # hogwild's order keeps several slots busy
            self._busy[(arrival.order.slot + thread) % slots] += arrival.stats.seconds
            self._since += arrival.stats.seconds

    def lap(self) -> float:
        """Return the idle seconds of a worker since the last lap, the mean over the workers.

        An order that takes longer than a lap counts where it ends; what it is too much for one lap goes to the next.
        """
        now, slots = time.perf_counter(), max(1, len(self._joined))
        idle = now - self._lap - self._since / slots
        self._lap, self._since = now, max(0.0, -idle) * slots
        return max(0.0, idle)

    def shares(self) -> dict[str, float]:
        """Return the share of its time, up to the last arrival, that each worker was idle, by slot."""
        spans = [max(self._seen - joined, 1e-9) for joined in self._joined]
        return {str(slot): max(0.0, 1.0 - self._busy[slot] / span) for slot, span in enumerate(spans)}


class Recorder:
    """Writes the records of a run.

    Parameters
    ----------
    run : RunDir
    session : Session
        Shows every step where people who watch the engine look.
    progress : Progress
        Shows what is written.
    ledger : Ledger
        Counters of the run.
    every : int
        Steps between two lines; the end of an epoch always has one.
    epoch_mean : tuple
        Sum of losses times rows, and rows, of this epoch so far.
    """

    def __init__(
        self,
        run: RunDir,
        session: Session,
        progress: Progress,
        ledger: Ledger,
        *,
        every: int,
        epoch_mean: tuple[float, int] = (0.0, 0),
    ) -> None:
        self._run = run
        self._session = session
        self._progress = progress
        self._ledger = ledger
        self._every = every
        self.epoch_mean = epoch_mean
        self.idleness = Idleness()

    def line(self, record: StepRecord, machine: Machine, *, seconds: float, audit: str) -> dict[str, Any]:
        """Return the line of a step, and add its loss to the epoch's mean.

        Parameters
        ----------
        record : StepRecord
        machine : Machine
            After the step.
        seconds : float
            Run time so far.
        audit : str
            Chained hash of the states, or empty.
        """
        total, count = self.epoch_mean
        self.epoch_mean = (total + record.loss * record.rows, count + record.rows)
        ledger = self._ledger
        return {
            **({"audit": audit} if audit else {}),
            "step": record.step,
            "round": ledger.rounds,
            "epoch": machine.epochs,
            "loss": record.loss,
            "grad_norm": record.grad_norm,
            "learning_rate": record.learning_rate,
            "rows": ledger.rows,
            "bytes_read": ledger.bytes_read,
            "bytes_sent": ledger.bytes_sent + ledger.bytes_received,
            "bytes_down": ledger.bytes_sent,
            "bytes_up": ledger.bytes_received,
            "seconds": seconds,
            "seconds_map": record.seconds_map,
            "seconds_reduce": record.seconds_reduce,
            "seconds_update": record.seconds_update,
            "seconds_idle": self.idleness.lap(),
            "rss": record.rss,
            "staleness": record.staleness,
        }

    def end_of_epoch(self) -> float:
        """Return the mean loss of the epoch's rows and begin the next epoch."""
        total, count = self.epoch_mean
        self.epoch_mean = (0.0, 0)
        return total / count

    def show(self, line: dict[str, Any], *, end_of_epoch: bool) -> None:
        """Write the line where one is due, and show the step to those who watch."""
        if end_of_epoch or line["step"] % self._every == 0:
            self._run.metrics(line)
            self._progress.update(line)
        self._session.report(in_a_line(line), line)


def in_a_line(record: dict[str, Any]) -> str:
    """Say a record of metrics.jsonl in a line, for those who watch an engine."""
    return "round {round}, step {step}, epoch {epoch:.3g}, loss {loss:.6g}".format_map(record)
