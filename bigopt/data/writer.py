"""Write a dataset: rows in, whole chunks out, checksums and a manifest, one atomic rename.

`DatasetWriter` takes rows in blocks of any size, in order, and holds at most about one partition. What it writes
appears at once when it is complete (see `bigopt.data.publish`), the manifest last.

Partitions and chunks are the same for either format: chunks (row groups) are cut where `partition_rows` says, or, where
it is None, at about 2 MB, with partitions of 1 to 8 chunks so that there are at least 8 of them. Sparse rows count by
the values of an average row among the first ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np

from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError, DataError
from bigopt.data.columns import Names, Run, ambiguous
from bigopt.data.files import shown
from bigopt.data.manifest import LAYOUTS, NAME, Column, ColumnMoments, Manifest
from bigopt.data.moments import RunningMoments
from bigopt.data.parts import Part, cast, copied, joined, part, plain
from bigopt.data.publish import Publication
from bigopt.data.rooms import index_dtype
from bigopt.data.sinks import ParquetSink, Sink, ZarrSink
from bigopt.data.sinks_sparse import SparseParquetSink, SparseZarrSink
from bigopt.data.source import (
    MIN_PARTITIONS,
    NUMERIC,
    PARTITION_BYTES,
    PARTITION_ROWS,
    Array,
    chosen_partition_rows,
    chunk_rows_of,
    common_chunk_rows,
    partition_sizes,
)
from bigopt.data.sparse import ROW_BYTES, checked

FORMATS: Final = ("zarr", "parquet")
MEASURED: Final = (4096, 1 << 21)
"""Sparse rows whose bytes decide the chunks: so many, or fewer that hold so many values."""


class DatasetWriter:
    """Context manager: `append` blocks of rows, commit on a clean exit, nothing left behind on an error.

    Parameters
    ----------
    path : str
        Local path or fsspec URL of the dataset's folder.
    format : {"zarr", "parquet"}
    columns : sequence of str
        Names of the features (`bigopt.data.columns.Names` where there are many).
    target : sequence of str
        Names of the targets; empty for none.
    weight : str or None
        Name of the weight column.
    dtype : str
        NumPy dtype of X as stored.
    target_dtype : str or None
        NumPy dtype of y as stored, ``text`` for strings; None: that of the first block.
    kinds : mapping, optional
        Kind of columns and targets for the manifest where it is not plain from the dtype (``category``).
    classes : sequence, optional
        Declared labels.
    partition_rows : int, sequence of int or None
        Rows of each partition, or the sizes of all; chosen where None.
    layout : {"columns", "list", "sparse"}
        Parquet: one column a feature, or one fixed-size-list column. Either format: ``sparse`` takes CSR rows.
    recipe : mapping, optional
        Ingest's recipe (plain JSON values).
    extra : mapping, optional
        More for the manifest.
    force : bool
        Replace a dataset that is there.
    storage_options : mapping, optional

    Raises
    ------
    ConfError
        Where something is there already, for unknown formats and dtypes, for names that occur twice.
    DataError
        In `append`, for shapes and values that do not fit.

    Examples
    --------
    >>> with DatasetWriter("d.zarr", format="zarr", columns=["a", "b"], target=["y"]) as writer:  # doctest: +SKIP
    ...     writer.append(X, y)
    >>> writer.manifest.rows  # doctest: +SKIP
    """

    manifest: Manifest

    def __init__(
        self,
        path: str,
        *,
        format: Literal["zarr", "parquet"],
        columns: Sequence[str],
        target: Sequence[str] = (),
        weight: str | None = None,
        dtype: str = "float64",
        target_dtype: str | None = None,
        kinds: Mapping[str, str] | None = None,
        classes: Sequence[Any] | None = None,
        partition_rows: int | Sequence[int] | None = None,
        layout: Literal["columns", "list", "sparse"] = "columns",
        recipe: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        force: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        parts = columns.parts if isinstance(columns, Names) else tuple(columns)
        double = ambiguous((*parts, *target, *([weight] if weight else [])))
        if double is not None or not len(columns):
            found = "no feature columns" if double is None else f"column '{double}' occurs twice"
            raise ConfError(found, where=shown(path))
        if format not in FORMATS or layout not in LAYOUTS:
            raise ConfError(f"format '{format}', layout '{layout}'", where="ingest.format", hint="zarr or parquet")
        if dtype not in NUMERIC or (target_dtype is not None and target_dtype not in NUMERIC | {"text"}):
            raise ConfError(f"dtype '{dtype}', target '{target_dtype}'", where=shown(path), hint="a NumPy number")
        if target_dtype == "text" and len(target) > 1:
            raise ConfError("several targets of text", where=shown(path), hint="one text target")
        self._sparse = layout == "sparse"
        if isinstance(columns, Names) and not self._sparse:
            raise ConfError("runs of columns are for sparse rows", where=shown(path))
        self._path, self._format = path, format
        self._layout = layout if format == "parquet" or self._sparse else "columns"
        self._columns, self._target, self._weight = columns, list(target), weight
        self._dtype, self._target_dtype = np.dtype(dtype), target_dtype
        self._kinds, self._classes, self._recipe, self._extra = dict(kinds or {}), classes, recipe, dict(extra or {})
        self._partition_rows, self._options = partition_rows, dict(storage_options or {})
        self._item = self._dtype.itemsize + index_dtype(len(columns)).itemsize
        self._row_bytes = 0 if self._sparse else len(columns) * self._dtype.itemsize
        self._sink: Sink | None = None
        self._cuts: Iterator[int] | None = None
        self._cut, self._chunk_rows = 0, 0
        self._held: list[Part] = []
        self._held_rows, self._held_values, self.rows = 0, 0, 0
        self._emitted: list[tuple[int, int]] = []
        self._moments: dict[str, RunningMoments] = {}
        self._publication = Publication(path, self._options, force)
        self._folder = self._publication.begin()

    def append(self, X: Array | CSR, y: Array | None = None, weight: Array | None = None) -> None:
        """Add rows.

        Parameters
        ----------
        X : ndarray or CSR, shape (k, d)
        y : ndarray, shape (k,) or (k, q), or None
        weight : ndarray, shape (k,), or None

        Raises
        ------
        DataError
            For shapes that do not fit, rows that should be CSR, and values the stored dtype cannot hold.
        """
        if isinstance(X, CSR) != self._sparse:
            raise DataError(f"{'dense' if self._sparse else 'sparse'} rows in a dataset that is not", where=self._path)
        if len(X.shape) != 2 or X.shape[1] != len(self._columns):
            raise DataError(f"a block of shape {X.shape}, not rows by {len(self._columns)} columns", where=self._path)
        if (y is None) != (not self._target) or (weight is None) != (self._weight is None):
            raise DataError("target or weight are given and not declared, or the reverse", where=self._path)
        if isinstance(X, CSR):
            checked(X, lambda row: f"row {self.rows + row} of what is written to {self._path}")
            X = CSR(cast(X.data, self._dtype, "X", self._path), X.indices, X.indptr, X.columns)
        else:
            X = cast(X, self._dtype, "X", self._path)
        if y is not None:
            y = self._labels(y, len(X))
        if weight is not None:
            weight = cast(weight, np.dtype(np.float64), "weight", self._path)
            if weight.shape != (len(X),):
                raise DataError(f"weight of shape {weight.shape} for {len(X)} rows", where=self._path)
        if len(X) == 0:
            return
        for name, block in (("X", X), ("y", y), ("weight", weight)):
            if block is not None and not isinstance(block, CSR) and block.dtype.kind != "U":
                matrix = block.reshape(len(block), -1)
                self._moments.setdefault(name, RunningMoments(matrix.shape[1])).update(matrix)
        self._held.append((X, y, weight))
        self._held_rows += len(X)
        self._held_values += len(X.data) if isinstance(X, CSR) else 0
        self.rows += len(X)
        if self._sink is None and (self._held_rows >= MEASURED[0] or self._held_values >= MEASURED[1]):
            self._measure()
        if self._sink is None and self._held_rows >= self._first_need():
            self._begin()
        while self._sink is not None and self._cut and self._held_rows >= self._cut:
            self._emit(self._cut)
        if self._held:  # the caller may use its arrays again
            X, y, weight = self._held[-1]
            self._held[-1] = (copied(X), None if y is None else y.copy(), None if weight is None else weight.copy())

    def _labels(self, y: Array, rows: int) -> Array:
        q = len(self._target)
        if y.shape not in ((rows,), (rows, q)) or (y.ndim == 1 and q > 1):
            raise DataError(f"y of shape {y.shape} for {rows} rows and {q} targets", where=self._path)
        y = y.reshape(rows) if q == 1 else y
        if self._target_dtype is None:
            self._target_dtype = "text" if y.dtype.kind in "UT" else y.dtype.name
            if self._target_dtype not in NUMERIC | {"text"} or (self._target_dtype == "text" and q > 1):
                raise DataError(f"a target of dtype {y.dtype}", where=self._path, hint="numbers, booleans, one text")
        if self._target_dtype == "text":
            if y.dtype.kind not in "UT":
                raise DataError(f"a target of dtype {y.dtype} where text is stored", where=self._path)
            return y if y.dtype.kind == "U" else np.array(y.tolist(), dtype=np.str_)
        return cast(y, np.dtype(self._target_dtype), "y", self._path)

    def _measure(self) -> None:
        """Take the bytes of a sparse row from the first rows: at most so many, until they hold so many values."""
        if not self._sparse or self._row_bytes:
            return
        rows = values = 0
        for X, _, _ in self._held:
            part = X[: MEASURED[0] - rows]
            enough = max(1, int(np.searchsorted(part.indptr, MEASURED[1] - values)))
            part = part[:enough]
            rows, values = rows + len(part), values + len(part.data)
            if rows >= MEASURED[0] or values >= MEASURED[1]:
                break
        self._row_bytes = ROW_BYTES + -(-values * self._item // rows)

    def _first_need(self) -> int:
        """Rows to have before the chunk size is decided."""
        if self._row_bytes == 0:
            return self.rows + 1
        if self._partition_rows is None:
            return MIN_PARTITIONS * self._small_chunk()
        return 1

    def _small_chunk(self) -> int:
        rows = min(PARTITION_BYTES // MIN_PARTITIONS // max(1, self._row_bytes), PARTITION_ROWS // MIN_PARTITIONS)
        return 1 << max(0, int(rows).bit_length() - 1)

    def _begin(self) -> None:
        """Decide the chunks and open the sink."""
        asked = self._partition_rows
        sizes: Sequence[int] | None = None
        if asked is None:
            whole = self._held_rows >= self._first_need()
            chunk = self._small_chunk() if whole else chosen_partition_rows(self.rows, self._row_bytes)
        elif isinstance(asked, int):
            if asked < 1:
                raise ConfError(f"{asked} rows", where="ingest.partition_rows", hint="at least 1")
            chunk = chunk_rows_of(asked, self._row_bytes)
        else:
            sizes = [int(s) for s in asked if int(s)]
            chunk = common_chunk_rows(sizes, self._row_bytes)
        self._chunk_rows = chunk
        outputs = len(self._target) if len(self._target) > 1 else 0
        if self._sparse:
            self._sink = self._sparse_sink(chunk, outputs)
        elif self._format == "zarr":
            self._sink = ZarrSink(
                self._folder, columns=self._columns, target=self._target, dtype=self._dtype.name,
                target_dtype=self._target_dtype, outputs=outputs, weight=self._weight is not None, chunk_rows=chunk,
            )  # fmt: skip
            sizes = None
        else:
            self._sink = ParquetSink(
                self._folder, columns=self._columns, target=self._target, dtype=self._dtype.name,
                target_dtype=self._target_dtype, weight=self._weight, layout=self._layout,
            )  # fmt: skip
        self._cuts = iter(sizes) if sizes is not None else None
        self._cut = chunk if self._cuts is None else next(self._cuts, 0)

    def _sparse_sink(self, chunk: int, outputs: int) -> Sink:
        common: dict[str, Any] = {
            "columns": self._columns, "target": self._target, "dtype": self._dtype.name,
            "target_dtype": self._target_dtype,
        }  # fmt: skip
        if self._format == "parquet":
            return SparseParquetSink(self._folder, weight=self._weight, **common)
        values = chunk * max(1, (self._row_bytes - ROW_BYTES) // self._item)
        return SparseZarrSink(
            self._folder, outputs=outputs, weight=self._weight is not None, chunk_rows=chunk, chunk_values=values,
            **common,
        )  # fmt: skip

    def _emit(self, rows: int) -> None:
        """Write the first `rows` of the rows held as one chunk."""
        taken: list[Part] = []
        need = rows
        while need:
            block = self._held[0]
            have = len(block[0])
            if have <= need:
                taken.append(self._held.pop(0))
                need -= have
            else:
                taken.append(part(block, slice(0, need)))
                self._held[0] = part(block, slice(need, None))
                need = 0
        assert self._sink is not None
        X, y, weight = (joined([block[k] for block in taken]) for k in range(3))
        self._sink.write(X, y, weight)
        self._held_rows -= rows
        self._emitted.append((rows, len(X.data) if self._sparse else 0))
        if self._cuts is not None:
            self._cut = next(self._cuts, 0)

    def _partitions(self) -> tuple[int, ...]:
        if self._partition_rows is not None:
            return tuple(s for s in partition_sizes(self.rows, self._partition_rows))
        size = self._chunk_rows
        for factor in (2, 4, 8):
            large = factor * self._chunk_rows
            if self.rows >= MIN_PARTITIONS * large and large * self._row_bytes <= PARTITION_BYTES:
                size = large
        return partition_sizes(self.rows, size)

    def _column(self, name: str | Run, dtype: str, moments: ColumnMoments | None) -> Column:
        plain = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}
        kind = "text" if dtype == "text" else plain[np.dtype(dtype).kind]
        if isinstance(name, Run):
            return Column(name.prefix, dtype, kind, None, name.size)
        return Column(name, dtype, self._kinds.get(name, kind), moments)

    def _features(self, moments: list[ColumnMoments] | None) -> tuple[Column, ...]:
        names = self._columns.parts if isinstance(self._columns, Names) else tuple(self._columns)
        found: Sequence[ColumnMoments | None] = moments or [None] * len(names)
        return tuple(self._column(name, self._dtype.name, m) for name, m in zip(names, found, strict=True))

    def _nonzeros(self, partitions: Sequence[int]) -> list[int]:
        """Return the stored values of each partition: partitions end where a chunk ends."""
        ends = np.cumsum([0, *(rows for rows, _ in self._emitted)])
        values = np.cumsum([0, *(values for _, values in self._emitted)])
        at = np.searchsorted(ends, np.cumsum([0, *partitions]))
        return [int(v) for v in np.diff(values[at])]

    def _finish(self) -> Manifest:
        if self.rows == 0:
            raise DataError("no rows to write", where=shown(self._path), hint="see ingest.where and ingest.nulls")
        if self._sink is None:
            self._measure()
            self._begin()
        partitions = self._partitions()
        while self._held_rows:
            self._emit(min(self._cut or self._held_rows, self._held_rows))
        assert self._sink is not None
        chunks = self._sink.finish()
        moments = {name: running.finish() for name, running in self._moments.items()}
        targets: list[ColumnMoments | None] = [*moments["y"]] if "y" in moments else [None] * len(self._target)
        kind = self._target_dtype or ""
        return Manifest(
            format=self._format,
            layout=self._layout,
            rows=self.rows,
            columns=self._features(moments.get("X")),
            target=tuple(self._column(n, kind, m) for n, m in zip(self._target, targets, strict=True)),
            weight=None if self._weight is None else self._column(self._weight, "float64", moments["weight"][0]),
            classes=None if self._classes is None else tuple(plain(c) for c in self._classes),
            partitions=partitions,
            chunks=tuple(chunks),
            recipe=self._recipe,
            extra={**self._extra, "nonzeros": self._nonzeros(partitions)} if self._sparse else self._extra,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.manifest = self._finish()
                (self._folder / NAME).write_bytes(self.manifest.to_json())
                self._publication.commit()
        except OSError as failure:
            where = shown(self._path)
            raise DataError(f"cannot be written: {failure.strerror or failure}", where=where) from failure
        finally:
            self._publication.end()
