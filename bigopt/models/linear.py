"""The linear family: v = X W + b with any loss on it.

Linear and ridge regression, logistic and softmax regression differ only in the loss (and the number of outputs); the
gradient is X^T delta, with column sums of delta for the intercepts. X is an array, or sparse rows (`bigopt.core.csr`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.arrays import namespace
from bigopt.core.buffers import Buffers
from bigopt.core.codec import wire
from bigopt.core.layout import Block, Layout
from bigopt.models import kernels
from bigopt.models.init import initial
from bigopt.models.losses import Loss
from bigopt.models.shapes import check_shapes


@wire
@dataclass(frozen=True)
class LinearModel:
    """v = X W + b.

    Parameters
    ----------
    features : int
        Columns d of X.
    outputs : int
        Columns q of the scores: targets, one logit, or C logits.
    loss : Loss
    intercept : bool
        Whether there is a b; it is never penalised.

    Notes
    -----
    Layout: ``weight`` (d, q), then ``intercept`` (q,).
    """

    features: int
    outputs: int
    loss: Loss
    intercept: bool = True

    def __post_init__(self) -> None:
        check_shapes(self.features, self.outputs, self.loss)

    @cached_property
    def layout(self) -> Layout:
        """Blocks ``weight`` and ``intercept``."""
        weight = Block("weight", (self.features, self.outputs), True, self.features, self.outputs)
        return Layout((weight, Block("intercept", (self.outputs,), False)) if self.intercept else (weight,))

    def init(self, rule: str, seed: int) -> npt.NDArray[np.float64]:
        """Return initial params by a rule of `bigopt.models.init.INITS`."""
        return initial(self.layout, rule, seed)

    def grad_sum(
        self, params: Any, X: Any, y: Any, weight: Any | None, buffers: Buffers | None = None
    ) -> tuple[Any, float, float]:
        """Return (X^T S delta and column sums of S delta as one vector, weighted loss sum, weight sum)."""
        kernels.same_dtype(params, X)
        value, delta = self.loss.value_delta(self.scores(params, X), y)
        delta = kernels.weighted(delta, weight)
        grad = namespace(params).empty(params.shape, dtype=X.dtype)
        g = self.layout.views(grad)
        kernels.dense_gradient(X, delta, g["weight"], g.get("intercept"))
        return grad, *kernels.totals(value, weight)

    def loss_sum(self, params: Any, X: Any, y: Any, weight: Any | None) -> tuple[float, float]:
        """Return (weighted loss sum, weight sum)."""
        kernels.same_dtype(params, X)
        return kernels.totals(self.loss.value(self.scores(params, X), y), weight)

    def scores(self, params: Any, X: Any) -> Any:
        """Return X W + b, shape (rows, outputs)."""
        w = self.layout.views(params)
        return kernels.dense(X, w["weight"], w.get("intercept"))

    def predict(self, params: Any, X: Any) -> Any:
        """Return values, or one probability a class."""
        return self.loss.link(self.scores(params, X))


class Coefficients(NamedTuple):
    """A linear model on the scale of the features as they are in the data.

    Parameters
    ----------
    weight : ndarray, shape (d, q), float64
    intercept : ndarray, shape (q,), float64
    """

    weight: npt.NDArray[np.float64]
    intercept: npt.NDArray[np.float64]


def coefficients(model: LinearModel, params: npt.NDArray[Any]) -> Coefficients:
    """Return the coefficients on the features that the model sees, in float64.

    Parameters
    ----------
    model : LinearModel
    params : ndarray, shape (p,)

    Returns
    -------
    Coefficients
        Copies; intercepts of 0 where the model has none (undoing a centring may then give some).
    """
    views = model.layout.views(np.asarray(params, dtype=np.float64))
    intercept = views["intercept"] if model.intercept else np.zeros(model.outputs)
    return Coefficients(np.array(views["weight"]), np.array(intercept))
