"""How an MLP is cut and what a step of it sends: what `describe` says of model_parallel and hybrid."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bigopt.backends.ledger import Ledger, Rounds
from bigopt.models.mlp import MLP
from bigopt.models.table import si
from bigopt.problem import Problem
from bigopt.setting import strategy_setting
from bigopt.strategies import hybrid, layers_deal
from bigopt.strategies.layers_deal import Deal, Traffic

if TYPE_CHECKING:
    from bigopt.config import Conf


def deal_of(conf: Conf, problem: Problem, slots: int) -> Deal | None:
    """Return how an MLP is dealt to `slots` workers; None where it is not cut.

    Raises
    ------
    ConfError
        A cut that is not possible, as at the start of a run.
    """
    strategy = conf.strategy
    if strategy.name not in ("model_parallel", "hybrid") or not isinstance(problem.model, MLP):
        return None
    at_start = replace(problem, facts=problem.facts._replace(slots=slots))
    setting = strategy_setting(at_start, conf, Rounds(Ledger(), 0), None, slots=slots)
    deal = hybrid.deal if strategy.name == "hybrid" else layers_deal.deal
    return deal(setting.blocks(), setting.options, setting.plan)


def traffic_of(deal: Deal, conf: Conf, problem: Problem, slots: int) -> Traffic:
    """Return what a step over the first batch sends."""
    values, params = (np.dtype(dtype).itemsize for dtype in (problem.view.dtype, conf.run.dtype))
    return deal.traffic(problem.plan.batch_rows(0), slots, value_bytes=values, param_bytes=params)


def exchanged(deal: Deal, problem: Problem) -> tuple[str, str, int]:
    """Return name, meaning and bytes of what the driver holds of a batch between the stages."""
    size = problem.plan.batch_rows(0) * deal.exchanged() * np.dtype(problem.view.dtype).itemsize
    return "exchanged", "on the driver: what the stages hand on of a batch, at most", size


def cut_lines(deal: Deal, traffic: Traffic, conf: Conf) -> list[str]:
    """Say how the model is cut, and what travels in a step."""
    return [
        f"{conf.strategy.name}: {deal.told()}",
        f"a step is {traffic.rounds} rounds: {si(traffic.down)}B to the workers (parameters once, activations, deltas)"
        f" and {si(traffic.up)}B back (activations, deltas, gradients)",
    ]
