"""Parts around an optimizer: clipping in front of it, Polyak averaging behind it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bigopt.core.codec import dumps, load, save
from bigopt.core.errors import ConfError, DivergedError
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums
from bigopt.optim.build import build_method, build_transform
from bigopt.optim.clip import ClipNorm, ClipValue
from bigopt.optim.descent import SGD
from bigopt.optim.table import OPTIMIZERS
from bigopt.optim.transform import TILE, Chain

LAYOUT = Layout((Block("weight", (4,), True), Block("bias", (1,), False)))


def _told(method, grads: np.ndarray):
    state, _ = method.start(np.zeros(grads.shape[1], dtype=grads.dtype))
    path = []
    for g in grads:
        state, step = method.tell(state, Sums(g.copy(), 0.0, 1.0, 1), 1.0, 0.0)
        path.append(step.params)
    return state, np.array(path)


def test_clipping_is_values_first_and_then_the_norm() -> None:
    transform = build_transform("sgd", {"clip_norm": 0.5, "clip_value": 2.0})
    assert transform == Chain((ClipValue(2.0), ClipNorm(0.5), SGD()))
    w, g = np.zeros(5), np.array([3.0, -4.0, 0.0, 1.0, 0.0])
    delta, _ = transform.update(g.copy(), transform.init(w, LAYOUT), w, 1, 1.0)
    np.testing.assert_allclose(delta, -np.array([2.0, -2.0, 0.0, 1.0, 0.0]) * 0.5 / (3.0 + 1e-6), rtol=1e-15)


def test_small_gradients_pass_to_the_bit() -> None:
    g = np.array([0.3, -0.4, 0.0, 0.0, 0.0])
    transform = build_transform("sgd", {"clip_norm": 0.6, "clip_value": 0.4})
    delta, _ = transform.update(g.copy(), transform.init(g, LAYOUT), g, 1, 1.0)
    assert (-delta).tobytes() == (g + 0.0).tobytes()


def test_clipping_needs_no_finite_square() -> None:
    g = np.array([3e200, -4e200, 0.0, 0.0, 0.0])
    transform = build_transform("sgd", {"clip_norm": 1.0})
    delta, _ = transform.update(g.copy(), transform.init(g, LAYOUT), g, 1, 1.0)
    np.testing.assert_allclose(delta, [-0.6, 0.8, 0.0, 0.0, 0.0], rtol=1e-15)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipping_equals_torch(scale) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(51)
    g = scale * rng.normal(size=TILE + 7)
    layout = Layout((Block("w", g.shape, True),))
    for keys, clip in (
        ({"clip_norm": 1.5}, lambda w: torch.nn.utils.clip_grad_norm_([w], 1.5)),
        ({"clip_value": 0.7}, lambda w: torch.nn.utils.clip_grad_value_([w], 0.7)),
    ):
        w = torch.zeros(g.shape, dtype=torch.float64, requires_grad=True)
        w.grad = torch.tensor(g)
        clip(w)
        transform = build_transform("sgd", keys)
        delta, _ = transform.update(g.copy(), transform.init(g, layout), g, 1, 1.0)
        np.testing.assert_allclose(-delta, w.grad.numpy(), rtol=1e-12)


def test_the_reported_norm_is_that_of_the_gradient_before_clipping() -> None:
    method = build_method("sgd", LAYOUT, keys={"clip_norm": 0.1})
    state, _ = method.start(np.zeros(5))
    _, step = method.tell(state, Sums(np.array([3.0, 4.0, 0, 0, 0]), 0.0, 1.0, 1), 1.0, 0.0)
    assert step.grad_norm == 5.0


@pytest.mark.parametrize("average", [True, 0.0, 0.3, 0.9])
def test_average_of_the_iterates(average) -> None:
    """The mean of w_1 .. w_t, or the weights (1-d) d^(t-i) and d^(t-1) of w_1."""
    grads = np.random.default_rng(52).normal(size=(30, 5))
    plain, path = _told(build_method("adam", LAYOUT, schedule_keys={"learning_rate": 0.1}), grads)
    method = build_method("adam", LAYOUT, keys={"average": average}, schedule_keys={"learning_rate": 0.1})
    state, same = _told(method, grads)
    assert np.array_equal(path, same)  # the steps do not see it
    if average is True:
        weights = np.full(30, 1 / 30)
    else:
        weights = (1 - average) * average ** np.arange(29.0, -1, -1)
        weights[0] = average**29
    assert weights.sum() == pytest.approx(1.0)
    result = method.result_params(state)
    np.testing.assert_allclose(result, weights @ path, rtol=1e-12)
    assert not result.flags.writeable
    before = result.copy()
    method.tell(state, Sums(grads[0].copy(), 0.0, 1.0, 1), 1.0, 0.0)
    assert np.array_equal(result, before)  # what was given out never changes
    assert np.array_equal(build_method("adam", LAYOUT).result_params(plain), path[-1])


@pytest.mark.parametrize("average", [True, 0.9])
def test_average_equals_torch(average) -> None:
    torch = pytest.importorskip("torch")
    swa = pytest.importorskip("torch.optim.swa_utils")
    grads = np.random.default_rng(53).normal(size=(20, 5))
    model = torch.nn.Linear(5, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.zero_()
    how = {} if average is True else {"multi_avg_fn": swa.get_ema_multi_avg_fn(average)}
    theirs = swa.AveragedModel(model, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for g in grads:
        model.weight.grad = torch.tensor(g[None])
        optimizer.step()
        theirs.update_parameters(model)
    method = build_method("sgd", LAYOUT, keys={"average": average}, schedule_keys={"learning_rate": 0.1})
    state, _ = _told(method, grads)
    np.testing.assert_allclose(method.result_params(state), theirs.module.weight.detach().numpy()[0], rtol=1e-12)


def test_averaging_reaches_the_optimum_where_the_iterates_do_not() -> None:
    """A linear model with noisy gradients: the mean's error falls like 1/t, that of the iterates stays."""
    noise = np.random.default_rng(54).normal(size=(20_000, 5))
    method = build_method("sgd", LAYOUT, keys={"average": True}, schedule_keys={"learning_rate": 0.2})
    state, ask = method.start(np.full(5, 3.0))
    late = []
    for e in noise:
        state, step = method.tell(state, Sums(ask.params - 1.0 + e, 0.0, 1.0, 1), 1.0, 0.0)
        ask = method.ask(state)
        late.append(step.params)
    msd = np.mean((np.array(late[1000:]) - 1.0) ** 2)
    assert msd == pytest.approx(0.2 / (2 - 0.2), rel=0.1)  # AR(1): eta^2 / (1 - (1-eta)^2)
    # Var of the mean is about 1/t here; five coordinates, five deviations.
    assert np.abs(method.result_params(state) - 1.0).max() < 5 / math.sqrt(20_000)


