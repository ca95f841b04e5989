"""One of two or three workers is ten times slower: what each strategy makes of it.

``python -m benchmarks.stragglers [--out build/benchmarks]``

A gradient, one worker's part of a round or one ticket, takes at least 20 ms; the slow worker sleeps nine times what
its gradient took. For async and ssp: gradients applied per second, over those of sync with its partitions pinned, and
the loss after the same rows over that of sync with the same batches. Beside them: sync in more orders than workers,
given to whoever is free (``backup`` in four groups). For backup: seconds of a round over those of the same run without
the sleep. Each line says its bar and whether it is reached; the exit status is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from bigopt.backends.testing import Slowed
from bigopt.config import load_conf
from bigopt.data.memory import from_arrays
from bigopt.facts import Datasets
from bigopt.fit import train
from bigopt.problem import Problem
from bigopt.strategies.base import Evaluation

LEAST: Final = 0.02
STALE: Final[dict[str, tuple[str, ...]]] = {"async": (), "ssp": ("strategy.bound=3",)}


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


class Line(NamedTuple):
    """A line of the table: a value, and the bar that it is not to be below or above."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the bar is reached."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def text(self) -> str:
        """The line in Markdown."""
        bar = "reported" if self.bar == "" else f"{self.bar}: {'reached' if self.reached else '**missed**'}"
        return f"| {self.name} | {self.value:.3f} | {bar} |"

    @property
    def bar(self) -> str:
        """The bar in words."""
        return " ".join(f"{word} {bar}" for word, bar in (("at least", self.least), ("at most", self.most)) if bar)


def measured() -> list[Line]:
    """Return the lines of the table."""
    sync = run("sync", 2, 2, 9.0, 15, "batch.size=400")
    alike = run("sync", 2, 2, 0.0, 80, "batch.size=200")["loss"]
    pinned = 2 * sync["rate"]
    found = {name: run(name, 2, 4, 9.0, 80, "batch.size=200", *keys) for name, keys in STALE.items()}
    balanced = run("backup", 2, 4, 9.0, 15, "batch.size=400", "strategy.replicas=4", "strategy.spares=1")
    groups = ("batch.size=400", "strategy.replicas=2", "strategy.spares=1")
    fast, slow = (run("backup", 3, 2, factor, 60, *groups) for factor in (0.0, 9.0))
    ssp = found["ssp"]["rate"] / pinned
    return [
        Line("sync, partitions pinned, gradients a second", pinned),
        Line("async, gradients a second over sync's", found["async"]["rate"] / pinned, least=4.0),
        Line("ssp, bound 3, gradients a second over sync's", ssp, least=1.6, most=found["async"]["rate"] / pinned),
        Line("sync in four groups on whoever is free, over sync's", balanced["rate"] / sync["rate"]),
        *(
            Line(f"{name}, loss after the same rows over sync's", found[name]["loss"] / alike, most=1.02)
            for name in STALE
        ),
        Line("backup, 2 groups on 3 workers, seconds a round over no sleep's", fast["rate"] / slow["rate"], most=1.5),
    ]


def main() -> int:
    """Print the table and write it with the figures; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder of the figures")
    chosen = parser.parse_args()
    lines = measured()
    text = "\n".join(["| one worker ten times slower | | |", "|---|---|---|", *(line.text for line in lines)])
    print(text)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "stragglers.md").write_text(text + "\n")
    (chosen.out / "stragglers.json").write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n")
    return int(not all(line.reached for line in lines))


if __name__ == "__main__":
    sys.exit(main())
