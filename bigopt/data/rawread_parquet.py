"""Parquet as a raw table: batches of a few columns, page checksums verified, nothing loaded whole.

Numbers, booleans and text (also dictionaries of text) are columns; a fixed-size list of numbers is as many columns as
it is long, by its name and a number. Dates, decimals and nested values are refused where they are used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bigopt.core.errors import BigoptError, ConfError, DataError
from bigopt.data.expression_values import Column
from bigopt.data.files import Files, place
from bigopt.data.rawread import RawKind, Table, Unfit, block_rows, interchangeable, kind_of


@dataclass(frozen=True)
class ParquetRaw:
    """One Parquet file.

    Parameters
    ----------
    files : Files
    key : str
    """

    files: Files
    key: str

    @property
    def uri(self) -> str:
        """Full name, for messages."""
        return place(self.files, self.key)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ConfError("Parquet needs pyarrow", where=self.uri, hint="pip install 'bigopt[parquet]'") from error
        try:
            with self.files.open(self.key) as handle:
                file = pq.ParquetFile(handle, pre_buffer=False, page_checksum_verification=True)
                yield file
        except (BigoptError, GeneratorExit):
            raise
        except FileNotFoundError as error:
            raise DataError("no such file", where=self.uri) from error
        except (pa.ArrowException, OSError, EOFError) as error:
            raise DataError(f"damaged or no Parquet file: {error}", where=self.uri) from error

    @cached_property
    def _schema(self) -> Any:
        with self._open() as file:
            return file.schema_arrow

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Columns of each field."""
        import pyarrow as pa

        return {
            field.name: tuple(f"{field.name}{j}" for j in range(field.type.list_size))
            if pa.types.is_fixed_size_list(field.type)
            else (field.name,)
            for field in self._schema
        }

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        names = tuple(name for group in self.groups.values() for name in group)
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"two columns are called '{twice}'", where=self.uri)
        return names

    @cached_property
    def _places(self) -> dict[str, tuple[str, int]]:
        return {name: (group, j) for group, names in self.groups.items() for j, name in enumerate(names)}

    def dtypes(self, names: Sequence[str]) -> dict[str, str]:
        """Return NumPy dtype names (``text`` for text)."""
        return {name: self._dtype(self._places[name][0], name) for name in names}

    def _dtype(self, field: str, name: str) -> str:
        import pyarrow as pa

        kind = self._schema.field(field).type
        if pa.types.is_fixed_size_list(kind) or pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return "text"
        if pa.types.is_null(kind):
            return "float64"
        if pa.types.is_boolean(kind):
            return "bool"
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return str(np.dtype(kind.to_pandas_dtype()).name)
        raise DataError(
            f"column '{name}' is {kind}, neither number, boolean nor text",
            where=self.uri,
            hint="leave it out by ingest.columns, or convert it first",
        )

    def tables(self, kinds: Mapping[str, RawKind]) -> Iterator[Table]:
        """Yield all rows of some columns."""
        stored = self.dtypes(tuple(kinds))
        for name, kind in kinds.items():
            if not interchangeable(kind, kind_of(stored[name])):
                raise Unfit(f"column '{name}' is {stored[name]}, not {kind}", where=self.uri, column=name)
        fields = list(dict.fromkeys(self._places[name][0] for name in kinds))
        start = 0
        with self._open() as file:
            step = block_rows(sum(8 * len(self.groups[field]) for field in fields))
            for batch in file.iter_batches(batch_size=step, columns=fields, use_threads=False):
                table = Table({}, np.arange(start, start + batch.num_rows), self.uri, "row")
                for field in fields:
                    for name, column in zip(self.groups[field], _columns(batch.column(field))):
                        if name in kinds:
                            table.columns[name] = column
                yield Table({name: table.columns[name] for name in kinds}, *table[1:])
                start += batch.num_rows


def _columns(values: Any) -> list[Column]:
    """Return the columns of an Arrow array: one, or as many as a fixed-size list is long."""
    import pyarrow as pa

    kind = values.type
    if pa.types.is_fixed_size_list(kind):
        gone = (
            values.is_null().to_numpy(zero_copy_only=False) if values.null_count else np.zeros(len(values), dtype=bool)
        )
        flat = pa.concat_arrays([values]).values.slice(values.offset * kind.list_size, len(values) * kind.list_size)
        (inner,) = _columns(flat)
        inside = np.zeros(len(inner.values), dtype=bool) if inner.null is None else inner.null
        nulls = inside.reshape(-1, kind.list_size) | gone[:, None]
        grid = np.where(nulls.reshape(-1), 0, inner.values).reshape(-1, kind.list_size)
        return [Column(grid[:, j], nulls[:, j] if nulls[:, j].any() else None) for j in range(kind.list_size)]
    null = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if pa.types.is_null(kind):
        return [Column(np.zeros(len(values)), np.ones(len(values), dtype=bool))]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [Column(np.array(values.fill_null("").to_pylist(), dtype=object), null)]
    if null is not None:
        values = values.fill_null(False if pa.types.is_boolean(kind) else pa.scalar(0).cast(kind))
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind == "f":
        wide = array.astype(np.float64)
        nan = np.isnan(wide)
        if nan.any():
            null = nan if null is None else null | nan
            wide = np.where(nan, 0.0, wide)
        return [Column(wide, null)]
    if array.dtype.kind in "iu":
        array = array.astype(np.uint64 if array.dtype == np.uint64 else np.int64)
    return [Column(array, null)]
