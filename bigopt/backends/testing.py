"""Doubles for tests of backends: work that is slow, dies or is wrong on purpose, and a session that misbehaves.

They live in the package, not in the tests, because worker processes must be able to import what they are sent.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigopt.backends.base import Session
from bigopt.core import rng
from bigopt.core.codec import wire
from bigopt.core.errors import DataError
from bigopt.core.sums import Sums
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.synthetic import SyntheticSource
from bigopt.data.view import DataView
from bigopt.work import Arrival, Order


@wire
@dataclass(frozen=True)
class Probe:
    """Sums of a partition's rows times the input vector, rounded differently in every order of addition.

    Parameters
    ----------
    view : DataView
    seconds : float
        Time that each unit takes more.
    log : str
        Folder in which each started unit leaves a file ``partition-pid-number``; empty for none.
    refuse : int
        Partition whose work raises `DataError`; -1 for none.
    defect : int
        Partition whose work raises `ZeroDivisionError`: a defect.
    kill : int
        Partition whose work kills its process; with `log`, only the first time.
    """

    view: DataView
    seconds: float = 0.0
    log: str = ""
    refuse: int = -1
    defect: int = -1
    kill: int = -1

    def prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Sums:
        """Return the unit's sums: ``grad = sum_i |x_i| params``, loss its sum."""
        index = int(unit[0])
        again = self._note(index)
        if index == self.refuse:
            raise DataError("refused on purpose", where=f"partition {index}", hint="a test")
        if index == self.defect:
            raise ZeroDivisionError("broken on purpose")
        if index == self.kill and not again:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        with meter.block(self.view, index) as entry:
            rows = len(entry.block.X)
            scale = float(np.abs(entry.block.X.astype(np.float64)).sum())
        meter.rows += rows
        grad = inputs[0] * scale
        return Sums(grad, scale, float(rows), rows)

    def _note(self, index: int) -> bool:
        """Leave a file; return whether this partition was started before."""
        if not self.log:
            return False
        again = any(name.split("-")[0] == str(index) for name in os.listdir(self.log))
        number = next(n for n in itertools.count() if not os.path.exists(f"{self.log}/{index}-{os.getpid()}-{n}"))
        with open(f"{self.log}/{index}-{os.getpid()}-{number}", "x", encoding="ascii"):
            return again


@wire
@dataclass(frozen=True)
class Slowed:
    """Work that one worker does several times slower: after each unit it sleeps a multiple of the time it took.

    Parameters
    ----------
    work : Work
    folder : str
        Where the first worker to come leaves its name, ``pid-thread``: it is the slow one.
    factor : float
        Seconds asleep for each second of work.
    least : float
        Seconds that a unit takes at least, on every worker.
    """

    work: Any
    folder: str
    factor: float
    least: float = 0.0

    @property
    def view(self) -> DataView:
        """That of the work."""
        view: DataView = self.work.view
        return view

    def prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """As the work."""
        ready: tuple[Any, ...] = self.work.prepare(inputs)
        return ready

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Any:
        """Return the work's value, late."""
        begin = time.perf_counter()
        value = self.work(inputs, unit, meter)
        time.sleep(max(0.0, self.least - (time.perf_counter() - begin)))
        if self._is_me():
            time.sleep(self.factor * (time.perf_counter() - begin))
        return value

    def _is_me(self) -> bool:
        me, path = f"{os.getpid()}-{threading.get_ident()}", os.path.join(self.folder, "slow")
        try:
            with open(path, "x", encoding="ascii") as handle:
                handle.write(me)
        except FileExistsError:
            with open(path, encoding="ascii") as handle:
                return handle.read() == me
        return True


@wire
@dataclass(frozen=True)
class Elsewhere(SyntheticSource):
    """Rows that are another dataset in every process."""

    def identity(self) -> str:
        """Return the process id, 64 digits long."""
        return f"{os.getpid():064x}"


class Unreliable:
    """A session around another that loses, repeats, holds back and shuffles its arrivals, by a seeded stream.

    Parameters
    ----------
    session : Session
    seed : int
    lose, repeat, late : float
        Chances that an arrival comes as lost, comes twice, or comes after the next one.
    """

    def __init__(
        self, session: Session, seed: int, *, lose: float = 0.0, repeat: float = 0.0, late: float = 0.0
    ) -> None:
        self._session = session
        self._words = rng.stream(seed, "unreliable")
        self._chances = lose, repeat, late
        self._ready: deque[Arrival] = deque()
        self._held: deque[Arrival] = deque()
        self._open = 0
        self.lost = self.repeated = 0

    @property
    def slots(self) -> int:
        """Those of the other session."""
        return self._session.slots

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the other session."""
        return self._session.notes

    def submit(self, order: Order) -> None:
        """Pass an order on."""
        self._open += 1
        self._session.submit(order)

    def wait(self) -> Arrival:
        """Return an arrival, as it is or spoilt."""
        while not self._ready:
            if self._open == 0:
                self._ready.append(self._held.popleft())
                continue
            arrival = self._session.wait()
            self._open -= 1
            lose, repeat, late = rng.uniform(self._words, 3) < self._chances
            if lose and not arrival.lost:
                self.lost += 1
                arrival = Arrival(arrival.order, lost="lost on purpose")
            (self._held if late else self._ready).append(arrival)
            if repeat:
                self.repeated += 1
                self._held.append(arrival)
            if self._held and not late:
                self._ready.append(self._held.popleft())
        return self._ready.popleft()

    def report(self, text: str, record: dict[str, Any]) -> None:
        """Pass a record on."""
        self._session.report(text, record)

    def close(self) -> None:
        """Close the other session."""
        self._session.close()
