"""Line searches that evaluate many step sizes in one pass over the data.

Big data turns a line search around. A search on one machine asks for one point after another, each chosen from all
before it. Here a *round* is dear and a *point* is cheap: for a linear model the scores at params + eta direction are
V + eta D, so one Map gives the loss and its slope at any number of etas. So every round asks for a whole set of
candidates, and most searches end with the first one.

What is known along the line is a `Trials`: etas in ascending order, from 0 on, with value, slope and curvature of the
mean loss *with the penalty*. Three rules choose from it:

==================  ======================================================================================
backtracking        the largest eta0 gamma^j with f(w + eta d) <= f(w) + delta eta f'(0)     (Armijo)
strong Wolfe        Armijo with c1, and abs(f'(eta)) <= c2 abs(f'(0))
exact               f'(eta) = 0: -f'(0) / f''(0) for a quadratic, else the root of the slope by bracketing
==================  ======================================================================================

Near the optimum values cannot be told apart any more: a decrease of 1e-17 vanishes in a loss of 1. Slopes still can,
so that Armijo's rule is taken in the form of Hager and Zhang (2005) too: for a quadratic it is the same as
f'(eta) <= (1 - 2 delta) abs(f'(0)), as long as the value has not grown beyond rounding.

References
----------
Nocedal and Wright, *Numerical Optimization*, 2006, chapter 3; Hager and Zhang, SIAM J. Optim. 16 (2005) 170-192.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.core.sums import LineSums
from bigopt.optim.method import Ask, Penalty, Signs, snapshot
from bigopt.optim.transform import Vector, tiles

Floats = npt.NDArray[np.float64]

NOISE: Final = 1e-12
"""Relative difference of two values that may be rounding."""

MOST_ROUNDS: Final = 20
"""Rounds after which a search takes the best it has."""


class Parabola(NamedTuple):
    """A quadratic penalty along a line: value + slope eta + curve eta^2 / 2."""

    value: float
    slope: float
    curve: float


@wire
class Trials(NamedTuple):
    """What is known along a line, eta ascending from 0; all arrays of shape (k,), float64.

    Parameters
    ----------
    steps, values, slopes, curves : ndarray, shape (k,)
        eta and the mean loss with the penalty, its first and second derivative; NaN where it is not known.
    """

    steps: Floats
    values: Floats
    slopes: Floats
    curves: Floats


NO_TRIALS: Final = Trials(*(np.empty(0) for _ in range(4)))


def dot(x: Vector, y: Vector) -> float:
    """Return x . y, summed in float64 by NumPy's pairwise sum tile by tile (no BLAS: the same for any threads)."""
    total = 0.0
    for s in tiles(x.size):
        total += float(np.add.reduce(np.multiply(x[s], y[s], dtype=np.float64)))
    return total


def penalty_on_line(penalty: Penalty | None, params: Vector, direction: Vector) -> Parabola:
    """Return a quadratic penalty along params + eta direction, from its gradient alone (which is linear: 2 l2 w)."""
    if penalty is None:
        return Parabola(0.0, 0.0, 0.0)
    at, along = np.zeros(params.shape), np.zeros(params.shape)
    penalty(at, params)
    penalty(along, direction)
    return Parabola(0.5 * dot(params, at), dot(direction, at), dot(direction, along))


