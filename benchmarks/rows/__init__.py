"""The rows of the table, in its order; each module has a ``ROW``."""

from __future__ import annotations

import importlib
from typing import Final

from benchmarks.spec import Row

NAMES: Final = (
    "gradient",
    "gradient_dask",
    "gradient_spark",
    "load_spark",
    "mlp",
    "mlp_engines",
    "mlp_mllib",
    "adam",
    "out_of_core",
    "out_of_core_mlp",
    "race_sklearn",
    "race_mllib",
    "ridge",
)


def rows(names: list[str]) -> list[Row]:
    """Return the rows of these names, all where none is given.

    Raises
    ------
    ValueError
        For a name that no row has.
    """
    wrong = [name for name in names if name not in NAMES]
    if wrong:
        raise ValueError(f"no row {', '.join(wrong)}; the rows are {', '.join(NAMES)}")
    return [importlib.import_module(f"benchmarks.rows.{name}").ROW for name in NAMES if not names or name in names]
