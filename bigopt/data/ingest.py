"""Ingest: raw files in, a partitioned dataset with its manifest out, in bounded memory.

Rows that are sparse already are copied (`bigopt.data.ingest_sparse`). Tables are turned into numbers by a recipe:

Two passes: the first fits the recipe (`bigopt.data.recipe_fit`), the second applies it block by block and hands the
rows to the `DatasetWriter`, which checks them, takes their moments and commits them at once. `bigopt.data.apply` is the
same second pass for raw data that come later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast

from bigopt.core.errors import ConfError, DataError
from bigopt.data import ingest_sparse
from bigopt.data.columns import listed
from bigopt.data.files import local_path, shown
from bigopt.data.publish import Publication
from bigopt.data.rawread import open_raw
from bigopt.data.recipe import recipe_to_json
from bigopt.data.recipe_apply import dropping, encode, null_rows, steps_of
from bigopt.data.recipe_fit import fit
from bigopt.data.recipe_spec import IngestSpec, make_spec
from bigopt.data.source import common_dtype
from bigopt.data.writer import DatasetWriter

Format = Literal["zarr", "parquet"]
Progress = Callable[[int], None]

_LIST_COLUMNS: Final = 256
"""From this many features on, Parquet rows are one fixed-size list."""
_TELL_ROWS: Final = 1_000_000


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did.

    Parameters
    ----------
    out, format : str
    rows_read, rows : int
        Rows of the raw files, and rows written.
    left_out_where, left_out_nulls : int
        Rows that ``ingest.where`` and nulls under ``drop`` left out.
    filled : dict of str to int
        Nulls that were replaced, by column.
    columns : tuple of str
        Features; a run of numbered columns is one entry.
    target : tuple of str
    dtype : str
        Of X as stored.
    partitions : int
    fingerprint : str
        Of the manifest.
    """

    out: str
    format: str
    rows_read: int
    rows: int
    left_out_where: int
    left_out_nulls: int
    filled: dict[str, int]
    columns: tuple[str, ...]
    target: tuple[str, ...]
    dtype: str
    partitions: int
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {"status": "completed", **asdict(self)}


def choose_format(out: str, asked: str | None = None) -> Format:
    """Return the format of an output: the one asked for, else by its suffix, else Zarr.

    Raises
    ------
    ConfError
        For a suffix of another format.
    """
    name = out.rstrip("/").lower()
    by_suffix = "parquet" if name.endswith((".parquet", ".pq")) else "zarr" if name.endswith(".zarr") else None
    if asked is not None and by_suffix not in (None, asked):
        raise ConfError(f"'{shown(out)}' is not a name for {asked}", where="ingest.format", hint=f"name it *.{asked}")
    if by_suffix is None and name.endswith((".csv", ".npz", ".npy", ".zip", ".gz", ".json", ".tsv")):
        raise ConfError(f"'{shown(out)}' cannot be written", where="ingest.out", hint="name it *.zarr or *.parquet")
    return cast(Format, asked or by_suffix or "zarr")


def ingest_files(
    spec: IngestSpec,
    out: str,
    *,
    format: str | None = None,
    partition_rows: int | Sequence[int] | None = None,
    force: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    index_base: Literal[0, 1] | None = None,
    progress: Progress | None = None,
) -> IngestResult:
    """Turn raw files into a dataset.

    Parameters
    ----------
    spec : IngestSpec
        From `bigopt.data.recipe_spec.make_spec`.
    out : str
        Path or URL of the dataset (``ingest.out``, else ``data.uri``).
    format : {"zarr", "parquet"}, optional
        By the suffix of `out` where None.
    partition_rows : int or sequence of int, optional
        Rows of a partition; chosen where None.
    force : bool
        Replace a dataset that is there.
    storage_options : mapping, optional
    index_base : {0, 1}, optional
        Index of the first column in svmlight text; seen from the files where None.
    progress : callable, optional
        Called with the number of raw rows read so far, of the second pass.

    Raises
    ------
    ConfError, DataError
        See `make_spec`, `bigopt.data.recipe_fit.fit`, `bigopt.data.recipe_apply.encode` and `DatasetWriter`.
    """
    chosen = choose_format(out, format)
    _apart((*spec.source, *(join.source for join in spec.joins)), out)
    _free(out, force, storage_options)
    if ingest_sparse.is_sparse(spec.source, storage_options):
        return _copied(spec, out, chosen, partition_rows, force, storage_options, index_base, progress)
    source = open_raw(spec.source, storage_options)
    recipe = fit(spec, source, storage_options)
    target = recipe.target
    counts = {"read": 0, "kept": 0, "full": 0}
    filled: dict[str, int] = {}
    writer = DatasetWriter(
        out,
        format=chosen,
        columns=recipe.columns,
        target=target.columns if target else (),
        weight=recipe.weight,
        dtype=recipe.dtype,
        target_dtype=target.dtype if target else None,
        kinds=recipe.kinds,
        classes=target.classes if target else None,
        partition_rows=partition_rows,
        layout="sparse" if recipe.sparse else "list" if len(recipe.columns) > _LIST_COLUMNS else "columns",
        recipe=recipe_to_json(recipe),
        force=force,
        storage_options=storage_options,
    )
    with writer:
        steps = steps_of(recipe, "ingest", storage_options)
        for raw in source.tables({column.name: column.kind for column in recipe.raw}):
            counts["read"] += raw.rows
            kept = steps.run(raw)
            counts["kept"] += kept.rows
            table = kept.take(~null_rows(kept, dropping(recipe, "ingest")))
            counts["full"] += table.rows
            for feature in recipe.features:
                null = table.columns[feature.column].null
                if null is not None and feature.null == "fill":
                    filled[feature.column] = filled.get(feature.column, 0) + int(null.sum())
            if table.rows:
                encoded = encode(recipe, table, mode="ingest")
                writer.append(encoded.X, encoded.y, encoded.weight)
            if progress is not None:
                progress(counts["read"])
        if not counts["full"]:
            raise DataError("no row is left", where=source.uris[0], hint="see ingest.where and ingest.nulls")
    manifest = writer.manifest
    return IngestResult(
        out=shown(out),
        format=chosen,
        rows_read=counts["read"],
        rows=counts["full"],
        left_out_where=counts["read"] - counts["kept"],
        left_out_nulls=counts["kept"] - counts["full"],
        filled=filled,
        columns=listed(recipe.columns),
        target=target.columns if target else (),
        dtype=recipe.dtype,
        partitions=len(manifest.partitions),
        fingerprint=manifest.fingerprint,
    )


