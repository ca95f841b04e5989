"""Chunks of plain Zarr arrays, decoded straight into the rows that they hold.

Most arrays are little-endian numbers behind one compressor and perhaps a CRC-32C. For those a chunk is a file that is
verified, checked and decompressed into the memory where its rows are wanted: no event loop, no copy, no buffer beside
it. Arrays with other codecs (shards, transposition, gzip, text) are read by zarr (`bigopt.data.zarrchecked`).
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import BigoptError, DataError
from bigopt.data.files import Files, place
from bigopt.data.zarrmeta import ArrayInfo

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

_ZSTD: Final = b"\x28\xb5\x2f\xfd"


class Fetch(Protocol):
    """A store as this module sees it."""

    files: Files

    def fetch(self, key: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """Return a file, verified; None where it is missing and may be."""
        ...


@dataclass(frozen=True)
class PlainArray:
    """An array whose chunks are decoded here.

    Parameters
    ----------
    info : ArrayInfo
    compressor : str
        ``zstd``, ``blosc`` or nothing.
    crc : bool
        Whether each chunk ends with its CRC-32C.
    fill : float
        What chunks that are not there hold.
    """

    info: ArrayInfo
    compressor: str
    crc: bool
    fill: float

    def read(self, store: Fetch, rows: range, columns: tuple[int, ...]) -> Array:
        """Return rows by columns (all of a vector where no columns are given), in C order.

        Raises
        ------
        DataError
            Naming the chunk that cannot be decoded.
        """
        info = self.info
        found = np.empty((len(rows), *info.shape[1:]), dtype=info.dtype)
        across = self._across(columns)
        for i in range(rows.start // info.chunks[0], -(-rows.stop // info.chunks[0])):
            first, last = max(rows.start, i * info.chunks[0]), min(rows.stop, (i + 1) * info.chunks[0])
            part = found[first - rows.start : last - rows.start]
            inside = slice(first - i * info.chunks[0], last - i * info.chunks[0])
            for j in across:
                at = (i, j)[: len(info.grid)]
                self._fill(store, info.key(at), part, inside, j)
        if not columns or columns == tuple(range(info.width)):
            return found
        return np.ascontiguousarray(found[:, list(columns)])

    def _across(self, columns: tuple[int, ...]) -> list[int]:
        """Return the column chunks that hold some columns; of a vector, or for all columns, every one."""
        if len(self.info.grid) == 1:
            return [0]
        return sorted({c // self.info.chunks[1] for c in columns}) if columns else list(range(self.info.grid[1]))

    def _fill(self, store: Fetch, key: str, part: Array, inside: slice, j: int) -> None:
        """Write one chunk's share of some rows; `part` has all columns of them."""
        chunks = self.info.chunks
        data = store.fetch(key)
        width = part.shape[1] if part.ndim > 1 else 1
        across = slice(j * chunks[1], min(width, (j + 1) * chunks[1])) if part.ndim > 1 else slice(None)
        target = part[:, across] if part.ndim > 1 else part
        if data is None:
            target[...] = self.fill
            return
        try:
            if target.shape == chunks and target.flags.c_contiguous:
                self._decode(data, target.reshape(-1).view(np.uint8))
                return
            whole = np.empty(chunks, dtype=part.dtype)
            self._decode(data, whole.reshape(-1).view(np.uint8))
            target[...] = whole[inside, : across.stop - across.start] if part.ndim > 1 else whole[inside]
        except BigoptError:
            raise
        except (ValueError, RuntimeError, struct.error, IndexError) as error:
            raise DataError(
                f"cannot be decoded: {error}",
                where=place(store.files, key),
                hint="truncated or altered: restore it or write the dataset again",
            ) from error

    def _decode(self, data: bytes, out: Bytes) -> None:
        body = memoryview(data)
        if self.crc:
            from google_crc32c import value

            body, stored = body[:-4], int.from_bytes(body[-4:], "little")
            if value(bytes(body)) != stored:
                raise ValueError("the CRC-32C of the chunk is wrong")
        size = len(body) if not self.compressor else _SIZES[self.compressor](body)
        if size != out.nbytes:
            raise ValueError(f"{size} bytes where a chunk has {out.nbytes}")
        if not self.compressor:
            out[:] = np.frombuffer(body, dtype=np.uint8)
        elif self.compressor == "zstd":
            from numcodecs import zstd

            zstd.decompress(body, out)
        else:
            from numcodecs import blosc

            blosc.decompress(body, out)


def _zstd_size(data: memoryview) -> int:
    """Return the decoded size that a Zstandard frame declares (RFC 8878, 3.1.1.1)."""
    if bytes(data[:4]) != _ZSTD:
        raise ValueError("no Zstandard frame")
    descriptor = data[4]
    single, at = descriptor >> 5 & 1, 5
    at += (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[descriptor >> 6]
    if width == 0:
        raise ValueError("a Zstandard frame without its size")
    size = int.from_bytes(data[at : at + width], "little")
    return size + 256 if width == 2 else size


def _blosc_size(data: memoryview) -> int:
    return int(struct.unpack_from("<I", data, 4)[0])


_SIZES: Final[dict[str, Callable[[memoryview], int]]] = {"zstd": _zstd_size, "blosc": _blosc_size}


def plain_array(info: ArrayInfo, document: bytes) -> PlainArray | None:
    """Return how to decode an array, or None where zarr has to.

    Parameters
    ----------
    info : ArrayInfo
    document : bytes
        The array's ``zarr.json``.
    """
    tree = json.loads(document)
    codecs: list[dict[str, Any]] = [{"name": c} if isinstance(c, str) else c for c in tree["codecs"]]
    names, fill = [codec["name"] for codec in codecs], tree.get("fill_value")
    crc = names[-1:] == ["crc32c"]
    if crc:
        names.pop()
    ordered = sys.byteorder == "little" and codecs[0].get("configuration", {}).get("endian", "little") == "little"
    plain = names in (["bytes"], ["bytes", "zstd"], ["bytes", "blosc"])
    if not (plain and ordered) or info.dtype == "text" or info.chunks != info.inner or len(info.shape) > 2:
        return None
    if isinstance(fill, str) or fill is None or not math.isfinite(fill):
        return None
    return PlainArray(info, names[1] if len(names) > 1 else "", crc, fill)
