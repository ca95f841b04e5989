"""The flat vector and its named views."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigopt.core.codec import dumps, loads
from bigopt.core.layout import Block, Layout

LAYOUT = Layout(
    (
        Block("layer1.weight", (3, 2), penalized=True, fan_in=3, fan_out=2),
        Block("layer1.bias", (2,), penalized=False),
        Block("scale", (), penalized=True),
        Block("nothing", (0, 4), penalized=True),
    )
)

layouts = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=5).map(
    lambda shapes: Layout(tuple(Block(f"b{i}", s, penalized=i % 2 == 0) for i, s in enumerate(shapes)))
)


def test_offsets_follow_the_order_of_the_blocks() -> None:
    assert LAYOUT.offsets == (0, 6, 8, 9, 9)
    assert LAYOUT.size == 9
    assert [(b.name, s) for b, s in LAYOUT.slices()] == [
        ("layer1.weight", slice(0, 6)),
        ("layer1.bias", slice(6, 8)),
        ("scale", slice(8, 9)),
        ("nothing", slice(9, 9)),
    ]


def test_views_share_memory_and_read_in_c_order() -> None:
    flat = np.arange(9.0)
    views = LAYOUT.views(flat)
    assert views["layer1.weight"].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert views["scale"].shape == ()
    views["layer1.bias"][1] = -1.0
    assert flat[7] == -1.0


def test_only_penalized_blocks_are_in_the_mask() -> None:
    assert LAYOUT.penalized.tolist() == [True] * 6 + [False] * 2 + [True]


@given(layouts)
def test_flatten_undoes_views(layout: Layout) -> None:
    flat = np.random.default_rng(0).standard_normal(layout.size)
    out = np.full(layout.size, np.nan)
    assert layout.flatten(layout.views(flat), out) is out
    assert out.tobytes() == flat.tobytes()
    assert layout.penalized.shape == (layout.size,)


@given(layouts)
def test_a_layout_travels(layout: Layout) -> None:
    assert loads([bytes(p) for p in dumps(layout)]) == layout


def test_two_blocks_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        Layout((Block("w", (1,), penalized=True), Block("w", (2,), penalized=True)))
