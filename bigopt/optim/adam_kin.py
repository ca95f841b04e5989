"""AdaMax, NAdam and Yogi: Adam with one part exchanged.

AdaMax measures the gradient by its largest entry so far instead of its mean square; NAdam looks one step of momentum
ahead, as Nesterov's rule does; Yogi moves the mean square by a bounded amount instead of a fraction, so that it cannot
forget large gradients quickly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.optim.adam import AdamState, check_adam, running_mean
from bigopt.optim.adaptive import running_square
from bigopt.optim.transform import Vector, owned, scratch, tiles

_DECAY: Final = 0.004
"""How fast NAdam's momentum rises to b1: torch's ``momentum_decay``."""


@wire
class AdaMaxState(NamedTuple):
    """State of AdaMax.

    Parameters
    ----------
    m : ndarray, shape (p,)
        Running mean of g.
    u : ndarray, shape (p,)
        Decaying maximum of abs(g) + eps; 0 before step 1.
    """

    m: Vector
    u: Vector


@wire
@dataclass(frozen=True)
class AdaMax:
    """AdaMax: m = b1 m + (1-b1) g;  u = max(b2 u, abs(g) + eps);  w -= eta m / ((1-b1^t) u).

    Parameters
    ----------
    beta1, beta2 : float
        b1 and b2, 0 <= b < 1.
    eps : float
        > 0, inside the maximum.

    Notes
    -----
    Kingma and Ba (2015), algorithm 2, in torch's form: eps is added to abs(g); the paper has none.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_adam(self.beta1, self.beta2, self.eps)

    def init(self, params: Vector, layout: Layout) -> AdaMaxState:
        """Return a mean and maxima of zero."""
        return AdaMaxState(np.zeros_like(params), np.zeros_like(params))

    def update(
        self, grad: Vector, state: AdaMaxState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, AdaMaxState]:
        """Return -eta m / ((1-b1^t) u); see `Transform.update`."""
        m, u = owned(state.m), owned(state.u)
        rate = -float(learning_rate) / (1.0 - self.beta1**step)
        work = scratch(grad)
        for s in tiles(grad.size):
            g, m_s, u_s, h = grad[s], m[s], u[s], work[: s.stop - s.start]
            np.abs(g, out=h)
            np.add(h, self.eps, out=h)
            np.multiply(u_s, self.beta2, out=u_s)
            np.maximum(u_s, h, out=u_s)
            running_mean(m_s, g, self.beta1)
            np.divide(m_s, u_s, out=g)
            np.multiply(g, rate, out=g)
        return grad, AdaMaxState(m, u)


@wire
class NAdamState(NamedTuple):
    """State of NAdam.

    Parameters
    ----------
    m, v : ndarray, shape (p,)
        Running means of g and g^2, without bias correction; 0 before step 1.
    product : float
        P_t = mu_1 ... mu_t; 1 before step 1.
    """

    m: Vector
    v: Vector
    product: float


@wire
@dataclass(frozen=True)
class NAdam:
    """NAdam: w -= eta [(1-mu_t) g/(1-P_t) + mu_{t+1} m/(1-P_{t+1})] / (sqrt(vh) + eps).

    With m and v as in `Adam`, mu_t = b1 (1 - 0.5 * 0.96^(0.004 t)), P_t = mu_1 ... mu_t and vh = v / (1 - b2^t).

    Parameters
    ----------
    beta1, beta2, eps : float
        As in `Adam`.

    Notes
    -----
    Dozat (2016), in torch's form: the schedule mu_t weighs the terms while m itself is kept with the constant b1; the
    paper keeps m with mu_t.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_adam(self.beta1, self.beta2, self.eps)

    def init(self, params: Vector, layout: Layout) -> NAdamState:
        """Return means of zero and the empty product."""
        return NAdamState(np.zeros_like(params), np.zeros_like(params), 1.0)

    def update(
        self, grad: Vector, state: NAdamState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, NAdamState]:
        """Return NAdam's delta; see `Transform.update`."""
        m, v, eta = owned(state.m), owned(state.v), float(learning_rate)
        of_g, of_m, product = self.weights(state.product, step, eta)
        unbias = 1.0 / math.sqrt(1.0 - self.beta2**step)
        work, other = scratch(grad), scratch(grad)
        for s in tiles(grad.size):
            g, m_s, v_s, h, d = grad[s], m[s], v[s], work[: s.stop - s.start], other[: s.stop - s.start]
            running_square(v_s, g, self.beta2, h)
            np.multiply(g, of_g, out=d)
            running_mean(m_s, g, self.beta1)
            np.multiply(m_s, of_m, out=g)
            np.add(g, d, out=g)
            np.sqrt(v_s, out=h)
            np.multiply(h, unbias, out=h)
            np.add(h, self.eps, out=h)
            np.divide(g, h, out=g)
        return grad, NAdamState(m, v, product)

    def weights(self, product: float, step: int, eta: float) -> tuple[float, float, float]:
        """Return what g and m are multiplied by in this step, and P_t, from P_{t-1}."""
        mu, ahead = self._momentum(step), self._momentum(step + 1)
        product = product * mu
        return -eta * (1.0 - mu) / (1.0 - product), -eta * ahead / (1.0 - product * ahead), product

    def _momentum(self, t: int) -> float:
        return self.beta1 * (1.0 - 0.5 * math.pow(0.96, _DECAY * t))


@wire
@dataclass(frozen=True)
class Yogi:
    """Yogi: m = b1 m + (1-b1) g;  v -= (1-b2) sign(v - g^2) g^2;  w -= eta m / (sqrt(v) + eps).

    No bias correction; m and v start at 0.

    Parameters
    ----------
    beta1, beta2 : float
        b1 and b2, 0 <= b < 1.
    eps : float
        > 0, outside the square root; larger than Adam's, it bounds the first steps.

    Notes
    -----
    Zaheer et al. (2018), algorithm 2; the paper starts v at a mean square of the first gradients, here it is 0.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_adam(self.beta1, self.beta2, self.eps)

    def init(self, params: Vector, layout: Layout) -> AdamState:
        """Return means of zero."""
        return AdamState(np.zeros_like(params), np.zeros_like(params))

    def update(
        self, grad: Vector, state: AdamState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, AdamState]:
        """Return -eta m / (sqrt(v) + eps); see `Transform.update`."""
        m, v, eta = owned(state.m), owned(state.v), float(learning_rate)
        work, other = scratch(grad), scratch(grad)
        for s in tiles(grad.size):
            g, m_s, v_s, h, d = grad[s], m[s], v[s], work[: s.stop - s.start], other[: s.stop - s.start]
            np.multiply(g, g, out=h)
            np.subtract(v_s, h, out=d)
            np.sign(d, out=d)
            np.multiply(h, 1.0 - self.beta2, out=h)
            np.multiply(d, h, out=d)
            np.subtract(v_s, d, out=v_s)
            running_mean(m_s, g, self.beta1)
            np.sqrt(v_s, out=h)
            np.add(h, self.eps, out=h)
            np.divide(m_s, h, out=g)
            np.multiply(g, -eta, out=g)
        return grad, AdamState(m, v)
