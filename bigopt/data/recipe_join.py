"""Small tables looked up by key: read into memory once, and once more wherever the recipe is applied.

A key that stands in several rows of the joined table is an error of the row that asks for it; a row without a partner
gets nulls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bigopt.core.errors import DataError
from bigopt.data.expression_values import Column
from bigopt.data.rawread import Table, open_raw
from bigopt.data.recipe import Join

_JOIN_ROWS: Final = 4_000_000


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
