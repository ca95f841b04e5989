"""sync with compressed gradients: every replica sends a code, its residual stays where it was computed.

A batch is cut into p replicas' shares, as many for the whole run. A step is a round whose leaves are the replicas; the
driver decodes what they send, adds the mean gradients, weighted by their rows, along the fixed tree over replicas, and
tells the method. So a run's bits depend on p, and neither on workers nor on what happens to them.

That residuals stay on workers is bookkeeping (`bigopt.data.kept` has the protocol). The state of the machine is a
**commit**, method and residuals as they were at some step, and a **log** of all codes since. From it the driver repeats
the steps to find the params of each (`_Path`). A replica whose residual no worker has, after a death or a resume, is
caught up: the newest residual of it that the driver holds and the params of the steps since go out in orders of bounded
size, and the replica runs through them again. Whoever had to be caught up sends its residual back with the next few
steps too, more of them each time; so where an engine never runs a replica in the same place twice, residuals soon
travel both ways with every step, and only bytes are lost.

When the log has grown to 100 times the residuals, or to 2000 steps, the orders of that step ask for them and the driver
commits: a function of the codes' sizes alone. Residuals are then a hundredth of the bytes sent up, or 1/2000 of what
uncompressed gradients would be.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Round
from bigopt.core.codec import copied
from bigopt.core.compress import code_bytes
from bigopt.core.errors import DivergedError
from bigopt.data.kept import Missing
from bigopt.strategies.base import Setting, StepRecord
from bigopt.strategies.decoding import CompressedState, Decoder, Path
from bigopt.strategies.mirrors import Mirrors, groups
from bigopt.strategies.sync import Placement
from bigopt.work import Arrival, Order
from bigopt.work_compressed import CodedGradient, CompressedSum

Array = npt.NDArray[Any]

_LOGGED: Final = 100
"""Bytes of the log, over those of the residuals, at which the driver commits."""
_MOST_LOGGED: Final = 1 << 28
_LEAST_LOGGED: Final = 4
"""The same ratio at least, where the log would be larger than the bytes above."""
_MOST_STEPS: Final = 2000
"""Steps between two commits, at most: what a catch-up may cost."""
_CHUNK: Final = 1 << 25
"""Bytes of params in an order that catches up."""
_MOST_WATCHED: Final = 1 << 20


def start(setting: Setting, params: Array) -> CompressedState:
    """Return the state before step 1."""
    replicas, spares = setting.options.get("replicas"), setting.options.get("spares") or 0
    if not replicas:
        assert setting.compressed is not None
        replicas = groups(setting.slots, spares, feedback=setting.compressed(1).feedback)
    return CompressedState(setting.method.start(params)[0], (), 0, (), replicas)


def machine(setting: Setting, state: CompressedState) -> Compressed:
    """Return the machine of ``strategy.name: sync`` with compression."""
    assert setting.compressed is not None
    return Compressed(setting, state, setting.compressed(state.replicas))


class _Turn(NamedTuple):
    """A round that is out, and the step after the last one that its replicas go through."""

    round: Round
    stop: int


class Compressed:
    """Synchronous parameter server that is sent codes.

    Parameters
    ----------
    setting : Setting
        With a method that asks for a gradient a step.
    state : CompressedState
    work : CompressedSum
        Of as many replicas as the state has.
    placement : Placement or None
        Where the orders of a round go; None: each to a slot of its own. Only without error feedback.
    mirrors : Mirrors or None
        The same with error feedback.
    """

    def __init__(
        self,
        setting: Setting,
        state: CompressedState,
        work: CompressedSum,
        placement: Placement | None = None,
        mirrors: Mirrors | None = None,
    ) -> None:
        self._placement = placement
        self._mirrors = mirrors
        self._plan = setting.plan
        self._penalty = setting.penalty
        self._weight = setting.total_weight
        self._rounds = setting.rounds
        self._work = work
        self._returning = replace(work, returned=True)
        self._decoder = Decoder(setting, work)
        self._state = state
        self._inner = copied(state.method) if work.feedback else state.method
        for number, codes in enumerate(state.log, state.committed):
            self._inner, _ = self._decoder.told(self._inner, number, codes)
        self._ask = self._decoder.method.ask(self._inner)
        self._logged = sum(map(code_bytes, (code for codes in state.log for code in codes)))
        self._path: Path | None = None
        self._held: dict[int, tuple[int, Array]] = dict(enumerate((state.committed, e) for e in state.residuals))
        self._known = set(range(state.replicas)) if self.steps == 0 or not work.feedback else set[int]()
        self._watched = dict.fromkeys(range(state.replicas), 0)  # steps with which the residual comes back
        self._misses = dict.fromkeys(range(state.replicas), 0)
        self._out: dict[int, _Turn] = {}
        self._parts: dict[int, CodedGradient] = {}
        self._seconds, self._rss, self._slots = 0.0, 0, 1

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self._state.committed + len(self._state.log)

    @property
    def params(self) -> Array:
        """The parameters to evaluate and to save: the current ones, or their average where the method keeps one."""
        return self._decoder.method.result_params(self._inner)

    @property
    def epochs(self) -> float:
        """Rows drawn over n."""
        return self._decoder.epochs(self.steps)

    def snapshot(self) -> CompressedState:
        """Return commit and log; nothing of it changes when the machine goes on."""
        return self._state

    def more(self, slots: int) -> list[Order]:
        """Order the next batch: in one round from those whose residual is in place, from the others each by itself."""
        if self._out or self._parts:
            return []
        self._slots = slots
        self._seconds, self._rss = 0.0, 0
        step, orders = self.steps, list[Order]()
        here = [r for r in range(self._state.replicas) if self._in_place(r) and not self._watched[r]]
        if here:
            units = np.array([(r, step, step, step + 1) for r in here], dtype=np.int64)
            orders += self._send((self._ask.params,), units, step + 1, returned=self._commits)
        for r in range(self._state.replicas):
            if r not in here:
                orders += self._catch_up(r)
        return orders

    def _in_place(self, replica: int) -> bool:
        """Return whether some worker is known to have a replica's residual."""
        mirrors = self._mirrors
        return replica in self._known and (mirrors is None or mirrors.knows(replica, self._slots))

    def _send(
        self, inputs: tuple[Array, ...], units: npt.NDArray[np.int64], stop: int, *, returned: bool
    ) -> list[Order]:
        p, work = self._state.replicas, self._returning if returned else self._work
        own = self._placement is not None or self._mirrors is not None
        homes = units[:, 0] if own else units[:, 0] * min(self._slots, p) // p
        made = self._rounds.new(work, inputs, units, homes, where=f"step {self.steps + 1}")
        self._out[made.ticket] = _Turn(made, stop)
        orders = made.orders()
        if self._mirrors is not None and len(inputs) > 1:
            return self._mirrors.whole(orders[0], self._slots)
        if self._mirrors is not None:
            now = {r: e for r, (step, e) in self._held.items() if step == self.steps}
            return self._mirrors.steps(orders, self._slots, now)
        return orders if self._placement is None else self._placement.first(orders, self._slots)

    def _catch_up(self, replica: int) -> list[Order]:
        """Order the next steps of a replica from the newest residual of it that is at hand, up to the current step."""
        last, now = self.steps + 1, self._ask.params
        first, residual = self._held.get(replica, (0, np.zeros_like(now)))
        stop = min(last, first + max(1, _CHUNK // now.nbytes))
        path = np.stack([*self._before(first, min(stop, last - 1)), *([now] if stop == last else [])])
        watched = self._watched[replica] > 0
        self._watched[replica] -= watched and stop == last
        units = np.array([(replica, first, first, stop)], dtype=np.int64)
        return self._send((path, residual), units, stop, returned=stop < last or watched or self._commits)

    def _before(self, first: int, stop: int) -> list[Array]:
        """Return the params of earlier steps."""
        if first == stop:
            return []
        found = None if self._path is None else self._path.params(self._state, first, stop)
        if found is None:
            self._path = Path(self._decoder, self._state)
            found = self._path.params(self._state, first, stop)
        assert found is not None, "a residual older than the commit"
        return found

    @property
    def _commits(self) -> bool:
        """Whether the driver commits after this step."""
        if not self._work.feedback:
            return True
        dense = self._ask.params.nbytes * self._state.replicas
        most = min(_LOGGED * dense, max(_MOST_LOGGED, _LEAST_LOGGED * dense))
        return self._logged >= most or len(self._state.log) + 1 >= _MOST_STEPS

    def handle(self, arrival: Arrival) -> list[Order]:
        """Accept an arrival; return the orders to repeat, or those that catch a replica up."""
        ticket = arrival.order.ticket
        if self._placement is not None:
            self._placement.landed(arrival.order)
        nothing = self._mirrors is not None and self._mirrors.landed(arrival)
        if nothing or ticket not in self._out:
            self._rounds.late(arrival)
            return self._spare()
        done, stop = self._out[ticket]
        orders = done.accept(arrival)
        if self._mirrors is not None:
            orders = self._mirrors.again(orders)
        if self._placement is not None:
            self._placement.again(orders)
            orders += self._spare()
        if done.done:
            del self._out[ticket]
            self._seconds += done.seconds_map
            self._rss = max(self._rss, done.rss)
            for part in done.value.parts:
                orders += self._take(part, stop)
        return orders

    def _spare(self) -> list[Order]:
        """Return further copies of what is still wanted."""
        if self._placement is None or not self._out:
            return []
        [(open_, _)] = self._out.values()
        return self._placement.more([order for order in self._placement.groups if open_.wants(order)])

    def _take(self, part: CodedGradient | Missing, stop: int) -> list[Order]:
        r = part.number
        if isinstance(part, Missing):
            self._known.discard(r)
            self._misses[r] += 1
            self._watched[r] = min(_MOST_WATCHED, 2 ** self._misses[r] - 2)
            return self._catch_up(r)
        if part.residual is not None:
            self._held[r] = stop, np.array(part.residual)  # what came through shared memory is given back
        if stop <= self.steps:
            return self._catch_up(r)
        ledger = self._rounds.ledger
        ledger.bytes_codes += code_bytes(part.code)
        ledger.bytes_uncoded += self._ask.params.nbytes
        self._known.add(r)
        self._parts[r] = part._replace(code=copied(part.code))
        return []

    def advance(self) -> StepRecord | None:
        """Update where all replicas have sent their gradients.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the state stays the last finite one.
        """
        if len(self._parts) < self._state.replicas:
            return None
        begin = time.perf_counter()
        step, plan, state = self.steps, self._plan, self._state
        parts, self._parts = [self._parts[r] for r in range(state.replicas)], {}
        commits, codes = self._commits, tuple(part.code for part in parts)
        epoch, position = divmod(step, plan.steps_per_epoch)
        rows = plan.batch_rows(position)
        if sum(part.rows for part in parts) != rows and plan.sampling != "bernoulli":
            raise RuntimeError(f"step {step + 1}: {sum(p.rows for p in parts)} rows arrived, the plan has {rows}")
        divisor = plan.divisor(position, self._weight)
        loss = sum(part.loss for part in parts) / divisor + self._penalty(self._ask.params)
        if not np.isfinite([loss, *(part.square for part in parts)]).all():
            raise DivergedError(
                f"the loss is {loss}", where=f"step {step + 1}", hint="a smaller schedule.learning_rate"
            )
        reduced = time.perf_counter()
        self._inner, answer = self._decoder.told(self._inner, step, codes)
        self._ask = self._decoder.method.ask(self._inner)
        if commits:
            self._commit(step + 1)
        else:
            self._state = state._replace(log=(*state.log, codes))
            self._logged += sum(map(code_bytes, codes))
        return StepRecord(
            step=step + 1,
            epoch=epoch,
            end_of_epoch=position + 1 == plan.steps_per_epoch,
            loss=float(loss),
            grad_norm=answer.grad_norm,
            learning_rate=answer.learning_rate,
            rows=rows,
            staleness=0,
            seconds_map=self._seconds,
            seconds_reduce=reduced - begin,
            seconds_update=time.perf_counter() - reduced,
            rss=self._rss,
        )

    def _commit(self, steps: int) -> None:
        """Begin a new log."""
        feedback, p = self._work.feedback, self._state.replicas
        residuals = tuple(self._held[r][1] for r in range(p)) if feedback else ()
        assert all(self._held[r][0] == steps for r in range(len(residuals))), "a residual did not come back"
        method = copied(self._inner) if feedback else self._inner
        self._state = CompressedState(method, residuals, steps, (), p)
        self._path, self._logged = None, 0
