"""Line searches against their definitions: the sequential rule, the strong Wolfe conditions, the closed form."""

from __future__ import annotations

import numpy as np
import pytest
from lines import Smooth, quadratic, rosenbrock, transcendental, walk

from bigopt.core.codec import dumps, loads
from bigopt.core.errors import ConfError, DivergedError
from bigopt.core.layout import Block, Layout
from bigopt.core.sums import LineSums, Sums
from bigopt.optim import linesearch
from bigopt.optim.build import build_method

LINES = {
    "parabola": (lambda a: (a - 3.0) ** 2, lambda a: 2 * (a - 3.0)),
    "far": (lambda a: (a / 1e4 - 3.0) ** 2, lambda a: 2e-4 * (a / 1e4 - 3.0)),
    "near": (lambda a: (a * 1e6 - 3.0) ** 2, lambda a: 2e6 * (a * 1e6 - 3.0)),
    "flat tail": (lambda a: -a / (a * a + 2.0), lambda a: (a * a - 2.0) / (a * a + 2.0) ** 2),
    "wall": (
        lambda a: -np.log(0.7 - a) - 5 * a if a < 0.7 else np.inf,
        lambda a: 1 / (0.7 - a) - 5 if a < 0.7 else np.nan,
    ),
    "waves": (lambda a: -a + 0.9 * np.sin(4 * a), lambda a: -1 + 3.6 * np.cos(4 * a) if a > 0 else -1.0),
}

SEARCHING = [
    ("gd", "exact_line_search", 0.0),
    ("gd", "backtracking", 0.0),
    ("newton", "constant", 0.0),
    ("lbfgs", "constant", 0.0),
    ("lbfgs", "constant", 0.3),
]


def search(value, slope, first):
    """The loop of L-BFGS on one line; returns the accepted eta and the number of rounds."""
    trials, steps = linesearch.NO_TRIALS, (0.0, *first)
    for rounds in range(1, linesearch.MOST_ROUNDS + 1):
        sums = LineSums(np.array([value(a) for a in steps]), np.array([slope(a) for a in steps]), np.empty(0), 1.0, 1)
        trials = linesearch.add_trials(trials, steps, sums, 1.0, linesearch.Parabola(0.0, 0.0, 0.0))
        found = linesearch.wolfe(trials, 1e-4, 0.1)
        if found is not None:
            return float(trials.steps[found]), rounds
        steps = linesearch.refine(trials, *linesearch.bracket(trials, 1e-4), 5)
    raise AssertionError("no strong Wolfe point found")


@pytest.mark.parametrize("name", [n for n in LINES if n != "waves"])
@pytest.mark.parametrize("first", [(1.0,), (0.25, 0.5, 1.0, 2.0, 4.0)])
def test_the_search_ends_in_a_strong_wolfe_point_within_a_few_rounds(name, first):
    value, slope = LINES[name]
    eta, rounds = search(value, slope, first)
    assert eta > 0
    assert value(eta) <= value(0.0) + 1e-4 * eta * slope(0.0)
    assert abs(slope(eta)) <= 0.1 * abs(slope(0.0))
    assert rounds <= 6


def test_decrease_is_seen_by_slopes_where_values_are_the_same_to_the_last_bit():
    eta = np.array([0.0, 0.5, 1.0, 2.5])
    t = linesearch.Trials(eta, np.ones(4), 1e-20 * (eta - 1.0), np.full(4, np.nan))
    assert linesearch.decreased(t, 1e-4, -1e-20).tolist() == [False, True, True, False]
    worse = t._replace(values=np.array([1.0, 1.0, 1.0 + 1e-9, 1.0]))
    assert linesearch.decreased(worse, 1e-4, -1e-20).tolist() == [False, True, False, False]


def test_a_quadratic_penalty_along_a_line_follows_from_its_gradient():
    rng = np.random.default_rng(0)
    w, d = rng.normal(size=(2, 5))
    held = np.array([1.0, 1, 1, 0, 0])

    def gradient(grad, params):
        grad += 2 * 0.3 * held * params

    found = linesearch.penalty_on_line(gradient, w, d)
    for eta in (0.0, 0.7, -2.0):
        along = found.value + eta * found.slope + 0.5 * eta**2 * found.curve
        assert along == pytest.approx(0.3 * np.sum(held * (w + eta * d) ** 2), rel=1e-13)


