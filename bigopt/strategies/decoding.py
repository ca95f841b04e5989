"""From codes to steps: the state of a synchronous run with compressed gradients, and what can be found from it.

The state is a commit and a log of codes (`bigopt.data.kept`). `Decoder` makes the codes of a step into the mean
gradient of its batch and tells the method; `Path` makes the steps since the commit again, for the params of each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import tree
from bigopt.core.codec import copied, wire
from bigopt.core.sums import Sums, added
from bigopt.optim.method import Ask, Method, Step
from bigopt.strategies.base import Setting
from bigopt.work_compressed import CompressedSum

Array = npt.NDArray[Any]


@wire
class CompressedState(NamedTuple):
    """What a checkpoint holds.

    Parameters
    ----------
    method : State
        Of the method, at the commit.
    residuals : tuple of ndarray, shape (p,)
        Of each replica, at the commit; empty before the first and without error feedback: they are zero.
    committed : int
        Steps at the commit.
    log : tuple of tuple
        The codes of each step since, replica by replica.
    replicas : int
    """

    method: Any
    residuals: tuple[Array, ...]
    committed: int
    log: tuple[tuple[Any, ...], ...]
    replicas: int

    @property
    def number(self) -> int:
        """How many replicas there are."""
        return self.replicas


class Decoder:
    """Makes codes into the mean gradient of a batch, and the method's state into the next one.

    Parameters
    ----------
    setting : Setting
    work : CompressedSum
        Of p replicas.
    """

    def __init__(self, setting: Setting, work: CompressedSum) -> None:
        self.method: Method[Any] = setting.method
        self._plan = setting.plan
        self._work = work

    def epochs(self, step: int) -> float:
        """Return the rows drawn before a step, over n."""
        return self._plan.epochs_after(step)

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Return the rows that each replica's gradient is divided by, shape (p,)."""
        p = self._work.shares.replicas
        rows = self._plan.batch_rows(step % self._plan.steps_per_epoch)
        return np.diff(rows * np.arange(p + 1, dtype=np.int64) // p)

    def gradient(self, step: int, codes: tuple[Any, ...]) -> Array:
        """Return the mean gradient of a batch, shape (p,), from all replicas' codes."""
        rows, decode = self.rows(step), self._work.compressor.decode
        with np.errstate(over="ignore", invalid="ignore"):
            parts: list[Array] = [decode(code, number, step) for number, code in enumerate(codes)]
            if len(parts) == 1:
                return parts[0]
            for part, share in zip(parts, rows, strict=True):
                part *= share / rows.sum()
            root = tree.fold(parts, len(parts), added)
        return root[tree.height(len(parts)), 0]

    def told(self, state: Any, step: int, codes: tuple[Any, ...]) -> tuple[Any, Step]:
        """Return the method's state after a step, and the step; the state is taken over."""
        told = Sums(self.gradient(step, codes), 0.0, 1.0, 1)
        state, answer = self.method.tell(state, told, 1.0, self.epochs(step))
        assert not isinstance(answer, Ask), "methods that ask again are refused"
        return state, answer


class Path:
    """The states of the method since a commit, found by making these steps again.

    Parameters
    ----------
    decoder : Decoder
    state : CompressedState
        Commit and log; left as it is.
    """

    def __init__(self, decoder: Decoder, state: CompressedState) -> None:
        self._decoder = decoder
        self._inner, self._step = copied(state.method), state.committed

    def params(self, state: CompressedState, first: int, last: int) -> list[Array] | None:
        """Return the params of the steps first, ..., last - 1, which the log must reach; None where they lie behind."""
        found: list[Array] = []
        if first < self._step:
            return None
        while True:
            if self._step >= first:
                found.append(self._decoder.method.ask(self._inner).params)
            if self._step + 1 >= last:
                return found
            self.forward(state.log[self._step - state.committed])

    def forward(self, codes: tuple[Any, ...]) -> Any:
        """Make a step; return the state after it."""
        self._inner, _ = self._decoder.told(self._inner, self._step, codes)
        self._step += 1
        return self._inner
