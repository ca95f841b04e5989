"""Gradient descent whose step size is searched for in every step: exact line search and backtracking.

Each step takes the gradient in one round and searches along -g in further ones; all candidates of a round share one
pass over the data, so that backtracking nearly always ends after one, and the exact search for squared loss is the
closed form eta = -f'(0) / f''(0) from one more Map (for least squares g.g / 2 ||X g||^2 W, plus the penalty's part).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.core.sums import LineSums, Sums
from bigopt.optim.linesearch import (
    MOST_ROUNDS,
    NOISE,
    Line,
    Trials,
    ask_line,
    dot,
    moved,
    open_line,
    refine,
    tell_line,
)
from bigopt.optim.method import Ask, Penalty, Step, finite_norm, mean_gradient, snapshot
from bigopt.optim.ranges import check_range
from bigopt.optim.transform import Vector

_AT_ONCE: Final = 16
"""Candidates of one round of backtracking."""

_MOST_ROUNDS: Final = 8
"""Rounds of an exact search that has no closed form; what is left then is rounding."""

_FLAT: Final = 1e-9
"""Slope, relative to that at the start, at which an exact search ends."""


@wire
@dataclass(frozen=True)
class ExactLineSearch:
    """eta = argmin f(w - eta g): in closed form for squared loss, else the root of the slope by bracketing.

    Parameters
    ----------
    learning_rate : float
        Where bracketing begins, > 0.
    """

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        check_range("schedule.learning_rate", self.learning_rate, 0.0, open_low=True)

    @property
    def formula(self) -> str:
        """The rule on one line."""
        return "eta = argmin f(w - eta g)"


@wire
@dataclass(frozen=True)
class Backtracking:
    """The first of eta0, eta0 gamma, eta0 gamma^2, ... with f(w - eta g) <= f(w) - delta eta ||g||^2.

    Parameters
    ----------
    learning_rate : float
        eta0 > 0.
    gamma : float
        0 < gamma < 1.
    delta : float
        0 < delta < 1.
    """

    learning_rate: float = 1.0
    gamma: float = 0.5
    delta: float = 1e-4

    def __post_init__(self) -> None:
        check_range("schedule.learning_rate", self.learning_rate, 0.0, open_low=True)
        check_range("schedule.gamma", self.gamma, 0.0, 1.0, open_low=True)
        check_range("schedule.delta", self.delta, 0.0, 1.0, open_low=True)

    @property
    def formula(self) -> str:
        """The rule with its numbers on one line."""
        return (
            f"eta = the first of {self.learning_rate:g} * {self.gamma:g}^j with "
            f"f(w - eta g) <= f(w) - {self.delta:g} eta ||g||^2"
        )


SEARCHES: Final[Mapping[str, type[ExactLineSearch] | type[Backtracking]]] = MappingProxyType(
    {"exact_line_search": ExactLineSearch, "backtracking": Backtracking}
)
"""Names of ``schedule.name`` that search along -g over all rows; the fields of a class are the keys it uses."""

SEARCHERS: Final = ("gd", "sgd")
"""Optimizers that step along -g, and so may search there."""


@wire
class SearchState(NamedTuple):
    """What a checkpoint holds: params, shape (p,), finished steps, and the search under way (None between steps)."""

    params: Vector
    step: int
    line: Line | None = None


@dataclass(frozen=True)
class SearchedDescent:
    """w -= eta g with eta from a line search; all rows in every step.

    Parameters
    ----------
    rule : ExactLineSearch or Backtracking
    layout : Layout
    penalty : callable or None
        Adds the gradient of a quadratic penalty in place.
    quadratic : bool
        Whether the loss is a quadratic function of the parameters.
    """

    rule: ExactLineSearch | Backtracking
    layout: Layout
    penalty: Penalty | None = None
    quadratic: bool = False

    def start(self, params: Vector) -> tuple[SearchState, Ask]:
        """Return the state before step 1 and the first question; see `Method.start`."""
        if params.shape != (self.layout.size,):
            raise ValueError(f"params of shape {params.shape} for a layout of {self.layout.size} parameters")
        state = SearchState(snapshot(params.copy()), 0)
        return state, self.ask(state)

    def ask(self, state: SearchState) -> Ask:
        """Ask for the gradient, then for points along it."""
        if state.line is None:
            return Ask("gradient", snapshot(state.params))
        return ask_line(state.line, state.params, slopes=isinstance(self.rule, ExactLineSearch))

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused or passed over by name
    def tell(
        self, state: SearchState, sums: Sums | LineSums, divisor: float, epoch: float
    ) -> tuple[SearchState, Step | Ask]:
        """Begin a search, go on with it, or end it with a step; see `Method.tell`.

        Raises
        ------
        DivergedError
            Where gradient or loss are not finite at the current parameters.
        """
        params = state.params
        if isinstance(sums, Sums):
            grad = mean_gradient(sums.grad, params, divisor, self.penalty)
            size = finite_norm(grad, state.step + 1)
            if size == 0.0:
                return self._step(state, params, 0.0, 0.0)
            line = open_line(np.negative(grad, out=grad), size, -dot(grad, grad), self._first(), state.step + 1)
        else:
            assert state.line is not None, "a line that nobody asked for"
            line = tell_line(state.line, params, sums, divisor, self.penalty)
            eta, more = self._backtrack(line) if isinstance(self.rule, Backtracking) else self._exact(line)
            if eta is not None:
                return self._step(state, moved(params, line, eta), eta, line.grad_norm)
            line = line._replace(candidates=more)
        state = state._replace(line=line)
        return state, self.ask(state)

    def result_params(self, state: SearchState) -> Vector:
        """Return the current parameters; see `Method.result_params`."""
        return snapshot(state.params)

    @staticmethod
    def _step(state: SearchState, params: Vector, eta: float, grad_norm: float) -> tuple[SearchState, Step]:
        return SearchState(params, state.step + 1), Step(params, eta, grad_norm)

    def _first(self) -> tuple[float, ...]:
        rate = self.rule.learning_rate
        if isinstance(self.rule, Backtracking):
            return tuple(rate * self.rule.gamma**j for j in range(_AT_ONCE))
        return () if self.quadratic else tuple(rate * 4.0**j for j in range(-4, 4))

    def _backtrack(self, line: Line) -> tuple[float | None, tuple[float, ...]]:
        """Return the largest eta that decreases f enough, or more candidates; 0 where there is none above rounding."""
        rule, t = self.rule, line.trials
        assert isinstance(rule, Backtracking)
        good = (t.steps > 0.0) & (t.values <= t.values[0] + rule.delta * t.steps * line.slope)
        if good.any():
            return float(t.steps[good][-1]), ()
        least = float(t.steps[1])
        if least * -line.slope <= NOISE * 1e-8 * abs(t.values[0]) or line.rounds >= MOST_ROUNDS:
            return 0.0, ()
        return None, tuple(least * rule.gamma ** (j + 1) for j in range(_AT_ONCE))

    def _exact(self, line: Line) -> tuple[float | None, tuple[float, ...]]:
        """Return the eta at which the slope vanishes, or more candidates."""
        t = line.trials
        if self.quadratic:
            curve = float(t.curves[0])
            return (-float(t.slopes[0]) / curve if curve > 0.0 else 0.0), ()
        usable = np.isfinite(t.values) & (t.values <= t.values[0] + NOISE * abs(t.values[0]))
        size = np.where(usable, np.abs(t.slopes), np.inf)
        found = int(np.argmin(size))
        ends = _ends(t)
        more = () if line.rounds >= _MOST_ROUNDS else refine(t, *ends, 6)
        if size[found] <= _FLAT * size[0] or not more:
            return float(t.steps[found]), ()
        return None, more


def _ends(t: Trials) -> tuple[int, int | None]:
    """Neighbours between which the slope first changes its sign."""
    for i in range(1, len(t.steps)):
        if not t.slopes[i] < 0.0:
            return i - 1, i
    return len(t.steps) - 1, None
