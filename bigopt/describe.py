"""What a conf will do, before it does it: layers, schedule, cost of a round, memory, where the update runs.

Everything comes from the conf and the dataset's metadata. Labels are read only where neither conf nor manifest names
the classes; moments are not, so nothing here depends on the features' values. This room puts the sentences and tables
together; each subject has one of its own: ``describe_cost``, ``describe_schedule``, ``describe_columns`` and
``describe_cut`` (cut models), ``describe_codes`` (compression).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bigopt.core.sums import Moments
from bigopt.data.source import Dataset
from bigopt.describe_codes import codes_lines, codes_of
from bigopt.describe_columns import columns_lines, columns_traffic
from bigopt.describe_cost import (
    among_workers,
    cost_part,
    encoding_lines,
    memory_of,
    memory_part,
    message_lines,
    predicted,
    round_cost,
    round_work,
)
from bigopt.describe_cut import cut_lines, deal_of, exchanged, traffic_of
from bigopt.describe_schedule import growth_lines, schedule_lines
from bigopt.facts import Datasets, Facts, Side, is_classification, open_data, side_view
from bigopt.models.counts import count_shapes
from bigopt.models.table import ModelTable, model_table
from bigopt.problem import Problem, build
from bigopt.strategies.base import Renewal
from bigopt.strategies.layers_deal import Deal, Traffic

if TYPE_CHECKING:
    from bigopt.config import Conf

_HASHED_ROWS = 10**7


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
    cost = round_cost(conf, problem, layers, rows, slots)
    codes = codes_of(conf, problem, slots)
    if codes is not None:
        cost["bytes_up"] = codes.replicas * codes.code
    memory = memory_of(conf, problem, rows, slots)
    work = round_work(conf, problem, cost, slots)
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
        *growth_lines(conf, problem),
        *schedule_lines(conf, problem),
        *_places(conf, slots, problem.renewal()),
        *codes_lines(codes, conf),
        *_cut(conf, problem, deal, traffic),
        *([] if traffic else predicted(work, steps, among=among_workers(conf, problem, slots))),
        *message_lines(conf, work, slots),
        *encoding_lines(conf, problem, rows),
        *_bottlenecks(layers),
        *(line for line in (*data.train.warnings, *problem.notes, *conf.notices) if line),
        *(f"default: {line}" for line in describe_defaults(conf)),
    ]
    return {
        "tables": [_model_part(problem, layers), cost_part(cost, slots, traffic), memory_part(memory)],
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


def _sparsity(dataset: Dataset) -> str:
    """Say how many values sparse rows store."""
    if not dataset.sparse:
        return ""
    return f"{dataset.nonzeros:,} values in sparse rows ({dataset.nonzeros / max(1, dataset.rows):.1f} a row), "


def _model_part(problem: Problem, layers: ModelTable) -> dict[str, Any]:
    rows: list[list[Any]] = [
        [row.name, row.kind, " x ".join(map(str, row.shape)), row.parameters, row.multiply_adds]
        for row in layers.layers
    ]
    rows.append(["total", problem.model.loss.name, "", layers.parameters, layers.multiply_adds])
    return {"title": "model", "columns": ["layer", "kind", "shape", "parameters", "multiply-adds a row"], "rows": rows}


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
