"""The gallery: which studies there are, read from ``gallery.yml`` as strictly as a conf.

A study is an ordinary conf, ``NAME.yml`` beside the gallery, that ``bigopt train`` takes too, and an entry here::

    example_4_3:
      title: Ridge by stochastic gradient descent
      problem: {name: ridge, rows: 200, condition: 20, angle: 30, noise: 0.5, seed: 3}
      runs:                          # what is compared; the key=value texts that differ from the conf
        constant: []
        decaying: [schedule.name=inverse_time]
      reference: [optimizer.name=newton]     # a run whose end is the minimum; left out: losses are shown as they are
      stages: [0, 0.1, 1]            # parts of a run that fit and surface show; left out: its end
      pictures: {path: all, curve: all}      # panels, from left to right; all, or a list of runs
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigopt.config.reader import Node, read_file
from bigopt.core.errors import ConfError
from bigopt.core.names import nearest
from bigopt.studies.problems import PROBLEMS, Table

PICTURES = {
    "path": "the way of two weights over the error surface",
    "curve": "the objective against steps or epochs",
    "fit": "the fitted function of one feature",
    "surface": "the predicted class over the plane of two features",
}
"""Kinds of panels."""


@dataclass(frozen=True)
class Study:
    """One entry of the gallery.

    Parameters
    ----------
    name, title : str
    conf : Path
        The conf that all its runs start from.
    problem : str
    arguments : dict
        Of the problem's generator.
    runs : dict
        Run to its ``key=value`` texts.
    reference : tuple of str, or None
        The ``key=value`` texts of the run that finds the minimum.
    stages : tuple of float
        Parts of a run, in [0, 1].
    pictures : dict
        Kind of panel to the runs it shows.
    where : str
        Line of the entry.
    """

    name: str
    title: str
    conf: Path
    problem: str
    arguments: dict[str, Any]
    runs: dict[str, tuple[str, ...]]
    reference: tuple[str, ...] | None
    stages: tuple[float, ...]
    pictures: dict[str, tuple[str, ...]]
    where: str

    def rows(self) -> Table:
        """Make the rows of the problem."""
        return PROBLEMS[self.problem](**self.arguments)


def read_gallery(path: Path) -> dict[str, Study]:
    """Read all studies.

    Raises
    ------
    ConfError
        An unknown or missing key, a value of another kind, an unknown problem, run or picture, with the line.
    """
    root = _mapping(read_file(path), "the gallery")
    return {name: _study(name, node, path.parent) for name, node in root.items()}


def _study(name: str, node: Node, folder: Path) -> Study:
    keys = _keys(node, f"study '{name}'", ("title", "problem", "runs", "pictures"), ("reference", "stages"))
    runs = {run: _texts(value, f"run '{run}'") for run, value in _mapping(keys["runs"], "runs").items()}
    if not runs:
        raise ConfError("no runs", where=keys["runs"].where)
    problem, arguments = _problem(keys["problem"])
    return Study(
        name=name,
        title=_text(keys["title"], "title"),
        conf=folder / f"{name}.yml",
        problem=problem,
        arguments=arguments,
        runs=runs,
        reference=_texts(keys["reference"], "reference") if "reference" in keys else None,
        stages=_stages(keys["stages"]) if "stages" in keys else (1.0,),
        pictures=_pictures(keys["pictures"], tuple(runs)),
        where=node.where,
    )


def _problem(node: Node) -> tuple[str, dict[str, Any]]:
    given = dict(_mapping(node, "problem"))
    if "name" not in given:
        raise ConfError("problem has no name", where=node.where, hint=f"one of {', '.join(PROBLEMS)}")
    name = _text(given.pop("name"), "problem.name")
    make = _known(name, PROBLEMS, "problem", node.where)
    return name, _arguments(PROBLEMS[make], Node(given, node.where), f"problem '{name}'")


def _arguments(make: Callable[..., Table], node: Node, what: str) -> dict[str, Any]:
    """Check the arguments of a generator against its signature."""
    kinds = {p.name: p.annotation for p in inspect.signature(make).parameters.values()}
    found = {}
    for key, value in _keys(node, what, tuple(kinds)).items():
        whole = kinds[key] == "int"
        number = value.value
        if isinstance(number, bool) or not isinstance(number, int if whole else (int, float)):
            raise ConfError(f"{key} is not {'an integer' if whole else 'a number'}", where=value.where)
        if number < 0 or (number == 0 and key in ("rows", "condition")):
            raise ConfError(f"{key} is {number}", where=value.where, hint="a positive number")
        found[key] = number if whole else float(number)
    return found


def _stages(node: Node) -> tuple[float, ...]:
    values = [n.value for n in _list(node, "stages")]
    if not values or any(isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 <= v <= 1 for v in values):
        raise ConfError("stages are parts of a run", where=node.where, hint="numbers from 0 to 1, such as [0, 0.1, 1]")
    return tuple(float(v) for v in values)


def _pictures(node: Node, runs: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found = {}
    for kind, value in _mapping(node, "pictures").items():
        _known(kind, PICTURES, "picture", value.where)
        chosen = runs if value.value == "all" else _texts(value, kind)
        found[kind] = tuple(_known(run, runs, "run", value.where) for run in chosen)
    if not found:
        raise ConfError("no pictures", where=node.where, hint=f"one of {', '.join(PICTURES)}")
    return found


def _known(name: str, valid: Collection[str], what: str, where: str) -> str:
    if name not in valid:
        raise ConfError(f"unknown {what} '{name}'", where=where, hint=nearest(name, valid))
    return name


def _keys(node: Node, what: str, needed: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, Node]:
    given = _mapping(node, what)
    for key, value in given.items():
        _known(key, (*needed, *others), f"key of {what}:", value.where)
    missing = [key for key in needed if key not in given]
    if missing:
        raise ConfError(f"{what} has no {', '.join(missing)}", where=node.where)
    return given


def _mapping(node: Node, what: str) -> dict[str, Node]:
    if not isinstance(node.value, dict):
        raise ConfError(f"{what} is not a mapping", where=node.where, hint="key: value")
    return node.value


def _list(node: Node, what: str) -> list[Node]:
    if not isinstance(node.value, list):
        raise ConfError(f"{what} is not a list", where=node.where, hint="[one, two]")
    return node.value


def _text(node: Node, what: str) -> str:
    if not isinstance(node.value, str) or not node.value:
        raise ConfError(f"{what} is not text", where=node.where)
    return node.value


def _texts(node: Node, what: str) -> tuple[str, ...]:
    return tuple(_text(part, f"an entry of {what}") for part in _list(node, what))
