"""Open a Zarr group: check its metadata, resolve names, count what is missing, cut it into partitions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bigopt.core.errors import DataError
from bigopt.data.files import Files, place
from bigopt.data.manifest import NAME, Manifest, read_manifest
from bigopt.data.select import Wanted, choose, numbered, require_numeric
from bigopt.data.source import Dataset, TargetKind, coalesce, partitions_of
from bigopt.data.zarrmeta import ArrayInfo, read_array, read_json
from bigopt.data.zarrstore import ZarrSource, piece_rows, zarr_identity

UNVERIFIED = "no manifest: the dataset cannot be verified, a changed or damaged byte may pass unnoticed"


def open_zarr(files: Files, uri: str, options: Mapping[str, Any], wanted: Wanted) -> Dataset:
    """Open a Zarr v3 group with or without a manifest; see `bigopt.data.open.open_dataset`."""
    listing = files.listing()
    manifest = read_manifest(files) if NAME in listing else None
    if manifest is not None:
        manifest.check_present(listing, files.uri)
        manifest.check("zarr.json", files.read("zarr.json"), place(files, "zarr.json"))
    root, _ = read_json(files, "zarr.json")
    if root.get("node_type") != "group":
        raise DataError("a single Zarr array, not a group", where=files.uri, hint="a group with arrays X and y")
    names = sorted({key.split("/")[0] for key in listing if key.endswith("/zarr.json") and key.count("/") == 1})
    found = root.get("attributes")
    attributes = found if isinstance(found, dict) else {}
    if "X" not in names and {"data", "indices", "indptr"} <= set(names):
        from bigopt.data.zarrsparse import open_zarr_sparse

        return open_zarr_sparse(
            files, uri, options, wanted, listing=listing, manifest=manifest, attributes=attributes, names=names
        )  # fmt: skip
    if "X" not in names:
        hint = "X of rows by columns; or data, indices, indptr and shape of sparse rows"
        raise DataError(f"no array X (arrays: {', '.join(names[:20]) or 'none'})", where=files.uri, hint=hint)
    X = read_array(files, "X")
    columns, labels, target = _names(files, X, names, attributes, manifest)
    if manifest is not None:
        weight = manifest.weight.name if manifest.weight else None
    else:
        weight = "weight" if "weight" in labels and "weight" not in target else None
    chosen = choose(wanted, columns, labels=tuple(labels), target=target, weight=weight, uri=files.uri)
    place_of = {**{name: ("X", j) for j, name in enumerate(columns)}, **labels}
    refs = tuple(ref for name in chosen.target for ref in columns_of(files, place_of[name]))
    weights = None if chosen.weight is None else place_of[chosen.weight]
    read = {"X": X}
    for name in dict.fromkeys(ref[0] for ref in (*refs, *([weights] if weights else []))):
        read.setdefault(name, read_array(files, name))
    _check(files, read, refs, weights, chosen.weight or "", manifest)
    arrays = tuple(read.values())
    verified = manifest is not None
    fingerprint = manifest.fingerprint if manifest else zarr_identity(files, arrays, verified=False)
    indices = {name: j for j, name in enumerate(columns)}
    source = ZarrSource(
        uri=uri,
        options=dict(options),
        fingerprint=fingerprint,
        verified=verified,
        columns=chosen.features,
        indices=tuple(indices[name] for name in chosen.features),
        labels=refs,
        weights=weights,
        arrays=arrays,
    )
    row_bytes = sum(info.width * info.itemsize for info in arrays)
    sizes = manifest.partitions if manifest else coalesce(X.row_sizes, X.width * X.itemsize)
    stored = sum(size for key, size in listing.items() if any(key.startswith(info.prefix) for info in arrays))
    return Dataset(
        source=source,
        partitions=partitions_of(sizes),
        target=chosen.target,
        manifest=manifest,
        warnings=() if manifest else (f"{files.uri}: {UNVERIFIED}{missing_chunks(arrays, listing)}",),
        classes=manifest.classes if manifest else None,
        target_kind=kind_of(read[refs[0][0]], chosen.target, manifest) if refs else None,
        weight=chosen.weight,
        row_bytes=row_bytes,
        row_bytes_read=stored / X.rows,
        piece_bytes=min(piece_rows(X), max(sizes)) * len(chosen.features) * X.itemsize,
    )


def _names(
    files: Files, X: ArrayInfo, arrays: list[str], attributes: Mapping[str, Any], manifest: Manifest | None
) -> tuple[tuple[str, ...], dict[str, tuple[str, int]], tuple[str, ...]]:
    """Return the names of X's columns, of what lies beside X (array, column or -2: all), and of the default target."""
    if X.shape == () or len(X.shape) != 2 or X.dtype == "text":
        raise DataError(f"X has shape {X.shape} of {X.dtype}, not rows by columns of numbers", where=files.uri)
    columns = strings(attributes.get("columns")) or numbered(X.width)
    target = strings(attributes.get("target"))
    if manifest is not None:
        columns, target = tuple(manifest.names), tuple(c.name for c in manifest.target)
    if len(columns) != X.width or len(set(columns)) != len(columns):
        raise DataError(
            f"{len(columns)} names ({len(set(columns))} distinct) for {X.width} columns of X",
            where=place(files, "zarr.json"),
            hint="attribute columns: one name a column",
        )
    return columns, *beside(columns, [name for name in arrays if name != "X"], target, manifest)


