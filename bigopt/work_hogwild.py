"""A turn of Hogwild: the threads of one replica update one vector, and none of them waits for another.

A leaf is a replica's turn over some steps, as in `bigopt.work_local`; but within it there is one shared vector, and
each thread takes the next piece of work from a counter, reads the vector as it happens to be, and subtracts its step
from the entries one by one. There is no lock and no copy: a gradient may be computed from a vector that others are
writing to (an inconsistent read), and in ``write: overwrite`` an update may be lost.

- Batches of one row, linear models: compiled loops (`bigopt.models.fused_hogwild`) over pieces of up to `PIECE` rows.
  Which rows, and in which order, is in `bigopt.data.turns`. The L2 penalty acts where a row is not zero; or, where it
  is weak, on the whole vector in every step by one number, so that the loop has no second array to read at random
  (`HogwildSteps.shrinks`).
- Everything else: threads take the plan's mini-batches in turn; NumPy computes and subtracts.

How late gradients were is counted as they go (`bigopt.work_delays`). With one thread a turn is serial SGD, with the
same bits every time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import compiled
from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.sums import Sums, added, merge, whole
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.shares import Shares
from bigopt.data.turns import BLOCK, turn_pieces
from bigopt.data.view import Block, DataView
from bigopt.models import fused_hogwild as loops
from bigopt.models.base import Model
from bigopt.models.fused_points import POINTS
from bigopt.models.linear import LinearModel
from bigopt.models.losses import HuberLoss
from bigopt.models.penalties import Penalty
from bigopt.work_delays import DELAYS, Part, joined_delays, own_lines
from bigopt.work_rows import cast, sum_rows, unit_rows

Array = npt.NDArray[Any]
Write = Literal["overwrite", "atomic_add"]

PIECE: Final = 4096
"""Rows that a thread takes at a time, at most."""
HELD: Final = 64
"""Rows a rate, at least: the schedule is asked once for so many steps of one row, and about `ASKED` times a turn."""
ASKED: Final = 128
SHRINK: Final = 1.0 / 64
"""By how much of itself the vector may shrink during a piece: so much two threads may differ in its length."""
SHORTEST: Final = 32.0
"""The vector may shrink by e to this in a turn: what is stored is as many times longer than the vector."""
_WATCHED: Final = 16
"""One of so many pieces of each thread is watched for lost updates."""


@wire
class HogwildTurn(NamedTuple):
    """What turns of replicas came to.

    Parameters
    ----------
    params : ndarray, shape (p,)
        sum over the replicas of rows x params at the end.
    loss, weight : float
        sum_i s_i loss_i as each gradient saw it, without penalty, and sum_i s_i.
    square : float
        Sum of the squared norms of the mean gradients (of batches of one row: without penalty).
    rows, steps : int
        Rows of all gradients, and steps of each replica, added up.
    delays : ndarray, shape (DELAYS,), int64
    """

    params: Array
    loss: float
    weight: float
    square: float
    rows: int
    steps: int
    delays: Array

    def merge(self, other: HogwildTurn) -> HogwildTurn:
        """Add the turns of other replicas."""
        return HogwildTurn(
            added(self.params, other.params),
            self.loss + other.loss,
            self.weight + other.weight,
            self.square + other.square,
            self.rows + other.rows,
            self.steps + other.steps,
            joined_delays(self.delays, other.delays),
        )


def has_loop(model: Model) -> bool:
    """Return whether batches of one row of a model have a compiled loop."""
    if not isinstance(model, LinearModel):
        return False
    return model.loss.name == "categorical_cross_entropy" or (model.outputs == 1 and model.loss.name in POINTS)


@wire
@dataclass(frozen=True)
class HogwildSteps:
    """The steps of one replica; inputs are params, shape (p,), the rates of the turn, and rows that touch each column.

    The third one is empty where it is not needed: rows are dense, there is no penalty, or the vector `shrinks`.

    Parameters
    ----------
    model : Model
    view : DataView
    shares : Shares
        Of all replicas, each of which takes its share of every batch; or of one where batches have fewer rows than
        there are replicas: then a step is a whole batch, taken by one of them.
    total_weight : float
        W of all used rows.
    penalty : Penalty
        Its l2 part acts in every step.
    dtype : str
        ``run.dtype``, of the shared vector.
    block_rows : int
    turn : int
        Steps of a whole turn; an epoch's turns begin at its multiples.
    threads : int
    write : {"overwrite", "atomic_add"}
    kernels : str
        The kernel set; ``numpy`` takes batches of one row by NumPy, which is slow.
    """

    model: Model
    view: DataView
    shares: Shares
    total_weight: float
    penalty: Penalty
    dtype: str
    block_rows: int
    turn: int
    threads: int = 1
    write: Write = "overwrite"
    kernels: str = compiled.NUMPY

    @property
    def looped(self) -> bool:
        """Whether steps are rows of a compiled loop."""
        return self.shares.size == 1 and self.kernels != compiled.NUMPY and has_loop(self.model)

    @property
    def rows_a_rate(self) -> int:
        """Steps that have one rate in common."""
        return max(HELD, self.turn // ASKED) if self.looped else 1

    @property
    def penalises_rows(self) -> bool:
        """Whether the rows of a compiled loop are sparse and there is a penalty, lazy or not."""
        return self.looped and self.view.source.sparse and self.penalty.l2 > 0.0

    def piece(self, rows: int) -> int:
        """Return the most rows that a thread takes at a time, of so many in a replica's turn."""
        return max(BLOCK, min(PIECE, rows // (8 * self.threads)))

    def shrinks(self, rows: int, rate: float) -> bool:
        """Return whether the penalty acts on the whole vector by one number, and not on the entries of each row.

        It does where the vector shrinks by `SHRINK` of itself at most during a piece, by e^-`SHORTEST` during a turn.

        Parameters
        ----------
        rows : int
            Of a replica's turn.
        rate : float
            The largest of the turn.
        """
        step = 2.0 * self.penalty.l2 * rate
        return self.penalises_rows and step * self.piece(rows) <= SHRINK and step * rows <= SHORTEST

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Check the kernels of this process."""
        compiled.uses_compiled(self.kernels)
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> HogwildTurn:
        """Return the turn ``unit = (replica, first step of the turn, first, last + 1 of the replica)``."""
        replica, begin, first, last = (int(v) for v in unit)
        shared = own_lines(inputs[0].shape, self.dtype)
        shared[:] = inputs[0]
        counters = own_lines((self.threads + 1, loops.LINE), "int64")
        if self.looped:
            parts = self._rows(shared, counters, inputs, meter, begin, first, last)
        else:
            owner = replica if self.shares.replicas > 1 else 0
            batches = [(step - begin, *self.shares.units(owner, step)) for step in range(first, last)]
            parts = self._batches(shared, counters, inputs, meter, [batch for batch in batches if batch[2]])
        loss, weight, square = (float(v) for v in np.sum([part.sums for part in parts], axis=0))
        rows, watched = sum(part.rows for part in parts), sum(part.watched for part in parts)
        delays = np.zeros(DELAYS, dtype=np.int64)
        for part in parts:
            delays[:-2] = joined_delays(delays[:-2], part.delays)
        if self.write == "overwrite":  # the counter of lost writes is itself written so; no atomic_add is ever lost
            delays[-2:] = watched, counters[self.threads, 0]
        meter.rows += rows
        meter.bytes_read += sum(part.bytes_read for part in parts)
        shared *= rows
        return HogwildTurn(shared, loss, weight, square, rows, last - first, delays)

    def _rows(
        self, shared: Array, counters: Array, inputs: tuple[Any, ...], meter: Meter, begin: int, first: int, last: int
    ) -> list[Part]:
        """Take batches of one row by the compiled loop."""
        model = self.model
        assert isinstance(model, LinearModel)
        rates = np.ascontiguousarray(inputs[1], dtype=np.float64)
        pieces = turn_pieces(self.shares, self.turn, first, last, self.piece(last - first))
        d, q, held = model.features, model.outputs, self.rows_a_rate
        whole = self.penalises_rows and len(inputs[2]) == 0
        lazy = self.penalty.l2 > 0.0 and not whole
        decay = np.full(d if lazy else 0, 2.0 * self.penalty.l2)
        if lazy and self.penalises_rows:
            decay *= self.shares.counts.sum() / np.maximum(1, inputs[2])
        decay = decay.astype(self.dtype)
        shrink = 2.0 * self.penalty.l2 if whole else 0.0
        lengths = np.concatenate([[0.0], np.cumsum(held * np.log1p(-shrink * rates))])

        def share(rows: int) -> float:
            """Return what is left of the vector after so many rows of this replica's."""
            ends = (first - begin + np.array([0, rows])) / held
            return float(np.exp(np.diff(np.interp(ends, np.arange(len(lengths)), lengths))[0]))

        threshold = model.loss.threshold if isinstance(model.loss, HuberLoss) else 0.0
        scale = float(self.shares.counts.sum()) / self.total_weight

        def work(me: int, part: Part, take: Callable[[], int]) -> None:
            scratch = own_lines((4, q), self.dtype)
            while (number := take()) < len(pieces):
                partition, chosen, before = pieces[number]
                watched = number % (_WATCHED * self.threads) < self.threads
                with meter.blocks.block(self.view, partition) as (entry, bytes_read):
                    part.bytes_read += bytes_read
                    block = entry.block
                    loop, data = self._loop(block, lazy), _arrays(block)
                    loop(
                        *(*data, chosen, shared, rates, decay, scratch, counters, part.delays, part.sums),
                        *(threshold, scale, shrink, share(before), d, q, int(model.intercept)),
                        *(before + first - begin, held, me, int(watched)),
                    )
                part.rows += len(chosen)
                part.watched += len(chosen) * watched

        parts = self._run(work)
        if whole:
            entries = shared[: d * q]
            entries *= entries.dtype.type(share(last - first))
        return parts

    def _loop(self, block: Block, lazy: bool) -> compiled.Kernel:
        X, index = block.X, block.X.indices.dtype.name if isinstance(block.X, CSR) else "int32"
        key = (self.model.loss.name, X.dtype.name, self.dtype, isinstance(X, CSR), self.write == "atomic_add", lazy)
        return compiled.kernel(loops.make_rows, key, loops.signature(X.dtype.name, self.dtype, index))

    def _batches(
        self,
        shared: Array,
        counters: Array,
        inputs: tuple[Any, ...],
        meter: Meter,
        batches: list[tuple[int, Ints, int]],
    ) -> list[Part]:
        """Take mini-batches (number in the turn, units, rows) by NumPy."""
        rates, layout = inputs[1], self.model.layout
        scale = self.total_weight / float(self.shares.counts.sum())
        sparse = self.view.source.sparse
        numbers = itertools.count(1)

        def work(me: int, part: Part, take: Callable[[], int]) -> None:
            mine = counters[me]
            while (number := take()) < len(batches):
                step, units, size = batches[number]
                begun, mine[loops.BUSY] = int(counters[:-1, loops.READ].sum()), 1
                sums = self._sums(shared, units, meter, part)
                grad = np.asarray(sums.grad)
                grad /= size * scale
                self.penalty.add_gradient(grad, shared, layout)
                mine[loops.READ] += 1
                k = next(numbers)
                part.sums += (sums.loss, sums.weight, float(np.dot(grad, grad)))
                part.rows += sums.rows
                grad *= rates[step]
                if sparse and self.penalty.l2 == 0.0:
                    at = np.flatnonzero(grad)
                    shared[at] -= grad[at]
                else:
                    np.subtract(shared, grad, out=shared)
                mine[loops.WRITTEN] += 1
                part.note(counters, me, begun, k)
                mine[loops.BUSY] = 0

        return self._run(work)

    def _sums(self, shared: Array, units: Ints, meter: Meter, part: Part) -> Sums:
        """Fold a batch's gradient sums at the entries as they are while it is computed."""
        total = None
        ready = shared if self.view.source.sparse else cast(shared, self.view, "cpu")
        for unit in units:
            with meter.blocks.block(self.view, int(unit[0])) as (entry, bytes_read):
                part.bytes_read += bytes_read
                rows = unit_rows(entry, self.shares.seed, unit)
                value = sum_rows(self.model, ready, rows, block_rows=self.block_rows, dtype=self.dtype)
            total = value if total is None else merge(total, value)
        return whole(total) if total is not None else Sums(np.zeros_like(shared), 0.0, 0.0, 0)

    def _run(self, work: Callable[[int, Part, Callable[[], int]], None]) -> list[Part]:
        """Let all threads work until there is nothing to take."""
        pieces = itertools.count()
        parts = [Part() for _ in range(self.threads)]

        def thread(me: int) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told so by its sums
                work(me, parts[me], pieces.__next__)

        if self.threads == 1:
            thread(0)
            return parts
        with ThreadPoolExecutor(self.threads, "bigopt-hogwild") as pool:
            for done in [pool.submit(thread, me) for me in range(self.threads)]:
                done.result()
        return parts


def _arrays(block: Block) -> tuple[Array, ...]:
    """Return values, columns, row starts, targets and weights of a block as the loops take them."""
    X, weight = block.X, block.weight
    assert block.y is not None
    y = np.ascontiguousarray(np.asarray(block.y).reshape(-1), dtype=X.dtype)
    s = np.empty(0) if weight is None else np.ascontiguousarray(weight, dtype=np.float64)
    if isinstance(X, CSR):
        return X.data, X.indices, X.indptr, y, s
    return X.reshape(-1), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64), y, s
