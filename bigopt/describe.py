"""What a conf will do, before it does it: layers, schedule, cost of a round, memory, where the update runs.

Everything comes from the conf and the dataset's metadata. Labels are read only where neither conf nor manifest names
the classes; moments are not, so nothing here depends on the features' values. The figures are upper bounds that a
person can follow by hand:

* forward costs the multiply-adds of the layers, backward twice that (once for the weights, once for the layer below,
  which the first layer does not need);
* a round sends params to every slot, and every slot sends back at most ``2 log2 P`` sums;
* sparse rows cost their stored values in place of their columns, and a sum holds at most the columns of its rows;
* a slot that folds units in order holds one sum for each level of the tree.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bigopt.backends.slices import SLICE_BYTES
from bigopt.batches import batch_rate, schedule_keys, span
from bigopt.core.sums import Moments
from bigopt.core.tree import height
from bigopt.costs import FITTED, Round, best_slots, message_factor, parts, ticket
from bigopt.data.source import Dataset
from bigopt.data.view import DataView
from bigopt.describe_codes import codes_lines, codes_of
from bigopt.describe_columns import columns_lines, columns_traffic
from bigopt.describe_cut import cut_lines, deal_of, exchanged, traffic_of
from bigopt.facts import Datasets, Facts, Side, is_classification, open_data, side_view
from bigopt.models.counts import count_shapes
from bigopt.models.table import ModelTable, batch_memory, model_table, si
from bigopt.optim.build import build_schedule
from bigopt.optim.schedules import convergence
from bigopt.optim.search import SEARCHES
from bigopt.optim.table import keys_of, optimizer, state_vectors
from bigopt.problem import Problem, build
from bigopt.strategies.base import Renewal
from bigopt.strategies.layers_deal import Deal, Traffic

if TYPE_CHECKING:
    from bigopt.config import Conf

_HASHED_ROWS = 10**7
_STAGES = 8
_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(("sync", "backup", "async", "ssp"), ""),
    "local_sgd": "local_steps",
    "easgd": "every",
    "downpour": "n_push",
}
"""The key of each strategy that says how many batches lie between two messages."""


def describe(conf: Conf, data: Datasets | None = None) -> dict[str, Any]:
    """Describe a conf.

    Parameters
    ----------
    conf : Conf
        Checked.
    data : Datasets, optional
        Opened data; ``data.uri`` is opened where it is not given.

    Returns
    -------
    dict
        ``tables``: mappings with title, columns and rows; ``lines``: sentences; and the figures behind them, by name:
        ``parameters``, ``multiply_adds`` (forward, one row), ``rows``, ``steps_per_epoch``, ``rows_per_step``,
        ``round`` (multiply_adds, bytes_down, bytes_up) and ``memory`` (bytes).

    Raises
    ------
    BigoptError
        Data that cannot be opened, or a conf that does not go with them.
    """
    from bigopt.config import describe_defaults

    data = data or open_data(conf)
    problem = build(conf, data, _facts(conf, data.train), "cpu")
    layers = model_table(problem.model)
    steps = problem.plan.steps_per_epoch
    rows = problem.plan.batch_rows(0)
    slots = conf.backend.workers or os.cpu_count() or 1
    cost = _round(conf, problem, layers, rows, slots)
    codes = codes_of(conf, problem, slots)
    if codes is not None:
        cost["bytes_up"] = codes.replicas * codes.code
    memory = _memory(conf, problem, rows, slots)
    work = _work(conf, problem, cost, slots)
    deal = deal_of(conf, problem, slots)
    traffic = columns_traffic(conf, problem, slots) if deal is None else traffic_of(deal, conf, problem, slots)
    if deal is not None:
        memory.append(exchanged(deal, problem))
    if traffic is not None:
        cost.update(messages=traffic.orders, bytes_down=traffic.down, bytes_up=traffic.up)
    lines = [
        f"data: {problem.plan.rows:,} training rows of {data.train.rows:,}, {len(data.train.columns)} features, "
        f"{_sparsity(data.train)}"
        f"{problem.view.partitions} partitions, {data.train.stored} as stored, {problem.view.dtype} in blocks of "
        f"{problem.block_rows} rows",
        f"batch: {rows:,} rows a step, {steps:,} steps an epoch, sampling {problem.plan.sampling}",
        *_growth(conf, problem),
        *_schedule(conf, problem),
        *_places(conf, slots, problem.renewal()),
        *codes_lines(codes, conf),
        *_cut(conf, problem, deal, traffic),
        *([] if traffic else [_predicted(work, steps)]),
        *_messages(conf, work, slots),
        *_encoding(conf, problem, rows),
        *_bottlenecks(layers),
        *(line for line in (*data.train.warnings, *problem.notes, *conf.notices) if line),
        *(f"default: {line}" for line in describe_defaults(conf)),
    ]
    return {
        "tables": [_model_part(problem, layers), _cost_part(cost, slots, traffic), _memory_part(memory)],
        "lines": lines,
        "parameters": layers.parameters,
        "multiply_adds": layers.multiply_adds,
        "rows": problem.plan.rows,
        "rows_per_step": rows,
        "steps_per_epoch": steps,
        "round": cost,
        "memory": {name: size for name, _, size in memory},
    }


def _cut(conf: Conf, problem: Problem, deal: Deal | None, traffic: Traffic | None) -> list[str]:
    """How the model is cut; nothing where it is whole."""
    if traffic is None:
        return []
    return columns_lines(traffic, conf, problem) if deal is None else cut_lines(deal, traffic, conf)


def describe_shapes(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Count a convolutional network that is written down as data; nothing is built or trained.

    Parameters
    ----------
    spec : mapping
        As `bigopt.models.counts.count_shapes` takes it.

    Returns
    -------
    dict
        ``tables`` and ``lines`` as `describe`, ``parameters`` and ``multiply_adds`` (of one picture).
    """
    found = count_shapes(spec)
    parameters, work = sum(row.parameters for row in found), sum(row.multiply_adds for row in found)
    rows: list[list[Any]] = [
        [
            row.name,
            row.kind,
            " x ".join(map(str, row.output)),
            row.parameters,
            f"{100 * row.parameters / max(1, parameters):.1f} %",
            row.multiply_adds,
            f"{100 * row.multiply_adds / max(1, work):.1f} %",
        ]
        for row in found
    ]
    rows.append(["total", "", "", parameters, "", work, ""])
    columns = ["layer", "kind", "output", "parameters", "share", "multiply-adds a picture", "share of them"]
    table = {"title": "shapes", "columns": columns, "rows": rows}
    return {"tables": [table], "lines": [], "parameters": parameters, "multiply_adds": work}


