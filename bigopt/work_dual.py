"""A turn of dual coordinate ascent: one pass over a group's rows, each row's dual variable moved to its best.

With c_i = s_i n / W and lambda = 2 l2 the problem is (1/n) sum_i c_i phi_i(x_i.w) + (lambda/2) ||w||^2, its dual

    max over alpha of  -(1/n) sum_i (c_i phi_i)*(-alpha_i) - (lambda/2) ||w||^2,   w = (1/(lambda n)) sum_i alpha_i x_i

Row by row, with a = x_i.v, q = sigma ||x_i||^2 / (lambda n):

    squared    alpha += (y - a - alpha/(2 c)) / (1/(2 c) + q)
    logistic   alpha = y' beta, y' = -1 or +1;  log(beta/(c - beta)) + y' a + q (beta - beta_0) = 0,  0 < beta < c
    v += sigma (change of alpha) x_i / (lambda n)

v begins as w; with K groups that ascend at the same time and are added, sigma = K keeps each of them from taking what
the others take too. The answer is (v - w)/sigma and the new alphas.

Shalev-Shwartz and Zhang (2013); CoCoA+: Ma et al. (2015); the equation in one variable: Yu, Huang and Lin (2011).
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import rng
from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.sums import added
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints, draw
from bigopt.data.view import Block, DataView
from bigopt.models.linear import LinearModel
from bigopt.models.losses import SquaredLoss

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ascent = Callable[[float, float, float, float, float], float]
"""``ascent(alpha, a, y, c, q)`` gives a row's new alpha."""

_ROWS: Final = 256
_NEWTON: Final = 50


@wire
class Ascended(NamedTuple):
    """What turns of groups came to.

    Parameters
    ----------
    delta : ndarray, shape (d,)
        Sum of what the groups add to w.
    grad : ndarray, shape (d,)
        n times the gradient of the loss part before the turn.
    alphas : tuple of ndarray
        New dual variables of each group.
    loss : float
        sum_i c_i phi_i before the turn.
    conjugate : float
        sum_i (c_i phi_i)*(-alpha_i) before the turn.
    rows : int
    """

    delta: Floats
    grad: Floats
    alphas: tuple[Floats, ...]
    loss: float
    conjugate: float
    rows: int

    def merge(self, other: Ascended) -> Ascended:
        """Add the turns of other groups."""
        return Ascended(
            added(self.delta, other.delta),
            added(self.grad, other.grad),
            self.alphas + other.alphas,
            self.loss + other.loss,
            self.conjugate + other.conjugate,
            self.rows + other.rows,
        )


def ascend_squared(alpha: float, a: float, y: float, c: float, q: float) -> float:
    """Return alpha of a row with (a - y)^2."""
    own = 0.5 / c
    return alpha + (y - a - alpha * own) / (own + q)


def ascend_logistic(alpha: float, a: float, y: float, c: float, q: float) -> float:
    """Return alpha of a row with log(1 + exp(-y a)), y = -1 or +1: Newton's method in t = log(beta/(c - beta)).

    f(t) = t + y a + q (c sigmoid(t) - beta_0) rises at least as fast as t; a step out of the bracket halves it.
    """
    beta, shift = y * alpha, y * a
    high = q * beta - shift
    low = high - q * c
    t = min(max(-shift, low), high)
    for _ in range(_NEWTON):
        s = 1.0 / (1.0 + math.exp(-t)) if t >= 0.0 else math.exp(t) / (1.0 + math.exp(t))
        f = t + shift + q * (c * s - beta)
        if f > 0.0:
            high = t
        else:
            low = t
        new = t - f / (1.0 + q * c * s * (1.0 - s))
        if not low <= new <= high:
            new = 0.5 * (low + high)
        if abs(new - t) <= 1e-15 * max(1.0, abs(t)):
            t = new
            break
        t = new
    return y * c * (1.0 / (1.0 + math.exp(-t)) if t >= 0.0 else math.exp(t) / (1.0 + math.exp(t)))


