"""bigopt to a loss that somebody else has reached: the time of a whole training, from the call to the first parameters
whose loss, judged afterwards and off the clock, is as low.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks import data
from benchmarks.evaluate import Referee
from benchmarks.looking import Looks
from benchmarks.sides import Base
from benchmarks.sides.ours import datasets

TOLERANCE: Final = 1e-7


class Race(Base):
    """Seconds from calling `fit.train` to the target loss.

    Every run trains anew, `steps` steps long; parameters and times of its steps are kept, and judged when it is over.
    An engine's own start is not on the clock (a SparkContext is there before, as it is for MLlib).

    Parameters
    ----------
    keys : list of str
    steps : int
        Enough to reach the target.
    referee : dict
        Arguments of the `Referee` of the loss.
    memory : str
        Folder of arrays to train on in memory; empty for ``data.uri``.
    spark : bool
        Make a SparkContext first.
    every : int
        Keep the parameters after each so many steps.
    """

    def __init__(
        self,
        keys: list[str],
        steps: int,
        referee: dict[str, Any] | None = None,
        memory: str = "",
        spark: bool = False,
        every: int = 1,
    ) -> None:
        from bigopt.config import load_conf

        self._folder = tempfile.TemporaryDirectory(prefix="bigopt-bench-")
        where = [f"run.dir={self._folder.name}", f"stop.steps={steps}"]
        self._conf = load_conf([], [*where, *keys])
        self._rows = data.load(memory) if memory else None
        self._target, self._every = float("nan"), every
        self._referee = None if referee is None else Referee(**referee)
        self._kept: list[tuple[int, float, Any]] = []
        self._sc: Any = None
        if spark:
            from benchmarks.sides.spark_cpu import context

            self._sc = context()

    def aim(self, target: float) -> None:
        """Set the loss to reach: this one, up to a ten-millionth of it."""
        self._target = target + TOLERANCE * abs(target)

    def run(self) -> dict[str, Any]:
        """Return seconds until the end of the first step that is kept; those until the target need a judge."""
        kept: list[tuple[int, float, Any]] = []

        def on_step(step: int, _epoch: float, params: Any) -> None:
            if step % self._every == 0:
                kept.append((step, time.perf_counter() - begin, params))

        begin = time.perf_counter()
        self._train(on_step)
        self._kept = kept
        return {"first_step": next((at for step, at, _ in kept if step), 0.0)}

    def judge(self) -> dict[str, Any]:
        """Return seconds until the target, its step, and the loss reached."""
        assert self._referee is not None
        kept = self._kept
        low, high, loss = 0, len(kept), float("nan")
        while low < high:  # the loss falls: the first that is low enough, by bisection
            middle = (low + high) // 2
            value = self._referee.loss(kept[middle][2])
            if value <= self._target:
                high, loss = middle, value
            else:
                low = middle + 1
        if low == len(kept):
            raise RuntimeError(f"{len(kept)} kept steps did not reach the loss {self._target}")
        step, at, _ = kept[low]
        return {"seconds": at, "steps": step, "loss": loss}

    def profile(self) -> dict[str, Any]:
        """Return where the threads of this process are during a whole training."""
        with Looks() as looks:
            self._train(lambda *_: None)
        return looks.found()

    def _train(self, on_step: Callable[..., None]) -> None:
        from bigopt.fit import train

        rows = None if self._rows is None else datasets(*self._rows)  # anew: what a first training does is on the clock
        train(self._conf, data=rows, on_step=on_step)

    def close(self) -> None:
        """End the context."""
        if self._sc is not None:
            self._sc.stop()
        self._folder.cleanup()


class FirstStep(Race):
    """Seconds from calling `fit.train` to the end of its first step."""

    def __init__(self, keys: list[str], spark: bool = False) -> None:
        super().__init__(keys, 1, spark=spark)

    def run(self) -> dict[str, Any]:
        """Return seconds until the first step is done."""
        ends: list[float] = []
        begin = time.perf_counter()
        self._train(lambda *_: ends.append(time.perf_counter()))
        return {"seconds": ends[1] - begin, "facts": ends[0] - begin}

    def judge(self) -> dict[str, Any]:
        """Return nothing to add."""
        return {}
