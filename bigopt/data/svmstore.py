"""svmlight (libsvm) text files, trained on directly: partitions are ranges of bytes, parsed where they are used.

Opening a file scans it once: where rows begin, how many values they hold, the least and greatest index. Columns are
counted from 0 where any row has an index 0, else from 1, in the whole file; a header ``Column indices are zero-based``
(or one-based), as scikit-learn writes it, decides as well. Columns are called x0, x1, ... by position. Columns that a
model has and the file does not reach hold zeros, as everything else that a line leaves out.

The text is parsed again whenever a partition is decoded, at some 25 MB/s: for many passes over data that do not fit
``data.memory``, ingest it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError, DataError
from bigopt.data.columns import Names, Run, places, x_names
from bigopt.data.files import Files, open_files
from bigopt.data.rooms import index_dtype
from bigopt.data.select import Wanted, choose
from bigopt.data.source import Dataset, Partition, Rows, partitions_of
from bigopt.data.sparse import ROW_BYTES, Ints, Picks, cut_by_nonzeros, picked, piece_bytes
from bigopt.data.svmparse import parse, survey

PIECE_BYTES: Final = 1 << 20
END_BYTES: Final = 1 << 20
LINE_BYTES: Final = 1 << 30
"""Most bytes of a line."""
_STEP_BYTES: Final = 1 << 18
_TARGET: Final = "y"
_UNVERIFIED: Final = "no manifest: the dataset cannot be verified, a changed or damaged byte may pass unnoticed"


@wire
@dataclass(frozen=True)
class SvmSource:
    """Selected columns of an svmlight file.

    Parameters
    ----------
    uri : str
    options : dict
        ``data.storage_options``.
    fingerprint : str
        What `identity` returned when the file was opened.
    columns : sequence of str
        Names of the features.
    width : int
        Columns of the file, or of the model that asks for more.
    base : int
        The index of the first column: 0 or 1.
    picks : tuple of (start, stop), or None
        Ranges of the columns that are features; None: all.
    labelled : bool
        Whether labels are wanted.
    whole : bool
        Whether labels are integers.
    offsets, lines : tuple of int
        Byte at which each partition begins (and the end), and its line, from 1.
    counts : tuple of int
        Stored values of each partition.
    """

    uri: str
    options: dict[str, Any] = field(repr=False)
    fingerprint: str
    columns: Sequence[str]
    width: int
    base: int
    picks: Picks | None
    labelled: bool
    whole: bool
    offsets: tuple[int, ...]
    lines: tuple[int, ...]
    counts: tuple[int, ...]

    @cached_property
    def _files(self) -> Files:
        return open_files(self.uri, self.options)

    @property
    def sparse(self) -> bool:
        """Always: rows are CSR."""
        return True

    @property
    def stored(self) -> str:
        """Values are read as float64."""
        return "float64"

    def nonzeros(self, partition: Partition) -> int:
        """Return the values of a partition."""
        return self.counts[partition.index]

    def identity(self) -> str:
        """Read the fingerprint again: of the file's size and both ends."""
        return svm_identity(self._files)

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows, about a megabyte of text at a time."""
        rows = values = 0
        for data, line, _ in _blocks(self._files, *self._range(partition), self.lines[partition.index], PIECE_BYTES):
            found = parse(data, self._files.uri, line)
            indices = found.indices - self.base
            rows, values = rows + len(found.labels), values + len(indices)
            if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self.width):
                raise self._changed("an index that was not there", line)
            X = CSR(found.values, indices, found.indptr, self.width)
            labels = found.labels.astype(np.int64) if self.whole else found.labels
            if len(X):
                yield Rows(picked(X, self.picks), labels if self.labelled else None, None, len(data))
        if (rows, values) != (partition.rows, self.counts[partition.index]):
            raise self._changed(f"{rows} rows with {values} values", self.lines[partition.index])

    def _changed(self, found: str, line: int) -> DataError:
        where = f"{self._files.uri}, line {line} and below"
        return DataError(f"{found}: changed since it was opened", where=where, hint="start a new run")

    def _range(self, partition: Partition) -> tuple[int, int]:
        return self.offsets[partition.index], self.offsets[partition.index + 1]

    def place(self, partition: Partition, row: int) -> str:
        """Name the file and the line."""
        seen = 0
        for data, line, _ in _blocks(self._files, *self._range(partition), self.lines[partition.index], PIECE_BYTES):
            numbers = survey(data, self._files.uri, line).line
            if row < seen + len(numbers):
                return f"{self._files.uri}, line {line + int(numbers[row - seen])}"
            seen += len(numbers)
        return f"{self._files.uri}, row {partition.start + row}"


def _blocks(files: Files, start: int, stop: int, line: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield whole lines of bytes [start, stop) in blocks, with the first one's number and its byte in the file."""
    held, at = b"", start
    while at < stop or held:
        try:
            data = held + files.read("", at, min(stop, at + size))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=files.uri) from error
        if len(data) == len(held) and at < stop:
            raise DataError(f"ends at byte {at} of {stop}", where=files.uri, hint="truncated while it was read")
        begin, at = at - len(held), min(stop, at + size)
        cut = len(data) if at >= stop else data.rfind(b"\n") + 1
        if cut == 0:
            if len(data) > LINE_BYTES:
                raise DataError(f"a line of more than {LINE_BYTES} bytes", where=f"{files.uri}, line {line}")
            held = data
            continue
        block, held = data[:cut], data[cut:]
        yield block, line, begin
        line += block.count(b"\n")


