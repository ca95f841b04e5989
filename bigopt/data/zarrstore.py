"""Rows of a Zarr v3 group: arrays X, y and weight, chunked by rows and perhaps by columns, sharded or not.

Chunks of plain arrays are decoded straight into the rows of a block (`ZarrReading`, `bigopt.data.zarrplain`); zarr
decodes all others, from what comes through `bigopt.data.zarrchecked`. A chunk that is not there is an error with a
manifest, else the fill value (Zarr leaves out chunks that hold nothing else; they are counted when the dataset is
opened).

A piece is one chunk of rows, over all its column chunks; several small chunks, or a whole small shard, make one piece
so that the cost of a call is spread over about a megabyte.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.extents import Extents
from bigopt.data.files import Files, open_files, place
from bigopt.data.loading import Loader
from bigopt.data.manifest import Manifest, expected_manifest, read_manifest
from bigopt.data.source import Array, Partition, Rows
from bigopt.data.zarrchecked import CheckedStore, open_array, read_column, read_rows
from bigopt.data.zarrmeta import ArrayInfo
from bigopt.data.zarrplain import Mask, PlainArray

PIECE_BYTES: Final = 1 << 20
SHARD_BYTES: Final = 16 << 20


@wire
@dataclass(frozen=True)
class ZarrSource:
    """Selected columns of a Zarr group.

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
    indices : tuple of int
        Their positions in X.
    labels : tuple of (str, int)
        For each target the array and the column in it (-1: a vector).
    weights : tuple of (str, int), or None
        The same for the weight.
    arrays : tuple of ArrayInfo
        X first, then the others that are read.
    """

    uri: str
    options: dict[str, Any] = field(repr=False)
    fingerprint: str
    verified: bool
    columns: Sequence[str]
    indices: tuple[int, ...]
    labels: tuple[tuple[str, int], ...]
    weights: tuple[str, int] | None
    arrays: tuple[ArrayInfo, ...]

    @cached_property
    def _files(self) -> Files:
        return open_files(self.uri, self.options)

    @cached_property
    def _manifest(self) -> Manifest | None:
        return expected_manifest(self._files, self.fingerprint) if self.verified else None

    @property
    def X(self) -> ArrayInfo:
        """Metadata of the array of features."""
        return self.arrays[0]

    @property
    def stored(self) -> str:
        """NumPy dtype name of X."""
        return self.X.dtype

    @property
    def step(self) -> int:
        """Rows of a full piece."""
        return piece_rows(self.X)

    @property
    def sparse(self) -> bool:
        """Never: rows are arrays."""
        return False

    def nonzeros(self, partition: Partition) -> int:
        """Return rows x d."""
        return partition.rows * len(self.columns)

    @property
    def chunk_columns(self) -> int:
        """Columns of X that are stored together."""
        return self.X.inner[1]

    def cut(self, start: int, stop: int, *, labels: bool) -> ZarrSource:
        """Return the same rows with the features [start, stop) alone; see `bigopt.data.columnview`."""
        return replace(
            self,
            columns=self.columns[start:stop],
            indices=self.indices[start:stop],
            labels=self.labels if labels else (),
        )

    def identity(self) -> str:
        """Read the fingerprint again from the store."""
        return zarr_identity(self._files, self.arrays, verified=self.verified)

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows; labels and weights are read once a partition, X piece by piece."""
        store = self._store()
        labels, weight = self._beside_X(store, partition)
        X = self.X.name
        inside = [j for name, j in self.labels if name == X]
        if self.weights is not None and self.weights[0] == X:
            inside.append(self.weights[1])
        d, start = len(self.indices), partition.start
        features = open_array(store, self.X)
        while start < partition.stop:
            stop = min(partition.stop, start - start % self.step + self.step)
            block = read_rows(store, features, self.X, range(start, stop), (*self.indices, *inside))
            rows = slice(start - partition.start, stop - partition.start)
            columns = [label[rows] for label in labels] or [block[:, d + k] for k in range(len(self.labels))]
            y = _columns(columns)
            weights = None if self.weights is None else block[:, -1] if weight is None else weight[rows]
            read, store.bytes_read = store.bytes_read, 0
            yield Rows(block[:, :d] if inside else block, y, weights, read)
            start = stop

    @property
    def height(self) -> int:
        """Rows of a chunk of X."""
        return self.X.chunks[0]

    def begins(self, row: int) -> bool:
        """Whether a row is the first of a chunk of X."""
        return row % self.height == 0

    @property
    def waits(self) -> bool:
        """Whether the files are in an object store: a partition's are then asked for together."""
        return self._files.remote

    def beside(self, rows: range, loader: Loader, *, dtype: str, all_rows: bool) -> int | None:
        """Return the bytes that `ZarrReading.fill` takes beside some rows; None where rows come in pieces only.

        Parameters
        ----------
        rows : range
        loader : Loader
        dtype : str
            Of the rows.
        all_rows : bool
            Whether all of them are wanted.
        """
        if self._plain is None:
            return None
        flight, direct = loader.flight(waits=self._files.remote), all_rows and dtype == self.X.dtype
        return self._plain.beside(rows, self._stored_bytes, flight, direct=direct)

    def reading(self, partition: Partition, *, labels: bool = True) -> ZarrReading:
        """Read labels and weights of a partition, where they are wanted, and return what decodes its features."""
        store = self._store()
        features = open_array(store, self.X) if labels else self._plain
        assert isinstance(features, PlainArray), "asked for before"
        y, weight = self._beside_X(store, partition) if labels else ([], None)
        return ZarrReading(store, features, _columns(y), weight)

    def extents(self, partition: Partition, dtype: str) -> Extents | None:
        """Return where a partition's features lie in local files as they are used; None where there is more to do."""
        if self._plain is None or self.verified:
            return None
        return self._plain.extents(self._files, range(partition.start, partition.stop), dtype)

    def soon(self, rows: range) -> None:
        """Let the system fetch the chunks of X that hold some rows."""
        for key in self.X.all_keys(rows):
            self._files.soon(key)

    @cached_property
    def _plain(self) -> PlainArray | None:
        """How X is decoded to its place, where it is: all of its columns in order, and nothing else in it."""
        others = [name for name, _ in (*self.labels, *(() if self.weights is None else (self.weights,)))]
        if self.X.name in others or self.indices != tuple(range(self.X.width)):
            return None
        features = open_array(self._store(), self.X)
        return features if isinstance(features, PlainArray) else None

    @cached_property
    def _stored_bytes(self) -> int:
        """Bytes of the largest stored chunk of X, or a bound of them."""
        size = math.prod(self.X.chunks) * self.X.itemsize
        bound = size + size // 128 + 1024  # what a codec makes of noise
        chunks = () if self._manifest is None else self._manifest.chunks
        return max((c.bytes for c in chunks if c.rows and c.key.startswith(self.X.prefix)), default=bound)

    def _store(self) -> CheckedStore:
        digests = {f"{info.name}/zarr.json": info.digest for info in self.arrays}
        return CheckedStore(self._files, self._manifest, digests)

    def _beside_X(self, store: CheckedStore, partition: Partition) -> tuple[list[Array], Array | None]:
        """Return the labels and the weight of a partition that have arrays of their own."""
        labels = [self._column(store, ref, partition) for ref in self.labels if ref[0] != self.X.name]
        apart = self.weights is not None and self.weights[0] != self.X.name
        return labels, self._column(store, self.weights, partition) if apart and self.weights is not None else None

    def place(self, partition: Partition, row: int) -> str:
        """Name the chunk and the rows, local and global."""
        at = partition.start + row
        chunk, inside = divmod(at, self.X.chunks[0])
        key = self.X.key((chunk,) + (0,) * (len(self.X.grid) - 1))
        return f"{place(self._files, key)}, row {inside} (global row {at}, partition {partition.index})"

    def _column(self, store: CheckedStore, ref: tuple[str, int], partition: Partition) -> Array:
        """Read a target or weight from an array beside X: shape (rows,)."""
        info = next(info for info in self.arrays if info.name == ref[0])
        return read_column(store, info, ref[1], range(partition.start, partition.stop))


