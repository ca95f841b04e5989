"""Adam and AdamW: a running mean of the gradient over a running root mean square.

Both means start at zero and would be too small in the first steps; dividing by 1 - b^t makes them unbiased (t = 1
first). A plain weight decay inside g would be divided by the root as well; AdamW takes it out of the gradient and
shrinks the weights directly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.layout import Layout
from bigopt.optim.adaptive import running_square
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
        _check(self.beta1, self.beta2, self.eps)

    def init(self, params: Vector, layout: Layout) -> AdamState:
        """Return means of zero."""
        return AdamState(np.zeros_like(params), np.zeros_like(params))

    def update(
        self, grad: Vector, state: AdamState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, AdamState]:
        """Return -eta mh / (sqrt(vh) + eps); see `Transform.update`."""
        m, v = owned(state.m), owned(state.v)
        _adam_delta(grad, m, v, step, float(learning_rate), self.beta1, self.beta2, self.eps)
        return grad, AdamState(m, v)


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
        _check(self.beta1, self.beta2, self.eps)
        check_range("optimizer.weight_decay", self.weight_decay, 0.0)

    def init(self, params: Vector, layout: Layout) -> AdamWState:
        """Return means of zero."""
        return AdamWState(np.zeros_like(params), np.zeros_like(params), layout)

    def update(
        self, grad: Vector, state: AdamWState, params: Vector, step: int, learning_rate: float
    ) -> tuple[Vector, AdamWState]:
        """Return -eta wd w (penalised entries) - eta mh / (sqrt(vh) + eps); see `Transform.update`."""
        m, v, eta = owned(state.m), owned(state.v), float(learning_rate)
        _adam_delta(grad, m, v, step, eta, self.beta1, self.beta2, self.eps)
        for block, s in state.layout.slices():
            if block.penalized:
                add_scaled(grad[s], -eta * self.weight_decay, params[s])
        return grad, AdamWState(m, v, state.layout)


def _check(beta1: float, beta2: float, eps: float) -> None:
    check_range("optimizer.beta1", beta1, 0.0, 1.0)
    check_range("optimizer.beta2", beta2, 0.0, 1.0)
    check_range("optimizer.eps", eps, 0.0, open_low=True)


def _adam_delta(grad: Vector, m: Vector, v: Vector, t: int, eta: float, b1: float, b2: float, eps: float) -> None:
    """Advance m and v and turn `grad` into Adam's delta, all in place.

    -eta mh / (sqrt(vh) + eps) with the scalars gathered: -(eta / (1-b1^t)) m / (sqrt(v) / sqrt(1-b2^t) + eps).
    """
    rate = -eta / (1.0 - b1**t)
    unbias = 1.0 / math.sqrt(1.0 - b2**t)
    work = scratch(grad)
    for s in tiles(grad.size):
        g, m_s, v_s, h = grad[s], m[s], v[s], work[: s.stop - s.start]
        running_square(v_s, g, b2, h)
        np.multiply(m_s, b1, out=m_s)
        np.multiply(g, 1.0 - b1, out=g)
        np.add(m_s, g, out=m_s)
        np.sqrt(v_s, out=h)
        np.multiply(h, unbias, out=h)
        np.add(h, eps, out=h)
        np.divide(m_s, h, out=g)
        np.multiply(g, rate, out=g)
