"""Schedules that stay or fall: constant, 1/t, 1/sqrt(t), exponential, steps, polynomial.

They differ in how fast they fall. 1/t and 1/sqrt(t) vanish so slowly that any distance can still be travelled;
exponential, stepwise and polynomial decay end the run: what has not been reached by then never will be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from bigopt.core.codec import wire
from bigopt.optim.ranges import check_range, check_rate

SNAP: Final = 1e-12
"""A k that is below a jump of the rate by less than this part of it counts as the jump: both are rounded."""


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
        check_rate(self.learning_rate)

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
        check_rate(self.learning_rate)
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
class InverseSqrt:
    """eta = eta0 / sqrt(1 + decay k).

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
        check_rate(self.learning_rate)
        check_range("schedule.decay", self.decay, 0.0, open_low=True)

    def __call__(self, k: float) -> float:
        return self.learning_rate / math.sqrt(1.0 + self.decay * k)

    @property
    def vanishes(self) -> bool:
        """Yes."""
        return True

    @property
    def sum_infinite(self) -> bool:
        """Yes."""
        return True

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        return f"eta = {self.learning_rate:g} / sqrt(1 + {self.decay:g} k)"


@wire
@dataclass(frozen=True)
class Exponential:
    """eta = eta0 gamma^k.

    Parameters
    ----------
    learning_rate : float
        eta0 > 0.
    gamma : float
        0 < gamma <= 1, per step or epoch.
    """

    learning_rate: float
    gamma: float

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)
        check_range("schedule.gamma", self.gamma, 0.0, 1.0, open_low=True, open_high=False)

    def __call__(self, k: float) -> float:
        return self.learning_rate * math.pow(self.gamma, k)

    @property
    def vanishes(self) -> bool:
        """Yes, unless gamma is 1."""
        return self.gamma < 1.0

    @property
    def sum_infinite(self) -> bool:
        """No: a geometric series, unless gamma is 1."""
        return self.gamma == 1.0

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        return f"eta = {self.learning_rate:g} * {self.gamma:.8g}^k"


@wire
@dataclass(frozen=True)
class StepDecay:
    """eta = eta0 gamma^floor(k / every).

    Parameters
    ----------
    learning_rate : float
        eta0 > 0.
    every : float
        k between two drops, > 0; may be fractional.
    gamma : float
        0 < gamma <= 1.
    """

    learning_rate: float
    every: float
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)
        check_range("schedule.every", self.every, 0.0, open_low=True)
        check_range("schedule.gamma", self.gamma, 0.0, 1.0, open_low=True, open_high=False)

    def __call__(self, k: float) -> float:
        return self.learning_rate * math.pow(self.gamma, math.floor(k / self.every * (1.0 + SNAP)))

    @property
    def vanishes(self) -> bool:
        """Yes, unless gamma is 1."""
        return self.gamma < 1.0

    @property
    def sum_infinite(self) -> bool:
        """No: a geometric series, unless gamma is 1."""
        return self.gamma == 1.0

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        return f"eta = {self.learning_rate:g} * {self.gamma:g}^floor(k / {self.every:g})"


@wire
@dataclass(frozen=True)
class Polynomial:
    """eta = eta0 (1 - min(k, K)/K)^power.

    Parameters
    ----------
    learning_rate : float
        eta0 > 0.
    period : float
        K > 0, where eta reaches 0 and stays.
    power : float
        > 0.
    """

    learning_rate: float
    period: float
    power: float = 1.0

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)
        check_range("schedule.period", self.period, 0.0, open_low=True)
        check_range("schedule.power", self.power, 0.0, open_low=True)

    def __call__(self, k: float) -> float:
        return self.learning_rate * math.pow(1.0 - min(k, self.period) / self.period, self.power)

    @property
    def vanishes(self) -> bool:
        """Yes: 0 from k = K on."""
        return True

    @property
    def sum_infinite(self) -> bool:
        """No: nothing is added after K."""
        return False

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        return f"eta = {self.learning_rate:g} (1 - min(k, K)/K)^{self.power:g}, K = {self.period:g}"
