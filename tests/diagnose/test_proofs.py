"""What a diagnosis promises, measured: thresholds and steady states by averaged runs, the spectrum of a large problem.

Runs are simulated many at a time by the update of `advanced`; a test says that this is what a run of bigopt does.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import run

from bigopt.config import load_conf
from bigopt.data.memory import from_arrays
from bigopt.data.plan import redraw
from bigopt.diagnose import diagnose
from bigopt.diagnose.theory import gaussian_root, small_step, steady_state
from bigopt.facts import Datasets

RAW = ["model.name=linear", "model.standardize=false", "model.intercept=false"]
GEOMETRIC = np.geomspace(0.02, 1.0, 8)
SINGLE = np.array([1.0, *[0.02] * 7])
LONG = pytest.mark.all
TABLE = np.array([1.0, 0.5, 0.2, 0.1, 0.05])


def advanced(W: np.ndarray, X: np.ndarray, y: np.ndarray, eta: float) -> np.ndarray:
    """Make one step of mean-gradient SGD in each of many runs.

    Parameters
    ----------
    W : ndarray, shape (runs, d)
    X, y : ndarray, shape (runs, b, d), (runs, b)
        The batch of each run.
    """
    e = (X @ W[:, :, None])[:, :, 0] - y
    return W - (2.0 * eta / X.shape[1]) * (X.transpose(0, 2, 1) @ e[:, :, None])[:, :, 0]


def rows(values: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Return zero-mean Gaussian rows with these eigenvalues of Sigma, in random axes."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return rng.normal(size=(n, len(values))) * np.sqrt(values) @ Q.T


def test_the_simulated_step_is_that_of_a_run(tmp_path: Path) -> None:
    """The rows that the run drew, with replacement, through `advanced`: the same params after every step."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 5)), rng.normal(size=400)
    seen: list[np.ndarray] = []
    keys = [*RAW, "optimizer.name=sgd", "schedule.learning_rate=0.05", "batch.size=16", "batch.sampling=replacement"]
    run(
        tmp_path,
        "numbers",
        *keys,
        "stop.steps=30",
        "run.seed=3",
        data=Datasets(from_arrays(X, y, partition_rows=400), None),
        on_step=lambda step, epoch, params: seen.append(np.array(params)),
    )
    W = seen[0][None]
    for step, params in enumerate(seen[1:]):
        drawn = redraw(3, np.array([0, -3, step, 16]), 400)
        W = advanced(W, X[drawn][None], y[drawn][None], 0.05)
        np.testing.assert_allclose(W[0], params, rtol=1e-12)


def growth(values: np.ndarray, eta: float, b: int, seed: int, particles: int, steps: int) -> tuple[float, float]:
    """Return the growth of E||w - w*||^2 a step, and its standard error, from runs on fresh Gaussian rows, y = x.w*.

    The mean square of unstable SGD is carried by few runs. After every step the runs are drawn anew in proportion to
    their ||w - w*||^2 and brought to length 1; the mean growth of a step then is an estimate of the leading mode's.
    """
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(particles, len(values)))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    rates = []
    for step in range(steps):
        X = rng.normal(size=(particles, b, len(values))) * np.sqrt(values)
        W = advanced(W, X, np.zeros((particles, b)), eta)
        squares = (W * W).sum(axis=1)
        if step >= steps // 3:
            rates.append(squares.mean())
        W = W[rng.choice(particles, particles, p=squares / squares.sum())]
        W /= np.linalg.norm(W, axis=1, keepdims=True)
    return float(np.mean(rates)), float(np.std(rates) / np.sqrt(len(rates)))


@pytest.mark.parametrize("b", [1, 16, pytest.param(256, marks=LONG)])
@pytest.mark.parametrize("values", [GEOMETRIC, SINGLE], ids=["geometric", "single"])
def test_the_printed_threshold_separates_averaged_runs(values: np.ndarray, b: int) -> None:
    """Convergence in the mean square at the printed step / 1.2, divergence at 1.2 times it."""
    X = rows(values, 30_000)
    found = diagnose(load_conf([], ["data.uri=memory", *RAW]), Datasets(from_arrays(X, X @ np.ones(8)), None))
    assert found["gaussian"]
    limit = next(s["gaussian_root"] for s in found["stable_steps"] if s["batch"] == b)
    assert limit == pytest.approx(gaussian_root(values, b), rel=0.1)
    particles = {1: 20_000, 16: 4000, 256: 400}[b]
    for factor, grows in ((1 / 1.2, False), (1.2, True)):
        rate, error = growth(values, limit * factor, b, 0, particles, 60)
        assert (rate - 4 * error > 1.0) if grows else (rate + 4 * error < 1.0), (b, factor, rate, error)


