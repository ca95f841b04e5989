"""Open Parquet: one file, or a folder of files in the order of their names, with or without a manifest.

Hidden files (``.name``, ``_SUCCESS``) are passed over as Spark does. Partitions are row groups, small neighbours
joined; a row group of more than 64 MB is cut into at most 16 equal parts, each of which decodes the group from its
start (write smaller row groups to avoid that).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from bigopt.core.errors import ConfError, DataError
from bigopt.data.files import Files, place
from bigopt.data.manifest import NAME, Manifest, read_manifest
from bigopt.data.parquetmeta import ColumnInfo, FileInfo, check_schemas, read_info
from bigopt.data.parquetsparse import list_columns, open_parquet_sparse
from bigopt.data.parquetstore import PIECE_BYTES, PIECE_ROWS, ParquetSource
from bigopt.data.select import Chosen, Wanted, choose, listed, numbered, require_numeric
from bigopt.data.source import NUMERIC, Dataset, TargetKind, coalesce, common_dtype, partitions_of

UNVERIFIED: Final = "no manifest: the dataset cannot be verified, a changed or damaged byte may pass unnoticed"
SPLIT_BYTES: Final = 64 << 20
SPLIT_PARTS: Final = 16
LIST_COLUMN: Final = "X"
"""Name of the fixed-size-list column that bigopt writes."""
_THREADS: Final = 8


def data_files(files: Files) -> dict[str, int]:
    """Return the keys and sizes of a dataset's Parquet files, sorted by name.

    Raises
    ------
    DataError
        For folders of folders, and where there is no file.
    """
    if not files.is_folder():
        return {"": files.size("")}
    names = files.listing(deep=False)
    visible = {name: size for name, size in names.items() if name[0] not in "._" and name != NAME}
    folders = [name for name in visible if name.endswith("/")]
    if folders:
        what = f"{len(folders)} folders inside: {listed(folders, 5)}"
        raise DataError(what, where=files.uri, hint="one folder of Parquet files; partitioned layouts are not read")
    if not visible:
        raise DataError("no Parquet file", where=files.uri)
    return visible


def open_parquet(files: Files, uri: str, options: Mapping[str, Any], wanted: Wanted) -> Dataset:
    """Open Parquet data; see `bigopt.data.open.open_dataset`."""
    manifest = read_manifest(files) if files.is_folder() and NAME in files.listing(deep=False) else None
    if manifest is not None:
        manifest.check_present(files.listing(deep=False), files.uri)
    found = data_files(files)
    if manifest is not None:
        extra = sorted(set(found) - {chunk.key for chunk in manifest.chunks})
        if extra:
            raise DataError(f"files that the manifest does not name: {listed(extra)}", where=files.uri)
    with ThreadPoolExecutor(_THREADS) as pool:
        infos = list(pool.map(lambda item: read_info(files, item[0], item[1], manifest), found.items()))
    first = infos[0]
    rows = sum(sum(info.groups) for info in infos)
    if rows == 0:
        raise DataError("no rows", where=files.uri)
    if manifest is not None and manifest.rows != rows:
        raise DataError(f"{rows} rows, the manifest says {manifest.rows}", where=files.uri, hint="ingest again")
    names, feature_list, target, weight = _names(first, manifest)
    lists = list_columns(first)
    if lists is not None and (manifest is None or manifest.layout == "sparse"):
        check_schemas(files, infos, None)
        return open_parquet_sparse(
            files, wanted, infos, lists=lists, manifest=manifest, target=target, weight=weight,
            warnings=() if manifest else (f"{files.uri}: {UNVERIFIED}",), kind_of=kind_of,
            common=_common(uri, options, wanted, infos, manifest),
        )  # fmt: skip
    chosen, feature_list = _choose(wanted, first, names, feature_list, target, weight, files.uri)
    used = {*((feature_list,) if feature_list else chosen.features), *chosen.target, chosen.weight}
    check_schemas(files, infos, None if wanted.features is None else frozenset(n for n in used if n is not None))
    stored = _stored(first, chosen, feature_list, files.uri)
    place_of = {name: j for j, name in enumerate(names)}
    picks = tuple(place_of[name] for name in chosen.features) if feature_list else ()
    source = ParquetSource(
        columns=chosen.features,
        stored=stored,
        picks=() if picks == tuple(range(len(names))) else picks,
        feature_list=feature_list,
        target=chosen.target,
        weight=chosen.weight,
        **_common(uri, options, wanted, infos, manifest),
    )
    sizes = manifest.partitions if manifest else _partition_sizes(infos, _row_bytes(first))
    width = len(chosen.features) * np.dtype(stored).itemsize
    return Dataset(
        source=source,
        partitions=partitions_of(sizes),
        target=chosen.target,
        manifest=manifest,
        warnings=() if manifest else (f"{files.uri}: {UNVERIFIED}",),
        classes=manifest.classes if manifest else None,
        target_kind=kind_of(first, chosen.target, manifest) if chosen.target else None,
        weight=chosen.weight,
        row_bytes=width + sum(_bytes(first.columns[n]) for n in (*chosen.target, chosen.weight) if n is not None),
        row_bytes_read=sum(info.stored for info in infos) / rows,
        piece_bytes=min(PIECE_ROWS * width, max(PIECE_BYTES, 256 * width)),
    )


def _common(
    uri: str, options: Mapping[str, Any], wanted: Wanted, infos: Sequence[FileInfo], manifest: Manifest | None
) -> dict[str, Any]:
    """Return the fields of a `ParquetSource` that do not depend on its columns."""
    return {
        "uri": uri,
        "options": dict(options),
        "fingerprint": manifest.fingerprint if manifest else identity_of(infos),
        "verified": manifest is not None,
        "skip_bad": wanted.on_bad_rows == "skip",
        "keys": tuple(info.key for info in infos),
        "sizes": tuple(info.size for info in infos),
        "groups": tuple(info.groups for info in infos),
    }


def _names(
    info: FileInfo, manifest: Manifest | None
) -> tuple[tuple[str, ...], str | None, tuple[str, ...], str | None]:
    """Return the columns that may be features, the list column that holds them, default target and weight."""
    if manifest is not None:
        columns = () if manifest.layout == "sparse" else tuple(manifest.names)
        target = tuple(c.name for c in manifest.target)
        weight = manifest.weight.name if manifest.weight else None
        return columns, LIST_COLUMN if manifest.layout == "list" else None, target, weight
    target = _note(info.notes.get("target"))
    if list_columns(info) is not None and not target and "y" in info.columns:
        target = ("y",)
    lists = [name for name, column in info.columns.items() if column.width and name not in target]
    if len(lists) == 1:
        names = _note(info.notes.get("columns"))
        width = info.columns[lists[0]].width
        return names if len(set(names)) == width else numbered(width), lists[0], target, None
    return tuple(info.columns), None, target, None


def _note(text: str | None) -> tuple[str, ...]:
    """Return names kept in a schema's metadata: a JSON list, or plain text."""
    if not text:
        return ()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    return (value,) if isinstance(value, str) else (text,)


