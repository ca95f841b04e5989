"""Training: open the data and the engine, find the facts, let a strategy's machine run, keep what it leaves behind.

A run is made from its parts here, at the first start and at a resume alike: facts and problem from the conf and the
data, the machine from the problem and the saved state. The loop itself is in `bigopt.loop`.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigopt import finishing, keeping, kernelset, sessions
from bigopt.backends.base import Casting, Session, check_fingerprint, fingerprint
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.peers_round import peers
from bigopt.backends.slices import SLICE_BYTES, Slicer
from bigopt.callbacks import Progress, Signals, Silent
from bigopt.checkpoint import Cadence, Checkpoint, Checkpoints
from bigopt.core import arrays, codec, compiled
from bigopt.core.errors import BigoptError, CheckpointError, ConfError, DataError, DivergedError, InterruptedRun
from bigopt.diagnose.auto import settled
from bigopt.facts import Datasets, Facts, open_data, profile
from bigopt.keeping import Keeper
from bigopt.loop import Loop, OnStep
from bigopt.problem import Problem, build
from bigopt.recording import Recorder
from bigopt.rewinding import Anchor
from bigopt.rundir import RunDir
from bigopt.setting import strategy_setting
from bigopt.sharing import Shared
from bigopt.stopping import Checks, Stopper
from bigopt.strategies.base import Logged, Machine, Noted, Replicated, Setting
from bigopt.strategies.table import strategy
from bigopt.warmstart import initial_params

if TYPE_CHECKING:
    from bigopt.config import Conf


def train(
    conf: Conf,
    *,
    data: Datasets | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    shared: Shared | None = None,
    planned: float | None = None,
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
    shared : Shared, optional
        An engine that stays open, for runs that follow one another.
    planned : float, optional
        Epochs that the schedule is made for, where the run will be resumed up to there; None: ``stop.*``.

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
        return _Run(conf, data, run, progress, on_step, shared, planned).go(resume=False)


def resume(
    path: Path,
    overrides: list[str] | None = None,
    *,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> dict[str, Any]:
    """Go on with a run from its newest checkpoint, on any backend.

    Parameters
    ----------
    path : Path
        Run directory.
    overrides : list of str
        ``key=value`` for the keys that may change (backend, stop, checkpoint, ...).
    progress : Progress, optional
    shared : Shared, optional
        An engine that stays open, for runs that follow one another.
    """
    from bigopt.config import resume_conf

    run = RunDir.open(path)
    with contextlib.closing(run):
        conf = resume_conf(run.path / "conf.yml", overrides or [])
        data = open_data(conf) if shared is None else shared.data(conf)
        return _Run(conf, data, run, progress, shared=shared).go(resume=True)


class _Run:
    """One start of a run: holds what the steps of `go` share."""

    def __init__(
        self,
        conf: Conf,
        data: Datasets,
        run: RunDir,
        progress: Progress | None = None,
        on_step: OnStep | None = None,
        shared: Shared | None = None,
        planned: float | None = None,
    ) -> None:
        self.conf = conf
        self.data = data
        self.run = run
        self.progress = progress or Silent()
        self.on_step = on_step
        self.shared = shared
        self.planned = planned
        self.ledger = Ledger()
        self.rounds = Rounds(self.ledger, conf.backend.retries)
        self.checkpoints = Checkpoints(run.path / "checkpoints", conf.checkpoint.keep)
        self.signals = Signals()
        self.kernels = kernelset.KernelSet(compiled.NUMPY, "")
        self.mine: dict[str, str] = {}

    def say(self, text: str) -> None:
        self.run.log(text)
        self.progress.note(text)

    def go(self, *, resume: bool) -> dict[str, Any]:
        """Run from the start or from the newest checkpoint to the end."""
        from bigopt.config import choose_backend, conf_hash, describe_defaults, to_yaml

        conf, run = self.conf, self.run
        backend, notice = choose_backend(conf, under_spark=sessions.under_spark())
        device = arrays.resolve_device(conf.backend.device)
        self._use(kernelset.choose(conf, self.data.train, device))
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
        self.say(f"backend: {backend}, device {device}, kernels {self.kernels.name} ({self.kernels.why})")
        with self.signals.caught(), contextlib.ExitStack() as stack:
            try:
                shared = self.shared
                session = shared.lend() if shared else sessions.open_session(conf, backend, run.path.name)
                stack.callback(session.close)
                self.rounds.slicer = None if backend == "local" else Slicer(SLICE_BYTES)
                self.rounds.peers = peers(conf, backend, self.say)
                self.rounds.buffers.casts = session.casts if isinstance(session, Casting) else None
                for line in session.notes:
                    self.say(line)
                facts = self._facts(session, resume)
                problem = replace(build(conf, self.data, facts, device), kernels=self._sent())
                if problem.facts.sampling != facts.sampling:
                    codec.save(run.path / "facts.npz", problem.facts)
                for line in problem.notes:
                    self.say(line)
                if conf.schedule.learning_rate == "auto":
                    facts_file = run.path / "facts.npz"
                    self.conf = settled(conf, problem, session, self.rounds, facts_file, self.signals, self.say)
                return self._train(session, problem, saved)
            except BigoptError as error:
                run.log(f"error: {error}")
                error.run = str(run.path)
                raise

    def _use(self, kernels: kernelset.KernelSet) -> None:
        self.kernels, self.mine = kernels, fingerprint(kernels.name)

    def _sent(self) -> str:
        """What work says of the kernel set: the driver's identity, or its name alone where any bits will do."""
        return self.mine["kernels"] if self.conf.run.bits == "strict" else self.kernels.name

    def _saved(self) -> Checkpoint | None:
        if not self.checkpoints.paths():
            self.say("no checkpoint yet: from the beginning")
            return None
        path, saved = self.checkpoints.newest()
        if saved.conf != self.conf_hash:
            raise ConfError("the conf is not the one this run was started with", where=str(path))
        self.say(f"going on from {path.name}: step {saved.steps}, epoch {saved.epochs:.3g}")
        if self.conf.run.kernels == "auto":
            self._use(kernelset.kept(saved.fingerprint))
        warning = check_fingerprint(self.mine, saved.fingerprint, who="the run so far", bits=self.conf.run.bits)
        if warning:
            self.say(f"warning: {warning}")
        return saved

    def _facts(self, session: Session, resume: bool) -> Facts:
        path = self.run.path / "facts.npz"
        if not (resume and path.exists()):
            conf, data = self.conf, self.data

            def find() -> Facts:
                return profile(conf, data, session, self.rounds)

            facts = find() if self.shared is None else self.shared.facts(conf, data, find)
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

    def _train(self, session: Session, problem: Problem, saved: Checkpoint | None) -> dict[str, Any]:
        """Make the parts of the loop, run it, and keep what it leaves."""
        loop = self._loop(session, problem, saved)
        if saved is None:
            loop.save()
        self.progress.start(loop.stopper.max_steps, self.conf.stop.epochs, self.conf.model.name)
        try:
            result = self._attempts(problem, loop)
        finally:
            self.progress.close()
        if result is None:
            name = signal.Signals(self.signals.received).name
            raise InterruptedRun(
                f"{name} after step {loop.machine.steps}",
                where=str(self.run.path),
                hint=f"go on with: bigopt resume {self.run.path}",
                signal=self.signals.received,
            )
        return result

    def _attempts(self, problem: Problem, loop: Loop) -> dict[str, Any] | None:
        """Run until the end, from further back with half the rate where it diverges; None where a signal ended it."""
        while True:
            try:
                why = loop.run()
                loop.save()
                if self.signals.received:
                    return None
                self.say(f"stopped: {why}")
                if loop.checks.best_params is not None:
                    self.say("kept: the parameters with the best validation loss (stop.tolerance is set)")
                result = finishing.finish(self.run, problem, loop, self.data.train, self.ledger)
                if self.shared is None:  # else the sweep's picture has the curves of all
                    self.say(finishing.picture(self.run.path))
                return result
            except DivergedError as error:
                anchor = loop.anchor
                if anchor is None or anchor.spent:
                    tried = "" if anchor is None else f"; the rate was halved {anchor.rewind.halvings} times"
                    raise DivergedError(
                        error.message,
                        where=error.where,
                        hint=f"{error.hint}; the last finite state is {loop.save()}{tried}",
                    ) from error
                state = anchor.go_back()
                most = loop.stopper.max_steps
                setting = self._setting(loop.session.slots, problem, loop.keeper.length, most, anchor.rate)
                loop.go_back(strategy(self.conf.strategy.name).machine(setting, state))
                self.run.cut_metrics(loop.machine.steps)
                self.say(
                    f"diverged at {error.where} ({error.message}): back to step {loop.machine.steps}, "
                    f"{anchor.rate:g} times the rate"
                )

    def _loop(self, session: Session, problem: Problem, saved: Checkpoint | None) -> Loop:
        from bigopt.config import fill

        conf, plan, facts = self.conf, problem.plan, problem.facts
        stopper = Stopper(
            conf.stop,
            plan,
            seconds=saved.seconds if saved else 0.0,
            best=saved.best if saved else None,
            stale=saved.stale if saved else 0,
        )
        planned = conf.stop if self.planned is None else fill(conf, {"stop.epochs": self.planned}, "the plan").stop
        length = saved.length if saved else Stopper(planned, plan, seconds=0.0, best=None, stale=0).max_steps
        rewind = None if saved is None else saved.rewind
        anchor = None if rewind is None else Anchor(rewind)
        rate = 1.0 if anchor is None else anchor.rate
        setting = self._setting(session.slots, problem, length, stopper.max_steps, rate)
        machine = self._machine(setting, problem, saved)
        if anchor is None and conf.run.on_divergence == "halve_rate":
            anchor = Anchor.at(machine.snapshot())
        if saved is not None:
            self.ledger.rounds = saved.rounds
            self.run.cut_metrics(machine.steps)
        self.say(
            f"{problem.model.layout.size} parameters, {plan.rows} training rows in {problem.view.partitions} "
            f"partitions, {plan.steps_per_epoch} steps an epoch, {session.slots} slots"
        )
        recorder = Recorder(
            self.run,
            session,
            self.progress,
            self.ledger,
            every=conf.run.metrics_every_steps or max(1, plan.steps_per_epoch // 20),
            epoch_mean=saved.epoch_mean if saved else (0.0, 0),
        )
        best = saved.best_params if saved else None
        every = conf.checkpoint
        return Loop(
            session,
            machine,
            rounds=self.rounds,
            recorder=recorder,
            stopper=stopper,
            checks=Checks(conf.stop, stopper, problem, session, self.rounds, best_params=best),
            keeper=Keeper(self.checkpoints, self.conf_hash, facts.identity, self.mine, length, self.ledger),
            cadence=Cadence(
                every.every_seconds,
                every.every_epochs,
                every.every_steps,
                steps=machine.steps,
                epochs=machine.epochs,
            ),
            signals=self.signals,
            on_step=self.on_step,
            audit=(saved.audit if saved else "") if conf.run.audit else None,
            anchor=anchor,
        )

    def _setting(self, slots: int, problem: Problem, length: int | None, steps: int | None, rate: float) -> Setting:
        return strategy_setting(
            problem,
            self.conf,
            self.rounds,
            length,
            steps=steps,
            slots=slots,
            log=lambda update: self.run.update(*update),
            tell=self.say,
            rate=rate,
        )

    def _machine(self, setting: Setting, problem: Problem, saved: Checkpoint | None) -> Machine:
        """Return the strategy's machine, from the saved state or from the first params."""
        conf = self.conf
        entry = strategy(conf.strategy.name)
        if saved is not None:
            if saved.data != problem.facts.identity:
                raise DataError("the checkpoint belongs to other data", where=str(self.run.path))
            state = saved.state
        else:
            params = initial_params(
                conf.model.init,
                problem.model,
                conf.run.seed,
                columns=problem.view.source.columns,
                preparation=problem.view.scaling,
            )
            state = entry.start(setting, params.astype(conf.run.dtype))
        if isinstance(state, Logged):
            self.run.cut_updates(state.updates)
        if isinstance(state, Replicated) and conf.strategy.replicas is None:
            self.say(f"strategy.replicas = {state.number} (workers at the first start)")
        machine = entry.machine(setting, state)
        for line in machine.notes if isinstance(machine, Noted) else ():
            self.say(line)
        return machine
