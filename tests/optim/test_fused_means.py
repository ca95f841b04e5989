"""The compiled norm has the bits of NumPy's, and an update that divides as it goes those of one given the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigopt.core import compiled
from bigopt.core.buffers import Buffers, Casts
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums, merging
from bigopt.core.vectors import Narrow, Unadded
from bigopt.optim.build import build_method, build_transform
from bigopt.optim.fused import CACHED, Fused, fused
from bigopt.optim.fused_means import pairs
from bigopt.optim.method import Step
from bigopt.optim.transform import TILE, norm

pytestmark = pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())

SIZES = [1, 7, 8, 9, 127, 128, 129, 136, 137, 255, 1000, TILE - 1, TILE, TILE + 1, 2 * TILE + 1234, CACHED + 77]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("divisor", [1.0, 512.0, 0.125, 500.0, 3.7])
def test_the_norm_of_a_mean_has_numpys_bits(divisor: float, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for size in SIZES:
        total = (rng.normal(size=size) * 10.0 ** rng.integers(-9, 9, size=size)).astype(dtype)
        mean = total / divisor
        found = []
        for threads in (1, 3):
            given = total.copy()
            quick = Fused(build_transform("adam", {}), threads)
            same, length, left = quick.measured(given, divisor)
            assert same is given
            assert length == norm(mean), (size, threads)
            assert (given / left).tobytes() == mean.tobytes()
            found.append(given.tobytes())
        assert found[0] == found[1]


RULES = [
    ("sgd", {}, 64.0),
    ("momentum", {}, 100.0),
    ("adam", {}, 64.0),
    ("adam", {"clip_norm": 0.1, "clip_value": 1e-2}, 100.0),
    ("adamw", {"clip_norm": 0.1}, 100.0),
    ("amsgrad", {}, 64.0),
]


class Kept(Casts):
    """Says what was left in it."""

    def keep(self, vector: Any, made: Any) -> None:
        self.vector, self.made = vector, made
        super().keep(vector, made)


@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
@pytest.mark.parametrize(("name", "keys", "divisor"), RULES)
def test_two_narrow_gradients_are_added_on_the_way(
    name: str, keys: dict[str, float], divisor: float, kernels: str
) -> None:
    for size in (5, 1000, TILE + 300):
        layout = Layout((Block("a", (size - 1,), True), Block("b", (1,), False)))
        method = build_method(name, layout, keys=keys, kernels=kernels)
        ends = []
        for lazy, casts in ((False, None), (True, None), (True, Kept())):
            state, _ = method.start(np.ones(size))
            buffers, rng = Buffers(), np.random.default_rng(6)
            buffers.casts = casts
            for k in range(3):
                left, right = (
                    Sums(Narrow(rng.normal(size=size).astype(np.float32), "float64"), 0.0, divisor / 2, 1) for _ in "ab"
                )
                both = merging(buffers, lazy=lazy)(left, right)
                assert isinstance(both.grad, Unadded) == lazy
                state, step = method.tell(state, both, divisor, float(k))
            assert isinstance(step, Step)
            ends.append((step.params.tobytes(), step.grad_norm))
            if casts is not None and kernels == "compiled" and "clip_value" not in keys:  # what the next Map wants
                assert casts.vector is step.params
                assert casts.made.tobytes() == step.params.astype(np.float32).tobytes()
                assert casts.cast(step.params, "float32") is casts.made
        assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("scale", [1e-170, 1e170, 0.0])
def test_squares_that_overflow_or_underflow_are_scaled(scale: float) -> None:
    quick, x = Fused(build_transform("adam", {})), np.random.default_rng(2).normal(size=300) * scale
    assert quick.measured(x.copy(), 2.0)[1] == norm(x / 2.0)
    assert quick.measured(x.copy(), 3.0)[1] == norm(x / 3.0)
    for bad in (np.nan, np.inf):
        x[200] = bad
        assert not np.isfinite(quick.measured(x.copy(), 2.0)[1])


def test_the_pieces_of_a_tile_are_added_in_pairs() -> None:
    order = pairs(300)
    assert order[0] == 4
    assert order[1:5].tolist() == [72, 144, 216, 300]
    assert order[5:].tolist() == [0, 1, 2, 3, 0, 2]
    assert pairs(5).tolist() == [1, 5]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("divisor", [1.0, 64.0, 100.0])
@pytest.mark.parametrize("keys", [{}, {"clip_norm": 0.1}, {"clip_norm": 0.5, "clip_value": 1e-2}, {"clip_value": 0.1}])
def test_steps_from_sums_have_the_bits_of_steps_from_means(
    keys: dict[str, float], divisor: float, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigopt.optim.fused.CACHED", 1000)  # both ways to divide
    layout = Layout((Block("a", (30, 50), True), Block("b", (47,), False)))
    for size in (layout, Layout((Block("a", (200,), True),))):
        rng = np.random.default_rng(4)
        start = rng.normal(size=size.size).astype(dtype)
        ends = []
        for kernels in ("numpy", "compiled"):
            method = build_method("adamw", size, keys=keys, kernels=kernels)
            state, _ = method.start(start)
            rng = np.random.default_rng(5)
            for k in range(6):
                total = rng.normal(size=size.size).astype(dtype)
                total.flags.writeable = k != 3  # a sum that came from a message
                state, step = method.tell(state, Sums(total, 0.0, divisor, 1), divisor, float(k))
            assert isinstance(step, Step)
            ends.append((step.params.tobytes(), step.grad_norm))
        assert ends[0] == ends[1]


def test_a_penalty_comes_before_the_norm() -> None:
    layout = Layout((Block("a", (300,), True),))
    ends = []
    for kernels in ("numpy", "compiled"):
        method = build_method(
            "adam", layout, keys={"clip_norm": 0.2}, penalty=lambda g, w: np.add(g, 0.2 * w, out=g), kernels=kernels
        )
        state, _ = method.start(np.linspace(-1, 1, 300))
        state, step = method.tell(state, Sums(np.ones(300), 0.0, 7.0, 7), 7.0, 0.0)
        assert isinstance(step, Step)
        ends.append((step.params.tobytes(), step.grad_norm))
        expected = np.ones(300) / 7.0 + 0.2 * np.linspace(-1, 1, 300)
        assert step.grad_norm == pytest.approx(float(np.linalg.norm(expected)), rel=1e-14)
    assert ends[0] == ends[1]


def test_a_gradient_that_is_not_finite_leaves_the_state_alone() -> None:
    from bigopt.core.errors import DivergedError

    layout = Layout((Block("a", (300,), True),))
    method = build_method("adam", layout, kernels="compiled")
    assert isinstance(fused(build_transform("adam", {})), Fused)
    state, _ = method.start(np.ones(300))
    state, _ = method.tell(state, Sums(np.ones(300), 0.0, 4.0, 4), 4.0, 0.0)
    before = state.params.tobytes(), state.inner.m.tobytes(), state.inner.v.tobytes()
    total = np.ones(300)
    total[7] = np.inf
    for divisor in (4.0, 3.0):
        with pytest.raises(DivergedError, match="not finite"):
            method.tell(state, Sums(total.copy(), 0.0, divisor, 4), divisor, 0.0)
    assert (state.params.tobytes(), state.inner.m.tobytes(), state.inner.v.tobytes()) == before
