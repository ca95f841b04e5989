"""The method interface: worked numbers, who owns which buffer, checkpoints, dtypes, divergence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bigopt.core.codec import dumps, load, loads, save
from bigopt.core.errors import DivergedError
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums
from bigopt.optim.build import build_method
from bigopt.optim.method import Ask, FirstOrder, Step
from bigopt.optim.schedules import Constant
from bigopt.optim.table import OPTIMIZERS

LAYOUT = Layout((Block("weight", (4,), True), Block("bias", (1,), False)))


def _sums(grad: np.ndarray, weight: float = 1.0) -> Sums:
    return Sums(grad, 0.0, weight, int(weight))


def _bits(value) -> bytes:
    return b"".join(bytes(part) for part in dumps(value))


class TestWorkedNumbers:
    X = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    y = np.array([1.0, 1.0, -1.0, -1.0])

    def _walk(self, flat, batches) -> list[list[float]]:
        method = build_method("sgd", flat(2), schedule_keys={"learning_rate": 0.5})
        state, ask = method.start(np.zeros(2))
        path = []
        for rows in batches:
            X, y = self.X[rows], self.y[rows]
            grad = 2 * X.T @ (X @ ask.params - y)
            state, step = method.tell(state, _sums(grad, len(rows)), float(len(rows)), 0.0)
            path.append(step.params.tolist())
            ask = method.ask(state)
        return path

    def test_number_1_one_row_at_a_time(self, flat) -> None:
        assert self._walk(flat, [[0], [1]]) == [[0.0, 1.0], [0.0, 1.0]]

    def test_number_1_batches_of_two(self, flat) -> None:
        assert self._walk(flat, [[0, 1], [2, 3]]) == [[0.5, 1.0], [-0.25, 1.0]]

    # rate and schedule for each name: plain rules contract by a constant; the scaled ones need a step that decays.
    RATES = {  # noqa: RUF012
        "gd": (0.2, "constant"),
        "sgd": (0.2, "inverse_time"),
        "momentum": (0.05, "constant"),
        "nesterov": (0.05, "constant"),
        "adagrad": (1.0, "constant"),
        "rmsprop": (0.05, "cosine"),
        "adadelta": (1.0, "cosine"),
        "adam": (0.05, "cosine"),
        "adamw": (0.05, "cosine"),
        "amsgrad": (0.3, "constant"),
        "adamax": (0.3, "constant"),
        "nadam": (0.05, "cosine"),
        "yogi": (0.1, "constant"),
        "lion": (0.01, "cosine"),
        "lars": (0.15, "cosine"),
        "lamb": (0.005, "cosine"),
    }

    @pytest.mark.parametrize("name", OPTIMIZERS)
    @pytest.mark.parametrize(
        ("gradient", "optimum"),
        [(lambda w: 2 * (w - 4), 4.0), (lambda w: -np.exp(-w) + 2 * w, 0.3517337)],
        ids=["parabola", "transcendental"],
    )
    def test_number_9(self, name, gradient, optimum, flat, minimise) -> None:
        rate, schedule = self.RATES[name]
        keys = {"inverse_time": {"decay": 0.001}}.get(schedule, {})
        method = build_method(
            name,
            flat(1),
            keys={"weight_decay": 0.0} if name == "adamw" else {},
            schedule=schedule,
            schedule_keys={"learning_rate": rate, **keys},
            default_period=3000.0,
        )
        # The layer-wise rules move by parts of norm(w): they start where there is one.
        start = np.ones(1) if name in ("lars", "lamb") else np.zeros(1)
        state, _ = minimise(method, gradient, start, 3000)
        assert abs(state.params[0] - optimum) <= 1e-6


class TestOwnership:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_params_given_out_never_change(self, name, problem, flat, minimise) -> None:
        method = build_method(name, flat(problem.start.size), schedule_keys={"learning_rate": 1e-4})
        start = problem.start.copy()
        state, first = method.start(start)
        start[:] = np.nan  # the caller's own array is not the state's
        given = [first.params]
        copies = [first.params.copy()]
        for _ in range(6):
            state, step = method.tell(state, _sums(problem.gradient(given[-1])), 1.0, 0.0)
            for params in (step.params, method.ask(state).params):
                given.append(params)
                copies.append(params.copy())
        assert all(np.array_equal(a, b) for a, b in zip(given, copies, strict=True))
        assert not np.array_equal(given[0], given[-1])
        for params in given:
            with pytest.raises(ValueError, match="read-only"):
                params[0] = 0.0

    def test_a_gradient_buffer_cannot_be_used_twice_unnoticed(self) -> None:
        method = build_method("sgd", LAYOUT)
        state, _ = method.start(np.zeros(5))
        grad = np.ones(5)
        _, step = method.tell(state, _sums(grad), 1.0, 0.0)
        assert np.shares_memory(grad, step.params)
        with pytest.raises(ValueError, match="read-only"):
            grad += 1.0

    def test_read_only_sums_and_states_are_copied(self) -> None:
        """What `loads` makes of bytes is read-only; the bits are the same."""
        method = build_method("adam", LAYOUT)
        state, _ = method.start(np.arange(5.0))
        other = loads([bytes(part) for part in dumps(state)])
        for _ in range(3):
            grad = state.params * 2 + 1
            sent = loads([bytes(part) for part in dumps(_sums(grad))])
            other, _ = method.tell(loads([bytes(p) for p in dumps(other)]), sent, 3.0, 0.0)
            assert np.array_equal(sent.grad, grad)
            state, _ = method.tell(state, _sums(grad), 3.0, 0.0)
        assert _bits(other) == _bits(state)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_checkpoint_in_mid_run_gives_the_same_bits(name, dtype, tmp_path) -> None:
    rng = np.random.default_rng(21)
    start, grads = rng.normal(size=5).astype(dtype), rng.normal(size=(12, 5)).astype(dtype)
    method = build_method(name, LAYOUT, schedule="cosine", schedule_keys={"period": 3.3, "t_mul": 1.3})

    def advance(state, steps: range):
        for k in steps:
            state, step = method.tell(state, _sums(grads[k].copy()), 3.0, k / 4)
        return state, step

    straight, last = advance(method.start(start)[0], range(12))
    half, _ = advance(method.start(start)[0], range(7))
    save(tmp_path / "state.npz", half)
    resumed = load(tmp_path / "state.npz")
    assert np.array_equal(method.ask(resumed).params, half.params)
    after, end = advance(resumed, range(7, 12))
    assert _bits(after) == _bits(straight)
    assert _bits(end) == _bits(last)
    assert after.step == 12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_stays_float32(name) -> None:
    method = build_method(name, LAYOUT, keys={k: 0.5 for k in OPTIMIZERS[name].keys if k in ("momentum", "eps")})
    state, ask = method.start(np.ones(5, dtype=np.float32))
    for _ in range(2):
        state, step = method.tell(state, _sums(np.full(5, 2, dtype=np.float32)), np.float64(3.0), np.float64(0.0))
    arrays = [ask.params, step.params, *(x for x in state.inner if isinstance(x, np.ndarray))]
    assert {x.dtype for x in arrays} == {np.dtype(np.float32)}
    assert type(step.learning_rate) is type(step.grad_norm) is float


def test_divides_once_then_adds_the_penalty_at_the_current_params() -> None:
    seen = []

    def ridge(grad: np.ndarray, params: np.ndarray) -> None:
        seen.append((grad.copy(), params.copy()))
        grad[:4] += 2 * 0.25 * params[:4]

    method = build_method("sgd", LAYOUT, schedule_keys={"learning_rate": 0.5}, penalty=ridge)
    state, _ = method.start(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    state, step = method.tell(state, _sums(np.full(5, 8.0), 16.0), 4.0, 0.0)
    assert np.array_equal(seen[0][0], np.full(5, 2.0))
    assert np.array_equal(seen[0][1], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert step.params.tolist() == [-0.25, 0.5, 1.25, 2.0, 4.0]
    assert step.grad_norm == pytest.approx(math.sqrt(2.5**2 + 3**2 + 3.5**2 + 4**2 + 2**2), rel=1e-15)
    assert isinstance(step, Step)


def test_k_counts_steps_or_epochs() -> None:
    for unit, want in (("step", [0.1, 0.05, 0.1 / 3]), ("epoch", [0.1, 0.1 / 1.25, 0.1 / 1.5])):
        method = build_method(
            "sgd", LAYOUT, schedule="inverse_time", schedule_keys={"learning_rate": 0.1, "decay": 1.0}, unit=unit
        )
        state, _ = method.start(np.zeros(5))
        rates = []
        for k in range(3):
            state, step = method.tell(state, _sums(np.ones(5)), 1.0, k / 4)
            rates.append(step.learning_rate)
        assert rates == pytest.approx(want, rel=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_leaves_the_state_alone(name, bad) -> None:
    method = build_method(name, LAYOUT)
    state, _ = method.start(np.ones(5))
    state, _ = method.tell(state, _sums(np.ones(5)), 1.0, 0.0)
    before, grad = _bits(state), np.ones(5)
    grad[3] = bad
    with pytest.raises(DivergedError, match="step 2: the gradient is not finite") as caught:
        method.tell(state, _sums(grad), 1.0, 0.0)
    assert caught.value.exit_code == 4
    assert _bits(state) == before
    method.tell(state, _sums(np.ones(5)), 1.0, 0.0)


def test_steps_that_overflow_are_found_at_the_next_gradient() -> None:
    """No NumPy warning on the way (warnings are errors here), then one clear error."""
    method = build_method("sgd", LAYOUT, schedule_keys={"learning_rate": 1e10})
    state, _ = method.start(np.full(5, 1e300))
    state, step = method.tell(state, _sums(np.full(5, 1e300)), 1.0, 0.0)
    assert np.isinf(step.params).all()
    with pytest.raises(DivergedError, match="step 2"):
        method.tell(state, _sums(2 * step.params), 1.0, 0.0)


def test_huge_gradients_have_a_finite_norm() -> None:
    method = build_method("adam", LAYOUT)
    state, _ = method.start(np.zeros(5))
    _, step = method.tell(state, _sums(np.array([3e200, 4e200, 0, 0, 0])), 1.0, 0.0)
    assert step.grad_norm == pytest.approx(5e200, rel=1e-15)
    assert np.isfinite(step.params).all()


@pytest.mark.parametrize("divisor", [0.0, -1.0, math.nan, math.inf])
def test_divisors_that_make_no_mean_are_refused(divisor) -> None:
    method = build_method("sgd", LAYOUT)
    state, _ = method.start(np.zeros(5))
    with pytest.raises(ValueError, match="divisor"):
        method.tell(state, _sums(np.ones(5)), divisor, 0.0)


def test_mismatched_gradients_are_refused() -> None:
    method = build_method("sgd", LAYOUT)
    state, _ = method.start(np.zeros(5))
    for grad in (np.ones(4), np.ones((5, 1)), np.ones(5, dtype=np.float32)):
        with pytest.raises(ValueError, match="does not match"):
            method.tell(state, _sums(grad), 1.0, 0.0)
    with pytest.raises(ValueError, match="layout of 5"):
        method.start(np.zeros(4))


def test_questions_and_answers_travel() -> None:
    ask = Ask("gradient", np.arange(3.0))
    back = loads([bytes(part) for part in dumps(ask)])
    assert (back.kind, back.params.tolist(), back.candidates) == ("gradient", [0.0, 1.0, 2.0], ())
    method = build_method("adamw", LAYOUT, schedule="cosine", default_period=10.0)
    assert loads([bytes(p) for p in dumps((method.transform, method.schedule))]) == (method.transform, method.schedule)
    assert isinstance(method, FirstOrder)
    assert build_method("gd", LAYOUT).schedule == Constant(0.01)
