"""The state of blocks of columns that workers update, and the rule by which blocks and intercept are updated.

What a checkpoint holds is a commit and a log (`bigopt.strategies.columns_workers`); every block has a method's state of
its own, and so has the intercept, which no block holds.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums
from bigopt.optim.fused import Fused
from bigopt.optim.method import FirstOrder, FirstOrderState
from bigopt.strategies.base import Setting
from bigopt.strategies.columns_parallel import Deal, Judged
from bigopt.work_blocks import BlockSteps, block_method, frozen

Array = npt.NDArray[Any]


@wire
class PushedResidual(NamedTuple):
    """A step of the log.

    Parameters
    ----------
    epoch, position : int
        Its batch.
    residual : ndarray, shape (rows, q)
        In the block dtype.
    rate, divisor : float
    """

    epoch: int
    position: int
    residual: Array
    rate: float
    divisor: float


@wire
class BlocksState(NamedTuple):
    """What a checkpoint holds.

    Parameters
    ----------
    blocks : tuple of FirstOrderState
        Each block's weights and optimizer at the commit.
    committed : int
        Steps at the commit.
    log : tuple of PushedResidual
        The steps since.
    intercept : FirstOrderState or None
        After all steps.
    steps : int
        Updates so far.
    epoch, position : int
        Next batch.
    """

    blocks: tuple[FirstOrderState, ...]
    committed: int
    log: tuple[PushedResidual, ...]
    intercept: FirstOrderState | None
    steps: int
    epoch: int
    position: int


class Begun(NamedTuple):
    """A step whose residual is known and not applied yet."""

    pushed: PushedResidual
    judged: Judged
    loss: float


@dataclass(frozen=True)
class Local:
    """How blocks and intercept are updated.

    Parameters
    ----------
    deal : Deal
    work : BlockSteps
    ends : Layout
        Of the intercept; without blocks where the model has none.
    """

    deal: Deal
    work: BlockSteps
    ends: Layout

    @classmethod
    def of(cls, setting: Setting) -> Local:
        """Return the updates of a setting, whose versions are kept under a token of their own."""
        method, deal = setting.method, Deal.of(setting)
        assert isinstance(method, FirstOrder), "one gradient a step"
        transform = method.transform.inner if isinstance(method.transform, Fused) else method.transform
        work = BlockSteps(deal.columns, transform, setting.blocks().penalty, method.average, secrets.token_hex(8))
        ends = (Block("intercept", (deal.model.outputs,), False),) if deal.model.intercept else ()
        return cls(deal, work, Layout(ends))

    def start(self, params: Array) -> BlocksState:
        """Return the state before step 1."""
        columns = self.deal.columns
        blocks = tuple(
            self.of_layout(layout).start(params[columns.parameters(b, b + 1)])[0]
            for b, layout in enumerate(self.work.layouts)
        )
        intercept = self.of_layout(self.ends).start(params[-self.ends.size :])[0] if self.ends.blocks else None
        return BlocksState(blocks, 0, (), intercept, 0, 0, 0)

    def of_layout(self, layout: Layout, rate: float = 0.0) -> FirstOrder:
        """Return the method of some entries."""
        return block_method(self.work.transform, layout, self.work.penalty, self.work.average, rate)

    def intercept(
        self, state: FirstOrderState, pushed: PushedResidual, judged: Judged
    ) -> tuple[FirstOrderState, float]:
        """Return the intercept after a step, and the norm of its gradient."""
        grad = judged.residual.sum(axis=0, dtype=self.deal.columns.dtype)
        method = self.of_layout(self.ends, pushed.rate)
        after, step = method.tell(frozen(state), Sums(grad, 0.0, 1.0, 1), pushed.divisor, 0.0)
        return frozen(after), step.grad_norm


def whole_params(state: BlocksState) -> Array:
    """Return the parameters at the commit, or their averages, with the intercept as it is."""
    parts = [block.params if block.average is None else block.average for block in state.blocks]
    if state.intercept is not None:
        end = state.intercept
        parts.append(end.params if end.average is None else end.average)
    whole: Array = frozen(np.concatenate(parts))
    return whole
