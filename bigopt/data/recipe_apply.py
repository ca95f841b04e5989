"""The steps of a recipe on one table: join, derive, filter, and encode to numbers.

All steps are pure functions of a `Table`; errors name the file, the line or row, the column and the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from bigopt.core.csr import CSR
from bigopt.core.errors import DataError
from bigopt.data.expression import Expression, parse
from bigopt.data.expression_values import Array, Column, Mask
from bigopt.data.rawread import Table
from bigopt.data.recipe import Feature, Mode, Recipe, Target
from bigopt.data.recipe_join import Lookup, load_join
from bigopt.data.rooms import index_dtype
from bigopt.data.words import hashed

Unknown = Literal["error", "zero"]

_LONGEST_LABEL: Final = 256


class Encoded(NamedTuple):
    """Rows as numbers.

    Parameters
    ----------
    X : ndarray or CSR, shape (k, d)
        In the recipe's dtype, finite; CSR where the recipe is sparse.
    y : ndarray, shape (k,) or (k, q), or None
        Labels: numbers, booleans or text (NumPy ``U``).
    weight : ndarray, shape (k,), float64, or None
    bad : ndarray of bool, shape (k,)
        Rows (zeros) whose nulls the recipe drops; only for predict.
    """

    X: Any
    y: Array | None
    weight: Array | None
    bad: Mask


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
    bad = null_rows(table, dropping(recipe, mode)) if mode == "predict" else np.zeros(table.rows, dtype=bool)
    X = _sparse(recipe, table, bad, unknown) if recipe.sparse else _dense(recipe, table, bad, unknown)
    if mode == "predict":
        return Encoded(X, None, None, bad)
    weight = None
    if recipe.weight is not None:
        weight = _numbers(_complete(table, recipe.weight, "weight"), "float64", recipe.weight, table)
    return Encoded(X, None if recipe.target is None else _labels(recipe.target, table), weight, bad)


def _dense(recipe: Recipe, table: Table, bad: Mask, unknown: Unknown) -> Array:
    X = np.zeros((table.rows, len(recipe.columns)), dtype=recipe.dtype)
    at = 0
    for feature in recipe.features:
        column = filled(feature, table, bad)
        if feature.encode == "number":
            X[:, at] = _numbers(column, feature.dtype, feature.column, table)
        else:
            index = _categories(feature, column, table, bad, unknown)
            rows = np.flatnonzero(index >= 0)
            if feature.encode == "ordinal":
                X[rows, at] = index[rows]
            else:
                X[rows, at + index[rows]] = 1
        at += feature.width
    X[bad] = 0
    return X


def _sparse(recipe: Recipe, table: Table, bad: Mask, unknown: Unknown) -> CSR:
    """Gather what is not zero, feature by feature, and put it in the order of rows."""
    parts: list[tuple[Array, Array, Array]] = []
    at = 0
    for feature in recipe.features:
        column = filled(feature, table, bad)
        if feature.words is not None:
            words = hashed(["" if gone else text for text, gone in zip(column.values, bad)], feature.words)
            rows, columns, values = np.repeat(np.arange(len(words)), np.diff(words.indptr)), words.indices, words.data
        elif feature.encode == "number":
            number = _numbers(column, feature.dtype, feature.column, table)
            rows = np.flatnonzero((number != 0) & ~bad)
            columns, values = np.zeros(len(rows), dtype=np.int64), number[rows]
        else:
            index = _categories(feature, column, table, bad, unknown)
            ordinal = feature.encode == "ordinal"
            rows = np.flatnonzero(index > 0 if ordinal else index >= 0)
            columns = np.zeros(len(rows), dtype=np.int64) if ordinal else index[rows]
            values = index[rows] if ordinal else np.ones(len(rows))
        parts.append((rows, columns.astype(np.int64) + at, values.astype(recipe.dtype)))
        at += feature.width
    rows, columns, values = (np.concatenate([part[k] for part in parts]) for k in range(3))
    order = np.argsort(rows, kind="stable")  # columns rise within each part, and from part to part
    indptr = np.searchsorted(rows[order], np.arange(table.rows + 1)).astype(np.int64)
    return CSR(values[order], columns[order].astype(index_dtype(at)), indptr, at)


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


def _categories(feature: Feature, column: Column, table: Table, bad: Mask, unknown: Unknown) -> Array:
    """Return the number of each row's category, -1 for none of them and for bad rows."""
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
    return np.where(bad, -1, index)


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
