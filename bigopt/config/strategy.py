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
    _check_compression(conf)
    _check_shards(conf)
    _check_reduce(conf)
    if conf.strategy.name in ("model_parallel", "hybrid"):
        _check_blocks(conf)
    if conf.strategy.outer is not None:
        _check_outer(conf, conf.strategy.outer)


def _check_compression(conf: Conf) -> None:
    """Refuse what does not go with gradients that arrive as codes."""
    name, where = conf.strategy.compression.name, "strategy.compression.name"
    if name is None:
        if conf.strategy.name == "sync" and conf.strategy.replicas is not None:
            message = "strategy.replicas is not used by strategy 'sync' without compression"
            raise conf.error("strategy.replicas", message, "set strategy.compression.name, or leave it at null")
        return
    optimizer, schedule = names.OPTIMIZERS[conf.optimizer.name], names.SCHEDULES[conf.schedule.name]
    if optimizer.searches or schedule.searches:
        asks = f"{conf.optimizer.name} with {conf.schedule.name} needs exact sums"
        raise conf.error(where, f"compression takes methods of one gradient a step, {asks}", "leave it at null")
    uses, options = names.STRATEGIES[conf.strategy.name].uses, conf.strategy
    push, fetch = (getattr(options, key) or uses.get(key) for key in ("n_push", "n_fetch"))
    if push != fetch:
        message = f"compressed pushes are fetches too, but n_push is {push} and n_fetch {fetch}"
        raise conf.error("strategy.n_fetch", message, f"strategy.n_fetch={push}")
    if conf.strategy.shards_on == "workers":
        message = "compressed pushes are decoded on the driver, but strategy.shards_on=workers sends none there"
        raise conf.error("strategy.shards_on", message, "strategy.shards_on=driver")
    for path, none, why in (
        ("model.backprop", "map", "rows are sent, not gradients"),
        ("model.batchnorm", False, "the moments inside the model are renewed between steps"),
        ("batch.growth", None, "a replica's share of a batch must stay as it is"),
        ("run.on_divergence", "stop", "its checkpoints repeat steps, at the rate they were made with"),
    ):
        if values.get(conf, path) != none:
            message = f"{path}={values.shown(values.get(conf, path))} does not go with compressed gradients: {why}"
            raise conf.error(path, message, "strategy.compression.name=null")


def _check_reduce(conf: Conf) -> None:
    """Refuse what workers cannot add among themselves: they add whole gradients of one batch."""
    if conf.backend.reduce != "workers":
        return
    who, none = "backend.reduce=workers", None
    for path, needed, why in (
        ("strategy.name", "sync", "workers add the gradients of one batch that all of them share"),
        ("strategy.compression.name", none, "codes are decoded on the driver"),
        ("model.backprop", "map", "rows are sent, not gradients"),
        ("backend.channel", "auto", "workers find each other by the channel"),
    ):
        if values.get(conf, path) != needed:
            message = f"{who} does not go with {path}={values.shown(values.get(conf, path))}: {why}"
            raise conf.error("backend.reduce", message, "backend.reduce=driver")
    if conf.optimizer.name == "newton":
        raise conf.error(
            "backend.reduce", f"{who} adds gradients, and newton asks for Hessians", "backend.reduce=driver"
        )


def _check_shards(conf: Conf) -> None:
    """Refuse what a shard of the parameter server cannot do: it sees its own entries only."""
    if conf.strategy.shards_on == "workers":
        _check_served(conf)
    elif conf.strategy.shards in (None, 1):
        return
    if conf.optimizer.name in names.LAYERWISE:
        message = f"{conf.optimizer.name} looks at whole layers, which strategy.shards={conf.strategy.shards} cut"
        raise conf.error("optimizer.name", message, "strategy.shards=1, or adagrad")
    if conf.optimizer.clip_norm is not None:
        message = f"clip_norm is of the whole gradient, which strategy.shards={conf.strategy.shards} cut"
        raise conf.error("optimizer.clip_norm", message, "strategy.shards=1, or optimizer.clip_value")


