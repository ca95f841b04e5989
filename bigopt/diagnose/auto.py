"""``schedule.learning_rate: auto``: the rate is found by short runs from the first params, before the run itself.

Theory says where to look, trials say where to stay. Where curvature gives a stable step (plain gradients on the linear
family) the search starts at half of it, else at the optimizer's own default; then rates race (`bigopt.diagnose.race`).

Every trial makes the run's own synchronous steps: the same first params, batches and optimizer. One that is shorter
than the run goes through the whole schedule, compressed in time, so that an annealing ends in a trial as it does in the
run. Short trials are compared by the mean loss of the last quarter of their batches: the same rows for every rate.

Where the data is small the last trials are whole runs and compared by the final f, so that a constant rate, whose last
steps are noisy, is chosen by where it ends. All trials together draw about one epoch, or three million rows where an
epoch is less. Losses are sums along the fixed tree, so that the choice is the same on every backend and any number of
workers.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.backends.base import Session, one_blas_thread
from bigopt.backends.ledger import Rounds
from bigopt.callbacks import Signals
from bigopt.core import codec
from bigopt.core.errors import DivergedError, InterruptedRun
from bigopt.core.sums import Sums
from bigopt.data.plan import homes, whole
from bigopt.diagnose import theory
from bigopt.diagnose.measure import Measure, wide
from bigopt.diagnose.race import Choice, Log, race, rounded, stages
from bigopt.models.linear import LinearModel
from bigopt.models.rows import curvature_bound, has_curvature
from bigopt.optim.method import FirstOrder
from bigopt.optim.schedules import Compressed
from bigopt.optim.table import optimizer
from bigopt.problem import Problem
from bigopt.stopping import Stopper
from bigopt.strategies import sync
from bigopt.warmstart import initial_params

if TYPE_CHECKING:
    from bigopt.config import Conf

Array = npt.NDArray[Any]

_SAMPLE: Final = 16_384
_PLAIN: Final[Mapping[str, str]] = {"gd": "", "sgd": "", "momentum": "momentum", "nesterov": "momentum"}


def settled(
    conf: Conf, problem: Problem, session: Session, rounds: Rounds, facts: Path, signals: Signals, log: Log
) -> Conf:
    """Return the conf of a run with the rate in the place of ``auto``: found once, then kept with the run's facts.

    Parameters
    ----------
    conf, problem, session, rounds
        As in `choose`.
    facts : Path
        The file of the run's facts; what was found is added to it.
    signals : Signals
        A signal ends the search between two steps of a trial.
    log : callable
        Takes lines.

    Raises
    ------
    InterruptedRun
        The search starts anew at a resume.
    DivergedError
        Where every rate diverges.
    """
    from bigopt.config import fill

    def pause() -> None:
        if signals.received:
            name = signal.Signals(signals.received).name
            raise InterruptedRun(
                f"{name} before step 1, in the trials of learning_rate: auto",
                where=str(facts.parent),
                hint=f"go on with: bigopt resume {facts.parent}",
                signal=signals.received,
            )

    rate = problem.facts.learning_rate
    if rate is None:
        columns, scaling = problem.view.source.columns, problem.view.scaling
        params = initial_params(conf.model.init, problem.model, conf.run.seed, columns=columns, preparation=scaling)
        rate = choose(conf, problem, session, rounds, params.astype(conf.run.dtype), log=log, pause=pause).learning_rate
        codec.save(facts, problem.facts._replace(learning_rate=rate))
    else:
        log(f"schedule.learning_rate = {rate:g} (auto, as at the first start)")
    return fill(conf, {"schedule.learning_rate": rate}, "auto")


def choose(
    conf: Conf,
    problem: Problem,
    session: Session,
    rounds: Rounds,
    params: Array,
    *,
    log: Log,
    pause: Callable[[], None] = lambda: None,
) -> Choice:
    """Find the learning rate of a run.

    Parameters
    ----------
    conf : Conf
        With ``schedule.learning_rate: auto``.
    problem : Problem
    session : Session
        Runs the trials, which cost rounds, neither steps nor epochs.
    rounds : Rounds
    params : ndarray, shape (p,)
        Where the run starts, in ``run.dtype``.
    log : callable
        Takes lines.
    pause : callable
        Called between two steps; an exception that it raises ends the search.

    Raises
    ------
    DivergedError
        Where every rate diverges.
    """
    plan = problem.plan
    length = Stopper(conf.stop, plan, seconds=0.0, best=None, stale=0).max_steps
    begun = rounds.ledger.rows
    start, why = first_rate(conf, problem, session, rounds)
    log(f"learning_rate: auto: trials start at {rounded(start):g} ({why})")
    trials = Trials(conf, problem, session, rounds, params, length, pause)
    todo = stages(trials.length, plan.batch_rows(0), plan.rows)
    with one_blas_thread():
        found = race(trials.score, start, todo, log)
    rows, n = rounds.ledger.rows - begun, plan.rows
    last = found.trials[-1].steps
    judged = "f after the whole run" if last == length else f"loss at the end of {last} steps"
    log(
        f"schedule.learning_rate = {found.learning_rate:g} (auto: lowest {judged}; {len(found.trials)} trials, "
        f"{rows} rows, {rows / n:.2g} epochs)"
    )
    return found


@dataclass(frozen=True)
class Trials:
    """Makes trials.

    Parameters
    ----------
    conf, problem, session, rounds, params
        As in `choose`.
    planned : int or None
        Steps of the run; None where only the clock ends it.
    pause : callable
    """

    conf: Conf
    problem: Problem
    session: Session
    rounds: Rounds
    params: Array
    planned: int | None
    pause: Callable[[], None]

    @property
    def length(self) -> int:
        """Steps of the run; those of an epoch where it has none."""
        return self.planned or self.problem.plan.steps_per_epoch

    def score(self, rate: float, steps: int) -> float:
        """Return the loss by which a rate is judged after some steps; infinite where it diverged."""
        from bigopt.config import fill

        floor = self.conf.schedule.eta_min
        if floor is not None and rate < floor:
            return math.inf
        conf = fill(self.conf, {"schedule.learning_rate": rate}, "auto")
        setting = self.problem.setting(conf, self.rounds, self.planned)
        method = setting.method
        assert isinstance(method, FirstOrder), "methods that search for their step are refused by the conf"
        if steps < self.length:
            method = replace(method, schedule=Compressed(method.schedule, self.length / steps))
        setting = replace(setting, method=method)
        machine = sync.Sync(setting, sync.start(setting, self.params))
        try:
            losses = self._run(machine, steps)
            if steps == self.length and self.planned is not None:
                return self._value(machine.params)
        except DivergedError:
            return math.inf
        return float(np.mean(losses[-max(1, steps // 4) :]))

    def _run(self, machine: sync.Sync, steps: int) -> list[float]:
        """Return the losses of the batches after 0, 1, ..., `steps` steps; without the last one in whole runs."""
        wanted = steps + (steps < self.length or self.planned is None)
        losses: list[float] = []
        while len(losses) < wanted:
            self.pause()
            for order in machine.more(self.session.slots):
                self.session.submit(order)
            record = None
            while record is None:
                for order in machine.handle(self.rounds.wait(self.session)):
                    self.session.submit(order)
                record = machine.advance()
            losses.append(record.loss)
        return losses

    def _value(self, params: Array) -> float:
        """Return f at some params over all training rows."""
        problem = self.problem
        counts = problem.facts.train.counts
        units = whole(np.arange(len(counts)), counts)
        work = problem.gradient(self.conf.run.dtype)
        where = "learning_rate: auto"
        sums: Sums = self.rounds.run(
            self.session, work, (params,), units, lambda k: homes(counts, k)[units[:, 0]], where
        )
        return sums.loss / problem.total_weight + problem.penalty.value(params, problem.model.layout)


def first_rate(conf: Conf, problem: Problem, session: Session, rounds: Rounds) -> tuple[float, str]:
    """Return where the search starts, and why.

    Half of the largest stable step of plain gradients with the conf's batch on the linear family, times 1 - momentum;
    by moments of a sample of the rows, and the largest h_i of the loss. Else the default of the optimizer.
    """
    name, model = conf.optimizer.name, problem.model
    own = optimizer(name).learning_rate
    if name not in _PLAIN or not isinstance(model, LinearModel) or not has_curvature(model.loss):
        return own, f"the default of {name}"
    seen = min(problem.plan.rows, _SAMPLE)
    measure = Measure(wide(problem), session, rounds, conf.data.memory, sample=seen)
    features = measure.features()
    b, curved = problem.plan.batch_rows(0), curvature_bound(model.loss) / 2.0
    step = theory.eta_b(b, curved * features.r2, curved * features.largest, problem.penalty.l2)
    if not 0.0 < step < math.inf:
        return own, f"the default of {name}; the features are all 0"
    mu = getattr(conf.optimizer, _PLAIN[name]) if _PLAIN[name] else 0.0
    times = f", times 1 - {mu:g}" if mu else ""
    return step / 2.0 * (1.0 - mu), f"half of the largest stable step {step:.3g} at b = {b}, by {seen} rows{times}"