def _facts(conf: Conf, dataset: Dataset) -> Facts:
    """Facts without a pass over the features: rows by the manifest, moments of standard columns."""
    view = side_view(conf, dataset, validation=False, own=False)
    counts = np.array([p.rows for p in dataset.partitions], dtype=np.int64)
    if view.split is not None:
        if dataset.rows <= _HASHED_ROWS:
            counts = np.array([int(view.split.mask(p).sum()) for p in dataset.partitions], dtype=np.int64)
        else:
            counts = np.round(counts * (1.0 - view.split.fraction)).astype(np.int64)
    d = len(dataset.columns)
    moments = Moments(float(counts.sum()), np.zeros(d), np.full(d, float(counts.sum())))
    classification = is_classification(conf, dataset)[0]
    width = _width(dataset)
    classes: tuple[Any, ...] = ()
    if classification and width == 1:
        classes = tuple(conf.data.classes or dataset.classes or _labels(dataset))
    side = Side(counts, np.zeros_like(counts), moments, width)
    return Facts("", side, None, classes, len(classes), "", conf.backend.workers or os.cpu_count() or 1)


def _width(dataset: Dataset) -> int:
    """Columns of the target, from the first piece."""
    if len(dataset.target) > 1:
        return len(dataset.target)
    for partition in dataset.partitions:
        for piece in dataset.source.pieces(partition):
            return 1 if piece.y is None or piece.y.ndim == 1 else piece.y.shape[1]
    return 1


def _labels(dataset: Dataset) -> Sequence[Any]:
    """Sorted distinct labels, by reading the target."""
    found = np.empty(0)
    for partition in dataset.partitions:
        for piece in dataset.source.pieces(partition):
            if piece.y is not None:
                labels = np.unique(piece.y)
                found = labels if found.size == 0 else np.union1d(found, labels)
    return [label.item() for label in found]


def _round(conf: Conf, problem: Problem, layers: ModelTable, rows: int, slots: int) -> dict[str, int]:
    """Multiply-adds and bytes of one round of a step."""
    first = layers.layers[0].multiply_adds
    each = 3 * layers.multiply_adds - first
    if problem.view.source.sparse:
        each = round(2 * _row_values(problem.view) * problem.model.outputs)
    units = _units(problem)
    vector = layers.parameters * np.dtype(conf.run.dtype).itemsize
    messages = min(slots, units)
    return {
        "multiply_adds": each * rows,
        "units": units,
        "messages": messages,
        "bytes_down": messages * vector,
        "bytes_up": _sums_bytes(conf, problem, rows, min(units, messages * max(1, 2 * height(units)))),
    }


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


