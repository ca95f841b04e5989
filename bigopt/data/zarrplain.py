"""Chunks of plain Zarr arrays, decoded straight into the rows that they hold.

Most arrays are little-endian numbers behind one compressor and perhaps a CRC-32C. For those a chunk is a file that is
read into memory that is used again, verified, checked and decompressed to where its rows are wanted, several chunks
side by side: no event loop, no copy; what has no codec is read straight to its place. Arrays with other codecs (shards,
transposition, gzip, text) are read by zarr (`bigopt.data.zarrchecked`).
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import BigoptError, DataError
from bigopt.core.extents import Extents
from bigopt.data.files import Files, place
from bigopt.data.loading import Loader
from bigopt.data.rooms import all_finite
from bigopt.data.zarrmeta import ArrayInfo

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Take = Callable[[int], Bytes]

_ZSTD: Final = b"\x28\xb5\x2f\xfd"


class Bring(Protocol):
    """A store as this module sees it."""

    files: Files

    def bring(self, key: str, take: Take) -> Brought | None:
        """Return a file, verified, in memory that `take(size)` gives; None where it is missing and may be."""
        ...


class Brought(NamedTuple):
    """The bytes of a chunk, and the CRC-32C of all but the last four of them where it is known."""

    data: Bytes
    crc: int | None = None


class _Share(NamedTuple):
    """What a chunk holds of some rows and columns: its key, and where they lie in it and among what is wanted."""

    key: str
    inside: tuple[slice, ...]
    place: tuple[slice, ...]


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

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of a chunk."""
        return math.prod(self.info.chunks) * self.info.itemsize

    def read(self, store: Bring, rows: range, columns: tuple[int, ...]) -> Array:
        """Return rows by columns (all of a vector where no columns are given), in C order.

        Raises
        ------
        DataError
            Naming the chunk that cannot be decoded.
        """
        low, high = (min(columns), max(columns) + 1) if columns else (0, self.info.width)
        width = () if len(self.info.shape) == 1 else (high - low,)
        found = np.empty((len(rows), *width), dtype=self.info.dtype)
        for share in self._shares(rows, low, high):
            self._bring(store, share, found[share.place], _fresh)
        if not columns or columns == tuple(range(low, high)):
            return found
        return np.ascontiguousarray(found[:, np.array(columns) - low])

    def read_into(
        self, store: Bring, rows: range, keep: Mask | None, X: Array, loader: Loader, *, checked: bool = True
    ) -> bool:
        """Decode rows straight into an array, chunks side by side.

        Parameters
        ----------
        store : Bring
        rows : range
        keep : ndarray of bool, shape (rows,), or None
            Which of them are wanted; None: all.
        X : ndarray, shape (wanted rows, width), float32 or float64
            Where they go, cast where they are stored otherwise.
        loader : Loader
        checked : bool
            Whether values are looked at.

        Returns
        -------
        bool
            Whether all values are finite; True of those that were not looked at.

        Raises
        ------
        DataError
            Naming the first chunk that cannot be decoded.
        """
        shares = self._shares(rows, 0, self.info.width)
        if keep is None and len(shares) == 1:
            self._bring(store, shares[0], X, loader.memory.take)
            return not checked or all_finite(X)
        ends = None if keep is None else np.concatenate([[0], np.cumsum(keep)])
        fine: list[bool] = []

        def job(share: _Share) -> None:
            first, last = share.place[0].start, share.place[0].stop
            if keep is None or ends is None:
                wanted, target = None, X[share.place]
            else:
                wanted, target = np.flatnonzero(keep[first:last]), X[ends[first] : ends[last], share.place[1]]
            self._bring(store, share, target, loader.memory.take, wanted)
            if checked:
                fine.append(all_finite(target))

        loader.each([partial(job, share) for share in shares], waits=store.files.remote)
        return all(fine)

    def beside(self, rows: range, stored: int, flight: int, *, direct: bool) -> int:
        """Return the bytes that `read_into` takes beside some rows.

        Parameters
        ----------
        rows : range
        stored : int
            Bytes of the largest stored chunk.
        flight : int
            Chunks under way at a time.
        direct : bool
            Whether all rows are wanted, as they are stored.
        """
        chunks = self.info.chunks
        high = -(-rows.stop // chunks[0]) - rows.start // chunks[0]
        flight = min(flight, high * -(-self.info.width // chunks[1]))
        if not direct or chunks[1] != self.info.width:
            return flight * (stored + self.chunk_bytes)
        read = stored if self.compressor or self.crc else 0
        return flight * read + (self.chunk_bytes if rows.start % chunks[0] or rows.stop % chunks[0] else 0)

    def extents(self, files: Files, rows: range, dtype: str) -> Extents | None:
        """Return where rows lie in local files as they are used; None where they have to be decoded.

        Parameters
        ----------
        files : Files
        rows : range
            From the first row of a chunk on.
        dtype : str
            Of the rows that are wanted.
        """
        info = self.info
        height, as_wanted = info.chunks[0], not self.compressor and info.dtype == dtype
        if not as_wanted or info.chunks[1:] != info.shape[1:] or rows.start % height:
            return None
        paths = [path for path in map(files.local, info.all_keys(rows)) if path is not None]
        if not rows or not paths:
            return None
        return Extents(paths, height, len(rows), info.width * info.itemsize, crc=self.crc)

    def _shares(self, rows: range, low: int, high: int) -> list[_Share]:
        """Return what each chunk holds of rows by columns [low, high); of a vector the columns are all there is."""
        info, found = self.info, []
        height, vector = info.chunks[0], len(info.shape) == 1
        for i in range(rows.start // height, -(-rows.stop // height)):
            top, end = max(rows.start, i * height), min(rows.stop, (i + 1) * height)
            inside, place = slice(top - i * height, end - i * height), slice(top - rows.start, end - rows.start)
            if vector:
                found.append(_Share(info.key((i,)), (inside,), (place,)))
                continue
            width = info.chunks[1]
            for j in range(low // width, -(-high // width)):
                left, right = max(low, j * width), min(high, (j + 1) * width)
                across, columns = slice(left - j * width, right - j * width), slice(left - low, right - low)
                found.append(_Share(info.key((i, j)), (inside, across), (place, columns)))
        return found

    def _bring(self, store: Bring, share: _Share, target: Array, take: Take, wanted: Ints | None = None) -> None:
        """Write a chunk's share, or the wanted rows of it, to `target`."""
        whole = wanted is None and target.shape == self.info.chunks and target.dtype == self.info.dtype
        out = target.reshape(-1).view(np.uint8) if whole and target.flags.c_contiguous else None
        straight = out is not None and not self.compressor and not self.crc

        def room(size: int) -> Bytes:
            return out if straight and out is not None and out.nbytes == size else take(size)

        found = store.bring(share.key, room)
        if found is None:
            target[...] = self.fill
            return
        try:
            if out is not None:
                self._decode(found, out)
                return
            chunk = take(self.chunk_bytes)
            self._decode(found, chunk)
            values = chunk.view(self.info.dtype).reshape(self.info.chunks)[share.inside]
            if wanted is not None and values.dtype == target.dtype and target.flags.c_contiguous:
                np.take(values, wanted, axis=0, out=target, mode="clip")  # all in range; to raise it would buffer
                return
            with np.errstate(over="ignore", invalid="ignore"):  # who asked looks at the values
                target[...] = values if wanted is None else values[wanted]
        except BigoptError:
            raise
        except (ValueError, RuntimeError, struct.error, IndexError) as error:
            raise DataError(
                f"cannot be decoded: {error}",
                where=place(store.files, share.key),
                hint="truncated or altered: restore it or write the dataset again",
            ) from error

    def _decode(self, found: Brought, out: Bytes) -> None:
        body = found.data
        if self.crc:
            from google_crc32c import value

            body, stored = body[:-4], int.from_bytes(body[-4:].tobytes(), "little")
            if (value(body) if found.crc is None else found.crc) != stored:
                raise ValueError("the CRC-32C of the chunk is wrong")
        size = len(body) if not self.compressor else _SIZES[self.compressor](body.data)
        if size != out.nbytes:
            raise ValueError(f"{size} bytes where a chunk has {out.nbytes}")
        if not self.compressor:
            if body is not out:
                out[:] = body
        elif self.compressor == "zstd":
            from numcodecs import zstd

            zstd.decompress(body, out)
        else:
            from numcodecs import blosc

            blosc.decompress(body, out)


def _fresh(size: int) -> Bytes:
    return np.empty(size, dtype=np.uint8)


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
