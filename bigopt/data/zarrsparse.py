"""Sparse rows of a Zarr v3 group: vectors data, indices and indptr, the shape, and y and weight beside them.

Row i is ``data[indptr[i]:indptr[i + 1]]`` in the columns ``indices[...]`` of the same range. The vectors are chunked by
values, so a partition reads whole chunks from left to right and shares at most its first and last chunk with its
neighbours. With a manifest the values of each partition are known; the row bounds of foreign data are read once when it
is opened, 8 bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.errors import DataError
from bigopt.data.columns import places, x_names
from bigopt.data.files import Files, open_files, place
from bigopt.data.manifest import MAX_COLUMNS, Manifest, expected_manifest
from bigopt.data.rooms import index_dtype
from bigopt.data.select import Wanted, choose, require_numeric
from bigopt.data.source import Array, Dataset, Partition, Rows, partitions_of
from bigopt.data.sparse import (
    ROW_BYTES,
    Ahead,
    Picks,
    Vectors,
    bounds_of,
    picked,
    piece_bytes,
    stored_counts,
    stored_rows,
)
from bigopt.data.zarrchecked import CheckedStore, open_array, read_column, read_rows
from bigopt.data.zarrmeta import ArrayInfo, read_array
from bigopt.data.zarropen import UNVERIFIED, beside, columns_of, kind_of, missing_chunks, strings
from bigopt.data.zarrstore import SHARD_BYTES, zarr_identity

VECTORS: Final = ("data", "indices", "indptr")


@wire
@dataclass(frozen=True)
class ZarrSparseSource:
    """Selected columns of sparse rows in a Zarr group.

    Parameters
    ----------
    uri, options, fingerprint, verified, labels, weights
        As in `bigopt.data.zarrstore.ZarrSource`.
    columns : sequence of str
        Names of the features.
    width : int
        Columns as stored.
    picks : tuple of (start, stop), or None
        Ranges of the columns that are features; None: all.
    arrays : tuple of ArrayInfo
        data, indices, indptr, then the others that are read.
    counts : tuple of int
        Stored values of each partition.
    """

    uri: str
    options: dict[str, Any] = field(repr=False)
    fingerprint: str
    verified: bool
    columns: Sequence[str]
    width: int
    picks: Picks | None
    labels: tuple[tuple[str, int], ...]
    weights: tuple[str, int] | None
    arrays: tuple[ArrayInfo, ...]
    counts: tuple[int, ...]

    @cached_property
    def _files(self) -> Files:
        return open_files(self.uri, self.options)

    @cached_property
    def _manifest(self) -> Manifest | None:
        return expected_manifest(self._files, self.fingerprint) if self.verified else None

    @property
    def sparse(self) -> bool:
        """Always: rows are CSR."""
        return True

    @property
    def stored(self) -> str:
        """NumPy dtype name of the values."""
        return self.arrays[0].dtype

    def nonzeros(self, partition: Partition) -> int:
        """Return the stored values of a partition."""
        return self.counts[partition.index]

    def identity(self) -> str:
        """Read the fingerprint again from the store."""
        return zarr_identity(self._files, self.arrays, verified=self.verified)

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows; labels and weights are read once a partition, the vectors piece by piece."""
        if partition.rows == 0:
            return
        digests = {f"{info.name}/zarr.json": info.digest for info in self.arrays}
        store = CheckedStore(self._files, self._manifest, digests)
        rows = range(partition.start, partition.stop)
        infos = {info.name: info for info in self.arrays}
        labels = [read_column(store, infos[name], k, rows) for name, k in self.labels]
        weight = None if self.weights is None else read_column(store, infos[self.weights[0]], self.weights[1], rows)
        y = labels[0] if len(labels) == 1 else np.column_stack(labels) if labels else None
        vectors = Vectors(*(ahead(store, infos[name]) for name in VECTORS))
        row = 0
        for X in stored_rows(
            vectors, partition, self.width, self.nonzeros(partition), lambda k: self.place(partition, k)
        ):
            part = slice(row, row + len(X))
            read, store.bytes_read, row = store.bytes_read, 0, row + len(X)
            yield Rows(picked(X, self.picks), None if y is None else y[part], _cut(weight, part), read)

    def place(self, partition: Partition, row: int) -> str:
        """Name the group and the row."""
        return f"{self._files.uri}, row {partition.start + row} (partition {partition.index})"


def _cut(values: Array | None, rows: slice) -> Array | None:
    return None if values is None else values[rows]


def ahead(store: CheckedStore, info: ArrayInfo) -> Ahead:
    """Return the reader of a vector: by chunks, or by the chunks within a large shard."""
    array = open_array(store, info)
    chunk = info.chunks[0] if info.chunks[0] * info.itemsize <= SHARD_BYTES else info.inner[0]
    return Ahead(lambda start, stop: read_rows(store, array, info, range(start, stop)), chunk, info.rows)


