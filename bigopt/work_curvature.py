"""What a slot computes for `bigopt diagnose`: gradient noise, moments of the features, Hessian-vector products.

All are sums over rows, folded in the same blocks and along the same tree as a gradient, so that a diagnosis has the
same bits on any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import arrays
from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.sums import Moments, Sums, added
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView
from bigopt.models import kernels, sparse
from bigopt.models.base import Model
from bigopt.models.curvature import gauss_newton_traces, mlp_hessian_vector_sum
from bigopt.models.linear import LinearModel
from bigopt.models.mlp import MLP
from bigopt.models.rows import hessian_vector_sum, noise_sum, row_curvature
from bigopt.work_rows import Rows, cast, row_blocks, unit_rows

Array = npt.NDArray[Any]


@wire
class NoiseSums(NamedTuple):
    """Gradient sum, and the squared norms of the gradients of single rows.

    Parameters
    ----------
    grad : ndarray, shape (p,)
        As in `Sums`.
    squares : float
        sum_i s_i^2 ||gradient loss_i||^2.
    loss, weight : float
        As in `Sums`.
    rows : int
    """

    grad: Array
    squares: float
    loss: float
    weight: float
    rows: int

    def merge(self, other: NoiseSums) -> NoiseSums:
        """Add two sums."""
        return NoiseSums(
            added(self.grad, other.grad),
            self.squares + other.squares,
            self.loss + other.loss,
            self.weight + other.weight,
            self.rows + other.rows,
        )


@wire
class FeatureSums(NamedTuple):
    """Second and fourth moments of the features, each row with a factor a_i.

    Parameters
    ----------
    second : ndarray, shape (d, d) or (0, 0), float64
        sum_i a_i x x^T; empty where d is too large to form it.
    fourth : ndarray, shape (d, d) or (0, 0), float64
        sum_i a_i^2 ||x||^2 x x^T.
    trace, squares : float
        sum_i a_i ||x||^2 and the sum of their squares.
    largest : float
        max_i a_i ||x||^2.
    rows : int
    """

    second: Array
    fourth: Array
    trace: float
    squares: float
    largest: float
    rows: int

    def merge(self, other: FeatureSums) -> FeatureSums:
        """Add two sums; the largest of both."""
        return FeatureSums(
            added(self.second, other.second),
            added(self.fourth, other.fourth),
            self.trace + other.trace,
            self.squares + other.squares,
            max(self.largest, other.largest),
            self.rows + other.rows,
        )


@wire
@dataclass(frozen=True)
class NoiseSum:
    """Gradient and squared norms of the rows' gradients at some params.

    Parameters
    ----------
    model : LinearModel or MLP
    view : DataView
    block_rows : int
    device : str
    """

    model: Model
    view: DataView
    block_rows: int
    device: arrays.Device = "cpu"

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast params once to the block dtype."""
        return (cast(inputs[0], self.view, self.device),)

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> NoiseSums:
        """Return the unit's `NoiseSums`."""
        grad = np.zeros(self.model.layout.size)
        squares = loss = total = 0.0
        count = 0
        for X, y, weight in _blocks(self, unit, meter):
            g, square, value, mass = noise_sum(self.model, inputs[0], X, y, weight)
            grad += arrays.to_host(g)
            squares, loss, total = squares + square, loss + value, total + mass
            count += len(X)
        return NoiseSums(grad, squares, loss, total, count)


