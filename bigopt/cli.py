"""The command line: ``bigopt ingest | inspect | describe | diagnose | train | sweep | evaluate | predict | resume |
options``.

A verb reads its conf, calls one function of bigopt and gives back an `Answer`: an object for ``--json`` and a way to
show it to a person. Errors, signals and exit codes are the business of `bigopt.cli_errors`; what is shown while a run
lasts is that of `bigopt.cli_progress`. Everything heavy is imported by the verb that needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from bigopt import __version__
from bigopt.cli_errors import Answer, Root
from bigopt.core.errors import ConfError, DataError
from bigopt.core.names import nearest

if TYPE_CHECKING:
    from bigopt.callbacks import Progress
    from bigopt.config import Conf

F = TypeVar("F", bound=Callable[..., Any])

_CODES = """
\b
Exit codes: 0 ok, 2 usage or conf, 3 data, 4 diverged, 5 cluster lost,
6 checkpoint or model files, 7 refused for security, 130/143 signals."""


def _common(function: F) -> F:
    for option in (
        click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Tracebacks of unexpected errors."),
        click.option(
            "-q", "--quiet", is_flag=True, expose_value=False, callback=_keep, help="Warnings and errors only."
        ),
        click.option("--json", is_flag=True, expose_value=False, help="One JSON object on stdout, also on errors."),
    ):
        function = option(function)
    return function


def _keep(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[f"bigopt.{parameter.name}"] = value


def _conf(function: F) -> F:
    files = click.option(
        "-c", "--conf", "files", multiple=True, metavar="FILE", help="Conf file; of several the later one wins."
    )
    settings = click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
    return files(settings(function))


def _load(files: Sequence[str], settings: Sequence[str]) -> Conf:
    from bigopt.config import load_conf

    return load_conf(files, settings)


@contextlib.contextmanager
def _placed(conf: Conf) -> Iterator[None]:
    """Give an error about a key (``where="data.target"``) the place where that key was set."""
    try:
        yield
    except ConfError as error:
        if error.where and conf.origin(error.where) != "base":
            error.message = f"{error.where}: {error.message}"
            error.where = conf.error(error.where, "").where
        raise


@contextlib.contextmanager
def _watching() -> Iterator[Progress]:
    """Show the progress of a verb, as --quiet and the terminal have it."""
    from bigopt.cli_progress import choose

    progress = choose(quiet=bool(click.get_current_context().meta.get("bigopt.quiet")))
    try:
        yield progress
    finally:
        progress.close()


@click.group(
    cls=Root, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="bigopt", message="%(prog)s %(version)s")
def bigopt() -> None:
    """First-order optimization by explicit Map and Reduce, on one machine, Dask or Spark.

    \b
    From raw data to a model:
      bigopt ingest   -c conf/flights.yml                raw files -> Zarr or Parquet
      bigopt inspect  data/primary/flights.zarr          what is in a dataset
      bigopt describe -c conf/flights.yml                what a conf will do, and what it costs
      bigopt diagnose -c conf/flights.yml                which optimizer, batch and step suit the problem, and why
      bigopt train    -c conf/flights.yml backend.name=dask optimizer.name=adam
      bigopt sweep    -c conf/sweeps/flights.yml         many confs, ranked
      bigopt evaluate RUN_DIR --data URI
      bigopt predict  RUN_DIR --data URI --out URI
      bigopt resume   RUN_DIR stop.epochs=10

    A conf file and KEY=VALUE arguments set the keys that `bigopt options` lists; the command line wins.
    """


bigopt.epilog = _CODES


def _verb(function: F) -> Any:
    return bigopt.command(epilog=_CODES)(_common(function))


@_verb
@_conf
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

    conf = _load(files, settings)
    if conf.ingest.source is None:
        raise conf.error(
            "ingest.source", "nothing to ingest: ingest.source is null", "give the raw file, or a conf with -c"
        )
    with _watching() as progress, _placed(conf):
        for line in conf.notices:
            progress.note(line)
        result = run_ingest(conf, force=force, log=progress.note)
    return Answer(result, lambda: summary("ingested", without_status(result)))


@_verb
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

    data = _load((), settings).data
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
        with _watching() as progress:
            for line in errors:
                progress.note(f"warning: {line}")
        raise DataError(f"{len(errors)} damaged: {errors[0]}", where=uri, hint="write it again from its source")
    return Answer(result, lambda: summary(uri, without_status(result)))


@_verb
@_conf
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
    conf = _load(files, settings)
    with _placed(conf):
        result = run_describe(conf)
    return Answer(result, show)


def _shapes_in(file: str) -> dict[str, Any]:
    from bigopt.config.reader import read_file

    spec = read_file(file).plain()
    if not isinstance(spec, dict):
        raise ConfError("no mapping of input and layers", where=file, hint="see conf/shapes/googlenet.yml")
    return spec


@_verb
@click.option("-c", "--conf", "files", multiple=True, metavar="FILE", help="Conf file; of several the later one wins.")
@click.option("--tau", type=float, help="Delay for gamma_crit; else the run's largest staleness, 1 without delays.")
@click.argument("settings", nargs=-1, metavar="[RUN_DIR] [KEY=VALUE]...")
def diagnose(files: tuple[str, ...], settings: tuple[str, ...], tau: float | None) -> Answer:
    """Measure curvature, gradient noise and critical batches; recommend optimizer, batch and step.

    Eigenvalues of the Hessian, R2, sigma^2, M, tr Cov(g_i), b_stable, b_M, b_noise and the largest stable steps, by
    Map-Reduce on the training rows; each with its formula. Of a conf the current w is what model.init gives; of a run
    it is the newest checkpoint, all its checkpoints are looked at, and its staleness is the delay.

    \b
    Example:
      bigopt diagnose -c conf/flights.yml batch.size=1024
      bigopt diagnose data/runs/20260101-120000-ridge
    \b
    Writes nothing; reads the data some tens of times, an mlp's some hundreds of times.
    """
    from bigopt.cli_show import say, summary, table, wrapped
    from bigopt.diagnose import diagnose as run_diagnose
    from bigopt.diagnose.report import tables

    run = Path(settings[0]) if settings and "=" not in settings[0] else None
    if run is not None:
        if not (run / "conf.yml").is_file():
            raise ConfError(f"{run} is neither KEY=VALUE nor a run directory", where="bigopt diagnose")
        files, settings = (str(run / "conf.yml"), *files), settings[1:]
    conf = _load(files, settings)
    with _watching() as progress, _placed(conf):
        result = run_diagnose(conf, run=run, tau=tau, log=progress.note)

    def show() -> None:
        for part in tables(result):
            table(part["title"], part["columns"], part["rows"])
        advice = dict(result["recommendation"])
        reasons = advice.pop("reasons")
        summary("recommended", advice)
        say(
            *(wrapped(f"  because: {line}") for line in reasons),
            *(wrapped(f"note: {line}") for line in result["notes"]),
        )

    return Answer(result, show)


@_verb
@_conf
def train(files: tuple[str, ...], settings: tuple[str, ...]) -> Answer:
    """Train a model.

    \b
    Example:
      bigopt train -c conf/flights.yml backend.name=dask backend.workers=2 optimizer.name=adam
    \b
    Writes a run directory below run.dir: conf.yml, metrics.jsonl, checkpoints, model, log.txt, a learning curve.
    Ctrl-C saves a checkpoint and prints the command that goes on.
    """
    from bigopt.fit import train as run_train

    conf = _load(files, settings)
    with _watching() as progress, _placed(conf):
        result = run_train(conf, progress=progress)
    return Answer(result, lambda: _show_run(result))


@_verb
@click.argument("directory", metavar="RUN_DIR")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
def resume(directory: str, settings: tuple[str, ...]) -> Answer:
    """Go on with a run from its newest checkpoint, on any backend.

    Other values are taken for backend.*, stop.*, checkpoint.*, run.bits, data.scratch and data.storage_options, so a
    finished run can be extended; anything else that differs is refused.

    \b
    Example:
      bigopt resume data/runs/20260101-120000-ridge stop.epochs=10 backend.name=spark
    \b
    Writes to the same run directory.
    """
    from bigopt.fit import resume as run_resume

    with _watching() as progress:
        result = run_resume(Path(directory), list(settings), progress=progress)
    return Answer(result, lambda: _show_run(result))


def _show_run(result: dict[str, Any]) -> None:
    from bigopt.cli_show import say, summary

    summary(
        "trained",
        {k: v for k, v in result.items() if k not in ("status", "metrics")} | dict(result.get("metrics") or {}),
    )
    say(f"next: bigopt evaluate {result['run']} --data URI")


@_verb
@click.option("-c", "--conf", "file", required=True, metavar="FILE", help="The sweep: conf, keys, metric, halving.")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
def sweep(file: str, settings: tuple[str, ...]) -> Answer:
    """Train many confs that differ in some keys, on one engine, and rank them.

    A grid, or random draws; with halving, bad trials stop early. KEY=VALUE is for all trials. Started again, a sweep
    goes on where it ended; what is finished is kept.

    \b
    Example:
      bigopt sweep -c conf/sweeps/flights.yml backend.name=dask backend.workers=2
    \b
    Writes below the sweep's dir: a run directory for each trial, sweep.csv, sweep.json and a picture.
    """
    from bigopt.cli_show import say, table
    from bigopt.sweep import read_spec
    from bigopt.sweep import sweep as run_sweep
    from bigopt.sweep.report import columns_and_rows

    with _watching() as progress:
        result = run_sweep(read_spec(file, settings), progress=progress)

    def show() -> None:
        table(f"{result['metric']}, {result['better']} is better", *columns_and_rows(result))
        say(
            *([f"picture: {result['picture']}"] if result["picture"] else []),
            f"tables: {result['sweep']}/sweep.csv, sweep.json",
            f"next: bigopt evaluate {result['best']['run']} --data URI",
        )

    return Answer(result, show)


@_verb
@click.argument("directory", metavar="RUN_DIR")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", required=True, metavar="URI", help="Prepared data, or raw data of the kind that was ingested.")
def evaluate(directory: str, data: str, settings: tuple[str, ...]) -> Answer:
    """Measure a trained model on data with a target.

    \b
    Example:
      bigopt evaluate data/runs/20260101-120000-ridge --data data/primary/flights-test.zarr
    \b
    Writes nothing. Columns are matched by name; KEY=VALUE may set backend.* and data.* keys.
    """
    from bigopt.cli_show import summary
    from bigopt.evaluate import evaluate as run_evaluate

    result = run_evaluate(Path(directory), data, settings)
    return Answer(result, lambda: summary("evaluated", {"rows": result["rows"], **result["metrics"]}))


@_verb
@click.argument("directory", metavar="RUN_DIR")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", required=True, metavar="URI", help="Prepared data, or raw data of the kind that was ingested.")
@click.option("--out", required=True, metavar="URI", help="Where the predictions go.")
@click.option("--scores", is_flag=True, help="Scores before the link (logits) instead of probabilities.")
@click.option("--force", is_flag=True, help="Replace the output if it is there.")
def predict(directory: str, data: str, out: str, settings: tuple[str, ...], scores: bool, force: bool) -> Answer:
    """Predict with a trained model; the data need no target.

    \b
    Example:
      bigopt predict data/runs/20260101-120000-ridge --data new.csv --out predictions.parquet
    \b
    Writes one line for every row of the data, in their order: row id, label or value, a probability for each class.
    """
    from bigopt.cli_show import summary, without_status
    from bigopt.evaluate import predict as run_predict

    result = run_predict(Path(directory), data, out, settings, scores=scores, force=force)
    return Answer(result, lambda: summary("predicted", without_status(result)))


@_verb
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


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line: the entry point of ``bigopt`` and of the pipelines."""
    bigopt.main(args=argv)


if __name__ == "__main__":
    main()