def open_zarr_sparse(
    files: Files,
    uri: str,
    options: Mapping[str, Any],
    wanted: Wanted,
    *,
    listing: Mapping[str, int],
    manifest: Manifest | None,
    attributes: Mapping[str, Any],
    names: list[str],
) -> Dataset:
    """Open a group of sparse rows; see `bigopt.data.zarropen.open_zarr`."""
    read = {name: read_array(files, name) for name in VECTORS}
    n, d = _shape(files, attributes, names)
    _check(files, read, n, d)
    columns: Sequence[str] = strings(attributes.get("columns")) or x_names(d)
    target = strings(attributes.get("target"))
    if manifest is not None:
        columns, target = manifest.names, tuple(c.name for c in manifest.target)
    if len(columns) != d:
        raise DataError(f"{len(columns)} names for {d} columns", where=place(files, "zarr.json"))
    labels, target = beside(columns, [name for name in names if name not in (*VECTORS, "shape")], target, manifest)
    weight = manifest.weight.name if manifest and manifest.weight else None
    if manifest is None and "weight" in labels and "weight" not in target:
        weight = "weight"
    chosen = choose(wanted, columns, labels=tuple(labels), target=target, weight=weight, uri=files.uri)
    for name in (*chosen.target, chosen.weight):
        if name is not None and name not in labels:
            raise DataError(
                f"column '{name}' lies within the sparse rows", where=files.uri, hint="an array beside them"
            )
    refs = tuple(ref for name in chosen.target for ref in columns_of(files, labels[name]))
    weights = None if chosen.weight is None else labels[chosen.weight]
    for name in dict.fromkeys(ref[0] for ref in (*refs, *([weights] if weights else []))):
        info = read[name] = read_array(files, name)
        if info.rows != n:
            raise DataError(f"array '{name}' has {info.rows} rows, the shape says {n}", where=files.uri)
    if len({ref[0] for ref in refs}) > 1:
        raise DataError(f"targets in different arrays: {', '.join(sorted({r[0] for r in refs}))}", where=files.uri)
    if weights is not None:
        require_numeric(chosen.weight or "", read[weights[0]].dtype, files.uri)
        if read[weights[0]].width != 1:
            raise DataError(f"weight has shape {read[weights[0]].shape}, not ({n},)", where=files.uri)
    arrays = tuple(read.values())
    data = read["data"]
    item = data.itemsize + index_dtype(d).itemsize
    if manifest is not None:
        if manifest.rows != n:
            raise DataError(f"the shape says {n} rows, the manifest {manifest.rows}", where=files.uri)
        sizes, counts = manifest.partitions, stored_counts(manifest, files.uri, data.rows)
        fingerprint = manifest.fingerprint
    else:
        store = CheckedStore(files, None, {})
        starts, ends = bounds_of(ahead(store, read["indptr"]), n, data.rows, item, place(files, "indptr"))
        sizes, counts = tuple(np.diff(starts).tolist()), tuple(np.diff(ends).tolist())
        fingerprint = zarr_identity(files, arrays, verified=False)
    source = ZarrSparseSource(
        uri=uri,
        options=dict(options),
        fingerprint=fingerprint,
        verified=manifest is not None,
        columns=chosen.features,
        width=d,
        picks=places(chosen.features, columns),
        labels=refs,
        weights=weights,
        arrays=arrays,
        counts=counts,
    )
    stored = sum(size for key, size in listing.items() if any(key.startswith(info.prefix) for info in arrays))
    warning = f"{files.uri}: {UNVERIFIED}{missing_chunks(arrays, listing)}"
    return Dataset(
        source=source,
        partitions=partitions_of(sizes),
        target=chosen.target,
        manifest=manifest,
        warnings=() if manifest else (warning,),
        classes=manifest.classes if manifest else None,
        target_kind=kind_of(read[refs[0][0]], chosen.target, manifest) if refs else None,
        weight=chosen.weight,
        row_bytes=-(-data.rows * item // n) + ROW_BYTES + sum(i.width * i.itemsize for i in arrays[3:]),
        row_bytes_read=stored / n,
        piece_bytes=piece_bytes(sizes, counts, item),
    )


def _shape(files: Files, attributes: Mapping[str, Any], names: list[str]) -> tuple[int, int]:
    """Return rows and columns: the array ``shape``, else the attribute."""
    value = attributes.get("shape")
    if "shape" in names:
        info = read_array(files, "shape")
        if info.shape != (2,) or not info.dtype.startswith(("int", "uint")):
            raise DataError(f"shape has shape {info.shape} of {info.dtype}", where=place(files, "shape"), hint="[n, d]")
        store = CheckedStore(files, None, {"shape/zarr.json": info.digest})
        value = read_rows(store, open_array(store, info), info, range(2)).tolist()
    if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int and v >= 0 for v in value)):
        raise DataError("no shape of the sparse rows", where=files.uri, hint="an array or attribute shape: [n, d]")
    return int(value[0]), int(value[1])


def _check(files: Files, read: Mapping[str, ArrayInfo], n: int, d: int) -> None:
    for info in read.values():
        integer = info.dtype.startswith(("int", "uint"))
        if len(info.shape) != 1 or info.dtype == "text" or (info.name != "data" and not integer):
            found = f"{info.name} has shape {info.shape} of {info.dtype}"
            raise DataError(found, where=place(files, info.name), hint="vectors; indices and indptr of integers")
    if read["indptr"].rows != n + 1:
        raise DataError(f"indptr has {read['indptr'].rows} values for {n} rows", where=files.uri, hint="n + 1 of them")
    if read["indices"].rows != read["data"].rows:
        found = f"{read['indices'].rows} indices for {read['data'].rows} values"
        raise DataError(found, where=files.uri)
    if n == 0 or d == 0 or d > MAX_COLUMNS:
        raise DataError(f"the shape is ({n}, {d}): no rows or no columns, or too many", where=files.uri)
