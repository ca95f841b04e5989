"""One value of one key: from what was written to what the program uses, or an error a person can act on.

msgspec decides whether a value fits the annotation of its key; this module adds what a conf needs on top: sizes such as
``2GB`` (2*10^9 bytes) and ``2GiB``, whole numbers written as ``1e3``, the nearest name for a misspelt one, and the type
in words ("an integer >= 1, 'full' or null").
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from bigopt.config.reader import Node
from bigopt.config.table import MOST, Tree
from bigopt.core.errors import ConfError
from bigopt.core.names import nearest

_UNITS = (
    {"B": 1}
    | {p + "B": 1000**i for i, p in enumerate("KMGTP", 1)}
    | {p + "iB": 1024**i for i, p in enumerate("KMGTP", 1)}
)
_SIZE = re.compile(r"([0-9]+)(?:\.([0-9]+))?\s*([KMGTP]i?B|B)")


def parse_size(text: str) -> int | None:
    """Return the bytes that ``2GB``, ``1.5 MB`` or ``64KiB`` means; None if that is no whole number of bytes."""
    match = _SIZE.fullmatch(text)
    if match is None or len(text) > 40:
        return None
    whole, part, unit = match.group(1), match.group(2) or "", match.group(3)
    size, rest = divmod(int(whole + part) * _UNITS[unit], 10 ** len(part))
    return size if rest == 0 else None


def size_text(size: int) -> str:
    """Return the shortest exact writing of a number of bytes: 2000000000 is ``2GB``."""
    texts = [f"{size // f}{u}" for u, f in _UNITS.items() if u != "B" and size >= f and size % f == 0]
    return min([str(size), *texts], key=len)


@cache
def leaves() -> dict[str, inspect.Field]:
    """Return every key of a conf by its path, in the order of the table."""
    return dict(_walk(Tree, ""))


def _walk(kind: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, inspect.Field]]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        inner, _ = _strip(field.type)
        if isinstance(inner, inspect.StructType):
            yield from _walk(inner.cls, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Return every group by its path (``strategy.compression`` too) with the names of its keys."""
    found: dict[str, list[str]] = {}
    for path in leaves():
        parts = path.split(".")
        for depth in range(1, len(parts)):
            names = found.setdefault(".".join(parts[:depth]), [])
            if parts[depth] not in names:
                names.append(parts[depth])
    return {path: tuple(names) for path, names in found.items()}


@cache
def hints() -> dict[str, Any]:
    """Return the annotation of every key by its path."""
    return dict(_annotations(Tree, ""))