def test_before_the_first_step_the_result_is_the_start() -> None:
    method = build_method("sgd", LAYOUT, keys={"average": True})
    state, _ = method.start(np.arange(5.0))
    assert method.result_params(state).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("name", "l1"), [(n, l1) for n, entry in OPTIMIZERS.items() for l1 in (0.0, 0.1) if l1 == 0.0 or entry.l1]
)
def test_checkpoint_with_all_parts(name, l1, dtype, tmp_path) -> None:
    grads = np.random.default_rng(55).normal(size=(8, 5)).astype(dtype)
    method = build_method(name, LAYOUT, keys={"average": 0.5, "clip_norm": 1.0, "clip_value": 0.8}, l1=l1)
    straight, _ = _told(method, grads)
    half, _ = _told(method, grads[:5])
    save(tmp_path / "state.npz", half)
    state = load(tmp_path / "state.npz")
    for g in grads[5:]:
        state, _ = method.tell(state, Sums(g.copy(), 0.0, 1.0, 1), 1.0, 0.0)
    assert [bytes(p) for p in dumps(state)] == [bytes(p) for p in dumps(straight)]
    assert state.params.dtype == method.result_params(state).dtype == dtype


def test_a_bad_gradient_leaves_the_average_alone() -> None:
    method = build_method("sgd", LAYOUT, keys={"average": True})
    state, _ = _told(method, np.ones((3, 5)))
    before = state.average.copy()
    with pytest.raises(DivergedError):
        method.tell(state, Sums(np.full(5, np.nan), 0.0, 1.0, 1), 1.0, 0.0)
    assert np.array_equal(state.average, before)


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"clip_norm": 0.0}, "optimizer.clip_norm"),
        ({"clip_value": -1.0}, "optimizer.clip_value"),
        ({"clip_value": math.inf}, "optimizer.clip_value"),
        ({"average": 1.0}, "optimizer.average"),
        ({"average": -0.1}, "optimizer.average"),
        ({"average": "yes"}, "optimizer.average"),
    ],
)
def test_out_of_range_is_refused(keys, where) -> None:
    with pytest.raises(ConfError) as caught:
        build_method("sgd", LAYOUT, keys=keys)
    assert caught.value.where == where


def test_null_and_false_are_off() -> None:
    method = build_method("sgd", LAYOUT, keys={"clip_norm": None, "clip_value": None, "average": False})
    assert method.transform == SGD()
    state, path = _told(method, np.ones((2, 5)))
    assert state.average is None
    assert np.array_equal(method.result_params(state), path[-1])
