"""Rows of a Zarr v3 group: arrays X, y and weight, chunked by rows and perhaps by columns, sharded or not.

zarr decodes; what it decodes comes through `CheckedStore`, which counts the bytes and compares every file it hands
out with the manifest. A chunk that is not there is an error with a manifest, else the fill value (Zarr leaves out
chunks that hold nothing else; they are counted when the dataset is opened).

A piece is one chunk of rows, over all its column chunks; several small chunks, or a whole small shard, make one piece
so that the cost of a call is spread over about a megabyte.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.errors import BaseZarrError

from bigopt.core.codec import wire
from bigopt.core.errors import BigoptError, DataError
from bigopt.data.files import Files, open_files, place
from bigopt.data.manifest import Manifest, expected_manifest, read_manifest
from bigopt.data.source import Array, Partition, Rows
from bigopt.data.zarrmeta import ArrayInfo

PIECE_BYTES: Final = 1 << 20
SHARD_BYTES: Final = 16 << 20
_FAILURES: Final = (ValueError, RuntimeError, OSError, TypeError, KeyError, IndexError, MemoryError, BaseZarrError)


class CheckedStore(Store):  # type: ignore[misc]  # zarr is not followed by mypy here, so its classes are Any
    """A read-only Zarr store over `Files` that verifies and counts; see the module."""

    def __init__(self, files: Files, manifest: Manifest | None, digests: Mapping[str, str]) -> None:
        super().__init__(read_only=True)
        self.files, self.manifest, self.digests = files, manifest, digests
        self._lock = threading.Lock()
        self.bytes_read = 0

    def fetch(self, key: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """Return (part of) a file, verified; None where it is missing and may be."""
        where = place(self.files, key)
        try:
            if self.manifest is not None:
                whole = self.files.read(key)
                self.manifest.check(key, whole, where)
                data = whole[start:stop]
            else:
                whole = data = self.files.read(key, start, stop)
        except FileNotFoundError as error:
            if self.manifest is not None and (key, 0) in self.manifest.by_key:
                found = "missing, the manifest names it"
                raise DataError(found, where=where, hint="restore it or ingest again") from error
            return None
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=where) from error
        if self.digests.get(key, "") not in ("", hashlib.sha256(data).hexdigest()):
            raise DataError("changed since the run opened it", where=where, hint="start a new run")
        with self._lock:
            self.bytes_read += len(whole)
        return data

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:  # fmt: skip
        start, stop = 0, None
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, byte_range.end
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            try:
                start = max(0, await asyncio.to_thread(self.files.size, key) - byte_range.suffix)
            except FileNotFoundError:
                return None
        data = await asyncio.to_thread(self.fetch, key, start, stop)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, wanted) for key, wanted in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self.fetch, key) is not None

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @property
    def supports_writes(self) -> bool:
        return False

    @property
    def supports_deletes(self) -> bool:
        return False

    @property
    def supports_listing(self) -> bool:
        return False

    @property
    def supports_partial_writes(self) -> bool:
        return False

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError


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
    columns : tuple of str
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
    columns: tuple[str, ...]
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

    def identity(self) -> str:
        """Read the fingerprint again from the store."""
        return zarr_identity(self._files, self.arrays, verified=self.verified)

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows; labels and weights are read once a partition, X piece by piece."""
        digests = {f"{info.name}/zarr.json": info.digest for info in self.arrays}
        store = CheckedStore(self._files, self._manifest, digests)
        X = self.X.name
        inside = [j for name, j in self.labels if name == X]
        if self.weights is not None and self.weights[0] == X:
            inside.append(self.weights[1])
        labels = [self._column(store, ref, partition) for ref in self.labels if ref[0] != X]
        weight = None
        if self.weights is not None and self.weights[0] != X:
            weight = self._column(store, self.weights, partition)
        d, start = len(self.indices), partition.start
        features = self._open(store, self.X)
        while start < partition.stop:
            stop = min(partition.stop, start - start % self.step + self.step)
            block = self._read(store, features, self.X, range(start, stop), (*self.indices, *inside))
            rows = slice(start - partition.start, stop - partition.start)
            columns = [label[rows] for label in labels] or [block[:, d + k] for k in range(len(self.labels))]
            y = columns[0] if len(columns) == 1 else np.column_stack(columns) if columns else None
            weights = None if self.weights is None else block[:, -1] if weight is None else weight[rows]
            read, store.bytes_read = store.bytes_read, 0
            yield Rows(block[:, :d] if inside else block, y, weights, read)
            start = stop

    def place(self, partition: Partition, row: int) -> str:
        """Name the chunk and the rows, local and global."""
        at = partition.start + row
        chunk, inside = divmod(at, self.X.chunks[0])
        key = self.X.key((chunk,) + (0,) * (len(self.X.grid) - 1))
        return f"{place(self._files, key)}, row {inside} (global row {at}, partition {partition.index})"

    def _open(self, store: CheckedStore, info: ArrayInfo) -> Any:
        with warnings.catch_warnings():
            if info.dtype == "text":
                warnings.simplefilter("ignore")
            try:
                return zarr.open_array(store=store, path=info.name, mode="r", zarr_format=3)
            except BigoptError:
                raise
            except _FAILURES as error:
                where = place(self._files, f"{info.name}/zarr.json")
                raise DataError(f"no readable Zarr array: {_short(error)}", where=where) from error

    def _column(self, store: CheckedStore, ref: tuple[str, int], partition: Partition) -> Array:
        """Read a target or weight from an array beside X: shape (rows,)."""
        info = next(info for info in self.arrays if info.name == ref[0])
        columns = () if ref[1] < 0 else (ref[1],)
        values = self._read(store, self._open(store, info), info, range(partition.start, partition.stop), columns)
        return values.reshape(len(values))

    def _read(
        self, store: CheckedStore, array: Any, info: ArrayInfo, rows: range, columns: tuple[int, ...]
    ) -> Array:  # fmt: skip
        try:
            return _select(array, rows, columns, info.dtype)
        except BigoptError:
            raise
        except _FAILURES as error:
            key = _culprit(array, info, rows) or next(info.all_keys(rows))
            what = f"cannot be decoded: {_short(error)}"
            hint = "truncated or altered: restore it or write the dataset again"
            raise DataError(what, where=place(store.files, key), hint=hint) from error


