"""Layers: base < conf files < ``key=value``, with the place of every key kept for later messages.

A layer sets keys. Three rules say what a higher layer does to the lower ones:

* a key it sets replaces the lower value; a part of a mapping (``data.storage_options.anon=true``) replaces that part;
* a limit it sets (one of stop.epochs, steps, seconds, to a number) takes the lower layers' other limits away;
* a group's ``name`` that it changes takes away, with a notice, the lower layers' keys that the new name does not use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bigopt.config import rules, values
from bigopt.config.names import GROUPS
from bigopt.config.output import diff
from bigopt.config.reader import Node, read_file, read_text, scalar
from bigopt.config.table import Tree
from bigopt.core.errors import ConfError
from bigopt.core.names import nearest

COMMAND_LINE = "command line"
BASE = "base"
_LIMITS = ("stop.epochs", "stop.steps", "stop.seconds")
_KEY = re.compile(r"[A-Za-z0-9_.-]+")


class Conf(Tree, frozen=True, kw_only=True):
    """A checked conf: the groups of `Tree`, where each key came from, and what was said on the way.

    Attributes
    ----------
    origins : dict
        Path to ``file:line``, ``command line`` or ``default of adam``; a path that is not in it is base.
    notices : tuple of str
        Lines to print at the start: keys that were dropped or are not used.
    """

    origins: dict[str, str] = {}
    notices: tuple[str, ...] = ()

    def origin(self, path: str) -> str:
        """Return where a key was set, for a message: ``conf/a.yml:12``, ``command line``, ``default of adam``, ``base``."""
        while path and path not in self.origins:
            path = path.rpartition(".")[0]
        return self.origins.get(path, BASE)

    def error(self, path: str, message: str, hint: str = "") -> ConfError:
        """Return the error about one key, with its place: ``raise conf.error("batch.size", ...)``."""
        where = self.origin(path)
        return ConfError(message, where=path if where == BASE else where, hint=hint)


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
            leaf = _leaf(path)
            if leaf is None or leaf == path:
                self.nodes[path] = node
            else:
                self.nodes[leaf] = _graft(self.nodes.get(leaf), leaf, path, node)

    def _drop(self, group: str, name: Any, uses: Iterable[str]) -> None:
        kept = {"name", *uses, *rules.COMMON.get(group, ())}
        for path in [p for p in self.nodes if p.startswith(f"{group}.")]:
            key = path.split(".")[1]
            if key not in kept:
                node = self.nodes.pop(path)
                if node.value is not None:
                    shown = values.shown(node.plain())
                    self.notices.append(f"{path}: {shown} ({node.where}) is dropped: {group} '{name}' does not use it")


def _leaf(path: str) -> str | None:
    """Return the key that a path is or lies in, None if there is none."""
    parts = path.split(".")
    return next((p for n in range(len(parts), 1, -1) if (p := ".".join(parts[:n])) in values.leaves()), None)


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
        Frozen and checked; a null that the conf alone can decide (learning rate, batch size, optimizer and schedule keys)
        is filled in, the others are left to the data.

    Raises
    ------
    ConfError
        With file, line, path and hint.
    SecurityError
        A YAML tag.
    """
    layers = [_layer(read_file(Path(f))) for f in files]
    layers.append(_command_line(overrides))
    merged = _Merge({}, [])
    for layer in layers:
        merged.add(layer)
    return _finish(merged)


def load_text(text: str, name: str = "conf", overrides: Sequence[str] = ()) -> Conf:
    """Read a conf from text instead of a file; `name` stands for the file in messages."""
    merged = _Merge({}, [])
    merged.add(_layer(read_text(text, name)))
    merged.add(_command_line(overrides))
    return _finish(merged)


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


