"""Where a writer's blocks go: a Zarr group or Parquet files in a local folder, with checksums in the format itself.

A sink is told each block of rows once, in order, and at the end lists what it wrote as chunks of the manifest, reading
the files back to take their checksums.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from bigopt.data.manifest import Chunk, digest_of
from bigopt.data.source import Array

FILE_BYTES: Final = 256 << 20
"""Decoded bytes after which a new Parquet file is begun."""
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

        self._pa, self._folder, self._columns, self._target = pa, folder, list(columns), list(target)
        self._weight, self._layout = weight, layout
        item = pa.from_numpy_dtype(np.dtype(dtype))
        fields = (
            [pa.field(LIST_COLUMN, pa.list_(pa.field("element", item, nullable=False), len(columns)), nullable=False)]
            if layout == "list"
            else [pa.field(name, item, nullable=False) for name in columns]
        )
        label = pa.string() if target_dtype == "text" else target_dtype and pa.from_numpy_dtype(np.dtype(target_dtype))
        fields += [pa.field(name, label, nullable=False) for name in target]
        if weight is not None:
            fields.append(pa.field(weight, pa.float64(), nullable=False))
        notes: Mapping[str, str] = {"columns": json.dumps(list(columns)), "target": json.dumps(list(target))}
        self._schema = pa.schema(fields, metadata=dict(notes))
        self._coded = [f.name for f in fields if not pa.types.is_floating(f.type) and f.name != LIST_COLUMN]
        self._writer: Any = None
        self._files, self._bytes = 0, 0

    def write(self, X: Array, y: Array | None, weight: Array | None) -> None:
        """Append a row group."""
        pa = self._pa
        import pyarrow.parquet as pq

        if self._writer is None or self._bytes > FILE_BYTES:
            self._close()
            path = self._folder / f"part-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(
                str(path), self._schema, compression="zstd", compression_level=1, write_page_checksum=True,
                use_dictionary=self._coded or False,
            )  # fmt: skip
            self._files, self._bytes = self._files + 1, 0
        if self._layout == "list":
            flat = pa.array(np.ascontiguousarray(X).reshape(-1))
            data = [pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field(LIST_COLUMN).type)]
        else:
            data = [pa.array(np.ascontiguousarray(X[:, j])) for j in range(X.shape[1])]
        for k, _ in enumerate(self._target):
            assert y is not None
            data.append(label_array(y if y.ndim == 1 else y[:, k]))
        if weight is not None:
            data.append(pa.array(weight))
        self._writer.write_table(pa.Table.from_arrays(data, schema=self._schema), row_group_size=max(1, len(X)))
        self._bytes += X.nbytes

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def finish(self) -> list[Chunk]:
        """List every row group, and what follows the last one of each file."""
        self._close()
        return chunks_of_parquet(self._folder)


def label_array(values: Array) -> Any:
    """Return labels as an Arrow array."""
    import pyarrow as pa

    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string())
    return pa.array(np.ascontiguousarray(values))


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


def chunks_of_parquet(folder: Path) -> list[Chunk]:
    """Return every row group of the files in a folder, and what follows the last one of each."""
    import pyarrow.parquet as pq

    from bigopt.data.parquetmeta import group_range

    chunks = []
    for path in sorted(folder.glob("*.parquet")):
        metadata, stop = pq.read_metadata(str(path)), 4
        with open(path, "rb") as handle:
            for group in range(metadata.num_row_groups):
                start, stop = group_range(metadata, group)
                handle.seek(start)
                data = handle.read(stop - start)
                rows = metadata.row_group(group).num_rows
                chunks.append(Chunk(path.name, start, len(data), rows, digest_of(data)))
            handle.seek(stop)
            data = handle.read()
            chunks.append(Chunk(path.name, stop, len(data), 0, digest_of(data)))
    return chunks
