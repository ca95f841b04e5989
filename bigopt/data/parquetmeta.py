"""Parquet footers, read and checked before any page: which columns of which type, how many rows in which row groups.

Footers come through `Files` as bytes, so that local disks and object stores are alike, sizes are limited before they
are parsed, and a manifest can vouch for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bigopt.core.errors import DataError
from bigopt.data.files import Files, place, read_file
from bigopt.data.manifest import Manifest
from bigopt.data.select import listed

FOOTER_BYTES: Final = 64 << 20
MAX_GROUPS: Final = 100_000
MAX_ROWS: Final = 1 << 50
_FIRST_READ: Final = 64 << 10

_DTYPES: Final = {
    pa.bool_(): "bool", pa.int8(): "int8", pa.int16(): "int16", pa.int32(): "int32", pa.int64(): "int64",
    pa.uint8(): "uint8", pa.uint16(): "uint16", pa.uint32(): "uint32", pa.uint64(): "uint64",
    pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64",
    pa.string(): "text", pa.large_string(): "text", pa.string_view(): "text",
}  # fmt: skip


@dataclass(frozen=True)
class ColumnInfo:
    """A column: NumPy dtype name (``text``, or Arrow's name of what is not read), width of a fixed-size list or 0.

    `lists` says that each row holds a list of its own length.
    """

    dtype: str
    width: int = 0
    category: bool = False
    lists: bool = False


@dataclass(frozen=True)
class FileInfo:
    """What a footer says.

    Parameters
    ----------
    key : str
    size : int
        Bytes of the file.
    groups : tuple of int
        Rows of each row group.
    columns : dict of str to ColumnInfo
    notes : dict of str to str
        Key-value metadata of the schema.
    stored : int
        Bytes before the footer.
    digest : str
        SHA-256 of the footer.
    """

    key: str
    size: int
    groups: tuple[int, ...]
    columns: dict[str, ColumnInfo]
    notes: dict[str, str]
    stored: int
    digest: str


def column_info(field: Any) -> ColumnInfo:
    """Return how a field of an Arrow schema is read."""
    kind = field.type
    extension = (field.metadata or {}).get(b"ARROW:extension:name")
    if extension is not None or isinstance(kind, pa.BaseExtensionType):
        name = extension.decode("utf-8", "replace") if extension else str(kind)
        return ColumnInfo(f"extension type {name[:60]}")
    if kind in _DTYPES:
        return ColumnInfo(_DTYPES[kind])
    if pa.types.is_dictionary(kind) and kind.value_type in _DTYPES:
        return ColumnInfo(_DTYPES[kind.value_type], category=True)
    if pa.types.is_fixed_size_list(kind) and kind.value_type in _DTYPES and kind.list_size > 0:
        return ColumnInfo(_DTYPES[kind.value_type], width=int(kind.list_size))
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and kind.value_type in _DTYPES:
        return ColumnInfo(_DTYPES[kind.value_type], lists=True)
    return ColumnInfo(str(kind)[:80])


def read_footer(files: Files, key: str, size: int, manifest: Manifest | None = None) -> tuple[Any, bytes]:
    """Return a file's metadata (pyarrow's) and the bytes of its footer, compared with the manifest before it is parsed.

    Raises
    ------
    DataError
        Naming the file that is empty, truncated, foreign, encrypted or beyond the limits.
    """
    where = place(files, key)
    if size == 0:
        raise DataError("an empty file", where=where, hint="truncated or unfinished: write it again")
    if manifest is not None:
        start = manifest.tails.get(key, 0)
        manifest.check(key, files.read(key, start, size), f"{where}, footer", start=start)
        if files.read(key, 0, 4) != b"PAR1":
            raise DataError("altered: it does not start with PAR1", where=where, hint="restore it or ingest again")
    tail = read_file(files, key, limit=FOOTER_BYTES, start=max(0, size - _FIRST_READ), stop=size)
    if size < 12 or tail[-4:] != b"PAR1":
        found = "encrypted" if tail[-4:] == b"PARE" else "no Parquet file: it does not end with PAR1"
        raise DataError(found, where=where, hint="truncated, unfinished or of another format")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > min(size, FOOTER_BYTES):
        what = f"a footer of {length} bytes in a file of {size}"
        raise DataError(what, where=where, hint=f"damaged, or more than {FOOTER_BYTES} bytes of metadata")
    if length > len(tail):
        tail = read_file(files, key, limit=FOOTER_BYTES, start=size - length, stop=size)
    footer = tail[-length:]
    try:
        metadata = pq.read_metadata(pa.BufferReader(footer))
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise DataError(f"a damaged footer: {str(error).splitlines()[0][:200]}", where=where) from error
    if metadata.num_row_groups > MAX_GROUPS or not 0 <= metadata.num_rows <= MAX_ROWS:
        what = f"{metadata.num_row_groups} row groups, {metadata.num_rows} rows"
        raise DataError(what, where=where, hint=f"at most {MAX_GROUPS} row groups a file: write larger ones")
    return metadata, footer


def group_range(metadata: Any, group: int) -> tuple[int, int]:
    """Return the bytes [start, stop) of a row group in its file (for footers that a manifest vouches for)."""
    row_group = metadata.row_group(group)
    starts, stops = [], []
    for j in range(row_group.num_columns):
        column = row_group.column(j)
        start = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset is not None:
            start = min(start, column.dictionary_page_offset) or start
        starts.append(start)
        stops.append(start + column.total_compressed_size)
    return min(starts), max(stops)


def read_info(files: Files, key: str, size: int, manifest: Manifest | None = None) -> FileInfo:
    """Return what a file's footer says.

    Column chunks are not looked at: pyarrow's accessors for them end the process where a footer is damaged, and only a
    manifest can say that it is not.
    """
    metadata, footer = read_footer(files, key, size, manifest)
    where = place(files, key)
    try:
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"a schema that cannot be read: {str(error)[:200]}", where=where) from error
    if len(set(schema.names)) != len(schema.names):
        double = sorted({name for name in schema.names if schema.names.count(name) > 1})
        raise DataError(f"columns that occur twice: {listed(double)}", where=where)
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    rows = tuple(group.num_rows for group in groups)
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise DataError(f"row groups of {sum(rows)} rows in a file of {metadata.num_rows}", where=where)
    notes = {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in (schema.metadata or {}).items()}
    return FileInfo(
        key=key,
        size=size,
        groups=rows,
        columns={field.name: column_info(field) for field in schema},
        notes=notes,
        stored=size - len(footer),
        digest=hashlib.sha256(footer).hexdigest(),
    )


def check_schemas(files: Files, infos: Iterable[FileInfo], used: frozenset[str] | None) -> None:
    """Compare every file's columns, by name, with the first file's.

    Parameters
    ----------
    files : Files
    infos : iterable of FileInfo
    used : frozenset of str or None
        Columns that matter; None: all.

    Raises
    ------
    DataError
        With the difference, naming both files.
    """
    first, *others = infos
    want = {name: info for name, info in first.columns.items() if used is None or name in used}
    for other in others:
        have = {name: info for name, info in other.columns.items() if used is None or name in used}
        if have == want:
            continue
        parts = [f"no column '{name}'" for name in want if name not in have]
        parts += [f"also a column '{name}'" for name in have if name not in want]
        parts += [
            f"'{name}' is {_type(have[name])}, not {_type(want[name])}"
            for name in want
            if name in have and have[name] != want[name]
        ]
        raise DataError(
            f"another schema than {place(files, first.key)}: {'; '.join(parts[:20])}",
            where=place(files, other.key),
            hint="write the files with one schema, or name what you need in data.features",
        )


def _type(info: ColumnInfo) -> str:
    return f"{info.dtype}[{info.width or ''}]" if info.width or info.lists else info.dtype
