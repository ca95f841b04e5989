"""One of two or three workers is ten times slower: what each strategy makes of it.

``python -m benchmarks.stragglers``

A gradient, one worker's part of a round or one ticket, takes at least 20 ms; the slow worker sleeps nine times what
its gradient took. For async and ssp: gradients applied per second, over those of sync with its partitions pinned. For
backup: seconds of a round over those of the same run without the sleep.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import numpy as np

from bigopt.backends.testing import Slowed
from bigopt.config import load_conf
from bigopt.data.memory import from_arrays
from bigopt.facts import Datasets
from bigopt.fit import train
from bigopt.problem import Problem
from bigopt.strategies.base import Evaluation

LEAST = 0.02


def run(name: str, workers: int, units: int, factor: float, steps: int, *keys: str) -> dict[str, Any]:
    """Train softmax regression with one slow worker; return the result with its steps a second.

    A gradient has `units` units, which share its 20 ms.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 20))
    y = np.argmax(X @ rng.normal(size=(20, 5)) + rng.normal(size=(4000, 5)), axis=1)
    plain = Problem.batch_work
    with tempfile.TemporaryDirectory() as folder:

        def slow(self: Problem, kind: Any, dtype: str, backprop: str) -> Evaluation:
            found = plain(self, kind, dtype, backprop)
            return found._replace(work=Slowed(found.work, folder, factor, LEAST / units))

        stamps: list[float] = []
        Problem.batch_work = slow  # type: ignore[method-assign]
        try:
            conf = load_conf(
                [],
                [
                    *("data.uri=memory", "model.name=softmax", "optimizer.name=sgd", "schedule.learning_rate=0.1"),
                    *(f"strategy.name={name}", f"backend.workers={workers}", f"stop.steps={steps}", *keys),
                    *(f"run.dir={folder}", "run.dtype=float64", "batch.lanes=0"),
                ],
            )
            result = train(
                conf,
                data=Datasets(from_arrays(X, y, partition_rows=1000), None),
                on_step=lambda *_: stamps.append(time.perf_counter()),
            )
        finally:
            Problem.batch_work = plain  # type: ignore[method-assign]
    return {**result, "rate": (len(stamps) - 1) / (stamps[-1] - stamps[0])}


def main() -> int:
    """Print one JSON object with the ratios, and where to look."""
    sync = run("sync", 2, 2, 9.0, 15, "batch.size=400")
    found: dict[str, float] = {"sync, steps a second": sync["rate"]}
    for name, keys in (("async", ()), ("ssp", ("strategy.bound=3",))):
        other = run(name, 2, 4, 9.0, 80, "batch.size=200", *keys)
        found[f"{name}, gradients a second over sync's"] = other["rate"] / (2 * sync["rate"])
    groups = ("batch.size=400", "strategy.replicas=2", "strategy.spares=1")
    fast = run("backup", 3, 2, 0.0, 60, *groups)
    slow = run("backup", 3, 2, 9.0, 60, *groups)
    found["backup, seconds a round over those without the sleep"] = fast["rate"] / slow["rate"]
    print(json.dumps({key: round(value, 3) for key, value in found.items()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
