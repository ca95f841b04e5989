"""Apply the recipe of a dataset or model to raw data that come later: to evaluate, or to predict.

Evaluate runs the whole recipe. Predict needs no target, leaves out the row filter, and gives exactly one row for every
raw row; what it cannot predict (a null that ingest would have left out) is flagged, never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from bigopt.core.errors import ConfError, DataError
from bigopt.core.names import nearest
from bigopt.data.columns import places, same
from bigopt.data.rawread import RawKind, RawSource, Table, open_raw
from bigopt.data.recipe import Mode, Recipe, recipe_from_json
from bigopt.data.recipe_apply import Steps, Unknown, dropping, encode, null_rows, steps_of
from bigopt.data.source import Rows
from bigopt.data.sparse import picked


def raw_batches(
    recipe: Mapping[str, Any],
    uri: str,
    *,
    predict: bool,
    unknown: Unknown = "error",
    columns: Sequence[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[Rows] | None:
    """Return the rows of raw data as a model takes them.

    Parameters
    ----------
    recipe : mapping
        The manifest's or model's recipe (JSON values).
    uri : str
        Raw files of the kind that was ingested, matched by column name.
    predict : bool
        As for predict; else as for evaluate (see `apply_recipe`).
    unknown : {"error", "zero"}
        ``data.unknown``.
    columns : sequence of str, optional
        The model's features, in its order; None: all that the recipe makes.
    storage_options : mapping, optional

    Returns
    -------
    iterator of Rows, or None
        None where `uri` is of no raw format.

    Raises
    ------
    DataError
        See `apply_recipe`.
    """
    fitted = recipe_from_json(recipe, where="the model's recipe")
    try:
        open_raw(uri, storage_options)
    except ConfError:
        return None
    batches = apply_recipe(
        fitted, uri, mode="predict" if predict else "evaluate", unknown=unknown, storage_options=storage_options
    )
    if columns is None or same(columns, fitted.columns):
        return batches
    absent = next((name for name in columns if name not in fitted.columns), None)
    if absent is not None:
        raise DataError(f"the recipe does not make '{absent}'", where=uri, hint=nearest(absent, fitted.columns[:2000]))
    picks = places(columns, fitted.columns)
    if fitted.sparse:
        return (rows._replace(X=picked(rows.X, picks)) for rows in batches)
    order = np.concatenate([np.arange(start, stop) for start, stop in picks or ()])
    return (rows._replace(X=np.ascontiguousarray(rows.X[:, order])) for rows in batches)


def _kinds(recipe: Recipe, mode: Mode) -> dict[str, RawKind]:
    return {column.name: column.kind for column in recipe.source_columns(mode)}


def apply_recipe(
    recipe: Recipe,
    source_uri: str | Sequence[str],
    *,
    mode: Literal["evaluate", "predict"],
    unknown: Unknown = "error",
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[Rows]:
    """Yield the rows of raw data as the model takes them, a block at a time.

    Parameters
    ----------
    recipe : Recipe
    source_uri : str or sequence of str
        Raw files of the kind that was ingested, matched by column name.
    mode : {"evaluate", "predict"}
        evaluate: the whole recipe, with target, weight and filter. predict: no target and weight, no filter, exactly
        one row for every raw row, in order; rows whose nulls the recipe drops come as zeros and are flagged in ``bad``.
    unknown : {"error", "zero"}
        Categories that the recipe does not know: refused, or none of the categories (zeros).
    storage_options : mapping, optional

    Yields
    ------
    Rows
        X in the recipe's dtype with the columns ``recipe.columns``.

    Raises
    ------
    DataError
        Naming the columns that are missing; or file, line or row, column and value.
    """
    source = open_raw(source_uri, storage_options)
    missing = recipe.missing(source.names, mode)
    if missing:
        near = nearest(missing[0], source.names)
        hint = near if near.startswith("did") else "raw data are matched by column name"
        raise DataError(f"{_listed(missing)} missing", where=source.uris[0], hint=hint)
    return _applied(recipe, source, mode, unknown, steps_of(recipe, mode, storage_options))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more are" if len(names) > 5 else " is" if len(names) == 1 else " are"
    return f"column{'s' if len(names) > 1 else ''} {', '.join(repr(n) for n in names[:5])}{more}"


def _applied(recipe: Recipe, source: RawSource, mode: Mode, unknown: Unknown, steps: Steps) -> Iterator[Rows]:
    for raw in source.tables(_kinds(recipe, mode)):
        table: Table = steps.run(raw)
        if mode != "predict":
            table = table.take(~null_rows(table, dropping(recipe, mode)))
        if table.rows:
            X, y, weight, bad = encode(recipe, table, mode=mode, unknown=unknown)
            yield Rows(X, y, weight, bad=bad if mode == "predict" else None)
