"""How a linear model is cut and what a step of it sends: what `describe` says of model_parallel's blocks of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bigopt.models.table import si
from bigopt.problem import Problem
from bigopt.strategies.layers_deal import Traffic

if TYPE_CHECKING:
    from bigopt.config import Conf


def columns_traffic(conf: Conf, problem: Problem, slots: int) -> Traffic | None:
    """Return what a step over the first batch sends; None where a linear model is not cut.

    A column of numbers is sent once an order that needs it: so weights and gradients once, residuals and margins once a
    worker that has a block.
    """
    if conf.strategy.name != "model_parallel" or conf.model.name == "mlp":
        return None
    rows, q, p = problem.plan.batch_rows(0), problem.model.outputs, problem.model.layout.size
    value, param = (np.dtype(dtype).itemsize for dtype in (problem.view.dtype, conf.run.dtype))
    if problem.cuts is None:  # dual: w and a number a row down; what is added to w, the gradient and the numbers up
        groups = min(slots, conf.strategy.blocks or slots)
        return Traffic(1, groups, 8 * (groups * p + problem.plan.rows), 8 * (2 * groups * p + problem.plan.rows))
    blocks = len(problem.cuts) - 1
    orders, weights = min(slots, blocks), p * param
    residuals, margins = rows * q * value, orders * rows * q * param + rows * 8
    if conf.strategy.solver == "coordinate":
        return Traffic(
            1 + blocks, orders + blocks, 2 * weights + blocks * residuals, margins + weights + blocks * rows * q * param
        )
    if conf.strategy.update_on == "worker":
        return Traffic(1, orders, orders * residuals, margins)
    return Traffic(2, 2 * orders, weights + orders * residuals, margins + weights)


def columns_lines(traffic: Traffic, conf: Conf, problem: Problem) -> list[str]:
    """Say how the model is cut, where its update runs, and what travels in a step."""
    down, up = f"{si(traffic.down)}B", f"{si(traffic.up)}B"
    if problem.cuts is None:
        return [
            "strategy model_parallel: dual coordinate ascent by groups of rows; the variables move where the rows are, "
            "the driver adds what they change",
            f"a step is a pass over all rows and one round: {down} to the workers (w, dual variables) and {up} back",
        ]
    widths = np.diff(problem.cuts)
    least, most = int(widths.min()), int(widths.max())
    shown = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    cut = f"strategy model_parallel: {len(widths)} blocks of {shown} columns, a worker opens only its own"
    if conf.strategy.solver == "coordinate":
        return [
            f"{cut}; one after the other takes its step where its columns are, the driver keeps the weights",
            f"a step is {traffic.rounds} rounds: {down} to the workers (weights, residuals) and {up} back",
        ]
    if conf.strategy.update_on == "worker":
        return [
            f"{cut}; each updates its own block where it is",
            f"a step is one round: {down} to the workers (the last residual) and {up} back (margins, labels); "
            "the parameters stay",
        ]
    return [
        f"{cut}; the update runs on the driver",
        f"a step is two rounds: {down} to the workers (weights, residuals) and {up} back (margins, labels, gradient)",
    ]
