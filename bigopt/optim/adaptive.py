"""Adagrad, RMSProp and Adadelta: every coordinate its own step, from the history of its squared gradients.

Adagrad sums all squares, so its steps only ever shrink; RMSProp forgets old squares at rate b, so its steps do not die
out; Adadelta also measures its own past steps, and so needs no unit of length: eta = 1. eps stands outside the square
root in the first two and inside in Adadelta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.optim.ranges import check_range
from bigopt.optim.transform import Vector, owned, scratch, tiles


@wire
class Squares(NamedTuple):
    """State of Adagrad and RMSProp.

    Parameters
    ----------
    G : ndarray, shape (p,)
        Sum, or running mean, of the squared gradients; 0 before step 1.
    """

    G: Vector


@wire
@dataclass(frozen=True)
class Adagrad:
    """Adagrad: G += g^2;  w -= eta g / (sqrt(G) + eps).

    Parameters
    ----------
    eps : float
        > 0, outside the square root.

    Notes
    -----
    Duchi, Hazan, Singer (2011); diagonal form, as torch's with lr_decay 0.
    """

    eps: float = 1e-10

    def __post_init__(self) -> None:
        check_range("optimizer.eps", self.eps, 0.0, open_low=True)

    def init(self, params: Vector, layout: Layout) -> Squares:
        """Return sums of zero."""
        return Squares(np.zeros_like(params))

    def update(
        self, grad: Vector, state: Squares, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, Squares]:
        """Return -eta g / (sqrt(G) + eps); see `Transform.update`."""
        G, eta, work = owned(state.G), float(learning_rate), scratch(grad)
        for s in tiles(grad.size):
            g, G_s, h = grad[s], G[s], work[: s.stop - s.start]
            np.multiply(g, g, out=h)
            np.add(G_s, h, out=G_s)
            _scaled_step(g, G_s, eta, self.eps, h)
        return grad, Squares(G)

    def scale(self, state: Squares, step: int, s: slice, out: Vector) -> Vector:
        """Return 1 / (sqrt(G) + eps); see `bigopt.optim.proximal.Scaled`."""
        return inverse_root(state.G[s], self.eps, out)


@wire
@dataclass(frozen=True)
class RMSProp:
    """RMSProp: G = b G + (1-b) g^2;  w -= eta g / (sqrt(G) + eps).

    Parameters
    ----------
    decay : float
        b, 0 <= b < 1. 0.9 as in Hinton's lecture; torch's default is 0.99.
    eps : float
        > 0, outside the square root.
    """

    decay: float = 0.9
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_range("optimizer.decay", self.decay, 0.0, 1.0)
        check_range("optimizer.eps", self.eps, 0.0, open_low=True)

    def init(self, params: Vector, layout: Layout) -> Squares:
        """Return means of zero."""
        return Squares(np.zeros_like(params))

    def update(
        self, grad: Vector, state: Squares, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, Squares]:
        """Return -eta g / (sqrt(G) + eps); see `Transform.update`."""
        G, eta, work = owned(state.G), float(learning_rate), scratch(grad)
        for s in tiles(grad.size):
            g, G_s, h = grad[s], G[s], work[: s.stop - s.start]
            running_square(G_s, g, self.decay, h)
            _scaled_step(g, G_s, eta, self.eps, h)
        return grad, Squares(G)

    def scale(self, state: Squares, step: int, s: slice, out: Vector) -> Vector:
        """Return 1 / (sqrt(G) + eps); see `bigopt.optim.proximal.Scaled`."""
        return inverse_root(state.G[s], self.eps, out)


@wire
class SquaresAndSteps(NamedTuple):
    """State of Adadelta.

    Parameters
    ----------
    E : ndarray, shape (p,)
        Running mean of the squared gradients; 0 before step 1.
    U : ndarray, shape (p,)
        Running mean of the squared steps d; 0 before step 1.
    """

    E: Vector
    U: Vector


@wire
@dataclass(frozen=True)
class Adadelta:
    """Adadelta: E = r E + (1-r) g^2;  d = sqrt(U + eps)/sqrt(E + eps) g;  U = r U + (1-r) d^2;  w -= eta d.

    Parameters
    ----------
    rho : float
        r, 0 <= r < 1.
    eps : float
        > 0, inside both square roots; it sets the length of the first steps.

    Notes
    -----
    Zeiler (2012), where eta = 1.
    """

    rho: float = 0.9
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_range("optimizer.rho", self.rho, 0.0, 1.0)
        check_range("optimizer.eps", self.eps, 0.0, open_low=True)

    def init(self, params: Vector, layout: Layout) -> SquaresAndSteps:
        """Return means of zero."""
        return SquaresAndSteps(np.zeros_like(params), np.zeros_like(params))

    def update(
        self, grad: Vector, state: SquaresAndSteps, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, SquaresAndSteps]:
        """Return -eta d; see `Transform.update`."""
        E, U, eta = owned(state.E), owned(state.U), float(learning_rate)
        work, other = scratch(grad), scratch(grad)
        for s in tiles(grad.size):
            g, E_s, U_s, h, d = grad[s], E[s], U[s], work[: s.stop - s.start], other[: s.stop - s.start]
            running_square(E_s, g, self.rho, h)
            np.add(U_s, self.eps, out=d)
            np.sqrt(d, out=d)
            np.add(E_s, self.eps, out=h)
            np.sqrt(h, out=h)
            np.divide(d, h, out=d)
            np.multiply(d, g, out=d)
            running_square(U_s, d, self.rho, h)
            np.multiply(d, -eta, out=g)
        return grad, SquaresAndSteps(E, U)


def running_square(mean: Vector, x: Vector, b: float, work: Vector) -> None:
    """Compute mean = b mean + (1-b) x^2 in place; `work` is overwritten."""
    np.multiply(x, x, out=work)
    np.multiply(work, 1.0 - b, out=work)
    np.multiply(mean, b, out=mean)
    np.add(mean, work, out=mean)


def inverse_root(square: Vector, eps: float, out: Vector, *, unbias: float = 1.0) -> Vector:
    """Return 1 / (unbias sqrt(square) + eps) in `out`."""
    np.sqrt(square, out=out)
    np.multiply(out, unbias, out=out)
    np.add(out, eps, out=out)
    return np.divide(1.0, out, out=out)


def _scaled_step(g: Vector, G: Vector, eta: float, eps: float, work: Vector) -> None:
    np.sqrt(G, out=work)
    np.add(work, eps, out=work)
    np.divide(g, work, out=g)
    np.multiply(g, -eta, out=g)
