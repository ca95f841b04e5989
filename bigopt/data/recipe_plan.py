"""Names and types of raw data, held against what the conf says, before a row is read.

A `Plan` is an `IngestSpec` in which every name is known to exist: in the source, in a joined table, or derived from
those. It knows which raw columns are needed at all, as what type each is read, and which columns become features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from bigopt.core.errors import ConfError, DataError
from bigopt.core.names import nearest
from bigopt.data.expression import Expression, parse
from bigopt.data.rawread import RawKind, RawSource, Unfit, kind_of, open_raw
from bigopt.data.recipe import Join, RawColumn
from bigopt.data.recipe_spec import IngestSpec, JoinSpec


@dataclass(frozen=True)
class Plan:
    """Names and types, before the pass.

    Parameters
    ----------
    spec : IngestSpec
        With the target's columns spelled out.
    declared : dict of str to str
        Types that the conf names.
    dtypes : dict of str to str
        Types of the raw columns that are used (``text``, or NumPy names).
    looked_up : dict of str to str
        Types of the joined columns.
    guessed : frozenset of str
        CSV columns whose type was guessed.
    joins : tuple of Join
    derive : tuple of (name, Expression)
    where : Expression or None
    features : tuple of str
        Source, joined or derived columns that become features, in order.
    """

    spec: IngestSpec
    declared: dict[str, str]
    dtypes: dict[str, str]
    looked_up: dict[str, str]
    guessed: frozenset[str]
    joins: tuple[Join, ...]
    derive: tuple[tuple[str, Expression], ...]
    where: Expression | None
    features: tuple[str, ...]

    def widened(self, column: str, kind: RawKind) -> Plan:
        """Return the plan with a wider guess."""
        dtypes = {**self.dtypes, column: "float64" if kind == "number" else "text"}
        joins = tuple(_rekeyed(join, dtypes) for join in self.joins)
        return replace(self, dtypes=dtypes, joins=joins)

    @property
    def raw(self) -> dict[str, RawKind]:
        """Kinds of the raw columns that are read."""
        return {name: kind_of(dtype) for name, dtype in self.dtypes.items()}


def _rekeyed(join: Join, dtypes: Mapping[str, str]) -> Join:
    return replace(join, on=tuple(RawColumn(key.name, kind_of(dtypes[key.name])) for key in join.on))


def make_plan(spec: IngestSpec, source: RawSource, options: Mapping[str, Any] | None) -> Plan:
    """Return the plan of a spec on its source.

    Raises
    ------
    ConfError
        For a name that is not there, stands for two columns, or is used nowhere.
    DataError
        For files that cannot be read or types that cannot be used.
    """
    spec = replace(spec, target=_target(spec, source))
    declared = {name: dtype for name, dtype in spec.columns or () if dtype is not None}
    derive = tuple((name, parse(text, where=f"ingest.derive.{name}")) for name, text in spec.derive)
    where = parse(spec.where, where="ingest.where") if spec.where else None
    looked_up: dict[str, str] = {}
    joins = tuple(_join(item, declared, looked_up, options) for item in spec.joins)
    taken: dict[str, str] = dict.fromkeys(source.names, "the source")
    for join in joins:
        _claim(taken, [column.name for column in join.columns], join.source, "ingest.join")
        for key in join.on:
            if taken.get(key.name) != "the source":
                raise _unknown(key.name, "ingest.join.on", source.names)
    for name, expression in derive:
        for used in expression.columns:
            if used not in taken:
                later = used in dict(spec.derive)
                hint = f"put '{used}' before '{name}'" if later else nearest(used, taken)
                raise ConfError(f"there is no column '{used}'", where=f"ingest.derive.{name}", hint=hint)
        _claim(taken, [name], "ingest.derive", "ingest.derive")
    for names, path in (
        (spec.target or (), "data.target"),
        ((spec.weight,) if spec.weight else (), "data.weight"),
        ([item.column for item in spec.encode], "ingest.encode"),
        (where.columns if where else (), "ingest.where"),
    ):
        for name in names:
            if name not in taken:
                raise _unknown(name, path, taken)
    features = _features(spec, tuple(taken))
    _all_used(spec, derive, where, features)
    for null in spec.nulls:
        if null.column not in (*features, *(spec.target or ()), spec.weight, "*"):
            raise ConfError(
                f"'{null.column}' is neither feature, target nor weight",
                where=f"ingest.nulls.{null.column}",
                hint=nearest(null.column, features),
            )
    needed = _closure((*features, *(spec.target or ()), *([spec.weight] if spec.weight else [])), derive, where)
    for join in joins:
        if needed.intersection(column.name for column in join.columns):
            needed.update(key.name for key in join.on)
    names = [name for name in source.names if name in needed]
    guessed = frozenset() if source.typed else frozenset(name for name in names if name not in declared)
    dtypes = source.files[0].dtypes(names) if source.typed or guessed else {}
    if not source.typed:
        dtypes = {name: declared.get(name) or dtypes[name] for name in names}
    for name, dtype in dtypes.items():
        if (declared.get(name, dtype) == "text") != (dtype == "text"):
            raise DataError(f"column '{name}' is {dtype}, not {declared[name]}", where=source.uris[0])
    joins = tuple(_rekeyed(join, dtypes) for join in joins if needed.intersection(c.name for c in join.columns))
    return Plan(spec, declared, dtypes, looked_up, guessed, joins, derive, where, features)


def _unknown(name: str, path: str, known: Iterable[str]) -> ConfError:
    return ConfError(f"there is no column '{name}'", where=path, hint=nearest(name, known))


def _claim(taken: dict[str, str], names: list[str], owner: str, path: str) -> None:
    for name in names:
        if name in taken:
            raise ConfError(f"a column '{name}' is already in {taken[name]}", where=path, hint="choose another name")
        taken[name] = owner


def _target(spec: IngestSpec, source: RawSource) -> tuple[str, ...] | None:
    """Return the target's columns: those of an array of that name; by default of an array or column ``y``."""
    if spec.target is None:
        return source.groups.get("y") if source.typed else None
    derived = {name for name, _ in spec.derive}
    return tuple(
        column
        for name in spec.target
        for column in (source.groups.get(name, (name,)) if name not in derived else (name,))
    )