@wire
@dataclass(frozen=True, eq=False)
class DualAscent:
    """A turn of every group of partitions.

    Its leaves are groups, ``(group, epoch, 0, rows)``; its inputs w, shape (d,), in float64, the group of the first
    alphas, shape (1,), and the alphas of that group and those after it.

    Parameters
    ----------
    model : LinearModel
        One output, squared or binary cross-entropy, no intercept.
    view : DataView
    counts : ndarray, shape (P,)
        Used rows of each partition.
    groups : ndarray, shape (K + 1,)
        Group k is the partitions [groups[k], groups[k + 1]).
    seed : int
    mean_weight : float
        W/n.
    l2 : float
        Above 0.
    mixed : bool
        Whether a group's rows are taken in one random order, which its blocks must fit the memory for; else partition
        after partition, which takes more passes.
    """

    model: LinearModel
    view: DataView
    counts: Ints
    groups: Ints
    seed: int
    mean_weight: float
    l2: float
    mixed: bool

    @property
    def number(self) -> int:
        """K."""
        return len(self.groups) - 1

    def rows(self, first: int, last: int) -> slice:
        """Return where the alphas of the groups [first, last) lie among all."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        return slice(int(ends[self.groups[first]]), int(ends[self.groups[last]]))

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Ascended:
        """Return the turn of a group."""
        w, first, alphas = inputs
        group, epoch = int(unit[0]), int(unit[1])
        base, own = self.rows(int(first[0]), int(first[0])).start, self.rows(group, group + 1)
        alpha = np.array(alphas[own.start - base : own.stop - base])
        starts = np.concatenate([[0], np.cumsum(self.counts)]) - own.start
        v, grad, loss, conjugate = np.array(w), np.zeros_like(w), 0.0, 0.0
        for members in self._runs(group, epoch):
            with contextlib.ExitStack() as stack:
                blocks = [stack.enter_context(meter.block(self.view, m)).block for m in members]
                places = np.concatenate([np.arange(starts[m], starts[m + 1]) for m in members])
                rows = GroupRows.of(blocks, self.mean_weight)
                for block, y, c in zip(blocks, *rows.cut(), strict=True):
                    value, slope = self.model.loss.value_delta(_product(block.X, w)[:, None], y)
                    loss += float(np.sum(c * value))
                    grad += _transposed(block.X, c * slope[:, 0])
                signs = rows.y if isinstance(self.model.loss, SquaredLoss) else 2.0 * rows.y - 1.0
                mine = alpha[places]
                conjugate += self._conjugate(mine, signs, rows.c)
                order = draw(self.seed, np.array([members[0], epoch, 0, len(mine)]), len(mine))
                self._ascend(rows, signs, mine, v, order)
                alpha[places] = mine
        meter.rows += len(alpha)
        return Ascended((v - w) / self.number, grad, (alpha,), loss, conjugate, len(alpha))

    def _runs(self, group: int, epoch: int) -> list[list[int]]:
        """Return the partitions whose rows are taken in one random order: all of them, or one after the other."""
        members = [m for m in range(int(self.groups[group]), int(self.groups[group + 1])) if self.counts[m]]
        if self.mixed:
            return [members]
        order = rng.permutation(rng.stream(self.seed, "order", epoch=epoch, partition=group), len(members))
        return [[members[k]] for k in order.tolist()]

    def _conjugate(self, alpha: Floats, y: Floats, c: Floats) -> float:
        """Return sum_i (c_i phi_i)*(-alpha_i); rows of weight 0 add nothing."""
        c = np.where(c > 0.0, c, 1.0)
        if isinstance(self.model.loss, SquaredLoss):
            return float(np.sum(alpha * alpha / (4.0 * c) - alpha * y))
        share = np.clip(y * alpha / c, 0.0, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = [np.where(s > 0.0, s * np.log(s), 0.0) for s in (share, 1.0 - share)]
        return float(np.sum(c * (entropy[0] + entropy[1])))

    def _ascend(self, rows: GroupRows, y: Floats, alpha: Floats, v: Floats, order: Ints) -> None:
        """Move the alphas of some rows in some order, and v with them, in place."""
        ascent: Ascent = ascend_squared if isinstance(self.model.loss, SquaredLoss) else ascend_logistic
        scale = self.number / (2.0 * self.l2 * float(self.counts.sum()))
        for i in order.tolist():
            c = float(rows.c[i])
            if c == 0.0:
                continue
            values, columns = rows.row(i)
            part = v if columns is None else v[columns]
            square = float(np.dot(values, values))
            new = ascent(float(alpha[i]), float(np.dot(values, part)), float(y[i]), c, scale * square)
            step = (new - float(alpha[i])) * scale
            alpha[i] = new
            if columns is None:
                v += step * values
            else:
                v[columns] = part + step * values


class GroupRows(NamedTuple):
    """The rows of some partitions, one after the other.

    Parameters
    ----------
    blocks : list of Block
    starts : ndarray, shape (k + 1,)
        Where each of them begins and ends.
    y, c : ndarray, shape (rows,), float64
        Targets, and weights with a mean of 1.
    """

    blocks: list[Block]
    starts: Ints
    y: Floats
    c: Floats

    @classmethod
    def of(cls, blocks: list[Block], mean_weight: float) -> GroupRows:
        """Return the rows of decoded blocks."""
        starts = np.cumsum([0, *(len(block.X) for block in blocks)])
        y = np.concatenate([np.asarray(block.y, dtype=np.float64).reshape(-1) for block in blocks])
        ones = [np.ones(len(b.X)) if b.weight is None else b.weight.astype(np.float64) for b in blocks]
        return cls(blocks, starts, y, np.concatenate(ones) / mean_weight)

    def cut(self) -> tuple[list[Floats], list[Floats]]:
        """Return targets and weights block by block."""
        return np.split(self.y, self.starts[1:-1]), np.split(self.c, self.starts[1:-1])

    def row(self, i: int) -> tuple[Floats, Ints | None]:
        """Return a row's values in float64, and their columns (None: all)."""
        k = bisect_right(self.starts, i) - 1
        X, at = self.blocks[k].X, i - int(self.starts[k])
        if isinstance(X, CSR):
            own = slice(int(X.indptr[at]), int(X.indptr[at + 1]))
            return X.data[own].astype(np.float64), X.indices[own]
        return X[at].astype(np.float64), None


def _product(X: Any, w: Floats) -> Floats:
    """Return X w in float64."""
    if isinstance(X, CSR):
        terms = X.data.astype(np.float64) * w[X.indices]
        return np.asarray(np.bincount(np.repeat(np.arange(len(X)), np.diff(X.indptr)), terms, len(X)), dtype=np.float64)
    pieces = [X[lo : lo + _ROWS].astype(np.float64) @ w for lo in range(0, len(X), _ROWS)]
    return np.concatenate(pieces)


def _transposed(X: Any, r: Floats) -> Floats:
    """Return X^T r in float64."""
    if isinstance(X, CSR):
        terms = X.data.astype(np.float64) * np.repeat(r, np.diff(X.indptr))
        return np.asarray(np.bincount(X.indices, terms, X.columns), dtype=np.float64)
    total = np.zeros(X.shape[1])
    for lo in range(0, len(X), _ROWS):
        total += X[lo : lo + _ROWS].astype(np.float64).T @ r[lo : lo + _ROWS]
    return total
