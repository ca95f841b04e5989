"""What goes with a strategy: optimizer, model and keys; refused where they are named, with what to take instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bigopt.config import names, values
from bigopt.core.names import nearest

if TYPE_CHECKING:
    from bigopt.config.layers import Conf


def check(conf: Conf) -> None:
    """Refuse what does not go with the strategy."""
    who, optimizer = f"strategy '{conf.strategy.name}'", conf.optimizer.name
    if conf.strategy.name in names.LOCAL_SGD and optimizer != "sgd":
        raise conf.error("optimizer.name", f"{who} takes plain sgd steps, not {optimizer}", "optimizer.name=sgd")
    if conf.strategy.name in names.REPLICATED:
        for path, none in (("model.l1", 0.0), ("model.backprop", "map"), ("model.batchnorm", False)):
            if values.get(conf, path) != none:
                message = f"{path}={values.shown(values.get(conf, path))} does not go with the local steps of {who}"
                raise conf.error(path, message, "strategy sync")
        for path in (f"optimizer.{key}" for key in names.COMMON["optimizer"]):
            if conf.strategy.name in names.LOCAL_SGD and values.get(conf, path) not in (None, False):
                raise conf.error(path, f"{path} does not go with the plain sgd steps of {who}", "leave it at null")
    _check_shards(conf)
    if conf.strategy.outer is not None:
        _check_outer(conf, conf.strategy.outer)


def _check_shards(conf: Conf) -> None:
    """Refuse what a shard of the parameter server cannot do: it sees its own entries only."""
    if conf.strategy.shards_on == "workers":
        raise conf.error("strategy.shards_on", names.later("strategy.shards_on: workers"), "driver")
    if conf.strategy.shards in (None, 1):
        return
    if conf.optimizer.name in names.LAYERWISE:
        message = f"{conf.optimizer.name} looks at whole layers, which strategy.shards={conf.strategy.shards} cut"
        raise conf.error("optimizer.name", message, "strategy.shards=1, or adagrad")
    if conf.optimizer.clip_norm is not None:
        message = f"clip_norm is of the whole gradient, which strategy.shards={conf.strategy.shards} cut"
        raise conf.error("optimizer.clip_norm", message, "strategy.shards=1, or optimizer.clip_value")


def _check_outer(conf: Conf, outer: Mapping[str, Any]) -> None:
    path, name = "strategy.outer", outer.get("name")
    entry = names.OPTIMIZERS.get(str(name))
    if entry is None or entry.full_batch:
        known = [n for n, other in names.OPTIMIZERS.items() if not other.full_batch]
        raise conf.error(path, f"strategy.outer has no optimizer '{name}'", nearest(str(name), known))
    for key, value in outer.items():
        if key not in ("name", "learning_rate", *entry.uses):
            raise conf.error(path, f"strategy.outer: {name} does not use '{key}'", nearest(key, [*entry.uses]))
        if key != "name" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise conf.error(path, f"strategy.outer: {key} is {values.shown(value)}, expected a number")
