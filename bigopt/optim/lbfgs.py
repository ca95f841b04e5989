"""L-BFGS: curvature from the last few steps, on the driver; the line search is strong Wolfe by Map-Reduce.

From s_k = w_{k+1} - w_k and y_k = g_{k+1} - g_k of the last `history` steps Nocedal's two loops form the product of an
approximate inverse Hessian with the gradient, in 4 `history` p multiplications and without a matrix:

    q = g;   for the newest pair to the oldest:  a_i = s_i.q / s_i.y_i;   q -= a_i y_i
    r = (s.y / y.y of the newest) q;   from the oldest to the newest:  r += s_i (a_i - y_i.r / s_i.y_i);   d = -r

A step takes one round for the gradient and nearly always one for the search, which tries five lengths around 1 at once
(nine magnitudes where no pair is known). Where the search finds no decrease the pairs are forgotten and -g is tried;
where that does not help either, w is optimal as far as the loss can tell, and the step leaves it as it is.

References
----------
Nocedal, Math. Comp. 35 (1980) 773-782; Liu and Nocedal, Math. Prog. 45 (1989) 503-528.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.core.layout import Layout
from bigopt.core.sums import LineSums, Sums
from bigopt.optim.linesearch import (
    MOST_ROUNDS,
    Line,
    Trials,
    ask_line,
    best,
    bracket,
    dot,
    moved,
    open_line,
    refine,
    tell_line,
    wolfe,
)
from bigopt.optim.method import Ask, Penalty, Step, Unit, finite_norm, mean_gradient, snapshot
from bigopt.optim.ranges import check_range
from bigopt.optim.schedules import Schedule
from bigopt.optim.transform import Vector, norm

_C1: Final = 1e-4
_C2: Final = 0.9
_NEAR: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
_FAR: Final = tuple(4.0**j for j in range(-4, 5))
_ANGLE: Final = 1e-10


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
    before : ndarray, shape (p,), or None
        Parameters before the last step.
    grad : ndarray, shape (p,), or None
        Gradient there; between the rounds of a step, at `params`.
    line : Line or None
        The search under way; None between steps.
    """

    params: Vector
    step: int
    pairs: tuple[Pair, ...] = ()
    before: Vector | None = None
    grad: Vector | None = None
    line: Line | None = None


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
        """Ask for the gradient, then for points along the direction."""
        if state.line is None:
            return Ask("gradient", snapshot(state.params))
        return ask_line(state.line, state.params)

    def tell(
        self, state: LBFGSState, sums: Sums | LineSums, divisor: float, epoch: float
    ) -> tuple[LBFGSState, Step | Ask]:
        """Begin a search, go on with it, or end it with a step; see `Method.tell`.

        Raises
        ------
        DivergedError
            Where gradient or loss are not finite at the current parameters.
        """
        first = float(self.schedule(float(state.step if self.unit == "step" else epoch)))
        if isinstance(sums, Sums):
            return self._begin(state, sums, divisor, first)
        assert state.line is not None, "a line that nobody asked for"
        line = tell_line(state.line, state.params, sums, divisor, self.penalty)
        found = wolfe(line.trials, _C1, _C2)
        if found is None:
            # where the decrease to expect is below the last bit of the value, slopes are rounding too: ask once
            flat = -line.slope <= np.finfo(np.float64).eps * abs(float(line.trials.values[0]))
            if line.rounds < (1 if flat else MOST_ROUNDS) and (more := _candidates(line.trials)):
                state = state._replace(line=line._replace(candidates=more))
                return state, self.ask(state)
            found = best(line.trials, _C1)
        if found is None and state.pairs:
            return self._search(state._replace(pairs=()), line.grad_norm, first)
        eta = 0.0 if found is None else float(line.trials.steps[found])
        return self._step(state, moved(state.params, line, eta), eta, line.grad_norm)

    def result_params(self, state: LBFGSState) -> Vector:
        """Return the current parameters; see `Method.result_params`."""
        return snapshot(state.params)

    def _begin(self, state: LBFGSState, sums: Sums, divisor: float, first: float) -> tuple[LBFGSState, Step | Ask]:
        grad = snapshot(mean_gradient(sums.grad, state.params, divisor, self.penalty))
        size = finite_norm(grad, state.step + 1)
        pairs = state.pairs
        if state.before is not None and state.grad is not None:
            s, y = state.params - state.before, grad - state.grad
            product = dot(s, y)
            if product > _ANGLE * norm(s) * norm(y):
                pairs = (*pairs, Pair(snapshot(s), snapshot(y), product))[-int(self.keys.history) :]
        state = state._replace(pairs=pairs, grad=grad)
        if size == 0.0:
            return self._step(state, state.params, 0.0, 0.0)
        return self._search(state, size, first)

    def _search(self, state: LBFGSState, size: float, first: float) -> tuple[LBFGSState, Ask]:
        grad = state.grad
        assert grad is not None, "a search without a gradient"
        direction = two_loops(grad, state.pairs)
        slope = dot(grad, direction)
        if not slope < 0.0:
            state, direction, slope = state._replace(pairs=()), np.negative(grad), -size * size
        lengths = _NEAR if state.pairs else tuple(a / size for a in _FAR)
        line = open_line(direction, size, slope, tuple(first * a for a in lengths))
        state = state._replace(line=line)
        return state, self.ask(state)

    @staticmethod
    def _step(state: LBFGSState, params: Vector, eta: float, grad_norm: float) -> tuple[LBFGSState, Step]:
        done = state._replace(params=params, step=state.step + 1, before=state.params, line=None)
        return done, Step(params, eta, grad_norm)


def _candidates(t: Trials) -> tuple[float, ...]:
    return refine(t, *bracket(t, _C1), len(_NEAR))


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
