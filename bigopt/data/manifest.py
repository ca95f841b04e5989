"""The manifest: what bigopt knows about a dataset it wrote, and how it notices that a byte of it changed.

``bigopt-manifest.json`` lies in the dataset's folder and is written last. It holds rows, columns with dtype, kind and
moments, targets and their classes, the row ranges of the partitions, the recipe of ingest, and for every **chunk** (a
Zarr key or metadata file whole, a Parquet row group or a Parquet file's footer as a byte range) its rows, bytes and
digest. Its **fingerprint** is the SHA-256 of all that, so one hash names the dataset: driver, workers and checkpoints
compare it.

A chunk's **digest** is the CRC-32C of all but its last four bytes, and then these as they are: processors compute
CRC-32C at the rate of memory, and a chunk that ends with its own CRC-32C has the same CRC-32C whatever it holds. Of
earlier datasets it is the CRC-32 of everything, which is read as well.

Reading is strict: anything but what `Manifest.to_json` writes is a DataError, a path that leaves the folder a
SecurityError.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import DataError, SecurityError
from bigopt.data.columns import Names, Run
from bigopt.data.files import Files, place, read_file

NAME: Final = "bigopt-manifest.json"
VERSION: Final = 2
LAYOUTS: Final = ("columns", "list", "sparse")
MAX_COLUMNS: Final = 1 << 40
LIMIT: Final = 128 << 20
"""Most bytes of a manifest."""

_OLD: Final = 8
"""Digits of a digest that is a CRC-32."""

Buffer = bytes | npt.NDArray[np.uint8]
T = TypeVar("T")


class ColumnMoments(NamedTuple):
    """Population moments of a column over all rows, float64 (mean and deviation NaN where a value is not finite)."""

    mean: float
    std: float
    min: float
    max: float


class Column(NamedTuple):
    """One feature, target or weight.

    Parameters
    ----------
    name : str
    dtype : str
        NumPy dtype name as stored; ``text`` for strings.
    kind : str
        ``number``, ``integer``, ``boolean``, ``text``, or what ingest says (``category``).
    moments : ColumnMoments or None
        None for text and sparse rows.
    run : int
        Not 0: stands for that many numbered features of sparse rows, ``name0``, ``name1``, ...
    """

    name: str
    dtype: str
    kind: str
    moments: ColumnMoments | None = None
    run: int = 0


class Chunk(NamedTuple):
    """Bytes [start, start + bytes) of a file and their `digest_of`, in hex; `rows` is 0 for metadata."""

    key: str
    start: int
    bytes: int
    rows: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """See the module; `partitions` are row counts in order, `extra` whatever else a writer wants to keep."""

    format: str
    layout: str
    rows: int
    columns: tuple[Column, ...]
    target: tuple[Column, ...]
    weight: Column | None
    classes: tuple[Any, ...] | None
    partitions: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    recipe: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over everything else."""
        return hashlib.sha256(_dumps(self._tree()).encode()).hexdigest()

    @cached_property
    def names(self) -> Sequence[str]:
        """Names of the features; `bigopt.data.columns.Names` where some are a run."""
        if any(column.run for column in self.columns):
            return Names(tuple(Run(c.name, c.run) if c.run else c.name for c in self.columns))
        return tuple(column.name for column in self.columns)

    @cached_property
    def by_key(self) -> dict[tuple[str, int], Chunk]:
        """Chunks by (key, start)."""
        return {(chunk.key, chunk.start): chunk for chunk in self.chunks}

    @cached_property
    def tails(self) -> dict[str, int]:
        """Where the last chunk of each file starts: a Parquet file's footer."""
        return {chunk.key: chunk.start for chunk in sorted(self.chunks, key=lambda c: c.start)}

    def _tree(self) -> dict[str, Any]:
        return {
            "bigopt_manifest": self.version,
            "format": self.format,
            "layout": self.layout,
            "rows": self.rows,
            "columns": [_from_column(c) for c in self.columns],
            "target": [_from_column(c) for c in self.target],
            "weight": None if self.weight is None else _from_column(self.weight),
            "classes": None if self.classes is None else list(self.classes),
            "partitions": list(self.partitions),
            "chunks": [list(chunk) for chunk in self.chunks],
            "recipe": self.recipe,
            "extra": self.extra,
        }

    def to_json(self) -> bytes:
        """Return the file's bytes."""
        return _dumps({**self._tree(), "fingerprint": self.fingerprint}).encode()

    def check(self, key: str, data: Buffer, where: str, *, start: int = 0) -> int | None:
        """Compare bytes read from a chunk with the manifest.

        Returns
        -------
        int or None
            The CRC-32C of all but the last four bytes, where that is what was compared.

        Raises
        ------
        DataError
            Where it is unknown, shorter, longer or altered.
        """
        chunk = self.by_key.get((key, start))
        if chunk is None:
            raise DataError("not in the manifest", where=where, hint="the dataset was altered: ingest it again")
        if len(data) != chunk.bytes:
            found = f"{len(data)} bytes, the manifest says {chunk.bytes}"
            raise DataError(found, where=where, hint="truncated or altered: ingest again")
        old = len(chunk.digest) == _OLD
        digest = f"{zlib.crc32(np.frombuffer(data, dtype=np.uint8).data):08x}" if old else digest_of(data)
        if digest != chunk.digest:
            raise DataError(
                f"altered: {'CRC-32' if old else 'CRC-32C and tail'} {digest} of {len(data)} bytes, the manifest says "
                f"{chunk.digest}",
                where=where,
                hint="ingest again, or restore the file",
            )
        return None if old else int(digest[:_OLD], 16)

    def check_present(self, listing: Mapping[str, int], uri: str) -> None:
        """Compare files and sizes with the manifest.

        Raises
        ------
        DataError
            Naming every file that is missing, or else every one of another size.
        """
        need: dict[str, int] = {}
        for chunk in self.chunks:
            need[chunk.key] = max(need.get(chunk.key, 0), chunk.start + chunk.bytes)
        missing = [key for key in need if key not in listing]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(need)} files that the manifest names are missing: {', '.join(missing)}",
                where=uri,
                hint="restore them or ingest again",
            )
        wrong = [f"{key} ({listing[key]} bytes, not {size})" for key, size in need.items() if listing[key] != size]
        if wrong:
            raise DataError(
                f"{len(wrong)} files have another size than in the manifest: {', '.join(wrong)}",
                where=uri,
                hint="truncated or altered: restore them or ingest again",
            )


