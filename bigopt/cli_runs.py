"""Verbs that run: diagnose, train, resume, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bigopt.cli_common import conf_files, load, placed, verb, watching
from bigopt.cli_errors import Answer
from bigopt.core.errors import ConfError


@verb
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
    conf = load(files, settings)
    with watching() as progress, placed(conf):
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


@verb
@conf_files
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

    conf = load(files, settings)
    with watching() as progress, placed(conf):
        result = run_train(conf, progress=progress)
    return Answer(result, lambda: _show_run(result))


@verb
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

    with watching() as progress:
        result = run_resume(Path(directory), list(settings), progress=progress)
    return Answer(result, lambda: _show_run(result))


def _show_run(result: dict[str, Any]) -> None:
    from bigopt.cli_show import say, summary

    summary(
        "trained",
        {k: v for k, v in result.items() if k not in ("status", "metrics")} | dict(result.get("metrics") or {}),
    )
    say(f"next: bigopt evaluate {result['run']} --data URI")


@verb
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

    with watching() as progress:
        result = run_sweep(read_spec(file, settings), progress=progress)

    def show() -> None:
        table(f"{result['metric']}, {result['better']} is better", *columns_and_rows(result))
        say(
            *([f"picture: {result['picture']}"] if result["picture"] else []),
            f"tables: {result['sweep']}/sweep.csv, sweep.json",
            f"next: bigopt evaluate {result['best']['run']} --data URI",
        )

    return Answer(result, show)
