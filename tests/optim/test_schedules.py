"""Schedules against exact rational arithmetic, torch's schedulers and the two convergence conditions themselves."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from bigopt.core.errors import ConfError
from bigopt.optim.schedules import SCHEDULES, Constant, Cosine, InverseTime, convergence

EXAMPLES = {"constant": Constant(0.1), "inverse_time": InverseTime(0.1, 0.5), "cosine": Cosine(0.1, 7.5, 1.5, 0.01)}


def exact_cosine(k: Fraction, period: Fraction, t_mul: Fraction, eta_max: float, eta_min: float) -> float:
    """The rule as SPEC states it, T_cur and T without rounding."""
    current, length = k, period
    while current >= length:
        current -= length
        length *= t_mul
    return eta_min + (eta_max - eta_min) / 2 * (1 + math.cos(math.pi * float(current / length)))


@pytest.mark.parametrize("t_mul", ["1", "2", "3", "1.5", "1.1", "1.0001", "7/3"])
@pytest.mark.parametrize("period", ["1", "10", "0.1", "1/3", "7.3", "391"])
def test_cosine_is_the_exact_rule(period, t_mul) -> None:
    """At random fractional k, at every restart as rounded to a float, and a little to both sides of it."""
    T, M = Fraction(period), Fraction(t_mul)
    rule = Cosine(0.3, float(T), float(M), 0.02)
    rng = np.random.default_rng(5)
    ks = [Fraction(int(n), 1000) * T for n in rng.integers(0, 40_000, size=60)]
    start, length = Fraction(0), T
    for _ in range(12):
        start, length = start + length, length * M
        ks += [start, start - length / 1000, start + length / 1000]
    for k in ks:
        want = exact_cosine(k, T, M, 0.3, 0.02)
        assert rule(float(k)) == pytest.approx(want, rel=0, abs=1e-12), (k, want)


def test_cosine_at_a_restart_is_eta_max() -> None:
    rule = Cosine(0.3, 10.0, 2.0, 0.02)
    for k in (0, 10, 30, 70, 150):
        assert rule(k) == 0.3
    assert rule(5) == pytest.approx(0.16, rel=1e-15)
    assert rule(20) == pytest.approx(0.16, rel=1e-15)
    assert rule(math.nextafter(70, 0) - 1e-6) == pytest.approx(0.02, rel=1e-6)
    assert Cosine(0.3, 0.1)(0.3) == 0.3  # 0.3 / 0.1 < 3 in floats


def test_cosine_late_in_a_run_is_as_exact() -> None:
    """Closed form: the millionth cycle and the sixtieth doubling."""
    assert Cosine(0.3, 10.0)(10_000_005.0) == pytest.approx(0.15, rel=1e-9)
    assert Cosine(0.3, 1.0, 2.0)(2.0**60 - 1.0) == 0.3


@pytest.mark.parametrize("t_mult", [1, 2, 3])
@pytest.mark.parametrize("period", [1, 4, 10])
def test_cosine_equals_torch(period, t_mult) -> None:
    """torch.optim's closed form at fractional epochs and its counting form at every step."""
    torch = pytest.importorskip("torch")
    rule = Cosine(0.3, period, t_mult, 0.02)

    def scheduler():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        optimizer.step()
        kind = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
        return optimizer, kind(optimizer, T_0=period, T_mult=t_mult, eta_min=0.02)

    optimizer, counting = scheduler()
    for k in range(400):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rule(k), rel=0, abs=1e-12), k
        counting.step()
    optimizer, closed = scheduler()
    for k in (np.arange(1, 600) / 7.0).tolist():
        closed.step(k)
        if abs(k - rule.start_of_cycle(rule.cycle(k))) > 1e-9:  # at exact restarts torch may slip, see below
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rule(k), rel=0, abs=1e-12), k


def test_where_torch_slips_the_formula_decides() -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=3)
    scheduler.step(121)
    assert optimizer.param_groups[0]["lr"] < 1e-6
    assert Cosine(0.3, 1.0, 3.0)(121.0) == 0.3


def test_inverse_time_and_constant_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    for rule, factor in ((InverseTime(0.3, 0.25), lambda k: 1 / (1 + 0.25 * k)), (Constant(0.3), lambda _: 1.0)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        optimizer.step()
        for k in range(200):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rule(k), rel=1e-12)
            scheduler.step()
    assert InverseTime(0.3, 0.25)(2.5) == pytest.approx(0.3 / 1.625, rel=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_conditions_hold_numerically(name) -> None:
    """eta -> 0: the largest of [N, 2N) falls with N. Sum infinite: the sum over [N, 2N) does not (condensation)."""
    rule = EXAMPLES[name]
    early, late = (np.array([rule(k) for k in range(n, 2 * n)]) for n in (1_000, 30_000))
    assert rule.vanishes is bool(late.max() < 0.1 * early.max())
    assert rule.sum_infinite is bool(late.sum() > 0.9 * early.sum())


def test_words() -> None:
    assert convergence(Constant(0.1)) == (
        "eta_t -> 0: no; sum eta_t = infinity: yes; "
        "SGD stops at a floor that grows with eta, unless every row can be fitted exactly"
    )
    assert convergence(InverseTime(0.1)) == "eta_t -> 0: yes; sum eta_t = infinity: yes; SGD converges"
    assert {name: rule.formula for name, rule in EXAMPLES.items()} == {
        "constant": "eta = 0.1",
        "inverse_time": "eta = 0.1 / (1 + 0.5 k)",
        "cosine": "eta = 0.01 + 0.045 (1 + cos(pi T_cur / T)), T = 7.5, T *= 1.5 at each restart",
    }


class Summable:
    """exp(-k): what a later schedule may be."""

    vanishes, sum_infinite, formula = True, False, "eta = exp(-k)"

    def __call__(self, k: float) -> float:
        return math.exp(-k)


def test_words_for_a_summable_schedule() -> None:
    assert convergence(Summable()).endswith("sum eta_t = infinity: no; SGD may stop short of the optimum")


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: Constant(0.0), "schedule.learning_rate"),
        (lambda: Constant(math.inf), "schedule.learning_rate"),
        (lambda: InverseTime(0.1, 0.0), "schedule.decay"),
        (lambda: Cosine(0.1, 0.0), "schedule.period"),
        (lambda: Cosine(0.1, 1.0, 0.5), "schedule.t_mul"),
        (lambda: Cosine(0.1, 1.0, 1.0, 0.2), "schedule.eta_min"),
        (lambda: Cosine(0.1, 1.0, 1.0, -0.1), "schedule.eta_min"),
    ],
)
def test_out_of_range_is_refused(make, where) -> None:
    with pytest.raises(ConfError) as caught:
        make()
    assert caught.value.where == where
