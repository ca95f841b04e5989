"""Adam, AMSGrad and AdamW: a running mean of the gradient over a running root mean square.

Both means start at zero and would be too small in the first steps; dividing by 1 - b^t makes them unbiased (t = 1
first). AMSGrad never lets the root shrink, which is what the proof of convergence needs. A plain weight decay inside g
would be divided by the root as well; AdamW takes it out of the gradient and shrinks the weights directly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.optim.adaptive import inverse_root, running_square
from bigopt.optim.ranges import check_range
from bigopt.optim.transform import Vector, add_scaled, owned, scratch, tiles


@wire
class AdamState(NamedTuple):
    """State of Adam.

    Parameters
    ----------
    m, v : ndarray, shape (p,)
        Running means of g and g^2, without bias correction; 0 before step 1.
    """

    m: Vector
    v: Vector


@wire
@dataclass(frozen=True)
class Adam:
    """Adam: m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= eta mh / (sqrt(vh) + eps).

    With mh = m / (1 - b1^t) and vh = v / (1 - b2^t).

    Parameters
    ----------
    beta1, beta2 : float
        b1 and b2, 0 <= b < 1.
    eps : float
        > 0, outside the square root.

    Notes
    -----
    Kingma and Ba (2015), algorithm 1.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_adam(self.beta1, self.beta2, self.eps)

    def init(self, params: Vector, layout: Layout) -> AdamState:
        """Return means of zero."""
        return AdamState(np.zeros_like(params), np.zeros_like(params))

    def update(
        self, grad: Vector, state: AdamState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, AdamState]:
        """Return -eta mh / (sqrt(vh) + eps); see `Transform.update`."""
        m, v = owned(state.m), owned(state.v)
        adam_delta(grad, m, v, step, float(learning_rate), self.beta1, self.beta2, self.eps)
        return grad, AdamState(m, v)

    def scale(self, state: AdamState, step: int, s: slice, out: Vector) -> Vector:
        """Return 1 / (sqrt(vh) + eps); see `bigopt.optim.proximal.Scaled`."""
        return inverse_root(state.v[s], self.eps, out, unbias=1.0 / math.sqrt(1.0 - self.beta2**step))


@wire
class AMSGradState(NamedTuple):
    """State of AMSGrad.

    Parameters
    ----------
    m, v : ndarray, shape (p,)
        As Adam's.
    x : ndarray, shape (p,)
        Largest v so far, entry by entry.
    """

    m: Vector
    v: Vector
    x: Vector


