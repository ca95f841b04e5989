"""Sparse rows of one NPZ file, as ``scipy.sparse.save_npz`` writes it: data, indices, indptr, shape, format.

Read with NumPy alone, and only in CSR format. Labels lie in the same file: ``y``, optionally ``weight``, ``columns``
and ``target``, as in a dense NPZ:

    X = X.tocsr()
    np.savez("d.npz", data=X.data, indices=X.indices, indptr=X.indptr, shape=X.shape, format="csr", y=y)

``save_npz`` compresses: to read a partition everything before it is decompressed too. Large files are better saved
uncompressed, or ingested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError, DataError
from bigopt.data.columns import places, x_names
from bigopt.data.files import Files
from bigopt.data.npystore import Member, Stream, npy_identity, pick, verified_bytes
from bigopt.data.rooms import index_dtype
from bigopt.data.select import Wanted, choose, require_numeric
from bigopt.data.source import NUMERIC, Array, Dataset, Partition, Rows, partitions_of, target_kind
from bigopt.data.sparse import ROW_BYTES, Ahead, Picks, Vectors, bounds_of, picked, piece_bytes, stored_rows

VECTORS = ("data", "indices", "indptr")
_READ_BYTES = 1 << 20


@wire
@dataclass(frozen=True)
class NpzSparseSource:
    """Selected columns of sparse rows in an NPZ file.

    Parameters
    ----------
    uri, options, fingerprint, labels, weights
        As in `bigopt.data.npystore.NpySource`.
    columns : sequence of str
        Names of the features.
    width : int
        Columns as stored.
    picks : tuple of (start, stop), or None
        Ranges of the columns that are features; None: all.
    members : tuple of Member
        data, indices, indptr, then the others that are read.
    counts : tuple of int
        Stored values of each partition.
    """

    uri: str
    options: dict[str, Any] = field(repr=False)
    fingerprint: str
    columns: Sequence[str]
    width: int
    picks: Picks | None
    labels: tuple[tuple[str, int], ...]
    weights: tuple[str, int] | None
    members: tuple[Member, ...]
    counts: tuple[int, ...]

    @property
    def sparse(self) -> bool:
        """Always: rows are CSR."""
        return True

    @property
    def stored(self) -> str:
        """NumPy dtype name of the values."""
        return np.dtype(self.members[0].dtype).name

    def nonzeros(self, partition: Partition) -> int:
        """Return the stored values of a partition."""
        return self.counts[partition.index]

    def identity(self) -> str:
        """Read the fingerprint again: of the zip's directory with its checksums."""
        return npy_identity(self.uri, self.options, [self.uri])

    @cached_property
    def _verified(self) -> int:
        if self.identity() != self.fingerprint:
            raise DataError("changed since the run opened it", where=self.uri, hint="start a new run")
        return verified_bytes(self.members, self.options)

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows, about a megabyte at a time."""
        if partition.rows == 0:
            return
        read = 0 if "_verified" in self.__dict__ else self._verified
        members = {member.name: member for member in self.members}
        with ExitStack() as stack:
            vectors = Vectors(*(_Vector(stack, members[name], self.options).ahead for name in VECTORS))
            beside = {ref[0] for ref in (*self.labels, *([self.weights] if self.weights else []))}
            streams = {name: Stream(stack, members[name], self.options, partition.start) for name in beside}
            for X in stored_rows(
                vectors, partition, self.width, self.nonzeros(partition), lambda k: self.place(partition, k)
            ):
                arrays = {name: stream.read(len(X)) for name, stream in streams.items()}
                labels = [pick(arrays, ref) for ref in self.labels]
                y = labels[0] if len(labels) == 1 else np.column_stack(labels) if labels else None
                weight = None if self.weights is None else pick(arrays, self.weights)
                yield Rows(picked(X, self.picks), y, weight, read + X.nbytes)
                read = 0

    def place(self, partition: Partition, row: int) -> str:
        """Name the file and the row."""
        return f"{self.uri}, row {partition.start + row} (partition {partition.index})"


class _Vector:
    """A member read from left to right."""

    def __init__(self, stack: ExitStack, member: Member, options: Mapping[str, Any]) -> None:
        self._stack, self._member, self._options = stack, member, options
        self._stream: Stream | None = None
        self._at = 0
        chunk = _READ_BYTES // max(1, member.row_bytes)
        self.ahead = Ahead(self._read, chunk, member.shape[0])

    def _read(self, start: int, stop: int) -> Array:
        if self._stream is None or start != self._at:
            self._stream = Stream(self._stack, self._member, self._options, start)
        self._at = stop
        return self._stream.read(stop - start)


def open_npz_sparse(
    files: Files,
    uri: str,
    options: Mapping[str, Any],
    wanted: Wanted,
    members: Mapping[str, Member],
    notes: Mapping[str, tuple[str, ...]],
    shape: tuple[int, ...],
    warning: str,
) -> Dataset:
    """Open an NPZ of sparse rows; `members` and `notes` as read from its directory, `shape` its member of that name."""
    data, indices, indptr = (members[name] for name in VECTORS)
    if len(shape) != 2 or min(shape) < 1:
        raise DataError(f"shape {shape}: no rows or no columns", where=files.uri, hint="[n, d]")
    n, d = shape
    for member in (data, indices, indptr):
        kind = np.dtype(member.dtype)
        if len(member.shape) != 1 or kind.name not in NUMERIC or (member is not data and kind.kind not in "iu"):
            found = f"{member.name} has shape {member.shape} of {kind}"
            raise DataError(found, where=files.uri, hint="vectors; indices and indptr of integers")
    if indptr.shape[0] != n + 1 or indices.shape != data.shape:
        found = f"{indptr.shape[0]} row bounds, {indices.shape[0]} indices, {data.shape[0]} values for {n} rows"
        raise DataError(found, where=files.uri, hint="n + 1 bounds, as many indices as values")
    columns: Sequence[str] = notes.get("columns") or x_names(d)
    if len(columns) != d or (isinstance(columns, tuple) and len(set(columns)) != d):
        raise DataError(f"{len(columns)} names for {d} columns", where=files.uri)
    target = notes.get("target") or (("y",) if "y" in members else ())
    labels: dict[str, tuple[tuple[str, int], ...]] = {}
    if "y" in members:
        y = members["y"]
        every = (("y", -1),) if len(y.shape) == 1 else tuple(("y", k) for k in range(y.width))
        if len(target) == 1:
            labels[target[0]] = every
        elif len(target) == len(every):
            labels.update({name: (ref,) for name, ref in zip(target, every, strict=True)})
        labels.setdefault("y", every)
    if "weight" in members:
        labels["weight"] = (("weight", -1),)
    weight = "weight" if "weight" in members else None
    chosen = choose(wanted, columns, labels=tuple(labels), target=target, weight=weight, uri=files.uri)
    for name in (*chosen.target, *([chosen.weight] if chosen.weight else [])):
        if name not in labels:
            raise ConfError(f"column '{name}' lies within the sparse rows", where="data.target")
    picked_labels = tuple(ref for name in chosen.target for ref in labels[name])
    weights = None if chosen.weight is None else labels[chosen.weight][0]
    used = dict.fromkeys([*VECTORS, *(ref[0] for ref in picked_labels), *([weights[0]] if weights else [])])
    read = tuple(members[name] for name in used)
    for member in read[3:]:
        if member.shape[0] != n:
            raise DataError(f"array '{member.name}' has {member.shape[0]} rows, the shape says {n}", where=files.uri)
    if chosen.weight is not None and weights is not None:
        require_numeric(chosen.weight, np.dtype(members[weights[0]].dtype).name, files.uri)
    item = data.row_bytes + index_dtype(d).itemsize
    with ExitStack() as stack:
        starts, ends = bounds_of(_Vector(stack, indptr, options).ahead, n, data.shape[0], item, files.uri)
    sizes, counts = tuple(np.diff(starts).tolist()), tuple(np.diff(ends).tolist())
    source = NpzSparseSource(
        uri=uri,
        options=dict(options),
        fingerprint=npy_identity(uri, options, [uri]),
        columns=chosen.features,
        width=d,
        picks=places(chosen.features, columns),
        labels=picked_labels,
        weights=weights,
        members=read,
        counts=counts,
    )
    return Dataset(
        source=source,
        partitions=partitions_of(sizes),
        target=chosen.target,
        warnings=(warning,),
        target_kind=target_kind(np.dtype(members[picked_labels[0][0]].dtype)) if picked_labels else None,
        weight=chosen.weight,
        row_bytes=-(-data.shape[0] * item // n) + ROW_BYTES + sum(member.row_bytes for member in read[3:]),
        row_bytes_read=sum(member.stored for member in read) / n,
        piece_bytes=piece_bytes(sizes, counts, item),
    )
