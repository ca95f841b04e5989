"""Rows of one NPZ or NPY file: for data that came out of NumPy and is used as it is.

An NPZ holds members ``X``, ``y``, optionally ``weight``, ``columns`` and ``target``; zip keeps a CRC-32 of each member,
which is verified once a process. An NPY holds X; its labels are a column of it, or lie beside it as ``NAME.y.npy``.
Rows are read as byte ranges of C-ordered arrays, straight to their place where all columns of X are wanted
(`NpyReading`); of a compressed member everything before them is decompressed too. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import IO, Any, Final

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.errors import DataError
from bigopt.core.extents import Extents
from bigopt.data.files import Files, open_files
from bigopt.data.loading import Loader, Mask
from bigopt.data.rooms import all_finite
from bigopt.data.source import Array, Partition, Rows

PIECE_BYTES: Final = 1 << 20
END_BYTES: Final = 1 << 20
FAILURES: Final = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, KeyError)


@wire
@dataclass(frozen=True)
class Member:
    """One array: where its bytes are and what they mean.

    Parameters
    ----------
    name : str
        ``X``, ``y``, ``weight``.
    uri : str
        The file it lies in.
    inside : str
        Its name in a zip; empty for an NPY.
    shape : tuple of int
    dtype : str
        ``numpy.dtype.str``.
    header : int
        Bytes of the NPY header.
    start : int
        Where the header starts in the file; -1 for a compressed zip member.
    stored : int
        Bytes it takes in the file.
    """

    name: str
    uri: str
    inside: str
    shape: tuple[int, ...]
    dtype: str
    header: int
    start: int
    stored: int

    @property
    def width(self) -> int:
        """Columns (1 for a vector)."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.width * np.dtype(self.dtype).itemsize


