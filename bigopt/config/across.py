"""Keys of several groups that depend on each other: growing batches and their rates, divergence, normalised layers.

`check` refuses what contradicts, `filled` gives what null means. Both act on a conf whose other keys are checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigopt.config import names, values
from bigopt.config.table import GrowthConf

if TYPE_CHECKING:
    from bigopt.config.layers import Conf

BETWEEN_STEPS = ("sync", "backup", "model_parallel", "hybrid")
"""Strategies in which nothing is under way between two steps."""

DEFAULT_BATCH = 128
"""Rows that ``batch.size: null`` means for mini-batch optimizers, and that default rates are meant for."""


def filled(conf: Conf) -> dict[str, Any]:
    """Return the values of these keys that null, or a short form, stands for."""
    found: dict[str, Any] = {}
    growth = conf.batch.growth
    if isinstance(growth, float):
        found["batch.growth"] = GrowthConf(factor=growth)
    if conf.schedule.scaling != "none" and conf.schedule.base_batch is None:
        size = conf.batch.size
        found["schedule.base_batch"] = size if growth is not None and isinstance(size, int) else DEFAULT_BATCH
    return found


def check(conf: Conf) -> None:
    """Refuse what does not go together.

    Raises
    ------
    ConfError
    """
    _check_growth(conf)
    _check_scaling(conf)
    if conf.run.on_divergence == "halve_rate":
        who = _searcher(conf)
        if who:
            message = f"run.on_divergence: halve_rate, but {who} finds every step by a line search"
            raise conf.error("run.on_divergence", message, "leave it at stop")
        _check_strategy(conf, "run.on_divergence")
    if conf.model.batchnorm and conf.model.name == "mlp":
        _check_batchnorm(conf)


def _searcher(conf: Conf) -> str:
    """Return who searches in every step, or nothing."""
    if names.OPTIMIZERS[conf.optimizer.name].searches:
        return f"optimizer '{conf.optimizer.name}'"
    return f"schedule '{conf.schedule.name}'" if names.SCHEDULES[conf.schedule.name].searches else ""


def _check_strategy(conf: Conf, path: str) -> None:
    if conf.strategy.name not in BETWEEN_STEPS:
        message = f"{path} does not go with strategy '{conf.strategy.name}', which has steps under way at any time"
        raise conf.error(path, message, f"strategy {' or '.join(BETWEEN_STEPS)}")


def _check_growth(conf: Conf) -> None:
    growth, size = conf.batch.growth, conf.batch.size
    if growth is None:
        return
    _check_strategy(conf, "batch.growth")
    if size == "full":
        raise conf.error("batch.growth", "batch.growth, but batch.size is full", "a batch.size to begin with")
    most = growth.max if isinstance(growth, GrowthConf) else "full"
    if isinstance(size, int) and isinstance(most, int) and most <= size:
        raise conf.error("batch.growth", f"batch.growth.max {most} is not above batch.size {size}", "a larger one")


def _check_scaling(conf: Conf) -> None:
    schedule = conf.schedule
    for key in ("M", "base_batch"):
        wanted = "critical" if key == "M" else "linear, sqrt or critical"
        if getattr(schedule, key) is not None and schedule.scaling not in wanted:
            path = f"schedule.{key}"
            raise conf.error(path, f"{path} under schedule.scaling: {schedule.scaling}", f"set scaling to {wanted}")
    if schedule.scaling == "none":
        return
    who = _searcher(conf)
    if who:
        message = f"schedule.scaling: {schedule.scaling}, but {who} finds every step by a line search"
        raise conf.error("schedule.scaling", message, "leave it at none")
    if schedule.scaling == "critical" and schedule.M is None:
        raise conf.error(
            "schedule.scaling",
            "schedule.scaling: critical needs the noise scale schedule.M",
            "bigopt diagnose estimates it (b_M), or linear or sqrt",
        )
    if schedule.learning_rate == "auto" and conf.batch.growth is None:
        message = f"schedule.scaling: {schedule.scaling}, but learning_rate: auto is found for the batch as it is"
        raise conf.error("schedule.scaling", message, "scaling: none, or batches that grow")


def _check_batchnorm(conf: Conf) -> None:
    shown = f"model.batchnorm: {values.shown(conf.model.batchnorm)}"
    _check_strategy(conf, "model.batchnorm")
    if conf.optimizer.name == "lbfgs":
        raise conf.error(
            "model.batchnorm",
            f"{shown} moves the moments at the start of every epoch, which with full batches is every step: lbfgs "
            "could never keep a pair of steps",
            "another optimizer, or model.batchnorm=false",
        )
    if conf.optimizer.average not in (None, False):
        raise conf.error(
            "optimizer.average",
            f"optimizer.average does not go with {shown}: the moments are the parameters', not their average's",
            "leave it at null",
        )