def _join(
    item: JoinSpec, declared: Mapping[str, str], looked_up: dict[str, str], options: Mapping[str, Any] | None
) -> Join:
    """Return the join, its keys of kinds yet open, and note the types of its columns."""
    source = open_raw(item.source, options)
    source.require((*item.on, *(name for name, _ in item.columns)), where="ingest.join")
    given = {name: dtype or declared.get(name) for name, dtype in item.columns}
    if source.typed:
        stored = source.files[0].dtypes(list(given))
    else:
        stored = {name: dtype for name, dtype in given.items() if dtype is not None}
        stored.update(_seen(source, [name for name in given if name not in stored]))
    for name, dtype in given.items():
        if dtype is not None and (dtype == "text") != (stored[name] == "text"):
            raise DataError(
                f"column '{name}' is {stored[name]}, not {dtype}", where=source.uris[0], hint="see ingest.join"
            )
        looked_up[name] = dtype or stored[name]
    columns = tuple(RawColumn(name, kind_of(stored[name])) for name in given)
    return Join(item.source, tuple(RawColumn(name, "text") for name in item.on), columns)


def _seen(source: RawSource, names: list[str]) -> dict[str, str]:
    """Return the types of CSV columns that all their rows fit: the table is small."""
    dtypes = source.files[0].dtypes(names)
    while True:
        try:
            for _table in source.tables({name: kind_of(dtypes[name]) for name in names}):
                pass
        except Unfit as error:
            dtypes[error.column] = "float64" if error.wider == "number" else "text"
        else:
            return dtypes


def _features(spec: IngestSpec, known: tuple[str, ...]) -> tuple[str, ...]:
    out = {*(spec.target or ()), spec.weight}
    encoded = [item.column for item in spec.encode]
    if spec.columns is None:
        return tuple(name for name in known if name not in out)
    chosen: dict[str, None] = {}
    for pattern, _ in spec.columns:
        matching = [pattern] if pattern in known else [name for name in known if fnmatchcase(name, pattern)]
        if not matching:
            raise _unknown(pattern, "ingest.columns", known)
        chosen.update(dict.fromkeys(matching))
    chosen.update(dict.fromkeys(encoded))
    features = tuple(name for name in chosen if name not in out)
    if not features:
        raise ConfError("no feature is left", where="ingest.columns")
    return features


def _all_used(
    spec: IngestSpec,
    derive: tuple[tuple[str, Expression], ...],
    where: Expression | None,
    features: tuple[str, ...],
) -> None:
    used = {*features, *(spec.target or ()), spec.weight, *(where.columns if where else ())}
    for name, expression in reversed(derive):
        if name not in used:
            hint = f"add it to ingest.columns, or take it out ({nearest(name, features)})"
            raise ConfError(f"derived column '{name}' is used nowhere", where=f"ingest.derive.{name}", hint=hint)
        used.update(expression.columns)


def _closure(names: Iterable[str], derive: tuple[tuple[str, Expression], ...], where: Expression | None) -> set[str]:
    needed = {*names, *(where.columns if where else ())}
    for name, expression in reversed(derive):
        if name in needed:
            needed.update(expression.columns)
    return needed
