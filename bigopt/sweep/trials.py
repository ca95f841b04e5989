"""The trials of a sweep: every combination of a grid, or draws; each with the conf it means.

A draw depends on the sweep's seed, the number of the trial and the path of the key, and on nothing else: more samples
add trials to those that were, and a key more leaves what the others drew. A trial's name is a hash of its conf and of
its rungs, so equal trials are one, and a sweep that is started again finds what it has done.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigopt.config.layers import as_node, load_layers, values_of
from bigopt.config.output import conf_hash, flow
from bigopt.config.reader import Node
from bigopt.core.errors import ConfError
from bigopt.core.rng import stream, uniform
from bigopt.sweep.spec import MOST_TRIALS, Key, Range, Spec

if TYPE_CHECKING:
    from bigopt.config import Conf

_DIGITS = 4


@dataclass(frozen=True)
class Trial:
    """One conf of a sweep.

    Parameters
    ----------
    name : str
        Eight digits of a hash of what it computes.
    settings : dict
        Swept key to value.
    conf : Conf or None
        None where the values do not go together.
    error : ConfError or None
        Why they do not.
    """

    name: str
    settings: dict[str, Any]
    conf: Conf | None
    error: ConfError | None = None


def plan(spec: Spec) -> tuple[Conf, list[Trial]]:
    """Return the conf that all trials start from, and the trials, equal ones once, in order.

    Raises
    ------
    ConfError
        A conf that is refused without any swept key, or no trial whose values go together.
    """
    base = load_layers(spec.layers)
    found: dict[str, Trial] = {}
    for settings in _settings(spec):
        trial = _trial(spec, settings)
        found.setdefault(trial.name, trial)
    trials = list(found.values())
    if all(trial.conf is None for trial in trials):
        error = trials[0].error
        assert error is not None
        raise error
    return base, trials


def rungs(spec: Spec, epochs: float | None) -> tuple[float, ...]:
    """Return the epochs at which the trials are compared: ``min_epochs * factor^k``, and ``stop.epochs``.

    Raises
    ------
    ConfError
        Halving without ``stop.epochs``.
    """
    halving = spec.halving
    if halving is None:
        return ()
    if epochs is None:
        raise ConfError("halving needs stop.epochs", where=spec.where("halving"), hint="set it in the conf")
    found: list[float] = []
    rung = float(halving.min_epochs)
    while rung < epochs:
        found.append(rung)
        rung *= halving.factor
    return (*found, float(epochs))


def _settings(spec: Spec) -> Iterator[dict[str, Node]]:
    paths = [key.path for key in spec.keys]
    if spec.trials == "grid":
        count = math.prod(len(key.values) for key in spec.keys)
        if count > MOST_TRIALS:
            raise ConfError(f"a grid of {count} trials", where=spec.where("keys"), hint=f"at most {MOST_TRIALS}")
        for values in itertools.product(*(key.values for key in spec.keys)):
            yield dict(zip(paths, values, strict=True))
        return
    for number in range(spec.samples):
        yield {key.path: _draw(key, spec.seed, number) for key in spec.keys}


def _draw(key: Key, seed: int, number: int) -> Node:
    part = float(uniform(stream(seed, f"sweep {key.path}", step=number), 1)[0])
    if key.range is None:
        return key.values[int(part * len(key.values))]
    return as_node(_between(key.range, part), key.where)


def _between(drawn: Range, part: float) -> int | float:
    """Return the value at a part in [0, 1) of a range: integers in equal shares, numbers with four digits."""
    low, high = drawn.low, drawn.high
    if drawn.kind == "integers":
        return int(low) + int(part * (int(high) - int(low) + 1))
    if drawn.kind == "log_integers":
        return min(int(high), int(low * ((high + 1) / low) ** part))
    value = low * (high / low) ** part if drawn.kind == "log_uniform" else low + (high - low) * part
    return min(high, max(low, float(f"{value:.{_DIGITS}g}")))


def _trial(spec: Spec, settings: dict[str, Node]) -> Trial:
    plain = {path: node.plain() for path, node in settings.items()}
    try:
        conf = load_layers([*spec.layers, {"run.dir": as_node("trial", "sweep")}, settings])
    except ConfError as error:
        return Trial(_name(flow(plain)), plain, None, error)
    stops = {path: value for path, value in values_of(conf).items() if path.startswith("stop.")}
    rung = rungs(spec, conf.stop.epochs)
    name = _name(f"{conf_hash(conf)} {stops!r} {rung!r}")
    folder = as_node(str(spec.dir / "trials" / name), "sweep")
    return Trial(name, plain, load_layers([*spec.layers, settings, {"run.dir": folder}]))


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
