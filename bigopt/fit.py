"""Training: open the data and the engine, find the facts, let a strategy's machine run, keep what it leaves behind.

The loop is the same for every strategy and backend::

    submit(machine.more(slots))
    while not finished:
        orders, record = machine.handle(session.wait())
        submit(orders + machine.more(slots))

Between two steps the loop looks at limits, validation, checkpoints and signals.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigopt import bundle, keeping, sessions
from bigopt.backends.base import Session, check_fingerprint, fingerprint
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.callbacks import Progress, Signals, Silent
from bigopt.checkpoint import Cadence, Checkpoint, Checkpoints
from bigopt.core import arrays, codec
from bigopt.core.errors import BigoptError, CheckpointError, ConfError, DataError, DivergedError, InterruptedRun
from bigopt.data.plan import homes, whole
from bigopt.data.view import DataView
from bigopt.facts import Datasets, Facts, open_data, profile
from bigopt.problem import Problem, build
from bigopt.rundir import RunDir
from bigopt.stopping import Stopper
from bigopt.strategies.base import StepRecord
from bigopt.strategies.sync import Sync, SyncState
from bigopt.warmstart import initial_params
from bigopt.work import MetricSum

if TYPE_CHECKING:
    from bigopt.config import Conf

Array = npt.NDArray[Any]
Log = Callable[[str], None]
OnStep = Callable[[int, float, Array], None]


def train(
    conf: Conf,
    *,
    data: Datasets | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Train a model.

    Parameters
    ----------
    conf : Conf
        Checked.
    data : Datasets, optional
        Opened data (arrays in memory, say); ``data.uri`` and ``data.validation`` are opened where it is not given.
    progress : Progress, optional
    on_step : callable, optional
        Called with (step, epoch, params) at the start (step 0) and after every step; params must not be changed.

    Returns
    -------
    dict
        The success object of ``bigopt train --json``.

    Raises
    ------
    BigoptError
        See `bigopt.core.errors`.
    """
    data = data or open_data(conf)
    run = RunDir.create(Path(conf.run.dir), conf.model.name)
    with contextlib.closing(run):
        return _Run(conf, data, run, progress, on_step).go(resume=False)


def resume(path: Path, overrides: list[str] | None = None, *, progress: Progress | None = None) -> dict[str, Any]:
    """Go on with a run from its newest checkpoint, on any backend.

    Parameters
    ----------
    path : Path
        Run directory.
    overrides : list of str
        ``key=value`` for the keys that may change (backend, stop, checkpoint, ...).
    """
    from bigopt.config import resume_conf

    run = RunDir.open(path)
    with contextlib.closing(run):
        conf = resume_conf(run.path / "conf.yml", overrides or [])
        return _Run(conf, open_data(conf), run, progress).go(resume=True)


