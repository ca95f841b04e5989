"""The source of Hogwild's compiled loops: SGD a row at a time on a vector that other threads write to meanwhile.

Per row, without any lock (Niu et al. 2011): read the touched entries of w, compute the score, the loss and its
derivative delta, and write each touched entry::

    w[j] -= eta (delta x[j] + decay[j] w[j])        decay[j] = 2 l2 n / n_j  for n_j of n rows that touch column j

so that the penalty costs nothing where a row is zero and is right on average; eta decay[j] is 1 at most, with which a
rare column forgets all but its step. A weak penalty costs not even that (Bottou 2010): w = s u, and a row makes::

    s <- (1 - 2 l2 eta) s;    u[j] -= eta delta x[j] / s

which is the step of the whole penalty on all of w. s belongs to the number of the row and is kept by each thread for
itself; threads differ by the rows between them, as in all that they read.

An entry is read and written as one aligned word, which is never torn; between the two another thread may write, whose
update is then lost (`write: overwrite`), or the processor is asked to add (`atomic_add`).

Each thread counts the gradients that it has finished reading for and those it has finished writing, in a cache line of
its own. One row of `SAMPLED` looks at the counters of all threads. Its gradient is number k, the count of finished
readings, and its delay is the larger one of two: k - j for the first gradient j whose reading ended during its own,
and t - k for the last gradient t that was read, or was being read, before it was written itself. Histograms have bins
by powers of two. So that lost updates can be counted, some calls are *watched*: their rows also
add 1 to one number, in the same way as to an entry that every row touches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from bigopt.models.fused_hogwild_access import AHEAD, make_fetch, make_read, make_read_many, make_write, make_write_many
from bigopt.models.fused_points import EXACT, POINTS, exp_negative, log1p_unit

SAMPLED: Final = 64
"""One of so many rows measures its delay."""

LINE: Final = 16
"""int64 numbers between the counters of two threads: two cache lines, for they are fetched in pairs."""

READ: Final = 0
WRITTEN: Final = 1
BUSY: Final = 2
"""Columns of a thread's counters; in the row after the last thread's, column 0 is the watched number."""

BINS: Final = 40
"""Bins of a histogram of delays, then their number, sum and maximum."""


def signature(block: str, params: str, index: str) -> tuple[str, ...]:
    """Return the types of a loop's arguments.

    They are: values, columns and row starts (dense rows: all values in order, and two arrays that are not read);
    targets; weights (none: 1); the rows to take; w; rates; decay (none: no penalty); scratch (4, q); all
    threads' counters; this thread's delays; sums of weighted losses, weights and squared gradients; threshold of the
    loss, n / W, 2 l2 and s before the first row (0 and 1 without a penalty on all of w); columns, outputs, intercept
    (0 or 1), rows before these of the turn, rows a rate, this thread, watched.
    """
    return (
        *(f"{block}[::1]", f"{index}[::1]", "int64[::1]", f"{block}[::1]", "float64[::1]", "int64[::1]"),
        *(f"{params}[::1]", "float64[::1]", f"{params}[::1]", f"{params}[:,::1]"),
        *("int64[:,::1]", "int64[::1]", "float64[::1]", "float64", "float64", "float64", "float64"),
        *("intp", "intp", "intp", "intp", "intp", "intp", "intp"),
    )


def make_rows(
    loss: str, _block: str, params: str, sparse: bool, atomic: bool, lazy: bool
) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the loop.

    Parameters
    ----------
    loss : str
        A name of `POINTS`, of one output, or ``categorical_cross_entropy``.
    _block, params : str
        Dtypes of the rows and of w; everything is computed in that of w.
    sparse : bool
        Whether the rows are CSR.
    atomic : bool
        Whether entries are added to atomically.
    lazy : bool
        Whether there is a penalty of the touched entries.
    """
    from numba import njit

    T = np.dtype(params).type
    many = loss == "categorical_cross_entropy"
    compiler = njit(fastmath=set(EXACT))
    point = compiler(make_softmax_point(T) if many else POINTS[loss](T))
    subtract = make_subtract() if atomic else compiler(_subtract)
    if many:
        read, write = make_read_many(T, sparse), make_write_many(T, sparse, lazy, subtract)
    else:
        read, write = make_read(T, sparse), make_write(T, sparse, lazy, subtract)
    finished, note, fetch = compiler(_finished), compiler(_note), make_fetch()

    def rows(
        data: Any,
        columns: Any,
        starts: Any,
        y: Any,
        weight: Any,
        chosen: Any,
        w: Any,
        rates: Any,
        decay: Any,
        scratch: Any,
        counters: Any,
        delays: Any,
        sums: Any,
        threshold: float,
        scale: float,
        shrink: float,
        share: float,
        d: int,
        q: int,
        intercept: int,
        before: int,
        held: int,
        me: int,
        watched: int,
    ) -> None:
        v, target, delta, value = scratch[0], scratch[1], scratch[2], scratch[3]
        limit, canary = T(threshold), counters.shape[0] - 1
        counters[me, BUSY] = 1
        for i in range(chosen.shape[0]):
            r = chosen[i]
            start, stop = r * d, (r + 1) * d
            if sparse:
                start, stop = starts[r], starts[r + 1]
            if sparse and i + AHEAD < chosen.shape[0]:
                later = chosen[i + AHEAD]
                fetch(data, columns, starts[later], starts[later + 1])
            begun, number, sampled = 0, 0, i % SAMPLED == SAMPLED // 4
            if sampled:
                begun = finished(counters)
            square = T(intercept) + read(data, columns, w, v, T(share), start, stop, d, q, intercept)
            counters[me, READ] += 1
            if sampled:
                number = finished(counters)
            target[0] = T(y[r])
            point(v, target[:1], delta, value, limit)
            mass = 1.0
            if weight.shape[0] > 0:
                mass = weight[r]
            sums[0] += mass * value[0]
            sums[1] += mass
            rate = rates[(before + i) // held]
            eta = T(rate)
            norm = T(0.0)
            for c in range(q):
                g = delta[c] * T(mass * scale)
                norm += g * g
                delta[c] = eta * g
            sums[2] += norm * square
            if intercept == 1:
                for c in range(q):
                    subtract(w, d * q + c, delta[c])
            if shrink > 0.0:
                share *= 1.0 - shrink * rate
                larger = T(1.0 / share)
                for c in range(q):
                    delta[c] *= larger
            write(data, columns, w, delta, decay, eta, start, stop, q)
            if watched == 1:
                counters[canary, 0] += 1
            counters[me, WRITTEN] += 1
            if sampled:
                note(counters, delays, me, begun, number)
        counters[me, BUSY] = 0

    return rows, EXACT


def _subtract(w: Any, place: int, change: Any) -> None:
    w[place] -= change


def _finished(counters: Any) -> int:
    """Return how many readings all threads have finished."""
    total = 0
    for t in range(counters.shape[0] - 1):
        total += counters[t, READ]
    return total


def _note(counters: Any, delays: Any, me: int, begun: int, number: int) -> None:
    """Add the delay at gradient `number`, now written, whose reading began when `begun` others were finished."""
    last = 0
    for t in range(counters.shape[0] - 1):
        last += counters[t, READ]
        if t != me and counters[t, BUSY] == 1 and counters[t, READ] == counters[t, WRITTEN]:
            last += 1
    tau = max(1, last - number, number - 1 - begun)
    place = 0
    while tau >> (place + 1) > 0 and place < BINS - 1:
        place += 1
    delays[place] += 1
    delays[BINS] += 1
    delays[BINS + 1] += tau
    delays[BINS + 2] = max(delays[BINS + 2], tau)


def make_softmax_point(T: Any) -> Callable[..., None]:
    """Return cross entropy of softmax(v) as the points of `bigopt.models.fused_points`: `y[0]` is the class."""
    exp, log1p = exp_negative(T), log1p_unit(T)
    one, two, half, log2 = T(1.0), T(2.0), T(0.5), T(0.6931471805599453)

    def point(v: Any, y: Any, delta: Any, value: Any, _threshold: Any) -> None:
        q, true = v.shape[0], int(y[0])
        top = v[0]
        for c in range(1, q):
            top = v[c] if v[c] > top else top
        total = T(0.0)
        for c in range(q):
            delta[c] = exp(v[c] - top)
            total += delta[c]
        for c in range(q):
            delta[c] /= total
        delta[true] -= one
        part, logarithm = total, T(0.0)  # total is from 1 to q
        while part > two:
            part *= half
            logarithm += log2
        value[0] = logarithm + log1p(part - one) + (top - v[true])

    return point


def make_subtract() -> Any:
    """Return ``subtract(array, k, change)``: one atomic addition of -change to the k-th entry."""
    from numba import types
    from numba.extending import intrinsic

    def subtract(_typing: Any, array: Any, index: Any, change: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            added = context.cast(builder, values[2], signature.args[2], signature.args[0].dtype)
            builder.atomic_rmw("fsub", builder.gep(data, [values[1]]), added, "monotonic")
            return context.get_dummy_value()

        return types.void(array, index, change), generate

    return intrinsic(subtract)
