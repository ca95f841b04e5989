"""What the verbs of the command line share: options, the conf, places of errors, progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bigopt.core.errors import ConfError

if TYPE_CHECKING:
    from bigopt.callbacks import Progress
    from bigopt.config import Conf

F = TypeVar("F", bound=Callable[..., Any])

CODES = """
\b
Exit codes: 0 ok, 2 usage or conf, 3 data, 4 diverged, 5 cluster lost,
6 checkpoint or model files, 7 refused for security, 130/143 signals."""


def verb(function: F) -> click.Command:
    """Return the command of a verb, with the options that all have; its docstring is its help."""
    return click.command(epilog=CODES)(_shared(function))


def _shared(function: F) -> F:
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


def conf_files(function: F) -> F:
    files = click.option(
        "-c", "--conf", "files", multiple=True, metavar="FILE", help="Conf file; of several the later one wins."
    )
    settings = click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
    return files(settings(function))


def load(files: Sequence[str], settings: Sequence[str]) -> Conf:
    from bigopt.config import load_conf

    return load_conf(files, settings)


@contextlib.contextmanager
def placed(conf: Conf) -> Iterator[None]:
    """Give an error about a key (``where="data.target"``) the place where that key was set."""
    try:
        yield
    except ConfError as error:
        if error.where and conf.origin(error.where) != "base":
            error.message = f"{error.where}: {error.message}"
            error.where = conf.error(error.where, "").where
        raise


@contextlib.contextmanager
def watching() -> Iterator[Progress]:
    """Show the progress of a verb, as --quiet and the terminal have it."""
    from bigopt.cli_progress import choose

    progress = choose(quiet=bool(click.get_current_context().meta.get("bigopt.quiet")))
    try:
        yield progress
    finally:
        progress.close()