@dataclass
class ZarrReading:
    """A partition whose chunks are decoded to where their rows are wanted; see `bigopt.data.loading.Reading`."""

    store: CheckedStore
    features: PlainArray
    y: Array | None
    weight: Array | None

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the store until now."""
        return self.store.bytes_read

    def fill(self, rows: range, keep: Mask | None, X: Array, loader: Loader, *, checked: bool = True) -> bool:
        """Decode features straight into X, chunks side by side; see `PlainArray.read_into`."""
        return self.features.read_into(self.store, rows, keep, X, loader, checked=checked)


def _columns(parts: list[Array]) -> Array | None:
    return None if not parts else parts[0] if len(parts) == 1 else np.column_stack(parts)


def piece_rows(info: ArrayInfo) -> int:
    """Return the rows read at once: a chunk, or so many small ones as make a megabyte, or a shard up to 16 MB."""
    row = info.width * info.itemsize
    if info.chunks[0] * row <= SHARD_BYTES:
        return info.chunks[0] * max(1, PIECE_BYTES // (info.chunks[0] * row))
    return info.inner[0] * max(1, min(info.chunks[0], PIECE_BYTES // row) // info.inner[0])


def zarr_identity(files: Files, arrays: Iterable[ArrayInfo], *, verified: bool) -> str:
    """Return the fingerprint of the manifest, or of foreign metadata with the names and sizes of all chunks."""
    if verified:
        return read_manifest(files).fingerprint
    digest = hashlib.sha256(b"zarr")
    listing = files.listing()
    for info in sorted(arrays, key=lambda a: a.name):
        digest.update(hashlib.sha256(files.read(f"{info.name}/zarr.json")).digest())
        for key, size in listing.items():
            if key.startswith(info.prefix):
                digest.update(f"{key} {size}\n".encode())
    return digest.hexdigest()
