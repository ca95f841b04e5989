"""What an asynchronous driver knows of residuals: how many gradients each has seen, where it may be, an old copy of it.

A residual belongs to a *slot* (async, ssp) or to a replica (downpour), which sends one gradient at a time; it stays on
the worker (`bigopt.data.kept`). From time to time an order asks for it, so that a checkpoint has one to hold. Where a
worker does not have the residual that its order goes on from, the order goes out again with that copy: other gradients
were applied meanwhile, so this promises no bits, and needs no log. A run that loses no worker has the same bits
whenever it is repeated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Ledger
from bigopt.core.codec import wire
from bigopt.core.compress import code_bytes
from bigopt.data.kept import Missing

Array = npt.NDArray[Any]

_ASKED: Final = 50
"""Bytes of codes, over those of a residual, after which it is asked for."""


@wire
class Residual(NamedTuple):
    """A residual as the driver knows it.

    Parameters
    ----------
    version : int
        Gradients it has seen.
    vector : ndarray, shape (p,), or None
        The last one that came back; None where none has: zero.
    """

    version: int
    vector: Array | None


class Residuals:
    """The residuals of a run's slots or replicas.

    Parameters
    ----------
    work : CompressedSum or CompressedTurn
        Computes a code, and is able to return the residual.
    known : tuple of Residual
        Of a checkpoint; further ones begin at zero.
    ledger : Ledger
        Counts bytes.
    """

    def __init__(self, work: Any, known: tuple[Residual, ...], ledger: Ledger) -> None:
        self._work = work
        self._returning = replace(work, returned=True)
        self._state = list(known)
        self._there = {number for number, residual in enumerate(known) if residual.version == 0}
        self._sent: dict[int, int] = {}
        self._ledger = ledger

    @property
    def state(self) -> tuple[Residual, ...]:
        """What a checkpoint holds."""
        return tuple(self._state)

    def order(self, number: int, params: Array, first: int, last: int) -> tuple[Any, tuple[Array, ...], Any]:
        """Return work, the inputs after those that every order has, and the unit of a gradient."""
        while len(self._state) <= number:
            self._there.add(len(self._state))
            self._state.append(Residual(0, None))
        version, vector = self._state[number]
        asked = self._work.feedback and self._sent.get(number, 0) >= _ASKED * params.nbytes
        more: tuple[Array, ...] = ()
        if self._work.feedback and number not in self._there:
            more = (np.zeros_like(params) if vector is None else vector,)
        unit = np.array([(number, version, first, last)], dtype=np.int64)
        return self._returning if asked else self._work, more, unit

    def take(self, answer: Any, dense: int) -> bool:
        """Take an answer, which stands for `dense` bytes of gradient; False where it must be ordered again."""
        number = int(answer.number)
        if isinstance(answer, Missing):
            self._there.discard(number)
            return False
        self._there.add(number)
        version, vector = self._state[number]
        self._sent[number] = self._sent.get(number, 0) + code_bytes(answer.code)
        if answer.residual is not None:
            vector, self._sent[number] = np.array(answer.residual), 0
        self._state[number] = Residual(version + 1, vector)
        self._ledger.bytes_codes += code_bytes(answer.code)
        self._ledger.bytes_uncoded += dense
        return True

    def decoded(self, answer: Any) -> Array:
        """Return the gradient of the last answer of a slot or replica, shape (p,)."""
        number = int(answer.number)
        with np.errstate(over="ignore", invalid="ignore"):
            gradient: Array = self._work.compressor.decode(answer.code, number, self._state[number].version - 1)
        return gradient