def beside(
    columns: Sequence[str], arrays: Sequence[str], target: tuple[str, ...], manifest: Manifest | None
) -> tuple[dict[str, tuple[str, int]], tuple[str, ...]]:
    """Return the names of what lies beside the features (array, column or -2: all), and of the default target."""
    labels = {name: (name, -2) for name in arrays}
    if manifest is not None and manifest.weight is not None and "weight" in arrays:
        labels[manifest.weight.name] = ("weight", -2)
        if manifest.weight.name != "weight":
            del labels["weight"]
    named = [name for name in target if name not in columns and name not in labels]
    if "y" in arrays and named:
        if len(named) == 1:
            labels[named[0]] = ("y", -2)
        else:
            labels.update({name: ("y", k) for k, name in enumerate(named)})
    for name in [name for name in labels if name in columns]:
        del labels[name]
    return labels, target or (("y",) if "y" in arrays else ())


def strings(value: Any) -> tuple[str, ...]:
    """Return names kept in an attribute: a list of texts, or one text."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else ()


def columns_of(files: Files, ref: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    """Return one reference a column for a whole array (-2), -1 for a vector."""
    if ref[1] != -2:
        return (ref,)
    info = read_array(files, ref[0])
    return ((ref[0], -1),) if len(info.shape) == 1 else tuple((ref[0], k) for k in range(info.width))


def _check(
    files: Files,
    read: Mapping[str, ArrayInfo],
    refs: tuple[tuple[str, int], ...],
    weights: tuple[str, int] | None,
    weight_name: str,
    manifest: Manifest | None,
) -> None:
    X = read["X"]
    if len({ref[0] for ref in refs}) > 1:
        raise DataError(f"targets in different arrays: {', '.join(sorted({ref[0] for ref in refs}))}", where=files.uri)
    for info in read.values():
        if info.rows != X.rows:
            raise DataError(f"array '{info.name}' has {info.rows} rows, X has {X.rows}", where=files.uri)
        if any(k >= info.width for name, k in refs if name == info.name):
            raise DataError(f"array '{info.name}' has {info.width} columns, more targets are named", where=files.uri)
    if X.rows == 0 or X.width == 0:
        raise DataError(f"X has shape {X.shape}: no rows or no columns", where=files.uri)
    if weights is not None:
        info = read[weights[0]]
        require_numeric(weight_name, info.dtype, files.uri)
        if weights[1] == -2 and info.width != 1:
            raise DataError(f"weight has shape {info.shape}, not ({X.rows},)", where=files.uri)
    if manifest is not None and manifest.rows != X.rows:
        raise DataError(f"X has {X.rows} rows, the manifest says {manifest.rows}", where=files.uri)


def kind_of(info: ArrayInfo, target: tuple[str, ...], manifest: Manifest | None) -> TargetKind:
    """Return what kind of labels an array holds: the manifest's word, else by dtype."""
    for column in manifest.target if manifest else ():
        if column.name == target[0] and column.kind in ("number", "integer", "boolean", "text", "category"):
            return column.kind  # type: ignore[return-value]
    if info.dtype in ("text", "bool"):
        return "text" if info.dtype == "text" else "boolean"
    return "number" if info.dtype.startswith("float") else "integer"


def missing_chunks(arrays: tuple[ArrayInfo, ...], listing: Mapping[str, int]) -> str:
    """Return the part of foreign data's warning that counts the chunks which read as their fill value."""
    gaps = []
    for info in arrays:
        total = math.prod(info.grid)
        present = sum(1 for key in info.all_keys() if key in listing)
        if present < total:
            gaps.append(f"{total - present} of {total} chunks of {info.name}")
    return f"; {' and '.join(gaps)} are not there and read as the fill value" if gaps else ""
