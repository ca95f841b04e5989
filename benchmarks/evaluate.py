"""Losses of finished parameters in float64, by plain NumPy: the referee of the rows, never on the clock."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_ROWS = 1 << 15


def logistic(X: Array, y: Array, weight: Array, intercept: float) -> float:
    """Return the mean binary cross-entropy of X w + b, in nats."""
    total = 0.0
    w = np.asarray(weight, dtype=np.float64)
    for start in range(0, len(X), _ROWS):
        part = slice(start, start + _ROWS)
        v = X[part].astype(np.float64) @ w + intercept
        total += float(np.sum(np.logaddexp(0.0, v) - y[part] * v))
    return total / len(X)


def squared(X: Array, y: Array, weight: Array, intercept: float) -> float:
    """Return the mean squared error of X w + b."""
    total = 0.0
    for start in range(0, len(X), _ROWS):
        part = slice(start, start + _ROWS)
        error = X[part].astype(np.float64) @ weight + intercept - y[part]
        total += float(error @ error)
    return total / len(X)


def logistic_gradient(X: Array, y: Array, weight: Array, intercept: float) -> Array:
    """Return the gradient sum of the cross-entropy, shape (d + 1,), intercept last, in float64."""
    total = np.zeros(X.shape[1] + 1)
    w = np.asarray(weight, dtype=np.float64)
    for start in range(0, len(X), _ROWS):
        part = slice(start, start + _ROWS)
        block = X[part].astype(np.float64)
        delta = 1.0 / (1.0 + np.exp(-(block @ w + intercept))) - y[part]
        total[:-1] += block.T @ delta
        total[-1] += delta.sum()
    return total


def network(X: Array, y: Array, layers: list[tuple[Array, Array]], activation: str) -> float:
    """Return the mean categorical cross-entropy of a dense network; `layers` are (W (in, out), b (out,))."""
    total = 0.0
    for start in range(0, len(X), _ROWS):
        part = slice(start, start + _ROWS)
        z = X[part].astype(np.float64)
        for k, (W, b) in enumerate(layers):
            z = z @ np.asarray(W, dtype=np.float64) + b
            if k + 1 < len(layers):
                z = np.maximum(z, 0.0) if activation == "relu" else 1.0 / (1.0 + np.exp(-z))
        top = z.max(axis=1, keepdims=True)
        total += float(np.sum(top[:, 0] + np.log(np.exp(z - top).sum(axis=1)) - z[np.arange(len(z)), y[part]]))
    return total / len(X)


def layers_of(params: Array, widths: list[int]) -> list[tuple[Array, Array]]:
    """Cut bigopt's flat vector into (W, b) of each layer."""
    found, start = [], 0
    for n, m in itertools.pairwise(widths):
        found.append((params[start : start + n * m].reshape(n, m), params[start + n * m : start + n * m + m]))
        start += n * m + m
    return found


class Referee:
    """Judges bigopt's flat parameters by the rows of a folder, which it maps and does not copy.

    Parameters
    ----------
    kind : {"logistic", "squared", "network"}
    folder : str
    l2 : float
        Of a penalty l2 ||w||^2 on the weights of ``logistic`` and ``squared``.
    activation : str
    widths : list of int
        Of a ``network``.
    """

    def __init__(
        self, kind: str, folder: str, l2: float = 0.0, activation: str = "relu", widths: list[int] | None = None
    ) -> None:
        self._kind, self._l2, self._activation, self._widths = kind, l2, activation, widths or []
        self._X = np.load(Path(folder) / "X.npy", mmap_mode="r")
        self._y = np.load(Path(folder) / "y.npy")

    def loss(self, params: npt.ArrayLike) -> float:
        """Return the loss, penalty included."""
        flat = np.asarray(params, dtype=np.float64)
        if self._kind == "network":
            return network(self._X, self._y, layers_of(flat, self._widths), self._activation)
        w, b = flat[:-1], float(flat[-1])
        of_rows = logistic if self._kind == "logistic" else squared
        return of_rows(self._X, self._y, w, b) + self._l2 * float(w @ w)