@wire
@dataclass(frozen=True)
class FeatureSum:
    """Moments of x (with a 1 where `ones`), each row with a_i = scale s_i, times h_i/2 where there is a model.

    For an mlp a_i ||x||^2 is scale s_i tr G_i / 2 (`gauss_newton_traces`): what it is in the linear family. There is no
    matrix then.

    Parameters
    ----------
    view : DataView
    block_rows : int
    scale : float
        n/W, so that the a_i of a squared loss have mean 1.
    ones : bool
        Whether x ends with a 1 for the intercept.
    formed : bool
        Whether matrices are wanted, not only their traces.
    model : LinearModel, MLP or None
        Whose row curvatures count, at the params that are sent.
    device : str
    """

    view: DataView
    block_rows: int
    scale: float
    ones: bool
    formed: bool
    model: LinearModel | MLP | None = None
    device: arrays.Device = "cpu"

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast params once to the block dtype."""
        return tuple(cast(value, self.view, self.device) for value in inputs)

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> FeatureSums:
        """Return the unit's `FeatureSums`."""
        d = len(self.view.source.columns) + self.ones if self.formed else 0
        second, fourth = np.zeros((d, d)), np.zeros((d, d))
        trace = squares = largest = 0.0
        count = 0
        for X, y, weight in _blocks(self, unit, meter):
            factor, norms = self._curved(inputs, X, y)
            if weight is not None:
                factor *= weight
            xp = arrays.namespace(factor)
            weighed = factor * norms
            if self.formed:
                rows = X.dense() if isinstance(X, CSR) else X
                if self.ones:
                    rows = xp.concat([rows, xp.ones((len(X), 1), dtype=X.dtype)], axis=1)
                scaled = rows * factor[:, None]
                second += arrays.to_host(xp.matmul(rows.T, scaled))
                scaled *= weighed[:, None]
                fourth += arrays.to_host(xp.matmul(rows.T, scaled))
            trace += float(xp.sum(weighed))
            squares += float(xp.sum(weighed * weighed))
            largest = max(largest, float(xp.max(weighed)))
            count += len(X)
        return FeatureSums(second, fourth, trace, squares, largest, count)

    def _curved(self, inputs: tuple[Any, ...], X: Any, y: Any) -> tuple[Any, Any]:
        """Return (a_i without the weight, ||x||^2), each of shape (rows,)."""
        if isinstance(self.model, MLP):
            norms = gauss_newton_traces(self.model, inputs[0], X, y)
            return arrays.namespace(norms).full(len(X), self.scale / 2.0, dtype=X.dtype), norms
        norms = sparse.squares(X) if isinstance(X, CSR) else kernels.row_sum(X * X)
        if self.ones:
            norms = norms + 1.0
        factor = arrays.namespace(norms).full(len(X), self.scale, dtype=X.dtype)
        if self.model is not None:
            factor *= row_curvature(self.model, inputs[0], X, y) / 2.0
        return factor, norms


@wire
@dataclass(frozen=True)
class HessianVector:
    """The sum of the rows' Hessians times a vector, without the Hessian: X^T (h (X V)), for an mlp the R-operator.

    Parameters
    ----------
    model : LinearModel or MLP
    view : DataView
    block_rows : int
    device : str
    """

    model: LinearModel | MLP
    view: DataView
    block_rows: int
    device: arrays.Device = "cpu"

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast params and vector once to the block dtype."""
        return tuple(cast(value, self.view, self.device) for value in inputs)

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Sums:
        """Return the unit's product as the gradient of a `Sums` (its loss stays 0)."""
        params, vector = inputs
        product = np.zeros(self.model.layout.size)
        mass = 0.0
        count = 0
        for X, y, weight in _blocks(self, unit, meter):
            if isinstance(self.model, MLP):
                part = mlp_hessian_vector_sum(self.model, params, vector, X, y, weight)
            else:
                part = hessian_vector_sum(self.model, params, vector, X, y, weight)
            product += arrays.to_host(part)
            mass += float(len(X)) if weight is None else float(arrays.to_host(weight).sum())
            count += len(X)
        return Sums(product, 0.0, mass, count)


@wire
@dataclass(frozen=True)
class HiddenMoments:
    """Moments of what each hidden layer puts out: what a batch normalisation holds.

    Parameters
    ----------
    model : MLP
    view : DataView
    block_rows : int
    device : str
    """

    model: MLP
    view: DataView
    block_rows: int
    device: arrays.Device = "cpu"

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast params once to the block dtype."""
        return (cast(inputs[0], self.view, self.device),)

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Moments:
        """Return the unit's `Moments` of all hidden units, layer by layer."""
        width = sum(self.model.hidden)
        found = Moments(0.0, np.zeros(width), np.zeros(width))
        for X, _, weight in _blocks(self, unit, meter):
            total, mean, spread = self.model.hidden_moments(inputs[0], X, weight)
            found = found.merge(Moments(total, arrays.to_host(mean), arrays.to_host(spread)))
        return found


def _blocks(work: NoiseSum | FeatureSum | HessianVector | HiddenMoments, unit: Ints, meter: Meter) -> Iterator[Rows]:
    """Give the unit's rows in blocks counted from its first row."""
    with meter.block(work.view, int(unit[0])) as entry:
        rows = unit_rows(entry, 0, unit)
        meter.rows += len(rows[0])
        yield from row_blocks(rows, work.block_rows, work.device)
