"""What crosses the wire: named tuples of sums, each with a stated merge.

A gradient over big data is a sum over rows. `Sums` is that sum for one unit; means are taken once, on the driver. The
left operand of a merge owns its buffers and may reuse them. Gradients of sparse rows are encoded on their way, with the
same bits (`bigopt.core.vectors`); `whole` gives the dense one to whoever asked for the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from bigopt.core import vectors
from bigopt.core.buffers import Buffers
from bigopt.core.codec import wire


class Mergeable(Protocol):
    """A value that a tree can fold."""

    def merge(self, other: Self) -> Self:
        """Return the value of both; associative up to rounding."""
        ...


def merge(left: Any, right: Any) -> Any:
    """Merge two values of the same type: the function the tree is folded with.

    A sum that overflows is infinite, without a warning: whoever is told it refuses it by name.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return left.merge(right)


def merging(buffers: Buffers, *, lazy: bool = False) -> Callable[[Any, Any], Any]:
    """Return `merge` for a process that folds again and again: new gradient sums are lent by `buffers`.

    If `lazy`, the last addition may be left to whoever needs the sum (`bigopt.core.vectors.Unadded`).
    """

    def both(left: Any, right: Any) -> Any:
        if not isinstance(left, Sums):
            return merge(left, right)
        with np.errstate(over="ignore", invalid="ignore"):
            return left.plus(right, buffers, lazy=lazy)

    return both


def added(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return left + right, in left's buffer where that may be written."""
    total: npt.NDArray[Any] = np.add(left, right, out=left if left.flags.writeable else None)
    return total


@wire
class Sums(NamedTuple):
    """Gradient and loss sums over rows.

    Parameters
    ----------
    grad : ndarray, shape (p,), SparseVector or Narrow
        sum_i s_i grad loss_i in ``run.dtype``: the true gradient sum (2 sum e x for squared loss), no penalty.
    loss : float
        sum_i s_i loss_i, float64.
    weight : float
        sum_i s_i, float64.
    rows : int
        Number of rows.
    """

    grad: Any
    loss: float
    weight: float
    rows: int

    def merge(self, other: Sums) -> Sums:
        """Add two sums."""
        return self.plus(other, None)

    def plus(self, other: Sums, buffers: Buffers | None, *, lazy: bool = False) -> Sums:
        """Add two sums, in memory that is lent where new memory is needed; see `merging`."""
        grad = vectors.added(self.grad, other.grad, buffers, lazy=lazy)
        return Sums(grad, self.loss + other.loss, self.weight + other.weight, self.rows + other.rows)


def packed(value: Any, width: int) -> Any:
    """Return what leaves a slot: gradient sums in the shorter encoding, by rows of `width`."""
    return value._replace(grad=vectors.packed(value.grad, width)) if isinstance(value, Sums) else value


def whole(root: Any) -> Any:
    """Return the root of a tree as methods take it: with a dense gradient."""
    return root._replace(grad=vectors.dense(root.grad)) if isinstance(root, Sums) else root


@wire
class HessianSums(NamedTuple):
    """Gradient, Hessian and loss sums over rows.

    Parameters
    ----------
    grad : ndarray, shape (p,)
        As in `Sums`.
    hessian : ndarray, shape (p, p)
        sum_i s_i hessian loss_i in ``run.dtype``, no penalty; symmetric up to rounding.
    loss, weight : float
        As in `Sums`.
    rows : int
    """

    grad: npt.NDArray[Any]
    hessian: npt.NDArray[Any]
    loss: float
    weight: float
    rows: int

    def merge(self, other: HessianSums) -> HessianSums:
        """Add two sums."""
        return HessianSums(
            added(self.grad, other.grad),
            added(self.hessian, other.hessian),
            self.loss + other.loss,
            self.weight + other.weight,
            self.rows + other.rows,
        )


@wire
class LineSums(NamedTuple):
    """Loss sums at several points params + eta_j direction, from one pass over the rows.

    Parameters
    ----------
    values : ndarray, shape (k,), float64
        sum_i s_i loss_i at each point; infinite where a loss is not finite.
    slopes : ndarray, shape (k,) or (0,), float64
        Derivatives of the values by eta, NaN where the value is infinite; empty where they were not asked for.
    curves : ndarray, shape (k,) or (0,), float64
        Second derivatives; empty where the model has none to give.
    weight : float
    rows : int
    """

    values: npt.NDArray[np.float64]
    slopes: npt.NDArray[np.float64]
    curves: npt.NDArray[np.float64]
    weight: float
    rows: int

    def merge(self, other: LineSums) -> LineSums:
        """Add two sums."""
        return LineSums(
            added(self.values, other.values),
            added(self.slopes, other.slopes),
            added(self.curves, other.curves),
            self.weight + other.weight,
            self.rows + other.rows,
        )


@wire
class Moments(NamedTuple):
    """Weighted count, mean and sum of squared deviations per column, merged without cancellation.

    Parameters
    ----------
    weight : float
        sum_i s_i.
    mean : ndarray, shape (d,), float64
    spread : ndarray, shape (d,), float64
        sum_i s_i (x_i - mean)^2.

    Notes
    -----
    Merge after Chan, Golub and LeVeque (1979): ``spread = a.spread + b.spread + delta^2 w_a w_b / (w_a + w_b)``.
    """

    weight: float
    mean: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]

    def merge(self, other: Moments) -> Moments:
        """Merge two sets of moments (one of weight 0 adds nothing, whatever its mean)."""
        if other.weight == 0.0:
            return self
        if self.weight == 0.0:
            return other
        total = self.weight + other.weight
        delta = other.mean - self.mean
        share = other.weight / total
        mean = added(self.mean, delta * share)
        np.square(delta, out=delta)
        delta *= self.weight * share
        return Moments(total, mean, added(added(self.spread, other.spread), delta))


@wire
class Scatter(NamedTuple):
    """Weighted count, mean and matrix of co-deviations, for whitening; merged without cancellation like `Moments`.

    Parameters
    ----------
    weight : float
        sum_i s_i.
    mean : ndarray, shape (d,), float64
    scatter : ndarray, shape (d, d), float64
        sum_i s_i (x_i - mean)(x_i - mean)^T.
    """

    weight: float
    mean: npt.NDArray[np.float64]
    scatter: npt.NDArray[np.float64]

    def merge(self, other: Scatter) -> Scatter:
        """Merge the co-deviations of two sets of rows."""
        total = self.weight + other.weight
        if other.weight == 0.0 or total == 0.0:
            return self
        if self.weight == 0.0:
            return other
        delta = other.mean - self.mean
        share = other.weight / total
        scatter = added(self.scatter, other.scatter)
        scatter = added(scatter, np.outer(delta * (self.weight * share), delta))
        return Scatter(total, self.mean + delta * share, scatter)
