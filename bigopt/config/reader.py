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


def read_file(path: Path) -> Node:
    """Read one conf file.

    Parameters
    ----------
    path : Path

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
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfError(
            f"cannot read the conf file: {error.strerror or error}", where=str(path), hint=_neighbours(path)
        ) from None
    if len(raw) > MAX_BYTES:
        raise ConfError("the conf file is larger than 1 MB", where=str(path), hint="is this a conf file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfError("not UTF-8 text", where=f"{path}:{line}", hint="save the file as UTF-8") from None
    return read_text(text, str(path))


def _neighbours(path: Path) -> str:
    from bigopt.core.names import nearest

    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix in (".yml", ".yaml")] if path.parent.is_dir() else []
    except OSError:
        names = []
    return nearest(path.name, names) if names and not path.exists() else ""


def read_text(text: str, name: str, *, numbered: bool = True) -> Node:
    """Parse YAML text of which `name` is the source; with `numbered` False messages carry no line number."""

    def where(mark: Any) -> str:
        return f"{name}:{mark.line + 1}" if numbered and mark is not None else name

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = _build(yaml.parse(text, Loader=loader), where)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(p for p in (error.context, error.problem) if p)
        place = where(error.problem_mark or error.context_mark)
        raise ConfError(f"not YAML: {problem}", where=place, hint=_syntax_hint(problem)) from None
    except (yaml.YAMLError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfError(f"not YAML: {first}", where=name, hint="a control character?") from None
    return Node({}, name) if root is None or root.value is None else root


def _syntax_hint(problem: str) -> str:
    if "cannot start any token" in problem:
        return "indent with spaces, and put text that starts with a special sign in quotes"
    return ""


def _build(events: Any, where: Any) -> Node | None:
    """Fold parser events into nodes, without recursion."""
    root: Node | None = None
    documents = 0
    stack: list[tuple[Node, list[Node]]] = []  # an open container, and the key that waits for its value

    def place(node: Node) -> None:
        nonlocal root
        if not stack:
            root = node
            return
        parent, waiting = stack[-1]
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif not waiting:
            above = [key.value for _, keys in stack for key in keys]
            waiting.append(Node(_key(node, parent, above), node.where))
        else:
            key = waiting.pop()
            parent.value[key.value] = Node(node.value, key.where)

    def value_of(event: Any, mark: Any) -> Any:
        if not event.implicit[0]:
            return event.value
        try:
            return scalar(event.value, where(mark))
        except ConfError as error:
            path = ".".join(key.value for _, waiting in stack for key in waiting)
            message = f"{path} is {error.message}" if path else error.message
            raise ConfError(message, where=error.where, hint=error.hint) from None

    for event in events:
        mark = event.start_mark
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfError("a second YAML document", where=where(mark), hint="one document a file; remove the ---")
        elif isinstance(event, yaml.AliasEvent):
            raise ConfError(f"a YAML alias, *{event.anchor}", where=where(mark), hint="write the value out")
        elif isinstance(event, yaml.NodeEvent):
            if event.anchor is not None:
                raise ConfError(f"a YAML anchor, &{event.anchor}", where=where(mark), hint="write the value out")
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise SecurityError(f"a YAML tag, {tag[:80]}", where=where(mark), hint="tags are refused")
            if isinstance(event, yaml.ScalarEvent):
                place(Node(value_of(event, mark), where(mark)))
                continue
            if len(stack) >= MAX_DEPTH:
                raise ConfError(f"nested deeper than {MAX_DEPTH} levels", where=where(mark))
            if stack and isinstance(stack[-1][0].value, dict) and not stack[-1][1]:
                raise ConfError("a key that is a list or a mapping", where=where(mark), hint="a key is a name")
            node = Node([] if isinstance(event, yaml.SequenceStartEvent) else {}, where(mark))
            place(node)
            stack.append((node, []))
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            stack.pop()
    return root


def _key(node: Node, parent: Node, above: list[str]) -> str:
    name, where = node.value, node.where
    if not isinstance(name, str):
        raise ConfError(f"a key that is not text, {name!r}", where=where, hint=f"write '{name}' in quotes")
    if name in parent.value:
        first = parent.value[name].where
        path = ".".join([*above, name])
        raise ConfError(f"duplicate key '{path}'", where=where, hint=f"the first is at {first}")
    return name