def _dumps(tree: Any) -> str:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _from_column(column: Column) -> list[Any]:
    moments = None
    if column.moments is not None:
        moments = [float(value) if math.isfinite(value) else None for value in column.moments]
    return [[column.name, column.run] if column.run else column.name, column.dtype, column.kind, moments]


def _expect(value: Any, kind: type[T], what: str) -> T:
    if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or not 0 <= value < 1 << 62)):  # type: ignore[operator]
        raise DataError(f"manifest: {what} is {str(value)[:40]!r}, not {kind.__name__}")
    return value


def _each(value: Any, what: str, build: Callable[[Any, str], T]) -> tuple[T, ...]:
    return tuple(build(item, f"{what}[{i}]") for i, item in enumerate(_expect(value, list, what)))


def _row(value: Any, what: str, length: int) -> list[Any]:
    if len(_expect(value, list, what)) != length:
        raise DataError(f"manifest: {what} has {len(value)} parts, not {length}")
    return list(value)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        raise DataError(f"manifest: {what} is {str(value)[:40]!r}, not a number")
    return math.nan if value is None else float(value)


def _column(value: Any, what: str) -> Column:
    name, dtype, kind, moments = _row(value, what, 4)
    if moments is not None:
        moments = ColumnMoments(*(_number(v, what) for v in _row(moments, what, 4)))
    if isinstance(name, list):
        prefix, size = _row(name, what, 2)
        if not 0 < _expect(size, int, what) <= MAX_COLUMNS:
            raise DataError(f"manifest: {what} is a run of {size} columns")
        name, moments, run = prefix, None, size
    else:
        run = 0
    return Column(_expect(name, str, what), _expect(dtype, str, what), _expect(kind, str, what), moments, run)


def _chunk(value: Any, what: str) -> Chunk:
    key, start, size, rows, digest = _row(value, what, 5)
    key, digest = _expect(key, str, what), _expect(digest, str, what)
    if key.startswith("/") or "\\" in key or "\0" in key or ".." in key.split("/"):
        raise SecurityError(f"manifest: {what} names '{key[:80]}', outside the dataset")
    if len(digest) not in (_OLD, 2 * _OLD) or not set(digest) <= set("0123456789abcdef"):
        raise DataError(f"manifest: {what} has no digest: {digest[:40]!r}")
    return Chunk(key, _expect(start, int, what), _expect(size, int, what), _expect(rows, int, what), digest)


