"""model_parallel: one model whose parameters are dealt to several workers; who deals them depends on the model.

The linear family is cut into blocks of columns (`bigopt.strategies.columns_parallel`): a worker holds its columns of
the rows and the parameters that go with them. The layers of an MLP are cut by units or dealt whole
(`bigopt.strategies.layers_parallel`). This module only chooses the machine by the kind of model.
"""

from __future__ import annotations

from typing import Any

from bigopt.core.errors import ConfError
from bigopt.models.linear import LinearModel
from bigopt.models.mlp import MLP
from bigopt.strategies import columns_descent, columns_parallel, columns_workers, dual, layers_parallel
from bigopt.strategies.base import Array, Machine, Setting


def start(setting: Setting, params: Array) -> Any:
    """Return the state before step 1; params of shape (p,) in ``run.dtype``."""
    return _dealer(setting).start(setting, params)


def machine(setting: Setting, state: Any) -> Machine:
    """Return the machine for the kind of model; it takes over the state's buffers."""
    found: Machine = _dealer(setting).machine(setting, state)
    return found


def _dealer(setting: Setting) -> Any:
    """Return the module that deals models of this kind."""
    model = setting.blocks().model
    solver = setting.options.get("solver")
    if isinstance(model, LinearModel) and solver in ("coordinate", "dual"):
        return columns_descent if solver == "coordinate" else dual
    if isinstance(model, LinearModel):
        return columns_workers if setting.options["update_on"] == "worker" else columns_parallel
    if isinstance(model, MLP):
        return layers_parallel
    name = type(model).__name__
    raise ConfError(f"model_parallel does not deal a {name}", where="strategy.name", hint="strategy sync")
