"""Running a sweep: trials one after another on one engine, rung by rung where halving is on.

Every trial is a run of its own below ``DIR/trials/NAME``, with all that a run leaves behind; ``trial.json`` beside it
keeps what it reached at the end of each rung. A trial that goes on to the next rung is resumed from its checkpoint
with a higher ``stop.epochs``; its schedule was planned for all epochs from the start, so the last trial left computes
the bits of a run that was never halved.

A sweep that is started again reads what is there: finished rungs are kept, a run under way is resumed, new trials are
run. What the data or the engine refuse (`ConfError`, `DataError`) is tried again then; what diverged did so for good.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigopt import fit
from bigopt.callbacks import Progress, Silent
from bigopt.config.layers import fill, values_of
from bigopt.config.output import flow, resumable, safe
from bigopt.core.errors import BigoptError, CheckpointError, ConfError, DataError, DivergedError, InterruptedRun
from bigopt.facts import is_classification
from bigopt.rundir import RunDir, plain
from bigopt.sharing import Shared
from bigopt.sweep import report
from bigopt.sweep.report import Row
from bigopt.sweep.spec import HIGHER, LOWER, Spec
from bigopt.sweep.trials import Trial, plan, rungs

if TYPE_CHECKING:
    from bigopt.config import Conf

_REGRESSION = ("mse", "rmse", "mae", "r2")


def sweep(spec: Spec, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run a sweep, or go on with it.

    Parameters
    ----------
    spec : Spec
    progress : Progress, optional

    Returns
    -------
    dict
        The success object of ``bigopt sweep --json``: the best trial and the ranked rows.

    Raises
    ------
    BigoptError
        What ends all trials: a cluster that is lost, a disk that is full, a signal; or the first trial's error where
        none has finished.
    """
    progress = progress or Silent()
    base, trials = plan(spec)
    try:
        spec.dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot make the directory of the sweep: {error.strerror}", where=str(spec.dir)
        ) from None
    with (
        contextlib.closing(RunDir(spec.dir)) as folder,
        contextlib.closing(Shared(base, spec.dir.name, progress.note)) as shared,
    ):
        return _Sweep(spec, trials, folder, shared, progress).go()