@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize(("gamma", "delta"), [(0.5, 1e-4), (0.9, 0.3), (0.1, 0.9)])
def test_backtracking_takes_what_trying_one_step_after_another_would(flat, rate, gamma, delta):
    f = rosenbrock()
    method = build_method(
        "gd", flat(2), schedule="backtracking", schedule_keys={"learning_rate": rate, "gamma": gamma, "delta": delta}
    )
    _, steps, asked = walk(method, f, np.array([-1.2, 1.0]), 5)
    w = np.array([-1.2, 1.0])
    for step, asks in zip(steps, asked, strict=True):
        g, eta, j = f.gradient(w), rate, 0
        while not f.value(w - eta * g) <= f.value(w) - delta * eta * g @ g:
            j += 1
            eta = rate * gamma**j
        assert step.learning_rate == pytest.approx(eta, rel=1e-12)
        assert len(asks) == 2 + j // 16  # sixteen candidates a round
        assert [a.kind for a in asks] == ["gradient"] + ["values"] * (len(asks) - 1)
        w = w - eta * g
        np.testing.assert_allclose(step.params, w, rtol=1e-12)


def test_exact_search_on_a_quadratic_is_the_closed_form_in_one_more_round(flat):
    f = quadratic(np.array([1.0, 4.0, 100.0]), np.array([1.0, -2.0, 3.0]))
    method = build_method("gd", flat(3), schedule="exact_line_search", quadratic=True)
    _, steps, asked = walk(method, f, np.zeros(3), 4)
    w = np.zeros(3)
    for step in steps:
        g = f.gradient(w)
        eta = g @ g / (g @ f.hessian(w) @ g)
        assert step.learning_rate == pytest.approx(eta, rel=1e-13)
        w = w - eta * g
    assert {len(asks) for asks in asked} == {2}


def test_exact_search_by_bracketing_finds_the_same_minimum_as_the_closed_form(flat):
    f = quadratic(np.array([1.0, 4.0, 100.0]), np.array([1.0, -2.0, 3.0]))
    for rate in (1e-4, 1.0, 1e5):
        keys = {"learning_rate": rate}
        method = build_method("gd", flat(3), schedule="exact_line_search", schedule_keys=keys)
        _, (step,), (asks,) = walk(method, f, np.zeros(3), 1)
        g = f.gradient(np.zeros(3))
        assert step.learning_rate == pytest.approx(g @ g / (g @ f.hessian(g) @ g), rel=1e-8)
        assert len(asks) <= 8


@pytest.mark.parametrize("start", [0.0, 1.0, -2.0])
@pytest.mark.parametrize(("name", "schedule", "l1"), [s for s in SEARCHING if not s[2]])
def test_worked_number_9(flat, name, schedule, l1, start):
    """3 + (w-4)^2: w = 4; e^-w + w^2: w = 0.3517337, f = 0.8271840."""
    parabola = Smooth(lambda w: float(3 + (w[0] - 4) ** 2), lambda w: 2 * (w - 4), lambda w: np.array([[2.0]]))
    for f, optimum, least in ((parabola, 4.0, 3.0), (transcendental(), 0.3517337112, 0.8271840261)):
        method = build_method(name, flat(1), schedule=schedule, quadratic=f is parabola, l1=l1)
        _, steps, _ = walk(method, f, np.array([start]), 60)
        assert steps[-1].params[0] == pytest.approx(optimum, abs=1e-6)
        assert f.value(steps[-1].params) == pytest.approx(least, abs=1e-10)


@pytest.mark.parametrize("schedule", ["exact_line_search", "backtracking"])
def test_at_the_optimum_nothing_moves(flat, schedule):
    f = quadratic(np.array([1.0, 2.0]), np.zeros(2))
    _, (step,), (asks,) = walk(build_method("gd", flat(2), schedule=schedule), f, np.zeros(2), 1)
    assert (step.learning_rate, step.grad_norm, len(asks)) == (0.0, 0.0, 1)
    assert step.params.tolist() == [0.0, 0.0]


