"""Small problems with a known answer, for the studies: two weights, a sine, four points, two moons.

All rows come from the counter-based streams of `bigopt.core.rng`, so a problem is a function of its arguments. The two
linear problems have features with *exactly* the covariance

    Sigma = Q diag(1, 1/condition) Q^T,     Q = rotation by `angle`,

so that the error surface of a ridge regression is an ellipse whose axes and condition number are known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import rng

Array = npt.NDArray[Any]


class Table(NamedTuple):
    """Rows of a problem.

    Parameters
    ----------
    X : ndarray, shape (n, d), float64
    y : ndarray, shape (n,)
        Numbers, or class numbers 0 and 1 (int64).
    """

    X: Array
    y: Array


def _features(rows: int, condition: float, angle: float, seed: int) -> Array:
    """Return features of shape (rows, 2) with mean 0 and covariance Sigma, up to rounding."""
    raw = rng.normal(rng.stream(seed, "study features"), 2 * rows).reshape(rows, 2)
    raw -= raw.mean(0)
    white = np.linalg.qr(raw)[0] * np.sqrt(rows)
    turn = np.deg2rad(angle)
    axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    features: Array = (white * np.sqrt([1.0, 1.0 / condition])) @ axes.T
    return features


def ridge(*, rows: int, condition: float, angle: float, noise: float, seed: int) -> Table:
    """Return y = 2 x1 + x2 + noise, features with covariance Sigma."""
    X = _features(rows, condition, angle, seed)
    return Table(X, X @ np.array([2.0, 1.0]) + noise * rng.normal(rng.stream(seed, "study noise"), rows))


def logistic(*, rows: int, condition: float, angle: float, slope: float, seed: int) -> Table:
    """Return classes with P(y = 1) = sigmoid(slope (2 x1 + x2)), features with covariance Sigma."""
    X = _features(rows, condition, angle, seed)
    chance = 1.0 / (1.0 + np.exp(-slope * (X @ np.array([2.0, 1.0]))))
    return Table(X, (rng.uniform(rng.stream(seed, "study labels"), rows) < chance).astype(np.int64))


def sine(*, rows: int, noise: float, seed: int) -> Table:
    """Return y = sin(2 x) + noise with x uniform in [-2, 2]."""
    x = 4.0 * rng.uniform(rng.stream(seed, "study features"), rows) - 2.0
    return Table(x[:, None], np.sin(2.0 * x) + noise * rng.normal(rng.stream(seed, "study noise"), rows))


def xor() -> Table:
    """Return the four corners of the unit square; the class is 1 where one of the two coordinates is 1."""
    X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return Table(X, np.array([0, 1, 1, 0], dtype=np.int64))


def moons(*, rows: int, noise: float, seed: int) -> Table:
    """Return two half circles that reach into each other, `rows` in all."""
    y = np.arange(rows, dtype=np.int64) % 2
    turn = np.pi * rng.uniform(rng.stream(seed, "study features"), rows)
    upper = np.column_stack([np.cos(turn), np.sin(turn)])
    X = np.where(y[:, None] == 0, upper, np.array([1.0, 0.5]) - upper)
    return Table(X + noise * rng.normal(rng.stream(seed, "study noise"), 2 * rows).reshape(rows, 2), y)


PROBLEMS: Mapping[str, Callable[..., Table]] = {
    "ridge": ridge,
    "logistic": logistic,
    "sine": sine,
    "xor": xor,
    "moons": moons,
}
"""Name in conf/studies/gallery.yml to what makes the rows."""
