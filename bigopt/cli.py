"""The command line: ``bigopt ingest | inspect | describe | diagnose | train | sweep | evaluate | predict | resume |
options``.

A verb reads its conf, calls one function of bigopt and gives back an `Answer`: an object for ``--json`` and a way to
show it to a person. Verbs live in `bigopt.cli_data`, `bigopt.cli_runs` and `bigopt.cli_models`. Errors, signals and
exit codes are the business of `bigopt.cli_errors`; what is shown while a run lasts is that of `bigopt.cli_progress`.
Everything heavy is imported by the verb that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import click

from bigopt import __version__, cli_data, cli_models, cli_runs
from bigopt.cli_common import CODES
from bigopt.cli_errors import Root


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


bigopt.epilog = CODES
for _verb in (
    cli_data.ingest,
    cli_data.inspect,
    cli_data.describe,
    cli_runs.diagnose,
    cli_runs.train,
    cli_runs.resume,
    cli_runs.sweep,
    cli_models.evaluate,
    cli_models.predict,
    cli_data.options,
):
    bigopt.add_command(_verb)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line: the entry point of ``bigopt`` and of the pipelines."""
    bigopt.main(args=argv)


if __name__ == "__main__":
    main()
