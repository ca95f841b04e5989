"""Write a dataset: rows in, whole chunks out, checksums and a manifest, one atomic rename.

`DatasetWriter` takes rows in blocks of any size, in order, and holds at most about one partition. What it writes
appears at once when it is complete (see `bigopt.data.publish`), the manifest last.

Partitions and chunks are the same for either format: chunks (row groups) are cut where `partition_rows` says, or, where
it is None, at about 2 MB, with partitions of 1 to 8 chunks so that there are at least 8 of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np

from bigopt.core.errors import ConfError, DataError
from bigopt.data.files import shown
from bigopt.data.manifest import NAME, Column, ColumnMoments, Manifest
from bigopt.data.moments import RunningMoments
from bigopt.data.publish import Publication
from bigopt.data.sinks import ParquetSink, Sink, ZarrSink
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

FORMATS: Final = ("zarr", "parquet")


class DatasetWriter:
    """Context manager: `append` blocks of rows, commit on a clean exit, nothing left behind on an error.

    Parameters
    ----------
    path : str
        Local path or fsspec URL of the dataset's folder.
    format : {"zarr", "parquet"}
    columns : sequence of str
        Names of the features.
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
    layout : {"columns", "list"}
        Parquet: one column a feature, or one fixed-size-list column.
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
        layout: Literal["columns", "list"] = "columns",
        recipe: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        force: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        names = [*columns, *target, *([weight] if weight else [])]
        double = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
        if double or not columns:
            raise ConfError(f"column '{double[0]}' occurs twice" if double else "no feature columns", where=shown(path))
        if format not in FORMATS or layout not in ("columns", "list"):
            raise ConfError(f"format '{format}', layout '{layout}'", where="ingest.format", hint="zarr or parquet")
        if dtype not in NUMERIC or (target_dtype is not None and target_dtype not in NUMERIC | {"text"}):
            raise ConfError(f"dtype '{dtype}', target '{target_dtype}'", where=shown(path), hint="a NumPy number")
        if target_dtype == "text" and len(target) > 1:
            raise ConfError("several targets of text", where=shown(path), hint="one text target")
        self._path, self._format, self._layout = path, format, layout if format == "parquet" else "columns"
        self._columns, self._target, self._weight = list(columns), list(target), weight
        self._dtype, self._target_dtype = np.dtype(dtype), target_dtype
        self._kinds, self._classes, self._recipe, self._extra = dict(kinds or {}), classes, recipe, dict(extra or {})
        self._partition_rows, self._options = partition_rows, dict(storage_options or {})
        self._row_bytes = len(self._columns) * self._dtype.itemsize
        self._sink: Sink | None = None
        self._cuts: Iterator[int] | None = None
        self._cut, self._chunk_rows = 0, 0
        self._held: list[tuple[Array, Array | None, Array | None]] = []
        self._held_rows, self.rows = 0, 0
        self._moments: dict[str, RunningMoments] = {}
        self._publication = Publication(path, self._options, force)
        self._folder = self._publication.begin()

    def append(self, X: Array, y: Array | None = None, weight: Array | None = None) -> None:
        """Add rows.

        Parameters
        ----------
        X : ndarray, shape (k, d)
        y : ndarray, shape (k,) or (k, q), or None
        weight : ndarray, shape (k,), or None

        Raises
        ------
        DataError
            For shapes that do not fit and values the stored dtype cannot hold.
        """
        if X.ndim != 2 or X.shape[1] != len(self._columns):
            raise DataError(f"a block of shape {X.shape}, not rows by {len(self._columns)} columns", where=self._path)
        if (y is None) != (not self._target) or (weight is None) != (self._weight is None):
            raise DataError("target or weight are given and not declared, or the reverse", where=self._path)
        X = _cast(X, self._dtype, "X", self._path)
        if y is not None:
            y = self._labels(y, len(X))
        if weight is not None:
            weight = _cast(weight, np.dtype(np.float64), "weight", self._path)
            if weight.shape != (len(X),):
                raise DataError(f"weight of shape {weight.shape} for {len(X)} rows", where=self._path)
        if len(X) == 0:
            return
        for name, block in (("X", X), ("y", y), ("weight", weight)):
            if block is not None and block.dtype.kind != "U":
                matrix = block.reshape(len(block), -1)
                self._moments.setdefault(name, RunningMoments(matrix.shape[1])).update(matrix)
        self._held.append((X, y, weight))
        self._held_rows += len(X)
        self.rows += len(X)
        if self._sink is None and self._held_rows >= self._first_need():
            self._begin()
        while self._sink is not None and self._cut and self._held_rows >= self._cut:
            self._emit(self._cut)
        if self._held:  # the caller may use its arrays again
            X, y, weight = self._held[-1]
            self._held[-1] = (X.copy(), None if y is None else y.copy(), None if weight is None else weight.copy())

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
        return _cast(y, np.dtype(self._target_dtype), "y", self._path)

    def _first_need(self) -> int:
        """Rows to have before the chunk size is decided."""
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
        if self._format == "zarr":
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

    def _emit(self, rows: int) -> None:
        """Write the first `rows` of the rows held as one chunk."""
        taken: list[tuple[Array, Array | None, Array | None]] = []
        need = rows
        while need:
            block = self._held[0]
            have = len(block[0])
            if have <= need:
                taken.append(self._held.pop(0))
                need -= have
            else:
                taken.append(_part(block, slice(0, need)))
                self._held[0] = _part(block, slice(need, None))
                need = 0
        assert self._sink is not None
        self._sink.write(*(_joined([block[k] for block in taken]) for k in range(3)))  # type: ignore[arg-type]
        self._held_rows -= rows
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

    def _column(self, name: str, dtype: str, moments: ColumnMoments | None) -> Column:
        plain = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}
        kind = "text" if dtype == "text" else plain[np.dtype(dtype).kind]
        return Column(name, dtype, self._kinds.get(name, kind), moments)

    def _finish(self) -> Manifest:
        if self.rows == 0:
            raise DataError("no rows to write", where=shown(self._path), hint="see ingest.where and ingest.nulls")
        if self._sink is None:
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
            columns=tuple(
                self._column(n, self._dtype.name, m) for n, m in zip(self._columns, moments["X"], strict=True)
            ),
            target=tuple(self._column(n, kind, m) for n, m in zip(self._target, targets, strict=True)),
            weight=None if self._weight is None else self._column(self._weight, "float64", moments["weight"][0]),
            classes=None if self._classes is None else tuple(_plain(c) for c in self._classes),
            partitions=partitions,
            chunks=tuple(chunks),
            recipe=self._recipe,
            extra=self._extra,
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


def _cast(values: Array, dtype: np.dtype[Any], what: str, path: str) -> Array:
    """Convert to the stored dtype; refuse what it cannot hold (rounding of floats is allowed)."""
    if values.dtype == dtype:
        return values
    if values.dtype.name not in NUMERIC or (dtype.kind in "biu" and values.dtype.kind == "f"):
        raise DataError(f"{what} of dtype {values.dtype} where {dtype} is stored", where=shown(path))
    if dtype.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise DataError(f"{what} holds values beyond {dtype}", where=shown(path), hint="a wider dtype")
    if dtype.kind == "b" and values.dtype.kind != "b":
        raise DataError(f"{what} of dtype {values.dtype} where booleans are stored", where=shown(path))
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def _part(block: tuple[Array, Array | None, Array | None], rows: slice) -> tuple[Array, Array | None, Array | None]:
    X, y, weight = block
    return X[rows], None if y is None else y[rows], None if weight is None else weight[rows]


def _joined(parts: list[Array | None]) -> Array | None:
    arrays = [part for part in parts if part is not None]
    return None if not arrays else arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