def _choose(
    wanted: Wanted,
    info: FileInfo,
    names: tuple[str, ...],
    feature_list: str | None,
    target: tuple[str, ...],
    weight: str | None,
    uri: str,
) -> tuple[Chosen, str | None]:
    """Resolve names in either layout; return them with the list column that is read, if any."""
    if feature_list is None:
        return choose(wanted, names, labels=tuple(info.columns), target=target, weight=weight, uri=uri), None
    scalars = tuple(name for name in info.columns if name != feature_list)
    if wanted.features is not None and set(wanted.features) <= set(scalars) and not set(wanted.features) & set(names):
        return choose(wanted, scalars, target=target, weight=weight, uri=uri), None
    if wanted.features == (feature_list,):
        wanted = Wanted(wanted.target, None, wanted.weight, wanted.on_bad_rows, wanted.need_target)
        whole = True
    else:
        whole = wanted.features is not None
    labels = tuple(name for name in scalars if name not in names)
    chosen = choose(wanted, names, labels=labels, target=target, weight=weight, uri=uri)
    inside = [name for name in (*chosen.target, chosen.weight) if name is not None and name not in labels]
    if inside:
        raise ConfError(f"column '{inside[0]}' lies within '{feature_list}'", where="data.target", hint=listed(labels))
    rest = [name for name in labels if name not in (*chosen.target, *target, chosen.weight, weight)]
    if rest and not whole and wanted.need_target:
        raise ConfError(
            f"'{uri}' has the list column '{feature_list}' and also {listed(rest)}",
            where="data.features",
            hint=f"set data.features to ['{feature_list}'] to use that alone",
        )
    return chosen, feature_list


