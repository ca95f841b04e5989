"""Three functions with hand-written gradients, and the shortest loop that drives a method over one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums

Gradient = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Problem:
    start: np.ndarray
    gradient: Gradient


def _quadratic() -> Problem:
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    hessian = (basis * np.geomspace(0.01, 1.0, 12)) @ basis.T
    center = rng.normal(size=12)
    return Problem(rng.normal(size=12), lambda w: hessian @ (w - center))


def _rosenbrock() -> Problem:
    def gradient(w: np.ndarray) -> np.ndarray:
        x, y = w
        return np.array([-400.0 * x * (y - x * x) - 2.0 * (1.0 - x), 200.0 * (y - x * x)])

    return Problem(np.array([-1.2, 1.0]), gradient)


def _logistic() -> Problem:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(60, 8))
    y = (X @ rng.normal(size=8) + rng.normal(size=60) > 0).astype(float)
    return Problem(rng.normal(size=8), lambda w: X.T @ (1.0 / (1.0 + np.exp(-X @ w)) - y) / 60 + 0.01 * w)


@pytest.fixture(params=["quadratic", "rosenbrock", "logistic"])
def problem(request: pytest.FixtureRequest) -> Problem:
    return {"quadratic": _quadratic, "rosenbrock": _rosenbrock, "logistic": _logistic}[request.param]()


@pytest.fixture
def flat() -> Callable[[int], Layout]:
    """A layout of one penalised block."""
    return lambda p: Layout((Block("weight", (p,), True),))


@pytest.fixture
def minimise() -> Callable[..., Any]:
    """Drive a method by exact gradients; returns the state and the steps."""

    def drive(method: Any, gradient: Gradient, start: np.ndarray, steps: int) -> tuple[Any, list[Any]]:
        state, ask = method.start(start)
        made = []
        for k in range(steps):
            state, step = method.tell(state, Sums(gradient(ask.params), 0.0, 1.0, 1), 1.0, float(k))
            made.append(step)
            ask = method.ask(state)
        return state, made

    return drive
