"""Methods ask and are told: the seam between an optimizer and whatever evaluates gradients.

A method never calls a model or an engine. It says what the next Map-Reduce must evaluate (`Ask`) and is told the sums;
its answer is either another `Ask` (a line search, a Hessian: further rounds of the same step) or a finished `Step`.

::

    state, ask = method.start(params)
    while not done:
        sums = evaluate(ask)                                    # one round
        state, answer = method.tell(state, sums, divisor, epoch)
        ask = method.ask(state)                                 # after an Ask this is that Ask

`ask` is a pure function of the state, so a checkpoint holds the state and nothing else.
`FirstOrder` is the case of one ask a step.

Ownership: `tell` takes over the buffers of the state and of the sums it is told, and may overwrite both; use neither
afterwards. A method that asks several times a step leaves alone the arrays of the state that its step began with: a
checkpoint holds that state, and the step is made again from it. Parameters given out in an `Ask` or a `Step` are
snapshots that nobody changes; they are marked read-only, so that an attempt to do so is an error. The new parameters
live in the gradient's buffer, so a gradient array cannot be used for the next round by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import DivergedError
from bigopt.core.layout import Layout
from bigopt.core.sums import Sums
from bigopt.core.vectors import Unadded, dense
from bigopt.optim.fused import Fused
from bigopt.optim.ranges import check_range
from bigopt.optim.schedules import Schedule
from bigopt.optim.transform import Transform, Vector, norm, owned, scratch, tiles

Unit = Literal["step", "epoch"]
AskKind = Literal["gradient", "hessian", "line", "values"]
Penalty = Callable[[Vector, Vector], object]
"""``penalty(grad, params)`` adds the penalty's gradient at `params` to `grad` in place; what it returns is ignored."""

Signs = npt.NDArray[np.int8]

S = TypeVar("S")