def _stored(info: FileInfo, chosen: Chosen, feature_list: str | None, uri: str) -> str:
    for name in chosen.target:
        column = info.columns[name]
        if column.dtype not in NUMERIC and column.dtype != "text":
            raise DataError(f"target '{name}' is {column.dtype}", where=uri, hint="numbers, booleans or text")
    if chosen.weight is not None:
        require_numeric(chosen.weight, _shown(info.columns[chosen.weight]), uri)
    if feature_list is not None:
        require_numeric(feature_list, info.columns[feature_list].dtype, uri)
        return info.columns[feature_list].dtype
    for name in chosen.features:
        require_numeric(name, _shown(info.columns[name]), uri)
    return common_dtype([info.columns[name].dtype for name in chosen.features])


def _shown(column: ColumnInfo) -> str:
    if column.category:
        return f"a category of {column.dtype}"
    if column.lists:
        return f"list<{column.dtype}>"
    return f"a list of {column.width} {column.dtype}" if column.width else column.dtype


def _bytes(column: ColumnInfo) -> int:
    item = np.dtype(column.dtype).itemsize if column.dtype in NUMERIC else 16
    return item * max(1, column.width)


def _row_bytes(info: FileInfo) -> int:
    return sum(_bytes(column) for column in info.columns.values())


def _partition_sizes(infos: Sequence[FileInfo], row_bytes: int) -> tuple[int, ...]:
    """Return the partitions of foreign data: row groups joined or, above 64 MB, cut; see the module."""
    parts: list[int] = []
    for rows in (rows for info in infos for rows in info.groups):
        count = max(1, min(SPLIT_PARTS, -(-rows * row_bytes // SPLIT_BYTES)))
        parts += [rows // count + (k < rows % count) for k in range(count)]
    return tuple(size for size in coalesce(parts, row_bytes) if size)


def kind_of(info: FileInfo, target: tuple[str, ...], manifest: Manifest | None) -> TargetKind:
    """Return what kind of labels a column holds: the manifest's word, else by type."""
    for column in manifest.target if manifest else ():
        if column.name == target[0] and column.kind in ("number", "integer", "boolean", "text", "category"):
            return column.kind  # type: ignore[return-value]
    found = info.columns[target[0]]
    if found.category:
        return "category"
    if found.dtype in ("text", "bool"):
        return "text" if found.dtype == "text" else "boolean"
    return "number" if found.dtype.startswith("float") else "integer"


def identity_of(infos: Sequence[FileInfo]) -> str:
    """Return the fingerprint of foreign files: SHA-256 over names, sizes and footers."""
    digest = hashlib.sha256(b"parquet")
    for info in infos:
        digest.update(f"{info.key} {info.size} {info.digest}\n".encode())
    return digest.hexdigest()


def parquet_identity(files: Files) -> str:
    """Read the footers again and return their fingerprint."""
    infos = []
    for key, size in data_files(files).items():
        if not size:
            raise DataError("an empty file", where=place(files, key))
        infos.append(read_info(files, key, size))
    return identity_of(infos)
