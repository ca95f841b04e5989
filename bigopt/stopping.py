"""When a run ends: limits, targets, or no improvement; the first that is reached."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from bigopt.data.plan import Plan

if TYPE_CHECKING:
    from bigopt.config import StopConf

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
        limits = [stop.steps, None if stop.epochs is None else math.ceil(stop.epochs * plan.steps_per_epoch - 1e-9)]
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