class _Run:
    """One start of a run: holds what the steps of `go` share."""

    def __init__(
        self,
        conf: Conf,
        data: Datasets,
        run: RunDir,
        progress: Progress | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.conf = conf
        self.data = data
        self.run = run
        self.progress = progress or Silent()
        self.on_step = on_step
        self.ledger = Ledger()
        self.rounds = Rounds(self.ledger, conf.backend.retries)
        self.checkpoints = Checkpoints(run.path / "checkpoints", conf.checkpoint.keep)
        self.signals = Signals()
        self.audit = ""
        self.best_params: Array | None = None
        self.length: int | None = None
        self.epoch_mean: tuple[float, int] = (0.0, 0)
        self._metric_work: dict[str, MetricSum] = {}
        self.mine = fingerprint()

    def say(self, text: str) -> None:
        self.run.log(text)
        self.progress.note(text)

    def go(self, *, resume: bool) -> dict[str, Any]:
        """Run from the start or from the newest checkpoint to the end."""
        from bigopt.config import choose_backend, conf_hash, describe_defaults, to_yaml

        conf, run = self.conf, self.run
        backend, notice = choose_backend(conf, under_spark=sessions.under_spark())
        device = arrays.resolve_device(conf.backend.device)
        self.conf_hash = conf_hash(conf)
        run.write_text("conf.yml", to_yaml(conf))
        saved = self._saved() if resume else None
        self.say(f"run: {run.path}")
        for line in (*conf.notices, notice, *describe_defaults(conf)):
            if line:
                self.say(line)
        for data in (self.data.train, self.data.validation):
            for line in () if data is None else data.warnings:
                self.say(f"warning: {line}")
        self.say(f"backend: {backend}, device {device}")
        with self.signals.caught(), contextlib.ExitStack() as stack:
            try:
                session = sessions.open_session(conf, backend, run.path.name)
                stack.callback(session.close)
                for line in session.notes:
                    self.say(line)
                facts = self._facts(session, resume)
                problem = build(conf, self.data, facts, device)
                for line in problem.notes:
                    self.say(line)
                return self._loop(session, problem, saved)
            except BigoptError as error:
                run.log(f"error: {error}")
                error.run = str(run.path)
                raise

    def _saved(self) -> Checkpoint | None:
        if not self.checkpoints.paths():
            self.say("no checkpoint yet: from the beginning")
            return None
        path, saved = self.checkpoints.newest()
        if saved.conf != self.conf_hash:
            raise ConfError("the conf is not the one this run was started with", where=str(path))
        self.say(f"going on from {path.name}: step {saved.steps}, epoch {saved.epochs:.3g}")
        warning = check_fingerprint(self.mine, saved.fingerprint, who="the run so far", bits=self.conf.run.bits)
        if warning:
            self.say(f"warning: {warning}")
        return saved

    def _facts(self, session: Session, resume: bool) -> Facts:
        path = self.run.path / "facts.npz"
        if not (resume and path.exists()):
            facts = profile(self.conf, self.data, session, self.rounds)
            codec.save(path, facts)
            self.run.write_json(
                "manifest.json", keeping.manifest(self.conf, self.conf_hash, self.mine, self.data.train, facts)
            )
            return facts
        value = codec.load(path)
        if not isinstance(value, Facts):
            raise CheckpointError("not the facts of a run", where=str(path))
        other = "" if self.data.validation is None else self.data.validation.source.identity()
        if (self.data.train.source.identity(), other) != (value.identity, value.validation_identity):
            raise DataError(
                "the data is not what this run was started with", where=str(self.conf.data.uri), hint="start a new run"
            )
        return value

    def _loop(self, session: Session, problem: Problem, saved: Checkpoint | None) -> dict[str, Any]:
        conf, plan, facts = self.conf, problem.plan, problem.facts
        layout = problem.model.layout
        stopper = Stopper(
            conf.stop,
            plan,
            seconds=saved.seconds if saved else 0.0,
            best=saved.best if saved else None,
            stale=saved.stale if saved else 0,
        )
        self.length = saved.length if saved else stopper.max_steps
        method = problem.method(conf, self.length)
        if saved is not None:
            if saved.data != facts.identity:
                raise DataError("the checkpoint belongs to other data", where=str(self.run.path))
            state = saved.state
            self.ledger.rounds = saved.rounds
            self.audit = saved.audit
            self.best_params = saved.best_params
            self.epoch_mean = saved.epoch_mean
            self.run.cut_metrics(saved.steps)
        else:
            params = initial_params(
                conf.model.init,
                problem.model,
                conf.run.seed,
                columns=problem.view.source.columns,
                preparation=problem.view.scaling,
            ).astype(conf.run.dtype)
            state = SyncState(method.start(params)[0], 0, 0, 0)
        strategy = Sync(
            method,
            state,
            plan,
            lambda kind: problem.batch_work(kind, conf.run.dtype, conf.model.backprop),
            penalty=lambda params: problem.penalty.value(params, layout),
            total_weight=facts.train.moments.weight,
            rounds=self.rounds,
        )
        every = conf.run.metrics_every_steps or max(1, plan.steps_per_epoch // 20)
        cadence = Cadence(
            conf.checkpoint.every_seconds,
            conf.checkpoint.every_epochs,
            conf.checkpoint.every_steps,
            steps=state.steps,
            epochs=strategy.epochs,
        )
        self.say(
            f"{layout.size} parameters, {plan.rows} training rows in {problem.view.partitions} partitions, "
            f"{plan.steps_per_epoch} steps an epoch, {session.slots} slots"
        )
        self.progress.start(stopper.max_steps, conf.stop.epochs, conf.model.name)
        if saved is None:
            self._checkpoint(strategy, stopper, facts)
        steps, why = state.steps, stopper.limit(state.steps)
        try:
            if self.on_step is not None:
                self.on_step(steps, strategy.epochs, strategy.params)
            if not why:
                self._submit(session, strategy.more(session.slots))
            while not why:
                begin = time.perf_counter()
                arrival = session.wait()
                waited = time.perf_counter() - begin
                again, record = strategy.handle(arrival)
                self._submit(session, again)
                if record is None:
                    self._submit(session, strategy.more(session.slots))
                    continue
                steps = record.step
                if self.on_step is not None:
                    self.on_step(steps, strategy.epochs, strategy.params)
                if conf.run.audit:
                    self.audit = keeping.chained(self.audit, strategy.snapshot())
                why = self._after_step(session, problem, strategy, stopper, record, every, waited)
                why = why or stopper.limit(steps)
                if self.signals.received:
                    break
                if not why and cadence.due(steps, strategy.epochs):
                    self._checkpoint(strategy, stopper, facts)
                if not why:
                    self._submit(session, strategy.more(session.slots))
        except DivergedError as error:
            path = self._checkpoint(strategy, stopper, facts)
            raise DivergedError(
                error.message,
                where=error.where,
                hint=f"{error.hint}; the last finite state is {path}",
            ) from error
        finally:
            self.progress.close()
        self._checkpoint(strategy, stopper, facts)
        if self.signals.received:
            name = signal.Signals(self.signals.received).name
            raise InterruptedRun(
                f"{name} after step {steps}",
                where=str(self.run.path),
                hint=f"go on with: bigopt resume {self.run.path}",
                signal=self.signals.received,
            )
        self.say(f"stopped: {why}")
        return self._result(session, problem, strategy, stopper)

    @staticmethod
    def _submit(session: Session, orders: list[Any]) -> None:
        for order in orders:
            session.submit(order)

    def _after_step(
        self,
        session: Session,
        problem: Problem,
        strategy: Sync,
        stopper: Stopper,
        record: StepRecord,
        every: int,
        waited: float,
    ) -> str:
        """Record a step; at the end of an epoch look at validation and targets. Return why to end, or nothing."""
        total, count = self.epoch_mean
        self.epoch_mean = (total + record.loss * record.rows, count + record.rows)
        ledger = self.ledger
        line: dict[str, Any] = {
            **({"audit": self.audit} if self.audit else {}),
            "step": record.step,
            "round": ledger.rounds,
            "epoch": strategy.epochs,
            "loss": record.loss,
            "grad_norm": record.grad_norm,
            "learning_rate": record.learning_rate,
            "rows": ledger.rows,
            "bytes_read": ledger.bytes_read,
            "bytes_sent": ledger.bytes_sent + ledger.bytes_received,
            "seconds": stopper.seconds,
            "seconds_map": record.seconds_map,
            "seconds_reduce": record.seconds_reduce,
            "seconds_update": record.seconds_update,
            "seconds_idle": max(0.0, waited - record.seconds_map),
            "rss": record.rss,
            "staleness": record.staleness,
        }
        if record.step % every and not record.end_of_epoch:
            session.report(keeping.in_a_line(line), line)
            return ""
        why = ""
        if record.end_of_epoch:
            metrics: dict[str, float] = {}
            loss = self.epoch_mean[0] / self.epoch_mean[1]
            self.epoch_mean = (0.0, 0)
            if problem.validation is not None and problem.facts.validation is not None:
                metrics = self._metrics(session, problem, problem.validation, strategy.params)
                loss = metrics["loss"]
                line["validation"] = metrics
            elif self.conf.stop.target_metric:
                metrics = self._metrics(session, problem, problem.view, strategy.params)
            why = stopper.check(loss, metrics)
            if self.conf.stop.tolerance is not None and problem.validation is not None and stopper.stale == 0:
                self.best_params = strategy.params
        self.run.metrics(line)
        self.progress.update(line)
        session.report(keeping.in_a_line(line), line)
        return why

    def _metrics(self, session: Session, problem: Problem, view: DataView, params: Array) -> dict[str, float]:
        """Evaluate params on a view by one Map-Reduce; the loss is that of the rows, without the penalty."""
        facts = problem.facts
        side = facts.train if view is problem.view or facts.validation is None else facts.validation
        units = whole(np.arange(view.partitions), side.counts)
        sums = self.rounds.run(
            session,
            self._metric_work.setdefault(view.key, problem.metrics(view)),
            (params,),
            units,
            lambda slots: homes(side.counts, slots)[units[:, 0]],
            "an evaluation",
        )
        values: dict[str, float] = sums.values()
        return values

    def _checkpoint(self, strategy: Sync, stopper: Stopper, facts: Facts) -> Path:
        state = strategy.snapshot()
        return self.checkpoints.save(
            Checkpoint(
                1,
                self.conf_hash,
                facts.identity,
                self.mine,
                state,
                state.steps,
                self.ledger.rounds,
                strategy.epochs,
                stopper.seconds,
                stopper.best,
                stopper.stale,
                self.best_params,
                self.length,
                self.epoch_mean,
                self.audit,
            )
        )

    def _result(self, session: Session, problem: Problem, strategy: Sync, stopper: Stopper) -> dict[str, Any]:
        params = strategy.params
        if self.best_params is not None:
            self.say("kept: the parameters with the best validation loss (stop.tolerance is set)")
            params = self.best_params
        metrics = self._metrics(session, problem, problem.view, params)
        loss = metrics["loss"] + problem.penalty.value(params, problem.model.layout)
        if not np.isfinite(loss):
            raise DivergedError(f"the final loss is {loss}", where=f"step {strategy.snapshot().steps}")
        if problem.validation is not None:
            metrics = self._metrics(session, problem, problem.validation, params)
        bundle.save(self.run, keeping.bundle_of(problem, params, self.data.train))
        result = {
            "status": "completed",
            "run": str(self.run.path),
            "steps": strategy.snapshot().steps,
            "rounds": self.ledger.rounds,
            "epochs": strategy.epochs,
            "loss": loss,
            "metrics": {k: v for k, v in metrics.items() if k != "loss"},
            "params_sha256": bundle.params_sha256(params),
            "seconds": stopper.seconds,
        }
        if self.audit:
            result["audit_sha256"] = self.audit
        self.run.write_json("result.json", {**result, "ledger": vars(self.ledger)})
        self.say(keeping.picture(self.run.path))
        return result