def _encoding(conf: Conf, problem: Problem, rows: int) -> list[str]:
    """Whether gradients travel sparse."""
    if not problem.view.source.sparse:
        return []
    share = max(1, rows // _units(problem))
    most, columns = round(share * _row_values(problem.view)), problem.model.features
    dense = _sums_bytes(conf, problem, 10**18, 1)
    shown = "sparse" if _sums_bytes(conf, problem, share, 1) < dense else "dense or sparse, as is shorter"
    return [f"gradients travel {shown}: the {share:,} rows of a unit have values in at most {min(most, columns):,} of "
            f"{columns:,} columns"]  # fmt: skip


def _sparsity(dataset: Dataset) -> str:
    """Say how many values sparse rows store."""
    if not dataset.sparse:
        return ""
    return f"{dataset.nonzeros:,} values in sparse rows ({dataset.nonzeros / max(1, dataset.rows):.1f} a row), "


def _units(problem: Problem) -> int:
    """Most units that a batch can have: its open partitions."""
    plan = problem.plan
    used = int(np.count_nonzero(plan.counts))
    if plan.full:
        return used
    return min(used, 2 * plan.lanes or used, plan.batch_rows(0))  # a lane may go on to its next partition


def _memory(conf: Conf, problem: Problem, rows: int, slots: int) -> list[tuple[str, str, int]]:
    """Name, meaning and bytes of what a process holds besides Python itself."""
    vectors = state_vectors(conf.optimizer.name, problem.model.layout.size, conf.optimizer.history) + (
        conf.optimizer.average not in (None, False)
    )
    block = min(rows, problem.block_rows)
    part = batch_memory(problem.model, block, dtype=problem.view.dtype, run_dtype=conf.run.dtype, state_vectors=vectors)
    units = _units(problem)
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
    return [
        ("params", "the parameters in run.dtype, and in the blocks' dtype", part.parameters),
        ("state", f"optimizer state: {vectors} vectors ({conf.optimizer.name})", part.optimizer),
        ("gradients", f"gradients in flight on the driver: {flying}", sums),
        ("slot", f"sums of a slot: a block's gradient and {height(units) + 1} levels of the tree",
         gradients + levels),
        ("block", f"a block of {block} rows: X, activations, deltas", X + part.activations + part.deltas),
        ("rows", "data.memory: decoded blocks and buffers of each process", conf.data.memory),
    ]  # fmt: skip


def _model_part(problem: Problem, layers: ModelTable) -> dict[str, Any]:
    rows: list[list[Any]] = [
        [row.name, row.kind, " x ".join(map(str, row.shape)), row.parameters, row.multiply_adds]
        for row in layers.layers
    ]
    rows.append(["total", problem.model.loss.name, "", layers.parameters, layers.multiply_adds])
    return {"title": "model", "columns": ["layer", "kind", "shape", "parameters", "multiply-adds a row"], "rows": rows}


def _cost_part(cost: dict[str, int], slots: int, cut: Traffic | None) -> dict[str, Any]:
    rows = [
        ["multiply-adds, forward and backward", si(cost["multiply_adds"])],
        [f"messages ({slots} slots, at most {cost['units']} units)", str(cost["messages"])],
        ["bytes from the driver, at most", f"{si(cost['bytes_down'])}B"],
        ["bytes to the driver, at most", f"{si(cost['bytes_up'])}B"],
    ]
    return {"title": "a step" if cut else "a round", "columns": ["what", "figure"], "rows": rows}


def _memory_part(memory: list[tuple[str, str, int]]) -> dict[str, Any]:
    rows = [[name, f"{si(size)}B", meaning] for name, meaning, size in memory]
    return {"title": "memory of a process", "columns": ["part", "bytes", "meaning"], "rows": rows}


def _work(conf: Conf, problem: Problem, cost: dict[str, int], slots: int) -> Round:
    """What a synchronous round does, for the cost model."""
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


def _predicted(work: Round, steps: int) -> str:
    """Seconds of a round by the cost model, and where they go."""
    found = parts(work, FITTED)
    total = sum(found.values())
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in found.items() if value > 0.005 * total)
    return (
        f"prediction: {1e3 * total:.3g} ms a round with the rows in memory ({shares}), {steps * total:.3g} s an epoch; "
        f"at most {best_slots(work, FITTED):,} slots pay off (rates of docs/scaling.md)"
    )


def _messages(conf: Conf, work: Round, slots: int) -> list[str]:
    """A warning where the messages of a ticket take longer than its Map, with what to raise, and about how far."""
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