class _Sweep:
    """One start of a sweep."""

    def __init__(self, spec: Spec, trials: Sequence[Trial], folder: RunDir, shared: Shared, progress: Progress) -> None:
        self.spec = spec
        self.folder = folder
        self.shared = shared
        self.progress = progress
        self.metric = spec.metric or _metric(trials)
        self.sign = 1.0 if self.metric in LOWER else -1.0
        self.rows = [Row(number, trial.name, trial.settings) for number, trial in enumerate(trials, 1)]
        self.trials = {trial.name: trial for trial in trials}
        self.errors: dict[str, BigoptError] = {}
        for row in self.rows:
            error = self.trials[row.name].error
            if error is not None:
                self._fail(row, error)
        if self.metric == "validation_loss":
            bare = next((t for t in trials if t.conf is not None and t.conf.data.validation is None), None)
            if bare is not None:
                raise ConfError(
                    "metric validation_loss without validation rows",
                    where=spec.where("metric"),
                    hint="set data.validation, or metric: loss",
                )

    def go(self) -> dict[str, Any]:
        """Run all trials, rung by rung, and report."""
        begin = time.monotonic()
        alive = [row for row in self.rows if not row.failed]
        halving = self.spec.halving
        ladder = rungs(self.spec, self._conf(alive[0]).stop.epochs)
        steps = len(ladder) or 1
        self.progress.note(f"sweep: {len(self.rows)} trials, {self.metric}, in {self.folder.path}")
        for step in range(steps):
            entered = len(alive)
            for number, row in enumerate(alive, 1):
                self._advance(row, ladder, step, f"trial {number} of {len(alive)}: {report.named(row.settings)}")
            alive = [row for row in alive if not row.failed]
            if not alive:
                break
            if halving is not None and step < steps - 1:
                alive.sort(key=self._order)
                kept = math.ceil(entered / halving.factor)
                for row in alive[kept:]:
                    row.status = "stopped early"
                alive = sorted(alive[:kept], key=lambda row: row.number)
                self.progress.note(f"rung {step + 1} of {steps}: {len(alive)} of {entered} trials go on")
        return self._report(time.monotonic() - begin)

    def _conf(self, row: Row) -> Conf:
        conf = self.trials[row.name].conf
        assert conf is not None, "a refused trial does not run"
        return conf

    def _order(self, row: Row) -> tuple[float, float, float, int]:
        """Return what rows are sorted by: those that got further first, then the better, failed ones last."""
        value = row.value
        return (float(row.failed), -float(row.rung), math.inf if value is None else self.sign * value, row.number)

    def _advance(self, row: Row, ladder: tuple[float, ...], step: int, title: str) -> None:
        """Bring a trial to the end of a rung, from whatever is there of it."""
        conf = self._conf(row)
        folder = Path(conf.run.dir)
        state = _read(folder / "trial.json")
        goal = f"{ladder[step]:g}" if ladder else "end"
        done = state["rungs"].get(goal)
        if done is None and state["diverged"] is not None:
            self._fail(row, DivergedError(**state["diverged"]))
            return
        if done is None:
            if ladder:
                conf = fill(conf, {"stop.epochs": ladder[step]}, "halving")
            self._check_metric(conf)
            try:
                done = self._run(conf, folder, ladder[-1] if ladder else None, title)
            except InterruptedRun as error:
                raise InterruptedRun(
                    error.message,
                    where=str(self.folder.path),
                    hint=f"go on with: bigopt sweep -c {self.spec.file}",
                    signal=error.signal,
                ) from None
            except (DivergedError, ConfError, DataError) as error:
                if isinstance(error, DivergedError):
                    state["diverged"] = {"message": error.message, "where": error.where, "hint": error.hint}
                    self._write(folder, row, state)
                row.run = error.run
                self._fail(row, error)
                self.progress.note(f"{title}: {row.status}: {row.reason}")
                return
            state["rungs"][goal] = done
            self._write(folder, row, state)
        row.take(done, folder, self.metric, step)
        row.status = "completed"
        value = "undefined" if row.value is None else f"{row.value:.6g}"
        self.progress.note(f"{title}: {self.metric} {value} at epoch {row.epochs:g}")

    def _run(self, conf: Conf, folder: Path, planned: float | None, title: str) -> dict[str, Any]:
        """Train or resume, and return what the run reached."""
        shown = _Shown(self.progress, title)
        run = _under_way(folder)
        if run is None:
            shutil.rmtree(folder, ignore_errors=True)  # a start that left no checkpoint
            data = self.shared.data(conf)
            result = fit.train(conf, data=data, progress=shown, shared=self.shared, planned=planned)
        else:
            changes = [f"{path}={flow(value)}" for path, value in values_of(conf).items() if resumable(path)]
            result = fit.resume(run, changes, progress=shown, shared=self.shared)
        path = Path(result["run"])
        kept = json.loads((path / "result.json").read_text(encoding="utf-8"))
        metrics = dict(kept["metrics"])
        if "validation_loss" in kept:
            metrics["validation_loss"] = kept["validation_loss"]
        return {
            **{key: kept[key] for key in ("steps", "epochs", "loss", "seconds", "params_sha256")},
            "metrics": metrics,
            "bytes_read": kept["ledger"]["bytes_read"],
            "run": path.name,
        }

    def _check_metric(self, conf: Conf) -> None:
        """Refuse a metric that a trial does not have before it runs."""
        try:
            known = _known(conf, is_classification(conf, self.shared.data(conf).train)[0])
        except (ConfError, DataError):  # the trial meets it again, and fails alone
            return
        if self.metric not in known:
            hint = f"one of {', '.join(known)}"
            raise ConfError(f"{conf.model.name} has no {self.metric}", where=self.spec.where("metric"), hint=hint)

    def _fail(self, row: Row, error: BigoptError) -> None:
        row.failed, row.status = True, "diverged" if isinstance(error, DivergedError) else "failed"
        where = f"{error.where}: " if error.where else ""
        row.reason = f"{where}{error.message}" if isinstance(error, DivergedError) else str(error)
        self.errors[row.name] = error

    def _write(self, folder: Path, row: Row, state: dict[str, Any]) -> None:
        try:
            path = folder / "trial.json"
            fresh = path.with_suffix(".new")
            text = json.dumps(plain({"settings": safe(row.settings), **state}), indent=2)
            fresh.write_text(text + "\n", encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            raise CheckpointError(f"cannot write: {error.strerror}", where=str(folder)) from None

    def _report(self, seconds: float) -> dict[str, Any]:
        """Rank, write tables and picture, and return the success object."""
        rows = sorted(self.rows, key=self._order)
        result: dict[str, Any] = {
            "status": "completed",
            "sweep": str(self.folder.path),
            "metric": self.metric,
            "better": "lower" if self.sign > 0 else "higher",
            "trials": len(rows),
            "finished": sum(row.status == "completed" for row in rows),
            "stopped_early": sum(row.status == "stopped early" for row in rows),
            "failed": sum(row.failed for row in rows),
            "seconds": seconds,
            "bytes_read": sum(row.bytes_read for row in rows),
            "best": None if rows[0].failed else rows[0].record(1),
            "rows": [row.record(rank) for rank, row in enumerate(rows, 1)],
        }
        result = safe(result)
        self.folder.write_json("sweep.json", result)
        self.folder.write_text("sweep.csv", report.as_csv(rows, self.metric))
        if rows[0].failed:
            first = self.errors[self.rows[0].name]
            raise type(first)(f"no trial finished; the first: {first.message}", where=first.where, hint=first.hint)
        result["picture"] = report.drawn(rows, self.metric, self.folder.path, self.progress)
        return result


class _Shown:
    """Shows a trial's progress under its title; what it says stays in its log.

    Parameters
    ----------
    progress : Progress
    title : str
    """

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._title = title

    def start(self, total_steps: int | None, total_epochs: float | None, text: str) -> None:
        """Begin a trial."""
        self._progress.start(total_steps, total_epochs, self._title)

    def update(self, record: dict[str, Any]) -> None:
        """Show a record."""
        self._progress.update(record)

    def note(self, text: str) -> None:
        """Keep silent: log.txt has it."""

    def close(self) -> None:
        """End."""
        self._progress.close()


def _metric(trials: Sequence[Trial]) -> str:
    """Return the metric of null: the loss of rows held out where all trials hold some out."""
    confs = [trial.conf for trial in trials if trial.conf is not None]
    return "loss" if any(conf.data.validation is None for conf in confs) else "validation_loss"


def _known(conf: Conf, classification: bool) -> tuple[str, ...]:
    """Return the metrics that a model may have."""
    held_out = () if conf.data.validation is None else ("validation_loss",)
    others = tuple(m for m in ("log_loss", *HIGHER) if m not in _REGRESSION) if classification else _REGRESSION
    return ("loss", *held_out, *others)


def _under_way(folder: Path) -> Path | None:
    """Return the run of a trial that can be resumed, None where there is none."""
    runs = sorted(path for path in folder.glob("*") if (path / "conf.yml").is_file())
    return next((run for run in reversed(runs) if any((run / "checkpoints").glob("*"))), None)


def _read(path: Path) -> dict[str, Any]:
    """Return what is known of a trial."""
    if not path.exists():
        return {"rungs": {}, "diverged": None}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {"rungs": dict(state["rungs"]), "diverged": state["diverged"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            "not the state of a trial", where=str(path), hint="remove it to run the trial again"
        ) from None
