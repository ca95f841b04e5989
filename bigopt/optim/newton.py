"""Newton's method: second-order steps from one Map-Reduce of Hessian sums.

    solve (H + damping I) s = g,      w -= a s,      a = 1 halved until Armijo's condition holds

g and H are those of the mean loss with the penalty (2 l2 on the penalised entries of the diagonal). For a quadratic
the first step ends in the optimum from anywhere; elsewhere digits double with every step near it. A step takes two
rounds: one for H and g, and one in which all of a = 1, 1/2, 1/4, ... are tried together.

The system is scaled to a unit diagonal, factored by Cholesky and the solution refined once. A Hessian whose pivots
vanish is refused with the name of the parameter: it is up to the user to damp it, or to penalise it.

Softmax has one direction for each feature (and for the intercepts) in which nothing happens: adding a constant to the
weights of all classes. Where no penalty holds it, H is singular along u = (1, ..., 1) and g has no part of it; adding
t u u^T pins it without changing the step elsewhere: s keeps u . s = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.core.layout import Layout
from bigopt.core.sums import HessianSums, LineSums
from bigopt.optim.linesearch import Line, ask_line, decreased, dot, moved, open_line, tell_line
from bigopt.optim.method import Ask, Penalty, Step, Unit, finite_norm, mean_gradient, snapshot
from bigopt.optim.ranges import check_range
from bigopt.optim.schedules import Schedule
from bigopt.optim.transform import Vector

Matrix = npt.NDArray[np.float64]

_SHARE: Final = 1e-4
_HALVINGS: Final = 10
_TILE: Final = 64


@wire
@dataclass(frozen=True)
class NewtonKeys:
    """Keys of ``optimizer`` for newton.

    Parameters
    ----------
    damping : float
        Added to the diagonal of the Hessian, at least 0.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        check_range("optimizer.damping", self.damping, 0.0)


@wire
class NewtonState(NamedTuple):
    """What a checkpoint holds: params, shape (p,), finished steps, and the search under way (None between steps)."""

    params: Vector
    step: int
    line: Line | None = None


@dataclass(frozen=True)
class Newton:
    """w -= a (H + damping I)^-1 g; all rows in every step.

    Parameters
    ----------
    keys : NewtonKeys
    schedule : Schedule
        The first a (1 unless said otherwise).
    layout : Layout
    unit : {"step", "epoch"}
    penalty : callable or None
        Adds the gradient of a quadratic penalty in place.
    shifted : int
        C where adding a constant to the C entries of any row of a block changes no loss (softmax), else 0.
    """

    keys: NewtonKeys
    schedule: Schedule
    layout: Layout
    unit: Unit = "step"
    penalty: Penalty | None = None
    shifted: int = 0

    def start(self, params: Vector) -> tuple[NewtonState, Ask]:
        """Return the state before step 1 and the first question; see `Method.start`."""
        if params.shape != (self.layout.size,):
            raise ValueError(f"params of shape {params.shape} for a layout of {self.layout.size} parameters")
        state = NewtonState(snapshot(params.copy()), 0)
        return state, self.ask(state)

    def ask(self, state: NewtonState) -> Ask:
        """Ask for the Hessian, then for points along the step."""
        if state.line is None:
            return Ask("hessian", snapshot(state.params))
        return ask_line(state.line, state.params)

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused or passed over by name
    def tell(
        self, state: NewtonState, sums: HessianSums | LineSums, divisor: float, epoch: float
    ) -> tuple[NewtonState, Step | Ask]:
        """Solve for the step, or choose its length; see `Method.tell`.

        Raises
        ------
        DivergedError
            Where gradient or Hessian are not finite, or the Hessian is singular.
        """
        params = state.params
        if isinstance(sums, HessianSums):
            grad = mean_gradient(sums.grad, params, divisor, self.penalty).astype(np.float64, copy=False)
            size = finite_norm(grad, state.step + 1)
            if size == 0.0:
                return NewtonState(params, state.step + 1), Step(params, 0.0, 0.0)
            direction = -solve(self._hessian(sums.hessian, divisor), grad, self.layout, f"step {state.step + 1}")
            first = float(self.schedule(float(state.step if self.unit == "step" else epoch)))
            candidates = tuple(first * 0.5**j for j in range(_HALVINGS))
            line = open_line(direction, size, dot(grad, direction), candidates, state.step + 1)
        else:
            assert state.line is not None, "a line that nobody asked for"
            line = tell_line(state.line, params, sums, divisor, self.penalty)
            good = np.flatnonzero(decreased(line.trials, _SHARE, float(line.trials.slopes[0])))
            flat = -line.slope <= 4.0 * np.finfo(np.float64).eps * abs(float(line.trials.values[0]))
            if len(good) or flat or line.rounds * _HALVINGS >= 50:
                # no decrease however short the step: the optimum, to the last bit that values can tell
                eta = float(line.trials.steps[good[-1]]) if len(good) else 0.0
                new = moved(params, line, eta)
                return NewtonState(new, state.step + 1), Step(new, eta, line.grad_norm)
            least = float(line.trials.steps[1])
            line = line._replace(candidates=tuple(least * 0.5 ** (j + 1) for j in range(_HALVINGS)))
        state = state._replace(line=line)
        return state, self.ask(state)

    def result_params(self, state: NewtonState) -> Vector:
        """Return the current parameters; see `Method.result_params`."""
        return snapshot(state.params)

    def _hessian(self, total: npt.NDArray[np.floating], divisor: float) -> Matrix:
        """Return the mean Hessian with penalty, damping and pins, (p, p)."""
        H = total.astype(np.float64) / divisor
        diagonal = np.einsum("ii->i", H)
        held = np.zeros(self.layout.size)
        if self.penalty is not None:
            self.penalty(held, np.ones(self.layout.size))  # a quadratic's gradient at 1 is the diagonal of its Hessian
        diagonal += held
        if self.shifted:
            C = self.shifted
            for i in range(0, self.layout.size, C):
                if not held[i : i + C].any():
                    mean = float(np.mean(diagonal[i : i + C]))
                    H[i : i + C, i : i + C] += mean if mean > 0.0 else 1.0
        diagonal += self.keys.damping
        return H


