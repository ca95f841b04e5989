"""Zarr arrays read through a store that verifies and counts what it hands out.

Plain arrays are decoded by `bigopt.data.zarrplain`, all others by zarr; every file that is asked for comes through
`CheckedStore`, which counts the bytes and compares it with the manifest. What cannot be decoded is an error that names
the chunk.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.errors import BaseZarrError

from bigopt.core.errors import BigoptError, DataError
from bigopt.data.files import Files, place
from bigopt.data.manifest import Manifest
from bigopt.data.source import Array
from bigopt.data.zarrmeta import ArrayInfo
from bigopt.data.zarrplain import Brought, Bytes, PlainArray, plain_array

T = TypeVar("T")
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
        part = slice(0, None) if self.manifest is not None else slice(start, stop)
        data = self._found(key, lambda: self.files.read(key, part.start, part.stop))
        if data is None:
            return None
        if self.manifest is not None:
            self.manifest.check(key, data, place(self.files, key))
        self._read(len(data))
        data = data[start:stop] if self.manifest is not None else data
        if self.digests.get(key, "") not in ("", hashlib.sha256(data).hexdigest()):
            raise DataError("changed since the run opened it", where=place(self.files, key), hint="start a new run")
        return data

    def bring(self, key: str, take: Callable[[int], Bytes]) -> Brought | None:
        """Return a chunk, verified, in memory that `take(size)` gives; None where it is missing and may be."""
        data = self._found(key, lambda: self.files.bring(key, take))
        if data is None:
            return None
        crc = None if self.manifest is None else self.manifest.check(key, data, place(self.files, key))
        self._read(len(data))
        return Brought(data, crc)

    def _found(self, key: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except FileNotFoundError as error:
            if self.manifest is not None and (key, 0) in self.manifest.by_key:
                found, hint = "missing, the manifest names it", "restore it or ingest again"
                raise DataError(found, where=place(self.files, key), hint=hint) from error
            return None
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=place(self.files, key)) from error

    def _read(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size

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


def open_array(store: CheckedStore, info: ArrayInfo) -> Any:
    """Return the array: a `PlainArray`, else zarr's.

    Raises
    ------
    DataError
        Where zarr cannot make one of its metadata.
    """
    document = store.fetch(f"{info.name}/zarr.json")
    plain = None if document is None else plain_array(info, document)
    if plain is not None:
        return plain
    with warnings.catch_warnings():
        if info.dtype == "text":
            warnings.simplefilter("ignore")
        try:
            return zarr.open_array(store=store, path=info.name, mode="r", zarr_format=3)
        except BigoptError:
            raise
        except _FAILURES as error:
            where = place(store.files, f"{info.name}/zarr.json")
            raise DataError(f"no readable Zarr array: {_short(error)}", where=where) from error


def read_rows(store: CheckedStore, array: Any, info: ArrayInfo, rows: range, columns: tuple[int, ...] = ()) -> Array:
    """Return rows by columns (all of a vector where no columns are given), in native byte order and C order.

    Raises
    ------
    DataError
        Naming the chunk that cannot be decoded.
    """
    if isinstance(array, PlainArray):
        return array.read(store, rows, columns)
    try:
        return _select(array, rows, columns, info.dtype)
    except BigoptError:
        raise
    except _FAILURES as error:
        key = _culprit(array, info, rows) or next(info.all_keys(rows))
        what = f"cannot be decoded: {_short(error)}"
        hint = "truncated or altered: restore it or write the dataset again"
        raise DataError(what, where=place(store.files, key), hint=hint) from error


def read_column(store: CheckedStore, info: ArrayInfo, column: int, rows: range) -> Array:
    """Return one column of an array (-1: a vector), shape (rows,)."""
    values = read_rows(store, open_array(store, info), info, rows, () if column < 0 else (column,))
    return values.reshape(len(values))


def _select(array: Any, rows: range, columns: tuple[int, ...], dtype: str) -> Array:
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
