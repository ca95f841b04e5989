"""Losses of one row, and their derivative by the model's output.

A loss sees the outputs v of shape (rows, q) and the targets y, and gives one number a row and ``delta = dloss/dv`` of
shape (rows, q). With several outputs squared and Huber errors are *summed* over them. Cross-entropies take logits, so
that the exponentials never overflow and delta needs no phi'.

=========================  ===========================================  ==================================
name                       value of a row                               delta
=========================  ===========================================  ==================================
squared                    sum e^2,  e = v - y                          2 e
huber                      e^2 where |e| <= D, else 2 D |e| - D^2       2 e, cut to [-2 D, 2 D]
binary_cross_entropy       max(v, 0) + log1p(exp(-|v|)) - y v           sigmoid(v) - y
categorical_cross_entropy  log sum exp v - sum Y v                      softmax(v) - Y
perceptron                 max(0, -y v)                                 -y where y v <= 0
hinge                      max(0, 1 - y v)                              -y where y v < 1
squared_hinge              max(0, 1 - y v)^2                            -2 y max(0, 1 - y v)
=========================  ===========================================  ==================================

There is no 1/2 in the squared loss; Huber with D = 1 is twice torch's HuberLoss. The last three, and squared error on
labels, judge the sign of one score: y is -1 or +1. Their kinks take the subgradient of the table: the perceptron's at 0
is -y, because from w = 0 it would never leave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol

from bigopt.core.arrays import namespace
from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.models.activations import sigmoid, softmax
from bigopt.models.kernels import into, row_sum

Task = Literal["regression", "binary", "sign", "multiclass"]


class Loss(Protocol):
    """A loss of each row; frozen, and able to travel.

    Attributes
    ----------
    name : str
        Its name in a conf.
    task : "regression", "binary", "sign" or "multiclass"
        What the targets are: numbers (rows,) or (rows, q); 0 and 1 (rows,); -1 and +1 (rows,); class indices (rows,)
        or one-hot (rows, C) whose rows sum to one.
    """

    name: ClassVar[str]
    task: ClassVar[Task]

    def value(self, v: Any, y: Any) -> Any:
        """Return the loss of each row, shape (rows,), in v's dtype."""
        ...

    def delta(self, v: Any, y: Any) -> Any:
        """Return dloss/dv, shape (rows, q), in fresh memory of v's dtype."""
        ...

    def value_delta(self, v: Any, y: Any) -> tuple[Any, Any]:
        """Return (value, delta), sharing what they have in common."""
        ...

    def link(self, v: Any) -> Any:
        """Return the prediction: v itself, or one probability a class of a cross-entropy (two columns for binary)."""
        ...


def _columns(v: Any, y: Any) -> Any:
    """Return y as a (rows, q) array of v's dtype."""
    xp = namespace(v)
    if y.ndim == 1:
        y = xp.reshape(y, (-1, 1))
    if y.shape != v.shape:
        raise ValueError(f"targets of shape {tuple(y.shape)} for outputs of shape {tuple(v.shape)}")
    return xp.astype(y, v.dtype, copy=False)


@wire
@dataclass(frozen=True)
class SquaredLoss:
    """sum e^2 over the outputs, e = v - y."""

    name: ClassVar[str] = "squared"
    task: ClassVar[Task] = "regression"

    def value(self, v: Any, y: Any) -> Any:
        """Return sum e^2."""
        e = v - _columns(v, y)
        e *= e
        return row_sum(e)

    def delta(self, v: Any, y: Any) -> Any:
        """Return 2 e."""
        e = v - _columns(v, y)
        e *= 2.0
        return e

    def value_delta(self, v: Any, y: Any) -> tuple[Any, Any]:
        """Return (sum e^2, 2 e)."""
        e = v - _columns(v, y)
        value = row_sum(e * e)
        e *= 2.0
        return value, e

    def link(self, v: Any) -> Any:
        """Return v."""
        return v


@wire
@dataclass(frozen=True)
class HuberLoss:
    """e^2 where |e| <= threshold, else 2 threshold |e| - threshold^2, summed over the outputs.

    With c = e cut to [-threshold, threshold] both pieces are c (2 e - c), and the derivative is 2 c.

    Parameters
    ----------
    threshold : float
        Where the parabola becomes a line (``model.huber_delta``), above 0.
    """

    threshold: float = 1.0

    name: ClassVar[str] = "huber"
    task: ClassVar[Task] = "regression"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0.0):
            raise ConfError(f"{self.threshold} is not a number above 0", where="model.huber_delta")

    def value(self, v: Any, y: Any) -> Any:
        """Return the sum of c (2 e - c)."""
        return self.value_delta(v, y)[0]

    def delta(self, v: Any, y: Any) -> Any:
        """Return 2 c."""
        return self.value_delta(v, y)[1]

    def value_delta(self, v: Any, y: Any) -> tuple[Any, Any]:
        """Return (sum c (2 e - c), 2 c)."""
        xp = namespace(v)
        e = v - _columns(v, y)
        c = xp.maximum(xp.minimum(e, self.threshold), -self.threshold)
        e *= 2.0
        e -= c
        e *= c
        c *= 2.0
        return row_sum(e), c

    def link(self, v: Any) -> Any:
        """Return v."""
        return v


