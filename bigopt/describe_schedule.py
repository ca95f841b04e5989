"""What a run's learning rate and batches become along the run: what `describe` says of rule, values and stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bigopt.batches import batch_rate, schedule_keys, span
from bigopt.optim.build import build_schedule
from bigopt.optim.schedules import convergence
from bigopt.optim.search import SEARCHES
from bigopt.optim.table import keys_of, optimizer
from bigopt.problem import Problem

if TYPE_CHECKING:
    from bigopt.config import Conf

_STAGES: Final = 8
"""Stages of growing batches that are named one by one."""


def schedule_lines(conf: Conf, problem: Problem) -> list[str]:
    """Say the rule with its numbers, its values along the run and the two conditions."""
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


def growth_lines(conf: Conf, problem: Problem) -> list[str]:
    """Say the batch of each stage that the run reaches."""
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
