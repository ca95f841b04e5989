"""From names and numbers to a method: the only place where a conf's words meet the classes.

Nothing is guessed beyond the documented defaults: unknown names and keys, numbers out of range and keys that the named
optimizer or schedule does not use are refused with the nearest valid name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from bigopt.core import compiled
from bigopt.core.errors import ConfError
from bigopt.core.layout import Layout
from bigopt.core.names import lookup, nearest
from bigopt.optim.clip import ClipNorm, ClipValue
from bigopt.optim.fused import fused
from bigopt.optim.lbfgs import LBFGS
from bigopt.optim.method import FirstOrder, Method, Penalty, Unit
from bigopt.optim.newton import Newton
from bigopt.optim.owlqn import OWLQN
from bigopt.optim.ranges import check_range
from bigopt.optim.schedules import FROM_LENGTH, SCHEDULES, Schedule, Warmup
from bigopt.optim.search import SEARCHERS, SEARCHES, SearchedDescent
from bigopt.optim.table import OPTIMIZERS, SECOND_ORDER, Optimizer, keys_of, optimizer
from bigopt.optim.transform import Chain, Transform

Keys = Mapping[str, Any]
"""Keys of a conf's group with their values; None stands for the default."""

NONE: Final[Keys] = MappingProxyType({})

CLIPS: Final[Mapping[str, Callable[[float], Transform[Any]]]] = MappingProxyType(
    {"clip_value": ClipValue, "clip_norm": ClipNorm}
)
"""Keys of ``optimizer`` that put a part in front of any optimizer, in the order in which they apply."""

UNITS: Final[Mapping[str, Unit]] = MappingProxyType({"step": "step", "epoch": "epoch"})
"""Names of ``schedule.unit``."""


def build_transform(name: str, keys: Keys = NONE, *, l1: float = 0.0) -> Transform[Any]:
    """Return the transform of a name, with clipping in front and proximal steps where they are asked for.

    Parameters
    ----------
    name : str
        A name of `OPTIMIZERS`.
    keys : mapping
        Values of the conf's ``optimizer`` group (without ``average``); None means the default.
    l1 : float
        Of the penalty l1 ||w||_1; 0 for none.

    Raises
    ------
    ConfError
        Unknown name, a key it does not use, a value out of range, or l1 where it has no proximal step.
    """
    entry = lookup(OPTIMIZERS, name, family="optimizer", where="optimizer.name")
    own = {key: value for key, value in keys.items() if key not in CLIPS}
    transform = entry.make(**_given(own, entry.keys, "optimizer", name))
    if l1:
        transform = _with_l1(name, entry, transform, l1)
    clips = [make(_plain(keys[key])) for key, make in CLIPS.items() if keys.get(key) is not None]
    return Chain((*clips, transform)) if clips else transform


def build_schedule(
    name: str, keys: Keys, *, default_rate: float, default_period: float | None = None, tick: float = 1.0
) -> Schedule:
    """Return the schedule of a name, with the warm-up before it where there is one.

    Parameters
    ----------
    name : str
        A name of `SCHEDULES`.
    keys : mapping
        Values of the conf's ``schedule`` group (without name, unit, scaling); None means the default.
    default_rate : float
        ``learning_rate`` where it is not given: the optimizer's own.
    default_period : float or None
        The run's length in the schedule's unit, None where the run has none. What it lasts after the warm-up is the
        ``period`` where that is not given, and decides ``every`` and ``gamma`` likewise.
    tick : float
        One step in the schedule's unit: 1, or 1/steps per epoch.

    Raises
    ------
    ConfError
        Unknown name, a key it does not use, a value out of range, or no length where one is needed.
    """
    cls = lookup(SCHEDULES, name, family="schedule", where="schedule.name")
    warmup, start = _plain(keys.get("warmup")), _plain(keys.get("start_factor"))
    if warmup is not None:
        check_range("schedule.warmup", warmup, 0.0, open_low=True)
    own = {key: value for key, value in keys.items() if key not in ("warmup", "start_factor")}
    values = _given(own, keys_of(cls), "schedule", name)
    values.setdefault("learning_rate", default_rate)
    if name in FROM_LENGTH:
        key, meaning, rule = FROM_LENGTH[name]
        if key not in values:
            values[key] = rule(_length(default_period, warmup, f"schedule.{key}", meaning))
    if "tick" in {f.name for f in dataclasses.fields(cls)}:
        values["tick"] = tick
    main: Schedule = cls(**values)
    if warmup is not None:
        return Warmup(main, warmup) if start is None else Warmup(main, warmup, start)
    if start is not None:
        raise ConfError("start_factor without a warm-up", where="schedule.start_factor", hint="set schedule.warmup")
    return main


def _length(length: float | None, warmup: float | None, where: str, meaning: str) -> float:
    """Return what is left of the run after the warm-up."""
    if length is None:
        raise ConfError(
            f"null means {meaning}, and this run has none",
            where=where,
            hint=f"set {where}, stop.epochs or stop.steps",
        )
    if warmup is not None and warmup >= length:
        raise ConfError(
            f"a warm-up of {warmup:g} in a run of {length:g}", where="schedule.warmup", hint="a shorter one"
        )
    return float(length) - (warmup or 0.0)