def _select(array: Any, rows: range, columns: tuple[int, ...], dtype: str) -> Array:
    """Read rows by columns (all of a vector where no columns are given), in native byte order and C order."""
    cut = slice(rows.start, rows.stop)
    if not columns:
        values = array[cut]
    elif columns == tuple(range(columns[0], columns[0] + len(columns))):
        values = array[cut, columns[0] : columns[0] + len(columns)]
    else:
        order = np.argsort(np.array(columns), kind="stable")
        values = array.oindex[cut, np.array(columns)[order]]
        if not np.array_equal(order, np.arange(len(order))):
            values = values[:, np.argsort(order)]
    if dtype == "text":
        return text(np.asarray(values))
    return np.ascontiguousarray(values, dtype=np.dtype(dtype))


def _culprit(array: Any, info: ArrayInfo, rows: range) -> str | None:
    """Return the first key of some rows that cannot be decoded: read them one by one."""
    for key in info.all_keys(rows):
        at = [int(c) for c in key[len(info.prefix) :].split(info.separator)]
        cut = tuple(slice(i * c, min(n, i * c + c)) for i, c, n in zip(at, info.chunks, info.shape, strict=True))
        try:
            array[cut]
        except _FAILURES:
            return key
    return None


def text(values: Array) -> Array:
    """Return strings of any NumPy kind as ``U``, bytes decoded as UTF-8."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8")
    if values.dtype.kind == "U":
        return values
    return np.array(values.tolist(), dtype=np.str_).reshape(values.shape)


def _short(error: BaseException) -> str:
    line = str(error).strip().splitlines()
    return (line[0] if line else type(error).__name__)[:200]


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
