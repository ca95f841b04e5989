"""Step sizes: eta as a function of k, and what theory says of it.

Step t = 1, 2, ... uses schedule(k) with k = t - 1, or with k in epochs (``schedule.unit``). A schedule is a frozen
dataclass whose fields are the keys of the conf, so its values depend on k alone: a resumed run needs no state.

Stochastic gradients converge when eta_t -> 0 (the noise is averaged away) and sum eta_t = infinity (any distance can be
travelled). Each schedule knows which of the two it meets (`vanishes`, `sum_infinite`).

The rules are in `decays` and `cycles`. `Warmup` goes before any of them, and `batch_factor` says by how much a rate
changes with the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.optim.cycles import Cosine, OneCycle
from bigopt.optim.decays import Constant, Exponential, InverseSqrt, InverseTime, Polynomial, StepDecay
from bigopt.optim.ranges import check_range


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
class Compressed:
    """A schedule in less time: eta(k) = schedule(speed k).

    Parameters
    ----------
    schedule : Schedule
    speed : float
        Above 0: what k is multiplied by.
    """

    schedule: Schedule
    speed: float

    def __call__(self, k: float) -> float:
        """Return the schedule's eta at speed k."""
        return self.schedule(self.speed * k)

    @property
    def vanishes(self) -> bool:
        """As the schedule."""
        return self.schedule.vanishes

    @property
    def sum_infinite(self) -> bool:
        """As the schedule."""
        return self.schedule.sum_infinite

    @property
    def formula(self) -> str:
        """The schedule's, with its speed."""
        return f"{self.schedule.formula}, {self.speed:g} times as fast"


@wire
@dataclass(frozen=True)
class Warmup:
    """A linear warm-up before any schedule.

    eta(k) = (a + (1-a) k/K) main(0) for k < K, a = start_factor;  eta(k) = main(k - K) from there on.

    Parameters
    ----------
    main : Schedule
    warmup : float
        K > 0, in steps or epochs.
    start_factor : float
        a, 0 < a <= 1.

    Notes
    -----
    Goyal et al. (2017); as torch's ``SequentialLR`` of a ``LinearLR`` and the main schedule.
    """

    main: Schedule
    warmup: float
    start_factor: float = 1.0 / 3.0

    def __post_init__(self) -> None:
        check_range("schedule.warmup", self.warmup, 0.0, open_low=True)
        check_range("schedule.start_factor", self.start_factor, 0.0, 1.0, open_low=True, open_high=False)

    def __call__(self, k: float) -> float:
        if k >= self.warmup:
            return self.main(k - self.warmup)
        return (self.start_factor + (1.0 - self.start_factor) * (k / self.warmup)) * self.main(0.0)

    @property
    def vanishes(self) -> bool:
        """As the main schedule."""
        return self.main.vanishes

    @property
    def sum_infinite(self) -> bool:
        """As the main schedule."""
        return self.main.sum_infinite

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        return f"{self.main.formula}, after a warm-up of {self.warmup:g} from {self.start_factor:.3g} of its first rate"


@wire
@dataclass(frozen=True)
class Scaled:
    """A schedule times a constant: eta(k) = factor schedule(k).

    Parameters
    ----------
    schedule : Schedule
    factor : float
        > 0.
    """

    schedule: Schedule
    factor: float

    def __call__(self, k: float) -> float:
        return self.factor * self.schedule(k)

    @property
    def vanishes(self) -> bool:
        """As the schedule."""
        return self.schedule.vanishes

    @property
    def sum_infinite(self) -> bool:
        """As the schedule."""
        return self.schedule.sum_infinite

    @property
    def formula(self) -> str:
        """The schedule's, with the factor."""
        return f"{self.factor:g} times {self.schedule.formula}"


Scaling = Literal["none", "linear", "sqrt", "critical"]


def batch_factor(rule: Scaling, base: float, batch: float, M: float | None = None) -> float:
    """Return what the learning rate of mean gradients is multiplied by when the batch goes from `base` to `batch`.

    linear: b'/b, right while the batch is far below the critical one; sqrt: its root (the noise of a step kept);
    critical: (b'/b) (M + b)/(M + b'), which goes over from linear to none as the batch passes M.

    Parameters
    ----------
    rule : {"none", "linear", "sqrt", "critical"}
    base, batch : float
        b, b' in rows, > 0.
    M : float or None
        Noise scale of the gradient in rows, > 0; needed by ``critical``.

    Raises
    ------
    ConfError
        ``critical`` without M.
    """
    if rule == "none":
        return 1.0
    if rule == "linear":
        return batch / base
    if rule == "sqrt":
        return math.sqrt(batch / base)
    if M is None:
        raise ConfError("scaling 'critical' needs the noise scale", where="schedule.M", hint="bigopt diagnose finds it")
    check_range("schedule.M", M, 0.0, open_low=True)
    return (batch / base) * ((M + base) / (M + batch))


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


SCHEDULES: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        "constant": Constant,
        "inverse_time": InverseTime,
        "inverse_sqrt": InverseSqrt,
        "exponential": Exponential,
        "step": StepDecay,
        "polynomial": Polynomial,
        "one_cycle": OneCycle,
        "cosine": Cosine,
    }
)
"""Names of ``schedule.name``; the fields of a class are the keys it uses."""

FROM_LENGTH: Final[Mapping[str, tuple[str, str, Callable[[float], float]]]] = MappingProxyType(
    {
        "exponential": ("gamma", "a hundredth of the rate at the run's end", lambda length: math.pow(0.01, 1 / length)),
        "step": ("every", "a third of the run's length", lambda length: length / 3.0),
        "polynomial": ("period", "the run's length", float),
        "one_cycle": ("period", "the run's length", float),
        "cosine": ("period", "the run's length", float),
    }
)
"""Schedules with a key whose null depends on the run: the key, what null means, and its value from the run's length."""
