"""Names of columns where there are millions of them: runs of numbered names that are never spelled out.

Dense data has a tuple of names. Sparse data has d = 10^5 to 10^7 columns, most of them numbered (x0, x1, ...; words#0,
words#1, ...), so `Names` keeps literal names and `Run` s: it is a sequence like the tuple (length, item, index,
membership, iteration), travels as a few bytes, and finds a name in its runs by reading the number in it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, overload

from bigopt.core.codec import wire


@wire
class Run(NamedTuple):
    """The names ``prefix0``, ``prefix1``, ... ``prefix(size - 1)``."""

    prefix: str
    size: int

    def find(self, name: object) -> int:
        """Return the number of a name, -1 where it is none of them."""
        if not isinstance(name, str) or not name.startswith(self.prefix):
            return -1
        digits = name[len(self.prefix) :]
        if not (digits.isascii() and digits.isdigit()) or (digits[0] == "0" and digits != "0") or len(digits) > 18:
            return -1
        number = int(digits)
        return number if number < self.size else -1


@wire
@dataclass(frozen=True)
class Names(Sequence[str]):
    """A sequence of names, some of them in runs.

    Parameters
    ----------
    parts : tuple of str or Run
        In order; a str is one name.
    """

    parts: tuple[str | Run, ...]

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(1 if isinstance(part, str) else part.size for part in self.parts)]

    @cached_property
    def _literals(self) -> dict[str, int]:
        return {part: self._starts[k] for k, part in enumerate(self.parts) if isinstance(part, str)}

    @cached_property
    def _runs(self) -> list[tuple[int, Run]]:
        return [(self._starts[k], part) for k, part in enumerate(self.parts) if not isinstance(part, str)]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...
    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        if isinstance(at, slice):
            return tuple(self[j] for j in range(*at.indices(len(self))))
        where = int(at) + (len(self) if at < 0 else 0)
        if not 0 <= where < len(self):
            raise IndexError(f"column {at} of {len(self)}")
        k = bisect_right(self._starts, where) - 1
        part = self.parts[k]
        return part if isinstance(part, str) else f"{part.prefix}{where - self._starts[k]}"

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            if isinstance(part, str):
                yield part
            else:
                yield from (f"{part.prefix}{number}" for number in range(part.size))

    def _find(self, name: object) -> int:
        if isinstance(name, str) and name in self._literals:
            return self._literals[name]
        return next((start + at for start, run in self._runs if (at := run.find(name)) >= 0), -1)

    def __contains__(self, name: object) -> bool:
        return self._find(name) >= 0

    def index(self, name: object, start: int = 0, stop: int | None = None) -> int:
        """Return where a name stands; ValueError where it does not."""
        at = self._find(name)
        if at < start or (stop is not None and at >= stop):
            raise ValueError(f"{name!r} is not a column")
        return at

    def count(self, name: object) -> int:
        """Return 1 for a name that is there, else 0."""
        return int(name in self)


def x_names(count: int) -> Names:
    """Return the names of columns that have none: x0, x1, ..."""
    return Names((Run("x", count),))


def ambiguous(parts: Sequence[str | Run]) -> str | None:
    """Return a name that two parts give, None where all names are distinct."""
    seen: set[str] = set()
    runs: list[Run] = []
    for part in parts:
        if isinstance(part, Run):
            for run in runs:  # the least name of the longer prefix decides
                longer, shorter = (part, run) if len(part.prefix) >= len(run.prefix) else (run, part)
                if shorter.find(longer.prefix + "0") >= 0 or longer.prefix == shorter.prefix:
                    return f"{longer.prefix}0"
            runs.append(part)
        elif part in seen:
            return part
        else:
            seen.add(part)
    return next((name for name in seen for run in runs if run.find(name) >= 0), None)


def same(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two sequences hold the same names in the same order."""
    if isinstance(first, Names) and isinstance(second, Names) and first.parts == second.parts:
        return True
    return len(first) == len(second) and all(a == b for a, b in zip(first, second))


def places(wanted: Sequence[str], columns: Sequence[str], *, quick: bool = False) -> tuple[tuple[int, int], ...] | None:
    """Return where the wanted names stand among the columns, as ranges [start, stop); None where both are the same.

    Parameters
    ----------
    wanted, columns : sequence of str
    quick : bool
        Only where it is seen without looking up names one by one, else None.

    Raises
    ------
    ValueError
        For a name that is not there.
    """
    if not quick and same(wanted, columns):
        return None
    if isinstance(wanted, Names) and isinstance(columns, Names) and len(wanted.parts) == len(columns.parts) == 1:
        ours, theirs = wanted.parts[0], columns.parts[0]
        if isinstance(ours, Run) and isinstance(theirs, Run) and ours.prefix == theirs.prefix and ours <= theirs:
            return ((0, ours.size),)
    if quick:
        return None
    if isinstance(columns, Names):
        at = [columns.index(name) for name in wanted]
    else:
        known = {name: j for j, name in enumerate(columns)}
        try:
            at = [known[name] for name in wanted]
        except KeyError as error:
            raise ValueError(f"{error.args[0]!r} is not a column") from error
    ranges: list[tuple[int, int]] = []
    for j in at:
        if ranges and ranges[-1][1] == j:
            ranges[-1] = (ranges[-1][0], j + 1)
        else:
            ranges.append((j, j + 1))
    return tuple(ranges)


def listed(names: Sequence[str]) -> tuple[str, ...]:
    """Return names for a report: a run of numbered columns as one entry."""
    parts: Sequence[str | Run] = names.parts if isinstance(names, Names) else tuple(names)
    return tuple(p if isinstance(p, str) else f"{p.prefix}0 to {p.prefix}{p.size - 1}" for p in parts)