def mean_value(loss: float, divisor: float, params: Vector, penalty: Penalty | None) -> float:
    """Return loss / divisor + a quadratic penalty at params; infinite where it is not finite."""
    value = loss / divisor
    if penalty is not None:
        grad = np.zeros(params.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            penalty(grad, params)
            value += 0.5 * dot(params, grad)
    return value if math.isfinite(value) else math.inf


def add_trials(known: Trials, steps: tuple[float, ...], sums: LineSums, divisor: float, extra: Parabola) -> Trials:
    """Return what is known after a round.

    Parameters
    ----------
    known : Trials
    steps : tuple of float
        The candidates of the round.
    sums : LineSums
        What they were answered with.
    divisor : float
        What makes the sums a mean.
    extra : Parabola
        The penalty along the line.
    """
    eta = np.array(steps)
    unknown = np.full(len(eta), np.nan)
    with np.errstate(over="ignore"):
        values = sums.values / divisor + (extra.value + eta * (extra.slope + 0.5 * eta * extra.curve))
        slopes = sums.slopes / divisor + (extra.slope + eta * extra.curve) if len(sums.slopes) else unknown
        curves = sums.curves / divisor + extra.curve if len(sums.curves) else unknown
    every = [np.concatenate(pair) for pair in zip(known, (eta, values, slopes, curves), strict=True)]
    order = np.argsort(every[0], kind="stable")
    return Trials(*(column[order] for column in every))


def tried(known: Trials, *points: tuple[float, float, float]) -> Trials:
    """Return what is known after gradients at some points (eta, value, slope); known ones are not repeated."""
    new = [(*p, math.nan) for p in points if p[0] not in known.steps]
    every = [np.concatenate(pair) for pair in zip(known, np.array(new).reshape(-1, 4).T, strict=True)]
    order = np.argsort(every[0], kind="stable")
    return Trials(*(column[order] for column in every))


def decreased(t: Trials, share: float, slope: float) -> npt.NDArray[np.bool_]:
    """Return which trials decrease the value enough (Armijo, in both forms), shape (k,); never eta = 0.

    Parameters
    ----------
    t : Trials
        With eta = 0 first.
    share : float
        c1, or delta.
    slope : float
        f'(0) < 0.
    """
    f0 = t.values[0]
    with np.errstate(invalid="ignore"):
        plainly = (t.values < f0) & (t.values <= f0 + share * t.steps * slope)
        by_slope = (t.values <= f0 + NOISE * abs(f0)) & (t.slopes <= (1.0 - 2.0 * share) * -slope)
        good: npt.NDArray[np.bool_] = (t.steps > 0.0) & np.isfinite(t.values) & (plainly | by_slope)
    return good


def wolfe(t: Trials, c1: float, c2: float) -> int | None:
    """Return the trial with the smallest slope of those that meet the strong Wolfe conditions, or None."""
    slope = float(t.slopes[0])
    good = decreased(t, c1, slope) & (np.abs(t.slopes) <= c2 * -slope)
    return int(np.argmin(np.where(good, np.abs(t.slopes), np.inf))) if good.any() else None


def bracket(t: Trials, c1: float) -> tuple[int, int | None]:
    """Return neighbours lo, hi between which strong Wolfe points lie; hi is None where everything goes downhill."""
    good = decreased(t, c1, float(t.slopes[0]))
    lo = 0
    for i in range(1, len(t.steps)):
        if not good[i] or t.slopes[i] >= 0.0:
            return lo, i
        lo = i
    return lo, None


def refine(t: Trials, lo: int, hi: int | None, count: int) -> tuple[float, ...]:
    """Return the candidates of the next round: beyond the last trial, or within the bracket; none where it is closed.

    Within a bracket they are the interpolated minimum, points close to it on both sides, and an even division: by
    powers of 4 where the ends differ in magnitude.
    """
    a = float(t.steps[lo])
    if hi is None:
        return tuple(a * 2.0**j for j in range(1, count + 1)) if a < 1e100 else ()
    b = float(t.steps[hi])
    width = b - a
    if width <= 4.0 * np.finfo(np.float64).eps * b:
        return ()
    if b > 16.0 * a:
        even = [b * 0.25**j for j in range(1, count + 1) if b * 0.25**j > a]
    else:
        even = [a + width * j / (count + 1.0) for j in range(1, count + 1)]
    guess = interpolated(t, lo, hi)
    close = [] if guess is None else [guess, guess - 0.02 * width, guess + 0.02 * width]
    return tuple(sorted({x for x in (*even, *close) if a < x < b}))


def interpolated(t: Trials, lo: int, hi: int) -> float | None:
    """Return the minimum of the cubic through two trials (values and slopes), else the secant's root, else None."""
    a, b, fa, fb, ga, gb = (float(c[i]) for c in (t.steps, t.values, t.slopes) for i in (lo, hi))
    if not math.isfinite(fb) or not math.isfinite(gb):
        return None
    with np.errstate(over="ignore"):
        if gb > 0.0 > ga and abs(fb - fa) <= 1e-8 * max(abs(fa), abs(fb)):
            return a + (b - a) * (-ga / (gb - ga))  # values are too close to say more than the slopes
        d1 = ga + gb - 3.0 * (fa - fb) / (a - b)
        square = d1 * d1 - ga * gb
        if not 0.0 <= square < math.inf:
            return None
        d2 = math.sqrt(square)
        below = gb - ga + 2.0 * d2
        return None if below == 0.0 else b - (b - a) * (gb + d2 - d1) / below


def best(t: Trials, share: float) -> int | None:
    """Return the trial with the lowest value of those that decrease it enough, or None."""
    good = decreased(t, share, float(t.slopes[0]))
    return int(np.argmin(np.where(good, t.values, np.inf))) if good.any() else None


@wire
class Line(NamedTuple):
    """A search under way: part of a method's state in the middle of a step.

    Parameters
    ----------
    direction : ndarray, shape (p,)
    grad_norm : float
        Of the mean gradient, penalty included, at the start of the line.
    slope : float
        g . direction < 0.
    trials : Trials
    candidates : tuple of float
        What the round under way evaluates.
    rounds : int
        Rounds finished.
    """

    direction: Vector
    grad_norm: float
    slope: float
    trials: Trials
    candidates: tuple[float, ...]
    rounds: int


def finite_slope(slope: float, grad_norm: float, step: int) -> None:
    """Refuse to search along a direction whose slope is not finite.

    Raises
    ------
    DivergedError
        With the norm of the gradient.
    """
    if not math.isfinite(slope):
        raise DivergedError(
            f"the gradient is too large to search along (its norm is {grad_norm:g})",
            where=f"step {step}",
            hint="model.standardize=true",
        )


def open_line(direction: Vector, grad_norm: float, slope: float, candidates: tuple[float, ...], step: int) -> Line:
    """Return the search of a step along a direction: it begins with eta = 0 and these candidates.

    Raises
    ------
    DivergedError
        Where the slope overflows.
    """
    finite_slope(slope, grad_norm, step)
    return Line(snapshot(direction), grad_norm, slope, NO_TRIALS, (0.0, *candidates), 0)


def ask_line(line: Line, params: Vector, *, slopes: bool = True) -> Ask:
    """Return the question of a search."""
    return Ask("line" if slopes else "values", params, line.candidates, line.direction)


def tell_line(line: Line, params: Vector, sums: LineSums, divisor: float, penalty: Penalty | None) -> Line:
    """Return the search after a round, without new candidates.

    Raises
    ------
    DivergedError
        Where the loss at the start of the line is not finite.
    """
    extra = penalty_on_line(penalty, params, line.direction)
    trials = add_trials(line.trials, line.candidates, sums, divisor, extra)
    if not math.isfinite(trials.values[0]):
        raise DivergedError(
            f"the loss is {trials.values[0]} where the line search starts", hint="model.standardize=true"
        )
    return line._replace(trials=trials, candidates=(), rounds=line.rounds + 1)


def moved(params: Vector, line: Line, eta: float) -> Vector:
    """Return params + eta direction in the dtype of params, a read-only snapshot; params itself for eta = 0."""
    if eta == 0.0:
        return params
    with np.errstate(over="ignore"):
        return snapshot(np.add(params, eta * line.direction, dtype=params.dtype, casting="same_kind"))


def projected(point: Vector, orthant: Signs) -> Vector:
    """Return the point, in its own memory, with 0 where an entry has not the sign (1 or -1) of the orthant."""
    point[orthant * point < 0.0] = 0.0
    return point
