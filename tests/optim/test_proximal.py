"""L1 penalties: the steps of SPEC section 2 written again, exact zeros, the optimality condition, scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bigopt.core.errors import ConfError
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums
from bigopt.models.penalties import Penalty
from bigopt.optim.build import build_method, build_transform
from bigopt.optim.proximal import Proximal, ProximalMomentum
from bigopt.optim.table import OPTIMIZERS
from bigopt.optim.transform import TILE

TAKES_L1 = ("gd", "sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "amsgrad")
LAYOUT = Layout((Block("weight", (3, 2), True), Block("bias", (2,), False)))


def soft(u: float, t: float) -> float:
    return math.copysign(max(abs(u) - t, 0.0), u)


def naive(name: str, w: float, g: list[float], eta: list[float], l1: float) -> list[float]:
    """The path of one coordinate under penalty l1 (0 for an intercept)."""
    G = m = v = x = 0.0
    before, old = w, 1.0
    path = []
    for t, (gt, e) in enumerate(zip(g, eta, strict=True), 1):
        G = 0.9 * G + 0.1 * gt**2 if name == "rmsprop" else G + gt**2
        m = 0.9 * m + 0.1 * gt
        v = 0.999 * v + 0.001 * gt**2
        x = max(x, v)
        vh = (x if name == "amsgrad" else v) / (1 - 0.999**t)
        if name in ("gd", "sgd"):
            u, c = w - e * gt, 1.0
        elif name == "momentum":
            u, c = w - e * gt + 0.9 * (e / old) * (w - before), 1.0
        elif name in ("adagrad", "rmsprop"):
            c = 1 / (math.sqrt(G) + (1e-10 if name == "adagrad" else 1e-8))
            u = w - e * c * gt
        else:
            c = 1 / (math.sqrt(vh) + 1e-8)
            u = (w * (1 - e * 0.01) if name == "adamw" and l1 else w) - e * c * m / (1 - 0.9**t)
        before, w, old = w, soft(u, e * l1 * c), e
        path.append(w)
    return path


def test_who_takes_l1() -> None:
    assert tuple(name for name, entry in OPTIMIZERS.items() if entry.l1 is not None) == TAKES_L1


@pytest.mark.parametrize("name", ["newton", *sorted(set(OPTIMIZERS) - set(TAKES_L1))])
def test_the_others_refuse_it_by_name(name) -> None:
    with pytest.raises(ConfError, match=f"optimizer '{name}' has no l1 penalty") as caught:
        build_method(name, LAYOUT, l1=0.1)
    assert caught.value.where == "model.l1"
    assert caught.value.hint == f"one of {', '.join(TAKES_L1)}, lbfgs"
    build_method(name, LAYOUT, l1=0.0)


@pytest.mark.parametrize("name", TAKES_L1)
def test_steps_are_those_of_the_specification(name) -> None:
    rng = np.random.default_rng(41)
    start, grads = rng.normal(size=8), rng.normal(size=(60, 8))
    eta = [0.1 / (1 + 0.1 * k) for k in range(60)]
    transform = build_transform(name, l1=0.7)
    state, w, ours = transform.init(start, LAYOUT), start.copy(), []
    for t in range(1, 61):
        delta, state = transform.update(grads[t - 1].copy(), state, w, t, eta[t - 1])
        w = w + delta
        ours.append(w)
    l1 = np.where(LAYOUT.penalized, 0.7, 0.0)
    want = np.array([naive(name, start[j], grads[:, j].tolist(), eta, l1[j]) for j in range(8)]).T
    assert (want[:, :6] == 0.0).any()
    assert not (want[:, 6:] == 0.0).any()
    np.testing.assert_allclose(np.array(ours), want, rtol=1e-11, atol=1e-13)
    assert np.array_equal(np.array(ours) == 0.0, want == 0.0)


@pytest.mark.parametrize("name", TAKES_L1)
def test_long_vectors_read_only_params_and_states(name) -> None:
    """Tiles are invisible; params are only read; read-only state is copied; delta is no buffer of the state."""
    p = TILE + 9
    rng = np.random.default_rng(42)
    w, g = rng.normal(size=p), rng.normal(size=(2, p))
    window = slice(TILE - 8, p)

    def walk(w: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, object]:
        transform, layout = build_transform(name, l1=0.5), Layout((Block("weight", w.shape, True),))
        state = transform.init(w, layout)
        w.flags.writeable = False
        for t in (1, 2):
            for vector in state.inner:
                if isinstance(vector, np.ndarray):
                    vector.flags.writeable = False
            delta, state = transform.update(g[t - 1].copy(), state, w, t, 0.1)
            assert not any(np.shares_memory(delta, v) for v in state.inner if isinstance(v, np.ndarray))
            w = w + delta
        return w, state

    long, _ = walk(w.copy(), g)
    short, _ = walk(w[window].copy(), g[:, window].copy())
    assert long[window].tobytes() == short.tobytes()


def lasso(rows: int = 120, features: int = 20, cond: float = 4.0):
    """Rows with a given condition number of X^T X / n and a sparse truth with an intercept."""
    rng = np.random.default_rng(43)
    U, _ = np.linalg.qr(rng.normal(size=(rows, features)))
    V, _ = np.linalg.qr(rng.normal(size=(features, features)))
    X = math.sqrt(rows) * (U * np.geomspace(1.0, cond**-0.5, features)) @ V.T
    w = np.where(np.arange(features) % 3 == 0, rng.normal(size=features), 0.0)
    return X, X @ w + 2.0 + 0.1 * rng.normal(size=rows)


RATES = {
    "gd": (0.3, {}),
    "sgd": (0.3, {}),
    "momentum": (0.1, {}),
    "adagrad": (0.5, {}),
    "rmsprop": (0.01, {}),
    "adam": (0.05, {}),
    "adamw": (0.05, {"weight_decay": 0.0}),
    "amsgrad": (0.1, {}),
}


@pytest.mark.parametrize("name", TAKES_L1)
def test_optimality_condition_and_exact_zeros(name) -> None:
    """abs(g) <= l1 where w = 0, g = -l1 sign(w) elsewhere, g = 0 for the intercept; g with the l2 part."""
    X, y = lasso()
    n, d = X.shape
    l1, l2 = 0.1, 0.01
    A = np.hstack([X, np.ones((n, 1))])
    layout = Layout((Block("weight", (d,), True), Block("bias", (1,), False)))
    penalty = Penalty(l2, l1)
    rate, keys = RATES[name]
    steps = 3000
    method = build_method(
        name, layout, keys=keys, schedule="cosine", schedule_keys={"learning_rate": rate}, default_period=steps,
        penalty=lambda grad, params: penalty.add_gradient(grad, params, layout), l1=l1,
    )  # fmt: skip
    H, h = 2 * A.T @ A / n, 2 * A.T @ y / n
    state, ask = method.start(np.zeros(d + 1))
    for _ in range(steps):
        state, step = method.tell(state, Sums(H @ ask.params - h, 0.0, 1.0, 1), 1.0, 0.0)
        ask = method.ask(state)
    w = step.params
    g = penalty.add_gradient(H @ w - h, w, layout)
    zero = w[:d] == 0.0
    assert 4 <= zero.sum() <= d - 4
    assert np.abs(g[:d][zero]).max() < l1
    np.testing.assert_allclose(g[:d][~zero], -l1 * np.sign(w[:d][~zero]), atol=1e-7)
    assert abs(g[d]) <= 1e-7
    assert not np.signbit(w[:d][zero]).any()


def test_momentum_keeps_its_velocity_where_the_rate_is_zero() -> None:
    """At the foot of an annealing nothing moves, nothing is 0/0, and the next steps go on."""
    w, g = np.array([1.0, 0.0, -2.0]), np.array([0.5, 0.2, 0.1])
    layout = Layout((Block("weight", (3,), True),))
    transform = ProximalMomentum(0.9, 0.3)
    _, state = transform.update(g.copy(), transform.init(w, layout), w, 1, 0.1)
    before = state.inner.D.copy()
    with np.errstate(over="ignore"):  # as in FirstOrder.tell
        delta, state = transform.update(g.copy(), state, w, 2, 0.0)
    assert not delta.any()
    q = 0.9 * before - g
    np.testing.assert_allclose(state.inner.D, [q[0] - 0.3, q[1] - max(-0.3, min(0.3, q[1])), q[2] + 0.3], rtol=1e-14)


def test_momentum_without_thresholds_is_momentum() -> None:
    """Intercepts take the plain rule, and so do weights under a vanishing l1."""
    rng = np.random.default_rng(44)
    plain, prox = build_transform("momentum"), build_transform("momentum", l1=1e-300)
    a = b = rng.normal(size=8)
    first, second = plain.init(a, LAYOUT), prox.init(b, LAYOUT)
    for t in range(1, 30):
        g = rng.normal(size=8)
        da, first = plain.update(g.copy(), first, a, t, 0.1 / t)
        db, second = prox.update(g.copy(), second, b, t, 0.1 / t)
        a, b = a + da, b + db
    np.testing.assert_allclose(b, a, rtol=1e-13)


@pytest.mark.parametrize("l1", [-1.0, math.nan, math.inf])
def test_bad_l1_is_refused(l1) -> None:
    for name in ("sgd", "momentum"):
        with pytest.raises(ConfError) as caught:
            build_method(name, LAYOUT, l1=l1)
        assert caught.value.where == "model.l1"


def test_clipping_comes_before_the_threshold() -> None:
    transform = build_transform("sgd", {"clip_value": 1.0}, l1=0.5)
    assert isinstance(transform.links[-1], Proximal)
    w = np.array([2.0, 0.2])
    layout = Layout((Block("weight", (2,), True),))
    delta, _ = transform.update(np.array([100.0, -0.1]), transform.init(w, layout), w, 1, 1.0)
    np.testing.assert_allclose(w + delta, [0.5, 0.0], atol=1e-15)


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_elastic_net_equals_scikit_learn(ratio) -> None:
    """gd with eta = 2/(L + mu) of the smooth part, condition number 100, within 1,000 steps."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y = lasso(rows=300, features=30, cond=1e3)
    n, d = X.shape
    moment = X.T @ X / n
    low, high = np.linalg.eigvalsh(moment)[[0, -1]]
    l2 = (high - 100.0 * low) / 99.0  # cond(X^T X/n + l2 I) = 100
    alpha = l2 / (1 - ratio)
    l1 = 2 * alpha * ratio
    assert alpha == pytest.approx(l1 / 2 + l2)
    scale = np.abs(2 * X.T @ (y - y.mean()) / n).max() / l1
    y = y * max(1.0, 3.0 / scale)  # so that the penalty leaves some weights
    peer = linear_model.ElasticNet(alpha=alpha, l1_ratio=ratio, tol=1e-12, max_iter=10**6).fit(X, y)
    A, c = X - X.mean(axis=0), y - y.mean()
    H, h = 2 * A.T @ A / n, 2 * A.T @ c / n
    low, high = np.linalg.eigvalsh(H)[[0, -1]] + 2 * l2
    layout = Layout((Block("weight", (d,), True),))
    penalty = Penalty(l2, l1)
    method = build_method(
        "gd", layout, schedule_keys={"learning_rate": 2.0 / (high + low)}, l1=l1,
        penalty=lambda grad, params: penalty.add_gradient(grad, params, layout),
    )  # fmt: skip
    state, ask = method.start(np.zeros(d))
    for _ in range(1000):
        state, _ = method.tell(state, Sums(H @ ask.params - h, 0.0, 1.0, 1), 1.0, 0.0)
        ask = method.ask(state)
    assert np.array_equal(ask.params == 0.0, peer.coef_ == 0.0)
    assert 3 <= np.count_nonzero(peer.coef_) <= d - 3
    assert np.linalg.norm(ask.params - peer.coef_) <= 1e-6 * np.linalg.norm(peer.coef_)
    live = peer.coef_ != 0.0
    np.testing.assert_allclose(ask.params[live], peer.coef_[live], rtol=1e-6)