@wire
@dataclass(frozen=True)
class BinaryCrossEntropy:
    """-y log s(v) - (1 - y) log s(-v) for one logit v and y in {0, 1}, s the sigmoid."""

    name: ClassVar[str] = "binary_cross_entropy"
    task: ClassVar[Task] = "binary"

    def value(self, v: Any, y: Any) -> Any:
        """Return max(v, 0) - y v + log1p(exp(-|v|))."""
        return self._value(v, _columns(v, y), namespace(v).exp(-namespace(v).abs(v)))

    def delta(self, v: Any, y: Any) -> Any:
        """Return s(v) - y."""
        d = sigmoid(v)
        d -= _columns(v, y)
        return d

    def value_delta(self, v: Any, y: Any) -> tuple[Any, Any]:
        """Return both from one exp(-|v|)."""
        xp = namespace(v)
        y = _columns(v, y)
        tail = xp.exp(-xp.abs(v))
        d = xp.exp(xp.minimum(v, 0.0))
        d /= 1.0 + tail
        d -= y
        return self._value(v, y, tail), d

    @staticmethod
    def _value(v: Any, y: Any, tail: Any) -> Any:
        xp = namespace(v)
        value = xp.log1p(tail, **into(tail))
        value += xp.maximum(v, 0.0) - y * v
        return row_sum(value)

    def link(self, v: Any) -> Any:
        """Return the probabilities of both classes, shape (rows, 2); each keeps its small digits."""
        return namespace(v).concat([sigmoid(-v), sigmoid(v)], axis=1)


@wire
@dataclass(frozen=True)
class CategoricalCrossEntropy:
    """-sum_c Y_c log softmax(v)_c for C logits; Y is one-hot, or given by the index of the class."""

    name: ClassVar[str] = "categorical_cross_entropy"
    task: ClassVar[Task] = "multiclass"

    def value(self, v: Any, y: Any) -> Any:
        """Return log sum exp v - sum Y v, shifted by the row's maximum."""
        return self.value_delta(v, y)[0]

    def delta(self, v: Any, y: Any) -> Any:
        """Return softmax(v) - Y."""
        d = softmax(v)
        d -= self._one_hot(v, y)
        return d

    def value_delta(self, v: Any, y: Any) -> tuple[Any, Any]:
        """Return both from one row of exponentials."""
        xp = namespace(v)
        target = self._one_hot(v, y)
        shifted = v - xp.max(v, axis=1, keepdims=True)
        picked = xp.sum(shifted * target, axis=1)
        d = xp.exp(shifted, **into(shifted))
        total = xp.sum(d, axis=1, keepdims=True)
        d /= total
        d -= target
        return xp.log(xp.reshape(total, (-1,))) - picked, d

    @staticmethod
    def _one_hot(v: Any, y: Any) -> Any:
        if y.ndim == 2:
            return _columns(v, y)
        xp = namespace(v)
        index = xp.astype(y, xp.int64, copy=False)
        classes = xp.arange(v.shape[1], dtype=xp.int64)
        return xp.astype(xp.reshape(index, (-1, 1)) == classes, v.dtype)

    def link(self, v: Any) -> Any:
        """Return softmax(v), shape (rows, C)."""
        return softmax(v)


class _Margin:
    """What losses on -1 and +1 have in common; each gives `value_delta`."""

    task: ClassVar[Task] = "sign"

    def value_delta(self, v: Any, y: Any) -> tuple[Any, Any]:
        """Return (value, delta)."""
        raise NotImplementedError

    def value(self, v: Any, y: Any) -> Any:
        """Return the loss of each row."""
        return self.value_delta(v, y)[0]

    def delta(self, v: Any, y: Any) -> Any:
        """Return the subgradient by v."""
        return self.value_delta(v, y)[1]

    def link(self, v: Any) -> Any:
        """Return v: a score is no probability."""
        return v


@wire
@dataclass(frozen=True)
class PerceptronLoss(_Margin):
    """max(0, -y v)."""

    name: ClassVar[str] = "perceptron"

    def value_delta(self, v: Any, y: Any) -> tuple[Any, Any]:
        """Return (max(0, -y v), -y where y v <= 0)."""
        xp = namespace(v)
        pull = -_columns(v, y)
        slack = pull * v
        return row_sum(xp.maximum(slack, 0.0)), pull * xp.astype(slack >= 0.0, v.dtype)


@wire
@dataclass(frozen=True)
class HingeLoss(_Margin):
    """max(0, 1 - y v)."""

    name: ClassVar[str] = "hinge"

    def value_delta(self, v: Any, y: Any) -> tuple[Any, Any]:
        """Return (max(0, 1 - y v), -y where y v < 1)."""
        xp = namespace(v)
        pull = -_columns(v, y)
        slack = 1.0 + pull * v
        return row_sum(xp.maximum(slack, 0.0)), pull * xp.astype(slack > 0.0, v.dtype)


@wire
@dataclass(frozen=True)
class SquaredHingeLoss(_Margin):
    """max(0, 1 - y v)^2."""

    name: ClassVar[str] = "squared_hinge"

    def value_delta(self, v: Any, y: Any) -> tuple[Any, Any]:
        """Return (max(0, 1 - y v)^2, -2 y max(0, 1 - y v))."""
        pull = -_columns(v, y)
        slack = namespace(v).maximum(1.0 + pull * v, 0.0)
        pull *= 2.0
        pull *= slack
        return row_sum(slack * slack), pull


@wire
@dataclass(frozen=True)
class SignedSquaredLoss(SquaredLoss):
    """(v - y)^2 for a label y of -1 or +1, judged by the sign of v."""

    task: ClassVar[Task] = "sign"


LOSSES: Final[Mapping[str, type[Loss]]] = {
    kind.name: kind
    for kind in (
        SquaredLoss,
        HuberLoss,
        BinaryCrossEntropy,
        CategoricalCrossEntropy,
        PerceptronLoss,
        HingeLoss,
        SquaredHingeLoss,
    )
}
"""By name; "squared" on labels is `SignedSquaredLoss`."""
