"""Ingest of rows that are sparse already: svmlight text (also .gz, .bz2), SciPy NPZ, Zarr vectors, Parquet lists.

There is nothing to fit: rows are copied as they are, piece by piece, and get partitions, checksums and a manifest.
Several files become one dataset with the columns of the widest; text files must agree on where their columns begin, so
an index 0 in any of them counts for all.
"""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np

from bigopt.core.errors import ConfError, DataError
from bigopt.data.columns import Names, same, x_names
from bigopt.data.files import local_path, open_files, shown
from bigopt.data.open import detect, open_dataset
from bigopt.data.recipe_spec import IngestSpec
from bigopt.data.source import Dataset
from bigopt.data.svmparse import COMPRESSED, SUFFIXES
from bigopt.data.svmstore import SvmSource
from bigopt.data.writer import DatasetWriter

_TABLES: Final = (".csv", ".tsv", ".zip", ".csv.gz", ".tsv.gz", ".npy")
_EMPTY: Final = ("derive", "where", "encode", "nulls", "joins")


@dataclass(frozen=True)
class Sparse:
    """Opened files of sparse rows.

    Parameters
    ----------
    names : tuple of str
        For messages.
    datasets : tuple of Dataset
    columns : sequence of str
        Of the widest.
    """

    names: tuple[str, ...]
    datasets: tuple[Dataset, ...]
    columns: Sequence[str]


def is_sparse(sources: Sequence[str], options: Mapping[str, Any] | None) -> bool:
    """Whether raw files hold sparse rows; all or none must."""
    found = [_sparse_file(uri, dict(options or {})) for one in sources for uri in _spread(one)]
    if len(set(found)) > 1:
        raise DataError("sparse and dense files together", where=", ".join(map(shown, sources)))
    return bool(found) and found[0]


def _spread(source: str) -> list[str]:
    path = local_path(source)
    if path is not None and not path.exists() and glob.has_magic(str(path)):
        return sorted(glob.glob(str(path))) or [source]
    return [source]


def _text(uri: str) -> bool:
    return uri.lower().endswith((*SUFFIXES, *(s + z for s in SUFFIXES for z in COMPRESSED)))


def _sparse_file(uri: str, options: dict[str, Any]) -> bool:
    lower = uri.lower().rstrip("/")
    if _text(lower):
        return True
    if lower.endswith(_TABLES):
        return False
    files = open_files(uri, options)
    with contextlib.suppress(DataError, ConfError, OSError):  # the reader of tables says what is wrong
        kind = detect(files)
        if kind == "svmlight":
            return True
        if kind == "zarr":
            return any(key == "indptr/zarr.json" for key in files.listing())
        if kind == "npz":
            from bigopt.data.npyopen import holds_vectors

            return holds_vectors(files)
        if kind == "parquet":
            from bigopt.data.parquetmeta import read_info
            from bigopt.data.parquetopen import data_files
            from bigopt.data.parquetsparse import list_columns

            key, size = next(iter(data_files(files).items()))
            return list_columns(read_info(files, key, size)) is not None
    return False


def dtype_of(spec: IngestSpec) -> str | None:
    """Return the dtype that the spec asks for, None for the files' own.

    Raises
    ------
    ConfError
        For anything in the spec that sparse rows do not take.
    """
    for name in _EMPTY:
        if getattr(spec, name):
            where = f"ingest.{name.removesuffix('s') if name == 'joins' else name}"
            raise ConfError("sparse rows are written as they are", where=where, hint="leave it out")
    if spec.columns is None:
        return None
    if len(spec.columns) != 1 or spec.columns[0][0] != "*":
        hint = "such as {'*': float32}; data.features chooses columns when they are read"
        raise ConfError("of sparse rows all columns are written", where="ingest.columns", hint=hint)
    return spec.columns[0][1]


