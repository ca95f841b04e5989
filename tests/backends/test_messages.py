"""The short form of orders and answers: the codec's value, or none at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigopt.backends.messages import Done, Lost, Task, is_short, lengthened, shortened
from bigopt.core import codec
from bigopt.core.sums import LineSums, Sums
from bigopt.core.vectors import Narrow, SparseVector
from bigopt.work import Stats

UNITS = np.arange(12, dtype=np.int64).reshape(3, 4)
ORDER = Task(7, 1, 30, 2, 8, 5, UNITS, (4, 9), (np.arange(5.0), np.arange(3, dtype=np.float32)))
STATS = Stats(0.125, 10, 20, 30, 40)
ANSWER = Done(
    3,
    ((0, 3), (2, 1)),
    (Sums(np.arange(4.0), float("nan"), -0.0, 6), Sums(Narrow(np.ones(4, "f4"), "float64"), 1e-300, 2.5, 7)),
    STATS,
)


def parts_of(message: list[Any]) -> tuple[bytes, list[Any]]:
    header, *vectors = message
    return header, [np.frombuffer(bytearray(np.ascontiguousarray(v).tobytes()), np.uint8) for v in vectors]


def same(found: Any, wanted: Any) -> None:
    """Compare to the last bit, types included."""
    (tree, arrays), (wanted_tree, wanted_arrays) = codec.pack(found), codec.pack(wanted)
    assert repr(tree) == repr(wanted_tree)  # a NaN is not equal to itself
    assert [(a.dtype, a.shape, a.tobytes()) for a in arrays] == [(a.dtype, a.shape, a.tobytes()) for a in wanted_arrays]


@pytest.mark.parametrize("message", [
    ORDER, ORDER._replace(ahead=()), ORDER._replace(inputs=()), ANSWER, Done(1, (), (), Stats()),
    ANSWER._replace(levels=((0, 0),), values=(Sums(np.zeros(0, "f4"), np.float64(2.0), 1.0, np.int64(3)),)),
])  # fmt: skip
def test_a_message_in_short_is_the_message_that_the_codec_carries(message):
    header, parts = parts_of(shortened(message))
    assert is_short(header)
    found = lengthened(header, parts)
    assert type(found) is type(message)
    same(found, codec.loads(codec.dumps(message)))


@pytest.mark.parametrize("message", [
    Lost(1, "gone"),
    ORDER._replace(inputs=((np.zeros(3),),)),
    ORDER._replace(inputs=(np.zeros((2, 2)),)),
    ORDER._replace(inputs=(np.zeros(4)[::2],)),
    ORDER._replace(inputs=(np.zeros(3, ">f8"),)),
    ORDER._replace(inputs=(np.zeros(3, np.int64),)),
    ORDER._replace(units=np.zeros((129, 4), np.int64)),
    ORDER._replace(units=np.zeros((0, 4), np.int64)),
    Done(1, ((0, 0),), (LineSums(np.ones(2), np.ones(0), np.ones(0), 1.0, 1),), STATS),
    Done(1, ((0, 0),), (Sums(SparseVector(np.zeros(1, "i4"), np.ones((1, 1)), 5), 1.0, 1.0, 1),), STATS),
    Done(1, ((0, 0),), (Sums(Narrow(np.ones(2), "longdouble"), 1.0, 1.0, 1),), STATS),
])  # fmt: skip
def test_any_other_message_is_left_to_the_codec(message):
    assert shortened(message) is None
    assert not is_short(bytes(codec.dumps(message)[0]))


@pytest.mark.parametrize("message", [ORDER, ANSWER])
def test_a_damaged_message_is_refused_or_another_message_but_never_another_error(message):
    header, parts = parts_of(shortened(message))
    for bad in (header[:-1], header + bytes(8), header[:12], header[:1]):
        with pytest.raises(ValueError, match=r"not a bigopt message|bigopt|buffer"):
            lengthened(bad, parts)
    for some in (parts[:-1], [*parts, parts[0]], [part[:-1] for part in parts]):
        with pytest.raises(ValueError):
            lengthened(header, some)
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(header)
        at = int(rng.integers(1, len(bad)))
        bad[at] ^= 1 << int(rng.integers(8))
        try:
            found = lengthened(bytes(bad), parts)
        except ValueError:
            continue
        assert type(found) is type(message)