def _check_served(conf: Conf) -> None:
    """Refuse what goes with a parameter server on workers only in part: the driver sees neither pushes nor fetches."""
    spec, backend = conf.strategy, conf.backend
    who, here = "strategy.shards_on=workers", "shards_on=driver"
    if backend.name != "dask" or backend.channel == "off":
        found = "backend.channel=off" if backend.name == "dask" else f"backend.name={backend.name}"
        raise conf.error("strategy.shards_on", f"{who} needs the resident workers of Dask, not {found}", here)
    if backend.address is not None and "://" not in backend.address:
        message = f"{who} needs the scheduler's address, to know on which network its workers meet"
        raise conf.error("backend.address", message, "tcp://HOST:PORT")
    n_fetch, n_push = (getattr(spec, key) or names.STRATEGIES["downpour"].uses[key] for key in ("n_fetch", "n_push"))
    if n_fetch % n_push:
        message = f"n_fetch = {n_fetch} is no multiple of n_push = {n_push}, and {who} keeps no gradient between turns"
        raise conf.error("strategy.n_fetch", message, here)
    if spec.replay is not None:
        message = f"{who}: the order of the updates is not the driver's, there is no log to repeat"
        raise conf.error("strategy.replay", message, here)
    if spec.compression.name is not None:
        raise conf.error("strategy.compression.name", f"{who} pushes whole gradients", here)


def _check_blocks(conf: Conf) -> None:
    """Refuse what a model that is cut into blocks does not go with."""
    if conf.model.name == "mlp":
        if conf.strategy.solver not in (None, "gradient"):
            message = f"strategy.solver={conf.strategy.solver} is of linear models"
            raise conf.error("strategy.solver", message, "gradient")
        _check_layers(conf)
        return
    if conf.strategy.name == "hybrid":
        message = f"hybrid cuts the layers of an mlp, and {conf.model.name} has one"
        raise conf.error("model.name", message, "model.name=mlp, or strategy model_parallel")
    if conf.strategy.micro_batches is not None:
        raise conf.error("strategy.micro_batches", "strategy.micro_batches is of the layers of an mlp", "null")
    if conf.strategy.solver == "dual":
        _check_dual(conf)
    else:
        _check_columns(conf)


def _check_layers(conf: Conf) -> None:
    """Refuse what layers that are cut cannot do: a piece sees v of the layer below, and nothing else of it."""
    who, split = "layers that are cut", conf.strategy.split or "units"
    if conf.strategy.update_on == "worker":
        raise conf.error("strategy.update_on", names.later(f"strategy.update_on: worker under {who}"), "driver")
    if conf.strategy.micro_batches is not None and split != "layers":
        message = f"strategy.micro_batches under strategy.split: {split}, where a batch stays whole"
        raise conf.error("strategy.micro_batches", message, "strategy.split=layers")
    for path, none in (
        ("model.groups", None),
        ("model.shortcut", False),
        ("model.batchnorm", False),
        ("model.backprop", "map"),
    ):
        if values.get(conf, path) != none:
            message = f"{path}={values.shown(values.get(conf, path))} does not go with {who}"
            raise conf.error(path, message, "strategy sync")
    if conf.backend.device == "gpu":
        raise conf.error("backend.device", f"{who} are computed on the CPU", "backend.device=cpu")


def _check_coordinate(conf: Conf) -> None:
    """Refuse what a visit of a block does not do: its step is the block's own."""
    who, name = "strategy.solver=coordinate", conf.optimizer.name
    if name not in ("gd", "sgd", "newton"):
        message = f"{who} takes a step along the block's gradient (sgd) or solves for it (newton), not {name}"
        raise conf.error("optimizer.name", message, "optimizer.name=sgd")
    if names.SCHEDULES[conf.schedule.name].searches:
        message = f"{who} takes the schedule's rate, {conf.schedule.name} searches for it"
        raise conf.error("schedule.name", message, "optimizer.name=newton for exact blocks")
    if name == "newton" and conf.model.l1:
        raise conf.error("model.l1", "a block with an l1 penalty is not solved for exactly", "optimizer.name=sgd")
    for path in (f"optimizer.{key}" for key in names.COMMON["optimizer"]):
        if values.get(conf, path) not in (None, False):
            raise conf.error(path, f"{path} does not go with {who}", "leave it at null")
    if conf.strategy.update_on == "worker":
        raise conf.error("strategy.update_on", f"under {who} blocks travel with each visit", "driver")


