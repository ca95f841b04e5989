"""Optimizers whose whole step is one compiled loop: the state, the change and the new params in one pass over memory.

`Fused` wraps a transform, or a chain of clipping and a transform, and is one itself: its state is the wrapped one's,
so a checkpoint does not know whether a step was fused. Nor do the bits (`bigopt.optim.fused_updates`). What it adds is
`moved`, which writes params + delta over the gradient, and `measured`, the norm of a sum's mean in one pass. A sum of
two that nobody has added yet is never written: each of the two passes adds on its way, and the second leaves the new
params in the dtype of the two as well, where the next Map wants them.

Long vectors are cut into pieces for several threads. Every entry is computed alone, so the number of threads does not
appear in the bits either.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np

from bigopt.core import compiled
from bigopt.core.crew import Crew
from bigopt.core.layout import Layout
from bigopt.core.vectors import Unadded, dense
from bigopt.optim import fused_means, fused_updates
from bigopt.optim.adam import Adam, AdamState, AdamW, AdamWState, AMSGrad, AMSGradState
from bigopt.optim.adam_kin import AdaMax, AdaMaxState, NAdam, NAdamState, Yogi
from bigopt.optim.adaptive import Adadelta, Adagrad, RMSProp, Squares, SquaresAndSteps
from bigopt.optim.clip import ClipNorm, ClipValue
from bigopt.optim.descent import SGD, Momentum, Nesterov, Velocity
from bigopt.optim.fused_means import BLOCK, make_joined_squares, make_squares, pairs
from bigopt.optim.fused_updates import SCALARS, make_joined_update, make_update
from bigopt.optim.transform import TILE, Chain, ChainState, Transform, Vector, norm, owned, root_of_tiles

PIECE: Final = 1 << 19
"""Entries that are worth a thread of their own: waking one takes as long as updating a hundred thousand."""

CACHED: Final = 1 << 19
"""Entries of a gradient that memory is not asked for: shorter ones are divided in place and measured by one thread."""


class Update(NamedTuple):
    """One step of an optimizer, ready for the kernel.

    Parameters
    ----------
    rule : str
        A name of `bigopt.optim.fused_updates.RULES`.
    scalars : tuple of float
        k0, k1, ... in that rule's order.
    vectors : tuple of ndarray
        Of the state, writable; each is advanced in place.
    state : State
        What follows: the same vectors.
    decaying : Layout or None
        Of AdamW: entries of blocks that are not penalised take the rule ``adam``.
    """

    rule: str
    scalars: tuple[float, ...]
    vectors: tuple[Vector, ...]
    state: Any
    decaying: Layout | None = None


def _sgd(_t: SGD, state: Any, _step: int, eta: float) -> Update:
    return Update("sgd", (-eta,), (), state)


def _momentum(t: Momentum | Nesterov, state: Velocity, _step: int, eta: float) -> Update:
    D = owned(state.D)
    return Update("momentum" if isinstance(t, Momentum) else "nesterov", (t.momentum, eta), (D,), Velocity(D))


def _adagrad(t: Adagrad, state: Squares, _step: int, eta: float) -> Update:
    G = owned(state.G)
    return Update("adagrad", (t.eps, -eta), (G,), Squares(G))


def _rmsprop(t: RMSProp, state: Squares, _step: int, eta: float) -> Update:
    G = owned(state.G)
    return Update("rmsprop", (t.eps, -eta, t.decay, 1.0 - t.decay), (G,), Squares(G))


def _adadelta(t: Adadelta, state: SquaresAndSteps, _step: int, eta: float) -> Update:
    E, U = owned(state.E), owned(state.U)
    return Update("adadelta", (t.eps, -eta, t.rho, 1.0 - t.rho), (E, U), SquaresAndSteps(E, U))


def _means(t: Any) -> tuple[float, float, float, float]:
    return t.beta1, 1.0 - t.beta1, t.beta2, 1.0 - t.beta2


def _unbiased(t: Any, step: int, eta: float) -> tuple[float, ...]:
    return t.eps, -eta / (1.0 - t.beta1**step), *_means(t), 1.0 / math.sqrt(1.0 - t.beta2**step)


def _adam(t: Adam, state: AdamState, step: int, eta: float) -> Update:
    m, v = owned(state.m), owned(state.v)
    return Update("adam", _unbiased(t, step, eta), (m, v), AdamState(m, v))


def _adamw(t: AdamW, state: AdamWState, step: int, eta: float) -> Update:
    m, v = owned(state.m), owned(state.v)
    scalars = (*_unbiased(t, step, eta), -eta * t.weight_decay)
    return Update("adamw", scalars, (m, v), AdamWState(m, v, state.layout), state.layout)


def _amsgrad(t: AMSGrad, state: AMSGradState, step: int, eta: float) -> Update:
    m, v, x = owned(state.m), owned(state.v), owned(state.x)
    return Update("amsgrad", _unbiased(t, step, eta), (m, v, x), AMSGradState(m, v, x))


def _adamax(t: AdaMax, state: AdaMaxState, step: int, eta: float) -> Update:
    m, u = owned(state.m), owned(state.u)
    return Update("adamax", (t.eps, -eta / (1.0 - t.beta1**step), *_means(t)), (m, u), AdaMaxState(m, u))


def _nadam(t: NAdam, state: NAdamState, step: int, eta: float) -> Update:
    m, v = owned(state.m), owned(state.v)
    of_g, of_m, product = t.weights(state.product, step, eta)
    unbias = 1.0 / math.sqrt(1.0 - t.beta2**step)
    return Update("nadam", (t.eps, of_g, *_means(t), unbias, of_m), (m, v), NAdamState(m, v, product))


def _yogi(t: Yogi, state: AdamState, _step: int, eta: float) -> Update:
    m, v = owned(state.m), owned(state.v)
    return Update("yogi", (t.eps, -eta, *_means(t)), (m, v), AdamState(m, v))


UPDATES: Final[Mapping[type, Callable[[Any, Any, int, float], Update]]] = MappingProxyType(
    {
        SGD: _sgd,
        Momentum: _momentum,
        Nesterov: _momentum,
        Adagrad: _adagrad,
        RMSProp: _rmsprop,
        Adadelta: _adadelta,
        Adam: _adam,
        AdamW: _adamw,
        AMSGrad: _amsgrad,
        AdaMax: _adamax,
        NAdam: _nadam,
        Yogi: _yogi,
    }
)
"""``(transform, state, step, learning rate) -> Update`` of each class that has a kernel."""


@dataclass(frozen=True)
class Fused:
    """A transform with compiled steps.

    Parameters
    ----------
    inner : Transform
        One of `UPDATES`, or a `Chain` of clipping and one of them.
    threads : int
        Most threads of a step; 0 for the cores this process may use.
    """

    inner: Transform[Any]
    threads: int = 0

    def init(self, params: Vector, layout: Layout) -> Any:
        """Return the state of the wrapped transform."""
        return self.inner.init(params, layout)

    def update(self, grad: Vector, state: Any, params: Vector, step: int, learning_rate: float) -> tuple[Vector, Any]:
        """Do what the wrapped transform does; see `Transform.update`."""
        return self.inner.update(grad, state, params, step, learning_rate)

    def measured(self, given: Vector | Unadded, divisor: float) -> tuple[Vector | Unadded, float, float]:
        """Return a sum of gradients, the norm of its mean, and what the sum is still to be divided by.

        Parameters
        ----------
        given : ndarray, shape (p,), or Unadded
            Sum of gradients, writable. One that stays in the cache is divided in place.
        divisor : float
            What makes it a mean.

        Returns
        -------
        total : ndarray, shape (p,), or Unadded
            As it was given.
        norm : float
            With the bits of `norm` of the mean.
        divisor : float
            For `moved`: 1 where total is the mean now, or the divisor as it was.
        """
        how, scale = _division(divisor)
        length = _into(given).size
        if how == "over" and length < CACHED and not isinstance(given, Unadded):
            how, divisor = "write", 1.0
        kernel, parts = _squares(given, how)
        count = -(-length // TILE)
        sums = np.empty(count)
        order, last = pairs(TILE), pairs(length % TILE or TILE)

        def work(first: int, stop: int) -> None:
            own = parts if len(parts) == 1 else (*parts, np.empty(BLOCK, dtype=_into(given).dtype))
            room = np.empty(max(order[0], last[0]))
            kernel(*own, scale, first, stop, TILE, order, last, sums, room)

        self._shared(work, count, length if length >= CACHED else 0)
        size = root_of_tiles(sums.tolist())
        if size is None:
            total = dense(given)
            size = norm(total if how == "write" or divisor == 1.0 else total / divisor)
        return given, size, divisor

    def moved(
        self,
        grad: Vector | Unadded,
        state: Any,
        params: Vector,
        step: int,
        learning_rate: float,
        divisor: float = 1.0,
        size: float | None = None,
    ) -> tuple[Vector, Any]:
        """Return (params + delta, next state), with the bits of `update` and an addition.

        Parameters
        ----------
        grad, state, params, step, learning_rate
            As in `Transform.update`; the result lies in the gradient's buffer, that of an unadded one `into` it.
        divisor : float
            What the gradient is to be divided by first.
        size : float or None
            Norm of the gradient, where it is known.
        """
        if not isinstance(self.inner, Chain):
            update = UPDATES[type(self.inner)](self.inner, state, step, float(learning_rate))
            self._run(update, grad, params, 1.0, divisor)
            return _into(grad), update.state
        *clips, last = self.inner.links
        *clipped, own = state.links
        factor = 1.0
        for clip, nothing in zip(clips, clipped, strict=True):
            if isinstance(clip, ClipNorm) and clip is clips[-1] and (size is not None or divisor == 1.0):
                factor = min(1.0, clip.clip_norm / ((norm(dense(grad)) if size is None else size) + 1e-6))
                continue
            grad = dense(grad)
            if divisor != 1.0:
                grad, divisor = np.divide(grad, divisor, out=grad), 1.0
            grad, _ = clip.update(grad, nothing, params, step, learning_rate)
            size = None
        update = UPDATES[type(last)](last, own, step, float(learning_rate))
        self._run(update, grad, params, factor, divisor)
        return _into(grad), ChainState((*clipped, update.state))

    def _run(self, update: Update, given: Vector | Unadded, params: Vector, factor: float, divisor: float) -> None:
        grad, narrow, cast = _into(given), "", None
        how, scale = ("mean", 1.0) if divisor == 1.0 else _division(divisor)
        scalars = np.array([*update.scalars, *[0.0] * (SCALARS - len(update.scalars))], dtype=grad.dtype)
        factors = np.array([factor, scale], dtype=grad.dtype)
        parts: tuple[Vector, ...] = ()
        if isinstance(given, Unadded):
            narrow = compiled.name_of(given.left.dtype)
            cast = np.empty(grad.size, narrow) if given.casts is None else given.casts.lend(grad.size, narrow)
            parts = given.left, given.right, cast
        kernels: dict[str, compiled.Kernel] = {}
        jobs: list[tuple[compiled.Kernel, slice]] = []
        for rule, s in _spans(update, grad.size):
            if rule not in kernels:
                kernels[rule] = _update(rule, compiled.name_of(grad.dtype), narrow, how)
            jobs.append((kernels[rule], s))
        vectors = grad, params

        def work(start: int, stop: int) -> None:
            for kernel, s in jobs:
                a, b = max(start, s.start), min(stop, s.stop)
                if a < b:
                    state = [v[a:b] for v in update.vectors]
                    kernel(*(v[a:b] for v in (*parts, *vectors)), scalars, factors, *state)

        self._shared(work, grad.size, grad.size)
        if isinstance(given, Unadded) and given.casts is not None and cast is not None:
            given.casts.keep(grad, cast)

    def _shared(self, work: Callable[[int, int], None], count: int, size: int) -> None:
        """Do ``work(start, stop)`` over ``0..count`` in as many threads as a vector of `size` is worth."""
        parts = size // PIECE
        self._crew.share(work, count, parts if parts < 2 else min(self.threads or _cores(), parts))

    @cached_property
    def _crew(self) -> Crew:
        return Crew()


def _into(given: Vector | Unadded) -> Vector:
    """Return where the entries of a gradient lie, or belong."""
    return given.into if isinstance(given, Unadded) else given


def _squares(given: Vector | Unadded, how: str) -> tuple[compiled.Kernel, tuple[Vector, ...]]:
    """Return the kernel of a gradient's norm and the vectors that it reads."""
    dtype = compiled.name_of(_into(given).dtype)
    if isinstance(given, Unadded):
        narrow = compiled.name_of(given.left.dtype)
        signature = fused_means.joined_signature(dtype, narrow)
        return compiled.kernel(make_joined_squares, (dtype, narrow, how), signature), given[:2]
    return compiled.kernel(make_squares, (dtype, how), fused_means.signature(dtype)), (given,)


