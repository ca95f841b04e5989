"""The steps of a recipe on one table: join, derive, filter, and encode to numbers.

All steps are pure functions of a `Table`; errors name the file, the line or row, the column and the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from bigopt.core.errors import DataError
from bigopt.data.expression import Expression, parse
from bigopt.data.expression_values import Array, Column, Mask
from bigopt.data.rawread import Table, open_raw
from bigopt.data.recipe import Feature, Join, Mode, Recipe, Target

Unknown = Literal["error", "zero"]

_JOIN_ROWS: Final = 4_000_000
_LONGEST_LABEL: Final = 256


class Encoded(NamedTuple):
    """Rows as numbers.

    Parameters
    ----------
    X : ndarray, shape (k, d)
        In the recipe's dtype, finite.
    y : ndarray, shape (k,) or (k, q), or None
        Labels: numbers, booleans or text (NumPy ``U``).
    weight : ndarray, shape (k,), float64, or None
    bad : ndarray of bool, shape (k,)
        Rows (zeros) whose nulls the recipe drops; only for predict.
    """

    X: Array
    y: Array | None
    weight: Array | None
    bad: Mask


@dataclass(frozen=True)
class Lookup:
    """The joined table in memory.

    Parameters
    ----------
    join : Join
    rows : dict of tuple to int
        Row number by key; -2 - r where the key stands more than once, first in row r.
    columns : dict of str to Column
        What it brings.
    table : Table
        The whole table, for messages.
    """

    join: Join
    rows: dict[tuple[Any, ...], int]
    columns: dict[str, Column]
    table: Table

    def add(self, table: Table) -> Table:
        """Return the table with the joined columns.

        Raises
        ------
        DataError
            Where a row's key stands more than once in the joined table.
        """
        keys = _keys(table, self.join)
        index = np.fromiter((self.rows.get(key, -1) for key in keys), dtype=np.int64, count=table.rows)
        if (index < -1).any():
            row = int(np.argmax(index < -1))
            key = ", ".join(f"{column.name} {value}" for column, value in zip(self.join.on, keys[row]))
            first = self.table.place(int(-2 - index[row]))
            raise DataError(f"more than one row of {first} and below has {key}", where=table.place(row))
        missing = index < 0
        columns = dict(table.columns)
        for name, column in self.columns.items():
            null = missing if column.null is None else missing | column.null[index]
            columns[name] = Column(column.values[index], null if null.any() else None)
        return table._replace(columns=columns)


def _keys(table: Table, join: Join) -> list[tuple[Any, ...]]:
    parts = []
    for key in join.on:
        column = table.columns[key.name]
        values = column.values.tolist()
        if column.null is not None:
            values = [None if gone else value for value, gone in zip(values, column.null.tolist())]
        parts.append(values)
    return list(zip(*parts))


def load_join(join: Join, storage_options: Mapping[str, Any] | None = None) -> Lookup:
    """Read a joined table into memory.

    Raises
    ------
    DataError
        For a file that cannot be read, that lacks a column, or that is no small table.
    """
    source = open_raw(join.source, storage_options)
    kinds = {column.name: column.kind for column in (*join.on, *join.columns)}
    source.require(kinds, where="ingest.join")
    tables: list[Table] = []
    for table in source.tables(kinds):
        tables.append(table)
        if sum(t.rows for t in tables) > _JOIN_ROWS:
            raise DataError(
                f"more than {_JOIN_ROWS} rows, too large to join from memory",
                where=table.file,
                hint="join it beforehand",
            )
    if not tables:
        raise DataError("no rows", where=source.uris[0])
    columns = {name: _concatenated([table.columns[name] for table in tables]) for name in kinds}
    numbers = np.concatenate([table.numbers for table in tables])
    whole = Table(columns, numbers, tables[0].file, tables[0].unit)
    rows: dict[tuple[Any, ...], int] = {}
    for row, key in enumerate(_keys(whole, join)):
        if None in key:
            continue
        first = rows.setdefault(key, row)
        if first >= 0 and first != row:
            rows[key] = -2 - first
    return Lookup(join, rows, {column.name: columns[column.name] for column in join.columns}, whole)


def _concatenated(columns: list[Column]) -> Column:
    values = np.concatenate([column.values for column in columns])
    if all(column.null is None for column in columns):
        return Column(values)
    nulls = [np.zeros(len(c.values), dtype=bool) if c.null is None else c.null for c in columns]
    return Column(values, np.concatenate(nulls))


@dataclass(frozen=True)
class Steps:
    """What happens before encoding: lookups, derivations, the row filter.

    Parameters
    ----------
    lookups : tuple of Lookup
    derive : tuple of (name, Expression)
    where : Expression or None
    """

    lookups: tuple[Lookup, ...]
    derive: tuple[tuple[str, Expression], ...]
    where: Expression | None

    def run(self, table: Table) -> Table:
        """Return the table with joined and derived columns, and only the rows that `where` keeps."""
        for lookup in self.lookups:
            table = lookup.add(table)
        columns = dict(table.columns)
        for name, expression in self.derive:
            columns[name] = _evaluated(expression, columns, table, f"derived column '{name}'")
        table = table._replace(columns=columns)
        if self.where is None:
            return table
        values, null = _evaluated(self.where, columns, table, "where")
        return table.take(values if null is None else values & ~null)


def _evaluated(expression: Expression, columns: Mapping[str, Column], table: Table, what: str) -> Column:
    try:
        return expression.evaluate(columns, table.rows)
    except DataError as error:
        where = f"{table.file}, {table.unit}s {table.numbers[0]} to {table.numbers[-1]}"
        raise DataError(f"{what}: {error.message}", where=where, hint=error.hint) from error


def steps_of(recipe: Recipe, mode: Mode, storage_options: Mapping[str, Any] | None = None) -> Steps:
    """Return the steps of a recipe, joined tables read."""
    return Steps(
        tuple(load_join(join, storage_options) for join in recipe.joined(mode)),
        tuple((name, parse(text, where=f"recipe.{name}")) for name, text in recipe.derivations(mode)),
        parse(recipe.where, where="recipe.where") if recipe.where and mode != "predict" else None,
    )


def null_rows(table: Table, columns: Iterable[str]) -> Mask:
    """Return the rows with a null in any of some columns."""
    found = np.zeros(table.rows, dtype=bool)
    for name in columns:
        null = table.columns[name].null
        if null is not None:
            found |= null
    return found


def dropping(recipe: Recipe, mode: Mode) -> tuple[str, ...]:
    """Return the columns whose nulls take the row out."""
    names = [feature.column for feature in recipe.features if feature.null == "drop"]
    if mode != "predict":
        names += [*(recipe.target.columns if recipe.target and recipe.target.drop else ())]
        names += [recipe.weight] if recipe.weight and recipe.weight_drop else []
    return tuple(names)


def encode(recipe: Recipe, table: Table, *, mode: Mode, unknown: Unknown = "error") -> Encoded:
    """Return a table, after `Steps.run`, as numbers; rows with nulls to drop are already gone unless mode is predict.

    Raises
    ------
    DataError
        Naming file, line or row, column and value: a null, an unknown category, a number that the dtype cannot hold.
    """
    X = np.zeros((table.rows, len(recipe.columns)), dtype=recipe.dtype)
    bad = null_rows(table, dropping(recipe, mode)) if mode == "predict" else np.zeros(table.rows, dtype=bool)
    at = 0
    for feature in recipe.features:
        width = len(feature.names)
        column = filled(feature, table, bad)
        if feature.encode == "number":
            X[:, at] = _numbers(column, feature.dtype, feature.column, table)
        else:
            _categories(X[:, at : at + width], feature, column, table, bad, unknown)
        at += width
    X[bad] = 0
    if mode == "predict":
        return Encoded(X, None, None, bad)
    weight = None
    if recipe.weight is not None:
        weight = _numbers(_complete(table, recipe.weight, "weight"), "float64", recipe.weight, table)
    return Encoded(X, None if recipe.target is None else _labels(recipe.target, table), weight, bad)


def filled(feature: Feature, table: Table, bad: Mask) -> Column:
    """Return a feature's column without nulls; the nulls of `bad` rows count as zero.

    Raises
    ------
    DataError
        For a null that nothing replaces.
    """
    column = table.columns[feature.column]
    if column.null is None:
        return column
    if feature.null == "fill":
        values = column.values
        if column.kind == "number" and isinstance(feature.fill, float):
            values = column.numbers()
        return Column(np.where(column.null, np.asarray(feature.fill, dtype=values.dtype), values))
    left = column.null & ~bad
    if left.any():
        raise DataError(
            f"null in column '{feature.column}'",
            where=table.place(int(np.argmax(left))),
            hint=f"say what to do with it in ingest.nulls ({{{feature.column}: drop | mean | a value}})",
        )
    return Column(column.values)


def _complete(table: Table, name: str, what: str) -> Column:
    column = table.columns[name]
    if column.null is not None:
        raise DataError(
            f"null in column '{name}', the {what}",
            where=table.place(int(np.argmax(column.null))),
            hint=f"leave such rows out by ingest.nulls ({{{name}: drop}})",
        )
    return column


def _numbers(column: Column, dtype: str, name: str, table: Table) -> Array:
    """Return values in a dtype, refusing those that it cannot hold."""
    values, wanted = column.values, np.dtype(dtype)
    if values.dtype == wanted and wanted.kind != "f":
        return values
    if wanted.kind == "f":
        with np.errstate(over="ignore"):
            result = (values if wanted.itemsize < 8 else column.numbers()).astype(wanted, copy=False)
        wrong = ~np.isfinite(result)
    else:
        low, high = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
        inside = (values >= low) & (values <= high) if values.dtype.kind != "b" else np.ones(len(values), dtype=bool)
        if values.dtype.kind == "f":
            inside &= np.floor(values) == values
        result = np.where(inside, values, 0).astype(wanted)
        wrong = ~inside
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{values[row]} in column '{name}' cannot be held as {dtype}",
            where=table.place(row),
            hint="declare another type in ingest.columns, or leave the row out by ingest.where",
        )
    return result


def category_values(column: Column, name: str, table: Table) -> Array:
    """Return values that can be categories: text, booleans or integers (whole floats become integers)."""
    values = column.values
    if values.dtype.kind != "f":
        return values
    return _numbers(column, "int64", name, table)


def _categories(X: Array, feature: Feature, column: Column, table: Table, bad: Mask, unknown: Unknown) -> None:
    """Write the features of a column of categories into X, which holds zeros."""
    values = category_values(column, feature.column, table)
    number = {category: i for i, category in enumerate(feature.categories)}
    if values.dtype.kind == "O":
        index = np.fromiter((number.get(v, -1) for v in values), dtype=np.int64, count=len(values))
    else:
        distinct, inverse = np.unique(values, return_inverse=True)
        index = np.array([number.get(v, -1) for v in distinct.tolist()], dtype=np.int64)[inverse.reshape(-1)]
    new = (index < 0) & ~bad
    if feature.encode == "top":
        index[new] = len(feature.categories)
    elif new.any() and (unknown == "error" or feature.encode == "ordinal"):
        row = int(np.argmax(new))
        hint = "data.unknown=zero takes it for none of them" if feature.encode == "onehot" else "an ordinal has no zero"
        raise DataError(
            f"'{values[row]}' in column '{feature.column}' is none of the {len(number)} categories of the recipe",
            where=table.place(row),
            hint=hint,
        )
    rows = np.flatnonzero((index >= 0) & ~bad)
    if feature.encode == "ordinal":
        X[rows, 0] = index[rows]
    else:
        X[rows, index[rows]] = 1


def _labels(target: Target, table: Table) -> Array:
    parts = []
    for name in target.columns:
        column = _complete(table, name, "target")
        if target.dtype != "text":
            parts.append(_numbers(column, target.dtype, name, table))
            continue
        longest = max(map(len, column.values), default=0)
        if longest > _LONGEST_LABEL:
            row = int(np.argmax([len(v) == longest for v in column.values]))
            raise DataError(f"a label of {longest} characters in column '{name}'", where=table.place(row))
        parts.append(np.array(column.values, dtype=f"U{max(1, longest)}"))
    if target.classes is not None:
        for name, part in zip(target.columns, parts):
            wrong = ~np.isin(part, np.array(target.classes))
            if wrong.any():
                row = int(np.argmax(wrong))
                raise DataError(
                    f"label '{part[row]}' in column '{name}' is none of data.classes", where=table.place(row)
                )
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