def build_method(
    name: str,
    layout: Layout,
    *,
    keys: Keys = NONE,
    schedule: str = "constant",
    schedule_keys: Keys = NONE,
    unit: str = "step",
    default_period: float | None = None,
    tick: float = 1.0,
    penalty: Penalty | None = None,
    l1: float = 0.0,
    quadratic: bool = False,
    shifted: int = 0,
    kernels: str = compiled.NUMPY,
) -> Method[Any]:
    """Return the method of an optimizer's and a schedule's name.

    Parameters
    ----------
    name : str
        A name of `OPTIMIZERS` or `SECOND_ORDER`.
    layout : Layout
        Of the model's parameters.
    keys : mapping
        Values of the conf's ``optimizer`` group; None means the default.
    schedule : str
        A name of `SCHEDULES` or `SEARCHES`.
    schedule_keys : mapping
        Values of the conf's ``schedule`` group (without name, unit, scaling); None means the default, for
        ``learning_rate`` the optimizer's own.
    unit : str
        ``step`` or ``epoch``.
    default_period : float or None
        The run's length in that unit, for a schedule whose period is not given.
    tick : float
        One step in that unit: 1, or 1/steps per epoch.
    penalty : callable or None
        ``penalty(grad, params)`` adds the gradient of the penalty's smooth part to `grad` in place.
    l1 : float
        Of the penalty l1 ||w||_1, taken by proximal steps, by lbfgs as OWL-QN; 0 for none.
    quadratic : bool
        Whether the loss is a quadratic function of the parameters (an exact line search is then in closed form).
    shifted : int
        C where adding a constant to the weights of all C classes changes no loss (softmax), else 0.
    kernels : str
        The kernel set; unless it is ``numpy``, first-order steps are compiled (with the same bits).

    Raises
    ------
    ConfError
        For anything that the named optimizer and schedule cannot take.
    """
    entry = optimizer(name)
    counted = lookup(UNITS, unit, family="unit", where="schedule.unit")
    if l1 and schedule in SEARCHES:
        raise ConfError(f"{schedule} has no l1 penalty", where="model.l1", hint="lbfgs, or a plain schedule with gd")
    if schedule in SEARCHES:
        if name not in SEARCHERS:
            message = f"{schedule} searches along the gradient, which {name} does not follow"
            raise ConfError(message, where="schedule.name", hint=f"optimizer {' or '.join(SEARCHERS)}")
        _given(keys, (), "optimizer", name)
        cls = SEARCHES[schedule]
        return SearchedDescent(
            cls(**_given(schedule_keys, keys_of(cls), "schedule", schedule)), layout, penalty, quadratic
        )
    if name in SECOND_ORDER:
        own = entry.make(**_given(keys, entry.keys, "optimizer", name))
        if l1:
            own = _with_l1(name, entry, own, l1)
        rate = build_schedule(
            schedule, schedule_keys, default_rate=entry.learning_rate, default_period=default_period, tick=tick
        )
        if name == "newton":
            return Newton(own, rate, layout, counted, penalty, shifted)
        return (OWLQN if l1 else LBFGS)(own, rate, layout, counted, penalty)
    transform = build_transform(name, {key: value for key, value in keys.items() if key != "average"}, l1=l1)
    rule = build_schedule(
        schedule, schedule_keys, default_rate=entry.learning_rate, default_period=default_period, tick=tick
    )
    if kernels != compiled.NUMPY:
        transform = fused(transform)
    average = keys.get("average")
    return FirstOrder(transform, rule, layout, counted, penalty, False if average is None else _plain(average))


def _with_l1(name: str, entry: Optimizer, made: Any, l1: float) -> Any:
    """Return a transform or keys with the penalty l1 ||w||_1."""
    if entry.l1 is None:
        takers = ", ".join(n for n, other in {**OPTIMIZERS, **SECOND_ORDER}.items() if other.l1 is not None)
        raise ConfError(f"optimizer '{name}' has no l1 penalty", where="model.l1", hint=f"one of {takers}")
    return entry.l1(made, _plain(l1))


def settings(value: Any) -> dict[str, float]:
    """Return the resolved keys of a transform or schedule, as printed at the start of a run."""
    return {key: getattr(value, key) for key in keys_of(value)}


def _given(keys: Keys, used: Iterable[str], group: str, name: str) -> dict[str, float]:
    given = {key: value for key, value in keys.items() if value is not None}
    valid = tuple(used)
    for key in given:
        if key not in valid:
            hint = nearest(key, valid) if valid else f"{name} has no keys of its own"
            raise ConfError(f"{group} '{name}' does not use this key", where=f"{group}.{key}", hint=hint)
    return {key: _plain(value) for key, value in given.items()}


def _plain(value: Any) -> Any:
    # A NumPy scalar would decide the dtype of float32 arithmetic; what is no number goes on to its range check.
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