def _schedule(conf: Conf, problem: Problem) -> list[str]:
    """The rule with its numbers, its values along the run and the two conditions."""
    spec, steps = conf.schedule, problem.plan.steps_per_epoch
    last = _last_step(conf, problem)
    keys = schedule_keys(conf)
    known = optimizer(conf.optimizer.name)
    if spec.name in SEARCHES:
        search = SEARCHES[spec.name](**{k: keys[k] for k in keys_of(SEARCHES[spec.name])})
        return [f"optimizer: {conf.optimizer.name}: {known.formula}", f"schedule: {spec.name}: {search.formula}"]
    rate, notes = known.learning_rate, []
    if spec.learning_rate == "auto":
        keys["learning_rate"] = None
        notes = [f"learning_rate: auto: found by short trials at the start; shown with {conf.optimizer.name}'s default"]
    length, tick = span(problem.plan, last, spec.unit)
    rule = build_schedule(spec.name, keys, default_rate=rate, default_period=length, tick=tick)
    stages = problem.plan.stages
    points = {"at the first step": 0, "after one epoch": steps}
    if last is not None:
        points["at the last step"] = max(0, last - 1)

    def eta(step: int) -> float:
        epoch = stages.epochs_until(step)
        rows = problem.plan.at(int(epoch)).batch_rows(0)
        return rule(step if spec.unit == "step" else epoch) * batch_rate(conf, rows)

    values = ", ".join(f"{eta(k):.4g} {name}" for name, k in points.items())
    if spec.scaling != "none":
        factor = batch_rate(conf, problem.plan.batch_rows(0))
        notes.append(
            f"scaling: {spec.scaling} from batches of {spec.base_batch:,} rows: {factor:.4g} times the rate for "
            f"{problem.plan.batch_rows(0):,} rows"
        )
    return [
        f"optimizer: {conf.optimizer.name}: {known.formula}",
        f"schedule: {spec.name} in {spec.unit}s: {rule.formula}; {values}",
        f"convergence: {convergence(rule)}",
        *notes,
    ]


def _last_step(conf: Conf, problem: Problem) -> int | None:
    """Number of steps of the run, where steps or epochs limit it."""
    stop, stages = conf.stop, problem.plan.stages
    limits = [stop.steps, None if stop.epochs is None else stages.steps_until(stop.epochs)]
    return min((limit for limit in limits if limit is not None), default=None)


def _growth(conf: Conf, problem: Problem) -> list[str]:
    """The batch of each stage that the run reaches."""
    stages = problem.plan.stages
    if stages.growth is None:
        return []
    last = _last_step(conf, problem)
    reached = stages.last if last is None else stages.stage(int(stages.epochs_until(max(0, last - 1))))
    told = [
        f"{stages.batch(k):,} rows from epoch {stages.first(k) + 1} ({stages.steps(k):,} steps an epoch)"
        for k in range(reached + 1)
    ]
    if len(told) > _STAGES:
        told[_STAGES - 1 : -1] = ["..."]
    return [f"batch growth: {', '.join(told)}"]


def _places(conf: Conf, slots: int, renewal: Renewal | None) -> list[str]:
    where = f"backend {conf.backend.name}, {slots} slots, device {conf.backend.device}"
    if conf.model.backprop == "driver":
        compute = "forward and backward run on the driver, partition by partition; the workers select and decode rows"
    else:
        compute = "forward and backward run in the Map, where the rows are"
    lines = [f"{where}: {compute}"]
    if conf.strategy.name != "model_parallel" or conf.model.name == "mlp":  # blocks of columns say it themselves
        lines.append(f"strategy {conf.strategy.name}: {_update(conf)}")
    if renewal is not None:
        lines.append(
            f"batchnorm: one round over all rows at the start of each epoch ({renewal.rounds} before the first) "
            "takes the moments inside the model"
        )
    return lines


def _update(conf: Conf) -> str:
    """Say where the update runs, and when."""
    spec = conf.strategy
    if spec.name == "downpour":
        place = "on Dask workers" if spec.shards_on == "workers" else "on the driver"
        shards = f", in {spec.shards:,} shards" if (spec.shards or 1) > 1 else ""
        return f"the update runs {place}{shards}, once a push; plain SGD between pushes, where the rows are"
    local = {
        "local_sgd": "an average of all replicas",
        "easgd": "each pull of a replica and the centre",
        "hogwild": "an average of the processes' vectors",
    }
    if spec.name in local:
        return f"plain SGD runs where the rows are, {local[spec.name]} on the driver"
    return f"the update runs on the driver, once {'a gradient' if spec.name in ('async', 'ssp') else 'a step'}"


def _bottlenecks(layers: ModelTable) -> list[str]:
    """Hidden layers narrower than what comes in and what goes out."""
    rows = layers.layers
    return [
        f"warning: {row.name} is a bottleneck: {row.outputs} units between {row.inputs} and {after.outputs}"
        for row, after in itertools.pairwise(rows)
        if row.outputs < min(row.inputs, after.outputs)
    ]
