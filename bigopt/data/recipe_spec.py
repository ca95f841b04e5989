"""What a conf says about raw data, checked before any file is opened.

`make_spec` takes the values of the conf groups `ingest` and `data` as plain Python values and returns a frozen
`IngestSpec`; what the data must decide (categories, types, fills) is decided by `bigopt.data.recipe_fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, cast

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.core.names import nearest
from bigopt.data.expression import parse
from bigopt.data.recipe import Encoding, Value
from bigopt.data.source import NUMERIC
from bigopt.data.words import Words

DTYPES: Final = NUMERIC | {"text"}
"""Types that `ingest.columns` can declare."""

_ENCODINGS: Final[dict[str, Encoding]] = {
    "onehot": "onehot",
    "one-hot": "onehot",
    "ordinal": "ordinal",
    "top": "top",
    "words": "words",
}


@wire
@dataclass(frozen=True)
class Encode:
    """How one column of categories becomes numbers.

    Parameters
    ----------
    column : str
    encoding : str
        ``onehot``, ``ordinal``, ``top`` or ``words``.
    categories : tuple or None
        Declared categories; None: those found in the data.
    top : int
        For ``top``: how many of the most frequent categories.
    words : Words or None
        For ``words``.
    """

    column: str
    encoding: Encoding
    categories: tuple[Value, ...] | None = None
    top: int = 0
    words: Words | None = None


@wire
@dataclass(frozen=True)
class NullSpec:
    """What is done with nulls of one column, or of all others (column ``*``).

    Parameters
    ----------
    column : str
    rule : str
        ``error``, ``drop``, ``mean`` or ``fill``.
    fill : str, int, float, bool or None
    """

    column: str
    rule: str
    fill: Value | None = None


@wire
@dataclass(frozen=True)
class JoinSpec:
    """A small table to look up: its file, the key columns, and the columns with their declared types."""

    source: str
    on: tuple[str, ...]
    columns: tuple[tuple[str, str | None], ...]


@wire
@dataclass(frozen=True)
class IngestSpec:
    """Raw data and what they become; make one with `make_spec`.

    Parameters
    ----------
    source : tuple of str
    columns : tuple of (name or pattern, dtype or None), or None
        Features, and types of any column; None: everything but target and weight.
    derive : tuple of (name, expression)
    where : str or None
    encode : tuple of Encode
    nulls : tuple of NullSpec
    joins : tuple of JoinSpec
    target : tuple of str or None
    weight : str or None
    classes : tuple or None
    """

    source: tuple[str, ...]
    columns: tuple[tuple[str, str | None], ...] | None = None
    derive: tuple[tuple[str, str], ...] = ()
    where: str | None = None
    encode: tuple[Encode, ...] = ()
    nulls: tuple[NullSpec, ...] = ()
    joins: tuple[JoinSpec, ...] = ()
    target: tuple[str, ...] | None = None
    weight: str | None = None
    classes: tuple[Value, ...] | None = None

    def null(self, column: str) -> NullSpec:
        """Return what is done with the nulls of a column."""
        by_name = {item.column: item for item in self.nulls}
        return by_name.get(column, by_name.get("*", NullSpec("*", "error")))


def make_spec(
    source: object,
    *,
    columns: object = None,
    derive: object = None,
    where: object = None,
    encode: object = None,
    nulls: object = None,
    join: object = None,
    target: object = None,
    weight: object = None,
    classes: object = None,
) -> IngestSpec:
    """Return the checked spec of the conf's values.

    Parameters
    ----------
    source : str or sequence of str
        ``ingest.source``.
    columns : None, sequence of str, or mapping of str to dtype or None
        Names or patterns (``pixel*``).
    derive : mapping of str to str
    where : str or sequence of str
        Several must all hold.
    encode : mapping
        ``{carrier: onehot, size: {ordinal: [s, m, l]}, dest: {top: 20}, remark: {words: {bins: 65536, ngrams: 2}}}``.
    nulls : None, str or mapping
        ``error`` or ``drop`` for all, or by column: error, drop, mean, a value, ``{value: ...}``; ``*`` is all others.
    join : mapping or sequence of mappings
        ``{source, on: [...], columns: [...] or {name: dtype}}``.
    target, weight, classes
        ``data.target``, ``data.weight``, ``data.classes``.

    Raises
    ------
    ConfError
        Naming the conf path.
    """
    sources = _names(source, "ingest.source")
    if not sources:
        raise ConfError("no raw file is named", where="ingest.source", hint="a path, a pattern or a list of them")
    filters = _names(where, "ingest.where")
    text = None if not filters else filters[0] if len(filters) == 1 else " and ".join(f"({item})" for item in filters)
    for item in filters:
        parse(item, where="ingest.where")
    spec = IngestSpec(
        source=sources,
        columns=None if columns is None else _columns(columns, "ingest.columns"),
        derive=tuple(_derived(name, value) for name, value in _mapping(derive, "ingest.derive").items()),
        where=text,
        encode=tuple(_encode(name, value) for name, value in _mapping(encode, "ingest.encode").items()),
        nulls=_nulls(nulls),
        joins=_joins(join),
        target=_names(target, "data.target") or None,
        weight=_text(weight, "data.weight") if weight is not None else None,
        classes=None if classes is None else _values(classes, "data.classes"),
    )
    if spec.target is not None and spec.weight in spec.target:
        raise ConfError(f"'{spec.weight}' is both target and weight", where="data.weight")
    for entry in spec.encode:
        if entry.column in (*(spec.target or ()), spec.weight):
            raise ConfError("the target and the weight are not encoded", where=f"ingest.encode.{entry.column}")
    return spec


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfError(f"a name is expected, not {value!r}", where=where)
    return value


def _names(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (_text(value, where),)
    if isinstance(value, Sequence):
        names = tuple(_text(item, where) for item in value)
        if len(set(names)) != len(names):
            raise ConfError("a name stands twice", where=where)
        return names
    raise ConfError(f"a name or a list of names is expected, not {value!r}", where=where)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value):
        raise ConfError(f"{{name: ...}} is expected, not {value!r}", where=where)
    return value


def _columns(value: object, where: str) -> tuple[tuple[str, str | None], ...]:
    if not isinstance(value, Mapping):
        return tuple((name, None) for name in _names(value, where))
    for name, dtype in _mapping(value, where).items():
        if dtype is not None and dtype not in DTYPES:
            raise ConfError(f"unknown type {dtype!r}", where=f"{where}.{name}", hint=nearest(str(dtype), DTYPES))
    return tuple(value.items())


def _derived(name: str, value: object) -> tuple[str, str]:
    return name, parse(value, where=f"ingest.derive.{name}").text


def _values(value: object, where: str) -> tuple[Value, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfError(f"a list of values is expected, not {value!r}", where=where)
    for item in value:
        if not isinstance(item, (str, int, float, bool)):
            raise ConfError(f"{item!r} is no value", where=where)
    kinds = {"text" if isinstance(v, str) else "boolean" if isinstance(v, bool) else "number" for v in value}
    if len(kinds) > 1:
        raise ConfError(f"a list of {' and '.join(sorted(kinds))}", where=where, hint="all values of one kind")
    if len(set(value)) != len(value):
        raise ConfError("a value stands twice", where=where)
    return tuple(value)


def _encode(name: str, value: object) -> Encode:
    where = f"ingest.encode.{name}"
    form, argument = value, None
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise ConfError("one encoding a column", where=where, hint="such as {onehot: [a, b]} or {top: 10}")
        ((form, argument),) = value.items()
    if not isinstance(form, str) or form not in _ENCODINGS:
        raise ConfError(
            f"unknown encoding {form!r}", where=where, hint=nearest(str(form), ("onehot", "ordinal", "top", "words"))
        )
    encoding = _ENCODINGS[form]
    if encoding == "top":
        if isinstance(argument, bool) or not isinstance(argument, int) or argument < 1:
            raise ConfError("top takes a number of categories", where=where, hint="such as {top: 10}")
        return Encode(name, encoding, top=argument)
    if encoding == "words":
        return Encode(name, encoding, words=_words(argument, where))
    if argument is None:
        return Encode(name, encoding)
    return Encode(name, encoding, _values(argument, where))


def _words(value: object, where: str) -> Words:
    """Return how words are hashed: words, {words: BINS} or {words: {bins, ngrams, signed, norm}}."""
    given: dict[str, Any] = {} if value is None else {"bins": value} if not isinstance(value, Mapping) else dict(value)
    known = [f.name for f in fields(Words)]
    for key in given:
        if key not in known:
            raise ConfError(f"unknown key {key!r}", where=where, hint=nearest(str(key), known))
    try:
        return Words(**given)
    except ValueError as error:
        hint = "such as {words: {bins: 262144, ngrams: 1, signed: true, norm: l2}}"
        raise ConfError(str(error), where=where, hint=hint) from error


def _null(name: str, value: object) -> NullSpec:
    where = f"ingest.nulls.{name}"
    if value is None or value in ("error", "drop", "mean"):
        rule = cast(str, value) if value is not None else "error"
        if name == "*" and rule == "mean":
            raise ConfError("'*' takes error or drop", where=where, hint="name the columns that take their mean")
        return NullSpec(name, rule)
    if isinstance(value, Mapping):
        if set(value) != {"value"}:
            raise ConfError(
                f"unknown rule {dict(value)}", where=where, hint="error, drop, mean, a value or {value: ...}"
            )
        value = value["value"]
    if not isinstance(value, (str, int, float, bool)):
        raise ConfError(f"{value!r} is no value", where=where, hint="error, drop, mean, a value or {value: ...}")
    if name == "*":
        raise ConfError("'*' takes error or drop", where=where, hint="name the columns that take a value")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ConfError("a value that is not finite", where=where)
    return NullSpec(name, "fill", value)


def _nulls(value: object) -> tuple[NullSpec, ...]:
    if isinstance(value, str):
        if value not in ("error", "drop"):
            hint = "error, drop, or {column: error | drop | mean | a value}"
            raise ConfError(f"unknown rule '{value}'", where="ingest.nulls", hint=hint)
        return (NullSpec("*", value),)
    return tuple(_null(name, item) for name, item in _mapping(value, "ingest.nulls").items())


def _joins(value: object) -> tuple[JoinSpec, ...]:
    if value is None or isinstance(value, Mapping):
        return () if not value else (_join(value, "ingest.join"),)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfError(f"{{source, on, columns}} is expected, not {value!r}", where="ingest.join")
    return tuple(_join(item, f"ingest.join[{i}]") for i, item in enumerate(value))


def _join(value: object, where: str) -> JoinSpec:
    parts: dict[str, Callable[[object, str], Any]] = {"source": _text, "on": _names, "columns": _columns}
    given = _mapping(value, where)
    for key in given:
        if key not in parts:
            raise ConfError(f"unknown key '{key}'", where=where, hint=nearest(key, parts))
    for key in parts:
        if not given.get(key):
            raise ConfError(f"'{key}' is missing", where=where, hint="{source: file, on: [keys], columns: [names]}")
    return JoinSpec(**{key: read(given[key], f"{where}.{key}") for key, read in parts.items()})
