"""Local steps: what a replica does between two exchanges, plain SGD where the rows are.

A leaf is a replica's whole turn: from the params it is sent it takes k steps w -= eta_j (g_j + penalty's gradient) on
its share of k batches (`bigopt.data.shares`). A turn is a pure function of its inputs, so that it may be done again
anywhere with the same bits; which worker does it is nobody's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import arrays
from bigopt.core.codec import wire
from bigopt.core.compiled import NUMPY
from bigopt.core.sums import Sums, added, merge, whole
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.shares import Shares
from bigopt.data.view import DataView
from bigopt.models.base import Model
from bigopt.models.penalties import Penalty
from bigopt.work_rows import cast, sum_rows, unit_rows

Array = npt.NDArray[Any]
Answer = Literal["average", "replica"]


@wire
class Turns(NamedTuple):
    """What turns of replicas came to.

    Parameters
    ----------
    params : ndarray, shape (p,)
        sum over the replicas of rows x params at the end (``average``), or the one replica's params (``replica``).
    pushed : ndarray, shape (p,) or (0,)
        Sum of the replica's mean gradients, penalty included (``replica``).
    loss, weight : float
        sum_i s_i loss_i before each step, without penalty, and sum_i s_i.
    square : float
        Sum of the squared norms of the mean gradients.
    rows, steps : int
        Rows of all gradients, and local steps.
    """

    params: Array
    pushed: Array
    loss: float
    weight: float
    square: float
    rows: int
    steps: int

    def merge(self, other: Turns) -> Turns:
        """Add the turns of other replicas."""
        return Turns(
            added(self.params, other.params),
            added(self.pushed, other.pushed),
            self.loss + other.loss,
            self.weight + other.weight,
            self.square + other.square,
            self.rows + other.rows,
            self.steps + other.steps,
        )


@wire
@dataclass(frozen=True)
class LocalSteps:
    """k steps of SGD of one replica; inputs are its params, shape (p,), and the k rates.

    Parameters
    ----------
    model : Model
    view : DataView
    shares : Shares
        Which rows the replica takes at each step.
    total_weight : float
        W of all used rows.
    penalty : Penalty
        Its l2 part acts in every local step.
    dtype : str
        ``run.dtype``: of params and of sums of blocks.
    block_rows : int
    device : str
    answer : {"average", "replica"}
        What `Turns.params` is to be.
    kernels : str
        The kernel set of the run (`bigopt.core.compiled`).
    """

    model: Model
    view: DataView
    shares: Shares
    total_weight: float
    penalty: Penalty
    dtype: str
    block_rows: int
    device: arrays.Device = "cpu"
    answer: Answer = "average"
    kernels: str = NUMPY

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing: params change with every step."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Turns:
        """Return the turn ``unit = (replica, 0, first step, last step + 1)``."""
        replica, _, first, last = (int(v) for v in unit)
        params, rates = np.array(inputs[0], dtype=self.dtype), inputs[1]
        pushed = np.zeros(params.size if self.answer == "replica" else 0, dtype=self.dtype)
        loss = weight = square = 0.0
        rows = 0
        layout, scale = self.model.layout, self.total_weight / float(self.shares.counts.sum())
        for step in range(first, last):
            units, size = self.shares.units(replica, step)
            if not size:  # the last batch of an epoch may have fewer rows than there are replicas
                continue
            sums = self._sums(params, units, meter)
            grad = np.asarray(sums.grad)
            grad /= size * scale
            self.penalty.add_gradient(grad, params, layout)
            square += float(np.dot(grad, grad))
            if self.answer == "replica":
                pushed += grad
            grad *= rates[step - first]
            params -= grad
            loss, weight, rows = loss + sums.loss, weight + sums.weight, rows + sums.rows
        meter.rows += rows
        if self.answer == "average":
            params *= rows
        return Turns(params, pushed, loss, weight, square, rows, last - first)

    def _sums(self, params: Array, units: Ints, meter: Meter) -> Sums:
        """Fold the gradient sums of a share, unit by unit in order."""
        ready, total = cast(params, self.view, self.device), None
        for unit in units:
            with meter.block(self.view, int(unit[0])) as entry:
                rows = unit_rows(entry, self.shares.seed, unit)
                part = sum_rows(
                    self.model,
                    ready,
                    rows,
                    block_rows=self.block_rows,
                    dtype=self.dtype,
                    device=self.device,
                    kernels=self.kernels,
                    buffers=meter.buffers,
                )
            total = part if total is None else merge(total, part)
        return whole(total) if total is not None else Sums(np.zeros_like(params), 0.0, 0.0, 0)
