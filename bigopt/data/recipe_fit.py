"""Fit a recipe: decide what only the data can say, in bounded memory.

One pass over the rows that will be kept finds categories and means. A CSV has no types: they are guessed from its first
rows, and where a guess turns out too narrow the column is widened and the pass begins again, so that the outcome is a
function of the whole file, whatever its first rows look like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np

from bigopt.core.errors import ConfError, DataError
from bigopt.data.columns import Names, ambiguous
from bigopt.data.expression_values import Kind
from bigopt.data.rawread import RawKind, RawSource, Table, Unfit, expression_kind
from bigopt.data.recipe import Feature, RawColumn, Recipe, Target, Value
from bigopt.data.recipe_apply import Steps, category_values, null_rows
from bigopt.data.recipe_join import load_join
from bigopt.data.recipe_plan import Plan, make_plan
from bigopt.data.recipe_spec import Encode, IngestSpec, NullSpec
from bigopt.data.source import SMALL

_MOST_CATEGORIES: Final = 10_000
_MOST_DISTINCT: Final = 1_000_000
_MOST_PASSES: Final = 1000


def fit(spec: IngestSpec, source: RawSource, storage_options: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of a spec on its data.

    Parameters
    ----------
    spec : IngestSpec
    source : RawSource
        Of ``spec.source``.
    storage_options : mapping, optional
        For URLs of joined tables.

    Raises
    ------
    ConfError
        For names that are not there, expressions on the wrong kind, rules that do not fit a column.
    DataError
        For raw data that cannot be used.
    """
    plan = make_plan(spec, source, storage_options)
    for _ in range(_MOST_PASSES):
        try:
            return _fit(plan, source, storage_options)
        except Unfit as error:
            if error.column not in plan.guessed or not error.wider:
                raise
            plan = plan.widened(error.column, cast(RawKind, error.wider))
    raise DataError(
        "the types of the columns do not settle", where=source.uris[0], hint="declare them in ingest.columns"
    )


@dataclass
class _Found:
    """What the pass gathers of one column."""

    counts: Counter[Value] = field(default_factory=Counter)
    total: float = 0.0
    rows: int = 0

    def gather(self, draft: _Draft, table: Table) -> None:
        """Add a table's rows."""
        column = table.columns[draft.column]
        if draft.null.rule == "fill" and column.null is not None:
            fill = np.asarray(draft.null.fill, dtype=object if column.kind == "text" else None)
            column = column._replace(values=np.where(column.null, fill, column.values), null=None)
        if column.null is not None:
            column = column.take(~column.null)
        if draft.encode is None:
            self.total += float(column.numbers().sum())
            self.rows += len(column.values)
            return
        self.counts.update(category_values(column, draft.column, table).tolist())
        most = _MOST_DISTINCT if draft.encode.encoding == "top" else _MOST_CATEGORIES
        if len(self.counts) > most:
            raise DataError(
                f"more than {most} categories in column '{draft.column}'",
                where=table.file,
                hint=f"take the most frequent ones, ingest.encode.{draft.column}={{top: 100}}, or leave it out",
            )


@dataclass(frozen=True)
class _Draft:
    """A feature whose categories or mean may still be open."""

    column: str
    kind: RawKind
    dtype: str
    encode: Encode | None
    null: NullSpec

    @property
    def open(self) -> bool:
        """Whether the pass must find something."""
        counted = self.encode is not None and self.encode.categories is None and self.encode.words is None
        return self.null.rule == "mean" or counted

    def finished(self, found: _Found | None, uri: str) -> Feature:
        """Return the feature."""
        rule, fill = self.null.rule, self.null.fill
        if rule == "mean":
            assert found is not None
            if not found.rows:
                raise DataError(f"column '{self.column}' holds nothing but nulls: no mean", where=uri)
            rule, fill = "fill", found.total / found.rows
        if self.encode is None:
            return Feature(self.column, self.kind, "number", self.dtype, (), cast(Any, rule), fill)
        encoding, categories = self.encode.encoding, self.encode.categories
        if self.encode.words is not None:
            words = self.encode.words
            return Feature(self.column, self.kind, encoding, "float32", (), cast(Any, rule), fill, words)
        if categories is None:
            assert found is not None
            if not found.counts:
                raise DataError(f"column '{self.column}' holds nothing but nulls: no categories", where=uri)
            ranked = sorted(found.counts.items(), key=lambda item: (-item[1], item[0]))
            if encoding == "top" and len(ranked) <= self.encode.top:
                encoding = "onehot"
            kept = ranked[: self.encode.top] if encoding == "top" else ranked
            categories = tuple(sorted(value for value, _ in kept))
        dtype = "uint8"
        if encoding == "ordinal" and len(categories) > 256:
            dtype = "uint16" if len(categories) <= 1 << 16 else "int32"
        return Feature(self.column, self.kind, encoding, dtype, categories, cast(Any, rule), fill)


