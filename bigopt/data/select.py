"""Which columns are features, target and weight: the conf's word, then the manifest's or the store's, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import islice

from bigopt.core.errors import ConfError, DataError
from bigopt.core.names import nearest
from bigopt.data.columns import Names, places
from bigopt.data.source import NUMERIC, BadRows


@dataclass(frozen=True)
class Wanted:
    """What the conf asks for; see `bigopt.data.open.open_dataset`."""

    target: tuple[str, ...] | None = None
    features: Sequence[str] | None = None
    weight: str | None = None
    on_bad_rows: BadRows = "error"
    need_target: bool = True


@dataclass(frozen=True)
class Chosen:
    """Names of the selected columns."""

    features: Sequence[str]
    target: tuple[str, ...]
    weight: str | None


def choose(
    wanted: Wanted,
    columns: Sequence[str],
    *,
    labels: Sequence[str] = (),
    target: Sequence[str] = (),
    weight: str | None = None,
    uri: str = "",
) -> Chosen:
    """Return the selected columns.

    Parameters
    ----------
    wanted : Wanted
    columns : sequence of str
        Columns that may be features; each may also be named as target or weight.
    labels : sequence of str
        Further columns, for targets and weight alone (arrays beside X).
    target, weight
        What the manifest or the store names, used where `wanted` says nothing.
    uri : str
        For messages.

    Raises
    ------
    ConfError
        For a name that is not there (with the nearest one), a column in two roles, no target or no features.
    """
    beside = frozenset(labels)
    targets = tuple(target) if wanted.target is None else wanted.target
    if not wanted.need_target:
        targets = tuple(name for name in targets if name in beside or name in columns)
    elif not targets:
        raise ConfError(
            f"'{uri}' names no target", where="data.target", hint=f"set it to {listed([*labels, *columns[:100]])}"
        )
    weight = wanted.weight if wanted.weight is not None else weight
    for name in targets:
        _known(name, columns, beside, "data.target", uri)
    if weight is not None:
        _known(weight, columns, beside, "data.weight", uri)
        if weight in targets:
            raise ConfError(f"column '{weight}' is also the target", where="data.weight")
    if wanted.features is None:
        taken = [name for name in (*targets, weight) if name is not None and name in columns]
        features: Sequence[str] = columns if isinstance(columns, Names) else tuple(columns)
        if taken:
            features = tuple(name for name in columns if name not in taken)
    else:
        features = wanted.features
        for name in () if _first_of(features, columns) else features:
            _known(name, columns, (), "data.features", uri)
        for double in (*targets, *([weight] if weight is not None else [])):
            if double in features:
                role = "the weight" if double == weight else "a target"
                raise ConfError(f"column '{double}' is also {role}", where="data.features")
    chosen = () if isinstance(wanted.features, Names) else wanted.features or ()
    for names, where in ((targets, "data.target"), (chosen, "data.features")):
        name, times = next(iter(Counter(names).most_common(1)), ("", 0))
        if times > 1:
            raise ConfError(f"column '{name}' is named twice", where=where)
    if not features:
        raise ConfError(f"'{uri}' has no column left as a feature", where="data.features")
    return Chosen(features, targets, weight)


def _first_of(features: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether features are all the columns, or the first of one run: then nothing need be looked up one by one."""
    if features is columns or not (isinstance(features, Names) and isinstance(columns, Names)):
        return features is columns
    return features == columns or places(features, columns, quick=True) is not None


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return names for a message, at most `most` of them."""
    more = f" ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more


def _known(name: str, columns: Sequence[str], beside: Container[str], where: str, uri: str) -> None:
    if name not in beside and name not in columns:
        near = [*(beside if isinstance(beside, frozenset) else ()), *islice(columns, 2000)]
        raise ConfError(f"'{uri}' has no column '{name}'", where=where, hint=nearest(name, near))


def require_numeric(name: str, dtype: str, uri: str) -> None:
    """Refuse a feature or weight that is no number.

    Raises
    ------
    DataError
        Naming column and type.
    """
    if dtype not in NUMERIC:
        raise DataError(
            f"column '{name}' is {dtype}, not a number",
            where=uri,
            hint="encode it with ingest.encode, or leave it out of data.features",
        )


def numbered(count: int) -> tuple[str, ...]:
    """Return the names of columns that have none: x0, x1, ..."""
    return tuple(f"x{j}" for j in range(count))