def solve(H: Matrix, g: Vector, layout: Layout, where: str) -> Matrix:
    """Return H^-1 g for a symmetric positive definite H, shape (p,).

    Raises
    ------
    DivergedError
        Where H is not finite or not positive definite to rounding; it names the parameter.
    """
    p = len(g)
    diagonal = np.einsum("ii->i", H)
    hint = "a larger optimizer.damping or model.l2, or lbfgs, which needs no Hessian"
    if not np.isfinite(H).all():
        raise DivergedError("the Hessian is not finite", where=where, hint="model.standardize=true")
    if not (diagonal > 0.0).all():
        flat = _name(layout, int(np.argmin(diagonal)))
        raise DivergedError(f"the Hessian is singular: nothing depends on {flat}", where=where, hint=hint)
    scale = 1.0 / np.sqrt(diagonal)
    A = H * scale[:, None] * scale
    message = "the Hessian is singular: features that are linear combinations of others, or more features than rows"
    try:
        L = np.linalg.cholesky(A)
    except np.linalg.LinAlgError:
        raise DivergedError(message, where=where, hint=hint) from None
    pivots = np.einsum("ii->i", L)
    if float(np.min(pivots)) ** 2 <= 4.0 * p * np.finfo(np.float64).eps:
        worst = _name(layout, int(np.argmin(pivots)))
        raise DivergedError(f"{message} (found at {worst})", where=where, hint=hint)
    x = _backward(L, _forward(L, scale * g))
    x += _backward(L, _forward(L, scale * g - A @ x))  # one refinement: digits that the factors lost
    return np.asarray(scale * x)


def _name(layout: Layout, index: int) -> str:
    for block, s in layout.slices():
        if s.start <= index < s.stop:
            at = np.unravel_index(index - s.start, block.shape)
            return f"{block.name}[{', '.join(str(int(i)) for i in at)}]"
    raise IndexError(index)


def _forward(L: Matrix, b: Matrix) -> Matrix:
    """Solve L x = b in tiles."""
    x = b.copy()
    for lo in range(0, len(b), _TILE):
        hi = min(lo + _TILE, len(b))
        x[lo:hi] = np.linalg.solve(L[lo:hi, lo:hi], x[lo:hi] - L[lo:hi, :lo] @ x[:lo])
    return x


def _backward(L: Matrix, b: Matrix) -> Matrix:
    """Solve L^T x = b in tiles."""
    x = b.copy()
    for lo in reversed(range(0, len(b), _TILE)):
        hi = min(lo + _TILE, len(b))
        x[lo:hi] = np.linalg.solve(L[lo:hi, lo:hi].T, x[lo:hi] - L[hi:, lo:hi].T @ x[hi:])
    return x