def _check_dual(conf: Conf) -> None:
    """Refuse what the dual problem is not made for: a step is its own, and w is a sum over the rows."""
    who = "strategy.solver=dual"
    if conf.model.name not in ("linear", "ridge", "logistic"):
        raise conf.error("model.name", f"{who} is for ridge and logistic, not {conf.model.name}", "gradient")
    if conf.model.l2 <= 0.0:
        raise conf.error("model.l2", f"{who} needs a penalty: the dual has no other", "model.l2 above 0")
    if conf.optimizer.name != "gd" or conf.schedule.name != "constant":
        path = "optimizer.name" if conf.optimizer.name != "gd" else "schedule.name"
        raise conf.error(path, f"{who} takes steps of its own, without optimizer and rate", "leave it out")
    for path, none, why in (
        ("model.l1", 0.0, "it is not smooth"),
        ("model.backprop", "map", "rows are never sent"),
        ("strategy.update_on", None, "the driver adds what the groups bring"),
        ("optimizer.average", None, "there is no optimizer"),
        ("optimizer.clip_norm", None, "there is no optimizer"),
        ("optimizer.clip_value", None, "there is no optimizer"),
    ):
        if values.get(conf, path) not in (none, False, "driver"):
            raise conf.error(path, f"{path}={values.shown(values.get(conf, path))} under {who}: {why}", "leave it out")
    if conf.model.intercept:
        message = f"{who} has no intercept: one without a penalty would tie all dual variables together"
        raise conf.error("model.intercept", message, "model.intercept=false, with a column of ones or a centred target")
    if conf.model.init not in names.INIT_RULES:
        raise conf.error("model.init", f"{who} starts at w = 0", "leave it out")
    if conf.backend.device == "gpu":
        raise conf.error("backend.device", f"{who} is computed on the CPU", "backend.device=cpu")


def _check_apart(conf: Conf) -> None:
    """Refuse optimizers that need the whole gradient where each worker updates its own block."""
    who = "strategy.update_on=worker"
    if conf.optimizer.name in names.LAYERWISE:
        message = f"{conf.optimizer.name} looks at whole layers, {who} updates blocks of them"
        raise conf.error("optimizer.name", message, "adam, or strategy.update_on=driver")
    if conf.optimizer.clip_norm is not None:
        message = f"clip_norm is of the whole gradient, {who} sees blocks of it"
        raise conf.error("optimizer.clip_norm", message, "optimizer.clip_value, or strategy.update_on=driver")


def _check_columns(conf: Conf) -> None:
    """Refuse what blocks of columns cannot do: no process sees whole rows, or all parameters of a gradient."""
    who = "blocks of columns"
    if conf.strategy.split is not None:
        raise conf.error("strategy.split", "strategy.split is of the layers of an mlp", "leave it at null")
    if conf.strategy.update_on == "worker" and conf.strategy.solver != "coordinate":
        _check_apart(conf)
    for path, none, why, hint in (
        ("model.whiten", False, "whitening mixes all columns", "model.standardize=true"),
        ("model.backprop", "map", "rows are never sent", "model.backprop=map"),
        ("data.on_bad_rows", "error", "a row that is bad in one block would have to be left out of all", "error"),
        ("data.scratch", None, "whole rows are kept there", "leave it at null"),
    ):
        if values.get(conf, path) != none:
            raise conf.error(path, f"{path}={values.shown(values.get(conf, path))} under {who}: {why}", hint)
    if conf.backend.device == "gpu":
        raise conf.error("backend.device", f"{who} are computed on the CPU", "backend.device=cpu")
    if conf.strategy.solver == "coordinate":
        _check_coordinate(conf)
        return
    optimizer, schedule = names.OPTIMIZERS[conf.optimizer.name], names.SCHEDULES[conf.schedule.name]
    if optimizer.searches or schedule.searches:
        path, name = next(
            (path, name)
            for path, name, entry in (
                ("optimizer.name", conf.optimizer.name, optimizer),
                ("schedule.name", conf.schedule.name, schedule),
            )
            if entry.searches
        )
        raise conf.error(path, f"{name} asks several times a step, {who} give one gradient", "strategy sync")


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
