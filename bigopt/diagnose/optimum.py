"""The point w* of a diagnosis: where the smooth part of f is smallest."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.sums import LineSums
from bigopt.diagnose.measure import FLAT, Measure
from bigopt.models.losses import HuberLoss, SquaredHingeLoss
from bigopt.optim.build import build_method
from bigopt.optim.method import Ask

Floats = npt.NDArray[np.float64]

_NEWTON_STEPS: Final = 30
_HALVINGS: Final = 12
_LBFGS_STEPS: Final = 100


class Optimum(NamedTuple):
    """Where a minimisation ended: params, its steps, how it went on, and whether the gradient vanished."""

    params: Floats
    steps: int
    method: str
    reached: bool


def minimise(measure: Measure, start: Floats) -> Optimum:
    """Minimise the smooth part of f: Newton where H is formed and continuous; else, and where it fails, L-BFGS.

    The linear family is convex: it starts from 0, where no logit is saturated and Newton's model is good.
    """
    smooth = not isinstance(measure.problem.model.loss, HuberLoss | SquaredHingeLoss)
    if measure.exact:
        start = np.zeros_like(start)
    found = _newton(measure, start) if measure.exact and smooth else None
    return found if found is not None and found.reached else _lbfgs(measure, start if found is None else found.params)


def _newton(measure: Measure, params: Floats) -> Optimum:
    """Newton with the pseudo-inverse: directions of no curvature are left alone."""
    line = measure.problem.batch_work("values", "float64", "map").work
    layout, small = measure.problem.model.layout, np.finfo(np.float64).eps
    first, cut = None, FLAT
    for step in range(_NEWTON_STEPS):
        H, grad, value = measure.hessian(params)
        size = float(np.linalg.norm(grad))
        first = size if first is None else first
        values, vectors = np.linalg.eigh(H)
        kept = values > cut * values[-1]
        direction = -(vectors[:, kept] @ ((vectors[:, kept].T @ grad) / values[kept]))
        slope = float(grad @ direction)
        if -slope <= 4.0 * small * (abs(value) + small):
            return Optimum(params, step, "newton", _ended(size, first, value))
        etas = tuple(0.5**j for j in range(_HALVINGS))
        sums: LineSums = measure.ask(line, (params, direction, np.array(etas)), "a Newton step")
        for eta, total in zip(etas, sums.values, strict=True):
            new = params + eta * direction
            if total / measure.weight + measure.penalty.value(new, layout) <= value + 1e-4 * eta * slope:
                params = new
                break
        else:  # no decrease that values can tell, or a step of huge length along a direction that is nearly flat
            if cut > 1e-4 or _ended(size, first, value):
                return Optimum(params, step, "newton", _ended(size, first, value))
            cut *= 100.0
    return Optimum(params, _NEWTON_STEPS, "newton", False)


def _ended(size: float, first: float, value: float) -> bool:
    """Whether a gradient is nothing, by the first one or by what moves the last digits of f."""
    return size <= 1e-6 * first or size <= 1e-10 * abs(value)


def _lbfgs(measure: Measure, params: Floats) -> Optimum:
    layout = measure.problem.model.layout
    method = build_method("lbfgs", layout, penalty=measure.smooth)
    state, ask = method.start(params)
    first = None
    for step in range(_LBFGS_STEPS):
        answer: Any = ask
        while isinstance(answer, Ask):
            evaluation = measure.problem.batch_work(answer.kind, "float64", "map")
            told = evaluation.finish(answer.inputs, measure.ask(evaluation.work, answer.inputs, "a step of L-BFGS"))
            state, answer = method.tell(state, told, measure.weight, float(step))
        size = float(answer.grad_norm)
        first = size if first is None else first
        if answer.learning_rate == 0.0 or size <= 1e-7 * first:
            return Optimum(np.array(method.result_params(state)), step + 1, "lbfgs", size <= 1e-5 * first)
        ask = method.ask(state)
    return Optimum(np.array(method.result_params(state)), _LBFGS_STEPS, "lbfgs", False)
