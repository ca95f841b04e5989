"""What a round costs and what a process holds, before a run: upper bounds that a person can follow by hand.

* forward costs the multiply-adds of the layers, backward twice that (once for the weights, once for the layer below,
  which the first layer does not need);
* a round sends params to every slot, and every slot sends back at most ``2 log2 P`` sums;
* sparse rows cost their stored values in place of their columns, and a sum holds at most the columns of its rows;
* a slot that folds units in order holds one sum for each level of the tree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bigopt.backends.peers_round import peers, silent
from bigopt.backends.slices import SLICE_BYTES
from bigopt.core.tree import height
from bigopt.costs import FITTED, Round, best_slots, message_factor, parts, peers_parts, ticket
from bigopt.data.view import DataView
from bigopt.models.table import ModelTable, batch_memory, si
from bigopt.optim.table import state_vectors
from bigopt.problem import Problem
from bigopt.strategies.layers_deal import Traffic

if TYPE_CHECKING:
    from bigopt.config import Conf

_REMEDIES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("sync", "backup", "async", "ssp"), ""),
    "local_sgd": "local_steps",
    "easgd": "every",
    "downpour": "n_push",
}
"""The key of each strategy that says how many batches lie between two messages."""


def round_cost(conf: Conf, problem: Problem, layers: ModelTable, rows: int, slots: int) -> dict[str, int]:
    """Return multiply-adds and bytes of one round of a step."""
    first = layers.layers[0].multiply_adds
    each = 3 * layers.multiply_adds - first
    if problem.view.source.sparse:
        each = round(2 * _row_values(problem.view) * problem.model.outputs)
    units = units_of(problem)
    vector = layers.parameters * np.dtype(conf.run.dtype).itemsize
    messages = min(slots, units)
    among = among_workers(conf, problem, slots)
    sums = _sums_bytes(conf, problem, rows, min(units, messages * max(1, 2 * height(units))))
    return {
        "multiply_adds": each * rows,
        "units": units,
        "messages": messages,
        "bytes_down": vector if among else messages * vector,
        "bytes_up": vector if among else sums,
    }


def among_workers(conf: Conf, problem: Problem, slots: int) -> bool:
    """Return whether the workers add the gradients of a round among themselves (``backend.reduce``)."""
    adding = peers(conf, conf.backend.name, silent)
    if adding is None or problem.view.source.sparse or conf.strategy.compression.name is not None:
        return False
    return adding.pays(problem.model.layout.size, np.dtype(conf.run.dtype).itemsize, min(slots, units_of(problem)))


def _row_values(view: DataView) -> float:
    """Values that an average row stores: d of dense rows."""
    stored = sum(view.source.nonzeros(view.partition(m)) for m in range(view.partitions))
    return stored / max(1, int(view.bounds[-1] - view.bounds[0]))


def _sums_bytes(conf: Conf, problem: Problem, rows: int, sums: int) -> int:
    """Most bytes of the gradients of `sums` disjoint pieces of a batch; sparse ones hold a row of W a stored value."""
    width = problem.model.outputs * np.dtype(conf.run.dtype).itemsize
    dense = sums * problem.model.layout.size * np.dtype(conf.run.dtype).itemsize
    if not problem.view.source.sparse:
        return dense
    return min(dense, round((rows * _row_values(problem.view) + sums) * (4 + width)))


def units_of(problem: Problem) -> int:
    """Return the most units that a batch can have: its open partitions."""
    plan = problem.plan
    used = int(np.count_nonzero(plan.counts))
    if plan.full:
        return used
    return min(used, 2 * plan.lanes or used, plan.batch_rows(0))  # a lane may go on to its next partition


def encoding_lines(conf: Conf, problem: Problem, rows: int) -> list[str]:
    """Say whether gradients travel sparse."""
    if not problem.view.source.sparse:
        return []
    share = max(1, rows // units_of(problem))
    most, columns = round(share * _row_values(problem.view)), problem.model.features
    dense = _sums_bytes(conf, problem, 10**18, 1)
    shown = "sparse" if _sums_bytes(conf, problem, share, 1) < dense else "dense or sparse, as is shorter"
    return [f"gradients travel {shown}: the {share:,} rows of a unit have values in at most {min(most, columns):,} of "
            f"{columns:,} columns"]  # fmt: skip


def memory_of(conf: Conf, problem: Problem, rows: int, slots: int) -> list[tuple[str, str, int]]:
    """Return name, meaning and bytes of what a process holds besides Python itself."""
    vectors = state_vectors(conf.optimizer.name, problem.model.layout.size, conf.optimizer.history) + (
        conf.optimizer.average not in (None, False)
    )
    block = min(rows, problem.block_rows)
    part = batch_memory(problem.model, block, dtype=problem.view.dtype, run_dtype=conf.run.dtype, state_vectors=vectors)
    units = units_of(problem)
    nodes = min(units, min(slots, units) * max(1, 2 * height(units)))
    vector = problem.model.layout.size * np.dtype(conf.run.dtype).itemsize
    in_flight, sums = nodes + 1, _sums_bytes(conf, problem, rows, nodes) + vector
    gradients, levels = part.gradients, height(units) * vector
    X = part.rows
    if problem.view.source.sparse:
        gradients, X = 2 * _sums_bytes(conf, problem, rows, 1), round(block * problem.view.row_bytes)
        levels = min(levels, _sums_bytes(conf, problem, rows, units))
    flying = f"at most {in_flight} vectors"
    if conf.backend.name in ("dask", "spark") and vector > SLICE_BYTES and not problem.view.source.sparse:
        flying, sums = f"a vector and at most {nodes} slices of {si(SLICE_BYTES)}B", vector + nodes * SLICE_BYTES
    if among_workers(conf, problem, slots):
        flying, sums = "params on their way and one gradient", 2 * vector
    return [
        ("params", "the parameters in run.dtype, and in the blocks' dtype", part.parameters),
        ("state", f"optimizer state: {vectors} vectors ({conf.optimizer.name})", part.optimizer),
        ("gradients", f"gradients in flight on the driver: {flying}", sums),
        ("slot", f"sums of a slot: a block's gradient and {height(units) + 1} levels of the tree",
         gradients + levels),
        ("block", f"a block of {block} rows: X, activations, deltas", X + part.activations + part.deltas),
        ("rows", "data.memory: decoded blocks and buffers of each process", conf.data.memory),
    ]  # fmt: skip


def cost_part(cost: dict[str, int], slots: int, cut: Traffic | None) -> dict[str, Any]:
    """Return the table of a round, or of a step of a model that is cut."""
    rows = [
        ["multiply-adds, forward and backward", si(cost["multiply_adds"])],
        [f"messages ({slots} slots, at most {cost['units']} units)", str(cost["messages"])],
        ["bytes from the driver, at most", f"{si(cost['bytes_down'])}B"],
        ["bytes to the driver, at most", f"{si(cost['bytes_up'])}B"],
    ]
    return {"title": "a step" if cut else "a round", "columns": ["what", "figure"], "rows": rows}


def memory_part(memory: list[tuple[str, str, int]]) -> dict[str, Any]:
    """Return the table of what a process holds."""
    rows = [[name, f"{si(size)}B", meaning] for name, meaning, size in memory]
    return {"title": "memory of a process", "columns": ["part", "bytes", "meaning"], "rows": rows}


def round_work(conf: Conf, problem: Problem, cost: dict[str, int], slots: int) -> Round:
    """Return what a synchronous round does, for the cost model."""
    vector = problem.model.layout.size * np.dtype(conf.run.dtype).itemsize
    rows = problem.plan.batch_rows(0)
    return Round(
        multiply_adds=float(cost["multiply_adds"]),
        row_bytes=float(rows * _row_values(problem.view) * np.dtype(problem.view.dtype).itemsize),
        stored_bytes=0.0,
        vector_bytes=float(vector),
        slots=slots,
        units=cost["units"],
        state=3 + state_vectors(conf.optimizer.name, problem.model.layout.size, conf.optimizer.history),
        shared=conf.backend.address is None,
    )


def predicted(work: Round, steps: int, *, among: bool) -> list[str]:
    """Say how many seconds a round takes by the cost model, and where they go.

    Parameters
    ----------
    work : Round
    steps : int
        Rounds an epoch.
    among : bool
        Whether workers add among themselves.
    """
    found = peers_parts(work, FITTED) if among else parts(work, FITTED)
    total = sum(found.values())
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in found.items() if value > 0.005 * total)
    most = "" if among else f"; at most {best_slots(work, FITTED):,} slots pay off"
    line = (
        f"prediction: {1e3 * total:.3g} ms a round with the rows in memory ({shares}), {steps * total:.3g} s an epoch"
        f"{most} (rates of docs/scaling.md)"
    )
    if not among:
        return [line]
    return ["workers add the gradients among themselves: the driver moves one vector each way (backend.reduce)", line]


def message_lines(conf: Conf, work: Round, slots: int) -> list[str]:
    """Warn where the messages of a ticket take longer than its Map: what to raise, and about how far."""
    from bigopt.config.names import STRATEGIES

    name, spec = conf.strategy.name, conf.strategy
    if conf.backend.name == "local" or name not in _REMEDIES:
        return []
    key = _REMEDIES[name]
    per_ticket = getattr(spec, key) or STRATEGIES[name].uses[key] if key else 1
    if name in ("async", "ssp"):
        work = ticket(work, 1, 1)
    elif key:
        work = ticket(work, spec.replicas or slots, per_ticket)
    factor = message_factor(work, FITTED)
    if factor <= 1.0:
        return []
    remedy = f"strategy.{key} ({per_ticket:,})" if key else "batch.size, or strategy local_sgd with local_steps"
    n_fetch = " and n_fetch" if name == "downpour" else ""
    return [
        f"warning: messages dominate: they take about {factor:.2g} times as long as the rows between them; raise "
        f"{remedy}{n_fetch}, or the batch: about {math.ceil(factor):,} times as many rows a message would balance them"
    ]