@wire
@dataclass(frozen=True, eq=False)
class Ask:
    """What the next Map-Reduce must evaluate.

    Parameters
    ----------
    kind : str
        ``gradient``: gradient and loss sums (`Sums`) at `params` over the next batch.
        ``hessian``: `HessianSums` at `params`.
        ``line``: `LineSums` with slopes at all points params + eta direction, in one pass.
        ``values``: the same without slopes.
    params : ndarray, shape (p,)
        Read-only snapshot.
    candidates : tuple of float
        The etas of a ``line`` or of ``values``; empty otherwise.
    direction : ndarray, shape (p,), or None
        Of a ``line`` or of ``values``.
    orthant : ndarray of int8, shape (p,), or None
        Of ``values``: the points are projected; where it is 1 or -1 an entry of the other sign becomes 0.
    trial : bool
        Of a ``gradient``: `params` are only tried. A loss that is not finite there is an answer like any other.
    """

    kind: AskKind
    params: Vector
    candidates: tuple[float, ...] = ()
    direction: Vector | None = None
    orthant: Signs | None = None
    trial: bool = False

    @property
    def inputs(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays that the work of the round needs."""
        if self.direction is None:
            return (self.params,)
        line = self.params, self.direction, np.array(self.candidates, dtype=np.float64)
        return line if self.orthant is None else (*line, self.orthant)


@wire
@dataclass(frozen=True, eq=False)
class Step:
    """A finished update.

    Parameters
    ----------
    params : ndarray, shape (p,)
        The new parameters, a read-only snapshot.
    learning_rate : float
        eta of this step.
    grad_norm : float
        Euclidean norm of the mean gradient, penalty included, that the step was made from.
    loss : float or None
        Mean loss with the penalty before the step, where an earlier step found it; None: this step's first round did.
    """

    params: Vector
    learning_rate: float
    grad_norm: float
    loss: float | None = None


class Method(Protocol[S]):
    """An optimizer as the strategies see it; see the module's docstring for the loop and who owns what."""

    def start(self, params: Vector) -> tuple[S, Ask]:
        """Return the state before step 1 and what to evaluate first; `params`, shape (p,), is copied."""
        ...

    def ask(self, state: S) -> Ask:
        """Return what must be evaluated next, from the state alone."""
        ...

    def tell(self, state: S, sums: Any, divisor: float, epoch: float) -> tuple[S, Step | Ask]:
        """Take the sums that were asked for.

        Parameters
        ----------
        state : State
            Taken over.
        sums : Sums, HessianSums or LineSums
            Of the round that `ask` asked for, as its kind says; taken over.
        divisor : float
            What makes the sums a mean: W for a full batch, b W/n for a mini-batch of b rows.
        epoch : float
            Rows drawn before this batch / n: where this step stands in the data.

        Returns
        -------
        state : State
        answer : Step or Ask
        """
        ...

    def result_params(self, state: S) -> Vector:
        """Return the parameters to evaluate, report and save, a read-only snapshot of shape (p,).

        They are the current ones, or the average of the iterates where the method keeps one. Gradients are always
        taken at the current ones (`ask`).
        """
        ...


@wire
class FirstOrderState(NamedTuple):
    """What a checkpoint holds of a first-order method.

    Parameters
    ----------
    params : ndarray, shape (p,)
    inner : State of the transform
    step : int
        Finished steps; the next one has t = step + 1 and k = step.
    average : ndarray, shape (p,), or None
        Mean of the iterates so far; None without averaging, and before step 1.
    """

    params: Vector
    inner: Any
    step: int
    average: Vector | None = None


@dataclass(frozen=True)
class FirstOrder:
    """One gradient, one step: g = sum / divisor + penalty's gradient;  w += transform(g; schedule(k)).

    Parameters
    ----------
    transform : Transform
    schedule : Schedule
    layout : Layout
        Of the parameters.
    unit : {"step", "epoch"}
        What k counts: finished steps, or epochs.
    penalty : callable or None
        ``penalty(grad, params)`` adds the penalty's gradient in place.
    average : bool or float
        Polyak's averaging of the iterates w_1, w_2, ...: True for their mean, a_t = a_{t-1} + (w_t - a_{t-1}) / t; a
        decay 0 <= d < 1 for a_t = d a_{t-1} + (1-d) w_t from a_1 = w_1; False for none. The steps do not see it.

    Notes
    -----
    Polyak and Juditsky (1992); as torch's ``AveragedModel``, with its mean and with its exponential average.
    """

    transform: Transform[Any]
    schedule: Schedule
    layout: Layout
    unit: Unit = "step"
    penalty: Penalty | None = None
    average: bool | float = False

    def __post_init__(self) -> None:
        if not isinstance(self.average, bool):
            check_range("optimizer.average", self.average, 0.0, 1.0)

    def start(self, params: Vector) -> tuple[FirstOrderState, Ask]:
        """Return the state before step 1 and the first question; see `Method.start`."""
        if params.shape != (self.layout.size,):
            raise ValueError(f"params of shape {params.shape} for a layout of {self.layout.size} parameters")
        params = snapshot(params.copy())
        state = FirstOrderState(params, self.transform.init(params, self.layout), 0)
        return state, self.ask(state)

    def ask(self, state: FirstOrderState) -> Ask:
        """Ask for the gradient at the current parameters."""
        return Ask("gradient", snapshot(state.params))

    def tell(self, state: FirstOrderState, sums: Sums, divisor: float, epoch: float) -> tuple[FirstOrderState, Step]:
        """Make one step; see `Method.tell`.

        Raises
        ------
        DivergedError
            Where the gradient is not finite. The state is as it was: the last finite one.
        ValueError
            For a gradient that does not match the parameters in shape or dtype, or a divisor that is not positive.
        """
        params, step = state.params, state.step + 1
        grad, grad_norm, divisor = self._mean(sums.grad, params, divisor, step)
        eta = float(self.schedule(float(state.step if self.unit == "step" else epoch)))
        # Overflow here gives parameters whose next gradient is refused above.
        with np.errstate(over="ignore", invalid="ignore"):
            if isinstance(self.transform, Fused):
                new, inner = self.transform.moved(grad, state.inner, params, step, eta, divisor, grad_norm)
            else:
                delta, inner = self.transform.update(grad, state.inner, params, step, eta)
                new = np.add(params, delta, out=delta)
            new = snapshot(new)
            average = self._averaged(state.average, new, step)
        return FirstOrderState(new, inner, step, average), Step(new, eta, grad_norm)

    def _mean(self, total: Any, params: Vector, divisor: float, step: int) -> tuple[Any, float, float]:
        """Return the gradient, its norm, and what it is still to be divided by."""
        given: Any = total
        if self.penalty is not None or not isinstance(self.transform, Fused):
            given, divisor = mean_gradient(dense(total), params, divisor, self.penalty), 1.0
        elif isinstance(total, Unadded):
            check_sums(total.into, params, divisor)
        else:
            given = dense(total)
            check_sums(given, params, divisor)
            given = owned(given)
        if not isinstance(self.transform, Fused):
            return given, finite_norm(given, step), 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            grad, size, divisor = self.transform.measured(given, float(divisor))
        return grad, check_norm(size, step), divisor

    def result_params(self, state: FirstOrderState) -> Vector:
        """Return the average of the iterates, or the current ones without averaging; see `Method.result_params`."""
        return snapshot(state.params if state.average is None else state.average.copy())

    def _averaged(self, average: Vector | None, new: Vector, step: int) -> Vector | None:
        if self.average is False:
            return None
        if average is None:
            return new.copy()
        average, part = owned(average), 1.0 / step if self.average is True else 1.0 - self.average
        work = scratch(new)
        for s in tiles(new.size):
            h = work[: s.stop - s.start]
            np.subtract(new[s], average[s], out=h)
            np.multiply(h, part, out=h)
            np.add(average[s], h, out=average[s])
        return average


def mean_gradient(total: Vector, params: Vector, divisor: float, penalty: Penalty | None) -> Vector:
    """Return total / divisor + the penalty's gradient, in total's buffer where that may be written.

    Raises
    ------
    ValueError
        As `check_sums`.
    """
    check_sums(total, params, divisor)
    grad = total if total.flags.writeable else np.empty_like(total)
    with np.errstate(over="ignore", invalid="ignore"):
        np.divide(total, float(divisor), out=grad)
        if penalty is not None:
            penalty(grad, params)
    return grad


def check_sums(total: Vector, params: Vector, divisor: float) -> None:
    """Refuse a gradient sum that is not one of these parameters.

    Raises
    ------
    ValueError
        For a sum that does not match the parameters in shape or dtype, or a divisor that is not positive.
    """
    if total.shape != params.shape or total.dtype != params.dtype:
        raise ValueError(
            f"gradient {total.dtype}{total.shape} does not match the parameters {params.dtype}{params.shape}"
        )
    if not 0.0 < divisor < math.inf:
        raise ValueError(f"divisor {divisor} is not a positive number")


def finite_norm(grad: Vector, step: int) -> float:
    """Return the norm of the mean gradient of a step.

    Raises
    ------
    DivergedError
        Where it is not finite.
    """
    return check_norm(norm(grad), step)


def check_norm(size: float, step: int) -> float:
    """Return the norm of a gradient.

    Raises
    ------
    DivergedError
        Where it is not finite.
    """
    if not math.isfinite(size):
        raise DivergedError(
            f"the gradient is not finite (its norm is {size:g})",
            where=f"step {step}",
            hint="a smaller schedule.learning_rate, or model.standardize=true",
        )
    return size


def snapshot(array: Vector) -> Vector:
    """Mark an array read-only and return it."""
    array.flags.writeable = False
    return array