@wire
@dataclass(frozen=True)
class AMSGrad:
    """AMSGrad: Adam with x = max(x, v) and vh = x / (1 - b2^t).

    m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= eta mh / (sqrt(vh) + eps).

    Parameters
    ----------
    beta1, beta2, eps : float
        As in `Adam`.

    Notes
    -----
    Reddi, Kale, Kumar (2018), in torch's form: the maximum is taken over the raw v and corrected for bias afterwards
    (by the t of this step); the paper corrects nothing.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_adam(self.beta1, self.beta2, self.eps)

    def init(self, params: Vector, layout: Layout) -> AMSGradState:
        """Return means and maxima of zero."""
        return AMSGradState(np.zeros_like(params), np.zeros_like(params), np.zeros_like(params))

    def update(
        self, grad: Vector, state: AMSGradState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, AMSGradState]:
        """Return -eta mh / (sqrt(vh) + eps); see `Transform.update`."""
        m, v, x = owned(state.m), owned(state.v), owned(state.x)
        adam_delta(grad, m, v, step, float(learning_rate), self.beta1, self.beta2, self.eps, peak=x)
        return grad, AMSGradState(m, v, x)

    def scale(self, state: AMSGradState, step: int, s: slice, out: Vector) -> Vector:
        """Return 1 / (sqrt(vh) + eps); see `bigopt.optim.proximal.Scaled`."""
        return inverse_root(state.x[s], self.eps, out, unbias=1.0 / math.sqrt(1.0 - self.beta2**step))


@wire
class AdamWState(NamedTuple):
    """State of AdamW: Adam's, and the layout that says which entries decay.

    Parameters
    ----------
    m, v : ndarray, shape (p,)
    layout : Layout
    """

    m: Vector
    v: Vector
    layout: Layout


@wire
@dataclass(frozen=True)
class AdamW:
    """AdamW: w *= 1 - eta wd on the penalised entries, then Adam's w -= eta mh / (sqrt(vh) + eps).

    Intercepts (blocks of the layout that are not penalised) do not decay.

    Parameters
    ----------
    beta1, beta2, eps : float
        As in `Adam`.
    weight_decay : float
        wd >= 0.

    Notes
    -----
    Loshchilov and Hutter (2019), in torch's form: the paper's lambda is eta wd, so the decay follows the schedule.
    Torch itself decays every entry it is given, intercepts too, unless they are put in a parameter group of their own.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_adam(self.beta1, self.beta2, self.eps)
        check_range("optimizer.weight_decay", self.weight_decay, 0.0)

    def init(self, params: Vector, layout: Layout) -> AdamWState:
        """Return means of zero."""
        return AdamWState(np.zeros_like(params), np.zeros_like(params), layout)

    def update(
        self, grad: Vector, state: AdamWState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, AdamWState]:
        """Return -eta wd w (penalised entries) - eta mh / (sqrt(vh) + eps); see `Transform.update`."""
        m, v, eta = owned(state.m), owned(state.v), float(learning_rate)
        adam_delta(grad, m, v, step, eta, self.beta1, self.beta2, self.eps)
        for block, s in state.layout.slices():
            if block.penalized:
                add_scaled(grad[s], -eta * self.weight_decay, params[s])
        return grad, AdamWState(m, v, state.layout)

    def scale(self, state: AdamWState, step: int, s: slice, out: Vector) -> Vector:
        """Return 1 / (sqrt(vh) + eps); see `bigopt.optim.proximal.Scaled`."""
        return inverse_root(state.v[s], self.eps, out, unbias=1.0 / math.sqrt(1.0 - self.beta2**step))


def check_adam(beta1: float, beta2: float, eps: float) -> None:
    """Refuse b1, b2 outside [0, 1) and eps <= 0."""
    check_range("optimizer.beta1", beta1, 0.0, 1.0)
    check_range("optimizer.beta2", beta2, 0.0, 1.0)
    check_range("optimizer.eps", eps, 0.0, open_low=True)


def adam_delta(
    grad: Vector,
    m: Vector,
    v: Vector,
    t: int,
    eta: float,
    b1: float,
    b2: float,
    eps: float,
    *,
    peak: Vector | None = None,
) -> None:
    """Advance m, v (and the largest v so far) and turn `grad` into Adam's delta, all in place.

    -eta mh / (sqrt(vh) + eps) with the scalars gathered: -(eta / (1-b1^t)) m / (sqrt(v) / sqrt(1-b2^t) + eps).
    """
    rate = -eta / (1.0 - b1**t)
    unbias = 1.0 / math.sqrt(1.0 - b2**t)
    work = scratch(grad)
    for s in tiles(grad.size):
        g, m_s, v_s, h = grad[s], m[s], v[s], work[: s.stop - s.start]
        running_square(v_s, g, b2, h)
        running_mean(m_s, g, b1)
        if peak is not None:
            v_s = np.maximum(peak[s], v_s, out=peak[s])
        np.sqrt(v_s, out=h)
        np.multiply(h, unbias, out=h)
        np.add(h, eps, out=h)
        np.divide(m_s, h, out=g)
        np.multiply(g, rate, out=g)


def running_mean(mean: Vector, x: Vector, b: float) -> None:
    """Compute mean = b mean + (1-b) x in place; x is overwritten."""
    np.multiply(mean, b, out=mean)
    np.multiply(x, 1.0 - b, out=x)
    np.add(mean, x, out=mean)
