"""The compiled line gives NumPy's numbers, and runs with line searches keep their promises with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bigopt.models.linear import LinearModel
from bigopt.models.losses import (
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    HingeLoss,
    HuberLoss,
    Loss,
    SignedSquaredLoss,
    SquaredHingeLoss,
    SquaredLoss,
)
from bigopt.models.second import Margins, line_of_margins
from tests.support.problems import run

numba = pytest.importorskip("numba")

from bigopt.models import fused_line  # noqa: E402

STEPS = [0.0, 1e-3, 0.3, -2.0, 50.0]


def rows(loss: Loss, n: int, scale: float = 3.0) -> tuple[Margins, np.ndarray, np.ndarray]:
    """Margins, targets that suit the loss, and weights of which some are 0."""
    rng = np.random.default_rng(n)
    V, D = rng.normal(size=(2, n, 1)) * scale
    if isinstance(loss, BinaryCrossEntropy):
        y = rng.integers(0, 2, n).astype(np.float64)
    elif isinstance(loss, SquaredHingeLoss | SignedSquaredLoss):
        y = rng.choice([-1.0, 1.0], n)
    else:
        y = rng.normal(size=n)
    return Margins(V, D), y, np.where(rng.random(n) < 0.2, 0.0, rng.random(n))


@pytest.mark.parametrize(
    "loss", [BinaryCrossEntropy(), SquaredLoss(), SignedSquaredLoss(), HuberLoss(0.7), SquaredHingeLoss()]
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [1, 511, 513, 2000])
def test_numpys_numbers(loss: Loss, weighted: bool, n: int) -> None:
    kept, y, weight = rows(loss, n)
    s = weight if weighted else None
    expected = line_of_margins(loss, kept, STEPS, y, s, slopes=True)
    found = fused_line.line_of_margins(loss, kept, STEPS, y, s, slopes=True)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * max(1.0, float(np.abs(b).max())))
    plain = fused_line.line_of_margins(loss, kept, STEPS, y, s, slopes=False)
    np.testing.assert_array_equal(plain.values, found.values)
    assert (plain.slopes.size, plain.curves.size, plain.weight) == (0, 0, found.weight)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 7), (33, 8), (101, 13), (40, 100)])
def test_margins_are_the_scores_and_their_change(dtype: str, intercept: bool, n: int, d: int) -> None:
    rng = np.random.default_rng(d)
    model = LinearModel(d, 1, BinaryCrossEntropy(), intercept)
    X = rng.normal(size=(n, d)).astype(dtype)
    w, along = rng.normal(size=(2, model.layout.size)).astype(dtype)
    assert fused_line.has_margins(model, X)
    found = fused_line.margins(model, w, along, X)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    for values, v in zip(found, (w, along), strict=True):
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, model.scores(v, X), rtol=tolerance, atol=tolerance * d)


def test_slopes_and_curves_are_derivatives_of_the_values() -> None:
    loss, h = BinaryCrossEntropy(), 1e-5
    kept, y, weight = rows(loss, 700)
    found = fused_line.line_of_margins(loss, kept, [0.2 - h, 0.2, 0.2 + h], y, weight, slopes=True)
    assert (found.values[2] - found.values[0]) / (2 * h) == pytest.approx(found.slopes[1], rel=1e-8)
    assert (found.slopes[2] - found.slopes[0]) / (2 * h) == pytest.approx(found.curves[1], rel=1e-8)


def test_far_points_stay_finite_and_what_is_not_a_number_is_seen() -> None:
    loss = BinaryCrossEntropy()
    kept, y, _ = rows(loss, 600, scale=1e4)
    far = fused_line.line_of_margins(loss, kept, [1.0, 100.0], y, None, slopes=True)
    np.testing.assert_allclose(far.values, line_of_margins(loss, kept, [1.0, 100.0], y, None, slopes=True).values)
    kept.at[5] = np.nan
    assert np.isnan(fused_line.line_of_margins(loss, kept, [0.0], y, None, slopes=True).values).all()


def test_what_has_no_kernel() -> None:
    assert not fused_line.has_line(HingeLoss(), 1)
    assert not fused_line.has_line(CategoricalCrossEntropy(), 3)
    assert not fused_line.has_line(SquaredLoss(), 2)
    assert fused_line.has_line(BinaryCrossEntropy(), 1)


def test_lbfgs_with_compiled_lines_has_one_result_on_any_number_of_workers(tmp_path: Path) -> None:
    keys = ["model.name=logistic", "model.l2=0.001", "optimizer.name=lbfgs", "stop.steps=8"]
    found = {
        (kernels, workers): run(
            tmp_path / f"{kernels}{workers}", "two", *keys, f"run.kernels={kernels}", f"backend.workers={workers}"
        )
        for kernels, workers in (("compiled", 1), ("compiled", 2), ("compiled", 3), ("numpy", 1))
    }
    assert len({r["params_sha256"] for (kernels, _), r in found.items() if kernels == "compiled"}) == 1
    assert found["compiled", 1]["loss"] == pytest.approx(found["numpy", 1]["loss"], rel=1e-10)
    assert found["compiled", 1]["params_sha256"] != found["numpy", 1]["params_sha256"]