def _fit(plan: Plan, source: RawSource, options: Mapping[str, Any] | None) -> Recipe:
    spec, kinds, uri = plan.spec, _kinds(plan), source.uris[0]
    encodes = {item.column: item for item in spec.encode}
    drafts = [_draft(name, kinds[name], encodes.get(name), plan, uri) for name in plan.features]
    target = _target(plan, kinds)
    outcome = [*(spec.target or ()), *([spec.weight] if spec.weight else [])]
    drops = [name for name in plan.features if spec.null(name).rule == "drop"]
    drops += [name for name in outcome if _drops(spec, name)]
    found = {draft.column: _Found() for draft in drafts if draft.open}
    if found or plan.guessed:
        steps = Steps(tuple(load_join(join, options) for join in plan.joins), plan.derive, plan.where)
        rows = 0
        for raw in source.tables(plan.raw):
            table = steps.run(raw)
            table = table.take(~null_rows(table, drops))
            rows += table.rows
            for draft in drafts:
                if draft.open and table.rows:
                    found[draft.column].gather(draft, table)
        if not rows:
            raise DataError("no row is left", where=uri, hint="see ingest.where and ingest.nulls")
    features = tuple(draft.finished(found.get(draft.column), uri) for draft in drafts)
    _distinct_names(features)
    return Recipe(
        raw=tuple(RawColumn(name, kind) for name, kind in plan.raw.items()),
        joins=plan.joins,
        derive=spec.derive,
        where=spec.where,
        features=features,
        target=target,
        weight=spec.weight,
        weight_drop=spec.weight is not None and _drops(spec, spec.weight),
    )


def _kinds(plan: Plan) -> dict[str, RawKind]:
    """Return the kind of every column after joins and derivations; refuses expressions on the wrong kind."""
    kinds: dict[str, RawKind] = dict(plan.raw)
    for join in plan.joins:
        kinds.update({column.name: column.kind for column in join.columns})
    plain: dict[str, Kind] = {name: expression_kind(kind) for name, kind in kinds.items()}
    for name, expression in plan.derive:
        kind = expression.kind(plain)
        kinds[name] = cast(RawKind, "number" if kind == "null" else kind)
        plain[name] = expression_kind(kinds[name])
    if plan.where is not None and plan.where.kind(plain) not in ("boolean", "null"):
        raise ConfError(f"'{plan.where.text}' is no condition", where="ingest.where", hint="such as distance > 100")
    return kinds


def _drops(spec: IngestSpec, name: str) -> bool:
    rule = spec.null(name).rule
    if rule not in ("error", "drop"):
        raise ConfError("a missing target or weight is not made up", where=f"ingest.nulls.{name}", hint="error or drop")
    return rule == "drop"


def _draft(name: str, kind: RawKind, encode: Encode | None, plan: Plan, uri: str) -> _Draft:
    null = plan.spec.null(name)
    if encode is None and kind == "text":
        raise DataError(
            f"column '{name}' holds text, a feature is a number",
            where=uri,
            hint=f"encode it (ingest.encode.{name}=onehot, or words), or leave it out by ingest.columns",
        )
    if encode is not None and encode.words is not None and kind != "text":
        raise ConfError(f"'{name}' is {kind}, words are found in text", where=f"ingest.encode.{name}")
    if encode is not None and encode.categories is not None:
        _agrees(encode.categories, kind, f"ingest.encode.{name}")
    if null.rule == "mean" and (encode is not None or kind not in ("integer", "number")):
        raise ConfError(
            f"'{name}' is no number: it has no mean", where=f"ingest.nulls.{name}", hint="error, drop or a value"
        )
    if null.rule == "fill":
        assert null.fill is not None
        _agrees((null.fill,), kind, f"ingest.nulls.{name}")
        if encode is not None and encode.categories is not None and null.fill not in encode.categories:
            raise ConfError(f"{null.fill!r} is none of the categories", where=f"ingest.nulls.{name}")
    return _Draft(name, kind, _dtype(name, kind, null, plan), encode, null)


def _agrees(values: tuple[Value, ...], kind: RawKind, where: str) -> None:
    for value in values:
        seen = "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"
        if seen != expression_kind(kind):
            raise ConfError(f"{value!r} is {seen}, the column is {expression_kind(kind)}", where=where)


def _dtype(name: str, kind: RawKind, null: NullSpec, plan: Plan) -> str:
    """Return the dtype of a column as a plain feature: declared, or stored, or float64; floating for a broken fill."""
    derived = "bool" if kind == "boolean" else "float64"
    dtype = plan.declared.get(name) or plan.dtypes.get(name) or plan.looked_up.get(name) or derived
    broken = null.rule == "mean" or (null.rule == "fill" and isinstance(null.fill, float) and null.fill % 1 != 0)
    if dtype.startswith("float") or not broken or dtype == "text":
        return dtype
    if name in plan.declared:
        raise ConfError(
            f"'{name}' is declared {dtype}", where=f"ingest.nulls.{name}", hint="declare float32 or float64"
        )
    return "float32" if dtype in SMALL else "float64"


def _target(plan: Plan, kinds: Mapping[str, RawKind]) -> Target | None:
    spec = plan.spec
    if spec.target is None:
        return None
    own = tuple(kinds[name] for name in spec.target)
    if len({expression_kind(kind) for kind in own}) > 1:
        raise ConfError(f"targets of different kinds: {', '.join(own)}", where="data.target")
    stored = [plan.declared.get(name) or plan.dtypes.get(name) or plan.looked_up.get(name) for name in spec.target]
    default = {"boolean": "bool", "text": "text"}.get(own[0], "float64")
    dtypes = {dtype or default for dtype in stored}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float64"
    if spec.classes is not None:
        _agrees(spec.classes, own[0], "data.classes")
    return Target(spec.target, own, dtype, all(_drops(spec, name) for name in spec.target), spec.classes)


def _distinct_names(features: tuple[Feature, ...]) -> None:
    double = ambiguous([name for feature in features for name in feature.names])
    if double is not None:
        owners = [f.column for f in features if double in Names(f.names)]
        raise ConfError(f"{' and '.join(map(repr, owners))} both make a feature '{double}'", where="ingest.encode")
