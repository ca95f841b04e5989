"""Which batches a conf asks for, and how the learning rate follows them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bigopt.data.growth import Growth
from bigopt.data.lanes import choose_lanes, lanes_within
from bigopt.data.plan import Plan
from bigopt.data.view import DataView
from bigopt.facts import Facts
from bigopt.optim.schedules import batch_factor

if TYPE_CHECKING:
    from bigopt.config import Conf


def build_plan(conf: Conf, view: DataView, facts: Facts, notes: list[str]) -> Plan:
    """Return the sampler of a conf; what null became is appended to `notes`.

    Raises
    ------
    ConfError
        Lanes or a batch that do not go with the sampling or the memory.
    """
    counts = facts.train.counts
    n = int(counts.sum())
    size = None if conf.batch.size == "full" else conf.batch.size
    if size is not None and size > n:
        notes.append(f"warning: batch.size {size} is more than the {n} rows; every step uses all rows")
        size = None
    sampling: Any = conf.batch.sampling  # checked by the conf: a name of `Sampling`, or auto
    row_bytes = view.row_bytes
    if sampling == "auto":
        room = max(conf.data.memory, 0 if conf.data.scratch is None else conf.data.scratch.size)
        sampling = facts.sampling or ("permuted" if n * row_bytes <= room else "block")
        if size is not None:
            notes.append(f"batch.sampling: {sampling}")
    used = int(np.count_nonzero(counts))
    lanes, most_lanes = conf.batch.lanes, None
    if sampling in ("subset", "bernoulli", "replacement"):
        if lanes:
            raise conf.error("batch.lanes", f"sampling '{sampling}' draws from all partitions, it has no lanes")
        lanes = 0
    growth: Growth | None = None
    if size is not None and lanes is None:
        if sampling == "block":
            largest = max(view.decoded_bytes(i) for i in range(view.partitions))
            most_lanes = math.floor(conf.data.memory / (3 * largest))
        lanes = lanes_within(choose_lanes(size, used), counts, most_lanes)
        notes.append(f"batch.lanes: {lanes or 'off'}" + ("" if conf.batch.growth is None else " in the first epoch"))
    spec: Any = conf.batch.growth  # a number was made a mapping by the conf
    if spec is not None:
        most = None if isinstance(spec.max, str) else spec.max
        chosen = conf.batch.lanes is None and sampling in ("permuted", "block")
        growth = Growth(spec.factor, spec.every, most, chosen, most_lanes)
    plan = Plan(counts, size, lanes or 0, conf.run.seed, sampling, growth)
    batch_bytes = plan.stages.batch(plan.stages.last) * row_bytes
    if conf.model.backprop == "driver" and batch_bytes > conf.data.memory:
        raise conf.error(
            "model.backprop",
            f"a batch of {batch_bytes / 1e6:.0f} MB would be sent to the driver, data.memory is "
            f"{conf.data.memory / 1e6:.0f} MB",
            "model.backprop=map, or a smaller batch.size",
        )
    return plan


def schedule_keys(conf: Conf) -> dict[str, Any]:
    """Return the keys of ``schedule`` that are a schedule's own."""
    others = ("name", "unit", "scaling", "base_batch", "M")
    return {f: getattr(conf.schedule, f) for f in conf.schedule.__struct_fields__ if f not in others}


def span(plan: Plan, length: int | None, unit: str) -> tuple[float | None, float]:
    """Return the length of a run of `length` steps, and its last step, in the schedule's unit."""
    if unit == "step":
        return (None if length is None else float(length)), 1.0
    stages = plan.stages
    if length is None:
        return None, 1.0 / stages.steps(0)
    last = int(stages.epochs_until(max(0, length - 1)))
    return stages.epochs_until(length), 1.0 / stages.steps(stages.stage(last))


def batch_rate(conf: Conf, rows: int) -> float:
    """Return what ``schedule.scaling`` multiplies the rate by for batches of that many rows."""
    spec = conf.schedule
    base = rows if spec.base_batch is None else spec.base_batch
    return batch_factor(spec.scaling, base, rows, spec.M)
