"""When a run ends: limits, targets, or no improvement; the first that is reached.

Limits are looked at after every step (`Stopper.limit`), targets and improvement at the end of every epoch (`Checks`):
on the validation loss where there is validation data, evaluated by one Map-Reduce, else on the epoch's mean loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigopt.backends.base import Session
from bigopt.backends.ledger import Rounds
from bigopt.bycolumns import metrics_by_columns
from bigopt.data.plan import Ints, Plan, homes, whole
from bigopt.data.view import DataView
from bigopt.models.linear import LinearModel
from bigopt.problem import Problem
from bigopt.work import MetricSum
from bigopt.work_columns import Columns, PartialMargins

if TYPE_CHECKING:
    from bigopt.config import StopConf

Array = npt.NDArray[Any]

_LOWER_IS_BETTER = ("loss", "mse", "rmse", "mae", "log_loss")


class Stopper:
    """Says why a run is to end.

    Parameters
    ----------
    stop : StopConf
    plan : Plan
    seconds : float
        Run time before this start.
    best : float or None
        Best loss of the checks so far.
    stale : int
        Checks without improvement so far.
    """

    def __init__(self, stop: StopConf, plan: Plan, *, seconds: float, best: float | None, stale: int) -> None:
        self._stop = stop
        self._before = seconds
        self._start = time.monotonic()
        self.best = best
        self.stale = stale
        limits = [stop.steps, None if stop.epochs is None else plan.stages.steps_until(stop.epochs)]
        self.max_steps: int | None = min((limit for limit in limits if limit is not None), default=None)

    @property
    def seconds(self) -> float:
        """Run time over all resumes."""
        return self._before + time.monotonic() - self._start

    def limit(self, steps: int) -> str:
        """Return the limit that is reached, or an empty string."""
        if self.max_steps is not None and steps >= self.max_steps:
            return f"{steps} steps"
        if self._stop.seconds is not None and self.seconds >= self._stop.seconds:
            return f"{self._stop.seconds:g} seconds"
        return ""

    def check(self, loss: float, metrics: dict[str, float]) -> str:
        """Take the loss (validation's, else training's) and metrics of a check; return why to end, or nothing."""
        stop = self._stop
        if stop.target_loss is not None and loss <= stop.target_loss:
            return f"loss {loss:.6g} <= {stop.target_loss:g}"
        for name, target in (stop.target_metric or {}).items():
            value = metrics.get(name, math.nan)
            if value <= target if name in _LOWER_IS_BETTER else value >= target:
                return f"{name} {value:.6g} reached {target:g}"
        if stop.tolerance is None:
            return ""
        if self.best is None or loss < self.best - stop.tolerance * abs(self.best):
            self.best, self.stale = loss, 0
        else:
            self.stale += 1
        if self.stale >= stop.patience:
            return f"no relative improvement above {stop.tolerance:g} in {stop.patience} checks"
        return ""


class Checks:
    """Evaluates parameters by Map-Reduce, at the end of an epoch and at the end of the run.

    Parameters
    ----------
    stop : StopConf
    stopper : Stopper
    problem : Problem
    session : Session
    rounds : Rounds
    best_params : ndarray, shape (p,), or None
        Params of the best check so far, where early stopping watches a validation loss.
    """

    def __init__(
        self,
        stop: StopConf,
        stopper: Stopper,
        problem: Problem,
        session: Session,
        rounds: Rounds,
        *,
        best_params: Array | None,
    ) -> None:
        self._stop = stop
        self._stopper = stopper
        self._problem = problem
        self._session = session
        self._rounds = rounds
        self._work: dict[str, MetricSum] = {}
        self._columns: dict[str, PartialMargins] = {}
        self.best_params = best_params

    def end_of_epoch(self, mean: float, params: Callable[[], Array]) -> tuple[str, dict[str, float]]:
        """Look at targets and improvement.

        Parameters
        ----------
        mean : float
            Mean loss of the epoch.
        params : callable
            Gives the params, shape (p,); only asked where they are looked at.

        Returns
        -------
        why : str
            Why to end, or empty.
        validation : dict
            Metrics of the validation rows; empty where there are none.
        """
        problem, loss = self._problem, mean
        metrics: dict[str, float] = {}
        validation: dict[str, float] = {}
        if problem.validation is not None:
            metrics = validation = self.metrics(problem.validation, params())
            loss = metrics["loss"]
        elif self._stop.target_metric:
            metrics = self.metrics(problem.unbalanced, params())
        why = self._stopper.check(loss, metrics)
        if self._stop.tolerance is not None and problem.validation is not None and self._stopper.stale == 0:
            self.best_params = params()
        return why, validation

    def metrics(self, view: DataView, params: Array) -> dict[str, float]:
        """Evaluate params on a view by one Map-Reduce; the loss is that of the rows, without the penalty."""
        facts = self._problem.facts
        side = facts.train if view is not self._problem.validation or facts.validation is None else facts.validation
        if self._problem.cuts is not None:
            return self._by_columns(view, params, side.counts)
        units = whole(np.arange(view.partitions), side.counts)
        sums = self._rounds.run(
            self._session,
            self._work.setdefault(view.key, self._problem.metrics(view)),
            (params,),
            units,
            lambda slots: homes(side.counts, slots)[units[:, 0]],
            "an evaluation",
        )
        values: dict[str, float] = sums.values()
        return values

    def _by_columns(self, view: DataView, params: Array, counts: Ints) -> dict[str, float]:
        problem, model = self._problem, self._problem.model
        assert isinstance(model, LinearModel)
        assert problem.cuts is not None
        columns = Columns(view, problem.cuts, model.outputs, problem.plan.seed, str(params.dtype), problem.block_rows)
        work = self._columns.setdefault(view.key, PartialMargins(columns))
        values: dict[str, float] = metrics_by_columns(self._session, self._rounds, model, params, work, counts).values()
        return values
