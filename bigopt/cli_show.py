"""Results for people: tables and summaries on stdout, with rich, from the same objects that ``--json`` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=True)


def say(*lines: str) -> None:
    """Print lines as they are."""
    console = _console()
    for line in lines:
        console.print(line)


def wrapped(line: str) -> str:
    """Return a long line in lines of at most 79 characters, the later ones further in."""
    inner = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, 79, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    lines = [[cell(value) for value in row] for row in rows]
    numeric = [bool(lines) and all(_is_number(line[i]) for line in lines) for i in range(len(columns))]
    grid = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in zip(columns, numeric, strict=True):
        grid.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in lines:
        grid.add_row(*(Text(value) for value in line))
    console = _console()
    if not console.is_terminal:
        console.width = max(console.width, 200)
    console.soft_wrap = False
    console.print(grid)


def cell(value: Any) -> str:
    """Return a value for a person: ``-`` for nothing, six digits for numbers, thousands apart."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {cell(v)}" for k, v in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        nested = bool(value) and all(isinstance(v, (list, tuple)) for v in value)
        shown = ("; " if nested else ", ").join(cell(v) for v in value[:12])
        return (shown + f", ... ({len(value)})" if len(value) > 12 else shown) or "-"
    return str(value)


def _is_number(text: str) -> bool:
    bare = text.replace(",", "").rstrip("kKMGTB% ")
    try:
        float(bare)
    except ValueError:
        return text == "-"
    return True


def summary(title: str, values: Mapping[str, Any]) -> None:
    """Print names and values, one a line; a list of mappings becomes a table of its own."""
    plain = {k: v for k, v in values.items() if not _is_table(v)}
    width = max((len(k) for k in plain), default=0)
    say(*([title] if title else []), *(f"  {k.replace('_', ' ').ljust(width)}  {cell(v)}" for k, v in plain.items()))
    for name, rows in values.items():
        if _is_table(rows):
            columns = list(dict.fromkeys(key for row in rows for key in row))
            table(name.replace("_", " "), columns, [[row.get(c) for c in columns] for row in rows])


def without_status(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without its status, which a person sees anyway."""
    return {key: value for key, value in result.items() if key != "status"}


def _is_table(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, Mapping) for row in value)
