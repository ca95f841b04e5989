"""async and ssp: every worker has a batch of its own, and each gradient is applied when it arrives.

A ticket is one batch of the driver's stream, with the units and the tree of the synchronous strategy, given whole to
one worker; so with one worker the run is the synchronous one to the bit, and fast workers take more tickets but never
the same rows twice. The worker whose gradient was applied gets the next ticket with the params of that moment; a gate
(`bigopt.strategies.gates`) may hold an arrival back. Every update records its staleness, the versions between the
params the gradient was read from and those it is applied to, and (ticket, version) go to the log from which the run can
be repeated with the same bits.

The penalty's gradient is added on the driver, at the params the step starts from; only the data's part is stale.

Where gradients are compressed (`bigopt.work_compressed`) a residual belongs to a slot, and in a repeated run to the
slot that the log names (`bigopt.strategies.residuals`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core.codec import wire
from bigopt.core.errors import ConfError, DivergedError
from bigopt.core.sums import Sums
from bigopt.data.plan import rows_of
from bigopt.optim.method import Ask
from bigopt.strategies.base import Setting, StepRecord
from bigopt.strategies.gates import Bounded, Free, Gate, Out, Scripted, Update, no_log
from bigopt.strategies.residuals import Residual, Residuals
from bigopt.work import Arrival, Order

Array = npt.NDArray[Any]


@wire
class AsyncState(NamedTuple):
    """What a checkpoint holds.

    Parameters
    ----------
    method : State
        Of the method, params included.
    steps : int
        Updates so far: the version of the params.
    ticket : int
        The next ticket of the stream.
    open : ndarray, shape (k,), int64
        Tickets given out and not applied, ascending: a resumed run gives them out first.
    residuals : tuple of Residual
        Of the slots, where gradients are compressed.
    """

    method: Any
    steps: int
    ticket: int
    open: npt.NDArray[np.int64]
    residuals: tuple[Residual, ...] = ()

    @property
    def updates(self) -> int:
        """Lines of the log so far."""
        return self.steps


@dataclass
class _Ticket:
    number: int
    version: int
    slot: int
    round: Round
    params: Array
    rows: int


def start(setting: Setting, params: Array) -> AsyncState:
    """Return the state before the first update."""
    return AsyncState(setting.method.start(params)[0], 0, 0, np.zeros(0, dtype=np.int64))


class Async:
    """Asynchronous parameter server.

    Parameters
    ----------
    setting : Setting
        With a method that asks for a gradient a step.
    state : AsyncState
    gate : Gate
    log : callable
        Called with each `Update`.
    """

    def __init__(
        self,
        setting: Setting,
        state: AsyncState,
        *,
        gate: Gate | None = None,
        log: Callable[[Update], object] = no_log,
    ) -> None:
        self._method = setting.method
        self._inner = state.method
        self._steps = state.steps
        self._ticket = state.ticket
        self._again: list[int] = [int(number) for number in state.open]
        self._plan = setting.plan
        self._evaluation = setting.evaluate("gradient")
        self._penalty = setting.penalty
        self._weight = setting.total_weight
        self._rounds = setting.rounds
        self._tickets = setting.steps
        self._gate: Gate = gate or Free()
        self._log = log
        self._residuals: Residuals | None = None
        if setting.compressed is not None:
            self._residuals = Residuals(setting.compressed(1), state.residuals, setting.rounds.ledger)
        self._owners = {update.ticket: update.worker for update in setting.replay or ()}
        self._slots = 1
        self._out: dict[int, _Ticket] = {}  # by number of the round; arrived ones first, in the order of arrival
        self._arrived: dict[int, _Ticket] = {}

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self._steps

    @property
    def params(self) -> Array:
        """The parameters to evaluate and to save."""
        params: Array = self._method.result_params(self._inner)
        return params

    @property
    def epochs(self) -> float:
        """Rows behind the updates over n."""
        return self._plan.epochs_after(self._steps)

    def snapshot(self) -> AsyncState:
        """Return the state between two updates."""
        tickets = (*self._again, *(t.number for t in (*self._arrived.values(), *self._out.values())))
        residuals = () if self._residuals is None else self._residuals.state
        return AsyncState(self._inner, self._steps, self._ticket, np.array(sorted(tickets), dtype=np.int64), residuals)

    def more(self, slots: int) -> list[Order]:
        """Give a ticket to every worker that is to have one."""
        busy = {ticket.slot for ticket in (*self._arrived.values(), *self._out.values())}
        orders: list[Order] = []
        self._slots = slots
        for slot in self._gate.places(slots, busy):
            number = self._draw()
            if number is None:
                break
            if self._residuals is not None:
                slot = self._owners.get(number, slot)
            orders += self._give(number, slot, self._method.ask(self._inner).params, self._steps)
        return orders

    def _draw(self) -> int | None:
        if self._again:
            return self._again.pop(0)
        if self._tickets is not None and self._ticket >= self._tickets:
            return None
        number = self._gate.issue(self._ticket, self._steps)
        if number is not None:
            self._ticket = max(self._ticket, number + 1)
        return number

    def _give(self, number: int, slot: int, params: Array, version: int) -> list[Order]:
        work, more = self._evaluation.work, tuple[Array, ...]()
        units = self._plan.units(*divmod(number, self._plan.steps_per_epoch))
        rows = rows_of(units)
        if self._residuals is not None:
            work, more, units = self._residuals.order(slot, params, number, number + 1)
        homes = np.full(len(units), slot % self._slots, dtype=np.int64)
        made = self._rounds.new(work, (params, *more), units, homes, where=f"ticket {number}")
        self._out[made.ticket] = _Ticket(number, version, slot, made, params, rows)
        return made.orders()

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; what came before, or for a ticket that is done, is dropped by the ledger."""
        ticket = self._out.get(arrival.order.ticket)
        if ticket is None:
            self._rounds.late(arrival)
            return []
        again = ticket.round.accept(arrival)
        if ticket.round.done:
            del self._out[arrival.order.ticket]
            if self._residuals is not None and not self._residuals.take(
                ticket.round.value.parts[0], ticket.params.nbytes
            ):
                return self._give(ticket.number, ticket.slot, ticket.params, ticket.version)
            self._arrived[arrival.order.ticket] = ticket
        return again

    def advance(self) -> StepRecord | None:
        """Apply one arrival that the gate lets pass, or return None.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the state stays the last finite one.
        """
        keys = [*self._arrived, *self._out]
        tickets = [*self._arrived.values(), *self._out.values()]
        out = [Out(t.number, t.version, key in self._arrived) for key, t in zip(keys, tickets, strict=True)]
        chosen = self._gate.choose(out, self._steps)
        if chosen is None:
            return None
        record = self._apply(tickets[chosen])
        del self._arrived[keys[chosen]]
        return record

    def _apply(self, ticket: _Ticket) -> StepRecord:
        begin = time.perf_counter()
        plan, done = self._plan, ticket.round
        told = self._told(ticket)
        if told.rows != ticket.rows:
            raise RuntimeError(f"{done.where}: {told.rows} rows arrived, the plan has {ticket.rows}")
        position = ticket.number % plan.steps_per_epoch
        rows = plan.batch_rows(position)
        divisor = plan.divisor(position, self._weight)
        loss = told.loss / divisor + self._penalty(ticket.params)
        if not np.isfinite(loss):
            raise DivergedError(f"the loss is {loss}", where=done.where, hint="a smaller schedule.learning_rate")
        reduced = time.perf_counter()
        mean = self._residuals is not None
        self._inner, step = self._method.tell(self._inner, told, 1.0 if mean else divisor, self.epochs)
        assert not isinstance(step, Ask), "methods that ask again are refused"
        staleness = self._steps - ticket.version
        self._log(Update(ticket.number, ticket.version, ticket.slot))
        self._steps += 1
        return StepRecord(
            step=self._steps,
            epoch=(self._steps - 1) // plan.steps_per_epoch,
            end_of_epoch=self._steps % plan.steps_per_epoch == 0,
            loss=float(loss),
            grad_norm=step.grad_norm,
            learning_rate=step.learning_rate,
            rows=rows,
            staleness=staleness,
            seconds_map=done.seconds_map,
            seconds_reduce=reduced - begin,
            seconds_update=time.perf_counter() - reduced,
            rss=done.rss,
            worker=ticket.slot,
        )

    def _told(self, ticket: _Ticket) -> Any:
        """Return the sums of a ticket; where gradients are compressed the gradient is the mean already."""
        value = ticket.round.value
        if self._residuals is None:
            return self._evaluation.finish((ticket.params,), value)
        part = value.parts[0]
        if not np.isfinite(part.square):
            raise DivergedError(
                "the gradient is not finite", where=ticket.round.where, hint="a smaller schedule.learning_rate"
            )
        return Sums(self._residuals.decoded(part), part.loss, part.weight, part.rows)


def machine(setting: Setting, state: AsyncState) -> Async:
    """Return the machine of ``strategy.name: async`` and ``ssp``.

    Raises
    ------
    ConfError
        A bound that so many workers cannot keep.
    """
    bound = setting.options.get("bound")
    if setting.replay is not None:
        if state.steps:
            raise ConfError(
                "a repeated run cannot go on from a checkpoint", where="strategy.replay", hint="start it again"
            )
        return Async(setting, state, gate=Scripted(setting.replay), log=setting.log)
    if bound is None:
        return Async(setting, state, log=setting.log)
    if bound < setting.slots - 1:
        raise ConfError(
            f"{setting.slots} workers cannot keep a staleness of {bound}",
            where="strategy.bound",
            hint=f"at least {setting.slots - 1}, or fewer backend.workers",
        )
    return Async(setting, state, gate=Bounded(bound), log=setting.log)
