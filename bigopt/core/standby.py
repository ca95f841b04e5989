"""Threads that stand by: they take compiled calls at once, and never want the interpreter's lock.

To wake a thread that sleeps takes a tenth of a millisecond or more, and as long again until it has the lock of the
interpreter, if whoever woke it goes on. That is too long where it happens at each step of a few milliseconds. So a
`Standby` keeps its thread in a compiled loop (`bigopt.core.fused_standby`): it waits actively for `PATIENCE` and sleeps
only then. What it is given are calls of kernels with all their arguments, in a list; the rest is done by who posts.

Only for machines with a core for each thread: who waits actively takes it from others.
"""

from __future__ import annotations

import ctypes
import platform
import queue
import threading
import time
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import compiled, fused_standby
from bigopt.core.fused_standby import FAILED, POSTED, STATE, WORDS

PATIENCE: Final = 3_000_000
"""Nanoseconds for which a thread waits actively for the next calls: longer than the driver of short steps takes between
two rounds."""

WATCHED: Final = 500_000
"""Nanoseconds for which calls are waited for actively; from then on they are asked for now and then."""

CROWDED: Final = 50_000
"""Both of them where others want the cores meanwhile."""

_BOX: Final = "int64[::1]"
_PROGRAM: Final = 9
_CALLS: Final = 9
_PATIENCE: Final = 11
"""Where, behind a box, the numbers of posting and of waiting are among the words of a call."""


class Call:
    """A kernel and all that it is called with, made later and perhaps again.

    Parameters
    ----------
    kernel : Kernel
    values : tuple
        Arrays and numbers; the arrays live as long as this.

    Attributes
    ----------
    words : ndarray of int64
        See `Kernel.bound`.
    """

    def __init__(self, kernel: compiled.Kernel, values: tuple[Any, ...]) -> None:
        self.kernel, self.values = kernel, values
        self.words = kernel.bound(*values)

    def renew(self, values: tuple[Any, ...]) -> None:
        """Take other arrays of the same kinds and, but for their first axes, shapes."""
        for k, (old, new) in enumerate(zip(self.values, values, strict=True)):
            if new is not old:
                self.kernel.rebind(self.words, k, new)
        self.values = values

    def make(self) -> None:
        """Make it here and now."""
        self.kernel.run(self.words)


def words(signature: tuple[str, ...]) -> int:
    """Return the number of arguments of a kernel's machine code."""
    ranks = (max(0, kind.count(":") - 1) for kind in signature)
    return 2 + sum(5 + 2 * rank if rank else 1 for rank in ranks)


class Standby:
    """A thread that stands by; it is started by the first calls.

    Parameters
    ----------
    name : str
    counts : tuple of int
        Numbers of arguments that calls may have (`words`).
    """

    def __init__(self, name: str, counts: tuple[int, ...]) -> None:
        loops, self._box, self._answer = _loops(counts), np.zeros(WORDS, dtype=np.int64), np.zeros(1, dtype=np.int64)
        self._posting = Call(loops.post, (self._box, 0, 0, self._answer))
        self._waiting = Call(loops.wait, (self._box, 0, _clock(), 0, self._answer))
        self._held: list[Any] = []  # what the thread may be looking at
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        given = loops.stand, self._box, self._wake, self._held
        self._thread = threading.Thread(target=_serve, args=given, name=name, daemon=True)
        self._started, self._watched = False, WATCHED

    def post(self, calls: list[Call], *, crowded: bool = False) -> None:
        """Have calls made, one after the other, when those that were posted before are.

        Parameters
        ----------
        calls : list of Call
        crowded : bool
            Whether others want the cores: then nobody waits actively for long, here and in `wait`.
        """
        self.settle()
        self._box[fused_standby.PATIENCE] = CROWDED if crowded else PATIENCE
        self._watched = CROWDED if crowded else WATCHED
        program = np.array([n for c in calls for n in (c.kernel.address, compiled.pointer(c.words), len(c.words) - 2)])
        self._held[:] = [*calls, program]
        self._post(compiled.pointer(program), len(calls))

    def _post(self, program: int, calls: int) -> None:
        if not self._started:
            self._started = True
            self._thread.start()
        self._posting.words[_PROGRAM], self._posting.words[_PROGRAM + 1] = program, calls
        self._posting.make()
        if not self._answer[0]:
            self._wake.put(calls >= 0)

    def wait(self, calls: int) -> None:
        """Return when the first so many calls are made; 0: when all are.

        Raises
        ------
        RuntimeError
            Where a kernel failed.
        """
        begin, words = 0.0, self._waiting.words
        words[_CALLS], words[_PATIENCE] = calls, self._watched
        while True:
            self._waiting.make()
            if self._answer[0]:
                break
            begin, words[_PATIENCE] = begin or time.monotonic(), 0
            time.sleep(min(2e-3, max(5e-5, (time.monotonic() - begin) / 8)))
        if self._box[FAILED]:
            raise RuntimeError("a compiled kernel failed")

    def settle(self) -> None:
        """Wait until nothing is under way."""
        if self._box[STATE] == POSTED:
            self.wait(0)

    def close(self) -> None:
        """End the thread when it has made its calls."""
        if self._started:
            self.settle()
            self._post(0, -1)
            self._wake.put(False)
            self._thread.join()
            self._started = False


def _serve(stand: compiled.Kernel, box: npt.NDArray[np.int64], wake: Any, held: list[Any]) -> None:
    clock = _clock()
    while wake.get():
        stand(box, clock)
    del held


class _Loops(NamedTuple):
    stand: compiled.Kernel
    post: compiled.Kernel
    wait: compiled.Kernel


@cache
def _loops(counts: tuple[int, ...]) -> _Loops:
    pauses = platform.machine().lower() in ("x86_64", "amd64")
    return _Loops(
        compiled.kernel(fused_standby.make_stand, (counts, pauses), (_BOX, "intp")),
        compiled.kernel(fused_standby.make_post, (), (_BOX, "intp", "intp", _BOX)),
        compiled.kernel(fused_standby.make_wait, (pauses,), (_BOX, "intp", "intp", "intp", _BOX)),
    )


@cache
def _clock() -> int:
    """Return the address of ``clock_gettime``."""
    return ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value or 0
