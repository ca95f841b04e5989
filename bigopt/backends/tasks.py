"""Orders as ordinary tasks of an engine, where no worker can connect to the driver: the same answers, slower.

An order crosses the engine as bytes: the work (read again by a process only when it is another one), the inputs and the
units; the nodes and the worker's fingerprint come back the same way. What an engine's task needs to keep, decoded
blocks and works, lives in this module, in the process that runs it, for one session at a time.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import itertools
import os
from typing import Any, NamedTuple

import numpy as np

from bigopt.backends.base import check_fingerprint, fingerprint
from bigopt.backends.link import arrived
from bigopt.backends.messages import Install, Task
from bigopt.backends.resident import Resident, answer, checked, untravelled
from bigopt.core import codec
from bigopt.core.codec import wire
from bigopt.core.errors import BigoptError, ClusterError
from bigopt.data.cache import BlockCache
from bigopt.work import Arrival, Order, Work


class Setting(NamedTuple):
    """What all tasks of a session have in common.

    Parameters
    ----------
    session : str
        Unique: another session's blocks are given up.
    memory : int
        Bytes for decoded rows in a process.
    folder : str
        The driver's working directory: relative paths mean what they mean there, where it is; empty for no matter.
    """

    session: str
    memory: int
    folder: str


class Parcel(NamedTuple):
    """An order as an engine carries it."""

    modules: tuple[str, ...]
    install: bytes
    inputs: bytes
    task: bytes


@wire
class Reply(NamedTuple):
    """What came of an order, and who computed it."""

    fingerprint: dict[str, str]
    outcome: Any


def to_bytes(value: Any) -> bytes:
    """Return a value as one string of bytes."""
    parts = codec.dumps(value)
    sizes = np.array([len(parts), *(len(part) for part in parts)], dtype="<i8")
    return b"".join([sizes.tobytes(), *parts])


def from_bytes(data: bytes) -> Any:
    """Return the value again; its arrays are aligned and may be written to."""
    count = int(np.frombuffer(data, "<i8", 1)[0])
    stops = np.cumsum([8 * (count + 1), *np.frombuffer(data, "<i8", count, 8)]).tolist()
    header, *arrays = (data[a:b] for a, b in itertools.pairwise(stops))
    return codec.loads([header, *(np.array(np.frombuffer(array, np.uint8)) for array in arrays)])


class Packer:
    """Turns orders into parcels and replies into arrivals; one a session.

    Parameters
    ----------
    bits : {"strict", "any"}
        Whether workers that compute other bits are refused.
    """

    def __init__(self, bits: str) -> None:
        self.warnings: list[str] = []
        self._bits = bits
        self._mine = fingerprint()
        self._works: dict[int, tuple[Work, tuple[str, ...], bytes]] = {}
        self._last: tuple[Any, bytes] = ((), to_bytes(()))

    def pack(self, order: Order) -> Parcel:
        """Return an order as bytes.

        Raises
        ------
        ConfError
            For data in memory, which does not travel.
        """
        try:
            if id(order.work) not in self._works:
                install = Install(0, order.work, order.work.view.source.identity())
                self._works[id(order.work)] = order.work, codec.modules(order.work), to_bytes(install)
            if self._last[0] is not order.inputs:  # the orders of a round share them
                self._last = order.inputs, to_bytes(order.inputs)
        except TypeError as error:
            raise untravelled(error) from None
        _, modules, install_bytes = self._works[id(order.work)]
        task = to_bytes(Task(0, 0, order.ticket, order.slot, order.leaves, order.start, order.units, order.ahead, ()))
        return Parcel(modules, install_bytes, self._last[1], task)

    def arrival(self, order: Order, parcel: Parcel, data: bytes) -> Arrival:
        """Return what came of an order."""
        reply = from_bytes(data)
        try:
            warning = check_fingerprint(self._mine, reply.fingerprint, who="a worker", bits=self._bits)
        except ClusterError as error:
            return Arrival(order, error=error)
        if warning and warning not in self.warnings:
            self.warnings.append(warning)
        return arrived(order, reply.outcome, len(parcel.inputs) + len(parcel.task), len(data))


def run(setting: Setting, parcel: Parcel) -> bytes:
    """Compute an order: the body of an engine's task."""
    for name in parcel.modules:
        if name.split(".")[0] != "bigopt":
            raise ValueError(f"module {name} is none of bigopt's")
        importlib.import_module(name)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_blas_thread())
        if os.path.isdir(setting.folder) and os.getcwd() != setting.folder:
            stack.enter_context(contextlib.chdir(setting.folder))
        kept = _kept(setting)
        task = from_bytes(parcel.task)._replace(inputs=from_bytes(parcel.inputs))
        outcome = answer(kept.blocks, _installed(setting.session, parcel.install), task, kept.watched, kept.keeper)
        reply = to_bytes(Reply(_fingerprint(), outcome))
        _settle(setting)
        return reply


@functools.lru_cache(maxsize=1)
def _settle(setting: Setting) -> None:  # noqa: ARG001
    """Leave what the first order has loaded out of garbage collections.

    PySpark collects after every task. Looking at all objects of NumPy, a compiler and a store takes 50 ms.
    """
    gc.freeze()


@functools.lru_cache(maxsize=1)
def _fingerprint() -> dict[str, str]:
    return fingerprint()  # which libraries a process has loaded takes milliseconds to find out


def _one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    try:
        limited: contextlib.AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    except ImportError:  # a bare machine: see `bigopt.backends.base.one_blas_thread`
        return contextlib.nullcontext()
    return limited


@functools.lru_cache(maxsize=1)
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@functools.lru_cache(maxsize=1)
def _kept(setting: Setting) -> Resident:
    return Resident(BlockCache(setting.memory))


@functools.lru_cache(maxsize=16)
def _installed(session: str, install: bytes) -> Work | BigoptError:  # noqa: ARG001
    return checked(from_bytes(install))
