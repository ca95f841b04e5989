"""Three functions with hand-written gradients, and the shortest loop that drives a method over one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conformance import PROBLEMS, Gradient, Problem

from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums


@pytest.fixture(params=list(PROBLEMS))
def problem(request: pytest.FixtureRequest) -> Problem:
    return PROBLEMS[request.param]()


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
