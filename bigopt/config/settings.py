"""What one layer sets: keys by path, each value checked by itself, from a conf file or from ``key=value`` texts.

The right side of ``key=value`` is read like a value in a file: ``model.hidden=[64, 32]``, ``schedule={name: cosine}``.
Only what starts with a bracket or a quote goes through YAML; everything else is one plain scalar, so that
``ingest.where=a > 1 # b`` or a path with a colon mean what they say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bigopt.config import rules, values
from bigopt.config.reader import Node, read_text, scalar
from bigopt.core.errors import ConfError
from bigopt.core.names import nearest

COMMAND_LINE = "command line"
_KEY = re.compile(r"[A-Za-z0-9_.-]+")


def leaf_of(path: str) -> str | None:
    """Return the key that a path is or lies in, None if there is none."""
    parts = path.split(".")
    return next((p for n in range(len(parts), 1, -1) if (p := ".".join(parts[:n])) in values.leaves()), None)


def file_settings(root: Node) -> dict[str, Node]:
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
    if "." in name and leaf_of(name) is not None:
        group, _, key = name.partition(".")
        return f"in a file write {group}: {{{key}: ...}}"
    hint = nearest(name, tops)
    return f"it is {' or '.join(homes)}" if homes and not hint.startswith("did you mean") else hint


def override_settings(overrides: Sequence[str]) -> dict[str, Node]:
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
    leaf = leaf_of(path)
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
