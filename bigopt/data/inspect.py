"""What a dataset is, for people and for ``bigopt inspect``: read from metadata alone, or with every byte checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bigopt.core.errors import BigoptError
from bigopt.data.columns import Names, Run, listed
from bigopt.data.files import open_files
from bigopt.data.manifest import NAME
from bigopt.data.open import detect, open_dataset
from bigopt.data.source import Dataset, Source


def inspect_dataset(
    uri: str,
    *,
    target: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    weight: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    index_base: Literal[0, 1] | None = None,
    verify: bool = False,
) -> dict[str, Any]:
    """Describe a dataset in plain JSON values.

    Parameters
    ----------
    uri : str
    target, features, weight, storage_options, index_base
        As in `open_dataset`; a target is not needed.
    verify : bool
        Read every chunk or row group and report each that cannot be read or differs from the manifest.

    Returns
    -------
    dict
        ``uri``, ``format``, ``verified`` (has a manifest), ``fingerprint``, ``rows``, ``features``, ``sparse``,
        ``nonzeros`` (stored values; n d of dense rows), ``density``, ``columns`` (name, dtype, kind, mean, std, min,
        max; a run of numbered columns is one entry), ``target``, ``target_kind``, ``weight``, ``classes``,
        ``partitions`` (count, least and most rows), ``chunks`` (count, least and most rows), ``codec``,
        ``bytes_stored``, ``bytes_decoded``, ``row_bytes``, ``warnings``, and with `verify` ``checks``: rows and bytes
        read, ``nulls``, ``errors``.

    Raises
    ------
    ConfError, DataError
        Where the dataset cannot be opened.
    """
    options = dict(storage_options or {})
    files = open_files(uri, options)
    kind = detect(files)
    dataset = open_dataset(
        uri, target=target, features=features, weight=weight, storage_options=options, need_target=False,
        on_bad_rows="skip", index_base=index_base,
    )  # fmt: skip
    stored = sum(s for k, s in files.listing().items() if k != NAME) if files.is_folder() else files.size("")
    sizes = [p.rows for p in dataset.partitions]
    chunks, codec = _chunks(dataset.source)
    report = {
        "uri": files.uri,
        "format": kind,
        "verified": dataset.manifest is not None,
        "fingerprint": dataset.source.identity(),
        "rows": dataset.rows,
        "features": len(dataset.columns),
        "sparse": dataset.sparse,
        "nonzeros": dataset.nonzeros,
        "density": dataset.nonzeros / (dataset.rows * len(dataset.columns)),
        "columns": _columns(dataset),
        "target": list(dataset.target),
        "target_kind": dataset.target_kind,
        "weight": dataset.weight,
        "classes": None if dataset.classes is None else list(dataset.classes),
        "partitions": {"count": len(sizes), "least": min(sizes), "most": max(sizes)},
        "chunks": {"count": len(chunks), "least": min(chunks, default=0), "most": max(chunks, default=0)},
        "codec": codec,
        "bytes_stored": stored,
        "bytes_decoded": dataset.rows * dataset.row_bytes,
        "row_bytes": dataset.row_bytes,
        "warnings": list(dataset.warnings),
    }
    if verify:
        report["checks"] = verify_dataset(dataset)
    return report


def verify_dataset(dataset: Dataset, *, most: int = 100) -> dict[str, Any]:
    """Read all partitions and return what was found: rows, bytes read, rows with nulls, errors (at most `most`)."""
    rows = read = nulls = 0
    errors: list[str] = []
    for partition in dataset.partitions:
        try:
            for piece in dataset.source.pieces(partition):
                rows, read = rows + len(piece.X), read + piece.bytes_read
                nulls += 0 if piece.bad is None else int(piece.bad.sum())
        except BigoptError as error:
            errors.append(str(error))
            if len(errors) >= most:
                break
    return {"rows": rows, "bytes_read": read, "nulls": nulls, "errors": errors, "ok": not errors and not nulls}


def _columns(dataset: Dataset) -> list[dict[str, Any]]:
    names = dataset.columns
    if dataset.manifest is None:
        return [{"name": name, "dtype": dataset.stored} for name in listed(names)]
    described: list[dict[str, Any]] = []
    wanted = frozenset() if isinstance(names, Names) else frozenset(names)
    for column in dataset.manifest.columns:
        if column.run:
            (name,) = listed(Names((Run(column.name, column.run),)))
            described.append({"name": name, "dtype": column.dtype, "kind": column.kind})
        elif column.name in wanted or (not wanted and column.name in names):
            values = column.moments._asdict() if column.moments else {}
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            described.append({"name": column.name, "dtype": column.dtype, "kind": column.kind, **finite})
    return described


def _chunks(source: Source) -> tuple[list[int], str]:
    """Return the rows of each chunk, shard or row group along the rows, and the codec."""
    arrays = getattr(source, "arrays", None)
    if arrays is not None:
        rows = arrays[2] if source.sparse else arrays[0]
        return list(rows.row_sizes), arrays[0].codecs
    groups = getattr(source, "groups", None)
    if groups is not None:
        return [rows for file in groups for rows in file], source.codec()  # type: ignore[attr-defined]
    return [], "none"
