"""Verbs about data and confs: ingest, inspect, describe, options."""

from __future__ import annotations

from typing import Any

import click

from bigopt.cli_common import conf_files, load, placed, verb, watching
from bigopt.cli_errors import Answer
from bigopt.core.errors import ConfError, DataError
from bigopt.core.names import nearest


@verb
@conf_files
@click.option("--force", is_flag=True, help="Replace a dataset that is there.")
def ingest(files: tuple[str, ...], settings: tuple[str, ...], force: bool) -> Answer:
    """Turn raw files into a dataset that trains.

    Reads CSV (also zipped), Parquet, NPZ, NPY or svmlight text in bounded memory; selects, derives, filters and encodes
    columns as the conf's `ingest` group says. Rows that are sparse already are copied as they are.

    \b
    Example:
      bigopt ingest -c conf/flights.yml ingest.partition_rows=20000
    \b
    Writes the Zarr group or Parquet directory ingest.out (null: data.uri) with checksums and a manifest, at once or
    not at all.
    """
    from bigopt.cli_show import summary, without_status
    from bigopt.data.ingest import ingest as run_ingest

    conf = load(files, settings)
    if conf.ingest.source is None:
        raise conf.error(
            "ingest.source", "nothing to ingest: ingest.source is null", "give the raw file, or a conf with -c"
        )
    with watching() as progress, placed(conf):
        for line in conf.notices:
            progress.note(line)
        result = run_ingest(conf, force=force, log=progress.note)
    return Answer(result, lambda: summary("ingested", without_status(result)))


@verb
@click.argument("uri")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--verify", is_flag=True, help="Read everything and compare every checksum.")
def inspect(uri: str, settings: tuple[str, ...], verify: bool) -> Answer:
    """Show what is in a dataset: rows, columns, dtypes, chunks, partitions, bytes, checks.

    \b
    Example:
      bigopt inspect data/primary/flights.zarr --verify
    \b
    Writes nothing. KEY=VALUE may set data.target, features, weight and storage_options. What --verify finds damaged
    is listed, and the exit code is 3.
    """
    from bigopt.cli_show import summary, without_status
    from bigopt.data.inspect import inspect_dataset

    data = load((), settings).data
    result = inspect_dataset(
        uri,
        target=data.target,
        features=data.features,
        weight=data.weight,
        storage_options=data.storage_options,
        index_base=data.index_base,
        verify=verify,
    )
    errors = result.get("checks", {}).get("errors", [])
    if errors:
        with watching() as progress:
            for line in errors:
                progress.note(f"warning: {line}")
        raise DataError(f"{len(errors)} damaged: {errors[0]}", where=uri, hint="write it again from its source")
    return Answer(result, lambda: summary(uri, without_status(result)))


@verb
@conf_files
@click.option(
    "--shapes", metavar="FILE", help="Count the layers of this file (convolution, pooling, inception, dense)."
)
def describe(files: tuple[str, ...], settings: tuple[str, ...], shapes: str | None) -> Answer:
    """Show what a conf will do: layers, schedule, cost of a round, memory, where the update runs.

    \b
    Example:
      bigopt describe -c conf/flights.yml model.hidden=[64,32]
      bigopt describe --shapes conf/shapes/googlenet.yml
    \b
    Writes nothing; reads the dataset's metadata, and its labels where the conf and the manifest do not name them.
    With --shapes nothing is read but that file: a network that is counted, not trained.
    """
    from bigopt.cli_show import say, table
    from bigopt.describe import describe as run_describe
    from bigopt.describe import describe_shapes

    def show() -> None:
        for part in result["tables"]:
            table(part["title"], part["columns"], part["rows"])
        say(*result["lines"])

    if shapes is not None:
        if files or settings:
            raise ConfError("--shapes takes no conf", where="describe", hint="bigopt describe --shapes FILE")
        result = describe_shapes(_shapes_in(shapes))
        return Answer(result, show)
    conf = load(files, settings)
    with placed(conf):
        result = run_describe(conf)
    return Answer(result, show)


def _shapes_in(file: str) -> dict[str, Any]:
    from bigopt.config.reader import read_file

    spec = read_file(file).plain()
    if not isinstance(spec, dict):
        raise ConfError("no mapping of input and layers", where=file, hint="see conf/shapes/googlenet.yml")
    return spec


@verb
@click.argument("prefix", required=False, metavar="[GROUP or KEY]")
def options(prefix: str | None) -> Answer:
    """List every key of a conf: what it takes, its default and what it does.

    \b
    Example:
      bigopt options optimizer
    \b
    Writes nothing.
    """
    from bigopt.cli_show import table
    from bigopt.config import options as all_options

    every = all_options()
    rows = [o for o in every if not prefix or o.key == prefix or o.key.startswith(f"{prefix}.")]
    if not rows:
        names = {o.key for o in every} | {o.key.split(".")[0] for o in every}
        raise ConfError(f"no key '{prefix}'", where="bigopt options", hint=nearest(str(prefix), names))
    payload = {"options": [{"key": o.key, "default": o.value, "takes": o.takes, "comment": o.comment} for o in rows]}
    return Answer(
        payload,
        lambda: table(
            "", ["key", "default", "takes", "meaning"], [(o.key, o.default, o.takes, o.comment) for o in rows]
        ),
    )
