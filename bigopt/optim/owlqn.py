"""OWL-QN: L-BFGS under an L1 penalty, with exact zeros.

f(w) = smooth(w) + l1 ||w||_1 is smooth as long as no weight changes its sign: *inside an orthant* it is the smooth part
plus a linear function. So each step chooses an orthant and stays in its closure:

    pseudo-gradient   p_i = g_i + l1 sign(w_i); where w_i = 0 the one-sided derivative that points downhill, else 0
    direction         d = -H p, H from pairs of the smooth part; where w_i = 0 an entry that does not go downhill
                      (d_i p_i >= 0) becomes 0
    orthant           x_i = sign(w_i), where w_i = 0 the sign of -p_i
    points            w(a) = w + a d, entries that left the orthant set to 0: this is where the zeros come from
    acceptance        f(w(a)) <= f(w) + c1 p . (w(a) - w), halving a

(The paper sets such entries of d to 0 everywhere. Away from 0 there is no need: f is smooth there, p . d < 0 all the
same, and what is left of d is no Newton step any more: at a condition number of 10^3 that costs ten times the rounds.)

At the end p = 0: abs(g_i) <= l1 where w_i = 0, and g_i = -l1 sign(w_i) elsewhere. Entries that are not penalised are
those of plain L-BFGS, and in no orthant.

Rounds are those of `bigopt.optim.lbfgs`: value and gradient at w(1), which is nearly always right; then at the minimum
of the cubic through both ends of the segment from w to w(1), on which f is smooth; then the values at many lengths of
the projected path in one pass.

References
----------
Andrew and Gao, *Scalable training of L1-regularized log-linear models*, ICML 2007.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.core.sums import LineSums, Sums
from bigopt.optim.lbfgs import C1, FAR, LBFGSKeys, Pair, finite_value, remembered, two_loops
from bigopt.optim.linesearch import (
    NO_TRIALS,
    Trials,
    decreased,
    dot,
    finite_slope,
    interpolated,
    mean_value,
    projected,
    tried,
)
from bigopt.optim.method import Ask, Penalty, Signs, Step, Unit, finite_norm, mean_gradient, snapshot
from bigopt.optim.ranges import check_range
from bigopt.optim.schedules import Schedule
from bigopt.optim.transform import Vector, norm

_HALVINGS: Final = 10
_MOST: Final = 5
"""Rounds of halvings: 2^-50 is the last digit."""


@wire
@dataclass(frozen=True)
class Orthantwise:
    """The keys of lbfgs with the penalty l1 ||w||_1, l1 > 0."""

    keys: LBFGSKeys
    l1: float

    def __post_init__(self) -> None:
        check_range("model.l1", self.l1, 0.0, open_low=True)


@wire
class Path(NamedTuple):
    """A search along a projected path: part of a method's state.

    Parameters
    ----------
    direction : ndarray, shape (p,)
    orthant : ndarray of int8, shape (p,)
        1 or -1 where an entry must not change its sign; 0 where it is free, or 0 and stays so.
    grad_norm : float
        Of the pseudo-gradient at the start.
    candidates : tuple of float
        The lengths of the round under way, or the one whose gradient is asked for.
    gradient : bool
        Whether the round under way takes the gradient.
    rounds : int
        Finished rounds of values.
    """

    direction: Vector
    orthant: Signs
    grad_norm: float
    candidates: tuple[float, ...]
    gradient: bool
    rounds: int = 0


@wire
class OWLQNState(NamedTuple):
    """What a checkpoint holds; `grad` is the smooth part's, everything else is as in `LBFGSState`.

    Parameters
    ----------
    params : ndarray, shape (p,)
    step : int
    pairs : tuple of Pair
    value : float or None
    grad : ndarray, shape (p,), or None
    path : Path or None
        The search under way, or about to begin; None before the first round and once settled.
    settled : bool
    """

    params: Vector
    step: int
    pairs: tuple[Pair, ...] = ()
    value: float | None = None
    grad: Vector | None = None
    path: Path | None = None
    settled: bool = False


@dataclass(frozen=True)
class OWLQN:
    """w' = w(a) on the projected path along -H p; all rows in every step.

    Parameters
    ----------
    rule : Orthantwise
    schedule : Schedule
        The length that the search begins with (1 unless said otherwise).
    layout : Layout
        Says which entries are penalised.
    unit : {"step", "epoch"}
        Here the same: with all rows in every step an epoch is a step.
    penalty : callable or None
        Adds the gradient of a quadratic penalty in place: the elastic net's other half.
    """

    rule: Orthantwise
    schedule: Schedule
    layout: Layout
    unit: Unit = "step"
    penalty: Penalty | None = None

    def start(self, params: Vector) -> tuple[OWLQNState, Ask]:
        """Return the state before step 1 and the first question; see `Method.start`."""
        if params.shape != (self.layout.size,):
            raise ValueError(f"params of shape {params.shape} for a layout of {self.layout.size} parameters")
        state = OWLQNState(snapshot(params.copy()), 0)
        return state, self.ask(state)

    def ask(self, state: OWLQNState) -> Ask:
        """Ask for the gradient where the step should end, or for values along the path."""
        path = state.path
        if path is None:
            return Ask("gradient", snapshot(state.params))
        if path.gradient:
            return Ask("gradient", snapshot(_point(state.params, path, path.candidates[0])), trial=True)
        return Ask("values", state.params, path.candidates, path.direction, path.orthant)

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused or passed over by name
    def tell(
        self, state: OWLQNState, sums: Sums | LineSums, divisor: float, epoch: float
    ) -> tuple[OWLQNState, Step | Ask]:
        """Begin a search, go on with it, or end it with a step; see `Method.tell`.

        Raises
        ------
        DivergedError
            Where gradient or loss are not finite at the current parameters.
        """
        if isinstance(sums, LineSums):
            return self._lengths(state, sums, divisor)
        path = state.path
        point = state.params if path is None else snapshot(_point(state.params, path, path.candidates[0]))
        value = self._value(sums.loss, divisor, point)
        grad = snapshot(mean_gradient(sums.grad, point, divisor, self.penalty))
        if path is not None:
            return self._tried(state, path, point, value, grad)
        finite_norm(grad, state.step + 1)
        finite_value(value, state.step + 1)
        state = self._search(state._replace(value=value, grad=grad))
        return self._stay(state) if state.settled else (state, self.ask(state))

    def result_params(self, state: OWLQNState) -> Vector:
        """Return the current parameters; see `Method.result_params`."""
        return snapshot(state.params)

    def _value(self, loss: float, divisor: float, params: Vector) -> float:
        weights = np.abs(params[self.layout.penalized])
        return mean_value(loss, divisor, params, self.penalty) + self.rule.l1 * float(np.sum(weights, dtype=np.float64))

    def _pseudo_gradient(self, state: OWLQNState) -> Vector:
        assert state.grad is not None, "a search without a gradient"
        return pseudo_gradient(state.params, state.grad, self.rule.l1, self.layout)

    def _search(self, state: OWLQNState) -> OWLQNState:
        """Return the state with a new search, or settled where the pseudo-gradient is 0."""
        pseudo = self._pseudo_gradient(state)
        size = norm(pseudo)
        if size == 0.0 or state.settled:
            return state._replace(path=None, settled=True)
        first = float(self.schedule(float(state.step)))
        direction = self._aligned(state, pseudo)
        if not dot(pseudo, direction) < 0.0:
            state = state._replace(pairs=())
            direction = self._aligned(state, pseudo)
        finite_slope(dot(pseudo, direction), size, state.step + 1)
        at, down = np.sign(state.params), np.sign(pseudo)
        orthant = np.where(self.layout.penalized, np.where(at == 0, -down, at), 0).astype(np.int8)
        lengths = (first,) if state.pairs else (0.0, *(first * a / size for a in FAR))
        path = Path(snapshot(direction), snapshot(orthant), size, lengths, gradient=bool(state.pairs))
        return state._replace(path=path)

    def _aligned(self, state: OWLQNState, pseudo: Vector) -> Vector:
        direction = two_loops(pseudo, state.pairs)
        direction[self.layout.penalized & (state.params == 0.0) & (direction * pseudo >= 0.0)] = 0.0
        return direction

    def _tried(
        self, state: OWLQNState, path: Path, point: Vector, value: float, grad: Vector
    ) -> tuple[OWLQNState, Step | Ask]:
        """Accept the point where its gradient was taken, or look for a better length."""
        assert state.value is not None
        assert state.grad is not None
        eta, move = path.candidates[0], point - state.params
        if not path.rounds:
            pseudo = self._pseudo_gradient(state)
            end = dot(grad, move) + self.rule.l1 * dot(path.orthant, move)
            t = tried(NO_TRIALS, (0.0, state.value, dot(pseudo, move)), (1.0, value, end))
            if not decreased(t, C1, float(t.slopes[0]))[1]:
                state = state._replace(path=self._other_length(path, t, first=float(self.schedule(float(state.step)))))
                return state, self.ask(state)
        finite_norm(grad, state.step + 1)
        finite_value(value, state.step + 1)
        pairs = remembered(state.pairs, move, grad - state.grad, self.rule.keys.history)
        still = np.array_equal(point, state.params)
        done = OWLQNState(point, state.step + 1, pairs, value, grad, settled=still)
        return self._search(done), Step(point, eta, path.grad_norm, state.value)

    @staticmethod
    def _other_length(path: Path, t: Trials, first: float) -> Path:
        """Return the path with the length to which values and slopes point, and after that with many lengths."""
        eta = path.candidates[0]
        guess = interpolated(t, 0, 1) if eta == first else None
        if guess is not None and 0.05 <= guess <= 0.95:
            return path._replace(candidates=(eta * guess,))
        return path._replace(candidates=(0.0, *(first * 0.5**j for j in range(_HALVINGS))), gradient=False)

    def _lengths(self, state: OWLQNState, sums: LineSums, divisor: float) -> tuple[OWLQNState, Step | Ask]:
        """Choose the length with the lowest value of those that decrease it enough, or ask for shorter ones."""
        path, pseudo = state.path, self._pseudo_gradient(state)
        assert path is not None, "a path that nobody asked for"
        path = path._replace(rounds=path.rounds + 1)
        points = [_point(state.params, path, eta) for eta in path.candidates]
        f = [self._value(float(v), divisor, w) for v, w in zip(sums.values, points, strict=True)]
        finite_value(f[0], state.step + 1)
        slopes = [dot(pseudo, w - state.params) for w in points]
        good = [j for j in range(1, len(f)) if f[j] < f[0] and f[j] <= f[0] + C1 * slopes[j]]
        if good:
            found = path.candidates[min(good, key=lambda j: f[j])]
            state = state._replace(path=path._replace(candidates=(found,), gradient=True))
            return state, self.ask(state)
        least = min(path.candidates[1:])
        flat = -dot(pseudo, path.direction) * least <= np.finfo(np.float64).eps * abs(f[0])
        if not flat and path.rounds < _MOST:
            shorter = (0.0, *(least * 0.5 ** (j + 1) for j in range(_HALVINGS)))
            state = state._replace(path=path._replace(candidates=shorter))
        elif state.pairs:
            state = self._search(state._replace(pairs=()))
        else:
            return self._stay(state._replace(settled=True, path=None))
        return state, self.ask(state)

    def _stay(self, state: OWLQNState) -> tuple[OWLQNState, Step]:
        size = norm(self._pseudo_gradient(state))
        return state._replace(step=state.step + 1), Step(state.params, 0.0, size, state.value)


def pseudo_gradient(params: Vector, grad: Vector, l1: float, layout: Layout) -> Vector:
    """Return the steepest one-sided derivatives of smooth + l1 ||w||_1, shape (p,).

    Parameters
    ----------
    params : ndarray, shape (p,)
    grad : ndarray, shape (p,)
        Of the smooth part.
    l1 : float
    layout : Layout
        Entries that are not penalised keep their gradient.
    """
    toward_zero = np.copysign(np.maximum(np.abs(grad) - l1, 0.0), grad)  # at 0: nothing within the subdifferential
    pseudo = np.where(params == 0.0, toward_zero, grad + l1 * np.sign(params))
    return np.asarray(np.where(layout.penalized, pseudo, grad), dtype=grad.dtype)


def _point(params: Vector, path: Path, eta: float) -> Vector:
    if eta == 0.0:
        return params
    with np.errstate(over="ignore"):
        return projected(np.add(params, eta * path.direction, dtype=params.dtype, casting="same_kind"), path.orthant)
