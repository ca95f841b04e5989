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
from bigopt.core.errors import DivergedError
from bigopt.data.columnview import block_homes
from bigopt.data.plan import Ints, Plan, rows_of
from bigopt.optim.method import FirstOrder
from bigopt.strategies.base import Setting, StepRecord, scaled
from bigopt.strategies.columns_parallel import Deal, check_batch, judged
from bigopt.strategies.columns_state import Begun, BlocksState, Local, PushedResidual, whole_params
from bigopt.work import Arrival, Order
from bigopt.work_blocks import Asked, BlockAnswer, ColumnPush, frozen
from bigopt.work_columns import Margins, leaves

Array = npt.NDArray[Any]

_NO_UNITS = np.empty((0, 4), dtype=np.int64)


def start(setting: Setting, params: Array) -> BlocksState:
    """Return the state before step 1."""
    given = setting.blocks()
    return Local.of(setting, given, Deal.of(given, setting.plan.seed)).start(params)


def machine(setting: Setting, state: BlocksState) -> ColumnsOnWorkers:
    """Return the machine of ``strategy.update_on: worker``."""
    given = setting.blocks()
    deal = Deal.of(given, setting.plan.seed)
    check_batch(given, setting.plan.stages.batch(setting.plan.stages.last), deal.model.outputs)
    return ColumnsOnWorkers(setting, state, Local.of(setting, given, deal))


class ColumnsOnWorkers:
    """Residual down, update where the block is, margins up.

    Parameters
    ----------
    setting : Setting
        Its method asks for one gradient a step and acts entry by entry.
    state : BlocksState
    local : Local
    """

    def __init__(self, setting: Setting, state: BlocksState, local: Local) -> None:
        self._setting = setting
        self._state = state
        self._local = local
        self._deal = local.deal
        self._plan: Plan = setting.plan.at(state.epoch)
        self._round: Round | None = None
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
    def steps(self) -> int:
        """Updates so far."""
        return self._state.steps

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

    @property
    def epochs(self) -> float:
        """Rows drawn over n."""
        return self._plan.epochs_at(self._state.epoch, self._state.position)

    def snapshot(self) -> BlocksState:
        """Return commit, log and what is known of the last step."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the margins of the next batch, and the update that is due."""
        if self._round is not None:
            return []
        begun, steps = self._begun, self._state.steps
        version, at = steps, (self._state.epoch, self._state.position)
        if begun is not None:
            version, at = steps + 1, self._after(*at)
        last = version == self._setting.steps
        fetch = begun is not None and (last or len(self._state.log) + 1 >= self._interval)
        return self._order(version, _NO_UNITS if last else self._units(*at), slots, fetch=fetch)

    def bring(self, slots: int) -> list[Order]:
        """Order the blocks as they are after the last step, where they are not here and not on their way."""
        if self._round is not None or self.here:
            return []
        self._bringing = True
        return self._order(self._state.steps, _NO_UNITS, slots, fetch=True)

    @property
    def _interval(self) -> int:
        """Steps of the log at which the blocks are brought up: about as many as make their length."""
        columns = self._deal.columns
        size = self._plan.batch_rows(0) * columns.outputs
        return max(8, min(1000, int(columns.cuts[-1]) * columns.outputs // max(1, size)))

    def _after(self, epoch: int, position: int) -> tuple[int, int]:
        """Return epoch and position of the batch after one."""
        last = position + 1 == self._setting.plan.at(epoch).steps_per_epoch
        return (epoch + 1, 0) if last else (epoch, position + 1)

    def _units(self, epoch: int, position: int) -> Ints:
        return self._setting.plan.at(epoch).units(epoch, position)

    def _order(self, version: int, units: Ints, slots: int, *, fetch: bool) -> list[Order]:
        state = self._state
        log = state.log if self._begun is None or version == state.steps else (*state.log, self._begun.pushed)
        wanted = log if self._behind else log[-1:]
        pushes = tuple(ColumnPush(self._units(p.epoch, p.position), *p[2:]) for p in wanted)
        self._asked = Asked(version, units, pushes, (), 0, fetch)
        blocks = self._deal.columns.blocks
        self._round = self._setting.rounds.new(
            self._local.work,
            (),
            leaves(blocks, rows_of(units)),
            block_homes(blocks, slots),
            where=f"step {version + 1}" if len(units) else f"the blocks at step {version}",
        )
        return self._filled(self._round.orders())

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
        if self._round is None or arrival.order.ticket != self._round.ticket:
            self._setting.rounds.late(arrival)
            return []
        again = self._filled(self._round.accept(arrival))
        if self._bringing and self._round.done:
            self._brought(self._round)
        return again

    def _brought(self, done: Round) -> None:
        self._round, self._bringing = None, False
        answer: BlockAnswer = done.value
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
        done = self._round
        if done is None or not done.done:
            return None
        self._round = None
        answer: BlockAnswer = done.value
        self._behind = bool(answer.missing)
        if self._behind:
            return None
        begun, self._begun = self._begun, None
        record = None if begun is None else self._applied(done, begun, answer)
        self._margins, self._penalty = answer.margins, answer.penalty
        return record if record is not None else self.advance()

    def _judge(self, margins: Margins) -> Begun:
        state, plan, setting = self._state, self._plan, self._setting
        intercept = np.empty(0) if state.intercept is None else state.intercept.params
        with np.errstate(over="ignore", invalid="ignore"):
            found = judged(self._deal.model, intercept, margins)
        rows = plan.batch_rows(state.position)
        divisor = setting.total_weight if plan.full else rows * setting.total_weight / plan.rows
        loss = found.loss / divisor + self._penalty
        if not np.isfinite(loss):
            where = f"step {state.steps + 1}"
            raise DivergedError(f"the loss is {loss}", where=where, hint="a smaller schedule.learning_rate")
        method = scaled(setting.method, setting.pace(state.epoch))
        assert isinstance(method, FirstOrder)
        rate = float(method.schedule(float(state.steps if method.unit == "step" else self.epochs)))
        residual = self._deal.columns.cast(found.residual)
        return Begun(PushedResidual(state.epoch, state.position, residual, rate, divisor), found, float(loss))

    def _applied(self, done: Round, begun: Begun, answer: BlockAnswer) -> StepRecord:
        """Take note that a step's residual has been applied by all blocks."""
        begin = time.perf_counter()
        state, square = self._state, answer.square
        intercept = state.intercept
        if intercept is not None:
            intercept, norm = self._local.intercept(intercept, begun.pushed, begun.judged)
            square += norm * norm
        epoch, position = self._after(state.epoch, state.position)
        after = BlocksState(
            state.blocks, state.committed, (*state.log, begun.pushed), intercept, state.steps + 1, epoch, position
        )
        if answer.states:
            after = after._replace(blocks=frozen(answer.states), committed=after.steps, log=())
        rows = self._plan.batch_rows(state.position)
        self._state = after
        if epoch != state.epoch:
            self._plan = self._setting.plan.at(epoch)
        return StepRecord(
            step=after.steps,
            epoch=state.epoch,
            end_of_epoch=epoch != state.epoch,
            loss=begun.loss,
            grad_norm=float(np.sqrt(square)),
            learning_rate=begun.pushed.rate,
            rows=rows,
            staleness=0,
            seconds_map=done.seconds_map,
            seconds_reduce=0.0,
            seconds_update=time.perf_counter() - begin,
            rss=done.rss,
        )
