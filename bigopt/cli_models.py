"""Verbs about a model that is there: evaluate, predict."""

from __future__ import annotations

from pathlib import Path

import click

from bigopt.cli_common import verb
from bigopt.cli_errors import Answer


@verb
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


@verb
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
