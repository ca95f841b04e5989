"""Step sizes: eta as a function of k, and what theory says of it.

Step t = 1, 2, ... uses schedule(k) with k = t - 1, or with k in epochs (``schedule.unit``). A schedule is a frozen
dataclass whose fields are the keys of the conf, so its values depend on k alone: a resumed run needs no state.

Stochastic gradients converge when eta_t -> 0 (the noise is averaged away) and sum eta_t = infinity (any distance can be
travelled). Each schedule knows which of the two it meets (`vanishes`, `sum_infinite`).

Composition (a warm-up before any schedule) wraps a schedule in another one; nothing here needs to know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from bigopt.core.codec import wire
from bigopt.optim.ranges import check_range

_SNAP: Final = 1e-12


class Schedule(Protocol):
    """A step size for every k >= 0."""

    def __call__(self, k: float) -> float:
        """Return eta > 0 (or 0 at the foot of an annealing) at k finished steps, or epochs."""
        ...

    @property
    def vanishes(self) -> bool:
        """Whether eta_t -> 0."""
        ...

    @property
    def sum_infinite(self) -> bool:
        """Whether sum eta_t = infinity."""
        ...

    @property
    def formula(self) -> str:
        """The rule with its numbers, on one line."""
        ...


@wire
@dataclass(frozen=True)
class Constant:
    """eta = eta0.

    Parameters
    ----------
    learning_rate : float
        eta0 > 0.
    """

    learning_rate: float

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)

    def __call__(self, k: float) -> float:
        return self.learning_rate

    @property
    def vanishes(self) -> bool:
        """No."""
        return False

    @property
    def sum_infinite(self) -> bool:
        """Yes."""
        return True

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        return f"eta = {self.learning_rate:g}"


@wire
@dataclass(frozen=True)
class InverseTime:
    """eta = eta0 / (1 + decay k).

    Parameters
    ----------
    learning_rate : float
        eta0 > 0.
    decay : float
        > 0, per step or epoch.
    """

    learning_rate: float
    decay: float = 1.0

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        check_range("schedule.decay", self.decay, 0.0, open_low=True)

    def __call__(self, k: float) -> float:
        return self.learning_rate / (1.0 + self.decay * k)

    @property
    def vanishes(self) -> bool:
        """Yes."""
        return True

    @property
    def sum_infinite(self) -> bool:
        """Yes, as the harmonic series."""
        return True

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        return f"eta = {self.learning_rate:g} / (1 + {self.decay:g} k)"


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
        _check_rate(self.learning_rate)
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
        while self.start_of_cycle(i + 1) * (1.0 - _SNAP) <= k:
            i += 1
        while i and self.start_of_cycle(i) * (1.0 - _SNAP) > k:
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


def convergence(schedule: Schedule) -> str:
    """Return the two conditions and what follows, in words for ``bigopt describe``."""
    vanishes, infinite = schedule.vanishes, schedule.sum_infinite
    answers = {True: "yes", False: "no"}
    if vanishes and infinite:
        verdict = "SGD converges"
    elif infinite:
        verdict = "SGD stops at a floor that grows with eta, unless every row can be fitted exactly"
    else:
        verdict = "SGD may stop short of the optimum"
    return f"eta_t -> 0: {answers[vanishes]}; sum eta_t = infinity: {answers[infinite]}; {verdict}"


def _check_rate(value: float) -> None:
    check_range("schedule.learning_rate", value, 0.0, open_low=True)


SCHEDULES: Final[Mapping[str, type[Constant] | type[InverseTime] | type[Cosine]]] = MappingProxyType(
    {"constant": Constant, "inverse_time": InverseTime, "cosine": Cosine}
)
"""Names of ``schedule.name``; the fields of a class are the keys it uses."""
