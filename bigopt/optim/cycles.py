"""Schedules that turn: cosine annealing with warm restarts, and one cycle.

Both fall along half a cosine, slowly at both ends. Warm restarts jump back to the largest rate and fall again; one
cycle first rises to it and then falls far below where it began.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bigopt.core.codec import wire
from bigopt.optim.decays import SNAP
from bigopt.optim.ranges import check_range, check_rate


@wire
@dataclass(frozen=True)
class Cosine:
    """Cosine annealing with warm restarts: eta = eta_min + (eta_max - eta_min)/2 (1 + cos(pi T_cur / T)).

    When T_cur >= T: T_cur -= T, T *= T_mul. So a restart gives eta_max, and eta_min is approached, not reached, unless
    T_cur stops just below T.

    Parameters
    ----------
    learning_rate : float
        eta_max > 0.
    period : float
        The first T > 0, in steps or epochs; may be fractional.
    t_mul : float
        T_mul >= 1; may be fractional.
    eta_min : float
        0 <= eta_min <= eta_max.

    Notes
    -----
    Loshchilov and Hutter (2017). Cycle i begins at S_i = T (T_mul^i - 1)/(T_mul - 1), or T i where T_mul = 1; that is
    evaluated in closed form, so a late k costs no more than an early one. At a restart k and S_i are equal but for
    rounding while eta jumps: a k below S_i by less than 1e-12 of it counts as the restart. (torch's closed form has no
    such guard and slips, for example at k = 121 with T = 1, T_mul = 3.)
    """

    learning_rate: float
    period: float
    t_mul: float = 1.0
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)
        check_range("schedule.period", self.period, 0.0, open_low=True)
        check_range("schedule.t_mul", self.t_mul, 1.0)
        check_range("schedule.eta_min", self.eta_min, 0.0, self.learning_rate, open_high=False)

    def start_of_cycle(self, i: int) -> float:
        """Return S_i, the k of the i-th restart (S_0 = 0)."""
        growth = float(self.t_mul) - 1.0
        if not growth:
            return self.period * i
        return self.period * (math.expm1(i * math.log1p(growth)) / growth)  # T_mul near 1 must not cancel

    def cycle(self, k: float) -> int:
        """Return the number of restarts up to and including k."""
        growth = float(self.t_mul) - 1.0
        turns = k / self.period
        i = max(0, math.floor(math.log1p(turns * growth) / math.log1p(growth) if growth else turns))
        while self.start_of_cycle(i + 1) * (1.0 - SNAP) <= k:
            i += 1
        while i and self.start_of_cycle(i) * (1.0 - SNAP) > k:
            i -= 1
        return i

    def __call__(self, k: float) -> float:
        i = self.cycle(k)
        start = self.start_of_cycle(i)
        length = self.start_of_cycle(i + 1) - start
        turn = math.cos(math.pi * (k - start) / length)
        return self.eta_min + (self.learning_rate - self.eta_min) / 2.0 * (1.0 + turn)

    @property
    def vanishes(self) -> bool:
        """No: every restart returns to eta_max."""
        return False

    @property
    def sum_infinite(self) -> bool:
        """Yes: every cycle adds about (eta_max + eta_min)/2 times its length."""
        return True

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        again = "" if self.t_mul == 1 else f", T *= {self.t_mul:g} at each restart"
        half = (self.learning_rate - self.eta_min) / 2.0
        return f"eta = {self.eta_min:g} + {half:g} (1 + cos(pi T_cur / T)), T = {self.period:g}{again}"


@wire
@dataclass(frozen=True)
class OneCycle:
    """One cycle: up from eta_max/div to eta_max, down to eta_max/(div final_div), each along half a cosine.

    The peak is at k = pct_start K - 1 and the end at K - 1, the last of K steps; from there on eta stays. With k in
    epochs the 1 is one step, not one epoch (`tick`).

    Parameters
    ----------
    learning_rate : float
        eta_max > 0.
    period : float
        K > 0: the run, in steps or epochs.
    pct_start : float
        Part of K that rises, in (0, 1).
    div : float
        Largest over first rate, > 0.
    final_div : float
        First over last rate, > 0.
    tick : float
        One step in the unit of k, > 0; no key of the conf.

    Notes
    -----
    Smith and Topin (2019), as torch's ``OneCycleLR`` with its default cosine; a peak at exactly k = 0 is a division by
    zero there and eta_max here.
    """

    learning_rate: float
    period: float
    pct_start: float = 0.3
    div: float = 25.0
    final_div: float = 1e4
    tick: float = field(default=1.0, metadata={"conf": False})

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)
        check_range("schedule.period", self.period, 0.0, open_low=True)
        check_range("schedule.pct_start", self.pct_start, 0.0, 1.0, open_low=True)
        check_range("schedule.div", self.div, 0.0, open_low=True)
        check_range("schedule.final_div", self.final_div, 0.0, open_low=True)
        check_range("tick", self.tick, 0.0, open_low=True)

    def __call__(self, k: float) -> float:
        peak, end = self.pct_start * self.period - self.tick, self.period - self.tick
        first = self.learning_rate / self.div
        if k <= peak:
            return _half_cosine(first, self.learning_rate, k / peak if peak > 0.0 else 1.0)
        return _half_cosine(self.learning_rate, first / self.final_div, min(1.0, (k - peak) / (end - peak)))

    @property
    def vanishes(self) -> bool:
        """No: the last rate is kept."""
        return False

    @property
    def sum_infinite(self) -> bool:
        """Yes: the last rate is kept."""
        return True

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        first = self.learning_rate / self.div
        return (
            f"eta from {first:g} up to {self.learning_rate:g} at {self.pct_start:g} K, "
            f"down to {first / self.final_div:g} at K = {self.period:g}"
        )


def _half_cosine(start: float, stop: float, part: float) -> float:
    return stop + (start - stop) / 2.0 * (1.0 + math.cos(math.pi * part))