@wire
@dataclass(frozen=True)
class NpySource:
    """Selected columns of an NPZ or NPY file.

    Parameters
    ----------
    uri, options, fingerprint, columns, indices, labels, weights
        As in `bigopt.data.zarrstore.ZarrSource`.
    members : tuple of Member
        X first, then the others that are read.
    """

    uri: str
    options: dict[str, Any] = field(repr=False)
    fingerprint: str
    columns: Sequence[str]
    indices: tuple[int, ...]
    labels: tuple[tuple[str, int], ...]
    weights: tuple[str, int] | None
    members: tuple[Member, ...]

    @property
    def stored(self) -> str:
        """NumPy dtype name of X."""
        return np.dtype(self.members[0].dtype).name

    @property
    def sparse(self) -> bool:
        """Never: rows are arrays."""
        return False

    def nonzeros(self, partition: Partition) -> int:
        """Return rows x d."""
        return partition.rows * len(self.columns)

    def cut(self, start: int, stop: int, *, labels: bool) -> NpySource:
        """Return the same rows with the features [start, stop) alone; see `bigopt.data.columnview`."""
        return replace(
            self,
            columns=self.columns[start:stop],
            indices=self.indices[start:stop],
            labels=self.labels if labels else (),
        )

    def identity(self) -> str:
        """Read the fingerprint again: of a zip's directory with its checksums, of an NPY's size and both ends."""
        return npy_identity(self.uri, self.options, [m.uri for m in self.members])

    @cached_property
    def _verified(self) -> int:
        if self.identity() != self.fingerprint:
            raise DataError("changed since the run opened it", where=self.uri, hint="start a new run")
        return verified_bytes(self.members, self.options)

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows, about a megabyte at a time."""
        fresh = "_verified" not in self.__dict__
        read = self._verified if fresh else 0
        X = self.members[0]
        step = max(1, PIECE_BYTES // max(1, X.row_bytes))
        whole = self.indices == tuple(range(X.width))
        with ExitStack() as stack:
            streams = {m.name: Stream(stack, m, self.options, partition.start) for m in self.members}
            for start in range(partition.start, partition.stop, step):
                rows = min(step, partition.stop - start)
                arrays = {name: stream.read(rows) for name, stream in streams.items()}
                labels = [pick(arrays, ref) for ref in self.labels]
                y = labels[0] if len(labels) == 1 else np.column_stack(labels) if labels else None
                features = arrays["X"] if whole else arrays["X"][:, list(self.indices)]
                weight = None if self.weights is None else pick(arrays, self.weights)
                read += sum(stream.taken() for stream in streams.values())
                yield Rows(features, y, weight, read)
                read = 0

    @property
    def height(self) -> int:
        """Rows that are read at a time, about a megabyte."""
        return max(1, PIECE_BYTES // max(1, self.members[0].row_bytes))

    @property
    def waits(self) -> bool:
        """Whether the file is in an object store."""
        return open_files(self.uri, self.options).remote

    def begins(self, row: int) -> bool:
        """Whether rows may be read from there on: from anywhere."""
        return True

    def beside(self, rows: range, loader: Loader, *, dtype: str, all_rows: bool) -> int | None:
        """Return the bytes that `NpyReading.fill` takes beside some rows; None where rows come in pieces only."""
        if not self._in_place:
            return None
        return 2 * min(len(rows), self.height) * self.members[0].row_bytes

    @cached_property
    def _in_place(self) -> bool:
        """Whether X holds all columns of the features in order, nothing else, and is not compressed."""
        X, others = self.members[0], [name for name, _ in (*self.labels, *filter(None, (self.weights,)))]
        whole = X.name not in others and self.indices == tuple(range(X.width))
        return whole and X.start >= 0 and len(X.shape) == 2

    def reading(self, partition: Partition, *, labels: bool = True) -> NpyReading:
        """Read labels and weights of a partition, where they are wanted, and return what reads its features."""
        read = 0 if "_verified" in self.__dict__ else self._verified
        y, weight = list[Array](), None
        if labels:
            with ExitStack() as stack:
                beside = [Stream(stack, m, self.options, partition.start) for m in self.members[1:]]
                arrays = {
                    m.name: stream.read(partition.rows) for m, stream in zip(self.members[1:], beside, strict=True)
                }
                read += sum(stream.taken() for stream in beside)
            y = [pick(arrays, ref) for ref in self.labels]
            weight = None if self.weights is None else pick(arrays, self.weights)
        return NpyReading(self, y[0] if len(y) == 1 else np.column_stack(y) if y else None, weight, read)

    def soon(self, rows: range) -> None:
        """Nothing: the system sees that one file is read from its beginning to its end."""

    def extents(self, partition: Partition, dtype: str) -> Extents | None:
        """Return where a partition's features lie in a local file as they are used; None where they are converted."""
        X = self.members[0]
        path = open_files(X.uri, self.options).local("") if self._in_place else None
        if path is None or X.dtype != np.dtype(dtype).str or not partition.rows:
            return None
        start = X.start + X.header + partition.start * X.row_bytes
        return Extents((path,), partition.rows, partition.rows, X.row_bytes, start, alone=False)

    def place(self, partition: Partition, row: int) -> str:
        """Name the file and the row."""
        return f"{self.uri}, row {partition.start + row} (partition {partition.index})"


@dataclass
class NpyReading:
    """A partition whose rows are read to where they are wanted; see `bigopt.data.loading.Reading`."""

    source: NpySource
    y: Array | None
    weight: Array | None
    bytes_read: int
    _counting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fill(self, rows: range, keep: Mask | None, X: Array, loader: Loader, *, checked: bool = True) -> bool:
        """Read features to X, a piece at a time."""
        at, fine = 0, True
        with ExitStack() as stack:
            stream = Stream(stack, self.source.members[0], self.source.options, rows.start)
            for lo in range(0, len(rows), self.source.height):
                values = stream.read(min(self.source.height, len(rows) - lo))
                if keep is not None:
                    values = values[keep[lo : lo + len(values)]]
                part = X[at : at + len(values)]
                with np.errstate(over="ignore", invalid="ignore"):  # who asked looks at the values
                    part[...] = values
                fine = fine and (not checked or all_finite(part))
                at += len(values)
            with self._counting:  # helpers fill too
                self.bytes_read += stream.taken()
        return fine


