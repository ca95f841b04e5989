"""Parquet files as a writer leaves them: labels and weights behind the features, whatever these look like.

Both sinks of Parquet (dense and sparse rows) hand their feature columns to `ParquetFiles`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bigopt.data.manifest import Chunk, digest_of
from bigopt.data.source import Array

FILE_BYTES: Final = 256 << 20
"""Decoded bytes after which a new file is begun."""


class ParquetFiles:
    """Files ``part-00000.parquet``, ...: zstd, page checksums, a row group a block.

    Parameters
    ----------
    folder : Path
    features : sequence of pyarrow.Field
    target : sequence of str
        Names of the label columns.
    target_dtype : str or None
        ``text`` for strings.
    weight : str or None
        Name of the weight column.
    notes : mapping of str to str
        The schema's metadata.
    """

    def __init__(
        self,
        folder: Path,
        features: Sequence[Any],
        target: Sequence[str],
        target_dtype: str | None,
        weight: str | None,
        notes: Mapping[str, str],
    ) -> None:
        import pyarrow as pa

        label = pa.string() if target_dtype == "text" else target_dtype and pa.from_numpy_dtype(np.dtype(target_dtype))
        labels = [pa.field(name, label, nullable=False) for name in target]
        if weight is not None:
            labels.append(pa.field(weight, pa.float64(), nullable=False))
        flat = [field for field in [*features, *labels] if not pa.types.is_nested(field.type)]
        self._schema = pa.schema([*features, *labels], metadata=dict(notes))
        self._coded = [field.name for field in flat if not pa.types.is_floating(field.type)]
        self._folder, self._labels = folder, len(target)
        self._writer: Any = None
        self._files, self._bytes = 0, 0

    def write(self, features: Sequence[Any], y: Array | None, weight: Array | None, rows: int, size: int) -> None:
        """Append a row group.

        Parameters
        ----------
        features : sequence of pyarrow.Array
        y : ndarray, shape (rows,) or (rows, q), or None
        weight : ndarray, shape (rows,), or None
        rows : int
        size : int
            Bytes of the features, decoded.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None or self._bytes > FILE_BYTES:
            self._close()
            path = self._folder / f"part-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(
                str(path), self._schema, compression="zstd", compression_level=1, write_page_checksum=True,
                use_dictionary=self._coded or False,
            )  # fmt: skip
            self._files, self._bytes = self._files + 1, 0
        columns = list(features)
        for k in range(self._labels):
            assert y is not None
            columns.append(_label_array(y if y.ndim == 1 else y[:, k]))
        if weight is not None:
            columns.append(pa.array(weight))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=max(1, rows))
        self._bytes += size

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def finish(self) -> list[Chunk]:
        """List every row group, and what follows the last one of each file."""
        self._close()
        return _chunks(self._folder)


def _label_array(values: Array) -> Any:
    """Return labels as an Arrow array."""
    import pyarrow as pa

    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string())
    return pa.array(np.ascontiguousarray(values))


def _chunks(folder: Path) -> list[Chunk]:
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
