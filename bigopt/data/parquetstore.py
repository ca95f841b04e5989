"""Rows of Parquet files: one column a feature, or one fixed-size-list column for all of them.

A row group is read column chunk by column chunk, its pages decoded in batches of at most about two megabytes, so that
no more than a batch is held beside the compressed bytes. With a manifest a row group's bytes are fetched in one range
and compared with the manifest first; without one they are streamed, and page checksums verified where the file has any.
Nulls are looked for before anything is converted (Arrow's ``flatten`` would drop rows).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.errors import DataError
from bigopt.data.files import Counted, Files, Segment, open_files, place
from bigopt.data.manifest import Manifest, expected_manifest, read_manifest
from bigopt.data.parquetmeta import group_range, read_footer
from bigopt.data.source import Array, Partition, Rows

PIECE_BYTES: Final = 2 << 20
PIECE_ROWS: Final = 1 << 16
STREAM_BYTES: Final = 1 << 20
_TENSORS: Final = frozenset({"float32", "float64", "int32", "int64", "int16", "uint8", "int8", "uint16"})
_FAILURES: Final = (pa.ArrowException, OSError, ValueError, RuntimeError, MemoryError, EOFError)


@wire
@dataclass(frozen=True)
class ParquetSource:
    """Selected columns of Parquet files.

    Parameters
    ----------
    uri : str
    options : dict
        ``data.storage_options``.
    fingerprint : str
        What `identity` returned when the dataset was opened.
    verified : bool
        Whether there is a manifest.
    columns : sequence of str
        Names of the features.
    stored : str
        dtype of X.
    picks : tuple of int
        Columns within the fixed-size list `feature_list`; empty for all of them, and for the other layout.
    feature_list : str or None
        Name of the fixed-size-list column that holds the features.
    target : tuple of str
    weight : str or None
    skip_bad : bool
        ``data.on_bad_rows: skip``.
    keys : tuple of str
        Files, sorted by name.
    sizes : tuple of int
        Their bytes.
    groups : tuple of tuple of int
        Rows of their row groups.
    lists : tuple of str
        The list columns of sparse rows (indices, then values); empty for dense ones.
    batch_rows : int
        Sparse rows that are decoded at once.
    """

    uri: str
    options: dict[str, Any] = field(repr=False)
    fingerprint: str
    verified: bool
    columns: Sequence[str]
    stored: str
    picks: tuple[int, ...]
    feature_list: str | None
    target: tuple[str, ...]
    weight: str | None
    skip_bad: bool
    keys: tuple[str, ...]
    sizes: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    lists: tuple[str, ...] = ()
    batch_rows: int = 0

    @cached_property
    def _files(self) -> Files:
        return open_files(self.uri, self.options)

    @cached_property
    def _manifest(self) -> Manifest | None:
        return expected_manifest(self._files, self.fingerprint) if self.verified else None

    @cached_property
    def _footers(self) -> dict[int, Any]:
        return {}

    @cached_property
    def _index(self) -> tuple[list[tuple[int, int, int]], list[int]]:
        """(file, group, rows) of every row group in order, and the global row each starts at."""
        entries = [(f, g, rows) for f, groups in enumerate(self.groups) for g, rows in enumerate(groups)]
        return entries, [0, *accumulate(rows for _, _, rows in entries)]

    @property
    def selected(self) -> tuple[str, ...]:
        """Names of the Parquet columns that are read."""
        features = (self.feature_list,) if self.feature_list is not None else self.columns
        return (*features, *self.target, *(() if self.weight is None else (self.weight,)))

    @property
    def sparse(self) -> bool:
        """Never: rows are arrays."""
        return False

    def nonzeros(self, partition: Partition) -> int:
        """Return rows x d."""
        return partition.rows * len(self.columns)

    def cut(self, start: int, stop: int, *, labels: bool) -> ParquetSource:
        """Return the same rows with the features [start, stop) alone; see `bigopt.data.columnview`."""
        picks = () if self.feature_list is None else (self.picks or tuple(range(len(self.columns))))[start:stop]
        columns = self.columns[start:stop]
        return replace(self, columns=columns, picks=picks, target=self.target if labels else ())

    def identity(self) -> str:
        """Read the fingerprint again from the store."""
        from bigopt.data.parquetopen import parquet_identity

        return read_manifest(self._files).fingerprint if self.verified else parquet_identity(self._files)

    def codec(self) -> str:
        """Return the compression codecs of the first row group, for people (asked only of data that can be read)."""
        first = next((f for f, groups in enumerate(self.groups) if groups), 0)
        try:
            next(self._group(first, 0, range(self.groups[first][0]), 0))
        except (DataError, StopIteration, IndexError):
            return "unknown"
        group = self._footer(first).row_group(0)
        names = {group.column(j).compression.lower() for j in range(group.num_columns)}
        return ", ".join(sorted(names))

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows, row group by row group, batch by batch."""
        entries, starts = self._index
        at = bisect_right(starts, partition.start) - 1
        while at < len(entries) and starts[at] < partition.stop:
            file, group, rows = entries[at]
            first = starts[at]
            keep = range(max(0, partition.start - first), min(rows, partition.stop - first))
            if len(keep):
                yield from self._group(file, group, keep, first)
            at += 1
        pa.default_memory_pool().release_unused()

    def place(self, partition: Partition, row: int) -> str:
        """Name file, row group and the rows, local and global."""
        entries, starts = self._index
        at = min(max(0, bisect_right(starts, partition.start + row) - 1), len(entries) - 1)
        file, group, _ = entries[at]
        return self._at(file, group, partition.start + row - starts[at], partition.start + row)

    def _at(self, file: int, group: int, row: int, total: int) -> str:
        return f"{place(self._files, self.keys[file])}, row group {group}, row {row} (global row {total})"

    def _footer(self, file: int) -> Any:
        """Return a file's metadata, read once and compared with what the run opened."""
        if file not in self._footers:
            key, size = self.keys[file], self.sizes[file]
            where = place(self._files, key)
            found = _size(self._files, key)
            if found != size:
                raise DataError(f"{found} bytes, {size} when opened", where=where, hint="truncated or altered")
            metadata, _ = read_footer(self._files, key, size, self._manifest)
            groups = tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
            if groups != self.groups[file]:
                raise DataError("other row groups than the run opened", where=where, hint="start a new run")
            self._footers[file] = metadata
        return self._footers[file]

    def _group(self, file: int, group: int, keep: range, first: int) -> Iterator[Rows]:
        metadata = self._footer(file)
        where = f"{place(self._files, self.keys[file])}, row group {group}"
        try:
            with self._open(file, group, metadata) as handle:
                yield from self._decoded(handle, metadata, file, group, keep, first)
        except _FAILURES as error:
            column = self._culprit(file, group, metadata)
            what = f"column '{column}' " if column else ""
            hint = "truncated or altered: restore it or write the dataset again"
            raise DataError(f"{what}cannot be decoded: {_short(error)}", where=where, hint=hint) from error

    def _decoded(
        self, handle: Segment | Counted, metadata: Any, file: int, group: int, keep: range, first: int
    ) -> Iterator[Rows]:
        """Decode rows `keep` of a row group whose first row is global row `first`, batch by batch."""
        reader = pq.ParquetFile(
            pa.PythonFile(handle, mode="r"),
            metadata=metadata,
            pre_buffer=False,
            buffer_size=0 if self.verified else STREAM_BYTES,
            page_checksum_verification=not self.verified,  # the manifest has vouched for these bytes already
        )
        row = 0
        for batch in reader.iter_batches(self._batch(), [group], list(self.selected), use_threads=False):
            lo, hi = max(keep.start, row), min(keep.stop, row + len(batch))
            if lo < hi:
                cut = batch.slice(lo - row, hi - lo)
                piece = self._convert(cut, lambda r, base=lo: self._at(file, group, base + r, first + base + r))
                yield piece._replace(bytes_read=handle.taken())
            row += len(batch)
            if row >= keep.stop:
                return
        raise ValueError(f"{row} rows, the footer says {self.groups[file][group]}")

    def _batch(self) -> int:
        if self.lists:
            return self.batch_rows
        width = len(self.columns) * np.dtype(self.stored).itemsize
        return int(min(PIECE_ROWS, max(256, PIECE_BYTES // max(1, width))))

    def _open(self, file: int, group: int, metadata: Any) -> Segment | Counted:
        """Return a file object for pyarrow that knows how many bytes were read."""
        key = self.keys[file]
        if self._manifest is not None:
            start, stop = group_range(metadata, group)
            data = self._files.read(key, start, stop)
            self._manifest.check(key, data, f"{place(self._files, key)}, row group {group}", start=start)
            return Segment(self.sizes[file], start, data)
        return Counted(self._files.open(key))

    def _culprit(self, file: int, group: int, metadata: Any) -> str | None:
        """Return the first column of a row group that cannot be decoded."""
        for name in self.selected:
            try:
                with self._open(file, group, metadata) as handle:
                    source = pa.PythonFile(handle, mode="r")
                    options = {"pre_buffer": False, "page_checksum_verification": True}
                    reader = pq.ParquetFile(source, metadata=metadata, **options)
                    for _ in reader.iter_batches(self._batch(), [group], [name], use_threads=False):
                        pass
            except (*_FAILURES, DataError):
                return name
        return None

    def _convert(self, batch: Any, at: Any) -> Rows:
        """Turn a record batch into rows; `at` says where a row lies."""
        bad: npt.NDArray[np.bool_] | None = np.zeros(len(batch), dtype=np.bool_) if self.skip_bad else None
        X: Any
        if self.lists:
            X = self._sparse(batch, at, bad)
        elif self.feature_list is not None:
            X = self._listed(batch, self.feature_list, at, bad)
            X = X[:, list(self.picks)] if self.picks else X
        else:
            X = self._columns(batch, at, bad)
        labels = [self._vector(batch, name, at, bad) for name in self.target]
        y = labels[0] if len(labels) == 1 else np.column_stack(labels) if labels else None
        weight = None if self.weight is None else self._vector(batch, self.weight, at, bad)
        return Rows(X, y, weight, 0, bad)

    def _columns(self, batch: Any, at: Any, bad: Array | None) -> Array:
        """Return one column a feature as rows: by Arrow where all have one type and no nulls, else one by one."""
        features, kind = batch.select(list(self.columns)), pa.from_numpy_dtype(np.dtype(self.stored))
        alike = self.stored in _TENSORS and all(field.type == kind for field in features.schema)
        if alike and not any(column.null_count for column in features.columns):
            return np.asarray(features.to_tensor(row_major=True).to_numpy())
        X = np.empty((len(batch), len(self.columns)), dtype=self.stored)
        for j, name in enumerate(self.columns):
            X[:, j] = self._vector(batch, name, at, bad)
        return X

    def _sparse(self, batch: Any, at: Any, bad: Array | None) -> CSR:
        """Return the lists as rows (of unknown width); a null list is a bad row without values."""
        vectors, bounds = [], []
        for name in self.lists:
            column = batch.column(batch.schema.get_field_index(name))
            if column.null_count:
                column = self._filled(column, name, at, bad, pa.scalar([], column.type))
            offsets = np.asarray(column.offsets).astype(np.int64)
            elements = column.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
            if elements.null_count:
                inside = int(np.argmax(elements.is_null().to_numpy(zero_copy_only=False)))
                row = int(np.searchsorted(offsets - offsets[0], inside, side="right")) - 1
                raise DataError(f"column '{name}' has a null within a list", where=at(row))
            vectors.append(_numpy(elements))
            bounds.append(offsets - offsets[0])
        differ = bounds[0] != bounds[-1]
        if differ.any():
            row = int(np.argmax(differ)) - 1
            counts = [f"{b[row + 1] - b[row]} {name}" for b, name in zip(bounds, self.lists, strict=True)]
            raise DataError(f"{' and '.join(counts)} in one row", where=at(row), hint="a value for each index")
        return CSR(vectors[-1], vectors[0], bounds[0], 0)

    def _listed(self, batch: Any, name: str, at: Any, bad: Array | None) -> Array:
        column = batch.column(batch.schema.get_field_index(name))
        width = column.type.list_size
        if column.null_count:
            column = self._filled(column, name, at, bad, pa.scalar([0] * width, column.type))
        values = column.flatten()
        if values.null_count:
            values = self._filled(values, name, lambda r: at(r // width), None if bad is None else bad, None, width)
        return _numpy(values).reshape(len(batch), width)

    def _vector(self, batch: Any, name: str, at: Any, bad: Array | None) -> Array:
        column = batch.column(batch.schema.get_field_index(name))
        if pa.types.is_fixed_size_list(column.type):
            return self._listed(batch, name, at, bad)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if column.null_count:
            column = self._filled(column, name, at, bad, None)
        return _numpy(column)

    def _filled(self, column: Any, name: str, at: Any, bad: Array | None, fill: Any, width: int = 1) -> Any:
        """Refuse nulls, or mark their rows and fill them."""
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        if bad is None:
            row = int(np.argmax(nulls))
            count = int(nulls.sum())
            raise DataError(
                f"column '{name}' has a null ({count} in these {len(nulls)} values)",
                where=at(row),
                hint="set ingest.nulls and ingest again, or data.on_bad_rows=skip",
            )
        bad |= nulls.reshape(len(bad), width).any(axis=1)
        if fill is None:
            text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            fill = "" if text or str(column.type) == "string_view" else False if column.type == pa.bool_() else 0
            fill = pa.scalar(fill, column.type)
        return pa.compute.if_else(column.is_null(), fill, column)


def _numpy(column: Any) -> Array:
    """Return a column without nulls as NumPy: a view where Arrow allows, text as ``U``.

    Arrow's own ``to_numpy`` imports pandas, which takes a worker longer than its first partitions.
    """
    if column.type in (pa.string(), pa.large_string(), pa.string_view()):
        return np.array(column.to_pylist(), dtype=np.str_)
    if len(column) and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        dtype = np.dtype(column.type.to_pandas_dtype())
        return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _size(files: Files, key: str) -> int:
    try:
        return files.size(key)
    except FileNotFoundError as error:
        raise DataError("missing", where=place(files, key), hint="it was there when the run opened it") from error
