"""Layers: base < conf files < ``key=value``, with the place of every key kept for later messages.

A layer sets keys. Three rules say what a higher layer does to the lower ones:

* a key it sets replaces the lower value; a part of a mapping (``data.storage_options.anon=true``) replaces that part;
* a limit it sets (one of stop.epochs, steps, seconds, to a number) takes the lower layers' other limits away;
* a group's ``name`` that it changes takes away, with a notice, the lower layers' keys that the new name does not use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bigopt.config import rules, values
from bigopt.config.names import COMMON, GROUPS
from bigopt.config.output import diff
from bigopt.config.reader import Node, read_file, read_text
from bigopt.config.settings import file_settings, leaf_of, override_settings
from bigopt.config.table import Tree
from bigopt.core.errors import ConfError

BASE = "base"
_LIMITS = ("stop.epochs", "stop.steps", "stop.seconds")


class Conf(Tree, frozen=True, kw_only=True):
    """A checked conf: the groups of `Tree`, where each key came from, and what was said on the way.

    Attributes
    ----------
    origins : dict
        Path to ``file:line``, ``command line`` or ``default of adam``; a path that is not in it is base.
    notices : tuple of str
        Lines to print at the start: keys that were dropped or are not used.
    """

    origins: dict[str, str] = msgspec.field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def origin(self, path: str) -> str:
        """Return where a key was set: ``conf/a.yml:12``, ``command line``, ``default of adam`` or ``base``."""
        while path and path not in self.origins:
            path = path.rpartition(".")[0]
        return self.origins.get(path, BASE)

    def error(self, path: str, message: str, hint: str = "") -> ConfError:
        """Return the error about one key, with its place: ``raise conf.error("batch.size", ...)``."""
        where = self.origin(path)
        known = where != BASE and not where.startswith("default of ")
        return ConfError(message, where=where if known else path, hint=hint)


@dataclass
class _Merge:
    """The state of merging: values as written, their places, and the notices so far."""

    nodes: dict[str, Node]
    notices: list[str]

    def name(self, group: str) -> Any:
        node = self.nodes.get(f"{group}.name")
        return values.default(f"{group}.name") if node is None else node.value

    def add(self, layer: Mapping[str, Node]) -> None:
        for group, table in GROUPS.items():
            node = layer.get(f"{group}.name")
            if node is not None and node.value != self.name(group) and node.value in table:
                self._drop(group, node.value, table[node.value].uses)
        if any(layer[p].value is not None for p in _LIMITS if p in layer):
            for path in _LIMITS:
                if path not in layer:
                    where = next(layer[p].where for p in _LIMITS if p in layer)
                    self.nodes[path] = Node(None, where)
        for path, node in layer.items():
            leaf = leaf_of(path)
            if leaf is None or leaf == path:
                self.nodes[path] = node
            else:
                self.nodes[leaf] = _graft(self.nodes.get(leaf), leaf, path, node)

    def _drop(self, group: str, name: Any, uses: Iterable[str]) -> None:
        kept = {"name", *uses, *COMMON.get(group, ())}
        for path in [p for p in self.nodes if p.startswith(f"{group}.")]:
            key = path.split(".")[1]
            if key not in kept:
                node = self.nodes.pop(path)
                if values.convert(path, node) != values.default(path):
                    shown = values.shown(node.plain())
                    self.notices.append(f"{path}: {shown} ({node.where}) is dropped: {group} '{name}' does not use it")


def _graft(below: Node | None, leaf: str, path: str, node: Node) -> Node:
    """Return the mapping of `leaf` with the part `path` replaced."""
    value = dict(below.value) if below is not None and isinstance(below.value, dict) else {}
    first, _, rest = path[len(leaf) + 1 :].partition(".")
    value[first] = _graft(value.get(first), first, f"{first}.{rest}", node) if rest else node
    return Node(value, node.where)


def load_conf(files: Sequence[Path | str] = (), overrides: Sequence[str] = ()) -> Conf:
    """Read, layer and check a conf.

    Parameters
    ----------
    files : sequence of paths
        Conf files; a later one is a higher layer.
    overrides : sequence of str
        ``key=value`` texts, the highest layer.

    Returns
    -------
    Conf
        Frozen and checked; a null that the conf alone can decide (learning rate, batch size, keys of optimizer and
        schedule) is filled in, the others are left to the data.

    Raises
    ------
    ConfError
        With file, line, path and hint.
    SecurityError
        A YAML tag.
    """
    return load_layers([*(file_settings(read_file(f)) for f in files), override_settings(overrides)])


def load_layers(layers: Iterable[Mapping[str, Node]]) -> Conf:
    """Layer and check settings by path (`bigopt.config.settings`), the lowest layer first."""
    merged = _Merge({}, [])
    for layer in layers:
        merged.add(layer)
    return _finish(merged)


def load_text(text: str, name: str = "conf", overrides: Sequence[str] = ()) -> Conf:
    """Read a conf from text instead of a file; `name` stands for the file in messages."""
    return load_layers([file_settings(read_text(text, name)), override_settings(overrides)])


def resume_conf(saved: Path | str, overrides: Sequence[str] = ()) -> Conf:
    """Read the conf of a run to go on with it, with changes that a resumed run may make.

    Raises
    ------
    ConfError
        A change of anything but backend.*, stop.*, checkpoint.*, run.bits, data.scratch and data.storage_options.
    """
    old = load_conf([saved])
    new = load_conf([saved], overrides)
    changed = diff(old, new)
    if changed:
        raise ConfError(
            f"a resumed run keeps its conf, but {'; '.join(str(d) for d in changed)}",
            where=new.origin(changed[0].key),
            hint="only backend.*, stop.*, checkpoint.*, run.bits, data.scratch and data.storage_options may change",
        )
    return new


def fill(conf: Conf, settings: Mapping[str, Any], why: str) -> Conf:
    """Return a conf with values that the data decided, noted as ``default of <why>``.

    Parameters
    ----------
    conf : Conf
    settings : mapping
        Path to value, such as ``{"model.loss": "squared"}``.
    why : str
        For the line at the start: ``manifest``, ``float target``, ...
    """
    tree = values_of(conf)
    for path, value in settings.items():
        tree[path] = values.convert(path, as_node(value, why))
    origins = {**conf.origins, **dict.fromkeys(settings, f"default of {why}")}
    return build(tree, origins, conf.notices)


def as_node(value: Any, where: str) -> Node:
    """Return a plain value as a node."""
    if isinstance(value, dict):
        return Node({k: as_node(v, where) for k, v in value.items()}, where)
    if isinstance(value, (list, tuple)):
        return Node([as_node(v, where) for v in value], where)
    return Node(msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value, where)


def values_of(conf: Tree) -> dict[str, Any]:
    """Return the typed value of every key by path."""
    found: dict[str, Any] = {}
    for path in values.leaves():
        value: Any = conf
        for part in path.split("."):
            value = getattr(value, part)
        found[path] = value
    return found


def build(settings: Mapping[str, Any], origins: dict[str, str], notices: Sequence[str]) -> Conf:
    """Return the typed conf of typed values by path."""

    def struct(kind: Any, prefix: str) -> Any:
        kwargs = {}
        for name in kind.__struct_fields__:
            path = f"{prefix}{name}"
            if path in values.groups():
                kwargs[name] = struct(type(getattr(_DEFAULTS[prefix], name)), f"{path}.")
            elif path in settings:
                kwargs[name] = settings[path]
        return kind(**kwargs)

    _DEFAULTS: dict[str, Any] = {"": Tree()}
    for path in values.groups():
        value: Any = Tree()
        for part in path.split("."):
            value = getattr(value, part)
        _DEFAULTS[f"{path}."] = value
    tree = struct(Tree, "")
    parts = {name: getattr(tree, name) for name in Tree.__struct_fields__}
    return Conf(**parts, origins=origins, notices=tuple(notices))


def _finish(merged: _Merge) -> Conf:
    settings = {path: values.convert(path, node) for path, node in merged.nodes.items()}
    origins = {path: node.where for path, node in merged.nodes.items()}
    conf = build(settings, origins, merged.notices)
    return rules.resolve(conf)
