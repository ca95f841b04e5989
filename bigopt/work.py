"""What one slot computes: frozen, pure values that are called with parameters and a unit.

A `Work` says what to compute on the rows of one unit; an `Order` asks a slot for a contiguous range of a round's units
and carries nothing but descriptors and vectors; `execute` runs the units in order, folds them along the round's tree
and returns the few nodes that cover the range. Work may be done again anywhere with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core import arrays, compiled, tree
from bigopt.core.buffers import Buffers
from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.errors import BigoptError, ConfError, DataError
from bigopt.core.staging import Stage
from bigopt.core.sums import Mergeable, Sums, merge, merging, packed
from bigopt.core.vectors import Narrow
from bigopt.data.cache import BlockCache, Meter
from bigopt.data.entry import Entry
from bigopt.data.plan import ALL, DISTINCT, REPEATED, Ints, redraw
from bigopt.data.view import DataView
from bigopt.models import sparse
from bigopt.models.base import Model
from bigopt.models.fused import STEP, fused_fold, fused_sum, has_kernel, has_layers, layered_sum
from bigopt.models.linear import LinearModel
from bigopt.models.metrics import MetricSums, evaluate_block
from bigopt.models.mlp import MLP

Array = npt.NDArray[Any]
BlockSum = Callable[[Any, Any, Any, Any, Buffers | None], tuple[Any, float, float]]
"""``(params, X, y, weight, buffers) -> (gradient, loss, weight)`` of a block, as `Model.grad_sum`."""

Rows = tuple[Any, Any, Array | None]
"""X (k, d), an array or CSR, y and weight (k,) or None of a unit."""


class Work(Protocol):
    """What to compute on the rows of a unit; frozen and pure."""

    @property
    def view(self) -> DataView:
        """The rows it works on."""
        ...

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Convert the inputs once for all units of an order."""
        ...

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Mergeable:
        """Return the value of one leaf; `unit` is ``(partition, epoch, start, stop)``."""
        ...


@dataclass(frozen=True, eq=False)
class Order:
    """A request to one slot.

    Parameters
    ----------
    ticket : int
        Number of the round.
    attempt : int
        0, then one more each time the units are ordered again.
    slot : int
        Where the decoded blocks should be; a preference.
    work : Work
    inputs : tuple of ndarray
        Vectors the work needs (params, ...).
    leaves : int
        Number of leaves of the round's tree.
    start : int
        Leaf of the first unit.
    units : ndarray, shape (k, 4), int64
        Consecutive units of the round.
    ahead : tuple of int
        Partitions that the slot will need in later rounds, the next one first: what may be decoded meanwhile.
    """

    ticket: int
    attempt: int
    slot: int
    work: Work
    inputs: tuple[Array, ...]
    leaves: int
    start: int
    units: Ints
    ahead: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """One past the last leaf."""
        return self.start + len(self.units)


@wire
class Stats(NamedTuple):
    """What an order cost: seconds in the Map, bytes read from the store, rows summed, bytes held, process id."""

    seconds: float = 0.0
    bytes_read: int = 0
    rows: int = 0
    rss: int = 0
    pid: int = 0


@dataclass(frozen=True, eq=False)
class Arrival:
    """The end of an order: done (nodes), lost (a reason), or failed (an error that no repetition will cure)."""

    order: Order
    nodes: dict[tree.Node, Any] | None = None
    stats: Stats = field(default_factory=Stats)
    lost: str = ""
    error: BigoptError | None = None
    sent: int = 0
    received: int = 0


def on_card(work: Work) -> bool:
    """Return whether a work computes on a GPU."""
    device: arrays.Device = getattr(work, "device", "cpu")
    return device == "gpu"


