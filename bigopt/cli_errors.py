"""The edges of the command line: one object on stdout with ``--json``, one clear line on stderr without, an exit code.

Whatever happens in a verb ends here: a result, an error of bigopt's own, a usage error, a signal, or something nobody
thought of. With ``--json`` nothing else may reach stdout, not even what a library or a child process prints there, so
the file descriptor itself is pointed at stderr while the verb runs.

====  =========================================
code  meaning
====  =========================================
0     completed
1     a defect of bigopt
2     usage or conf
3     data
4     diverged
5     cluster lost
6     checkpoint, run directory or model
7     refused for security
130   SIGINT
143   SIGTERM
====  =========================================
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

import click

from bigopt.core.errors import BigoptError, ConfError, DivergedError, InterruptedRun
from bigopt.core.names import nearest


@dataclass(frozen=True)
class Answer:
    """What a verb gives back.

    Parameters
    ----------
    payload : mapping
        The object for ``--json``.
    show : callable
        Prints the same for people, on stdout.
    """

    payload: Mapping[str, Any]
    show: Callable[[], None]


@dataclass(frozen=True)
class Wishes:
    """What the whole command line asks for, read before click reads it (a usage error must know it too)."""

    json: bool
    verbose: bool

    @classmethod
    def of(cls, argv: Sequence[str]) -> Wishes:
        """Read the flags; everything after ``--`` is no flag, and help is never JSON."""
        flags = list(argv[: argv.index("--")] if "--" in argv else argv)
        teaching = "--help" in flags or "--version" in flags
        return cls("--json" in flags and not teaching, "-v" in flags or "--verbose" in flags)


def failure(error: BaseException) -> dict[str, Any]:
    """Return the JSON object of an error: status, code, error, where, hint, run; no password of a URL is in it."""
    status, code, where, hint = "error", 1, "", ""
    message = one_line(error)
    if isinstance(error, BigoptError):
        status = "interrupted" if isinstance(error, InterruptedRun) else "error"
        status = "diverged" if isinstance(error, DivergedError) else status
        code, message, where, hint = error.exit_code, one_line(error.message), error.where, one_line(error.hint)
    elif isinstance(error, (KeyboardInterrupt, click.Abort)):
        status, code, message = "interrupted", 130, "interrupted"
    elif isinstance(error, click.ClickException):
        code, message = 2, one_line(error.format_message().rstrip("."))
        context = getattr(error, "ctx", None)
        if context is not None:
            hint = f"see {context.command_path} --help"
    else:
        message = f"unexpected {type(error).__name__}: {message}" if message else f"unexpected {type(error).__name__}"
        hint = "a defect of bigopt; -v prints the traceback"
    from bigopt.config.output import redact

    run = getattr(error, "run", None)
    return {
        "status": status,
        "code": code,
        "error": redact(message),
        "where": redact(one_line(where)) or None,
        "hint": redact(hint) or None,
        "run": None if run is None else os.path.abspath(run),
    }


def one_line(text: object) -> str:
    """Return text on one line, without what a terminal would obey."""
    joined = " ".join(part.strip() for part in str(text).splitlines() if part.strip())
    return "".join(c if c.isprintable() else "?" for c in joined)


def line_of(problem: Mapping[str, Any]) -> str:
    """Return the line for people: ``bigopt: error: where: message (hint)``."""
    where = f"{problem['where']}: " if problem["where"] else ""
    hint = f" ({problem['hint']})" if problem["hint"] else ""
    return f"bigopt: {problem['status']}: {where}{problem['error']}{hint}"


@contextlib.contextmanager
def json_stdout(wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Keep stdout for one JSON object.

    Inside the block both ``sys.stdout`` and file descriptor 1 lead to stderr. The function given to the block keeps the
    object, which is written when the block ends.
    """
    kept: list[Mapping[str, Any]] = []
    if not wanted:
        yield kept.append
        return
    stdout = sys.stdout
    stdout.flush()
    number = _number(stdout)
    saved = os.dup(number) if number is not None else None
    try:
        errors = _number(sys.stderr)
        if number is not None and errors is not None:
            os.dup2(errors, number)
        sys.stdout = sys.stderr
        yield kept.append
    finally:
        sys.stderr.flush()
        sys.stdout = stdout
        if saved is not None and number is not None:
            os.dup2(saved, number)
            os.close(saved)
        for payload in kept[-1:]:
            from bigopt.rundir import plain

            stdout.write(json.dumps(plain(payload), allow_nan=False, default=str) + "\n")
            stdout.flush()


def _number(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, io.UnsupportedOperation, ValueError):
        return None


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into `InterruptedRun` while a verb runs; a run that saves its state first sets its own handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise InterruptedRun("terminated", signal=number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def run(verb: Callable[[], object], wishes: Wishes) -> int:
    """Run a verb and return the exit code; the result or the error has been printed."""
    with json_stdout(wishes.json) as put, terminable():
        try:
            answer = verb()
        except BrokenPipeError:
            _drop_stdout()
            return 1
        except (Exception, KeyboardInterrupt) as error:
            problem = failure(error)
            if wishes.verbose and problem["code"] == 1:
                traceback.print_exc(file=sys.stderr)
            if wishes.json:
                put(problem)
            print(line_of(problem), file=sys.stderr, flush=True)
            return int(problem["code"])
        if isinstance(answer, Answer):
            if wishes.json:
                put({"status": "completed", **answer.payload})
            else:
                answer.show()
            return 0
        return answer if isinstance(answer, int) else 0


def _drop_stdout() -> None:
    """Leave nothing for the interpreter to flush into a closed pipe."""
    number = _number(sys.stdout)
    if number is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


class Root(click.Group):
    """The group of verbs, with bigopt's errors and exit codes."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command line and exit."""
        argv = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        verb = functools.partial(super().main, args=argv, prog_name=prog_name or "bigopt", **extra)
        sys.exit(run(verb, Wishes.of(argv)))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a verb; a wrong one gets the nearest."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise ConfError(f"unknown verb '{name}'", where="bigopt", hint=nearest(name, self.commands))
        return super().resolve_command(ctx, args)
