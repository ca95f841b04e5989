"""The formulas of SPEC section 3, written a second time: one coordinate at a time, in Python floats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bigopt.core.errors import ConfError
from bigopt.core.layout import Block, Layout
from bigopt.optim.adam import Adam, AdamW
from bigopt.optim.adaptive import Adadelta, Adagrad, RMSProp
from bigopt.optim.build import build_transform
from bigopt.optim.descent import Momentum, Nesterov
from bigopt.optim.table import OPTIMIZERS
from bigopt.optim.transform import TILE, Chain, NoState, add_scaled, norm

LAYOUT = Layout((Block("weight", (3, 2), True), Block("bias", (2,), False)))
P = LAYOUT.size
STEPS = 40


def naive(name: str, w: float, g: list[float], eta: list[float], decays: bool) -> list[float]:
    """The path of one coordinate."""
    D = G = E = U = m = v = 0.0
    path = []
    for t, (gt, e) in enumerate(zip(g, eta, strict=True), 1):
        if name in ("gd", "sgd"):
            w = w - e * gt
        elif name == "momentum":
            D = 0.9 * D - gt
            w = w + e * D
        elif name == "nesterov":
            D = 0.9 * D - gt
            w = w + e * (0.9 * D - gt)
        elif name == "adagrad":
            G = G + gt**2
            w = w - e * gt / (math.sqrt(G) + 1e-10)
        elif name == "rmsprop":
            G = 0.9 * G + 0.1 * gt**2
            w = w - e * gt / (math.sqrt(G) + 1e-8)
        elif name == "adadelta":
            E = 0.9 * E + 0.1 * gt**2
            d = math.sqrt(U + 1e-6) / math.sqrt(E + 1e-6) * gt
            U = 0.9 * U + 0.1 * d**2
            w = w - e * d
        else:
            if name == "adamw" and decays:
                w = w * (1.0 - e * 0.01)
            m = 0.9 * m + 0.1 * gt
            v = 0.999 * v + 0.001 * gt**2
            w = w - e * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        path.append(w)
    return path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_formula_and_defaults(name) -> None:
    rng = np.random.default_rng(11)
    start = rng.normal(size=P)
    grads = rng.normal(size=(STEPS, P)) * np.geomspace(1e-6, 1e3, P)
    grads[:, 0] = 0.0  # 0/0 without eps
    eta = [0.1 / (1 + 0.1 * k) for k in range(STEPS)]
    transform = build_transform(name)
    state, w, ours = transform.init(start, LAYOUT), start.copy(), []
    for t in range(1, STEPS + 1):
        delta, state = transform.update(grads[t - 1].copy(), state, w, t, eta[t - 1])
        w = w + delta
        ours.append(w)
    want = np.array([naive(name, start[j], grads[:, j].tolist(), eta, bool(LAYOUT.penalized[j])) for j in range(P)]).T
    np.testing.assert_allclose(np.array(ours), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_long_vectors_give_the_bits_of_their_pieces(name) -> None:
    """Tiles are invisible: the entries around a tile's end are those of a short vector."""
    p = 2 * TILE + 5
    rng = np.random.default_rng(12)
    start, grads = rng.normal(size=p), rng.normal(size=(3, p))
    layout = Layout((Block("a", (TILE - 3,), True), Block("b", (p - TILE + 3,), True)))
    window = slice(TILE - 10, TILE + 10)

    def walk(w: np.ndarray, g: np.ndarray, layout: Layout) -> np.ndarray:
        transform = build_transform(name)
        state = transform.init(w, layout)
        for t in range(1, 4):
            delta, state = transform.update(g[t - 1].copy(), state, w, t, 0.1)
            w = w + delta
        return w

    short = walk(start[window].copy(), grads[:, window].copy(), Layout((Block("a", (20,), True),)))
    assert walk(start, grads, layout)[window].tobytes() == short.tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_owns_grad_and_state_but_only_reads_params(name) -> None:
    """params read-only, a state of read-only arrays is copied, and delta is no buffer of the next state."""
    rng = np.random.default_rng(13)
    params = rng.normal(size=P)
    params.flags.writeable = False
    transform = build_transform(name)
    state = transform.init(params, LAYOUT)
    vectors = [x for x in state if isinstance(x, np.ndarray)]
    assert len(vectors) == OPTIMIZERS[name].vectors
    assert len({id(x) for x in vectors}) == len(vectors)
    for x in vectors:
        x.flags.writeable = False
    before = [x.copy() for x in vectors]
    delta, after = transform.update(rng.normal(size=P), state, params, 1, 0.1)
    assert type(after) is type(state)
    assert all(np.array_equal(x, y) for x, y in zip(vectors, before, strict=True))
    assert not any(np.shares_memory(delta, x) for x in after if isinstance(x, np.ndarray))