def _update(rule: str, dtype: str, narrow: str, how: str) -> compiled.Kernel:
    """Return the kernel of an update, of a sum of two vectors in the dtype `narrow` where there is one."""
    if narrow:
        signature = fused_updates.joined_signature(rule, dtype, narrow)
        return compiled.kernel(make_joined_update, (rule, dtype, narrow, how), signature)
    return compiled.kernel(make_update, (rule, dtype, how), fused_updates.signature(rule, dtype))


def _division(divisor: float) -> tuple[str, float]:
    """Return how to divide by a number: times its inverse where that is exact, a power of two."""
    exact = math.frexp(divisor)[0] == 0.5 and 2.0**-60 < divisor < 2.0**60
    return ("times", 1.0 / divisor) if exact else ("over", divisor)


def fused(transform: Transform[Any]) -> Transform[Any]:
    """Return the transform with compiled steps where it has them, else as it is.

    Examples
    --------
    >>> from bigopt.optim.lion import Lion
    >>> fused(Adam()), fused(Lion()) == Lion()
    (Fused(inner=Adam(beta1=0.9, beta2=0.999, eps=1e-08), threads=0), True)
    """
    links = transform.links if isinstance(transform, Chain) else (transform,)
    clips = all(isinstance(link, ClipNorm | ClipValue) for link in links[:-1])
    return Fused(transform) if clips and type(links[-1]) in UPDATES else transform


def _spans(update: Update, size: int) -> Iterator[tuple[str, slice]]:
    """Yield the rule of each run of entries."""
    if update.decaying is None:
        yield update.rule, slice(0, size)
        return
    for block, s in update.decaying.slices():
        yield update.rule if block.penalized else "adam", s


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
