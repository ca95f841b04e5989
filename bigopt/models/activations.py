"""Activations: z = phi(v) and, beside it, what backpropagation needs, J_phi(v)^T d.

All derivatives are written in terms of the output z, so that v need not be kept. Elementwise activations multiply by
phi'; softmax couples the outputs of a row and needs its full Jacobian d z_p / d v_l = z_p (1[p=l] - z_l), which makes
``J^T d = z * (d - sum(d * z))``.

=========  ======================  =====================
name       z                       J^T d
=========  ======================  =====================
identity   v                       d
sigmoid    1 / (1 + exp(-v))       d z (1 - z)
tanh       tanh v                  d (1 - z^2)
relu       max(v, 0)               d where v > 0, else 0
softmax    exp(v_p) / sum exp(v)   z (d - sum(d z))
=========  ======================  =====================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from bigopt.core.arrays import namespace
from bigopt.models.kernels import into


class Activation(Protocol):
    """A function of each row of (rows, width) arrays, and the transpose of its Jacobian."""

    def forward(self, v: Any) -> Any:
        """Return z = phi(v), shape (rows, width); v's memory may be reused."""
        ...

    def backward(self, z: Any, d: Any) -> Any:
        """Return J_phi^T d at the point whose output is z, shape (rows, width); d's memory may be reused, z is kept."""
        ...


def sigmoid(v: Any) -> Any:
    """Return 1 / (1 + exp(-v)) as exp(min(v, 0)) / (1 + exp(-|v|)): no overflow, all digits in both tails."""
    xp = namespace(v)
    numerator = xp.exp(xp.minimum(v, 0.0))
    numerator /= 1.0 + xp.exp(-xp.abs(v))
    return numerator


def softmax(v: Any) -> Any:
    """Return exp(v) / sum(exp(v)) of each row, shifted by the row's maximum."""
    xp = namespace(v)
    z = v - xp.max(v, axis=1, keepdims=True)
    z = xp.exp(z, **into(z))
    z /= xp.sum(z, axis=1, keepdims=True)
    return z


@dataclass(frozen=True)
class Identity:
    """z = v."""

    def forward(self, v: Any) -> Any:
        """Return v itself."""
        return v

    def backward(self, z: Any, d: Any) -> Any:
        """Return d itself."""
        return d


@dataclass(frozen=True)
class Sigmoid:
    """z = 1 / (1 + exp(-v)),  J^T d = d z (1 - z)."""

    def forward(self, v: Any) -> Any:
        """Return the sigmoid of v."""
        return sigmoid(v)

    def backward(self, z: Any, d: Any) -> Any:
        """Return d z (1 - z)."""
        d *= z
        d *= 1.0 - z
        return d


@dataclass(frozen=True)
class Tanh:
    """z = tanh v,  J^T d = d (1 - z^2)."""

    def forward(self, v: Any) -> Any:
        """Return tanh of v."""
        return namespace(v).tanh(v, **into(v))

    def backward(self, z: Any, d: Any) -> Any:
        """Return d (1 - z)(1 + z), which keeps its digits where z is close to 1."""
        d *= (1.0 - z) * (1.0 + z)
        return d


@dataclass(frozen=True)
class Relu:
    """z = max(v, 0),  J^T d = d where v > 0; the derivative at 0 is 0."""

    def forward(self, v: Any) -> Any:
        """Return max(v, 0)."""
        return namespace(v).maximum(v, 0.0, **into(v))

    def backward(self, z: Any, d: Any) -> Any:
        """Return d where z > 0, else 0 (a product: `where` on random signs is ten times slower)."""
        if isinstance(d, np.ndarray):
            return np.multiply(d, z > 0, out=d)
        d *= namespace(z).astype(z > 0, d.dtype)
        return d


@dataclass(frozen=True)
class Softmax:
    """z = exp(v) / sum exp(v) over the row,  J^T d = z (d - sum(d z))."""

    def forward(self, v: Any) -> Any:
        """Return the softmax of each row."""
        return softmax(v)

    def backward(self, z: Any, d: Any) -> Any:
        """Return z (d - sum(d z)), the sum over the row."""
        d -= namespace(z).sum(d * z, axis=1, keepdims=True)
        d *= z
        return d


ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "identity": Identity(),
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "relu": Relu(),
    "softmax": Softmax(),
}
