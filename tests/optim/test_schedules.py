"""Schedules against exact rational arithmetic, torch's schedulers and the two convergence conditions themselves."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from bigopt.core.errors import ConfError
from bigopt.optim.build import build_schedule
from bigopt.optim.cycles import Cosine, OneCycle
from bigopt.optim.decays import Constant, Exponential, InverseSqrt, InverseTime, Polynomial, StepDecay
from bigopt.optim.schedules import SCHEDULES, Warmup, batch_factor, convergence

EXAMPLES = {
    "constant": Constant(0.1),
    "inverse_time": InverseTime(0.1, 0.5),
    "inverse_sqrt": InverseSqrt(0.1, 0.5),
    "exponential": Exponential(0.1, 0.999),
    "step": StepDecay(0.1, 400.0, 0.5),
    "polynomial": Polynomial(0.1, 1500.0, 2.0),
    "one_cycle": OneCycle(0.1, 500.0),
    "cosine": Cosine(0.1, 7.5, 1.5, 0.01),
}


def torch_rates(make, rate: float, steps: int) -> list[float]:
    """Rates that torch.optim.SGD sees in its first steps under the scheduler `make(optimizer)`."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


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


def test_inverse_sqrt() -> None:
    rule = InverseSqrt(0.3, 0.25)
    assert rule(0) == 0.3
    assert rule(12) == pytest.approx(0.15, rel=1e-15)
    for k in (0.5, 7.25, 1e6):
        assert rule(k) ** 2 == pytest.approx(InverseTime(0.09, 0.25)(k), rel=1e-14)
    rates = torch_rates(lambda s, o: s.LambdaLR(o, lambda k: (1 + 0.25 * k) ** -0.5), 0.3, 200)
    np.testing.assert_allclose([rule(k) for k in range(200)], rates, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 0.97, 1.0])
def test_exponential_equals_torch(gamma) -> None:
    rates = torch_rates(lambda s, o: s.ExponentialLR(o, gamma), 0.3, 200)
    np.testing.assert_allclose([Exponential(0.3, gamma)(k) for k in range(200)], rates, rtol=1e-12)
    assert Exponential(0.3, gamma)(2.5) == pytest.approx(0.3 * math.exp(2.5 * math.log(gamma)), rel=1e-14)


@pytest.mark.parametrize("every", [1, 3, 30])
def test_step_equals_torch(every) -> None:
    rates = torch_rates(lambda s, o: s.StepLR(o, every, 0.5), 0.3, 200)
    np.testing.assert_allclose([StepDecay(0.3, every, 0.5)(k) for k in range(200)], rates, rtol=1e-12)


@pytest.mark.parametrize("every", ["1/10", "3/10", "1/3", "7/3", "391"])
def test_step_drops_exactly_at_multiples_of_fractional_lengths(every) -> None:
    """The floor of the exact quotient: 0.3/0.1 is 3, though it is less in floats."""
    T = Fraction(every)
    rule = StepDecay(1.0, float(T), 0.5)
    for i in range(1, 200):
        assert rule(float(i * T)) == 0.5**i
        assert rule(float(i * T - T / 1000)) == 0.5 ** (i - 1)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("period", [1, 30, 150])
def test_polynomial_equals_torch(period, power) -> None:
    rule = Polynomial(0.3, period, power)
    rates = torch_rates(lambda s, o: s.PolynomialLR(o, total_iters=period, power=power), 0.3, 200)
    np.testing.assert_allclose([rule(k) for k in range(200)], rates, rtol=0, atol=1e-12)
    assert rule(period) == rule(10.0 * period) == 0.0
    assert rule(period / 4) == pytest.approx(0.3 * 0.75**power, rel=1e-14)


@pytest.mark.parametrize("how", [{}, {"pct_start": 0.5, "div": 10.0, "final_div": 100.0}])
@pytest.mark.parametrize("period", [4, 10, 33, 200])
def test_one_cycle_equals_torch(period, how) -> None:
    if how.get("pct_start", 0.3) * period == 1.0:
        pytest.fail("torch divides by zero there; see the next test")
    words = {"pct_start": "pct_start", "div": "div_factor", "final_div": "final_div_factor"}
    theirs = {words[key]: value for key, value in how.items()}

    def make(s, o):
        return s.OneCycleLR(o, max_lr=0.3, total_steps=period + 1, cycle_momentum=False, **theirs)

    rule = OneCycle(0.3, period + 1, **how)
    rates = torch_rates(make, 0.1, period)
    np.testing.assert_allclose([rule(k) for k in range(period)], rates, rtol=0, atol=1e-12)


