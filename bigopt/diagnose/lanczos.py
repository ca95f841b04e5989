"""Extreme eigenvalues of a symmetric matrix that can only be multiplied with.

Lanczos builds an orthonormal basis of v, H v, H^2 v, ... in which H is tridiagonal; the eigenvalues of that small
matrix (Ritz values) close in on the outer eigenvalues of H first. Every new vector is made orthogonal to all earlier
ones, twice: without that rounding brings back copies of what was found. For each Ritz pair the last entry of the small
eigenvector times the next off-diagonal element bounds how far it is from an eigenvalue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import rng

Floats = npt.NDArray[np.float64]


class Extremes(NamedTuple):
    """The ends of a spectrum.

    Parameters
    ----------
    largest, smallest : float
        Ritz values: never outside the spectrum.
    largest_error, smallest_error : float
        An eigenvalue lies within this distance; 0 for eigenvalues of a formed matrix.
    direction : ndarray, shape (p,)
        Unit eigenvector of the smallest one.
    products : int
        How many products with H it took; 0 for a formed matrix.
    values : ndarray or None
        All eigenvalues, ascending, where H was formed.
    """

    largest: float
    smallest: float
    largest_error: float
    smallest_error: float
    direction: Floats
    products: int
    values: Floats | None = None


def formed(H: Floats) -> Extremes:
    """Return the ends of the spectrum of a symmetric matrix, by `numpy.linalg.eigh`."""
    values, vectors = np.linalg.eigh(H)
    return Extremes(float(values[-1]), float(values[0]), 0.0, 0.0, vectors[:, 0], 0, values)


def lanczos(
    product: Callable[[Floats], Floats],
    free: npt.NDArray[np.bool_],
    *,
    seed: int,
    most: int,
    largest_share: float = 1e-4,
    smallest_share: float | None = 0.01,
) -> Extremes:
    """Find both ends of the spectrum by products.

    Parameters
    ----------
    product : callable
        ``product(v)`` returns H v, shape (p,).
    free : ndarray of bool, shape (p,)
        Coordinates that count; the others are held at 0.
    seed : int
        Of the first vector.
    most : int
        Products at most.
    largest_share, smallest_share : float
        Ends when the error bounds are below these shares of the two eigenvalues; None where the smallest one does not
        matter.
    """
    p = int(free.sum())
    v = np.zeros(len(free))
    v[free] = rng.normal(rng.stream(seed, "lanczos"), p)
    basis = [v / np.linalg.norm(v)]
    diagonal: list[float] = []
    off: list[float] = []
    while True:
        w = np.where(free, product(basis[-1]), 0.0)
        diagonal.append(float(basis[-1] @ w))
        rows = np.array(basis)
        for _ in range(2):
            w = w - rows.T @ (rows @ w)
        beta = float(np.linalg.norm(w))
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
        size = float(np.abs(values).max())
        whole = len(diagonal) >= p or beta <= 1e-12 * size
        errors = np.zeros(len(values)) if whole else beta * np.abs(vectors[-1])
        good = errors[-1] <= largest_share * abs(values[-1])
        if smallest_share is not None:
            good = good and errors[0] <= smallest_share * abs(values[0])
        if whole or good or len(diagonal) >= most:
            direction = rows.T @ vectors[:, 0]
            return Extremes(
                float(values[-1]), float(values[0]), float(errors[-1]), float(errors[0]), direction, len(diagonal)
            )
        off.append(beta)
        basis.append(w / beta)