def execute(
    blocks: BlockCache,
    work: Work,
    inputs: tuple[Array, ...],
    leaves: int,
    start: int,
    units: Ints,
    ahead: tuple[int, ...] = (),
) -> tuple[dict[tree.Node, Any], Stats]:
    """Compute consecutive leaves and fold them.

    Parameters
    ----------
    blocks : BlockCache
        Of this process.
    work, inputs, leaves, start, units, ahead
        As in `Order`.

    Returns
    -------
    nodes : dict
        Node to value, for the nodes of ``cover(start, start + len(units), leaves)``.
    stats : Stats
    """
    begin = time.perf_counter()
    meter = Meter(blocks, order=tuple(units[:, 0].tolist()), ahead=ahead, buffers=blocks.buffers)
    with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told so by its sums
        ready = work.prepare(inputs)
        keep: Callable[[Any], Any] | None = work.exact if isinstance(work, GradientSum) else None
        leaf_values = (work(ready, unit, meter) for unit in units)
        nodes = tree.fold(leaf_values, leaves, merging(blocks.buffers), start=start, keep=keep)
    if isinstance(work, GradientSum) and work.view.source.sparse:
        nodes = {node: packed(value, work.model.outputs) for node, value in nodes.items()}
    return nodes, Stats(time.perf_counter() - begin, meter.bytes_read, meter.rows)


def sum_rows(
    model: Model,
    params: Any,
    rows: tuple[Any, Any, Any],
    *,
    block_rows: int,
    dtype: str,
    device: arrays.Device = "cpu",
    kernels: str = compiled.NUMPY,
    buffers: Buffers | None = None,
    stage: Stage | None = None,
) -> Sums:
    """Fold the gradient sums of one unit's rows in blocks counted from its first row.

    Parameters
    ----------
    model : Model
    params : array, shape (p,)
        In the block dtype, on the device; for sparse rows as they are.
    rows : tuple
        X (k, d), y, weight (k,) or None, of the unit, on the host.
    block_rows : int
        Rows of a block.
    dtype : str
        ``run.dtype``, in which block sums are added.
    device : {"cpu", "gpu"}
    kernels : str
        The kernel set; compiled kernels take all rows of a unit at once, and add in float64.
    buffers : Buffers or None
        Lend the gradient's memory, in `dtype` or in the block's; None: in memory of its own, in `dtype`.
    stage : Stage or None
        The way of host rows to a card.

    Returns
    -------
    Sums
        With the gradient on the host. That of sparse rows is computed on their own columns only.
    """
    X, y, weight = rows
    if not isinstance(X, CSR):
        fused = fused_sum(model, params, X, y, weight) if kernels != compiled.NUMPY and device == "cpu" else None
        if fused is not None:
            return Sums(fused[0].astype(dtype, copy=False), *fused[1:], len(X))
        compute = _block_sum(model, rows, device, kernels)
        return Sums(*_folded(compute, model, params, rows, block_rows, dtype, device, buffers, stage), X.shape[0])
    if not isinstance(model, LinearModel):
        raise ConfError("only linear models take sparse rows", where="model.name")
    columns, own = X.own()
    small, at = sparse.restricted(model, columns), sparse.restricted_params(model, params, columns, X.dtype.name)
    grad, loss, total = _folded(small.grad_sum, small, at, (own, y, weight), block_rows, dtype, device)
    return Sums(sparse.spread(model, grad, columns), loss, total, len(X))


def _block_sum(model: Model, rows: Rows, device: arrays.Device, kernels: str) -> BlockSum:
    """Return what computes the sums of a block: `Model.grad_sum`, or kernels of the set that give the same."""
    if kernels == compiled.NUMPY or device != "cpu" or rows[1].ndim != 1 or not isinstance(rows[0], np.ndarray):
        return model.grad_sum
    if isinstance(model, MLP) and has_layers(model, rows[0].dtype.name):
        return partial(layered_sum, model)
    return model.grad_sum


def _folded(
    compute: BlockSum,
    model: Model,
    params: Any,
    rows: Rows,
    block_rows: int,
    dtype: str,
    device: arrays.Device,
    buffers: Buffers | None = None,
    stage: Stage | None = None,
) -> tuple[Array, float, float]:
    grad: Any = None
    loss = total = 0.0
    several = rows[0].shape[0] > block_rows
    for X, y, weight in row_blocks(rows, block_rows, device, stage):
        g, value, mass = compute(params, X, y, weight, buffers)
        if grad is not None:
            grad += g
        elif buffers is None or g.base is None:
            grad = arrays.astype(g, dtype)
        elif several:  # the next block writes to the same memory
            grad = buffers.lend(g.shape[0], dtype)
            grad[...] = g
        else:
            grad = g
        loss, total = loss + float(value), total + float(mass)
    if grad is None:
        return np.zeros(model.layout.size, dtype=dtype), 0.0, 0.0
    return arrays.to_host(grad), loss, total


