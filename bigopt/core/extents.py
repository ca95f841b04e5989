"""Rows that lie in local files just as they are used, and what it takes to read them without the interpreter.

Where nothing has to be decoded, a chunk of rows is a run of bytes of a file: its *extent*. Machine code can then open
the file, read a piece of it, add its rows and go on to the next by itself (`bigopt.models.folding`); it needs the names
of the files and the addresses of the system's functions, and says how far it came. It reports no errors: whoever asked
reads the rows once more as it always does, and that says what is wrong.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.compiled import pointer

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

PIECE: Final = 1 << 18
"""Bytes that are read at a time, about: they stay in the second cache of a core until they are added."""
PAGE: Final = 4096


class Extents(NamedTuple):
    """Consecutive rows in local files, C-contiguous, in the machine's byte order.

    Parameters
    ----------
    paths : sequence of str
        The files, in the order of the rows.
    height : int
        Rows of an extent; of the last one those that are wanted may be fewer.
    rows : int
        Rows of all together.
    row_bytes : int
    start : int
        Where an extent begins in its file.
    alone : bool
        Whether the file must end where it ends.
    crc : bool
        Whether its CRC-32C follows it (of an extent that begins its file).
    """

    paths: Sequence[str]
    height: int
    rows: int
    row_bytes: int
    start: int = 0
    alone: bool = True
    crc: bool = False

    def names(self) -> tuple[Bytes, Ints]:
        """Return the paths one after the other, each ended by a zero, and where in memory each begins."""
        encoded = [os.fsencode(path) for path in self.paths]
        whole = np.frombuffer(b"\0".join([*encoded, b""]), dtype=np.uint8)
        starts = np.cumsum([pointer(whole), *(len(name) + 1 for name in encoded[:-1])])
        return whole, starts.astype(np.int64)

    def piece(self, step: int) -> int:
        """Return the rows of a piece: a multiple of `step`."""
        return max(1, min(PIECE // (step * self.row_bytes), -(-self.height // step))) * step

    def room(self, step: int) -> int:
        """Return the bytes that reading takes: a piece from the beginning of a page on, behind `step` rows."""
        return (step + self.piece(step)) * self.row_bytes + 2 * PAGE


class Stored(NamedTuple):
    """A partition whose rows are to be read where they lie.

    Parameters
    ----------
    extents : Extents
        Its features.
    dtype : str
        Of them.
    y : ndarray, shape (rows,) or (rows, q)
        Prepared targets.
    weight : ndarray, shape (rows,), float64, or None
    scaling : tuple of ndarray, or None
        (mean, scale), float64: rows are used as (x - mean) / scale.
    memory : ndarray of uint8
        For `Extents.room`.
    waits : bool
        Whether reading waits for a disk, which should then be told what comes next.
    """

    extents: Extents
    dtype: str
    y: Array | None
    weight: Array | None
    scaling: tuple[Array, Array] | None
    memory: Bytes
    waits: bool = False


@cache
def system() -> Ints | None:
    """Return the addresses of open, pread, close, memmove and posix_fadvise; None where a system has others."""
    if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    found = [_address(None, name) for name in ("open", "pread", "close", "memmove", "posix_fadvise")]
    return np.array(found, dtype=np.int64) if all(found) else None


@cache
def crc32c() -> int:
    """Return the address of ``crc32c_extend(crc, data, size)``; 0 where it cannot be had."""
    try:
        from google_crc32c import _crc32c
    except ImportError:
        return 0
    return _address(_crc32c.__file__, "crc32c_extend")


def _address(library: str | None, name: str) -> int:
    """Return where a C function of a library, or of this process, is in memory; 0 where it is not."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(library), name), ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
