"""One table per family: names to factories, and the nearest valid name for a typo."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from bigopt.core.errors import ConfError

T = TypeVar("T")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint: the nearest valid name, or all of them.

    Parameters
    ----------
    name : str
        What was written.
    valid : iterable of str
        The names that exist.

    Returns
    -------
    str
        ``did you mean 'x'?`` or ``one of a, b, c``.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"one of {', '.join(names)}"


def lookup(table: Mapping[str, T], name: str, *, family: str, where: str = "") -> T:
    """Return ``table[name]`` or raise `ConfError` with the nearest valid name.

    Parameters
    ----------
    table : mapping
        A family's table of names.
    name : str
        What was asked for.
    family : str
        What the names are ("optimizer", "loss", ...), for the message.
    where : str
        Conf path for the message.
    """
    if name not in table:
        raise ConfError(f"unknown {family} '{name}'", where=where, hint=nearest(name, table))
    return table[name]
