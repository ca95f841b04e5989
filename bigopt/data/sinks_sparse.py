"""Where a writer's sparse rows go: a Zarr group of vectors, or Parquet with two list columns.

Zarr: ``data`` and ``indices`` in whole chunks of a fixed number of values, ``indptr``, ``y`` and ``weight`` in whole
chunks of rows, ``shape`` at the end. Parquet: ``indices`` and ``values``, one list each a row, a row group a block.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bigopt.core.csr import CSR
from bigopt.data.columns import Names
from bigopt.data.manifest import Chunk
from bigopt.data.rooms import index_dtype
from bigopt.data.sinks import chunks_of_folder
from bigopt.data.sinks_parquet import ParquetFiles
from bigopt.data.source import Array

VALUES: Final = (1 << 10, 1 << 17)
"""Least and most values of a chunk."""
LISTS: Final = ("indices", "values")
"""Parquet's columns of sparse rows."""


class _Tail:
    """Values that wait until they fill a chunk of a Zarr vector.

    Parameters
    ----------
    array : zarr.Array
    chunk : int
    """

    def __init__(self, array: Any, chunk: int) -> None:
        self._array, self._chunk = array, chunk
        self._held: list[Array] = []
        self._count, self.written = 0, 0

    def add(self, values: Array) -> None:
        """Take values; write what fills whole chunks."""
        self._held.append(values)
        self._count += len(values)
        if self._count >= self._chunk:
            self._write(self._count // self._chunk * self._chunk)

    def _write(self, count: int) -> None:
        values = np.concatenate(self._held)
        stop = self.written + count
        self._array.resize((stop, *self._array.shape[1:]))
        self._array[self.written : stop] = values[:count]
        self._held, self._count, self.written = [values[count:].copy()], self._count - count, stop

    def finish(self) -> None:
        """Write the rest."""
        if self._count:
            self._write(self._count)


class SparseZarrSink:
    """A Zarr v3 group of sparse rows: zstd and crc32c, no chunk left out.

    Parameters
    ----------
    folder : Path
    columns, target : sequence of str
    dtype : str
        Of the values.
    target_dtype : str or None
        ``text`` for strings.
    outputs : int
        q; 0 for a vector y.
    weight : bool
    chunk_rows, chunk_values : int
        Rows of a chunk of y, weight and indptr; values of a chunk of data and indices.
    """

    def __init__(
        self,
        folder: Path,
        *,
        columns: Sequence[str],
        target: Sequence[str],
        dtype: str,
        target_dtype: str | None,
        outputs: int,
        weight: bool,
        chunk_rows: int,
        chunk_values: int,
    ) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        self._folder, self._chunk_rows, self._width = folder, chunk_rows, len(columns)
        self._rows = self._values = 0
        attributes: dict[str, Any] = {"target": list(target)}
        if not isinstance(columns, Names):
            attributes["columns"] = list(columns)
        self._group = zarr.open_group(str(folder), mode="w-", zarr_format=3, attributes=attributes)
        values = min(max(chunk_values, VALUES[0]), VALUES[1])
        arrays: dict[str, tuple[int, tuple[int, ...], str]] = {
            "data": (values, (), dtype),
            "indices": (values, (), index_dtype(len(columns)).name),
            "indptr": (chunk_rows, (), "int64"),
        }
        if target_dtype is not None:
            kind = "str" if target_dtype == "text" else target_dtype
            arrays["y"] = (chunk_rows, (outputs,) if outputs else (), kind)
        if weight:
            arrays["weight"] = (chunk_rows, (), "float64")
        self._options: dict[str, Any] = {
            "compressors": [ZstdCodec(level=1), Crc32cCodec()],
            "config": {"write_empty_chunks": True},
        }
        self._tails = {
            name: _Tail(
                self._group.create_array(
                    name, shape=(0, *more), chunks=(chunk, *more), dtype=kind, **self._options
                ),
                chunk,
            )
            for name, (chunk, more, kind) in arrays.items()
        }  # fmt: skip
        self._tails["indptr"].add(np.zeros(1, dtype=np.int64))

    def write(self, X: CSR, y: Array | None, weight: Array | None) -> None:
        """Append rows."""
        tails = self._tails
        tails["data"].add(X.data)
        tails["indices"].add(X.indices)
        tails["indptr"].add(X.indptr[1:] + self._values)
        if y is not None:
            tails["y"].add(y)
        if weight is not None:
            tails["weight"].add(weight)
        self._rows, self._values = self._rows + len(X), self._values + len(X.data)

    def finish(self) -> list[Chunk]:
        """Write the rest and the shape; list every file below the group."""
        for tail in self._tails.values():
            tail.finish()
        shape = self._group.create_array("shape", shape=(2,), chunks=(2,), dtype="int64", **self._options)
        shape[:] = np.array([self._rows, self._width])
        return chunks_of_folder(self._folder, {"y", "weight"}, self._chunk_rows, self._rows)


class SparseParquetSink:
    """Parquet files ``part-00000.parquet``, ...: zstd, page checksums, a row group a block.

    Parameters
    ----------
    folder : Path
    columns, target : sequence of str
    dtype, target_dtype : str
    weight : str or None
        Name of the weight column.
    """

    def __init__(
        self,
        folder: Path,
        *,
        columns: Sequence[str],
        target: Sequence[str],
        dtype: str,
        target_dtype: str | None,
        weight: str | None,
    ) -> None:
        import pyarrow as pa

        self._index = index_dtype(len(columns))
        kinds = (pa.from_numpy_dtype(self._index), pa.from_numpy_dtype(np.dtype(dtype)))
        self._lists = [pa.list_(pa.field("element", kind, nullable=False)) for kind in kinds]
        fields = [pa.field(name, kind, nullable=False) for name, kind in zip(LISTS, self._lists, strict=True)]
        notes = {"features": str(len(columns)), "target": json.dumps(list(target))}
        if not isinstance(columns, Names):
            notes["columns"] = json.dumps(list(columns))
        self._files = ParquetFiles(folder, fields, target, target_dtype, weight, notes)

    def write(self, X: CSR, y: Array | None, weight: Array | None) -> None:
        """Append a row group."""
        import pyarrow as pa

        offsets = pa.array(X.indptr.astype(np.int32))
        vectors = (X.indices.astype(self._index, copy=False), X.data)
        features = [
            pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values)), type=kind)
            for kind, values in zip(self._lists, vectors, strict=True)
        ]
        self._files.write(features, y, weight, len(X), X.nbytes)

    def finish(self) -> list[Chunk]:
        """List every row group, and what follows the last one of each file."""
        return self._files.finish()