def cast(vector: Array, view: DataView, device: arrays.Device) -> Any:
    """Return a vector in the view's block dtype on the device: done once an order, so that products stay fast."""
    return arrays.to_device(np.ascontiguousarray(vector, dtype=view.dtype), device)


def row_blocks(rows: Rows, size: int, device: arrays.Device, stage: Stage | None = None) -> Iterator[Any]:
    """Yield a unit's rows in blocks of `size`, counted from its first row, on the device: (X, y, weight or None).

    With a stage, host rows reach a card while it computes on the block before; then a block is valid until the next.
    """
    X, y, weight = rows
    n = X.shape[0]
    cuts = (slice(lo, min(lo + size, n)) for lo in range(0, n, size))
    if device == "gpu" and not isinstance(X, np.ndarray):
        return (tuple(None if a is None else a[part, ...] for a in rows) for part in cuts)
    blocks = ((X[part], y[part], None if weight is None else weight[part]) for part in cuts)
    if device == "cpu":
        return blocks
    if stage is not None:
        return stage.stream(blocks)
    return (tuple(None if a is None else arrays.to_device(a, device) for a in block) for block in blocks)


def unit_rows(entry: Entry, seed: int, unit: Ints, buffers: Buffers | None = None) -> Any:
    """The rows of a unit, (X, y, weight or None): a range of the block or of the epoch's permutation of it, or drawn.

    With `buffers`, drawn features lie there until the next unit.
    """
    block, (_, epoch, start, stop) = entry.block, unit
    on_card = not isinstance(block.X, np.ndarray | CSR)
    if epoch == ALL and on_card:
        return tuple(None if a is None else a[int(start) : int(stop), ...] for a in block[:3])
    if epoch == ALL:
        part = slice(int(start), int(stop))
        return (
            block.X[part],
            None if block.y is None else block.y[part],
            None if block.weight is None else block.weight[part],
        )
    X: Any = None
    if epoch in (DISTINCT, REPEATED):
        rows = redraw(seed, unit, block.X.shape[0])
    else:
        entry.open, order = stop < block.X.shape[0], entry.order(seed, unit)
        rows = order[start:stop]
        if buffers is not None and buffers.ahead is not None and isinstance(block.X, np.ndarray):
            X = buffers.ahead.rows(block.X, order, int(start), int(stop))
    if on_card:
        return tuple(None if a is None else arrays.gathered(a, rows) for a in block[:3])
    if X is None:
        X = block.X[rows] if buffers is None or isinstance(block.X, CSR) else _gathered(block.X, rows, buffers)
    return (
        X,
        None if block.y is None else block.y[rows],
        None if block.weight is None else block.weight[rows],
    )


def _gathered(X: Array, rows: Ints, buffers: Buffers) -> Array:
    out = buffers.take("rows", (len(rows), X.shape[1]), X.dtype)
    return np.take(X, rows, axis=0, out=out, mode="clip")  # all are in range; a mode that raises would buffer


