"""Where a writer's blocks go: a Zarr group or Parquet files in a local folder, with checksums in the format itself.

A sink is told each block of rows once, in order, and at the end lists what it wrote as chunks of the manifest, reading
the files back to take their checksums.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from bigopt.data.manifest import Chunk, digest_of
from bigopt.data.sinks_parquet import ParquetFiles
from bigopt.data.source import Array

LIST_COLUMN: Final = "X"


class Sink(Protocol):
    """Writes blocks of rows below a folder."""

    def write(self, X: Any, y: Array | None, weight: Array | None) -> None:
        """Write one block: a Zarr chunk, a Parquet row group."""
        ...

    def finish(self) -> list[Chunk]:
        """Finish the files and return their chunks."""
        ...


class ZarrSink:
    """A Zarr v3 group: zstd and crc32c, whole chunks of rows, no chunk left out.

    Parameters
    ----------
    folder : Path
    columns, target : sequence of str
        Kept as attributes.
    dtype : str
    target_dtype : str or None
        ``text`` for strings.
    outputs : int
        q; 0 for a vector y.
    weight : bool
    chunk_rows : int
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
    ) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        self._folder, self._chunk_rows, self._rows = folder, chunk_rows, 0
        attributes = {"columns": list(columns), "target": list(target)}
        group = zarr.open_group(str(folder), mode="w-", zarr_format=3, attributes=attributes)
        shapes: dict[str, tuple[tuple[int, ...], str]] = {"X": ((len(columns),), dtype)}
        if target_dtype is not None:
            shapes["y"] = ((outputs,) if outputs else (), "str" if target_dtype == "text" else target_dtype)
        if weight:
            shapes["weight"] = ((), "float64")
        self._arrays = {
            name: group.create_array(
                name,
                shape=(0, *tail),
                chunks=(chunk_rows, *tail),
                dtype=kind,
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
                config={"write_empty_chunks": True},
            )
            for name, (tail, kind) in shapes.items()
        }

    def write(self, X: Array, y: Array | None, weight: Array | None) -> None:
        """Append a whole chunk (the last may be shorter)."""
        stop = self._rows + len(X)
        for name, block in (("X", X), ("y", y), ("weight", weight)):
            if block is not None:
                array = self._arrays[name]
                array.resize((stop, *array.shape[1:]))
                array[self._rows : stop] = block
        self._rows = stop

    def finish(self) -> list[Chunk]:
        """List every file below the group."""
        return chunks_of_folder(self._folder, set(self._arrays), self._chunk_rows, self._rows)


class ParquetSink:
    """Parquet files ``part-00000.parquet``, ...: zstd, page checksums, a row group a block.

    Parameters
    ----------
    folder : Path
    columns, target : sequence of str
    dtype, target_dtype : str
    weight : str or None
        Name of the weight column.
    layout : {"columns", "list"}
        One column a feature, or one fixed-size-list column ``X``.
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
        layout: str,
    ) -> None:
        import pyarrow as pa

        item = pa.from_numpy_dtype(np.dtype(dtype))
        fields = (
            [pa.field(LIST_COLUMN, pa.list_(pa.field("element", item, nullable=False), len(columns)), nullable=False)]
            if layout == "list"
            else [pa.field(name, item, nullable=False) for name in columns]
        )
        notes = {"columns": json.dumps(list(columns)), "target": json.dumps(list(target))}
        self._files = ParquetFiles(folder, fields, target, target_dtype, weight, notes)
        self._list = fields[0].type if layout == "list" else None

    def write(self, X: Array, y: Array | None, weight: Array | None) -> None:
        """Append a row group."""
        import pyarrow as pa

        if self._list is not None:
            flat = pa.array(np.ascontiguousarray(X).reshape(-1))
            features = [pa.FixedSizeListArray.from_arrays(flat, type=self._list)]
        else:
            features = [pa.array(np.ascontiguousarray(X[:, j])) for j in range(X.shape[1])]
        self._files.write(features, y, weight, len(X), X.nbytes)

    def finish(self) -> list[Chunk]:
        """List every row group, and what follows the last one of each file."""
        return self._files.finish()


def chunks_of_folder(folder: Path, by_rows: Container[str], chunk_rows: int, rows: int) -> list[Chunk]:
    """Return every file below a Zarr group; those of the arrays chunked by rows know theirs."""
    chunks = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        key = path.relative_to(folder).as_posix()
        data = path.read_bytes()
        parts = key.split("/")
        held = min(chunk_rows, rows - int(parts[2]) * chunk_rows) if len(parts) > 2 and parts[0] in by_rows else 0
        chunks.append(Chunk(key, 0, len(data), held, digest_of(data)))
    return chunks
