"""Strict YAML: what a person sees in the file is what the program gets, or an error with the line.

PyYAML reads ``1e-3`` as text, ``010`` as 8, ``on`` as true, keeps the last of two equal keys, follows aliases (a bomb
of nine lines fills the memory) and knows tags that call Python. None of that here. The reader builds plain values from
the parser's *events*, so there is no constructor that a tag could reach; anchors, aliases, tags, duplicate keys, a
second document, text over 1 MB and nesting over 20 levels are errors, each with its line.

Scalars are those of YAML 1.2: ``true``/``false``, ``null`` or ``~`` or nothing, decimal integers, decimal numbers
(``1e-3``, ``.5``); everything else, and everything in quotes, is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bigopt.core.errors import ConfError, SecurityError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_MAX_DIGITS = 400


@dataclass(frozen=True)
class Node:
    """A value with the line it stands on.

    Parameters
    ----------
    value : None, bool, int, float, str, list of Node or dict of str to Node
    where : str
        ``file:line`` or ``command line``.
    """

    value: Any
    where: str

    def plain(self) -> Any:
        """Return the value without lines: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {k: n.plain() for k, n in self.value.items()}
        if isinstance(self.value, list):
            return [n.plain() for n in self.value]
        return self.value


def scalar(text: str, where: str) -> bool | int | float | str | None:
    """Return the value of a plain (unquoted) scalar.

    Raises
    ------
    ConfError
        For ``010`` (8, 10 or text: nobody can tell), infinities, NaN and numbers beyond float64.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _LEADING_ZERO.fullmatch(text):
        raise ConfError(
            f"{text[:40]}, a number with a leading zero",
            where=where,
            hint=f"write {text.lstrip('+-0')[:40] or '0'} for the number or '{text[:40]}' for text",
        )
    if _NOT_FINITE.fullmatch(text):
        raise ConfError(f"{text}, not a finite number", where=where, hint="quote it if it is text")
    if _INTEGER.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise ConfError(f"an integer of {len(text)} digits", where=where)
        return int(text)
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ConfError(f"{text[:40]}, beyond float64", where=where)
        return number
    return text


def read_file(file: Path | str) -> Node:
    """Read one conf file.

    Parameters
    ----------
    file : Path or str
        Messages name it as it is given.

    Returns
    -------
    Node
        A mapping; empty for an empty file.

    Raises
    ------
    ConfError
        The file is missing, too large, no UTF-8 or no strict YAML; the message has file and line.
    SecurityError
        It holds a tag.
    """
    path, name = Path(file), str(file)
    try:
        with path.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfError(f"cannot read the conf file: {reason}", where=name, hint=_neighbours(path)) from None
    if len(raw) > MAX_BYTES:
        raise ConfError("the conf file is larger than 1 MB", where=name, hint="is this a conf file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfError("not UTF-8 text", where=f"{name}:{line}", hint="save the file as UTF-8") from None
    return read_text(text, name)


def _neighbours(path: Path) -> str:
    from bigopt.core.names import nearest

    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix in (".yml", ".yaml")] if path.parent.is_dir() else []
    except (OSError, ValueError):
        return ""
    return nearest(path.name, names) if names and not path.exists() else ""


def read_text(text: str, name: str, *, numbered: bool = True) -> Node:
    """Parse YAML text of which `name` is the source; with `numbered` False messages carry no line number."""

    def where(mark: Any) -> str:
        return f"{name}:{mark.line + 1}" if numbered and mark is not None else name

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        builder = _Builder(where)
        for event in yaml.parse(text, Loader=loader):
            builder.add(event)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(p for p in (error.context, error.problem) if p)
        place = where(error.problem_mark or error.context_mark)
        raise ConfError(f"not YAML: {problem}", where=place, hint=_syntax_hint(problem)) from None
    except (yaml.YAMLError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfError(f"not YAML: {first}", where=name, hint="a control character?") from None
    root = builder.root
    return Node({}, name) if root is None or root.value is None else root


def _syntax_hint(problem: str) -> str:
    if "cannot start any token" in problem:
        return "indent with spaces, and put text that starts with a special sign in quotes"
    return ""


@dataclass
class _Open:
    """A list or mapping that is being filled: its node, its path, and the key that waits for its value."""

    node: Node
    path: str
    key: Node | None = None


class _Builder:
    """Folds parser events into nodes, without recursion."""

    def __init__(self, where: Callable[[Any], str]) -> None:
        self.root: Node | None = None
        self._where = where
        self._documents = 0
        self._stack: list[_Open] = []

    def add(self, event: Any) -> None:
        """Take one event."""
        where = self._where(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise ConfError("a second YAML document", where=where, hint="one document a file; remove the ---")
        elif isinstance(event, yaml.AliasEvent):
            raise ConfError(f"a YAML alias, *{event.anchor}", where=where, hint="write the value out")
        elif isinstance(event, yaml.NodeEvent):
            self._node(event, where)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            self._stack.pop()

    def _node(self, event: Any, where: str) -> None:
        if event.anchor is not None:
            raise ConfError(f"a YAML anchor, &{event.anchor}", where=where, hint="write the value out")
        if event.tag is not None:
            raise SecurityError(f"a YAML tag, {event.tag[:80]}", where=where, hint="tags are refused")
        if isinstance(event, yaml.ScalarEvent):
            self._place(Node(self._scalar(event, where), where))
            return
        if len(self._stack) >= MAX_DEPTH:
            raise ConfError(f"nested deeper than {MAX_DEPTH} levels", where=where)
        if self._stack and isinstance(self._stack[-1].node.value, dict) and self._stack[-1].key is None:
            raise ConfError("a key that is a list or a mapping", where=where, hint="a key is a name")
        node = Node([] if isinstance(event, yaml.SequenceStartEvent) else {}, where)
        path = self._path()
        self._place(node)
        self._stack.append(_Open(node, path))

    def _place(self, node: Node) -> None:
        if not self._stack:
            self.root = node
            return
        inner = self._stack[-1]
        if isinstance(inner.node.value, list):
            inner.node.value.append(node)
        elif inner.key is None:
            inner.key = self._checked(node, inner)
        else:
            inner.node.value[inner.key.value] = Node(node.value, inner.key.where)
            inner.key = None

    def _path(self) -> str:
        """Path of the value that comes next."""
        if not self._stack:
            return ""
        inner = self._stack[-1]
        return inner.path if inner.key is None else f"{inner.path}.{inner.key.value}".lstrip(".")

    def _scalar(self, event: Any, where: str) -> Any:
        if not event.implicit[0]:
            return event.value
        try:
            return scalar(event.value, where)
        except ConfError as error:
            path = self._path()
            raise ConfError(
                f"{path} is {error.message}" if path else error.message, where=error.where, hint=error.hint
            ) from None

    def _checked(self, key: Node, inner: _Open) -> Node:
        name = key.value
        if not isinstance(name, str):
            raise ConfError(f"a key that is not text, {name!r}", where=key.where, hint=f"write '{name}' in quotes")
        if name in inner.node.value:
            path = f"{inner.path}.{name}".lstrip(".")
            first = inner.node.value[name].where
            raise ConfError(f"duplicate key '{path}'", where=key.where, hint=f"the first is at {first}")
        return key
