"""Compiled steps have the bits of the transforms that they replace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigopt.core import compiled
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums
from bigopt.optim.build import build_method, build_transform
from bigopt.optim.fused import PIECE, UPDATES, Fused, fused
from bigopt.optim.fused_updates import RULES
from bigopt.optim.table import OPTIMIZERS

pytestmark = pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())

FUSED = [name for name, entry in OPTIMIZERS.items() if entry.make in UPDATES]
LAYOUT = Layout((Block("a", (40, 5), True), Block("b", (7,), False), Block("c", (131,), True), Block("d", (1,), False)))


def vectors(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Entries of all sizes: ordinary, tiny, huge, zeros of both signs, and runs that a vector loop does at once."""
    x = rng.normal(size=LAYOUT.size) * 10.0 ** rng.integers(-12, 9, size=LAYOUT.size)
    x[rng.random(LAYOUT.size) < 0.1] = 0.0
    x[rng.random(LAYOUT.size) < 0.1] *= -0.0
    return x.astype(dtype)


def bits(value: Any) -> list[bytes]:
    """All arrays and numbers of a state, as bytes."""
    if isinstance(value, tuple):
        return [part for item in value for part in bits(item)]
    return [value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()]


def both(name: str, keys: dict[str, float], dtype: str, steps: int = 8) -> None:
    rng = np.random.default_rng(len(name))
    plain = build_transform(name, keys)
    quick = fused(plain)
    assert isinstance(quick, Fused)
    params = vectors(rng, dtype)
    states = plain.init(params, LAYOUT), quick.init(params, LAYOUT)
    other = params.copy()
    for step in range(1, steps + 1):
        grad, eta = vectors(rng, dtype), float(rng.random())
        with np.errstate(all="ignore"):
            delta, one = plain.update(grad.copy(), states[0], params, step, eta)
            params = np.add(params, delta)
            other, two = quick.moved(grad.copy(), states[1], other, step, eta)
        assert other.dtype == params.dtype
        assert other.tobytes() == params.tobytes(), (step, np.flatnonzero(other != params)[:9])
        assert bits(one) == bits(two)
        states = one, two


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUSED)
def test_bits_of_the_composed_transforms(name: str, dtype: str) -> None:
    both(name, {}, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_bits_with_clipping(name: str, dtype: str) -> None:
    both(name, {"clip_norm": 3.0}, dtype)
    both(name, {"clip_norm": 1e30}, dtype)
    both(name, {"clip_norm": 0.5, "clip_value": 1e-3}, dtype)
    both(name, {"clip_value": 1e-3}, dtype)


def test_every_rule_belongs_to_an_optimizer() -> None:
    assert set(FUSED) - {"gd"} == set(RULES)
    assert set(OPTIMIZERS) - set(FUSED) == {"lion", "lars", "lamb"}
    for name in ("lion", "lars", "lamb"):
        plain = build_transform(name, {})
        assert fused(plain) is plain
    proximal = build_transform("adam", {}, l1=0.1)
    assert fused(proximal) is proximal


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_threads_do_not_appear_in_the_bits(name: str) -> None:
    p = 3 * PIECE + 17
    layout = Layout((Block("a", (PIECE + 5,), True), Block("b", (p - PIECE - 5,), False)))
    rng = np.random.default_rng(0)
    params, grad = rng.normal(size=p).astype(np.float32), rng.normal(size=p).astype(np.float32)
    found = []
    for threads in (1, 2, 3):
        quick = Fused(build_transform(name, {}), threads)
        new, state = quick.moved(grad.copy(), quick.init(params, layout), params, 1, 1e-3)
        found.append((new.tobytes(), bits(state[:2])))
    assert found[0] == found[1] == found[2]


def test_a_state_that_came_from_a_message_is_copied() -> None:
    quick = fused(build_transform("adam", {}))
    assert isinstance(quick, Fused)
    params = np.ones(LAYOUT.size)
    state = quick.init(params, LAYOUT)
    for array in (state.m, state.v, params):
        array.flags.writeable = False
    _, after = quick.moved(np.ones(LAYOUT.size), state, params, 1, 0.1)
    assert not state.m.any()
    assert after.m.all()


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_a_method_takes_the_same_steps_with_either_set(name: str) -> None:
    rng = np.random.default_rng(3)
    A = rng.normal(size=(LAYOUT.size, LAYOUT.size)) / LAYOUT.size
    ends = []
    for kernels in ("numpy", "compiled"):
        method = build_method(name, LAYOUT, keys={"clip_norm": 2.0, "average": True}, kernels=kernels)
        state, ask = method.start(np.ones(LAYOUT.size))
        for k in range(20):
            state, step = method.tell(state, Sums(A @ ask.params * 100.0, 0.0, 100.0, 100), 100.0, float(k))
            ask = method.ask(state)
            assert not step.params.flags.writeable
        ends.append(bits((step.params, method.result_params(state), step.grad_norm)))
    assert ends[0] == ends[1]
