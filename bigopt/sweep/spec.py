"""What a sweep is: the keys and the values they take, read from ``sweep.yml`` with the line of every mistake.

::

    conf: conf/flights.yml               # a conf file, a list of them (the later one wins), or the groups themselves
    trials: random                       # grid: every combination; random: draws
    keys:
      optimizer.name: [sgd, adam]        # a list: the values it takes
      schedule.learning_rate: {log_uniform: [1e-3, 1]}      # random also draws from ranges
    samples: 20
    seed: 0
    metric: validation_loss
    halving: {factor: 3, min_epochs: 1}
    dir: data/runs/sweeps/flights
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from bigopt.config.output import flow
from bigopt.config.reader import Node, read_file
from bigopt.config.settings import file_settings, leaf_of, override_settings
from bigopt.core.errors import ConfError
from bigopt.core.names import nearest

RANGES = ("uniform", "log_uniform", "integers", "log_integers")
LOWER = ("validation_loss", "loss", "mse", "rmse", "mae", "log_loss")
HIGHER = ("r2", "accuracy", "auc", "precision", "recall", "f1", "top_k")
MOST_TRIALS = 10_000
_KEYS = ("conf", "trials", "keys", "samples", "seed", "metric", "halving", "dir")
_SHARED = ("backend.", "ingest.", "run.dir", "run.bits", "data.memory", "data.scratch", "checkpoint.")
_STRATEGIES = ("grid", "random")


@dataclass(frozen=True)
class Range:
    """Numbers between two ends.

    Parameters
    ----------
    kind : str
        One of `RANGES`; integers include both ends.
    low, high : float
    """

    kind: str
    low: float
    high: float


@dataclass(frozen=True)
class Key:
    """A key of the conf that differs between trials.

    Parameters
    ----------
    path : str
    values : tuple of Node
        The values it takes; empty for a range.
    range : Range or None
    where : str
        ``file:line``.
    """

    path: str
    values: tuple[Node, ...]
    range: Range | None
    where: str


@dataclass(frozen=True)
class Halving:
    """Successive halving.

    Parameters
    ----------
    factor : int
        One trial of so many goes on to the next rung, which has so many times the epochs.
    min_epochs : int
        Epochs of the first rung.
    """

    factor: int
    min_epochs: int


@dataclass(frozen=True)
class Spec:
    """A sweep.

    Parameters
    ----------
    file : str
        Where it was read from.
    layers : tuple
        Settings by path of the conf of all trials, the lowest layer first.
    trials : {"grid", "random"}
    keys : tuple of Key
    samples : int
        Draws of a random sweep.
    seed : int
        Of the draws.
    metric : str or None
        None: validation_loss where there is validation data, else loss.
    halving : Halving or None
    dir : Path
    places : dict
        Key of the file to its line.
    """

    file: str
    layers: tuple[dict[str, Node], ...]
    trials: Literal["grid", "random"]
    keys: tuple[Key, ...]
    samples: int
    seed: int
    metric: str | None
    halving: Halving | None
    dir: Path
    places: dict[str, str]

    def where(self, key: str) -> str:
        """Return the line of a key; the file where it is not given."""
        return self.places.get(key, self.file)


def read_spec(file: Path | str, overrides: Collection[str] = ()) -> Spec:
    """Read a sweep.

    Parameters
    ----------
    file : path
    overrides : collection of str
        ``key=value`` for the conf of all trials.

    Raises
    ------
    ConfError
        An unknown or missing key, a value of another kind, a key that no conf has, with the line.
    """
    root = read_file(file)
    given = _mapping(root, "a sweep")
    for name, node in given.items():
        if name not in _KEYS:
            raise ConfError(f"unknown key '{name}' of a sweep", where=node.where, hint=_hint(name))
    for name in ("conf", "keys"):
        if name not in given:
            raise ConfError(f"a sweep without {name}", where=str(file), hint="see docs/sweep.md")
    base = given["conf"]
    more = override_settings(list(overrides))
    trials = _one_of(given["trials"], _STRATEGIES, "trials") if "trials" in given else "grid"
    keys = tuple(_key(path, node, trials) for path, node in _mapping(given["keys"], "keys").items())
    if not keys:
        raise ConfError("keys is empty: nothing differs between trials", where=given["keys"].where)
    for one in keys:
        if one.path in more:
            raise ConfError(f"{one.path} is swept and set on the command line", where=one.where, hint="give it once")
    for name in ("samples", "seed"):
        if name in given and trials == "grid":
            raise ConfError(f"{name} without draws", where=given[name].where, hint="trials: random, or leave it out")
    if trials == "random" and "samples" not in given:
        raise ConfError("trials: random without samples", where=given["trials"].where, hint="such as samples: 20")
    folder = given.get("dir", Node(f"data/runs/sweeps/{Path(file).stem}", str(file)))
    if not isinstance(folder.value, str) or not folder.value:
        raise ConfError("dir is not a path", where=folder.where)
    halving = _halving(given["halving"]) if "halving" in given and given["halving"].value is not None else None
    swept = next((k for k in keys if k.path.startswith("stop.")), None)
    if halving is not None and swept is not None:
        raise ConfError(f"{swept.path} is swept, but halving sets it", where=swept.where, hint="leave one of them out")
    return Spec(
        file=str(file),
        layers=(*_layers(base), more),
        trials=cast(Literal["grid", "random"], trials),
        keys=keys,
        samples=_integer(given["samples"], "samples", 1, MOST_TRIALS) if "samples" in given else 0,
        seed=_integer(given["seed"], "seed", 0, 2**63 - 1) if "seed" in given else 0,
        metric=_one_of(given["metric"], LOWER + HIGHER, "metric") if _set(given, "metric") else None,
        halving=halving,
        dir=Path(folder.value),
        places={name: node.where for name, node in given.items()},
    )


def _set(given: dict[str, Node], name: str) -> bool:
    return name in given and given[name].value is not None


def _hint(name: str) -> str:
    return f"below keys: {name}: [...]" if "." in name else nearest(name, _KEYS)


def _layers(base: Node) -> list[dict[str, Node]]:
    """Return the settings of the conf of all trials: files, or groups written out."""
    if isinstance(base.value, dict):
        return [file_settings(base)]
    files = base.value if isinstance(base.value, list) else [base]
    found = []
    for node in files:
        if not isinstance(node.value, str) or not node.value:
            raise ConfError("conf is not a file", where=node.where, hint="such as conf/flights.yml, or its groups")
        try:
            root = read_file(node.value)
        except ConfError as error:
            if error.where != node.value:  # a line of that file says more than one of this
                raise
            raise ConfError(f"conf '{node.value}': {error.message}", where=node.where, hint=error.hint) from None
        found.append(file_settings(root))
    return found


def _key(path: str, node: Node, trials: str) -> Key:
    shared = next((p for p in _SHARED if path.startswith(p)), None)
    if shared is not None:
        raise ConfError(f"{path} is the same for all trials", where=node.where, hint="set it in the conf of the sweep")
    if isinstance(node.value, dict):
        drawn = _range(path, node)
        if trials == "grid":
            raise ConfError(f"{path}: a grid takes a list, not a range", where=node.where, hint="trials: random")
        whole = drawn.kind in ("integers", "log_integers")
        for end in (drawn.low, drawn.high):
            _check(path, Node(int(end) if whole else end, node.where))
        return Key(path, (), drawn, node.where)
    if not isinstance(node.value, list) or not node.value:
        hint = "[one, two]" if trials == "grid" else f"[one, two], or {{{'|'.join(RANGES)}: [low, high]}}"
        raise ConfError(f"{path} has no list of values", where=node.where, hint=hint)
    for value in node.value:
        _check(path, value)
    return Key(path, tuple(node.value), None, node.where)


def _check(path: str, value: Node) -> None:
    """Check one value by itself, as the command line would, and say the line of the sweep."""
    try:
        override_settings([f"{path}={flow(value.plain())}"])
        if leaf_of(path) is None:
            raise ConfError(f"{path} is a group, not a key", hint=f"such as {path}.name: [...]")
    except ConfError as error:
        raise ConfError(error.message, where=value.where, hint=error.hint) from None


def _range(path: str, node: Node) -> Range:
    if len(node.value) != 1 or next(iter(node.value)) not in RANGES:
        raise ConfError(f"{path}: no range", where=node.where, hint=f"{{{'|'.join(RANGES)}: [low, high]}}")
    ((kind, ends),) = node.value.items()
    numbers = [n.value for n in ends.value] if isinstance(ends.value, list) else []
    whole = kind in ("integers", "log_integers")
    wanted = int if whole else (int, float)
    if len(numbers) != 2 or any(isinstance(v, bool) or not isinstance(v, wanted) for v in numbers):
        kinds = "integers" if whole else "numbers"
        raise ConfError(f"{path}: {kind} takes two {kinds}", where=ends.where, hint=f"{kind}: [low, high]")
    low, high = float(numbers[0]), float(numbers[1])
    if not low < high or not math.isfinite(high - low):
        raise ConfError(f"{path}: {kind} from {low:g} to {high:g}", where=ends.where, hint="low below high")
    if kind.startswith("log_") and low <= 0:
        raise ConfError(f"{path}: {kind} from {low:g}", where=ends.where, hint="low above 0")
    return Range(kind, low, high)


def _halving(node: Node) -> Halving:
    given = _mapping(node, "halving")
    for name, value in given.items():
        if name not in ("factor", "min_epochs"):
            raise ConfError(
                f"unknown key '{name}' of halving", where=value.where, hint=nearest(name, ("factor", "min_epochs"))
            )
    factor = _integer(given["factor"], "factor", 2, 1000) if "factor" in given else 3
    return Halving(factor, _integer(given["min_epochs"], "min_epochs", 1, 10**9) if "min_epochs" in given else 1)


def _mapping(node: Node, what: str) -> dict[str, Node]:
    if not isinstance(node.value, dict):
        raise ConfError(f"{what} is not a mapping", where=node.where, hint="key: value")
    return node.value


def _one_of(node: Node, valid: tuple[str, ...], what: str) -> str:
    value: Any = node.value
    if not isinstance(value, str) or value not in valid:
        raise ConfError(f"unknown {what} {flow(node.plain())}", where=node.where, hint=nearest(str(value), valid))
    return value


def _integer(node: Node, what: str, low: int, high: int) -> int:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfError(f"{what} is {flow(node.plain())}", where=node.where, hint=f"an integer from {low} to {high}")
    return value