def test_a_search_that_finds_no_decrease_leaves_the_parameters(flat):
    f = Smooth(lambda w: float(w.tolist() != [1.0, 1.0]), lambda w: np.ones(2))  # a gradient the values know nothing of
    method = build_method("gd", flat(2), schedule="backtracking")
    _, (step,), _ = walk(method, f, np.ones(2), 1)
    assert step.params.tolist() == [1.0, 1.0]
    assert step.learning_rate < 1e-15


@pytest.mark.parametrize(("name", "schedule", "l1"), SEARCHING)
def test_the_state_travels_in_the_middle_of_a_step_and_asks_the_same(flat, name, schedule, l1):
    f = rosenbrock()
    method = build_method(name, flat(2), schedule=schedule, l1=l1)
    state, ask = method.start(np.array([-1.2, 1.0]))
    for _ in range(25):
        again = loads([bytes(part) for part in dumps(state)])
        assert b"".join(bytes(p) for p in dumps(method.ask(again))) == b"".join(
            bytes(p) for p in dumps(method.ask(state))
        )
        state, _ = method.tell(again, f.answer(ask), 1.0, 0.0)
        ask = method.ask(state)


@pytest.mark.parametrize(("name", "schedule", "l1"), SEARCHING)
def test_a_step_leaves_alone_the_state_it_began_with(flat, name, schedule, l1):
    f = rosenbrock()
    method = build_method(name, flat(2), schedule=schedule, l1=l1)
    state, _, _ = walk(method, f, np.array([-1.2, 1.0]), 4)
    before = b"".join(bytes(p) for p in dumps(state))
    results = []
    for _ in range(2):
        inner, made = state, None
        while not hasattr(made, "grad_norm"):
            inner, made = method.tell(inner, f.answer(method.ask(inner)), 1.0, 0.0)
        results.append(made.params.tobytes())
    assert b"".join(bytes(p) for p in dumps(state)) == before
    assert results[0] == results[1]


def test_what_is_not_finite_ends_with_one_clear_error():
    layout = Layout((Block("weight", (2,), True),))
    method = build_method("lbfgs", layout)
    state, _ = method.start(np.zeros(2))
    with pytest.raises(DivergedError, match=r"step 1: the gradient is not finite"):
        method.tell(state, Sums(np.array([np.inf, 0.0]), 0.0, 1.0, 1), 1.0, 0.0)
    state, ask = method.tell(state, Sums(np.ones(2), 0.0, 1.0, 1), 1.0, 0.0)
    bad = np.full(len(ask.candidates), np.inf)
    with pytest.raises(DivergedError, match="the loss is inf where the line search starts"):
        method.tell(state, LineSums(bad, bad * np.nan, np.empty(0), 1.0, 1), 1.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adam", "schedule": "backtracking"}, "searches along the gradient, which adam does not follow"),
        ({"name": "gd", "schedule": "backtracking", "keys": {"clip_norm": 1.0}}, "does not use this key"),
        ({"name": "gd", "schedule": "backtracking", "schedule_keys": {"gamma": 1.0}}, r"schedule\.gamma.*\(0, 1\)"),
        ({"name": "gd", "schedule": "exact_line_search", "schedule_keys": {"delta": 0.1}}, "does not use this key"),
        ({"name": "gd", "schedule": "exact_line_search", "l1": 0.1}, "no l1 penalty"),
        ({"name": "newton", "l1": 0.1}, "no l1 penalty"),
        ({"name": "lbfgs", "keys": {"history": 0}}, r"optimizer\.history"),
        ({"name": "lbfgs", "keys": {"history": 2.5}}, "not a whole number"),
        ({"name": "newton", "keys": {"damping": -1.0}}, r"optimizer\.damping"),
        ({"name": "newton", "keys": {"history": 5}}, "does not use this key"),
    ],
)
def test_what_does_not_go_together_is_refused(flat, arguments, message):
    with pytest.raises(ConfError, match=message):
        build_method(layout=flat(2), **arguments)
