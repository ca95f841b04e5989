"""Open a dataset whatever it is stored as: Zarr group, Parquet, NPZ or NPY, svmlight text, local or behind a URL.

What a folder is, is seen from what lies in it; what a file is, from its first bytes. The modules that know a format are
imported when it is met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from bigopt.core.errors import ConfError, DataError
from bigopt.data.columns import Names
from bigopt.data.files import Files, open_files, shown
from bigopt.data.manifest import NAME, read_manifest
from bigopt.data.select import Wanted
from bigopt.data.source import BadRows, Dataset
from bigopt.data.svmparse import COMPRESSED, SUFFIXES, looks_like

_RAW: Final = (".csv", ".csv.gz", ".csv.zip", ".zip", ".tsv", ".txt", *(s + z for s in SUFFIXES for z in COMPRESSED))
_SNIFFED: Final = 64 << 10


def open_dataset(
    uri: str,
    *,
    target: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    weight: str | None = None,
    on_bad_rows: BadRows = "error",
    storage_options: Mapping[str, Any] | None = None,
    need_target: bool = True,
    index_base: Literal[0, 1] | None = None,
) -> Dataset:
    """Open a dataset: read and check its metadata, resolve columns by name, cut it into partitions.

    Reads no rows; but text is scanned once, and of foreign sparse rows how many values they store.

    Parameters
    ----------
    uri : str
        A local path, or an fsspec URL.
    target : str or sequence of str, optional
        Names of the target columns; None: the manifest's or the store's, else Zarr's ``y``.
    features : sequence of str, optional
        Names of the features in the order wanted; None: all columns but target and weight.
    weight : str, optional
        Column of sample weights; None: the manifest's, or an array ``weight`` of a Zarr group or NPZ.
    on_bad_rows : {"error", "skip"}
        What a null in a selected column leads to.
    storage_options : mapping, optional
        For fsspec or obstore.
    need_target : bool
        False to open without a target where there is none.
    index_base : {0, 1}, optional
        The first column's index in an svmlight file; None: seen from the file.

    Returns
    -------
    Dataset

    Raises
    ------
    ConfError
        For names that are not there, and for data that must be ingested first.
    DataError
        For what is missing, damaged, unsupported or inconsistent, naming it.
    """
    wanted = Wanted(
        target=(target,) if isinstance(target, str) else None if target is None else tuple(target),
        features=features if features is None or isinstance(features, Names) else tuple(features),
        weight=weight,
        on_bad_rows=on_bad_rows,
        need_target=need_target,
    )
    options = dict(storage_options or {})
    files = open_files(uri, options)
    kind = detect(files)
    if kind == "zarr":
        from bigopt.data.zarropen import open_zarr

        return open_zarr(files, uri, options, wanted)
    if kind == "parquet":
        from bigopt.data.parquetopen import open_parquet

        return open_parquet(files, uri, options, wanted)
    if kind == "svmlight":
        from bigopt.data.svmstore import open_svm

        return open_svm(files, uri, options, wanted, index_base)
    from bigopt.data.npyopen import open_npy

    return open_npy(files, uri, options, wanted, kind)


def detect(files: Files) -> str:
    """Return ``zarr``, ``parquet``, ``npz``, ``npy`` or ``svmlight``.

    Raises
    ------
    DataError
        Where nothing is there, or nothing that bigopt reads.
    ConfError
        For raw text files, which are ingested first.
    """
    hint = "a Zarr group, a Parquet file or folder, an NPZ or an NPY, svmlight text"
    try:
        if not files.is_folder():
            return _file_kind(files, hint)
        names = files.listing(deep=False)
    except FileNotFoundError as error:
        raise DataError("no such file or folder", where=shown(files.uri), hint="see data.uri") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=files.uri) from error
    if {"_temporary", "_temporary/"} & set(names):
        what = "unfinished output: it holds _temporary"
        raise DataError(what, where=files.uri, hint="let its writer finish, or write it again")
    if "zarr.json" in names:
        return "zarr"
    if {".zgroup", ".zarray", ".zmetadata"} & set(names):
        raise DataError("Zarr format 2", where=files.uri, hint="bigopt reads Zarr format 3: convert it")
    if any(name[0] not in "._" and name != NAME for name in names):
        return "parquet"
    if NAME in names:
        return read_manifest(files).format
    raise DataError("an empty folder", where=files.uri, hint=hint)


def _file_kind(files: Files, hint: str) -> str:
    start = files.read("", 0, 8)
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:6] == b"\x93NUMPY":
        return "npy"
    if start[:4] == b"PK\x03\x04" and not files.uri.endswith(".zip"):
        return "npz"
    if files.uri.endswith((".parquet", ".pq")):
        found = "an empty file" if not start else "no Parquet file: it does not start with PAR1"
        raise DataError(found, where=files.uri, hint="truncated, unfinished or of another format")
    if files.uri.lower().endswith(SUFFIXES) or (start and looks_like(files.read("", 0, _SNIFFED))):
        return "svmlight"
    if files.uri.lower().endswith(_RAW):
        raise ConfError(
            f"'{files.uri}' is raw data", where="data.uri", hint="set ingest.source to it and run bigopt ingest first"
        )
    raise DataError("an empty file" if not start else "a file of unknown format", where=files.uri, hint=hint)
