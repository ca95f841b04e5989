"""What one slot computes: frozen, pure values that are called with parameters and a unit.

A `Work` says what to compute on the rows of one unit; an `Order` asks a slot for a contiguous range of a round's units
and carries nothing but descriptors and vectors; `execute` runs the units in order, folds them along the round's tree
and returns the few nodes that cover the range. Work may be done again anywhere with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core import arrays, compiled, tree
from bigopt.core.buffers import Buffers
from bigopt.core.codec import wire
from bigopt.core.errors import BigoptError, DataError
from bigopt.core.staging import Stage
from bigopt.core.sums import Mergeable, Sums, merge, merging, packed
from bigopt.core.vectors import Narrow
from bigopt.data.cache import BlockCache
from bigopt.data.meter import Found, Meter, Parts
from bigopt.data.plan import ALL, Ints
from bigopt.data.view import DataView
from bigopt.models.base import Model
from bigopt.models.fused import STEP, fused_fold, fused_stored, fused_units, has_kernel
from bigopt.models.metrics import MetricSums, evaluate_block
from bigopt.work_rows import Rows, cast, sum_rows, unit_rows

Array = npt.NDArray[Any]

_ENTRIES: Final = 1 << 17
"""Entries of the gradients that units may have together that are summed in one call: a megabyte."""


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
        Partitions that later rounds will ask this order's slot for, the next one first: what may be decoded meanwhile,
        and what is worth keeping.
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
    slot: int = 0,
) -> tuple[dict[tree.Node, Any], Stats]:
    """Compute consecutive leaves and fold them.

    Parameters
    ----------
    blocks : BlockCache
        Of this process.
    work, inputs, leaves, start, units, ahead
        As in `Order`.
    slot : int
        Which of the slots of this process computes.

    Returns
    -------
    nodes : dict
        Node to value, for the nodes of ``cover(start, start + len(units), leaves)``.
    stats : Stats
    """
    begin = time.perf_counter()
    meter = Meter(blocks, order=tuple(units[:, 0].tolist()), ahead=ahead, buffers=blocks.buffers)
    if ahead or (len(units) and units[0, 1] >= 0):  # a pass over all rows in between changes nothing
        blocks.expect(slot, work.view, ahead)
    with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told so by its sums
        ready = work.prepare(inputs, blocks.buffers) if isinstance(work, GradientSum) else work.prepare(inputs)
        keep: Callable[[Any], Any] | None = work.exact if isinstance(work, GradientSum) else None
        nodes: dict[tree.Node, Any] | None = None
        if isinstance(work, GradientSum):
            nodes = work.together(ready, leaves, start, units, meter)
        if nodes is None:
            leaf_values = (work(ready, unit, meter) for unit in units)
            nodes = tree.fold(leaf_values, leaves, merging(blocks.buffers), start=start, keep=keep)
    if isinstance(work, GradientSum) and work.view.source.sparse:
        nodes = {node: packed(value, work.model.outputs) for node, value in nodes.items()}
    return nodes, Stats(time.perf_counter() - begin, meter.bytes_read, meter.rows)


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

    def prepare(self, inputs: tuple[Array, ...], buffers: Buffers | None = None) -> tuple[Any, ...]:
        """Cast params once to the block dtype; for sparse rows what they need is cast, unit by unit."""
        compiled.uses_compiled(self.kernels)
        return inputs if self.view.source.sparse else (cast(inputs[0], self.view, self.device, buffers),)

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

    def _folded(self, params: Any, parts: Parts) -> Found:
        """Add rows that cannot stay: from files in one call, or as they are decoded."""
        found = parts.read(partial(fused_stored, self.model, params))
        return fused_fold(self.model, params, parts, self.view.dtype) if found is None else found

    def exact(self, value: Sums) -> Sums:
        """Return sums that stand for ``run.dtype``, whatever their gradient is in."""
        grad = value.grad
        if not isinstance(grad, np.ndarray) or compiled.name_of(grad.dtype) == self.dtype:
            return value
        return value._replace(grad=Narrow(grad, self.dtype))

    def owned(self, value: Sums) -> Sums:
        """Return sums that lie in memory of their own, in ``run.dtype``."""
        grad = value.grad
        if not isinstance(grad, np.ndarray) or grad.base is None:
            return value
        return value._replace(grad=np.array(grad, dtype=self.dtype))

    def together(
        self, inputs: tuple[Any, ...], leaves: int, start: int, units: Ints, meter: Meter
    ) -> dict[tree.Node, Sums] | None:
        """Return the folded `Sums` of units from one call; None where they are not whole partitions in memory."""
        size = self.model.layout.size
        whole = self._in_parts() and not self.view.source.sparse and bool((units[:, 1] == ALL).all())
        if not whole or self.dtype != "float64" or len(units) * size > _ENTRIES:
            return None
        with meter.blocks_here(self.view, units[:, 0].tolist()) as entries:
            places = [entry.place for entry in entries or ()]
            if not places or None in places:
                return None
            table = np.array(places, dtype=np.int64)
            if (table[:, 3] != units[:, 3] - units[:, 2]).any():
                return None
            pairs, nodes = tree.merges(start, start + len(units), leaves)
            merges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
            grads, sums = fused_units(self.model, inputs[0], table, merges, self.view.dtype)
        rows = np.concatenate([[0], np.cumsum(table[:, 3])]).tolist()
        meter.rows += rows[-1]
        found = {}
        for node, k in nodes:
            first, last = tree.span(node, leaves)
            loss, weight, _ = sums[k].tolist()
            found[node] = Sums(grads[k], loss, weight, rows[last - start] - rows[first - start])
        return found

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Sums:
        """Return the unit's `Sums`; rows that cannot stay in memory are added as they are decoded."""
        if unit[1] == ALL and self._in_parts():
            with meter.stream(self.view, unit, STEP, checked=False) as parts:
                found = None if parts is None else self._folded(inputs[0], parts)
            if found is not None:
                grad, loss, total, rows = found
                if not np.isfinite(grad).all():  # a run that diverges, or features that are not finite
                    meter.check(self.view, unit, STEP)
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