class Scan(NamedTuple):
    """What one pass over a file found.

    Parameters
    ----------
    rows, nonzeros, offsets, lines : ndarray of int64
        Rows, values, bytes and lines before each place at which a partition may begin, then of the whole file.
    least, most : int
        Least and greatest index, -1 where there is none.
    whole : bool
        Whether all labels are integers.
    base : int or None
        What a header says.
    """

    rows: Ints
    nonzeros: Ints
    offsets: Ints
    lines: Ints
    least: int
    most: int
    whole: bool
    base: int | None


def scan(files: Files) -> Scan:
    """Read a file once and find its rows.

    Raises
    ------
    DataError
        For a line that is no line of svmlight, and a file without rows.
    """
    size = files.size("")
    step = max(1, min(_STEP_BYTES, size // 64))
    places_: list[tuple[int, int, int, int]] = []
    rows = values = 0
    least, most, whole, base, last = -1, -1, True, None, -step
    line = 1
    for data, line, begin in _blocks(files, 0, size, 1, PIECE_BYTES):
        if begin == 0:
            base = _header(data)
        found = survey(data, files.uri, line)
        for k in _spaced(found.at + begin, last, step):
            last = begin + int(found.at[k])
            places_.append((rows + k, values + int(found.indptr[k]), last, line + int(found.line[k])))
        rows, values = rows + len(found.at), values + int(found.indptr[-1])
        if found.least >= 0:
            least, most = found.least if least < 0 else min(least, found.least), max(most, found.most)
        whole = whole and found.whole
    if rows == 0:
        raise DataError("no rows", where=files.uri)
    table = np.array([*places_, (rows, values, size, line)], dtype=np.int64)
    table[0, 2:] = (0, 1)
    return Scan(table[:, 0], table[:, 1], table[:, 2], table[:, 3], least, most, whole, base)


def _spaced(at: Ints, last: int, step: int) -> Iterator[int]:
    """Yield which rows begin at least `step` bytes after the one before."""
    k = int(np.searchsorted(at, last + step))
    while k < len(at):
        yield k
        k = int(np.searchsorted(at, at[k] + step))


def _header(data: bytes) -> int | None:
    """Return the base that comments at the top of the file name."""
    for line in data.split(b"\n", 20)[:20]:
        if not line.startswith(b"#"):
            return None
        for base, word in ((0, b"zero-based"), (1, b"one-based")):
            if word in line.lower():
                return base
    return None


def open_svm(files: Files, uri: str, options: Mapping[str, Any], wanted: Wanted, base: int | None = None) -> Dataset:
    """Open an svmlight file; `base` (0 or 1) overrules what the file shows. See `bigopt.data.open.open_dataset`.

    Raises
    ------
    DataError
        For a line that is no line of svmlight, an index 0 in a file from 1, and a file without rows or columns.
    """
    found = scan(files)
    said = base if base is not None else found.base
    why = "data.index_base" if base is not None else "its header" if said is not None else ""
    if said is None:
        said = 0 if found.least == 0 else 1
        why = "an index 0 occurs" if said == 0 else "no index 0 occurs"
    if said == 1 and found.least == 0:
        raise DataError(f"an index 0 in a file whose columns count from 1 ({why})", where=files.uri)
    d = max(found.most + 1 - said, _reach(wanted.features), 0)
    if d == 0:
        raise DataError("no row has a column", where=files.uri)
    columns = x_names(d)
    chosen = choose(wanted, columns, labels=(_TARGET,), target=(_TARGET,), uri=files.uri)
    for name in (*chosen.target, chosen.weight):
        if name not in (_TARGET, None):
            raise ConfError(f"column '{name}' is a feature", where="data.target", hint=f"the labels are '{_TARGET}'")
    item = 8 + index_dtype(d).itemsize
    cuts = cut_by_nonzeros(found.rows, found.nonzeros, item)
    sizes, counts = tuple(np.diff(found.rows[cuts]).tolist()), tuple(np.diff(found.nonzeros[cuts]).tolist())
    source = SvmSource(
        uri=uri,
        options=dict(options),
        fingerprint=svm_identity(files),
        columns=chosen.features,
        width=d,
        base=said,
        picks=places(chosen.features, columns),
        labelled=bool(chosen.target),
        whole=found.whole,
        offsets=tuple(found.offsets[cuts].tolist()),
        lines=tuple(found.lines[cuts[:-1]].tolist()),
        counts=counts,
    )
    n = int(found.rows[-1])
    return Dataset(
        source=source,
        partitions=partitions_of(sizes),
        target=chosen.target,
        warnings=(f"{files.uri}: columns count from {said} ({why}); {_UNVERIFIED}",),
        target_kind=("integer" if found.whole else "number") if chosen.target else None,
        row_bytes=-(-sum(counts) * item // n) + ROW_BYTES + 8,
        row_bytes_read=int(found.offsets[-1]) / n,
        piece_bytes=piece_bytes(sizes, counts, item),
    )


def _reach(features: Sequence[str] | None) -> int:
    """Return the columns that wanted features reach."""
    if isinstance(features, Names) and all(isinstance(part, Run) for part in features.parts):
        return max((part.size for part in features.parts if isinstance(part, Run) and part.prefix == "x"), default=0)
    every = Run("x", 1 << 40)
    return max((every.find(name) + 1 for name in features or ()), default=0)


def svm_identity(files: Files) -> str:
    """Return a fingerprint: SHA-256 of a file's size and both ends."""
    try:
        size = files.size("")
        digest = hashlib.sha256(f"svm {size}\n".encode())
        digest.update(files.read("", 0, min(size, END_BYTES)))
        digest.update(files.read("", max(0, size - END_BYTES), size))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=files.uri) from error
    return digest.hexdigest()
