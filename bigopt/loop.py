"""The loop of every strategy on every backend.

::

    submit(machine.more(slots))
    while not finished:
        submit(machine.handle(arrival))
        while (record := machine.advance()) is not None:
            ...                                       # between two steps: limits, checks, checkpoints, signals
        submit(machine.more(slots))

It knows no strategy and no engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bigopt.backends.base import Session
from bigopt.backends.ledger import Rounds
from bigopt.callbacks import Signals
from bigopt.checkpoint import Cadence
from bigopt.keeping import Keeper, chained
from bigopt.recording import Recorder
from bigopt.rewinding import Anchor
from bigopt.stopping import Checks, Stopper
from bigopt.strategies.base import Afar, Machine, StepRecord
from bigopt.work import Order

Array = npt.NDArray[Any]
OnStep = Callable[[int, float, Array], None]


class Loop:
    """Runs a machine on a session until something ends the run.

    Parameters
    ----------
    session : Session
    machine : Machine
    rounds : Rounds
        Those of the machine: arrivals that came during a check are kept there.
    recorder : Recorder
    stopper : Stopper
    checks : Checks
    keeper : Keeper
        Saves checkpoints.
    cadence : Cadence
        Says when.
    signals : Signals
    on_step : callable or None
        ``on_step(step, epochs, params)`` at the start and after every step.
    audit : str or None
        Chained hash of the states so far; None where no audit is kept.
    anchor : Anchor or None
        Remembers what to go back to; None where a divergence ends the run.
    """

    def __init__(
        self,
        session: Session,
        machine: Machine,
        *,
        rounds: Rounds,
        recorder: Recorder,
        stopper: Stopper,
        checks: Checks,
        keeper: Keeper,
        cadence: Cadence,
        signals: Signals,
        on_step: OnStep | None,
        audit: str | None,
        anchor: Anchor | None,
    ) -> None:
        self.session = session
        self.machine = machine
        self.rounds = rounds
        self.recorder = recorder
        self.stopper = stopper
        self.checks = checks
        self.keeper = keeper
        self.cadence = cadence
        self.signals = signals
        self.on_step = on_step
        self.audit = audit
        self.anchor = anchor
        self._brings = isinstance(machine, Afar)  # to ask a protocol takes longer than to write the record of a step

    def save(self, *, back: bool = False) -> Path:
        """Write a checkpoint of the state between two steps; `back`: later ones are dropped."""
        return self.keeper.save(
            self.machine,
            back=back,
            seconds=self.stopper.seconds,
            best=self.stopper.best,
            stale=self.stopper.stale,
            best_params=self.checks.best_params,
            epoch_mean=self.recorder.epoch_mean,
            audit=self.audit or "",
            rewind=None if self.anchor is None else self.anchor.rewind,
        )

    def go_back(self, machine: Machine) -> None:
        """Go on with a machine that stands where the anchor's state is."""
        self.machine = machine
        self.recorder.epoch_mean = (0.0, 0)
        self.stopper.stale = 0
        self.save(back=True)

    def run(self) -> str:
        """Make steps until a limit, a target or a signal; return which limit or target it was.

        Returns
        -------
        str
            Empty where a signal ended it.

        Raises
        ------
        DivergedError
            Where loss or gradient is not finite; the machine is as it was before that step.
        """
        machine, session = self.machine, self.session
        self.recorder.idleness.begin()
        why = self.stopper.limit(machine.steps)
        self._tell()
        if not why:
            self._submit(machine.more(session.slots))
        while not why:
            arrival = self.rounds.wait(session)
            self.recorder.idleness.arrived(arrival, session.slots)
            self._submit(machine.handle(arrival))
            while not why and (record := machine.advance()) is not None:
                why = self._after_step(record) or self.stopper.limit(record.step)
                if self.signals.received:
                    return ""
                if not why and self.cadence.due(record.step, machine.epochs):
                    self.save()
            if not why:
                self._submit(machine.more(session.slots))
        return why

    def _submit(self, orders: list[Order]) -> None:
        for order in orders:
            self.session.submit(order)

    def params(self) -> Array:
        """Return the current parameters, brought here where they lie on workers."""
        machine, session = self.machine, self.session
        while self._brings and isinstance(machine, Afar) and not machine.here:
            self._submit(machine.bring(session.slots))
            self._submit(machine.handle(self.rounds.wait(session)))
        return machine.params

    def _tell(self) -> None:
        if self.on_step is not None:
            self.on_step(self.machine.steps, self.machine.epochs, self.params())

    def _after_step(self, record: StepRecord) -> str:
        """Record a step; at the end of an epoch look at validation and targets. Return why to end, or nothing."""
        self._tell()
        if self.audit is not None:
            self.audit = chained(self.audit, self.machine.snapshot())
        line = self.recorder.line(record, self.machine, seconds=self.stopper.seconds, audit=self.audit or "")
        why = ""
        if record.end_of_epoch:
            mean = self.recorder.end_of_epoch()
            if self.anchor is not None:
                self.anchor.end_of_epoch(mean, self.machine.snapshot())
            begin = time.perf_counter()
            why, found = self.checks.end_of_epoch(mean, self.params)
            self.recorder.idleness.pause(time.perf_counter() - begin)
            if found:
                line["validation"] = found
        self.recorder.show(line, end_of_epoch=record.end_of_epoch)
        return why
