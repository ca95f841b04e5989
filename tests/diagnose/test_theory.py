"""The formulas of a diagnosis against worked numbers, Monte-Carlo-free fixed points and each other."""

from __future__ import annotations

import numpy as np
import pytest

from bigopt.diagnose.knee import knee
from bigopt.diagnose.lanczos import formed, lanczos
from bigopt.diagnose.theory import b_stable, eta_b, gamma_crit, gaussian_root, small_step, steady_state

SPECTRUM = np.array([1.0, 0.5, 0.2, 0.1, 0.05])


@pytest.mark.parametrize("d", [1, 3, 10, 1000])
def test_worked_number_8(d: int) -> None:
    """x uniform on the unit vectors: R2 = E||x||^2 = 1, lambda_max = 1/d; eta_b rises from 1 towards d."""
    assert eta_b(1, 1.0, 1 / d) == 1.0
    for b in (1, 2, 7, 1e9):
        assert eta_b(b, 1.0, 1 / d) == pytest.approx(b / (1 + (b - 1) / d), rel=1e-14)
    assert eta_b(1e12, 1.0, 1 / d) == pytest.approx(d, rel=1e-8)
    assert b_stable(1.0, 1 / d) == pytest.approx(1 + d, rel=1e-14)


def operator(spectrum: np.ndarray, eta: float, b: float) -> np.ndarray:
    """How one step maps E delta^2 in the eigenbasis, from E[x x^T P x x^T] = 2 S P S + S tr(S P) for Gaussian rows."""
    mean = np.diag(spectrum**2)
    fourth = 2 * mean + np.outer(spectrum, spectrum)
    return np.eye(len(spectrum)) - 4 * eta * np.diag(spectrum) + 4 * eta**2 * (fourth / b + (1 - 1 / b) * mean)


@pytest.mark.parametrize("spectrum", [SPECTRUM, np.geomspace(1e-3, 2.0, 30), np.array([10.0, *[0.1] * 20]), np.ones(1)])
@pytest.mark.parametrize("b", [1, 16, 256])
def test_the_root_is_where_the_second_moment_stops_contracting(spectrum: np.ndarray, b: int) -> None:
    root = gaussian_root(spectrum, b)
    for eta, grows in ((root * (1 - 1e-6), False), (root * (1 + 1e-6), True)):
        assert (np.abs(np.linalg.eigvals(operator(spectrum, eta, b))).max() > 1) == grows
    simple = eta_b(b, spectrum.sum() + 2 * spectrum.max(), spectrum.max())
    assert simple <= root * (1 + 1e-12)
    assert root < 2 * simple


def test_the_root_of_a_full_batch_is_that_of_gradient_descent() -> None:
    assert gaussian_root(SPECTRUM, 1e15) == pytest.approx(1.0, rel=1e-10)
    assert gaussian_root(np.array([3.0]), 1) == pytest.approx(1 / 9, rel=1e-14)  # eta l / (1 - 2 eta l) = 1


@pytest.mark.parametrize(
    ("eta", "msd", "er"), [(0.002, 1.0052, 1.0066), (0.005, 1.0132, 1.0166), (0.02, 1.0554, 1.0699)]
)
def test_steady_state_against_the_specification(eta: float, msd: float, er: float) -> None:
    exact = steady_state(SPECTRUM, 1.0, eta)
    small = small_step(2 * np.diag(SPECTRUM), 4 * np.diag(SPECTRUM), eta)
    assert exact.msd / small.msd == pytest.approx(msd, abs=5e-5)
    assert exact.er / small.er == pytest.approx(er, abs=5e-5)


def test_steady_state_is_the_fixed_point() -> None:
    for b, eta in ((1, 0.1), (4, 0.3)):
        p = np.linalg.solve(np.eye(5) - operator(SPECTRUM, eta, b), 4 * eta**2 / b * 0.7 * SPECTRUM)
        found = steady_state(SPECTRUM, 0.7, eta, b)
        assert found.msd == pytest.approx(p.sum(), rel=1e-10)
        assert found.er == pytest.approx(p @ SPECTRUM, rel=1e-10)
    with pytest.raises(ValueError, match="no steady state"):
        steady_state(SPECTRUM, 1.0, 1.01 * gaussian_root(SPECTRUM, 1))


def test_gamma_crit() -> None:
    assert gamma_crit(8, 3.0, 40.0) == pytest.approx(8 / (10 * 3.0 * (40.0 + 8)), rel=1e-15)  # sync, tau = 1
    assert gamma_crit(1, 3.0, 40.0, tau=4) == pytest.approx(1 / (10 * 3.0 * 44.0), rel=1e-15)


def test_lanczos_against_eigh() -> None:
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    free = np.ones(60, dtype=bool)
    for values in (np.geomspace(1e-3, 1.0, 60), np.linspace(-1.0, 5.0, 60)):
        H = (Q * values) @ Q.T
        found = lanczos(lambda v, H=H: H @ v, free, seed=0, most=60)
        assert found.largest == pytest.approx(values[-1], rel=1e-3)
        assert found.smallest == pytest.approx(values[0], rel=0.05)
        assert abs(found.direction @ formed(H).direction) > 0.95
        early = lanczos(lambda v, H=H: H @ v, free, seed=0, most=12, smallest_share=None)
        assert early.products <= 12
        assert np.abs(values - early.largest).min() <= early.largest_error + 1e-12
        assert values[0] - 1e-12 <= early.smallest


def test_lanczos_ends_in_an_invariant_subspace_and_holds_coordinates() -> None:
    H = np.diag([4.0, 4.0, 1.0, 1.0, 100.0])
    free = np.array([True, True, True, True, False])
    found = lanczos(lambda v: H @ v, free, seed=3, most=50)
    assert found.products == 2
    assert (found.largest, found.smallest) == (pytest.approx(4.0), pytest.approx(1.0))
    assert found.direction[4] == 0.0


def test_knee() -> None:
    batches = [1, 4, 16, 64, 256, 1024]
    assert knee(batches, [1e-3 + 1e-5 * (b - 1) for b in batches]) == pytest.approx(100)
    assert knee(batches, [1e-3] * 6) is None