def test_momentum_with_constant_gradient_tends_to_ten_steps() -> None:
    """Worked number 5, to the digit: after t steps the step is -eta g (1 - mu^t) / (1 - mu)."""
    g, transform = np.array([1.0, -2.0, 0.5]), Momentum()
    layout = Layout((Block("w", (3,), True),))
    state, w = transform.init(g, layout), np.zeros(3)
    for t in range(1, 401):
        delta, state = transform.update(g.copy(), state, w, t, 0.01)
        np.testing.assert_allclose(delta, -0.01 * g * (1 - 0.9**t) / 0.1, rtol=1e-13)
    np.testing.assert_allclose(delta, -10 * 0.01 * g, rtol=1e-13)


def test_adamw_without_decay_is_adam_and_intercepts_never_decay() -> None:
    rng = np.random.default_rng(14)
    w, g = rng.normal(size=P), rng.normal(size=P)
    adam, _ = Adam().update(g.copy(), Adam().init(w, LAYOUT), w, 1, 0.1)
    plain, decayed = AdamW(weight_decay=0.0), AdamW(weight_decay=0.5)
    same, _ = plain.update(g.copy(), plain.init(w, LAYOUT), w, 1, 0.1)
    delta, _ = decayed.update(g.copy(), decayed.init(w, LAYOUT), w, 1, 0.1)
    assert same.tobytes() == adam.tobytes()
    assert delta[6:].tobytes() == adam[6:].tobytes()
    np.testing.assert_allclose(delta[:6] - adam[:6], -0.1 * 0.5 * w[:6], rtol=1e-13)


class Clip:
    """A part in front of an optimizer: entries of g within [-1, 1]."""

    def init(self, params, layout):
        return NoState()

    def update(self, grad, state, params, step, learning_rate):
        return np.clip(grad, -1.0, 1.0, out=grad), state


def test_chain_feeds_each_delta_to_the_next() -> None:
    rng = np.random.default_rng(15)
    w, grads = rng.normal(size=P), 3 * rng.normal(size=(5, P))
    chain, alone = Chain((Clip(), Adam())), Adam()
    state, other = chain.init(w, LAYOUT), alone.init(w, LAYOUT)
    for t in range(1, 6):
        delta, state = chain.update(grads[t - 1].copy(), state, w, t, 0.1)
        want, other = alone.update(np.clip(grads[t - 1], -1, 1), other, w, t, 0.1)
        assert delta.tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("make", "keys", "where"),
    [
        (Momentum, {"momentum": 1.0}, "optimizer.momentum"),
        (Nesterov, {"momentum": -0.1}, "optimizer.momentum"),
        (Nesterov, {"momentum": math.nan}, "optimizer.momentum"),
        (Adagrad, {"eps": 0.0}, "optimizer.eps"),
        (RMSProp, {"decay": 1.0}, "optimizer.decay"),
        (RMSProp, {"eps": math.inf}, "optimizer.eps"),
        (Adadelta, {"rho": 1.5}, "optimizer.rho"),
        (Adadelta, {"eps": -1e-6}, "optimizer.eps"),
        (Adam, {"beta1": 1.0}, "optimizer.beta1"),
        (Adam, {"beta2": -0.5}, "optimizer.beta2"),
        (Adam, {"eps": "small"}, "optimizer.eps"),
        (AdamW, {"weight_decay": -0.01}, "optimizer.weight_decay"),
        (AdamW, {"beta2": True}, "optimizer.beta2"),
    ],
)
def test_out_of_range_is_refused(make, keys, where) -> None:
    with pytest.raises(ConfError) as caught:
        make(**keys)
    assert caught.value.where == where


def test_the_ends_of_the_ranges_are_usable() -> None:
    w = np.ones(P)
    for transform in (Momentum(0), RMSProp(decay=0.0), Adadelta(rho=0.0), Adam(beta1=0.0, beta2=0.0)):
        delta, _ = transform.update(np.full(P, 2.0), transform.init(w, LAYOUT), w, 1, 0.1)
        assert (delta < 0).all()


def test_norm_neither_overflows_nor_underflows() -> None:
    for scale in (1.0, 1e300, 1e-300, 5e-324):
        x = np.array([3.0, -4.0]) * scale
        assert norm(x) == pytest.approx(5.0 * scale, rel=1e-15, abs=0.0)
    x = np.random.default_rng(16).normal(size=2 * TILE + 7)
    assert norm(x) == pytest.approx(math.sqrt(math.fsum(v * v for v in x)), rel=1e-14)
    assert norm(np.full(3, 1e30, dtype=np.float32)) == pytest.approx(math.sqrt(3) * 1e30, rel=1e-6)
    assert norm(np.zeros(4)) == norm(np.empty(0)) == 0.0
    assert norm(np.array([1.0, -np.inf])) == np.inf
    assert math.isnan(norm(np.array([1.0, np.nan, np.inf])))


def test_add_scaled() -> None:
    out, x = np.arange(TILE + 3.0), np.ones(TILE + 3)
    add_scaled(out, -2.0, x)
    assert np.array_equal(out, np.arange(TILE + 3.0) - 2.0)