def _layer(root: Node) -> dict[str, Node]:
    """Return the keys that one file sets, each checked by itself."""
    if not isinstance(root.value, dict):
        raise ConfError(
            f"a conf is a mapping of groups, found {values.shown(root.plain())}",
            where=root.where,
            hint="write group: {key: value}",
        )
    found: dict[str, Node] = {}
    for name, node in root.value.items():
        if name not in values.groups():
            raise ConfError(f"unknown group '{name}'", where=node.where, hint=_group_hint(name))
        _settings(name, node, found)
    return found


def _settings(group: str, node: Node, found: dict[str, Node]) -> None:
    if not isinstance(node.value, dict):
        raise ConfError(
            f"{group} is {values.shown(node.plain())}, expected its keys",
            where=node.where,
            hint="leave an empty group out" if node.value is None else f"write {group}: {{key: value}}",
        )
    for name, child in node.value.items():
        path = f"{group}.{name}"
        if path in values.groups():
            _settings(path, child, found)
        elif path in values.leaves():
            values.convert(path, child)
            rules.known(path, child)
            found[path] = child
        else:
            raise _unknown(group, name, child.where)


def _unknown(group: str, name: str, where: str) -> ConfError:
    return ConfError(f"unknown key '{group}.{name}'", where=where, hint=_key_hint(group, name))


def _key_hint(group: str, name: str) -> str:
    hint = nearest(name, values.groups()[group])
    homes = [p for p in values.leaves() if p.rpartition(".")[2] == name]
    return f"it is {' or '.join(homes)}" if homes and not hint.startswith("did you mean") else hint


def _group_hint(name: str) -> str:
    tops = [g for g in values.groups() if "." not in g]
    homes = [p for p in values.leaves() if p.rpartition(".")[2] == name]
    if "." in name and _leaf(name) is not None:
        group, _, key = name.partition(".")
        return f"in a file write {group}: {{{key}: ...}}"
    hint = nearest(name, tops)
    return f"it is {' or '.join(homes)}" if homes and not hint.startswith("did you mean") else hint


def _command_line(overrides: Sequence[str]) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for text in overrides:
        for path, node in _override(text).items():
            if path in found:
                raise ConfError(f"{path} is given twice", where=COMMAND_LINE, hint="give it once")
            found[path] = node
    return found


def _override(text: str) -> dict[str, Node]:
    path, equals, written = text.partition("=")
    path, written = path.strip(), written.strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfError("an argument that is not UTF-8 text", where=COMMAND_LINE) from None
    if not equals or not _KEY.fullmatch(path):
        raise ConfError(f"'{text}' is not key=value", where=COMMAND_LINE, hint="such as optimizer.name=adam")
    if not written:
        raise ConfError(
            f"{path}= has no value", where=COMMAND_LINE, hint=f"write {path}=null for none, or '' in quotes"
        )
    if written[0] in "[{\"'!&*":
        node = read_text(written, COMMAND_LINE, numbered=False)
    else:
        node = Node(scalar(written, COMMAND_LINE), COMMAND_LINE)
    return _placed(path, node)


def _placed(path: str, node: Node) -> dict[str, Node]:
    if path in values.groups():
        found: dict[str, Node] = {}
        _settings(path, node, found)
        return found
    leaf = _leaf(path)
    if leaf == path:
        values.convert(path, node)
        rules.known(path, node)
    elif leaf is None or not values.is_mapping(leaf):
        parts = path.split(".")
        known = [g for n in range(len(parts), 0, -1) if (g := ".".join(parts[:n])) in values.groups()]
        if not known:
            whole = (
                _group_hint(path)
                if len(parts) == 1
                else nearest(parts[0], [g for g in values.groups() if "." not in g])
            )
            raise ConfError(f"unknown key '{path}'", where=COMMAND_LINE, hint=whole)
        if leaf is not None:
            raise ConfError(f"unknown key '{path}'", where=COMMAND_LINE, hint=f"{leaf} is {values.expects(leaf)}")
        raise _unknown(known[0], path[len(known[0]) + 1 :], COMMAND_LINE)
    return {path: node}
