"""Open an NPZ or NPY: read the headers, refuse what is no plain array, resolve names, cut into partitions."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from bigopt.core.errors import DataError
from bigopt.data.files import Files, open_files
from bigopt.data.npysparse import VECTORS, open_npz_sparse
from bigopt.data.npystore import FAILURES, PIECE_BYTES, Member, NpySource, damaged, npy_identity
from bigopt.data.select import Wanted, choose, numbered, require_numeric
from bigopt.data.source import NUMERIC, Dataset, chosen_partition_rows, partition_sizes, partitions_of, target_kind

HEADER_BYTES: Final = 64 << 10
NAMES_BYTES: Final = 16 << 20
MAX_BYTES: Final = 1 << 50
UNVERIFIED: Final = "no manifest: the dataset cannot be verified, a changed or damaged byte may pass unnoticed"
LABELS: Final = ("y", "weight")


def open_npy(files: Files, uri: str, options: Mapping[str, Any], wanted: Wanted, kind: str) -> Dataset:
    """Open an NPZ or NPY file; see `bigopt.data.open.open_dataset`."""
    members, notes, shape = _zip(files, uri) if kind == "npz" else (*_plain(files, uri, options), None)
    if shape is not None:
        return open_npz_sparse(files, uri, options, wanted, members, notes, shape, f"{files.uri}: {UNVERIFIED}")
    X = members["X"]
    n, d = (X.shape[0], X.width)
    if len(X.shape) != 2 or np.dtype(X.dtype).name not in NUMERIC:
        found = f"X has shape {X.shape} of {np.dtype(X.dtype)}"
        raise DataError(found, where=files.uri, hint="rows by columns of numbers")
    if n == 0 or d == 0:
        raise DataError(f"X has shape {X.shape}: no rows or no columns", where=files.uri)
    columns = notes.get("columns") or numbered(d)
    if len(columns) != d or len(set(columns)) != d:
        raise DataError(f"{len(columns)} names ({len(set(columns))} distinct) for {d} columns of X", where=files.uri)
    target = notes.get("target") or (("y",) if "y" in members else ())
    refs: dict[str, tuple[tuple[str, int], ...]] = {}
    if "y" in members:
        y = members["y"]
        beside = [name for name in target if name not in columns]
        every = (("y", -1),) if len(y.shape) == 1 else tuple(("y", k) for k in range(y.width))
        if len(beside) == 1:
            refs[beside[0]] = every
        elif len(beside) == len(every):
            refs.update({name: (ref,) for name, ref in zip(beside, every, strict=True)})
        refs.setdefault("y", every)
    if "weight" in members:
        refs["weight"] = (("weight", -1),)
    refs.update({name: (("X", j),) for j, name in enumerate(columns)})
    weight = "weight" if "weight" in members and "weight" not in columns else None
    labels = tuple(name for name in refs if name not in columns)
    chosen = choose(wanted, columns, labels=labels, target=target, weight=weight, uri=files.uri)
    picked = tuple(ref for name in chosen.target for ref in refs[name])
    weights = None if chosen.weight is None else refs[chosen.weight][0]
    used = dict.fromkeys(["X", *(ref[0] for ref in picked), *([weights[0]] if weights else [])])
    read = tuple(members[name] for name in used)
    for member in read:
        if member.shape[0] != n:
            raise DataError(f"array '{member.name}' has {member.shape[0]} rows, X has {n}", where=files.uri)
    if chosen.weight is not None and weights is not None:
        require_numeric(chosen.weight, np.dtype(members[weights[0]].dtype).name, files.uri)
    row_bytes = sum(member.row_bytes for member in read)
    sizes = partition_sizes(n, chosen_partition_rows(n, X.row_bytes))
    position = {name: j for j, name in enumerate(columns)}
    source = NpySource(
        uri=uri,
        options=dict(options),
        fingerprint=npy_identity(uri, options, [member.uri for member in read]),
        columns=chosen.features,
        indices=tuple(position[name] for name in chosen.features),
        labels=picked,
        weights=weights,
        members=read,
    )
    return Dataset(
        source=source,
        partitions=partitions_of(sizes),
        target=chosen.target,
        warnings=(f"{files.uri}: {UNVERIFIED}",),
        target_kind=target_kind(np.dtype(members[picked[0][0]].dtype)) if picked else None,
        weight=chosen.weight,
        row_bytes=row_bytes,
        row_bytes_read=sum(member.stored for member in read) / n,
        piece_bytes=min(max(PIECE_BYTES, X.row_bytes), max(sizes) * X.row_bytes),
    )


def _header(data: bytes, where: str) -> tuple[tuple[int, ...], str, int]:
    """Return shape, dtype and bytes of an NPY header."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        parse = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = parse(stream, max_header_size=10_000)
    except (*FAILURES, TypeError, SyntaxError) as error:
        raise damaged(where, error) from error
    if dtype.hasobject or dtype.kind not in "biufUS" or (dtype.kind == "f" and dtype.itemsize > 8):
        raise DataError(f"dtype {dtype}", where=where, hint="numbers, booleans, and text for targets; no objects")
    if fortran and len(shape) > 1 and min(shape) > 1:
        raise DataError("Fortran order", where=where, hint="save np.ascontiguousarray(X)")
    if len(shape) not in (1, 2) or math.prod(shape) * max(1, dtype.itemsize) > MAX_BYTES:
        raise DataError(f"shape {shape}", where=where, hint="rows by columns, or one value a row")
    return tuple(int(s) for s in shape), dtype.str, stream.tell()


