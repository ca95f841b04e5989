"""Losses of finished parameters in float64, by plain NumPy: the referee of the rows, never on the clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import data
from benchmarks.machine import cores

Array = npt.NDArray[Any]
_ROWS = 1 << 15


def over_blocks(of: Callable[[slice], Any], rows: int) -> Any:
    """Add up what a function returns for each block of rows, in their order; a thread a core."""
    with ThreadPoolExecutor(len(cores())) as pool:
        return sum(pool.map(of, (slice(start, start + _ROWS) for start in range(0, rows, _ROWS))))


def logistic(X: Array, y: Array, weight: Array, intercept: float) -> float:
    """Return the mean binary cross-entropy of X w + b, in nats."""
    w = np.asarray(weight, dtype=np.float64)

    def block(part: slice) -> float:
        v = X[part].astype(np.float64) @ w + intercept
        return float(np.sum(np.logaddexp(0.0, v) - y[part] * v))

    return float(over_blocks(block, len(X))) / len(X)


def squared(X: Array, y: Array, weight: Array, intercept: float) -> float:
    """Return the mean squared error of X w + b."""

    def block(part: slice) -> float:
        error = X[part].astype(np.float64) @ weight + intercept - y[part]
        return float(error @ error)

    return float(over_blocks(block, len(X))) / len(X)


def logistic_gradient(X: Array, y: Array, weight: Array, intercept: float) -> Array:
    """Return the gradient sum of the cross-entropy, shape (d + 1,), intercept last, in float64."""
    w = np.asarray(weight, dtype=np.float64)

    def block(part: slice) -> Array:
        rows = X[part].astype(np.float64)
        delta = 1.0 / (1.0 + np.exp(-(rows @ w + intercept))) - y[part]
        return np.append(rows.T @ delta, delta.sum())

    return np.asarray(over_blocks(block, len(X)))


def network(X: Array, y: Array, layers: list[tuple[Array, Array]], activation: str) -> float:
    """Return the mean categorical cross-entropy of a dense network; `layers` are (W (in, out), b (out,))."""

    def block(part: slice) -> float:
        z = X[part].astype(np.float64)
        for k, (W, b) in enumerate(layers):
            z = z @ np.asarray(W, dtype=np.float64) + b
            if k + 1 < len(layers):
                z = np.maximum(z, 0.0) if activation == "relu" else 1.0 / (1.0 + np.exp(-z))
        top = z.max(axis=1, keepdims=True)
        return float(np.sum(top[:, 0] + np.log(np.exp(z - top).sum(axis=1)) - z[np.arange(len(z)), y[part]]))

    return float(over_blocks(block, len(X))) / len(X)


def layers_of(params: Array, widths: list[int]) -> list[tuple[Array, Array]]:
    """Cut bigopt's flat vector into (W, b) of each layer."""
    found, start = [], 0
    for n, m in itertools.pairwise(widths):
        found.append((params[start : start + n * m].reshape(n, m), params[start + n * m : start + n * m + m]))
        start += n * m + m
    return found


class Referee:
    """Judges bigopt's flat parameters by the rows of a folder, which it maps and does not copy; the same bits once.

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
        self._X, self._y = data.mapped(folder)
        self._judged: dict[bytes, float] = {}

    def loss(self, params: npt.ArrayLike) -> float:
        """Return the loss, penalty included."""
        flat = np.asarray(params, dtype=np.float64)
        key = flat.tobytes()
        if key not in self._judged:
            self._judged[key] = self._loss(flat)
        return self._judged[key]

    def _loss(self, flat: Array) -> float:
        if self._kind == "network":
            return network(self._X, self._y, layers_of(flat, self._widths), self._activation)
        w, b = flat[:-1], float(flat[-1])
        of_rows = logistic if self._kind == "logistic" else squared
        return of_rows(self._X, self._y, w, b) + self._l2 * float(w @ w)
