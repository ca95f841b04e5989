"""The studies against what is known beforehand: normal equations, scikit-learn, the quadratic."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from bigopt.studies.gallery import read_gallery
from bigopt.studies.pictures import draw
from bigopt.studies.record import Record, run_study

ROOT = Path(__file__).resolve().parents[2]
GALLERY = read_gallery(ROOT / "conf" / "studies" / "gallery.yml")
EXAMPLES = [f"example_4_{k}" for k in range(1, 5)]
CASES = [f"case_study_4_{k}" for k in range(1, 7)]
L2 = 0.01

pytestmark = pytest.mark.slow  # whole runs, about half a minute in all

Performed = Callable[[str], tuple[Record, Path]]


@pytest.fixture(scope="module")
def performed(tmp_path_factory: pytest.TempPathFactory) -> Performed:
    """A study and its folder, run when it is first asked for."""

    @cache
    def perform(name: str) -> tuple[Record, Path]:
        folder = tmp_path_factory.mktemp(name)
        return run_study(GALLERY[name], folder), folder

    return perform


def normal_equations(record: Record) -> tuple[npt.NDArray[np.float64], float]:
    """Return minimum and least value of (1/n) ||X w - y||^2 + l2 ||w||^2."""
    X, y = record.table
    n = len(X)
    w = np.linalg.solve(X.T @ X / n + L2 * np.eye(2), X.T @ y / n)
    return w, float(np.mean((X @ w - y) ** 2) + L2 * w @ w)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_gallery_holds_the_course() -> None:
    assert sorted(GALLERY) == sorted(EXAMPLES + CASES)
    assert all(study.conf.is_file() for study in GALLERY.values())


@pytest.mark.parametrize("name", [*EXAMPLES, "case_study_4_1"])
def test_ridge_is_measured_from_the_normal_equations(performed: Performed, name: str) -> None:
    record, _ = performed(name)
    w, least = normal_equations(record)
    assert record.minimum is not None
    np.testing.assert_allclose(record.minimum, w, rtol=1e-12)
    np.testing.assert_allclose(record.least, least, rtol=1e-13)
    X, y = record.table
    for trace in record.traces.values():
        rows = np.mean((trace.params @ X.T - y) ** 2, axis=1) + L2 * (trace.params**2).sum(1)
        np.testing.assert_allclose(trace.losses, rows, rtol=1e-12)


def test_the_rows_have_the_covariance_that_was_asked_for(performed: Performed) -> None:
    X = performed("example_4_1")[0].table.X
    np.testing.assert_allclose(np.linalg.eigvalsh(X.T @ X / len(X)), [0.05, 1.0], rtol=1e-12)
    np.testing.assert_allclose(X.mean(0), 0.0, atol=1e-15)


def test_gradient_descent_contracts_by_the_eigenvalues(performed: Performed) -> None:
    record, _ = performed("example_4_1")
    w, _ = normal_equations(record)
    X = record.table.X
    values, axes = np.linalg.eigh(2 * (X.T @ X / len(X) + L2 * np.eye(2)))
    errors = (record.traces["gradient descent"].params - w) @ axes
    steps = np.arange(len(errors))[:, None]
    np.testing.assert_allclose(errors, errors[0] * (1 - 0.85 * values) ** steps, rtol=1e-8, atol=1e-14)
    assert abs(errors[0]).min() > 1  # far out on both axes, or the path would show nothing


@pytest.mark.parametrize("name", ["example_4_2", "case_study_4_1"])
def test_newton_needs_one_step(performed: Performed, name: str) -> None:
    record, _ = performed(name)
    w, _ = normal_equations(record)
    np.testing.assert_allclose(record.traces["Newton"].params[1], w, rtol=1e-12)


def test_a_decaying_rate_beats_a_constant_one(performed: Performed) -> None:
    record, _ = performed("example_4_3")
    constant, decaying = (record.excess(record.traces[f"{k} rate"])[-100:].mean() for k in ("constant", "decaying"))
    assert decaying < constant / 10
    assert decaying < 1e-2


def test_adam_starts_along_the_diagonal_and_ends_in_the_minimum(performed: Performed) -> None:
    record, _ = performed("example_4_4")
    trace = record.traces["rate to 0 by cosine"]
    np.testing.assert_allclose(np.abs(trace.params[1]), 0.1, rtol=1e-6)
    assert record.excess(trace)[-1] < 1e-4


def test_the_four_of_case_4_1_come_down(performed: Performed) -> None:
    record, _ = performed("case_study_4_1")
    assert list(record.traces) == ["gradient descent", "Newton", "SGD", "Adam"]
    assert all(record.excess(t)[-1] < 2e-3 for t in record.traces.values())
    assert len({t.epochs[-1] for n, t in record.traces.items() if n != "Newton"}) == 1


def test_logistic_against_scikit_learn(performed: Performed) -> None:
    from sklearn.linear_model import LogisticRegression

    record, _ = performed("case_study_4_2")
    X, y = record.table
    l2 = 0.002
    peer = LogisticRegression(C=1 / (2 * len(X) * l2), fit_intercept=False, solver="newton-cholesky", tol=1e-12)
    w = peer.fit(X, y).coef_[0]
    margins = np.where(y == 1, 1.0, -1.0) * (X @ w)
    np.testing.assert_allclose(record.minimum, w, rtol=1e-7)
    np.testing.assert_allclose(record.least, np.logaddexp(0.0, -margins).mean() + l2 * w @ w, rtol=1e-12)
    assert all(record.excess(t)[-1] < 1e-3 for t in record.traces.values())
    assert record.excess(record.traces["Newton"])[6] < 1e-14
    shown = [float(row["accuracy"]) for row in read(performed("case_study_4_2")[1] / "summary.csv")]
    assert shown[1] == peer.score(X, y)


def test_the_mlp_finds_the_sine(performed: Performed) -> None:
    """The noise has the variance 0.01; 0.5 is the sine's own."""
    sgd = performed("case_study_4_3")[0].traces["SGD"]
    record, _ = performed("case_study_4_4")
    adam = record.traces["Adam"]
    assert sgd.losses[-1] < 0.025
    assert adam.losses[-1] < 0.015
    np.testing.assert_array_equal(sgd.params, record.traces["SGD"].params)  # the same run, beside Adam
    x, values = record.fitted(adam, -1)
    assert np.abs(values - np.sin(2 * x)).mean() < 0.08