def verified_bytes(members: Sequence[Member], options: Mapping[str, Any]) -> int:
    """Read zip members to their ends, where zipfile compares their CRC-32; return the bytes read.

    Raises
    ------
    DataError
        Naming the member.
    """
    zipped = [member for member in members if member.inside]
    for member in zipped:
        try:
            with ExitStack() as stack:
                handle = stack.enter_context(open_files(member.uri, options).open(""))
                archive = stack.enter_context(zipfile.ZipFile(handle))
                data = stack.enter_context(archive.open(member.inside))
                while data.read(1 << 20):
                    pass
        except FAILURES as error:
            raise damaged(f"{member.uri}, member {member.inside}", error) from error
    return sum(member.stored for member in zipped)


class Stream:
    """Consecutive rows of one member."""

    def __init__(self, stack: ExitStack, member: Member, options: Mapping[str, Any], row: int) -> None:
        self._stack, self._member, self._taken = stack, member, 0
        self._files: Files = open_files(member.uri, options)
        self._at = member.header + row * member.row_bytes
        self._data: IO[bytes] | None = None

    def read(self, rows: int) -> Array:
        """Return the next rows in native byte order."""
        member = self._member
        size = rows * member.row_bytes
        where = f"{self._files.uri}, array {member.name}"
        try:
            data = self._range(size) if member.start >= 0 else self._inflated(size)
        except FAILURES as error:
            raise damaged(where, error) from error
        if len(data) != size:
            raise DataError(f"ends {size - len(data)} bytes early", where=where, hint="truncated: restore it")
        self._at += size
        values = np.frombuffer(data, dtype=np.dtype(member.dtype)).reshape(rows, *member.shape[1:])
        if values.dtype.kind == "S":
            return np.char.decode(values, "utf-8")
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def _range(self, size: int) -> bytes:
        start = self._member.start + self._at
        data = self._files.read("", start, start + size)
        self._taken += len(data)
        return data

    def _inflated(self, size: int) -> bytes:
        if self._data is None:
            handle = self._stack.enter_context(self._files.open(""))
            archive = self._stack.enter_context(zipfile.ZipFile(handle))
            self._data = self._stack.enter_context(archive.open(self._member.inside))
            self._data.seek(self._at)
            self._taken += self._member.stored
        return self._data.read(size)

    def taken(self) -> int:
        """Return the bytes read since the last call."""
        taken, self._taken = self._taken, 0
        return taken


def pick(arrays: Mapping[str, Array], ref: tuple[str, int]) -> Array:
    """Return a column of an array (-1: a vector)."""
    array = arrays[ref[0]]
    return array[:, ref[1]] if ref[1] >= 0 else array.reshape(len(array))


def damaged(where: str, error: BaseException) -> DataError:
    """Return the error for a file that cannot be read."""
    found = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return DataError(f"cannot be read: {found}", where=where, hint="truncated or altered: restore it")


def npy_identity(uri: str, options: Mapping[str, Any], uris: Sequence[str]) -> str:
    """Return a fingerprint: SHA-256 of a zip's names, checksums and sizes, or of each NPY's size and both ends."""
    digest = hashlib.sha256(b"npy")
    try:
        for name in sorted({uri, *uris}):
            files = open_files(name, options)
            size = files.size("")
            if files.read("", 0, 4) == b"PK\x03\x04":
                with files.open("") as handle, zipfile.ZipFile(handle) as archive:
                    for info in archive.infolist():
                        digest.update(f"{info.filename} {info.CRC:08x} {info.file_size}\n".encode())
            else:
                digest.update(f"{size}\n".encode())
                digest.update(files.read("", 0, min(size, END_BYTES)))
                digest.update(files.read("", max(0, size - END_BYTES), size))
    except FAILURES as error:
        raise damaged(uri, error) from error
    return digest.hexdigest()
