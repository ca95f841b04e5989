"""Compressed gradients: a replica's mean gradient, as a code, with what earlier ones did not send added to it.

A leaf is a **replica**: some units of a batch, as `bigopt.data.shares` cuts it. Their gradient sums are folded along a
tree of their own and divided by the rows, so that what a residual holds means the same when the last batch of an epoch
is short. Then, with error feedback,

    u = mean gradient + residual;   code = encode(u);   residual = u - decode(code)

(`bigopt.core.compress`). The penalty's gradient is not compressed: it is added on the driver. Codes are not added to
each other but concatenated, so that nothing is decoded before the driver, and the bits of a step depend on the number
of replicas and not on who computes them.

The residual stays on the worker (`bigopt.data.kept`); the version of it is the number of gradients that it has seen.
Work that goes on from a residual the worker does not have answers `Missing`. A catch-up brings the residual and the
params of several steps; the worker goes through all of them again and answers for the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import tree
from bigopt.core.codec import wire
from bigopt.core.sums import Sums, merge, whole
from bigopt.data.kept import Missing
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.shares import Shares
from bigopt.data.view import DataView
from bigopt.models.base import Model
from bigopt.work import GradientSum
from bigopt.work_local import LocalSteps, Turns

Array = npt.NDArray[Any]

RESIDUAL: Final = "residual"


@wire
class CodedGradient(NamedTuple):
    """A replica's compressed gradient.

    Parameters
    ----------
    number : int
        Of the replica.
    code : tuple
        What `encode` gave.
    residual : ndarray, shape (p,), or None
        After this gradient, where the order asked for it.
    square : float
        Squared norm of the mean gradient before compression: not finite where the gradient is not.
    loss, weight : float
        As in `Sums`.
    rows : int
    """

    number: int
    code: Any
    residual: Array | None
    square: float
    loss: float
    weight: float
    rows: int


@wire
class CodedGradients(NamedTuple):
    """What replicas answered, in their order: each a `CodedGradient` or `Missing`; concatenated, not added."""

    parts: tuple[Any, ...]

    def merge(self, other: CodedGradients) -> CodedGradients:
        """Append the parts of the right operand."""
        return CodedGradients(self.parts + other.parts)


def _residual(
    work: CompressedSum | CompressedTurn, given: tuple[Array, ...], number: int, version: int, meter: Meter
) -> Array | Missing | None:
    """Return what to add to the next gradient; None for nothing."""
    if not work.feedback:
        return None
    if given:
        return given[0]
    if version == 0:
        return np.zeros(work.model.layout.size, dtype=work.dtype)
    kept: Array | None = meter.blocks.kept.get(work.run, RESIDUAL, number, version)
    return Missing(RESIDUAL, number, version) if kept is None else kept


@wire
@dataclass(frozen=True)
class CompressedSum:
    """Compressed gradients of replicas.

    The inputs are params, shape (p,) or (m, p) for m steps that follow one another, and, where the worker is not to go
    on from a residual of its own, the residual before the first of them, shape (p,).

    Parameters
    ----------
    gradient : GradientSum
        Of the units.
    shares : Shares
        Which rows a replica takes; of one replica where batches are given whole to whoever computes them.
    row_weight : float
        W/n: what a row weighs in the mean.
    compressor : Compressor
    feedback : bool
        Whether residuals are kept at all.
    run : str
        Token of the run; see `bigopt.data.kept`.
    returned : bool
        Whether the residual is a part of the answer.
    """

    gradient: GradientSum
    shares: Shares
    row_weight: float
    compressor: Any
    feedback: bool
    run: str
    returned: bool = False

    @property
    def view(self) -> DataView:
        """That of the gradient."""
        return self.gradient.view

    @property
    def model(self) -> Model:
        """That of the gradient."""
        return self.gradient.model

    @property
    def dtype(self) -> str:
        """``run.dtype``."""
        return self.gradient.dtype

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast the params of each step once; the residual is used as it is."""
        params = inputs[0].reshape(-1, inputs[0].shape[-1])
        return [self.gradient.prepare((at,)) for at in params], *inputs[1:]

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> CodedGradients:
        """Return the answer of ``unit = (replica, version of its residual, first step, last step + 1)``."""
        number, version, first, last = (int(v) for v in unit)
        residual = _residual(self, inputs[1:], number, version, meter)
        if isinstance(residual, Missing):
            return CodedGradients((residual,))
        part: CodedGradient | None = None
        for ready, step in zip(inputs[0], range(first, last), strict=True):
            units, rows = self.shares.units(number % self.shares.replicas, step)
            sums = self._sums(ready, units, meter)
            u = sums.grad
            u /= rows * self.row_weight
            square = float(np.dot(u, u))
            if residual is not None:
                u += residual
            code = self.compressor.encode(u, number, version)
            if self.feedback:
                residual = np.subtract(u, self.compressor.decode(code, number, version), out=u)
            version += 1
            part = CodedGradient(number, code, None, square, sums.loss, sums.weight, sums.rows)
        assert part is not None, "an order of no step"
        if not self.feedback:
            return CodedGradients((part,))
        meter.blocks.kept.put(self.run, RESIDUAL, number, version, residual)
        return CodedGradients((part._replace(residual=residual) if self.returned else part,))

    def _sums(self, ready: tuple[Any, ...], units: Ints, meter: Meter) -> Sums:
        """Fold the gradient sums of a replica's units along a tree of their own; the gradient may be written to."""
        n, gradient = len(units), self.gradient
        if n == 0:
            return Sums(np.zeros(gradient.model.layout.size, dtype=gradient.dtype), 0.0, 0.0, 0)
        leaves = (gradient(ready, unit, meter) for unit in units)
        root: Sums = whole(tree.fold(leaves, n, merge, keep=gradient.owned)[(tree.height(n), 0)])
        return root


