"""L-BFGS: curvature from the last few steps, on the driver; the line search is strong Wolfe by Map-Reduce.

From s_k = w_{k+1} - w_k and y_k = g_{k+1} - g_k of the last `history` steps Nocedal's two loops form the product of an
approximate inverse Hessian with the gradient, in 4 `history` p multiplications and without a matrix:

    q = g;   for the newest pair to the oldest:  a_i = s_i.q / s_i.y_i;   q -= a_i y_i
    r = (s.y / y.y of the newest) q;   from the oldest to the newest:  r += s_i (a_i - y_i.r / s_i.y_i);   d = -r

The length 1 is nearly always right, so the first round of a step asks for value and gradient at w + d: where they meet
the strong Wolfe conditions they are also what the next step begins with, and the step has cost one pass over the data.
Otherwise the next round asks for the same at the length where the cubic through both points has its minimum; if that
does not do either, one round tries several lengths at once and another takes the gradient at the best. Where no pair
is known (the first step) nothing is known of the length, and a search over nine magnitudes goes first.

Where a search finds no decrease the pairs are forgotten and -g is tried; where that does not help either, or where a
step is too short to move w, w is optimal as far as numbers can tell: the run has *settled*, and every further step
leaves w as it is for one round.

References
----------
Nocedal, Math. Comp. 35 (1980) 773-782; Liu and Nocedal, Math. Prog. 45 (1989) 503-528.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError, DivergedError
from bigopt.core.layout import Layout
from bigopt.core.sums import LineSums, Sums
from bigopt.optim.linesearch import (
    MOST_ROUNDS,
    NO_TRIALS,
    Line,
    Trials,
    ask_line,
    best,
    bracket,
    dot,
    interpolated,
    mean_value,
    moved,
    open_line,
    refine,
    tell_line,
    tried,
    wolfe,
)
from bigopt.optim.method import Ask, Penalty, Step, Unit, finite_norm, mean_gradient, snapshot
from bigopt.optim.ranges import check_range
from bigopt.optim.schedules import Schedule
from bigopt.optim.transform import Vector, norm

C1: Final = 1e-4
"""Share of the decrease that the slope promises (Armijo)."""

FAR: Final = tuple(4.0**j for j in range(-4, 5))
"""Lengths of the first step, relative to 1 / norm(g)."""

_C2: Final = 0.9
_AT_ONCE: Final = 5
_ANGLE: Final = 1e-10
_TINY: Final = float(np.finfo(np.float64).tiny)
"""Products below it have lost their digits: all rows far out on the flat side of a loss."""


@wire
@dataclass(frozen=True)
class LBFGSKeys:
    """Keys of ``optimizer`` for lbfgs.

    Parameters
    ----------
    history : int
        Pairs kept, at least 1.
    """

    history: int = 10

    def __post_init__(self) -> None:
        check_range("optimizer.history", self.history, 1.0)
        if self.history != int(self.history):
            raise ConfError(f"{self.history} is not a whole number", where="optimizer.history")


@wire
class Pair(NamedTuple):
    """A step s and the change y of the gradient along it, shape (p,), with s.y > 0."""

    s: Vector
    y: Vector
    product: float


@wire
class LBFGSState(NamedTuple):
    """What a checkpoint holds.

    Parameters
    ----------
    params : ndarray, shape (p,)
    step : int
        Finished steps.
    pairs : tuple of Pair
        Oldest first.
    value : float or None
        Mean loss with the penalty at `params`; None before the first round.
    grad : ndarray, shape (p,), or None
        Its gradient.
    line : Line or None
        The search under way, or about to begin; None before the first round and once settled.
    trial : float or None
        The length at which the gradient is asked for; None while a round tries several.
    settled : bool
        Whether no step decreases the loss any more.
    """

    params: Vector
    step: int
    pairs: tuple[Pair, ...] = ()
    value: float | None = None
    grad: Vector | None = None
    line: Line | None = None
    trial: float | None = None
    settled: bool = False


@dataclass(frozen=True)
class LBFGS:
    """w += a d, d from the two loops, a by a strong Wolfe search; all rows in every step.

    Parameters
    ----------
    keys : LBFGSKeys
    schedule : Schedule
        The length that the search begins with (1 unless said otherwise).
    layout : Layout
    unit : {"step", "epoch"}
        Here the same: with all rows in every step an epoch is a step.
    penalty : callable or None
        Adds the gradient of a quadratic penalty in place.
    """

    keys: LBFGSKeys
    schedule: Schedule
    layout: Layout
    unit: Unit = "step"
    penalty: Penalty | None = None

    def start(self, params: Vector) -> tuple[LBFGSState, Ask]:
        """Return the state before step 1 and the first question; see `Method.start`."""
        if params.shape != (self.layout.size,):
            raise ValueError(f"params of shape {params.shape} for a layout of {self.layout.size} parameters")
        state = LBFGSState(snapshot(params.copy()), 0)
        return state, self.ask(state)

    def ask(self, state: LBFGSState) -> Ask:
        """Ask for the gradient where the step should end, or for points along the direction."""
        if state.line is None:
            return Ask("gradient", snapshot(state.params))
        if state.trial is None:
            return ask_line(state.line, state.params)
        return Ask("gradient", moved(state.params, state.line, state.trial), trial=True)

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused or passed over by name
    def tell(
        self, state: LBFGSState, sums: Sums | LineSums, divisor: float, epoch: float
    ) -> tuple[LBFGSState, Step | Ask]:
        """Begin a search, go on with it, or end it with a step; see `Method.tell`.

        Raises
        ------
        DivergedError
            Where gradient or loss are not finite at the current parameters.
        """
        if isinstance(sums, LineSums):
            return self._lengths(state, sums, divisor)
        point = state.params if state.line is None else moved(state.params, state.line, state.trial or 0.0)
        value = mean_value(sums.loss, divisor, point, self.penalty)
        grad = snapshot(mean_gradient(sums.grad, point, divisor, self.penalty))
        if state.line is None:
            return self._begin(state, value, grad)
        return self._tried(state, point, value, grad)

    def result_params(self, state: LBFGSState) -> Vector:
        """Return the current parameters; see `Method.result_params`."""
        return snapshot(state.params)

    def _begin(self, state: LBFGSState, value: float, grad: Vector) -> tuple[LBFGSState, Step | Ask]:
        """Take value and gradient at the current parameters: before step 1, and once settled."""
        size = finite_norm(grad, state.step + 1)
        finite_value(value, state.step + 1)
        state = self._search(state._replace(value=value, grad=grad), size)
        return self._stay(state, size) if state.settled else (state, self.ask(state))

    def _search(self, state: LBFGSState, size: float) -> LBFGSState:
        """Return the state with a new search along -H g, or settled where g is 0."""
        if size == 0.0 or state.settled:
            return state._replace(line=None, trial=None, settled=True)
        grad = state.grad
        assert grad is not None, "a search without a gradient"
        first = float(self.schedule(float(state.step)))
        direction = two_loops(grad, state.pairs)
        slope = dot(grad, direction)
        if not slope < 0.0:
            state, direction, slope = state._replace(pairs=()), np.negative(grad), -size * size
        if state.pairs:
            return state._replace(line=open_line(direction, size, slope, (), state.step + 1), trial=first)
        lengths = tuple(first * a / size for a in FAR)
        return state._replace(line=open_line(direction, size, slope, lengths, state.step + 1), trial=None)

    def _tried(self, state: LBFGSState, point: Vector, value: float, grad: Vector) -> tuple[LBFGSState, Step | Ask]:
        """Accept the point where its gradient was taken, or look for a better length."""
        line, eta = state.line, state.trial
        assert line is not None, "a trial that nobody asked for"
        assert eta is not None
        assert state.value is not None
        if not line.rounds:
            t = tried(line.trials, (0.0, state.value, line.slope), (eta, value, dot(grad, line.direction)))
            if wolfe(t, C1, _C2) is None:
                state = self._other_length(state, line, t)
                return state, self.ask(state)
        size = finite_norm(grad, state.step + 1)
        finite_value(value, state.step + 1)
        assert state.grad is not None
        pairs = remembered(state.pairs, point - state.params, grad - state.grad, self.keys.history)
        still = np.array_equal(point, state.params)  # a step below the last digit of every entry
        done = LBFGSState(point, state.step + 1, pairs, value, grad, settled=still)
        return self._search(done, size), Step(point, eta, line.grad_norm, state.value)

    @staticmethod
    def _other_length(state: LBFGSState, line: Line, t: Trials) -> LBFGSState:
        """Return the state that tries the length to which values and slopes point, and after that several at once."""
        lo, hi = bracket(t, C1)
        guess = 4.0 * float(t.steps[lo]) if hi is None else interpolated(t, lo, hi)
        if len(t.steps) == 2 and guess is not None and (hi is None or _within(guess, t, lo, hi)):
            return state._replace(line=line._replace(trials=t), trial=guess)
        several = {float(a) for a in t.steps} | set(_candidates(t))
        return state._replace(line=line._replace(trials=NO_TRIALS, candidates=tuple(sorted(several))), trial=None)

    def _lengths(self, state: LBFGSState, sums: LineSums, divisor: float) -> tuple[LBFGSState, Step | Ask]:
        """Choose one of the lengths of a round, or ask for more."""
        assert state.line is not None, "a line that nobody asked for"
        line = tell_line(state.line, state.params, sums, divisor, self.penalty)
        found = wolfe(line.trials, C1, _C2)
        if found is None:
            # where the decrease to expect is below the last bit of the value, slopes are rounding too: ask once
            flat = -line.slope <= np.finfo(np.float64).eps * abs(float(line.trials.values[0]))
            if line.rounds < (1 if flat else MOST_ROUNDS) and (more := _candidates(line.trials)):
                state = state._replace(line=line._replace(candidates=more))
                return state, self.ask(state)
            found = best(line.trials, C1)
        if found is not None:
            state = state._replace(line=line, trial=float(line.trials.steps[found]))
        elif state.pairs:
            state = self._search(state._replace(pairs=()), line.grad_norm)
        else:
            return self._stay(state._replace(settled=True, line=None), line.grad_norm)
        return state, self.ask(state)

    @staticmethod
    def _stay(state: LBFGSState, size: float) -> tuple[LBFGSState, Step]:
        return state._replace(step=state.step + 1), Step(state.params, 0.0, size, state.value)


def finite_value(value: float, step: int) -> None:
    """Refuse a loss that is not finite.

    Raises
    ------
    DivergedError
        With the number of the step.
    """
    if not math.isfinite(value):
        raise DivergedError(f"the loss is {value}", where=f"step {step}", hint="model.standardize=true")


def remembered(pairs: tuple[Pair, ...], s: Vector, y: Vector, history: int) -> tuple[Pair, ...]:
    """Return the pairs with a new one, where it tells a positive curvature, and without the oldest beyond `history`."""
    product = dot(s, y)
    if not product > _ANGLE * norm(s) * norm(y) or min(product, dot(y, y)) < _TINY:
        return pairs
    return (*pairs, Pair(snapshot(s), snapshot(y), product))[-int(history) :]


def _within(eta: float, t: Trials, lo: int, hi: int) -> bool:
    """Whether a length is clearly inside a bracket."""
    a, b = float(t.steps[lo]), float(t.steps[hi])
    return a + 0.05 * (b - a) <= eta <= b - 0.05 * (b - a)


def _candidates(t: Trials) -> tuple[float, ...]:
    return refine(t, *bracket(t, C1), _AT_ONCE)


def two_loops(grad: Vector, pairs: tuple[Pair, ...]) -> Vector:
    """Return d = -H g with Nocedal's two loops; -g without pairs; shape (p,)."""
    d = np.negative(grad)
    shares = []
    for pair in reversed(pairs):
        shares.append(dot(pair.s, d) / pair.product)
        d -= shares[-1] * pair.y
    if pairs:
        d *= pairs[-1].product / dot(pairs[-1].y, pairs[-1].y)
    for pair, share in zip(pairs, reversed(shares), strict=True):
        d += (share - dot(pair.y, d) / pair.product) * pair.s
    return d
