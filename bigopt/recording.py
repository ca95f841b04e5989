"""What a run says about itself while it lasts: a line of metrics.jsonl, the same line to people, the mean of an epoch.

The loss of a step is that of its batch before the update, so a single one says little; the mean over the rows of an
epoch is what targets and early stopping look at where there is no validation data. It survives a resume: a checkpoint
holds the sum so far.
"""

from __future__ import annotations

from typing import Any

from bigopt.backends.base import Session
from bigopt.backends.ledger import Ledger
from bigopt.callbacks import Progress
from bigopt.rundir import RunDir
from bigopt.strategies.base import Machine, StepRecord


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

    def line(
        self, record: StepRecord, machine: Machine, *, seconds: float, waited: float, audit: str
    ) -> dict[str, Any]:
        """Return the line of a step, and add its loss to the epoch's mean.

        Parameters
        ----------
        record : StepRecord
        machine : Machine
            After the step.
        seconds : float
            Run time so far.
        waited : float
            Seconds the driver waited for the arrival that completed the step.
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
            "seconds": seconds,
            "seconds_map": record.seconds_map,
            "seconds_reduce": record.seconds_reduce,
            "seconds_update": record.seconds_update,
            "seconds_idle": max(0.0, waited - record.seconds_map),
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