def test_xor_is_solved(performed: Performed) -> None:
    record, folder = performed("case_study_4_5")
    (trace,) = record.traces.values()
    chance = trace.objective.predict(trace.params[-1], record.table.X)
    assert record.table.X.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    np.testing.assert_allclose(chance, [0, 1, 1, 0], atol=0.02)
    assert float(read(folder / "summary.csv")[0]["accuracy"]) == 1.0


def test_moons_need_a_hidden_layer(performed: Performed) -> None:
    record, folder = performed("case_study_4_6")
    line, hidden = (float(row["accuracy"]) for row in read(folder / "summary.csv"))
    assert line < 0.92
    assert hidden >= 0.99
    for trace, accuracy in zip(record.traces.values(), (line, hidden), strict=True):
        found = trace.objective.predict(trace.params[-1], record.table.X) > 0.5
        assert (found == record.table.y).mean() == accuracy


@pytest.mark.parametrize("name", EXAMPLES + CASES)
def test_picture_and_tables(performed: Performed, name: str) -> None:
    record, folder = performed(name)
    path = draw(record, folder)
    assert path.stat().st_size < 80_000
    with Image.open(path) as image:
        assert image.width > 700
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 30
    curve = read(folder / "curve.csv")
    for trace in record.traces.values():
        losses = [float(row["objective"]) for row in curve if row["run"] == trace.name]
        np.testing.assert_array_equal(losses, trace.losses)
    with np.load(folder / "rows.npz") as rows:
        np.testing.assert_array_equal(
            rows["X"], [[float(r[k]) for k in r if k != "y"] for r in read(folder / "rows.csv")]
        )
    if "path" in record.study.pictures:
        surface = read(folder / "error_surface.csv")
        lowest = min(surface, key=lambda row: float(row["objective"]))
        assert record.least is not None
        assert record.minimum is not None
        assert float(lowest["objective"]) >= record.least
        step = float(surface[1]["w0"]) - float(surface[0]["w0"])
        assert abs(np.array([float(lowest["w0"]), float(lowest["w1"])]) - record.minimum).max() < 3 * step
