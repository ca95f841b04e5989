"""A function of a few parameters behind the method interface: answers every kind of `Ask` exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigopt.core.sums import HessianSums, LineSums, Sums
from bigopt.optim.method import Ask, Step

Array = np.ndarray


@dataclass
class Smooth:
    """Value, gradient and Hessian; counts the rounds."""

    value: Callable[[Array], float]
    gradient: Callable[[Array], Array]
    hessian: Callable[[Array], Array] | None = None
    rounds: int = 0

    def answer(self, ask: Ask) -> Any:
        self.rounds += 1
        w = ask.params
        if ask.kind == "gradient":
            return Sums(self.gradient(w), self.value(w), 1.0, 1)
        if ask.kind == "hessian":
            assert self.hessian is not None
            return HessianSums(self.gradient(w), self.hessian(w), self.value(w), 1.0, 1)
        d, steps = ask.direction, ask.candidates
        assert d is not None
        points = [w + a * d for a in steps]
        if ask.orthant is not None:
            points = [np.where(ask.orthant * x < 0, 0.0, x) for x in points]
        values = np.array([self.value(x) for x in points])
        slopes = np.array([self.gradient(x) @ d for x in points]) if ask.kind == "line" else np.empty(0)
        curved = ask.kind == "line" and self.hessian is not None
        curves = np.array([d @ self.hessian(x) @ d for x in points]) if curved else np.empty(0)  # type: ignore[misc]
        return LineSums(values, slopes, curves, 1.0, 1)


def walk(method: Any, f: Smooth, start: Array, steps: int) -> tuple[Any, list[Step], list[list[Ask]]]:
    """Make some steps; return the state, the steps and what each of them asked."""
    state, ask = method.start(start)
    made: list[Step] = []
    asked: list[list[Ask]] = [[]]
    while len(made) < steps:
        asked[-1].append(ask)
        state, answer = method.tell(state, f.answer(ask), 1.0, float(len(made)))
        ask = method.ask(state)
        if isinstance(answer, Step):
            made.append(answer)
            asked.append([])
    return state, made, asked[:-1]


def quadratic(eigenvalues: Array, optimum: Array, seed: int = 0) -> Smooth:
    """(1/2) (w - w*)^T A (w - w*) with A of these eigenvalues, in random axes."""
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    A = Q * eigenvalues @ Q.T
    return Smooth(lambda w: 0.5 * (w - optimum) @ A @ (w - optimum), lambda w: A @ (w - optimum), lambda w: A)


def rosenbrock() -> Smooth:
    """100 (y - x^2)^2 + (1 - x)^2, optimum (1, 1)."""

    def value(w: Array) -> float:
        return float(100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2)

    def gradient(w: Array) -> Array:
        inner = w[1] - w[0] ** 2
        return np.array([-400 * w[0] * inner - 2 * (1 - w[0]), 200 * inner])

    def hessian(w: Array) -> Array:
        return np.array([[1200 * w[0] ** 2 - 400 * w[1] + 2, -400 * w[0]], [-400 * w[0], 200.0]])

    return Smooth(value, gradient, hessian)


def transcendental() -> Smooth:
    """SPEC 9.9: e^-w + w^2, optimum 0.3517337."""
    return Smooth(
        lambda w: float(np.exp(-w[0]) + w[0] ** 2),
        lambda w: -np.exp(-w) + 2 * w,
        lambda w: np.array([[np.exp(-w[0]) + 2.0]]),
    )
