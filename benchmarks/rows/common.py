"""What several rows share: the table of the linear rows, the conf of a step of gradient descent, ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from benchmarks.data import Table
from benchmarks.machine import cores
from benchmarks.player import Skip
from benchmarks.spec import Round, Scale

SIDES: Final = "benchmarks.sides"
LEARNING_RATE: Final = 0.5


def linear_table(scale: Scale) -> Table:
    """Return the table of the full-batch rows: 2M x 100."""
    return Table("linear", scale.pick(2_000_000, 200_000, 20_000), 100)


def descent(backend: str = "local", **more: Any) -> list[str]:
    """Return the conf of plain gradient descent on logistic regression with all cores."""
    keys = {
        "model.name": "logistic",
        "model.init": "zeros",
        "optimizer.name": "gd",
        "schedule.learning_rate": LEARNING_RATE,
        "data.memory": "8GB",
        "backend.name": backend,
        "backend.workers": len(cores()),
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return [f"{key}={value}" for key, value in keys.items()]


def ratio(over: str, under: str, key: str = "seconds") -> Callable[[Round], float]:
    """Return the figure ``over / under``; where a peer's marginal time is not positive, by noise, it counts as 0."""

    def of(r: Round) -> float:
        above, below = r[over][key], r[under][key]
        if below <= 0.0:
            raise Skip(f"{under}: takes no time that shows at this size")
        return max(0.0, float(above / below))

    return of


def extra_ms(side: str, base: str) -> Callable[[Round], float]:
    """Return the figure ``side - base`` in milliseconds."""
    return lambda r: 1e3 * (r[side]["seconds"] - r[base]["seconds"])