def _copied(
    spec: IngestSpec,
    out: str,
    form: Format,
    partition_rows: int | Sequence[int] | None,
    force: bool,
    options: Mapping[str, Any] | None,
    base: Literal[0, 1] | None,
    progress: Progress | None,
) -> IngestResult:
    """Write sparse rows as they are."""
    asked = ingest_sparse.dtype_of(spec)
    with ingest_sparse.opened(spec, options, base) as found:
        first = found.datasets[0]
        target = spec.target or first.target
        dtype = asked or common_dtype([data.stored for data in found.datasets])
        writer = DatasetWriter(
            out,
            format=form,
            columns=found.columns,
            target=target,
            weight=first.weight,
            dtype=dtype,
            classes=spec.classes,
            partition_rows=partition_rows,
            layout="sparse",
            force=force,
            storage_options=options,
        )
        with writer:
            rows = ingest_sparse.copy(found, writer, progress)
    manifest = writer.manifest
    return IngestResult(
        out=shown(out),
        format=form,
        rows_read=rows,
        rows=rows,
        left_out_where=0,
        left_out_nulls=0,
        filled={},
        columns=listed(found.columns),
        target=tuple(target),
        dtype=dtype,
        partitions=len(manifest.partitions),
        fingerprint=manifest.fingerprint,
    )


def _apart(sources: tuple[str, ...], out: str) -> None:
    """Refuse to write a dataset over what it is made of."""
    end = local_path(out)
    for source in sources:
        begin = local_path(source)
        if end is None or begin is None:
            continue
        a, b = begin.resolve(), end.resolve()
        if a == b or a in b.parents or b in a.parents:
            raise ConfError(f"'{out}' and the raw data '{source}' overlap", where="ingest.out", hint="another place")


def _free(out: str, force: bool, storage_options: Mapping[str, Any] | None) -> None:
    """Refuse an output that may not be replaced before the first pass, not after it."""
    publication = Publication(out, dict(storage_options or {}), force)
    publication.begin()
    publication.end()


def ingest(conf: Any, *, force: bool = False, log: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Ingest as a resolved conf says (its groups `ingest` and `data`).

    Parameters
    ----------
    conf : bigopt.config.Conf
    force : bool
        Replace a dataset that is there.
    log : callable, optional
        Takes a line a million rows, and what was left out or filled.

    Returns
    -------
    dict
        `IngestResult.to_dict`.

    Raises
    ------
    ConfError, DataError
        See `ingest_files`.
    """
    group, data = conf.ingest, conf.data
    out = group.out or data.uri
    if out is None:
        raise ConfError(
            "where to? ingest.out and data.uri are null", where="ingest.out", hint="name it *.zarr or *.parquet"
        )
    spec = make_spec(
        group.source,
        columns=group.columns,
        derive=group.derive,
        where=group.where,
        encode=group.encode,
        nulls=group.nulls,
        join=group.join,
        target=data.target,
        weight=data.weight,
        classes=data.classes,
    )
    told = 0

    def say(line: str) -> None:
        if log is not None:
            log(line)

    def progress(rows: int) -> None:
        nonlocal told
        if rows // _TELL_ROWS > told:
            told = rows // _TELL_ROWS
            say(f"{rows:,} rows read")

    result = ingest_files(
        spec,
        out,
        format=group.format,
        partition_rows=group.partition_rows,
        force=force,
        storage_options=data.storage_options,
        index_base=data.index_base,
        progress=progress,
    )
    if result.left_out_where:
        say(f"{result.left_out_where:,} rows left out by ingest.where")
    if result.left_out_nulls:
        say(f"{result.left_out_nulls:,} rows with nulls left out")
    for column, count in result.filled.items():
        say(f"{count:,} nulls filled in {column}")
    return result.to_dict()