def test_one_cycle_at_its_corners() -> None:
    rule = OneCycle(0.3, 101.0, 0.25, 10.0, 100.0)
    peak = 0.25 * 101 - 1
    assert rule(0) == pytest.approx(0.03, rel=1e-14)
    assert rule(peak) == 0.3
    assert rule(peak / 2) == pytest.approx(0.165, rel=1e-14)
    assert rule(100) == pytest.approx(0.0003, rel=1e-12)
    assert rule(1e6) == rule(100)
    assert OneCycle(0.3, 4.0, 0.25)(0) == 0.3  # torch: division by zero
    assert OneCycle(0.3, 1.0)(0) == pytest.approx(0.3 / 25 / 1e4, rel=1e-9)


def test_one_cycle_in_epochs_is_the_one_in_steps() -> None:
    """Seven steps an epoch: the same rates, the last one at the last step and not an epoch before."""
    steps = build_schedule("one_cycle", {"learning_rate": 0.3}, default_rate=1.0, default_period=70.0)
    epochs = build_schedule("one_cycle", {"learning_rate": 0.3}, default_rate=1.0, default_period=10.0, tick=1 / 7)
    for k in range(75):
        assert epochs(k / 7) == pytest.approx(steps(k), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one_cycle"])
@pytest.mark.parametrize("start", [0.01, 1 / 3, 1.0])
def test_warm_up_equals_torch(name, start) -> None:
    """SequentialLR of LinearLR and the main schedule; torch's OneCycleLR cannot be the second of two."""
    main = {
        "constant": (lambda s, o: s.ConstantLR(o, factor=1.0), {}),
        "inverse_time": (lambda s, o: s.LambdaLR(o, lambda k: 1 / (1 + k)), {}),
        "inverse_sqrt": (lambda s, o: s.LambdaLR(o, lambda k: (1 + k) ** -0.5), {}),
        "exponential": (lambda s, o: s.ExponentialLR(o, 0.97), {"gamma": 0.97}),
        "step": (lambda s, o: s.StepLR(o, 30, 0.5), {"every": 30, "gamma": 0.5}),
        "polynomial": (lambda s, o: s.PolynomialLR(o, total_iters=80), {"period": 80}),
        "cosine": (lambda s, o: s.CosineAnnealingWarmRestarts(o, T_0=10, T_mult=2), {"period": 10, "t_mul": 2}),
    }
    make, keys = main[name]
    rule = build_schedule(name, {"warmup": 20, "start_factor": start, **keys}, default_rate=0.3)

    def both(s, o):
        first = s.LinearLR(o, start_factor=start, total_iters=20)
        return s.SequentialLR(o, [first, make(s, o)], milestones=[20])

    with np.errstate(all="raise"):
        rates = torch_rates(both, 0.3, 150)
    np.testing.assert_allclose([rule(k) for k in range(150)], rates, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_goes_before_any_schedule(name) -> None:
    main = EXAMPLES[name]
    rule = Warmup(main, 7.5, 0.2)
    for k in (0.0, 0.1, 3.75, 7.4):
        assert rule(k) == pytest.approx((0.2 + 0.8 * k / 7.5) * main(0.0), rel=1e-14)
    for k in (7.5, 8.0, 1234.5):
        assert rule(k) == main(k - 7.5)
    assert (rule.vanishes, rule.sum_infinite) == (main.vanishes, main.sum_infinite)
    assert rule.formula == f"{main.formula}, after a warm-up of 7.5 from 0.2 of its first rate"
    assert Warmup(main, 9.0)(0.0) == pytest.approx(main(0.0) / 3, rel=1e-15)


def test_what_null_means_follows_from_the_length_of_the_run() -> None:
    def built(name, **keys):
        return build_schedule(name, keys, default_rate=0.3, default_period=300.0)

    assert built("exponential")(300) == pytest.approx(0.003, rel=1e-12)
    assert [built("step")(k) for k in (0, 99, 100, 200)] == pytest.approx([0.3, 0.3, 0.03, 0.003], rel=1e-12)
    assert built("polynomial") == Polynomial(0.3, 300.0)
    assert built("one_cycle") == OneCycle(0.3, 300.0)
    assert built("polynomial", warmup=60) == Warmup(Polynomial(0.3, 240.0), 60.0)
    assert built("polynomial", warmup=60)(300) == 0.0


@pytest.mark.parametrize(
    ("name", "keys", "where", "text"),
    [
        ("exponential", {}, "schedule.gamma", "null means a hundredth of the rate at the run's end, and this run has"),
        ("step", {}, "schedule.every", "null means a third of the run's length, and this run has none"),
        ("polynomial", {}, "schedule.period", "null means the run's length, and this run has none"),
        ("one_cycle", {}, "schedule.period", "null means the run's length, and this run has none"),
        ("constant", {"start_factor": 0.5}, "schedule.start_factor", "start_factor without a warm-up"),
        ("constant", {"warmup": 0.0}, "schedule.warmup", "0 is not in (0, inf)"),
        ("constant", {"M": 5.0}, "schedule.M", "schedule 'constant' does not use this key"),
        ("one_cycle", {"period": 5, "tick": 0.5}, "schedule.tick", "schedule 'one_cycle' does not use this key"),
    ],
)
def test_refusals(name, keys, where, text) -> None:
    with pytest.raises(ConfError) as caught:
        build_schedule(name, keys, default_rate=0.1)
    assert caught.value.where == where
    assert text in str(caught.value)


def test_a_warm_up_must_end_before_the_run() -> None:
    with pytest.raises(ConfError, match="a warm-up of 50 in a run of 50") as caught:
        build_schedule("cosine", {"warmup": 50}, default_rate=0.1, default_period=50.0)
    assert caught.value.where == "schedule.warmup"
    with pytest.raises(ConfError, match="'long' is not a number"):
        build_schedule("cosine", {"warmup": "long"}, default_rate=0.1, default_period=50.0)


def test_scaling_rules() -> None:
    """From b to b': k, sqrt(k), and k (M + b)/(M + b'), which is k far below M and 1 far above."""
    assert batch_factor("none", 128, 1024) == 1.0
    assert batch_factor("linear", 128, 1024) == 8.0
    assert batch_factor("sqrt", 128, 512) == 2.0
    assert batch_factor("critical", 100, 400, 200.0) == pytest.approx(4 * 300 / 600, rel=1e-15)
    assert batch_factor("critical", 1, 8, 1e12) == pytest.approx(8.0, rel=1e-10)
    assert batch_factor("critical", 10**6, 8 * 10**6, 1e-3) == pytest.approx(1.0, rel=1e-8)
    step = batch_factor("critical", 10, 20, 33.0) * batch_factor("critical", 20, 80, 33.0)
    assert step == pytest.approx(batch_factor("critical", 10, 80, 33.0), rel=1e-14)
    with pytest.raises(ConfError, match="needs the noise scale") as caught:
        batch_factor("critical", 1, 2)
    assert caught.value.where == "schedule.M"
    with pytest.raises(ConfError, match="not in"):
        batch_factor("critical", 1, 2, 0.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_conditions_hold_numerically(name) -> None:
    """eta -> 0: the largest of [N, 2N) falls with N. Sum infinite: the sum over [N, 2N) does not (condensation)."""
    rule = EXAMPLES[name]
    early, late = (np.array([rule(k) for k in range(n, 2 * n)]) for n in (1_000, 200_000))
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
        "inverse_sqrt": "eta = 0.1 / sqrt(1 + 0.5 k)",
        "exponential": "eta = 0.1 * 0.999^k",
        "step": "eta = 0.1 * 0.5^floor(k / 400)",
        "polynomial": "eta = 0.1 (1 - min(k, K)/K)^2, K = 1500",
        "one_cycle": "eta from 0.004 up to 0.1 at 0.3 K, down to 4e-07 at K = 500",
        "cosine": "eta = 0.01 + 0.045 (1 + cos(pi T_cur / T)), T = 7.5, T *= 1.5 at each restart",
    }


def test_words_for_a_summable_schedule() -> None:
    """SPEC: exp(-t) breaks the second condition."""
    rule = Exponential(0.1, math.exp(-1))
    assert convergence(rule).endswith("sum eta_t = infinity: no; SGD may stop short of the optimum")
    assert convergence(Exponential(0.1, 1.0)) == convergence(Constant(0.1))
    assert convergence(StepDecay(0.1, 5.0, 1.0)) == convergence(Constant(0.1))


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: Constant(0.0), "schedule.learning_rate"),
        (lambda: Constant(math.inf), "schedule.learning_rate"),
        (lambda: InverseTime(0.1, 0.0), "schedule.decay"),
        (lambda: InverseSqrt(0.1, -1.0), "schedule.decay"),
        (lambda: Exponential(0.1, 1.5), "schedule.gamma"),
        (lambda: Exponential(0.1, 0.0), "schedule.gamma"),
        (lambda: StepDecay(0.1, 0.0), "schedule.every"),
        (lambda: StepDecay(0.1, 1.0, 2.0), "schedule.gamma"),
        (lambda: Polynomial(0.1, 0.0), "schedule.period"),
        (lambda: Polynomial(0.1, 1.0, 0.0), "schedule.power"),
        (lambda: OneCycle(0.1, 0.0), "schedule.period"),
        (lambda: OneCycle(0.1, 1.0, 1.0), "schedule.pct_start"),
        (lambda: OneCycle(0.1, 1.0, 0.3, 0.0), "schedule.div"),
        (lambda: OneCycle(0.1, 1.0, 0.3, 2.0, -1.0), "schedule.final_div"),
        (lambda: Warmup(Constant(0.1), 0.0), "schedule.warmup"),
        (lambda: Warmup(Constant(0.1), 1.0, 0.0), "schedule.start_factor"),
        (lambda: Warmup(Constant(0.1), 1.0, 1.1), "schedule.start_factor"),
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