@wire
@dataclass(frozen=True)
class GradientSum:
    """Gradient and loss sums at some params (``model.backprop: map``).

    Parameters
    ----------
    model : Model
    view : DataView
    seed : int
    dtype : str
        ``run.dtype``.
    block_rows : int
    device : str
    kernels : str
        The kernel set, as `bigopt.core.compiled.uses_compiled` takes it.
    """

    model: Model
    view: DataView
    seed: int
    dtype: str
    block_rows: int
    device: arrays.Device = "cpu"
    kernels: str = compiled.NUMPY

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast params once to the block dtype; for sparse rows what they need is cast, unit by unit."""
        compiled.uses_compiled(self.kernels)
        return inputs if self.view.source.sparse else (cast(inputs[0], self.view, self.device),)

    def sums(
        self, inputs: tuple[Any, ...], rows: Rows, buffers: Buffers | None = None, stage: Stage | None = None
    ) -> Sums:
        """Return the `Sums` of a unit's rows."""
        return sum_rows(
            self.model,
            inputs[0],
            rows,
            block_rows=self.block_rows,
            dtype=self.dtype,
            device=self.device,
            kernels=self.kernels,
            buffers=buffers,
            stage=stage,
        )

    def _in_parts(self) -> bool:
        """Whether a unit's rows may come in parts."""
        return self.kernels != compiled.NUMPY and self.device == "cpu" and has_kernel(self.model, self.view.dtype)

    def exact(self, value: Sums) -> Sums:
        """Return sums that stand for ``run.dtype``, whatever their gradient is in."""
        grad = value.grad
        if not isinstance(grad, np.ndarray) or grad.dtype == self.dtype:
            return value
        return value._replace(grad=Narrow(grad, self.dtype))

    def owned(self, value: Sums) -> Sums:
        """Return sums that lie in memory of their own, in ``run.dtype``."""
        grad = value.grad
        if not isinstance(grad, np.ndarray) or grad.base is None:
            return value
        return value._replace(grad=np.array(grad, dtype=self.dtype))

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Sums:
        """Return the unit's `Sums`; rows that cannot stay in memory are added as they are decoded."""
        if unit[1] == ALL and self._in_parts():
            with meter.stream(self.view, unit, STEP) as parts:
                if parts is not None:
                    grad, loss, total, rows = fused_fold(self.model, inputs[0], parts, self.view.dtype)
                    return Sums(grad.astype(self.dtype, copy=False), loss, total, rows)
        buffers, stage = (meter.buffers, None) if self.device == "cpu" else (None, meter.stage)
        with meter.block(self.view, int(unit[0]), self.device) as entry:
            rows = unit_rows(entry, self.seed, unit, buffers)
            meter.rows += rows[0].shape[0]
            return self.sums(inputs, rows, buffers, stage)


@wire
class Selected(NamedTuple):
    """Rows of consecutive units, not merged: the one value that is concatenated (``backprop: driver``)."""

    units: tuple[tuple[Array, Any, Any], ...]

    def merge(self, other: Selected) -> Selected:
        """Append the units of the right operand."""
        return Selected(self.units + other.units)


@wire
@dataclass(frozen=True)
class SelectRows:
    """The rows of a mini-batch, for a driver that runs forward and backward itself (``model.backprop: driver``)."""

    view: DataView
    seed: int

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Selected:
        """Return copies of the unit's rows."""
        with meter.block(self.view, int(unit[0])) as entry:
            rows = unit_rows(entry, self.seed, unit)
            meter.rows += rows[0].shape[0]
            return Selected((tuple(rows),))


class RowWork(Protocol):
    """Work whose leaf is a function of the unit's rows, so that it may run where the rows are sent to as well."""

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Convert the inputs once."""
        ...

    def sums(self, inputs: tuple[Any, ...], rows: Rows) -> Any:
        """Return the value of a unit's rows."""
        ...


def sum_selected(work: RowWork, inputs: tuple[Array, ...], selected: Selected) -> Any:
    """Do on the driver what the work does in the Map: unit by unit, along the same tree, with the same bits."""
    ready, n = work.prepare(inputs), len(selected.units)
    return tree.fold((work.sums(ready, rows) for rows in selected.units), n, merge)[(tree.height(n), 0)]


@wire
@dataclass(frozen=True)
class MetricSum:
    """Metric sums of a model's predictions over whole partitions, with the loss."""

    model: Model
    view: DataView
    block_rows: int
    device: arrays.Device = "cpu"

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Cast params once to the block dtype."""
        return (cast(inputs[0], self.view, self.device),)

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> MetricSums:
        """Return the unit's metric sums."""
        total: MetricSums | None = None
        with meter.block(self.view, int(unit[0])) as entry:
            X, y, weight = unit_rows(entry, 0, unit)
            meter.rows += len(X)
            for lo in range(0, len(X), self.block_rows):
                part = slice(lo, lo + self.block_rows)
                w = None if weight is None else weight[part]
                value = evaluate_block(self.model, inputs[0], arrays.to_device(X[part], self.device), y[part], w)
                total = value if total is None else merge(total, value)
        if total is None:
            raise DataError("a unit without rows was evaluated")
        return total
