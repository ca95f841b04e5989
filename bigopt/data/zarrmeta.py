"""Zarr v3 metadata, read by hand and checked before anything is allocated or any codec is looked up.

A ``zarr.json`` may claim any shape, chunk and codec. This module reads group and array documents as plain JSON, refuses
what bigopt does not read (format 2, other grids, codecs beyond the allow-list, dtypes without numbers or text) and what
cannot be true or cannot be held (limits below), and returns what the reader needs. It does not import zarr.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bigopt.core.codec import wire
from bigopt.core.errors import DataError
from bigopt.data.files import Files, place, read_file
from bigopt.data.source import NUMERIC

JSON_BYTES: Final = 16 << 20
MAX_CHUNK_BYTES: Final = 1 << 31
MAX_CHUNKS: Final = 5_000_000
MAX_BYTES: Final = 1 << 55
MAX_COLUMNS: Final = 10_000_000
CODECS: Final = frozenset({"bytes", "zstd", "gzip", "blosc", "crc32c", "transpose", "vlen-utf8", "sharding_indexed"})
TEXT: Final = {"string": 16, "fixed_length_utf32": 0, "null_terminated_bytes": 0}


@wire
@dataclass(frozen=True)
class ArrayInfo:
    """One array of the group.

    Parameters
    ----------
    name : str
    shape : tuple of int
        One or two axes.
    dtype : str
        NumPy dtype name; ``text`` for strings.
    itemsize : int
        Decoded bytes of an item (16 for strings of any length).
    chunks : tuple of int
        Shape of what a key holds: the chunk, or the shard.
    inner : tuple of int
        Shape of what is decoded at once: the chunk, within a shard or not.
    prefix, separator : str
        How keys are made: ``prefix + separator.join(coordinates)``.
    codecs : str
        Names of the codecs, for people.
    checked : bool
        Whether a CRC-32C codec or Zstandard checksum covers the chunks.
    digest : str
        SHA-256 of the document.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    chunks: tuple[int, ...]
    inner: tuple[int, ...]
    prefix: str
    separator: str
    codecs: str
    checked: bool
    digest: str

    @property
    def rows(self) -> int:
        """Rows n."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Columns (1 for a vector)."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of keys along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    @property
    def row_sizes(self) -> tuple[int, ...]:
        """Rows of each chunk (or shard) along the first axis."""
        whole, rest = divmod(self.rows, self.chunks[0])
        return (self.chunks[0],) * whole + ((rest,) if rest else ())

    def key(self, coordinates: tuple[int, ...]) -> str:
        """Return the key of a chunk, below the group."""
        return self.prefix + self.separator.join(map(str, coordinates))

    def all_keys(self, rows: range | None = None) -> Iterator[str]:
        """Yield the keys of all chunks, or of those that hold some rows."""
        first, *rest = self.grid
        along = range(first) if rows is None else range(rows.start // self.chunks[0], -(-rows.stop // self.chunks[0]))
        yield from (self.key(c) for c in itertools.product(along, *(range(k) for k in rest)))


def read_json(files: Files, key: str) -> tuple[dict[str, Any], str]:
    """Return a metadata document and its SHA-256.

    Raises
    ------
    DataError
        Where it is missing, too large, too deep or no JSON object.
    """
    data = read_file(files, key, limit=JSON_BYTES)
    try:
        tree = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"no readable JSON: {error}", where=place(files, key)) from error
    if not isinstance(tree, dict):
        raise DataError("no Zarr metadata", where=place(files, key))
    if tree.get("zarr_format") != 3:
        found = f"Zarr format {str(tree.get('zarr_format'))[:10]}"
        raise DataError(found, where=place(files, key), hint="bigopt reads Zarr format 3")
    return tree, hashlib.sha256(data).hexdigest()


def read_array(files: Files, name: str) -> ArrayInfo:
    """Read and check an array's metadata.

    Raises
    ------
    DataError
        Saying what is not supported or exceeds a limit.
    """
    key = f"{name}/zarr.json"
    where = place(files, key)
    tree, digest = read_json(files, key)
    try:
        return _array(name, tree, digest)
    except DataError as error:
        raise DataError(error.message, where=where, hint=error.hint) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"no valid array metadata: {type(error).__name__} {error}", where=where) from error


def _array(name: str, tree: dict[str, Any], digest: str) -> ArrayInfo:
    if tree["node_type"] != "array":
        raise DataError(f"a {str(tree['node_type'])[:20]}, not an array")
    if tree.get("storage_transformers"):
        raise DataError("storage transformers are not supported")
    shape = _sizes(tree["shape"], 0)
    grid = tree["chunk_grid"]["name"]
    if grid != "regular":
        raise DataError(f"chunk grid '{str(grid)[:30]}'", hint="write it with a regular chunk grid")
    chunks = _sizes(tree["chunk_grid"]["configuration"]["chunk_shape"], 1)
    if len(shape) not in (1, 2) or len(chunks) != len(shape):
        raise DataError(f"shape {shape}, chunks {chunks}", hint="rows by columns, or one value a row")
    dtype, itemsize = _dtype(tree["data_type"])
    names, inner = _codecs(tree["codecs"], chunks)
    checked = "crc32c" in names or '"checksum": true' in json.dumps(tree["codecs"])
    size, decoded = math.prod(shape) * itemsize, math.prod(inner) * itemsize
    if decoded > MAX_CHUNK_BYTES:
        raise DataError(f"a chunk of {inner} decodes to {decoded:.3g} bytes", hint="at most 2 GB: write smaller chunks")
    count = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    if count > MAX_CHUNKS or size > MAX_BYTES or (len(shape) > 1 and shape[1] > MAX_COLUMNS):
        raise DataError(f"shape {shape} in {count:.3g} chunks is beyond what can be real", hint="the metadata is wrong")
    encoding = tree.get("chunk_key_encoding", {"name": "default"})
    default = encoding["name"] == "default"
    if encoding["name"] not in ("default", "v2"):
        raise DataError(f"chunk key encoding '{str(encoding['name'])[:30]}'")
    separator = str(encoding.get("configuration", {}).get("separator", "/" if default else "."))
    if separator not in ("/", "."):
        raise DataError(f"chunk key separator '{separator[:10]}'")
    prefix = f"{name}/c{separator}" if default else f"{name}/"
    return ArrayInfo(
        name, shape, dtype, itemsize, chunks, inner, prefix, separator, " + ".join(names), checked, digest
    )  # fmt: skip


def _sizes(value: Any, least: int) -> tuple[int, ...]:
    sizes = tuple(value)
    if not all(isinstance(v, int) and not isinstance(v, bool) and least <= v < 1 << 60 for v in sizes):
        raise DataError(f"sizes {str(value)[:60]}")
    return sizes


def _dtype(value: Any) -> tuple[str, int]:
    if isinstance(value, str) and value in NUMERIC:
        return value, _itemsize(value)
    name = value if isinstance(value, str) else value["name"]
    if name not in TEXT:
        raise DataError(f"data type '{str(name)[:40]}'", hint="numbers, booleans, and text for targets")
    width = 16 if isinstance(value, str) else int(value["configuration"]["length_bytes"])
    if not 0 <= width <= 1 << 20:
        raise DataError(f"strings of {width} bytes")
    return "text", max(1, width)


def _itemsize(dtype: str) -> int:
    return 1 if dtype == "bool" else int(dtype.lstrip("uintfloa")) // 8


def _codecs(value: Any, chunks: tuple[int, ...]) -> tuple[list[str], tuple[int, ...]]:
    """Return the names of all codecs (nested ones too) and the shape that is decoded at once."""
    names: list[str] = []
    inner = chunks
    for codec in value:
        name = codec if isinstance(codec, str) else codec["name"]
        if name not in CODECS:
            raise DataError(f"codec '{str(name)[:40]}' is not allowed", hint=f"allowed: {', '.join(sorted(CODECS))}")
        names.append(name)
        if name == "sharding_indexed":
            conf = codec["configuration"]
            inner = _sizes(conf["chunk_shape"], 1)
            if len(inner) != len(chunks) or any(c % i for c, i in zip(chunks, inner, strict=True)):
                raise DataError(f"shards of {chunks} in chunks of {inner}")
            nested, innermost = _codecs(conf["codecs"], inner)
            if "sharding_indexed" in nested or innermost != inner:
                raise DataError("shards within shards are not supported")
            _codecs(conf.get("index_codecs", []), inner)
            names += nested
    return names, inner