def _annotations(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        bare = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            yield from _annotations(bare, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def default(path: str) -> Any:
    """Return the default of a key."""
    value: Any = Tree()
    for part in path.split("."):
        value = getattr(value, part)
    return value


def get(conf: Any, path: str) -> Any:
    """Return the value of a conf at a path: ``get(conf, "stop.epochs")``."""
    for part in path.split("."):
        conf = getattr(conf, part)
    return conf


def _strip(kind: inspect.Type) -> tuple[inspect.Type, dict[str, Any]]:
    extra: dict[str, Any] = {}
    while isinstance(kind, inspect.Metadata):
        extra |= kind.extra or {}
        kind = kind.type
    return kind, extra


def _options(kind: inspect.Type) -> list[tuple[inspect.Type, dict[str, Any]]]:
    bare, extra = _strip(kind)
    if isinstance(bare, inspect.UnionType):
        return [(b, extra | e) for b, e in (_strip(t) for t in bare.types)]
    return [(bare, extra)]


def comment(path: str) -> str:
    """Return the one-line comment of a key."""
    kind = leaves()[path].type
    while isinstance(kind, inspect.Metadata):
        if text := (kind.extra_json_schema or {}).get("description"):
            return str(text)
        kind = kind.type
    return ""


def is_mapping(path: str) -> bool:
    """Return whether the key takes a mapping of its own (``data.storage_options``)."""
    return any(isinstance(t, (inspect.DictType, inspect.StructType)) for t, _ in _options(leaves()[path].type))


def is_size(path: str) -> bool:
    """Return whether the key is a number of bytes."""
    return any(e.get("unit") == "bytes" for _, e in _options(leaves()[path].type))


def expects(path: str) -> str:
    """Return the type and range of a key in words."""
    return in_words(leaves()[path].type)


def in_words(kind: inspect.Type) -> str:
    """Return a type and its range in words: ``an integer >= 1, 'full' or null``."""
    words: list[str] = []
    for bare, extra in _options(kind):
        words.extend(w for w in _words(bare, extra) if w not in words)
    words = [w for w in words if w.replace("an integer", "a number") not in words or not w.startswith("an integer")]
    if "null" in words:
        words.append(words.pop(words.index("null")))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(bare: inspect.Type, extra: dict[str, Any]) -> list[str]:
    if isinstance(bare, inspect.BoolType):
        return ["true", "false"]
    if isinstance(bare, (inspect.IntType, inspect.FloatType)):
        if extra.get("unit") == "bytes":
            return ["a size such as 2GB"]
        top = None if bare.le == MOST else bare.le
        bounds = [
            f"{s} {b:g}" for s, b in ((">=", bare.ge), (">", bare.gt), ("<=", top), ("<", bare.lt)) if b is not None
        ]
        noun = "an integer" if isinstance(bare, inspect.IntType) else "a number"
        return [f"{noun} {' and '.join(bounds)}".strip()]
    if isinstance(bare, inspect.LiteralType):
        return [f"'{v}'" for v in sorted(str(v) for v in bare.values)]
    if isinstance(bare, inspect.StrType):
        return ["text"]
    if isinstance(bare, inspect.NoneType):
        return ["null"]
    if isinstance(bare, inspect.VarTupleType):
        return [
            f"a list of {in_words(bare.item_type).replace('an integer', 'integers').replace('a number', 'numbers')}"
        ]
    if isinstance(bare, inspect.ListType):
        return ["a list"]
    if isinstance(bare, inspect.StructType):
        return [f"a mapping with {', '.join(f.name for f in bare.fields)}"]
    return ["a mapping"]


def convert(path: str, node: Node) -> Any:
    """Return the value of a key as its annotation has it.

    Parameters
    ----------
    path : str
        The key, such as ``batch.size``.
    node : Node
        What was written, and where.

    Raises
    ------
    ConfError
        Wrong type or out of range, with the place, the path and what is expected.
    """
    kind = leaves()[path].type
    ready = _prepare(path, kind, node)
    try:
        return msgspec.convert(ready, hints()[path], strict=True)
    except (msgspec.ValidationError, OverflowError) as error:
        raise _refused(*_culprit(path, kind, node, str(error))) from None


def _prepare(path: str, kind: inspect.Type, node: Node) -> Any:
    """Return the plain value with sizes and whole numbers made integers where the key takes those."""
    value = node.value
    options = _options(kind)
    if isinstance(value, str) and any(e.get("unit") == "bytes" for _, e in options):
        size = parse_size(value)
        if size is None:
            raise _refused(path, kind, node)
        return size
    kinds = [b for b, _ in options]
    takes_int = any(isinstance(b, inspect.IntType) for b in kinds) and not any(
        isinstance(b, inspect.FloatType) for b in kinds
    )
    if isinstance(value, float) and value.is_integer() and takes_int:
        return int(value)
    if isinstance(value, dict):
        for bare in kinds:
            if isinstance(bare, inspect.StructType):
                return _struct(path, bare, node)
    if isinstance(value, list):
        for bare in kinds:
            if isinstance(bare, inspect.VarTupleType):
                return [_prepare(path, bare.item_type, child) for child in value]
    return node.plain()


def _struct(path: str, kind: inspect.StructType, node: Node) -> dict[str, Any]:
    fields = {f.name: f for f in kind.fields}
    for name, child in node.value.items():
        if name not in fields:
            raise ConfError(f"unknown key '{path}.{name}'", where=child.where, hint=nearest(name, fields))
    for name, field in fields.items():
        if field.required and name not in node.value:
            raise ConfError(f"{path} lacks '{name}'", where=node.where, hint=f"{path} is {in_words(kind)}")
    return {name: _prepare(f"{path}.{name}", fields[name].type, child) for name, child in node.value.items()}


_STEP = re.compile(r"\[(\d+)\]|\.(\w+)")


def _culprit(path: str, kind: inspect.Type, node: Node, text: str) -> tuple[str, inspect.Type, Node]:
    """Follow msgspec's path (``... - at `$[2]` ``) down to the element that does not fit."""
    steps = text.rpartition("`$")[2] if "`$" in text else ""
    for index, name in _STEP.findall(steps):
        for bare, _ in _options(kind):
            if index and isinstance(node.value, list) and isinstance(bare, inspect.VarTupleType):
                path, kind, node = f"{path}[{index}]", bare.item_type, node.value[int(index)]
                break
            if name and isinstance(node.value, dict) and isinstance(bare, inspect.StructType):
                field = next(f for f in bare.fields if f.name == name)
                path, kind, node = f"{path}.{name}", field.type, node.value[name]
                break
    return path, kind, node


def _refused(path: str, kind: inspect.Type, node: Node) -> ConfError:
    hint = ""
    if isinstance(node.value, str):
        names = [str(v) for b, _ in _options(kind) if isinstance(b, inspect.LiteralType) for v in b.values]
        close = nearest(node.value, names) if names else ""
        hint = close if close.startswith("did you mean") else _text_hint(kind, node.value)
    elif isinstance(node.value, int) and abs(node.value) > MOST:
        hint = "an integer has 64 bits"
    return ConfError(f"{path} is {shown(node.plain())}, expected {in_words(kind)}", where=node.where, hint=hint)


def _text_hint(kind: inspect.Type, text: str) -> str:
    kinds = [b for b, _ in _options(kind)]
    if any(isinstance(b, inspect.BoolType) for b in kinds) and text.lower() in ("yes", "no", "on", "off", "y", "n"):
        return f"write {'true' if text.lower() in ('yes', 'on', 'y') else 'false'}"
    if any(isinstance(b, (inspect.IntType, inspect.FloatType)) for b in kinds):
        try:
            float(text)
        except ValueError:
            return ""
        return "a number in quotes, or with underscores, is text"
    return ""


def shown(value: Any) -> str:
    """Return a value for a message: short, as YAML would write it."""
    from bigopt.config.output import flow

    text = flow(value)
    return text if len(text) <= 60 else text[:57] + "..."
