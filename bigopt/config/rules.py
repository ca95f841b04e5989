"""What one key alone cannot tell: names, keys that belong together, and what null means under the chosen names.

`resolve` takes a merged conf and returns it checked and filled in. Everything refused here has the place of the key
that is to blame. Names, keys and values that are specified but not built yet are refused as such ("... is not available
in this version"), so that a conf written for a later version says why it does not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bigopt.config import across, names, strategy, values
from bigopt.config.reader import Node
from bigopt.core.errors import ConfError
from bigopt.core.names import nearest

if TYPE_CHECKING:
    from bigopt.config.layers import Conf

_CLASSIFY = ("logistic", "softmax", "perceptron", "svm")


def known(path: str, node: Node) -> None:
    """Refuse a name that no version has, on whatever layer it stands."""
    group, _, key = path.rpartition(".")
    table: Mapping[str, object] | None = names.VALUES.get(path)
    if key == "name":
        table = names.GROUPS.get(group) or (names.COMPRESSIONS if group == "strategy.compression" else None)
    if table is None or node.value is None or node.value in table:
        return
    family = group.rpartition(".")[2] if key == "name" else key
    message = f"{path} is '{node.value}', an unknown {family}"
    raise ConfError(message, where=node.where, hint=nearest(str(node.value), table))


def resolve(conf: Conf) -> Conf:
    """Return a merged conf checked and filled in.

    Raises
    ------
    ConfError
        A name or value that is not available, a key that its group's name does not use, keys that contradict.
    """
    conf = _own_optimizer(conf)
    _check_available(conf)
    _check_used(conf)
    strategy.check(conf)
    _check_data(conf)
    _check_model(conf)
    _check_l1(conf)
    _check_search(conf)
    _check_stop(conf)
    conf = _fill(conf)
    _check_batch(conf)
    across.check(conf)
    return _check_rate(conf)


def _check_available(conf: Conf) -> None:
    for group, table in names.GROUPS.items():
        name = values.get(conf, f"{group}.name")
        if not table[name].available:
            raise conf.error(f"{group}.name", f"{group}.name: " + names.later(f"{group} '{name}'"), _available(table))
    for path, choices in names.VALUES.items():
        value = values.get(conf, path)
        if value is not None and not choices[value]:
            raise conf.error(
                path, names.later(f"{path} '{value}'"), f"one of {', '.join(n for n, ok in choices.items() if ok)}"
            )
    if conf.model.init not in names.INIT_RULES:
        _check_init(conf)


def _check_init(conf: Conf) -> None:
    text = conf.model.init
    hint = nearest(text, names.INIT_RULES)
    if Path(text).is_dir() or text.endswith(".npy"):
        return
    raise conf.error("model.init", f"model.init '{text}' is neither a rule, nor a run directory, nor a .npy file", hint)


def _available(table: Mapping[str, names.Name]) -> str:
    return f"one of {', '.join(n for n, entry in table.items() if entry.available)}"


def unused(conf: Conf) -> Iterator[tuple[str, str]]:
    """Yield (group, path) of each key that is set and that the chosen name of its group does not use."""
    for group, table in names.GROUPS.items():
        uses = {"name", *table[values.get(conf, f"{group}.name")].uses, *names.COMMON.get(group, ())}
        for path in values.leaves():
            parts = path.split(".")
            if parts[0] == group and parts[1] not in uses and values.get(conf, path) != values.default(path):
                yield group, path
    codec = names.COMPRESSIONS.get(conf.strategy.compression.name or "", names.Name())
    if conf.strategy.compression.fraction is not None and "fraction" not in codec.uses:
        yield "strategy.compression", "strategy.compression.fraction"
    if conf.strategy.compression.name is None and not conf.strategy.compression.error_feedback:
        yield "strategy.compression", "strategy.compression.error_feedback"


def _check_used(conf: Conf) -> None:
    for group, path in unused(conf):
        if group in names.STRICT_GROUPS or group == "strategy.compression":
            name = values.get(conf, f"{group}.name")
            table = names.GROUPS.get(group)
            uses = [*table[name].uses] if table else []
            takes = f"it uses {', '.join(uses)}" if uses else "it takes no keys"
            who = f"{group} '{name}'" if name else f"{group} without a name"
            raise conf.error(path, f"{path} is not used by {who}", takes if table else "")


def _own_optimizer(conf: Conf) -> Conf:
    """Give a strategy its own optimizer where no layer above base names one."""
    from bigopt.config.layers import fill

    own = names.OWN_OPTIMIZER.get(conf.strategy.name)
    if conf.strategy.solver == "dual":
        own = "gd"
    if own is None or "optimizer.name" in conf.origins:
        return conf
    return fill(conf, {"optimizer.name": own}, f"strategy {conf.strategy.name}")


def _check_data(conf: Conf) -> None:
    data = conf.data
    targets = () if data.target is None else (data.target,) if isinstance(data.target, str) else data.target
    for path, columns in (("data.target", targets), ("data.features", data.features or ())):
        twice = next((c for i, c in enumerate(columns) if c in columns[:i]), None)
        if twice is not None:
            raise conf.error(path, f"{path} names '{twice}' twice")
    for path, column in [("data.target", t) for t in targets] + ([("data.weight", data.weight)] if data.weight else []):
        if data.features and column in data.features:
            raise conf.error("data.features", f"'{column}' is both in data.features and {path}", "leave it out of one")
    if data.weight is not None and data.weight in targets:
        raise conf.error("data.weight", f"'{data.weight}' is both data.weight and data.target")
    if data.classes is not None:
        _check_classes(conf, data.classes)


def _check_classes(conf: Conf, classes: tuple[object, ...]) -> None:
    if len(classes) < 2:
        raise conf.error("data.classes", f"data.classes names {len(classes)} of at least two classes")
    kinds = {"text" if isinstance(c, str) else "boolean" if isinstance(c, bool) else "number" for c in classes}
    if len(kinds) > 1:
        raise conf.error("data.classes", f"data.classes mixes {' and '.join(sorted(kinds))}", "labels are of one kind")
    twice = next((c for i, c in enumerate(classes) if c in classes[:i]), None)
    if twice is not None:
        raise conf.error("data.classes", f"data.classes names {values.shown(twice)} twice")
    if conf.data.task == "regression":
        raise conf.error("data.classes", "data.classes under data.task: regression", "leave one of them out")


def _check_model(conf: Conf) -> None:
    model, task = conf.model, conf.data.task
    fitting = names.LOSSES_OF.get(model.name)
    if fitting is not None and model.loss is not None and model.loss not in fitting:
        raise conf.error(
            "model.loss", f"{model.name} has no loss '{model.loss}'", f"one of {', '.join(fitting)}, or the mlp"
        )
    wanted = None if fitting is None else "classification" if model.name in _CLASSIFY else "regression"
    if task is not None and wanted is not None and task != wanted:
        raise conf.error("data.task", f"data.task: {task}, but {model.name} is for {wanted}")
    if task == "regression" and model.loss is not None and model.loss not in names.REGRESSION_LOSSES:
        raise conf.error("model.loss", f"loss '{model.loss}' under data.task: regression", "squared or huber")
    if isinstance(model.groups, tuple) and len(model.groups) - len(model.hidden) not in (0, 1):
        raise conf.error(
            "model.groups",
            f"model.groups has {len(model.groups)} numbers for {len(model.hidden) + 1} layers",
            "one number for all hidden layers, or a list with one for each layer, with or without the output",
        )


def _check_stop(conf: Conf) -> None:
    stop = conf.stop
    if stop.epochs is None and stop.steps is None and stop.seconds is None:
        limits = sorted(("stop.epochs", "stop.steps", "stop.seconds"), key=lambda p: conf.origin(p) != "command line")
        where = next((p for p in limits if p in conf.origins), "stop.epochs")
        raise conf.error(
            where, "nothing ends the run: stop.epochs, stop.steps and stop.seconds are all null", "set one"
        )
    for metric in stop.target_metric or {}:
        if metric not in names.METRICS:
            raise conf.error(
                "stop.target_metric",
                f"stop.target_metric has an unknown metric, '{metric}'",
                nearest(metric, names.METRICS),
            )
    if stop.target_metric is not None and len(stop.target_metric) != 1:
        raise conf.error(
            "stop.target_metric",
            f"stop.target_metric has {len(stop.target_metric)} metrics, expected one",
            "such as {accuracy: 0.9}",
        )


def _check_l1(conf: Conf) -> None:
    if conf.model.l1 and not names.OPTIMIZERS[conf.optimizer.name].l1:
        takers = ", ".join(n for n, entry in names.OPTIMIZERS.items() if entry.l1)
        raise conf.error("model.l1", f"optimizer '{conf.optimizer.name}' has no l1 penalty", f"one of {takers}")


def _check_search(conf: Conf) -> None:
    """Refuse what does not go with a line search in every step."""
    optimizer, schedule = conf.optimizer.name, conf.schedule.name
    if names.SCHEDULES[schedule].searches and optimizer not in names.SEARCHERS:
        message = f"schedule '{schedule}' searches along the gradient, which optimizer '{optimizer}' does not follow"
        own = names.OPTIMIZERS[optimizer].searches
        hint = f"{optimizer} has a line search of its own" if own else f"optimizer {' or '.join(names.SEARCHERS)}"
        raise conf.error("schedule.name", message, hint)
    who = next(
        (
            f"{group} '{name}'"
            for group, name, table in (
                ("optimizer", optimizer, names.OPTIMIZERS),
                ("schedule", schedule, names.SCHEDULES),
            )
            if table[name].searches
        ),
        None,
    )
    if who is None:
        return
    for path in (f"optimizer.{key}" for key in names.COMMON["optimizer"]):
        if values.get(conf, path) is not None and values.get(conf, path) is not False:
            raise conf.error(path, f"{path} does not go with the line search of {who}", "leave it at null")
    if conf.schedule.learning_rate == "auto":
        message = f"learning_rate: auto, but {who} finds every step by a line search"
        raise conf.error("schedule.learning_rate", message, "leave it at null")
    if conf.model.l1 and optimizer != "lbfgs":
        raise conf.error(
            "model.l1", f"the line search of {who} has no l1 penalty", "lbfgs (OWL-QN), or a plain schedule with gd"
        )
    if optimizer == "newton" and conf.model.name == "mlp":
        raise conf.error(
            "optimizer.name", "newton needs the Hessian, which only the linear family forms", "lbfgs takes any model"
        )


def _fill(conf: Conf) -> Conf:
    """Give every null that names alone decide its value."""
    from bigopt.config.layers import build, values_of

    settings, origins = values_of(conf), dict(conf.origins)

    def fill(path: str, value: object, why: str) -> None:
        if settings[path] is None and value is not None:
            settings[path] = values.convert(path, Node(value, why))
            origins[path] = f"default of {why}"

    optimizer, schedule = names.OPTIMIZERS[conf.optimizer.name], names.SCHEDULES[conf.schedule.name]
    for key, value in names.STRATEGIES[conf.strategy.name].uses.items():
        if key != "compression":
            fill(f"strategy.{key}", value, conf.strategy.name)
    for key, value in names.COMPRESSIONS.get(conf.strategy.compression.name or "", names.Name()).uses.items():
        fill(f"strategy.compression.{key}", value, f"compression {conf.strategy.compression.name}")
    for key, value in optimizer.uses.items():
        fill(f"optimizer.{key}", value, conf.optimizer.name)
    for key, value in schedule.uses.items():
        fill(f"schedule.{key}", value, conf.schedule.name)
    fill("schedule.learning_rate", optimizer.learning_rate, conf.optimizer.name)
    if conf.schedule.warmup is not None:
        fill("schedule.start_factor", names.START_FACTOR, "a warm-up")
    full = optimizer.full_batch or schedule.full_batch
    size = "full" if full else across.DEFAULT_BATCH
    fill("batch.size", size, conf.optimizer.name if full else "mini-batch optimizers")
    fitting = names.LOSSES_OF.get(conf.model.name)
    if fitting is not None:
        fill("model.loss", fitting[0], conf.model.name)
    conf = build(settings, origins, conf.notices)
    for path, value in across.filled(conf).items():
        settings[path] = value
        origins.setdefault(path, f"default of schedule.scaling: {conf.schedule.scaling}")
    notices = [*conf.notices, *_notices(conf)]
    return build(settings, origins, notices)


def _notices(conf: Conf) -> Iterator[str]:
    for group, path in unused(conf):
        if group == "model":
            yield f"{path} ({conf.origin(path)}) is not used by {conf.model.name}"
    if conf.model.huber_delta != values.default("model.huber_delta") and conf.model.loss != "huber":
        yield f"model.huber_delta ({conf.origin('model.huber_delta')}) is used by the huber loss only"


def _check_batch(conf: Conf) -> None:
    if conf.batch.size == "full":
        return
    for group, table in (("optimizer", names.OPTIMIZERS), ("schedule", names.SCHEDULES)):
        name = values.get(conf, f"{group}.name")
        if table[name].full_batch:
            raise conf.error(
                "batch.size",
                f"{group} '{name}' takes all rows in every step, but batch.size is {conf.batch.size}",
                "write batch.size: full" + (", or optimizer sgd for mini-batches" if name == "gd" else ""),
            )


def _check_rate(conf: Conf) -> Conf:
    rate, low = conf.schedule.learning_rate, conf.schedule.eta_min
    if conf.schedule.start_factor is not None and conf.schedule.warmup is None:
        raise conf.error("schedule.start_factor", "schedule.start_factor without a warm-up", "set schedule.warmup")
    if isinstance(rate, float) and low is not None and low > rate:
        raise conf.error("schedule.eta_min", f"schedule.eta_min {low:g} is above learning_rate {rate:g}")
    return conf


def describe_defaults(conf: Conf) -> list[str]:
    """Return one line for each null that was filled in: ``schedule.learning_rate = 0.001 (default of adam)``."""
    return [
        f"{path} = {values.shown(values.get(conf, path))} ({conf.origins[path]})"
        for path in values.leaves()
        if conf.origins.get(path, "").startswith("default of ")
    ]


def choose_backend(conf: Conf, *, under_spark: bool) -> tuple[str, str]:
    """Return the backend's name and a notice ("" where there is nothing to say).

    Parameters
    ----------
    conf : Conf
    under_spark : bool
        Whether spark-submit started this process.

    Raises
    ------
    ConfError
        ``local`` or ``dask`` asked for on the command line under spark-submit.
    """
    name = conf.backend.name
    if name == "auto":
        return ("spark", "backend spark: started by spark-submit") if under_spark else ("local", "")
    if not under_spark or name == "spark":
        return name, ""
    where = conf.origin("backend.name")
    if where == "command line":
        raise conf.error(
            "backend.name", f"backend.name={name} under spark-submit", "leave it out, or start it with python"
        )
    return "spark", f"backend.name: {name} ({where}) gives way to spark: started by spark-submit"