@wire
class CodedTurn(NamedTuple):
    """A replica's turn of local steps, what it pushes as a code.

    Parameters
    ----------
    number : int
        Of the replica.
    code : tuple
    residual : ndarray, shape (p,), or None
        After this push, where the order asked for it.
    turn : Turns
        Without vectors.
    """

    number: int
    code: Any
    residual: Array | None
    turn: Turns


@wire
@dataclass(frozen=True)
class CompressedTurn:
    """Local steps whose pushed sum of mean gradients goes out as a code (downpour).

    The inputs are those of `LocalSteps`, then, where the worker is not to go on from a residual of its own, the
    residual, shape (p,).

    Parameters
    ----------
    steps : LocalSteps
        With ``answer="replica"``.
    compressor, feedback, run, returned
        As in `CompressedSum`.
    """

    steps: LocalSteps
    compressor: Any
    feedback: bool
    run: str
    returned: bool = False

    @property
    def view(self) -> DataView:
        """That of the steps."""
        return self.steps.view

    @property
    def model(self) -> Model:
        """That of the steps."""
        return self.steps.model

    @property
    def dtype(self) -> str:
        """``run.dtype``."""
        return self.steps.dtype

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing: params change with every step."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> CodedGradients:
        """Return the answer of ``unit = (replica, version of its residual, first step, last step + 1)``."""
        number, version = int(unit[0]), int(unit[1])
        residual = _residual(self, inputs[2:], number, version, meter)
        if isinstance(residual, Missing):
            return CodedGradients((residual,))
        turn = self.steps(inputs[:2], unit, meter)
        u, nothing = turn.pushed, np.zeros(0, dtype=self.dtype)
        if residual is not None:
            u += residual
        code = self.compressor.encode(u, number, version)
        turn = turn._replace(params=nothing, pushed=nothing)
        if self.feedback:
            residual = np.subtract(u, self.compressor.decode(code, number, version), out=u)
            meter.blocks.kept.put(self.run, RESIDUAL, number, version + 1, residual)
        return CodedGradients((CodedTurn(number, code, residual if self.returned else None, turn),))
