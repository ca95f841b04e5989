"""model_parallel of the linear family where each worker updates its own block: one exchange a step.

The order of step t brings the residual of step t - 1 to the workers; each of them updates its block and answers with
the partial margins of batch t (`bigopt.work_blocks`). From their sum and the labels the driver makes loss and residual,
so what travels has the length of a batch, whatever the number of columns. The intercept, which no block holds, is
updated here by the same rule.

A step is over when its residual has been applied, one order later; only then is the norm of its gradient known, and
its record given out. The state is a **commit**, all blocks as they were at some step, and a **log** of the residuals
since. Blocks are brought up and the log begins anew when it has grown as long as the parameters, and wherever somebody
asks for the params (`bigopt.strategies.base.Afar`): at the end of an epoch that is evaluated, and of the run. A worker
that does not have its block is given commit and log and catches up with the same bits; so a checkpoint can be taken
after every step and a lost worker costs time alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.data.columnview import block_homes
from bigopt.data.plan import Ints
from bigopt.strategies.base import Setting, StepRecord
from bigopt.strategies.columns_state import Begun, BlocksState, Local, PushedResidual, whole_params
from bigopt.strategies.rounds import Steps
from bigopt.work import Arrival, Order
from bigopt.work_blocks import Asked, BlockAnswer, ColumnPush, frozen
from bigopt.work_columns import Margins

Array = npt.NDArray[Any]

_NO_UNITS = np.empty((0, 4), dtype=np.int64)


def start(setting: Setting, params: Array) -> BlocksState:
    """Return the state before step 1."""
    return Local.of(setting).start(params)


def machine(setting: Setting, state: BlocksState) -> ColumnsOnWorkers:
    """Return the machine of ``strategy.update_on: worker``."""
    return ColumnsOnWorkers(setting, state, Local.of(setting))


class ColumnsOnWorkers(Steps[BlocksState]):
    """Residual down, update where the block is, margins up.

    Parameters
    ----------
    setting : Setting
        Its method asks for one gradient a step and acts entry by entry.
    state : BlocksState
    local : Local
    """

    def __init__(self, setting: Setting, state: BlocksState, local: Local) -> None:
        super().__init__(setting, state)
        self._local = local
        self._deal = local.deal
        self._bringing = False
        self._asked: Asked | None = None
        self._behind = True  # whether some worker must be caught up
        self._margins: Margins | None = None
        self._penalty = 0.0
        self._begun: Begun | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How the model is cut."""
        return self._deal.notes

    @property
    def here(self) -> bool:
        """Whether the driver has the params of the last step."""
        return self._state.committed == self._state.steps

    @property
    def params(self) -> Array:
        """The current parameters, or their average where the method keeps one.

        Raises
        ------
        RuntimeError
            Where they are not `here`; `bring` orders them.
        """
        if not self.here:
            raise RuntimeError(f"the params of step {self.steps} lie on workers")
        return whole_params(self._state)

    def more(self, slots: int) -> list[Order]:
        """Order the margins of the next batch, and the update that is due."""
        if self._round.open:
            return []
        begun, steps = self._begun, self._state.steps
        version, at = steps, (self._state.epoch, self._state.position)
        if begun is not None:
            version, at = steps + 1, self._plan.after(*at)
        last = version == self._setting.steps
        fetch = begun is not None and (last or len(self._state.log) + 1 >= self._interval)
        return self._order(version, _NO_UNITS if last else self._units(*at), slots, fetch=fetch)

    def bring(self, slots: int) -> list[Order]:
        """Order the blocks as they are after the last step, where they are not here and not on their way."""
        if self._round.open or self.here:
            return []
        self._bringing = True
        return self._order(self._state.steps, _NO_UNITS, slots, fetch=True)

    @property
    def _interval(self) -> int:
        """Steps of the log at which the blocks are brought up: about as many as make their length."""
        columns = self._deal.columns
        size = self._plan.batch_rows(0) * columns.outputs
        return max(8, min(1000, int(columns.cuts[-1]) * columns.outputs // max(1, size)))

    def _units(self, epoch: int, position: int) -> Ints:
        return self._setting.plan.at(epoch).units(epoch, position)

    def _order(self, version: int, units: Ints, slots: int, *, fetch: bool) -> list[Order]:
        state = self._state
        log = state.log if self._begun is None or version == state.steps else (*state.log, self._begun.pushed)
        wanted = log if self._behind else log[-1:]
        pushes = tuple(ColumnPush(self._units(p.epoch, p.position), *p[2:]) for p in wanted)
        self._asked = Asked(version, units, pushes, (), 0, fetch)
        homes = block_homes(self._deal.columns.blocks, slots)
        where = f"step {version + 1}" if len(units) else f"the blocks at step {version}"
        return self._round.begin(self._local.work, (), self._deal.leaves(units), homes, where)

    def _filled(self, orders: list[Order]) -> list[Order]:
        """Give orders their input; where somebody must be caught up, with the committed states of their blocks."""
        asked, states = self._asked, self._state.blocks
        assert asked is not None
        filled = []
        for order in orders:
            own = asked._replace(states=states[order.start : order.stop], first=order.start) if self._behind else asked
            inputs: Any = (own,)
            filled.append(replace(order, inputs=inputs))
        return filled

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat."""
        again = self._round.handle(arrival)
        if self._bringing and (done := self._round.take()) is not None:
            self._brought(done.value)
        return again

    def _brought(self, answer: BlockAnswer) -> None:
        self._bringing = False
        self._behind = bool(answer.missing)
        if not self._behind:
            self._state = self._state._replace(blocks=frozen(answer.states), committed=self._state.steps, log=())

    def advance(self) -> StepRecord | None:
        """Make the residual where all margins are there; the record of the step before, which is over then.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the state stays the last finite one.
        """
        if self._margins is not None:
            margins, self._margins = self._margins, None
            self._begun = self._judge(margins)
            return None
        done = self._round.take()
        if done is None:
            return None
        answer: BlockAnswer = done.value
        self._behind = bool(answer.missing)
        if self._behind:
            return None
        begun, self._begun = self._begun, None
        record = None if begun is None else self._applied(done, begun, answer)
        self._margins, self._penalty = answer.margins, answer.penalty
        return record if record is not None else self.advance()

    def _judge(self, margins: Margins) -> Begun:
        state = self._state
        found = self._deal.judged(np.empty(0) if state.intercept is None else state.intercept.params, margins)
        loss = self._finite(found.loss / self._divisor + self._penalty)
        residual = self._deal.columns.cast(found.residual)
        pushed = PushedResidual(state.epoch, state.position, residual, self._rate(), self._divisor)
        return Begun(pushed, found, loss)

    def _applied(self, done: Round, begun: Begun, answer: BlockAnswer) -> StepRecord:
        """Take note that a step's residual has been applied by all blocks."""
        begin = time.perf_counter()
        state, square = self._state, answer.square
        intercept = state.intercept
        if intercept is not None:
            intercept, norm = self._local.intercept(intercept, begun.pushed, begun.judged)
            square += norm * norm
        place = self._plan.after(state.epoch, state.position)
        log = (*state.log, begun.pushed)
        after = BlocksState(state.blocks, state.committed, log, intercept, state.steps + 1, *place)
        if answer.states:
            after = after._replace(blocks=frozen(answer.states), committed=after.steps, log=())
        self._spent = self._spent.plus(done, 0.0, time.perf_counter() - begin)
        return self._over(after, float(np.sqrt(square)), begun.pushed.rate, begun.loss)