def _member(name: str, uri: str, inside: str, head: bytes, start: int, size: int, stored: int, where: str) -> Member:
    shape, dtype, header = _header(head, where)
    need = header + math.prod(shape) * np.dtype(dtype).itemsize
    if need != size:
        raise DataError(f"{size} bytes, its header says {need}", where=where, hint="truncated or altered: restore it")
    return Member(name, uri, inside, shape, dtype, header, start, stored)


def _plain(files: Files, uri: str, options: Mapping[str, Any]) -> tuple[dict[str, Member], dict[str, tuple[str, ...]]]:
    members = {}
    stem = uri.removesuffix(".npy")
    for name, address in (("X", uri), ("y", f"{stem}.y.npy"), ("weight", f"{stem}.weight.npy")):
        beside = files if name == "X" else open_files(address, options)
        try:
            size = beside.size("")
            head = beside.read("", 0, min(size, HEADER_BYTES))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise damaged(beside.uri, error) from error
        members[name] = _member(name, address, "", head, 0, size, size, beside.uri)
    return members, {}


def holds_vectors(files: Files) -> bool:
    """Whether an NPZ holds sparse rows instead of X."""
    with files.open("") as handle, zipfile.ZipFile(handle) as archive:
        names = {info.filename.removesuffix(".npy") for info in archive.infolist()}
    return "X" not in names and ({"shape", "format"} <= names or {"shape", *VECTORS} <= names)


def _zip(files: Files, uri: str) -> tuple[dict[str, Member], dict[str, tuple[str, ...]], tuple[int, int] | None]:
    """Return the arrays, the names that texts give, and of sparse rows their shape."""
    members: dict[str, Member] = {}
    notes: dict[str, tuple[str, ...]] = {}
    shape: tuple[int, int] | None = None
    try:
        with files.open("") as handle, zipfile.ZipFile(handle) as archive:
            infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            vectors = () if "X" in infos else VECTORS
            form = _text(archive, infos["format"]) if vectors and "format" in infos else "csr"
            if form != "csr":
                hint = "scipy.sparse.save_npz(file, X.tocsr())"
                raise DataError(f"a sparse matrix in {form} format", where=files.uri, hint=hint)
            if len(infos) != len(archive.infolist()) or not ({"X"} <= set(infos) or {"shape", *VECTORS} <= set(infos)):
                names = ", ".join(sorted(infos)[:20])
                hint = "np.savez(..., X=X, y=y); of sparse rows data, indices, indptr and shape"
                raise DataError(f"no array X (arrays: {names})", where=files.uri, hint=hint)
            if vectors:
                shape = _pair(archive, infos["shape"], files.uri)
            for name in ("X", *vectors, *LABELS):
                if name not in infos:
                    continue
                info = infos[name]
                with archive.open(info) as data:
                    head = data.read(HEADER_BYTES)
                start = -1
                if info.compress_type == zipfile.ZIP_STORED:
                    fixed = files.read("", info.header_offset, info.header_offset + 30)
                    start = info.header_offset + 30 + sum(int.from_bytes(fixed[k : k + 2], "little") for k in (26, 28))
                where = f"{files.uri}, member {info.filename}"
                sizes = (info.file_size, info.compress_size)
                members[name] = _member(name, uri, info.filename, head, start, *sizes, where)
            for name in ("columns", "target"):
                if name in infos and infos[name].file_size <= NAMES_BYTES:
                    with archive.open(infos[name]) as data:
                        array = np.lib.format.read_array(io.BytesIO(data.read(NAMES_BYTES)), allow_pickle=False)
                    if array.dtype.kind == "U":
                        notes[name] = tuple(str(v) for v in np.atleast_1d(array))
    except DataError:
        raise
    except FAILURES as error:
        raise damaged(files.uri, error) from error
    return members, notes, shape


def _value(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    with archive.open(info) as data:
        return np.lib.format.read_array(io.BytesIO(data.read(HEADER_BYTES)), allow_pickle=False)


def _text(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    value = _value(archive, info).reshape(-1)[:1].tolist()
    text = value[0] if value else ""
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _pair(archive: zipfile.ZipFile, info: zipfile.ZipInfo, uri: str) -> tuple[int, int]:
    value = _value(archive, info)
    if value.shape != (2,) or value.dtype.kind not in "iu":
        raise DataError(f"shape has shape {value.shape} of {value.dtype}", where=uri, hint="[n, d]")
    return int(value[0]), int(value[1])
