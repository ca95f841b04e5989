"""What the driver and a resident worker say to each other, and the short form of what they say most often.

Any value crosses as the codec has it (`bigopt.core.codec`). An order whose inputs are vectors and an answer of gradient
sums cross in every round, and a round may be shorter than a few walks through a tree of values: these two are rows of
numbers, with the vectors beside them.

::

    order     1, serial, work, ticket, slot, leaves, start, counts of | units | partitions ahead | forms of inputs
    answer    2, serial, count of nodes, bytes read, rows, rss, pid, seconds | level, k, rows, form, loss, weight
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.sums import Sums
from bigopt.core.tree import Node
from bigopt.core.vectors import Narrow
from bigopt.work import Stats


@wire
class Hello(NamedTuple):
    """First message of a worker."""

    pid: int
    host: str
    name: str
    fingerprint: dict[str, str]


@wire
class Prepare(NamedTuple):
    """Modules whose types come next."""

    modules: tuple[str, ...]


@wire
class Install(NamedTuple):
    """A work to keep under a number, and the identity of the dataset that the driver reads."""

    number: int
    work: Any
    identity: str


@wire
class Sit(NamedTuple):
    """The core on which a worker asks to be woken (`bigopt.backends.seats`)."""

    core: int


@wire
class Task(NamedTuple):
    """An order on the wire."""

    serial: int
    work: int
    ticket: int
    slot: int
    leaves: int
    start: int
    units: Any
    ahead: tuple[int, ...]
    inputs: tuple[Any, ...]


@wire
class Done(NamedTuple):
    """The nodes of an order."""

    serial: int
    levels: tuple[Node, ...]
    values: tuple[Any, ...]
    stats: Stats


@wire
class Lost(NamedTuple):
    """The end of an order that has to be given again, with its inputs."""

    serial: int
    reason: str


@wire
class Failed(NamedTuple):
    """An error that no repetition will cure."""

    serial: int
    kind: str
    message: str
    where: str
    hint: str


@wire
class Stop(NamedTuple):
    """The clean end."""


_ORDER: Final = struct.Struct("<10q")
_ANSWER: Final = struct.Struct("<7qd")
_NODE: Final = struct.Struct("<4qdd")
_IS_ORDER: Final = 1
_IS_ANSWER: Final = 2
_UNIT: Final = 32
"""Bytes of a unit: four integers."""
_MOST: Final = 4096
"""Bytes of units of an order that is short."""

_DTYPES: Final = (np.dtype("<f4"), np.dtype("<f8"))
_FORMS: Final = (*((dtype, None) for dtype in _DTYPES), (_DTYPES[0], "float64"))
"""What a vector may be: an array of these numbers, or narrow ones for others."""


def shortened(value: Any) -> list[Any] | None:
    """Return the short form of a message, a header and its arrays as `codec.dumps` has them; None for most."""
    if type(value) is Task:
        return _order(value)
    if type(value) is Done:
        return _answer(value)
    return None


def _order(task: Task) -> list[Any] | None:
    units, forms = task.units, [_form(array) for array in task.inputs]
    if -1 in forms or type(units) is not np.ndarray or units.dtype != np.int64 or not 0 < units.nbytes <= _MOST:
        return None
    table = units.tobytes()
    head = _ORDER.pack(_IS_ORDER, *task[:6], len(table) // _UNIT, len(task.ahead), len(forms))
    return [head + table + struct.pack(f"<{len(task.ahead) + len(forms)}q", *task.ahead, *forms), *task.inputs]


def _answer(done: Done) -> list[Any] | None:
    stats, parts, arrays = done.stats, [b""], []
    for (level, k), value in zip(done.levels, done.values, strict=True):
        form = _form(value.grad) if type(value) is Sums else -1
        if form < 0:
            return None
        arrays.append(value.grad.values if type(value.grad) is Narrow else value.grad)
        parts.append(_NODE.pack(level, k, value.rows, form, value.loss, value.weight))
    counts = stats.bytes_read, stats.rows, stats.rss, stats.pid, stats.seconds
    parts[0] = _ANSWER.pack(_IS_ANSWER, done.serial, len(arrays), *counts)
    return [b"".join(parts), *arrays]


def _form(vector: Any) -> int:
    """Return which of `_FORMS` a vector has; -1 for none of them."""
    name = None
    if type(vector) is Narrow:
        vector, name = vector
    if type(vector) is not np.ndarray or vector.ndim != 1 or not vector.flags.c_contiguous:
        return -1
    form = vector.dtype, name
    return _FORMS.index(form) if form in _FORMS else -1


def is_short(header: bytes) -> bool:
    """Return whether a header is of the short form: the codec's are JSON."""
    return header[:1] in (b"\1", b"\2")


def lengthened(header: bytes, parts: Sequence[npt.NDArray[np.uint8]]) -> Task | Done:
    """Read the short form; arrays are views of the parts.

    Raises
    ------
    ValueError
        For a header that `shortened` cannot have made, or parts that do not belong to it.
    """
    try:
        return _read_order(header, parts) if header[0] == _IS_ORDER else _read_answer(header, parts)
    except (struct.error, LookupError, TypeError) as error:
        raise ValueError(f"not a bigopt message: {type(error).__name__}: {error}") from error


def _read_order(header: bytes, parts: Sequence[npt.NDArray[np.uint8]]) -> Task:
    _, serial, work, ticket, slot, leaves, start, count, coming, inputs = _ORDER.unpack_from(header)
    at = _ORDER.size + _UNIT * count
    if min(count, coming, inputs) < 0 or len(header) != at + 8 * (coming + inputs) or len(parts) != inputs:
        raise ValueError("not a bigopt message: an order of another length")
    units = np.frombuffer(header, np.int64, 4 * count, _ORDER.size).reshape(count, 4)
    rest = struct.unpack_from(f"<{coming + inputs}q", header, at)
    vectors = tuple(_vector(part, form) for part, form in zip(parts, rest[coming:], strict=True))
    return Task(serial, work, ticket, slot, leaves, start, units, rest[:coming], vectors)


def _read_answer(header: bytes, parts: Sequence[npt.NDArray[np.uint8]]) -> Done:
    _, serial, count, bytes_read, rows, rss, pid, seconds = _ANSWER.unpack_from(header)
    if len(header) != _ANSWER.size + _NODE.size * count or len(parts) != count:
        raise ValueError("not a bigopt message: an answer of another length")
    levels, values = [], []
    for part, (level, k, n, form, loss, weight) in zip(parts, _NODE.iter_unpack(header[_ANSWER.size :]), strict=True):
        levels.append((level, k))
        values.append(Sums(_vector(part, form), loss, weight, n))
    return Done(serial, tuple(levels), tuple(values), Stats(seconds, bytes_read, rows, rss, pid))


def _vector(part: npt.NDArray[np.uint8], form: int) -> Any:
    dtype, name = _FORMS[form] if form >= 0 else _FORMS[len(_FORMS)]
    vector = part.view(dtype)
    return vector if name is None else Narrow(vector, name)