@pytest.mark.parametrize("values", [GEOMETRIC, SINGLE], ids=["geometric", "single"])
def test_the_printed_threshold_separates_full_batches(values: np.ndarray, tmp_path: Path) -> None:
    X = rows(values, 3000)
    data = Datasets(from_arrays(X, X @ np.ones(8)), None)
    limit = diagnose(load_conf([], ["data.uri=memory", *RAW]), data)["full_batch_step"]
    for factor, grows in ((1 / 1.2, False), (1.2, True)):
        seen: list[float] = []
        run(
            tmp_path,
            "numbers",
            *RAW,
            "optimizer.name=gd",
            f"schedule.learning_rate={limit * factor!r}",
            "stop.steps=60",
            data=data,
            on_step=lambda step, epoch, params, seen=seen: seen.append(float(((params - 1.0) ** 2).sum())),
        )
        assert (seen[-1] > 100 * seen[0]) == grows
        if not grows:
            assert all(a >= b for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize(
    ("eta", "msd", "er"),
    [pytest.param(0.002, 1.0052, 1.0066, marks=LONG), (0.005, 1.0132, 1.0166), (0.02, 1.0554, 1.0699)],
)
def test_the_steady_state_by_measurement(eta: float, msd: float, er: float) -> None:
    """MSD and ER of averaged runs: 95 % intervals that hold the exact fixed point and are narrower than 15 %."""
    rng = np.random.default_rng(int(eta * 1000))
    runs, d = 300, len(TABLE)
    settle, steps = int(2.0 / (eta * TABLE[-1])), int(1.0 / (eta * TABLE[-1]))
    exact = steady_state(TABLE, 1.0, eta)
    small = small_step(2 * np.diag(TABLE), 4 * np.diag(TABLE), eta)
    # About as far off at the start as in the end; the mean over a run's time is one sample.
    W = rng.normal(size=(runs, d)) * np.sqrt(small.msd / d)
    squares, excess = np.zeros(runs), np.zeros(runs)
    for step in range(settle + steps):
        X = rng.normal(size=(runs, 1, d)) * np.sqrt(TABLE)
        W = advanced(W, X, rng.normal(size=(runs, 1)), eta)
        if step >= settle:
            squares += (W * W).sum(axis=1) / steps
            excess += (W * W) @ TABLE / steps
    for sample, fixed, theory, ratio in ((squares, exact.msd, small.msd, msd), (excess, exact.er, small.er, er)):
        half = 1.96 * sample.std() / np.sqrt(runs)
        assert half <= 0.15 * fixed
        assert abs(sample.mean() - fixed) <= 1.5 * half
        assert fixed / theory == pytest.approx(ratio, abs=5e-5)


@pytest.mark.all
@pytest.mark.timeout(1800)
def test_the_spectrum_of_200k_rows() -> None:
    """Condition number 10^3: lambda_max within 1 %, lambda_min within 5 % of numpy.linalg, formed and by Lanczos."""
    X = rows(np.geomspace(1e-3, 1.0, 50), 200_000)
    values = np.linalg.eigvalsh(2.0 * X.T @ X / len(X))
    y = X @ np.ones(50)
    models: list[list[Any]] = [RAW, ["model.name=mlp", "model.hidden=[]", *RAW[1:]]]
    for keys, how in zip(models, ("eigh", "Lanczos"), strict=True):
        found = diagnose(load_conf([], ["data.uri=memory", *keys]), Datasets(from_arrays(X, y), None))
        assert how in found["how"]
        assert found["lambda_max"] == pytest.approx(values[-1], rel=0.01)
        assert found["lambda_min"] == pytest.approx(values[0], rel=0.05)
        assert found["condition_number"] == pytest.approx(1e3, rel=0.1)