def _label(value: Any, what: str) -> Any:
    if not isinstance(value, (bool, int, float, str)):
        raise DataError(f"manifest: {what} is no label: {str(value)[:40]!r}")
    return value


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number here")


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Return the manifest of a file's bytes.

    Raises
    ------
    DataError
        For anything `Manifest.to_json` does not write, and where the fingerprint does not fit.
    SecurityError
        For a path outside the dataset.
    """
    try:
        tree = json.loads(data.decode(), parse_constant=_constant)
        return _parse(tree)
    except (DataError, SecurityError) as error:
        hint = error.hint or "the manifest was altered: ingest again"
        raise type(error)(error.message, where=where, hint=hint) from error
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise DataError(f"manifest: not readable: {error}", where=where, hint="ingest again") from error


_KEYS = frozenset({
    "bigopt_manifest", "format", "layout", "rows", "columns", "target", "weight", "classes", "partitions", "chunks",
    "recipe", "extra", "fingerprint",
})  # fmt: skip


def _parse(tree: Any) -> Manifest:
    _expect(tree, dict, "file")
    version = _expect(tree.get("bigopt_manifest"), int, "version")
    if not 1 <= version <= VERSION:
        raise DataError(f"manifest: version {version}, this bigopt reads 1 to {VERSION}")
    if set(tree) != _KEYS:
        raise DataError(f"manifest: keys that differ: {', '.join(sorted(set(tree) ^ _KEYS))[:200]}")
    manifest = Manifest(
        format=_expect(tree["format"], str, "format"),
        layout=_expect(tree["layout"], str, "layout"),
        rows=_expect(tree["rows"], int, "rows"),
        columns=_each(tree["columns"], "columns", _column),
        target=_each(tree["target"], "target", _column),
        weight=None if tree["weight"] is None else _column(tree["weight"], "weight"),
        classes=None if tree["classes"] is None else _each(tree["classes"], "classes", _label),
        partitions=_each(tree["partitions"], "partitions", lambda v, what: _expect(v, int, what)),
        chunks=_each(tree["chunks"], "chunks", _chunk),
        recipe=None if tree["recipe"] is None else _expect(tree["recipe"], dict, "recipe"),
        extra=_expect(tree["extra"], dict, "extra"),
        version=version,
    )
    if manifest.format not in ("zarr", "parquet") or manifest.layout not in LAYOUTS:
        raise DataError(f"manifest: format '{manifest.format[:20]}', layout '{manifest.layout[:20]}'")
    if sum(manifest.partitions) != manifest.rows or manifest.rows == 0:
        raise DataError(f"manifest: {len(manifest.partitions)} partitions do not add up to {manifest.rows} rows")
    if manifest.layout != "sparse" and any(column.run for column in (*manifest.columns, *manifest.target)):
        raise DataError("manifest: runs of columns in a dataset that is not sparse")
    if tree["fingerprint"] != manifest.fingerprint:
        raise DataError("manifest: altered, its fingerprint does not fit", hint="restore it or ingest again")
    return manifest


def read_manifest(files: Files) -> Manifest:
    """Read and check the manifest in a dataset's folder."""
    return parse_manifest(read_file(files, NAME, limit=LIMIT), place(files, NAME))


def expected_manifest(files: Files, fingerprint: str) -> Manifest:
    """Read the manifest in a worker and compare it with the one the run opened.

    Raises
    ------
    DataError
        Where it is another.
    """
    manifest = read_manifest(files)
    if manifest.fingerprint != fingerprint:
        raise DataError(
            f"another dataset (manifest {manifest.fingerprint[:12]}) than the run opened ({fingerprint[:12]})",
            where=files.uri,
            hint="start a new run, or restore the data",
        )
    return manifest


def digest_of(data: Buffer) -> str:
    """Return the digest of a chunk: the CRC-32C of all but its last four bytes, and these, in 16 hexadecimal digits."""
    from google_crc32c import value

    body = np.frombuffer(data, dtype=np.uint8)
    end = max(0, len(body) - 4)
    return f"{value(body[:end]):08x}{bytes(body[end:]).hex():0<8}"
