"""hybrid: data parallel over groups of workers, model parallel within a group.

``replicas`` groups of ``blocks`` members each. A batch is cut into one part a group. The early layers, which have much
work and few parameters, are data parallel over the members as well: each takes its share of the group's rows through
all of them. The last pair of dense layers, where most parameters are, is cut by units within the group, every member
seeing all the rows of the group (Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks").
The machine is that of cut layers (`bigopt.strategies.layers_parallel`), with a walk for each group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigopt.data.plan import Plan
from bigopt.models.split import check_splittable, dense_last
from bigopt.strategies.base import Blocks, Setting
from bigopt.strategies.layers_deal import Deal, checked
from bigopt.strategies.layers_parallel import Layers, start
from bigopt.strategies.rounds import SyncState

__all__ = ["deal", "machine", "start"]


def deal(given: Blocks, options: Mapping[str, Any], plan: Plan) -> Deal:
    """Return how the model and the batches are cut.

    Raises
    ------
    ConfError
        A model without layers to cut, more members than units, a batch too small or too large.
    """
    members = options["blocks"]
    groups = options.get("replicas") or max(1, given.slots // members)
    return checked(Deal.of(given, dense_last(check_splittable(given.model), members), groups, plan.seed), given, plan)


def machine(setting: Setting, state: SyncState) -> Layers:
    """Return the machine of ``strategy.name: hybrid``."""
    return Layers(setting, state, deal(setting.blocks(), setting.options, setting.plan))
