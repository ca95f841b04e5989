"""Sparse rows of Parquet files: two list columns, the columns and the values of each row.

The lists are called ``indices`` and ``values`` (or ``data``); any two list columns of which exactly one holds integers
will do as well. The number of columns d is in the schema's metadata (``features``, or ``shape`` as [n, d]). Foreign
files are scanned when they are opened, indices only, for the values of each partition, and for d where the metadata are
silent: the greatest index + 1. A row group that holds several partitions is decoded from its start for each: write
smaller row groups, or ingest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError, DataError
from bigopt.data.columns import places, x_names
from bigopt.data.files import Files
from bigopt.data.manifest import MAX_COLUMNS, Manifest
from bigopt.data.parquetmeta import ColumnInfo, FileInfo
from bigopt.data.parquetstore import ParquetSource
from bigopt.data.rooms import index_dtype
from bigopt.data.select import Wanted, choose, require_numeric
from bigopt.data.source import Array, Dataset, Partition, Rows, TargetKind, partitions_of
from bigopt.data.sparse import (
    PIECE_ROWS,
    PIECE_VALUES,
    ROW_BYTES,
    Picks,
    checked,
    cut_by_nonzeros,
    picked,
    piece_bytes,
    stored_counts,
)

VALUES: Final = ("values", "data")
_STEP: Final = 1024


@wire
@dataclass(frozen=True)
class ParquetSparseSource:
    """Selected columns of sparse rows in Parquet files.

    Parameters
    ----------
    files : ParquetSource
        Reads the two lists, target and weight; its features are the lists' names.
    columns : sequence of str
        Names of the features.
    width : int
        Columns as stored.
    picks : tuple of (start, stop), or None
        Ranges of the columns that are features; None: all.
    counts : tuple of int
        Stored values of each partition.
    """

    files: ParquetSource
    columns: Sequence[str]
    width: int
    picks: Picks | None
    counts: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        """What `identity` returned when the dataset was opened."""
        return self.files.fingerprint

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Rows of the row groups of each file."""
        return self.files.groups

    def codec(self) -> str:
        """Return the compression codecs, for people."""
        return self.files.codec()

    @property
    def sparse(self) -> bool:
        """Always: rows are CSR."""
        return True

    @property
    def stored(self) -> str:
        """NumPy dtype name of the values."""
        return self.files.stored

    def nonzeros(self, partition: Partition) -> int:
        """Return the stored values of a partition."""
        return self.counts[partition.index]

    def identity(self) -> str:
        """Read the fingerprint again from the store."""
        return self.files.identity()

    def place(self, partition: Partition, row: int) -> str:
        """Name file, row group and the rows, local and global."""
        return self.files.place(partition, row)

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows, row group by row group, batch by batch."""
        row = 0
        for rows in self.files.pieces(partition):
            X = replace(rows.X, columns=self.width)
            checked(X, lambda k, first=row: self.place(partition, first + k))  # type: ignore[misc]
            row += len(X)
            yield rows._replace(X=picked(X, self.picks))


def list_columns(info: FileInfo) -> tuple[str, str] | None:
    """Return the names of the two lists of sparse rows, None where there are none."""
    lists = [name for name, column in info.columns.items() if column.lists]
    if "indices" in lists and len(named := [name for name in VALUES if name in lists]) == 1:
        return "indices", named[0]
    integers = [name for name in lists if info.columns[name].dtype.startswith(("int", "uint"))]
    return (integers[0], next(n for n in lists if n != integers[0])) if (len(lists), len(integers)) == (2, 1) else None


def open_parquet_sparse(
    files: Files,
    wanted: Wanted,
    infos: Sequence[FileInfo],
    *,
    lists: tuple[str, str],
    manifest: Manifest | None,
    target: tuple[str, ...],
    weight: str | None,
    common: Mapping[str, Any],
    warnings: tuple[str, ...],
    kind_of: Callable[[FileInfo, tuple[str, ...], Manifest | None], TargetKind],
) -> Dataset:
    """Open files with two list columns; `common` are the fields of `ParquetSource` that do not depend on columns."""
    first = infos[0]
    for name in lists:
        require_numeric(name, first.columns[name].dtype, files.uri)
    others = {name: column for name, column in first.columns.items() if name not in lists}
    reader = ParquetSource(
        columns=lists, stored=first.columns[lists[1]].dtype, picks=(), feature_list=None, target=(), weight=None,
        lists=lists, batch_rows=_STEP, **common,
    )  # fmt: skip
    rows = sum(map(sum, reader.groups))
    item = np.dtype(reader.stored).itemsize
    if manifest is not None:
        columns, d = manifest.names, len(manifest.names)
        sizes = manifest.partitions
        counts = stored_counts(manifest, files.uri)
    else:
        starts, ends, width = _scanned(reader, rows)
        d = _features(first, width, files.uri)
        cuts = cut_by_nonzeros(starts, ends, item + index_dtype(d).itemsize)
        sizes, counts = tuple(np.diff(starts[cuts]).tolist()), tuple(np.diff(ends[cuts]).tolist())
        columns = _named(first, d) or x_names(d)
    chosen = choose(wanted, columns, labels=tuple(others), target=target, weight=weight, uri=files.uri)
    for name in (*chosen.target, *([chosen.weight] if chosen.weight else [])):
        if name not in others:
            raise ConfError(f"column '{name}' lies within the sparse rows", where="data.target")
    for name in chosen.target:
        if others[name].dtype != "text":
            require_numeric(name, others[name].dtype, files.uri)
    if chosen.weight is not None:
        require_numeric(chosen.weight, others[chosen.weight].dtype, files.uri)
    item += index_dtype(d).itemsize
    source = ParquetSparseSource(
        files=replace(
            reader,
            target=chosen.target,
            weight=chosen.weight,
            batch_rows=int(min(PIECE_ROWS, max(16, PIECE_VALUES * rows // max(1, sum(counts))))),
        ),
        columns=chosen.features,
        width=d,
        picks=places(chosen.features, columns),
        counts=counts,
    )
    return Dataset(
        source=source,
        partitions=partitions_of(sizes),
        target=chosen.target,
        manifest=manifest,
        warnings=warnings,
        classes=manifest.classes if manifest else None,
        target_kind=kind_of(first, chosen.target, manifest) if chosen.target else None,
        weight=chosen.weight,
        row_bytes=-(-sum(counts) * item // rows) + ROW_BYTES + sum(_bytes(others[n]) for n in chosen.target)
        + (0 if chosen.weight is None else 8),
        row_bytes_read=sum(info.stored for info in infos) / rows,
        piece_bytes=piece_bytes(sizes, counts, item),
    )  # fmt: skip


def _bytes(column: ColumnInfo) -> int:
    return (16 if column.dtype == "text" else np.dtype(column.dtype).itemsize) * max(1, column.width)


def _scanned(reader: ParquetSource, rows: int) -> tuple[Array, Array, int]:
    """Read the indices: rows at which a partition may begin, values before each, greatest index + 1."""
    starts, ends, most, row, values = [0], [0], 0, 0, 0
    indices = replace(reader, columns=reader.columns[:1], lists=reader.lists[:1])
    step = max(1, min(_STEP, rows // 64))
    for piece in indices.pieces(Partition(0, 0, rows)):
        X = piece.X
        if len(X.indices):
            most = max(most, int(X.indices.max()) + 1)
        at = np.arange(0, len(X), step)[1:].tolist()
        starts += [row + k for k in at] + [row + len(X)]
        ends += [values + int(X.indptr[k]) for k in at] + [values + len(X.data)]
        row, values = row + len(X), values + len(X.data)
    return np.array(starts), np.array(ends), most


def _features(info: FileInfo, found: int, uri: str) -> int:
    """Return d: what the schema's metadata say, else what was found."""
    text = info.notes.get("features")
    try:
        given = int(text) if text else int(json.loads(info.notes.get("shape", "[0, 0]"))[1])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(f"metadata features {text!r}, shape {info.notes.get('shape')!r}", where=uri) from error
    if not 0 <= given <= MAX_COLUMNS or (given and found > given) or not (given or found):
        raise DataError(
            f"index {found - 1} of {given} columns", where=uri, hint="metadata features: the number of them"
        )
    return given or found


def _named(info: FileInfo, d: int) -> tuple[str, ...]:
    try:
        names = json.loads(info.notes.get("columns", "[]"))
    except (ValueError, RecursionError):
        return ()
    good = isinstance(names, list) and all(isinstance(v, str) for v in names)
    return tuple(names) if good and len(set(names)) == len(names) == d else ()
