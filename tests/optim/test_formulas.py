"""The formulas of SPEC section 3, written a second time: one coordinate at a time, in Python floats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bigopt.core.errors import ConfError
from bigopt.core.layout import Block, Layout
from bigopt.optim.adam import Adam, AdamW, AMSGrad
from bigopt.optim.adam_kin import AdaMax, NAdam, Yogi
from bigopt.optim.adaptive import Adadelta, Adagrad, RMSProp
from bigopt.optim.build import build_transform
from bigopt.optim.descent import Momentum, Nesterov
from bigopt.optim.layerwise import LAMB, LARS
from bigopt.optim.lion import Lion
from bigopt.optim.table import OPTIMIZERS
from bigopt.optim.transform import TILE, Chain, NoState, add_scaled, norm

LAYOUT = Layout((Block("weight", (3, 2), True), Block("bias", (2,), False)))
P = LAYOUT.size
STEPS = 40


def naive(name: str, w: float, g: list[float], eta: list[float], decays: bool) -> list[float]:
    """The path of one coordinate; defaults of SPEC, except a decay of 0.01 where there is one."""
    D = G = E = U = m = v = u = x = 0.0
    P = 1.0
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
        elif name == "lion":
            c = 0.9 * m + 0.1 * gt
            w = w - e * ((c > 0) - (c < 0) + (0.01 * w if decays else 0.0))
            m = 0.99 * m + 0.01 * gt
        elif name == "yogi":
            m = 0.9 * m + 0.1 * gt
            v = v - 0.001 * ((v > gt**2) - (v < gt**2)) * gt**2
            w = w - e * m / (math.sqrt(v) + 1e-3)
        elif name == "adamax":
            m = 0.9 * m + 0.1 * gt
            u = max(0.999 * u, abs(gt) + 1e-8)
            w = w - e / (1 - 0.9**t) * m / u
        else:
            if name == "adamw" and decays:
                w = w * (1.0 - e * 0.01)
            m = 0.9 * m + 0.1 * gt
            v = 0.999 * v + 0.001 * gt**2
            x = max(x, v)
            vh = (x if name == "amsgrad" else v) / (1 - 0.999**t)
            step = m / (1 - 0.9**t)
            if name == "nadam":
                mu, ahead = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * k)) for k in (t, t + 1))
                P = P * mu
                step = (1 - mu) * gt / (1 - P) + ahead * m / (1 - P * ahead)
            w = w - e * step / (math.sqrt(vh) + 1e-8)
        path.append(w)
    return path


def naive_layer(name: str, w: list[float], g: np.ndarray, eta: list[float], decays: bool) -> list[list[float]]:
    """The path of one layer under lars or lamb with wd = 0.01."""
    n, wd = len(w), 0.01 if decays else 0.0
    D, m, v = [0.0] * n, [0.0] * n, [0.0] * n
    path = []
    for t, e in enumerate(eta, 1):
        gt = g[t - 1].tolist()
        if name == "lars":
            r = 1e-3 * math.hypot(*w) / (math.hypot(*gt) + wd * math.hypot(*w)) if decays else 1.0
            D = [0.9 * D[j] - e * r * (gt[j] + wd * w[j]) for j in range(n)]
            w = [w[j] + D[j] for j in range(n)]
        else:
            m = [0.9 * m[j] + 0.1 * gt[j] for j in range(n)]
            v = [0.999 * v[j] + 0.001 * gt[j] ** 2 for j in range(n)]
            u = [m[j] / (1 - 0.9**t) / (math.sqrt(v[j] / (1 - 0.999**t)) + 1e-6) + wd * w[j] for j in range(n)]
            r = math.hypot(*w) / math.hypot(*u) if decays else 1.0
            w = [w[j] - e * r * u[j] for j in range(n)]
        path.append(w)
    return path


LAYERWISE = ("lars", "lamb")
ENTRYWISE = [name for name in OPTIMIZERS if name not in LAYERWISE]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_formula_and_defaults(name) -> None:
    rng = np.random.default_rng(11)
    start = rng.normal(size=P)
    grads = rng.normal(size=(STEPS, P)) * np.geomspace(1e-6, 1e3, P)
    grads[:, 0] = 0.0  # 0/0 without eps
    eta = [0.1 / (1 + 0.1 * k) for k in range(STEPS)]
    transform = build_transform(name, {"weight_decay": 0.01 if "weight_decay" in OPTIMIZERS[name].keys else None})
    state, w, ours = transform.init(start, LAYOUT), start.copy(), []
    for t in range(1, STEPS + 1):
        delta, state = transform.update(grads[t - 1].copy(), state, w, t, eta[t - 1])
        w = w + delta
        ours.append(w)
    if name in LAYERWISE:
        want = np.hstack(
            [naive_layer(name, start[s].tolist(), grads[:, s], eta, b.penalized) for b, s in LAYOUT.slices()]
        )
    else:
        paths = [naive(name, start[j], grads[:, j].tolist(), eta, bool(LAYOUT.penalized[j])) for j in range(P)]
        want = np.array(paths).T
    np.testing.assert_allclose(np.array(ours), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LAYERWISE)
def test_the_ratio_of_a_layer_is_one_where_a_norm_is_zero(name) -> None:
    """Weights of zero move as plain momentum or Adam; a gradient of zero moves nothing, and nothing is 0/0."""
    g = np.array([3.0, -4.0, 0.0, 0.0, 1.0, 0.0, 0.5, -0.5])
    transform = build_transform(name)
    delta, _ = transform.update(g.copy(), transform.init(np.zeros(P), LAYOUT), np.zeros(P), 1, 0.1)
    step = np.sign(g) * np.abs(g) / (np.abs(g) + 1e-6) if name == "lamb" else g
    np.testing.assert_allclose(delta, -0.1 * step, rtol=1e-12)
    w = np.ones(P)
    delta, _ = transform.update(np.zeros(P), transform.init(w, LAYOUT), w, 1, 0.1)
    assert not delta.any()


@pytest.mark.parametrize("name", LAYERWISE)
def test_the_step_of_a_layer_has_the_length_of_its_weights(name) -> None:
    """Whatever the scale of the gradient: eta norm(w) for lamb, eta 1e-3 norm(w) for lars."""
    rng = np.random.default_rng(18)
    w, g = rng.normal(size=P), rng.normal(size=P)
    for scale in (1e-3, 1.0, 1e150):
        transform = build_transform(name)
        delta, _ = transform.update(scale * g, transform.init(w, LAYOUT), w, 1, 0.1)
        want = 0.1 * norm(w[:6]) * (1e-3 if name == "lars" else 1.0)
        assert norm(delta[:6]) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", ENTRYWISE)
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


def test_amsgrad_never_forgets_the_largest_square() -> None:
    """After one huge gradient Adam's root shrinks again, AMSGrad's only by the correction of its bias."""
    layout = Layout((Block("w", (1,), True),))
    transform = build_transform("amsgrad", {"beta1": 0.0, "eps": 1e-300})
    state, w = transform.init(np.zeros(1), layout), np.zeros(1)
    for t in range(1, 1001):
        delta, state = transform.update(np.array([100.0 if t == 1 else 1.0]), state, w, t, 1.0)
    assert state.x[0] == pytest.approx(0.001 * 100.0**2, rel=1e-12)
    assert delta[0] == pytest.approx(-math.sqrt((1 - 0.999**1000) / 10.0), rel=1e-12)


def test_yogi_moves_the_square_by_a_bounded_amount() -> None:
    layout = Layout((Block("w", (1,), True),))
    transform = build_transform("yogi")
    _, state = transform.update(np.array([10.0]), transform.init(np.zeros(1), layout), np.zeros(1), 1, 1.0)
    assert state.v[0] == pytest.approx(0.1, rel=1e-12)
    _, state = transform.update(np.array([0.1]), state, np.zeros(1), 2, 1.0)
    assert state.v[0] == pytest.approx(0.1 - 0.001 * 0.01, rel=1e-12)
    _, state = transform.update(np.array([0.0]), state, np.zeros(1), 3, 1.0)
    assert state.v[0] == pytest.approx(0.1 - 0.001 * 0.01, rel=1e-12)


def test_lion_steps_by_signs() -> None:
    layout = Layout((Block("w", (3,), True),))
    transform = build_transform("lion")
    delta, state = transform.update(
        np.array([5.0, -1e-9, 0.0]), transform.init(np.zeros(3), layout), np.zeros(3), 1, 0.5
    )
    assert delta.tolist() == [-0.5, 0.5, 0.0]
    np.testing.assert_allclose(state.m, [0.05, -1e-11, 0.0], rtol=1e-12)


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
        (AMSGrad, {"beta1": 1.0}, "optimizer.beta1"),
        (AdaMax, {"eps": 0.0}, "optimizer.eps"),
        (NAdam, {"beta2": 1.0}, "optimizer.beta2"),
        (Yogi, {"eps": -1.0}, "optimizer.eps"),
        (Lion, {"beta2": 1.0}, "optimizer.beta2"),
        (Lion, {"weight_decay": -1.0}, "optimizer.weight_decay"),
        (LARS, {"momentum": 1.0}, "optimizer.momentum"),
        (LARS, {"weight_decay": math.nan}, "optimizer.weight_decay"),
        (LAMB, {"eps": 0.0}, "optimizer.eps"),
        (LAMB, {"weight_decay": -1.0}, "optimizer.weight_decay"),
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