@contextlib.contextmanager
def opened(spec: IngestSpec, options: Mapping[str, Any] | None, base: Literal[0, 1] | None = None) -> Iterator[Sparse]:
    """Open all files; compressed text is unpacked into a temporary folder first.

    Raises
    ------
    ConfError, DataError
        See `open_dataset`; and where files differ in named columns, labels or weights.
    """
    uris = [uri for source in spec.source for uri in _spread(source)]
    with tempfile.TemporaryDirectory(prefix="bigopt-") as folder, _renamed(folder, uris):
        places = [_unpacked(uri, Path(folder) / f"{k}.svm", dict(options or {})) for k, uri in enumerate(uris)]
        datasets = [_open(uri, spec, options, base) for uri in places]
        bases = [data.source.base for data in datasets if isinstance(data.source, SvmSource)]
        if len(set(bases)) > 1:
            datasets = [
                _open(uri, spec, options, 0) if isinstance(data.source, SvmSource) else data
                for uri, data in zip(places, datasets, strict=True)
            ]
        yield Sparse(tuple(map(shown, uris)), tuple(datasets), _columns(datasets, uris))


def _open(uri: str, spec: IngestSpec, options: Mapping[str, Any] | None, base: Literal[0, 1] | None) -> Dataset:
    return open_dataset(
        uri, target=spec.target, weight=spec.weight, storage_options=options, need_target=spec.target is not None,
        index_base=base,
    )  # fmt: skip


def _columns(datasets: Sequence[Dataset], uris: Sequence[str]) -> Sequence[str]:
    """Return the columns of the widest file; numbered ones may differ in their number, others not at all."""
    widest = max((data.columns for data in datasets), key=len)
    numbered = isinstance(widest, Names) and same(widest, x_names(len(widest)))
    for data, uri in zip(datasets, uris, strict=True):
        plain = numbered and same(data.columns, x_names(len(data.columns)))
        if not plain and not same(data.columns, widest):
            raise DataError("other columns than the files beside it", where=shown(uri))
        if (len(data.target), data.weight is None) != (len(datasets[0].target), datasets[0].weight is None):
            raise DataError("other labels or weights than the files beside it", where=shown(uri))
    return widest


def _unpacked(uri: str, path: Path, options: dict[str, Any]) -> str:
    """Return a text file that has ranges of bytes: itself, or unpacked."""
    if not uri.lower().endswith(COMPRESSED):
        return uri
    try:
        with open_files(uri, options).open("") as raw, _reader(uri, raw) as text, path.open("wb") as out:
            shutil.copyfileobj(text, out, 1 << 20)
    except FileNotFoundError as error:
        raise DataError("no such file", where=shown(uri), hint="see ingest.source") from error
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"cannot be unpacked: {error}", where=shown(uri), hint="truncated or altered") from error
    return str(path)


def _reader(uri: str, raw: Any) -> IO[bytes]:
    return gzip.GzipFile(fileobj=raw) if uri.lower().endswith(".gz") else bz2.BZ2File(raw)  # type: ignore[return-value]


@contextlib.contextmanager
def _renamed(folder: str, uris: Sequence[str]) -> Iterator[None]:
    """Let errors name the file that was unpacked, not its copy."""
    try:
        yield
    except DataError as error:
        where = error.where
        for k, uri in enumerate(uris):
            where = where.replace(str(Path(folder) / f"{k}.svm"), shown(uri))
        if where == error.where:
            raise
        raise type(error)(error.message, where=where, hint=error.hint) from error


def copy(found: Sparse, writer: DatasetWriter, progress: Callable[[int], None] | None) -> int:
    """Write all rows; return their number. Integer labels become floats where another file's labels are.

    Parameters
    ----------
    found : Sparse
    writer : DatasetWriter
    progress : callable, optional
        Called with the number of rows so far.
    """
    rows = 0
    mixed = {data.target_kind for data in found.datasets} == {"integer", "number"}
    for data in found.datasets:
        for partition in data.partitions:
            for piece in data.source.pieces(partition):
                X = replace(piece.X, columns=len(found.columns))
                y = piece.y.astype(np.float64) if mixed and piece.y is not None else piece.y
                writer.append(X, y, piece.weight)
                rows += len(X)
                if progress is not None:
                    progress(rows)
    return rows
