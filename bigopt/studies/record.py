"""Run a study: every run trained as `bigopt train` does it, its parameters kept at every step, tables written as CSV.

The learning curves of a study show the objective

    f(w) = (1/n) sum_i loss(x_i, y_i; w) + penalty(w)

over *all* rows at the parameters of each step, not the batch's loss that a run sees; so runs with other batches can be
compared. Where the study has a reference (a run that ends in the minimum), they show f(w) - min f.

Files of a study, in its folder::

    NAME.png        the picture
    rows.npz/.csv   the rows; `bigopt train -c conf/studies/NAME.yml` reads the first
    summary.csv     a line a run: steps, epochs, objective, distance to the minimum, metrics
    curve.csv       run, step, epoch, objective, excess, error of the weights
    path.csv        run, step, weights               error_surface.csv   weights, objective
    fit.csv         run, step, x, value              surface.csv         run, step, features, P(class 1)
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt import bundle
from bigopt.config import COMMAND_LINE, load_conf
from bigopt.core.errors import ConfError, DivergedError
from bigopt.fit import train
from bigopt.models.penalties import Penalty
from bigopt.studies.gallery import Study
from bigopt.studies.problems import Table

Array = npt.NDArray[Any]

_GRID = 81
_ROUNDING = 1e-16
"""Least excess that is shown and written: differences of objectives near 1 know no smaller one."""


@dataclass(frozen=True, eq=False)
class Objective:
    """The objective of a trained model's problem over all rows, and its predictions at any parameters.

    Parameters
    ----------
    model : Bundle
        Whose preparation of features and targets is used.
    penalty : Penalty
    table : Table
    """

    model: bundle.Bundle
    penalty: Penalty
    table: Table
    _X: Array = field(init=False)
    _y: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_X", self._prepared(self.table.X))
        object.__setattr__(self, "_y", self.model.targets.encode(self.table.y, self.model.dtype))

    def _prepared(self, X: Array) -> Array:
        block = np.array(X, dtype=self.model.dtype, order="C")
        if self.model.scaling is not None:
            self.model.scaling.apply(block)
        return block

    def __call__(self, params: Array) -> float:
        """Return f(params)."""
        model = self.model
        total, weight = model.model.loss_sum(params.astype(model.dtype, copy=False), self._X, self._y, None)
        return total / weight + self.penalty.value(params, model.model.layout)

    def predict(self, params: Array, X: Array) -> Array:
        """Return the value, or the probability of class 1, of raw rows, shape (rows,)."""
        values: Array = self.model.model.predict(params.astype(self.model.dtype, copy=False), self._prepared(X))
        return values[:, -1]


@dataclass(frozen=True, eq=False)
class Trace:
    """What a run left behind.

    Parameters
    ----------
    name : str
    result : dict
        Of `bigopt.fit.train`.
    steps : ndarray, shape (T,)
        0, 1, ...
    epochs : ndarray, shape (T,)
    params : ndarray, shape (T, p)
    losses : ndarray, shape (T,)
        The objective over all rows.
    objective : Objective
    """

    name: str
    result: dict[str, Any]
    steps: Array
    epochs: Array
    params: Array
    losses: Array
    objective: Objective

    def stage(self, part: float) -> int:
        """Return the index of the record at a part of the run."""
        return round(part * (len(self.steps) - 1))


class Plane(NamedTuple):
    """A function on a grid: values (k, k) over x (k,) along columns and y (k,) along rows."""

    x: Array
    y: Array
    values: Array


@dataclass(frozen=True, eq=False)
class Record:
    """A study that was run.

    Parameters
    ----------
    study : Study
    table : Table
    traces : dict
        Run to its trace, in the study's order.
    minimum : ndarray, shape (p,), or None
        End of the reference run.
    least : float or None
        The objective there.
    """

    study: Study
    table: Table
    traces: dict[str, Trace]
    minimum: Array | None
    least: float | None

    def excess(self, trace: Trace) -> Array:
        """Return f - min f at every step, at least 1e-16."""
        return np.maximum(trace.losses - (self.least or 0.0), _ROUNDING)

    def shown(self, kind: str) -> list[Trace]:
        """Return the traces that a picture shows."""
        return [self.traces[name] for name in self.study.pictures[kind]]

    @cached_property
    def error_surface(self) -> Plane:
        """Return the objective over the plane of the two weights, around all paths."""
        ends = [] if self.minimum is None else [self.minimum[None]]
        points = np.concatenate([*(t.params for t in self.shown("path")), *ends])
        low, high = points.min(0), points.max(0)
        half = 0.5 * (high - low).max() * 1.2
        x, y = (np.linspace(m - half, m + half, _GRID) for m in 0.5 * (low + high))
        objective = self.shown("path")[0].objective
        return Plane(x, y, np.array([[objective(np.array([a, b])) for a in x] for b in y]))

    def prediction(self, trace: Trace, index: int) -> Plane:
        """Return the prediction over the plane of the two features, a little beyond the rows."""
        low, high = self.table.X.min(0), self.table.X.max(0)
        margin = 0.15 * (high - low)
        x, y = (np.linspace(a, b, _GRID) for a, b in zip(low - margin, high + margin, strict=True))
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        return Plane(x, y, trace.objective.predict(trace.params[index], grid).reshape(_GRID, _GRID))

    def fitted(self, trace: Trace, index: int) -> tuple[Array, Array]:
        """Return x and the fitted values along the one feature."""
        x = np.linspace(self.table.X.min(), self.table.X.max(), 4 * _GRID)
        return x, trace.objective.predict(trace.params[index], x[:, None])


def run_study(study: Study, folder: Path, overrides: Sequence[str] = ()) -> Record:
    """Make the rows, train every run and write the tables; `bigopt.studies.pictures` draws them.

    Parameters
    ----------
    study : Study
    folder : Path
        Of this study's files; made where it does not exist.
    overrides : sequence of str
        ``key=value`` texts for all runs; of them the reference takes model.* and data.*, which move the minimum.

    Raises
    ------
    BigoptError
        A conf that does not go with the problem, or what training raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = study.rows()
    np.savez(folder / "rows.npz", X=table.X, y=table.y)
    with tempfile.TemporaryDirectory(prefix="bigopt-study-") as runs:

        def trained(name: str, keys: Sequence[str]) -> Trace:
            uri = json.dumps(str(folder / "rows.npz"), ensure_ascii=False)
            own = [f"data.uri={uri}", f"run.dir={json.dumps(runs)}", "backend.name=local", "backend.workers=1"]
            return _trained(study, name, [*keys, *own], table)

        traces = {name: trained(name, [*keys, *overrides]) for name, keys in study.runs.items()}
        moving = [text for text in overrides if text.startswith(("model.", "data."))]
        reference = None if study.reference is None else trained("reference", [*study.reference, *moving])
    record = Record(
        study,
        table,
        traces,
        None if reference is None else reference.params[-1],
        None if reference is None else float(reference.losses[-1]),
    )
    _check(record)
    _write(record, folder)
    return record


def _trained(study: Study, name: str, keys: Sequence[str], table: Table) -> Trace:
    seen: list[tuple[int, float, Array]] = []
    try:
        conf = load_conf([study.conf], keys)
    except ConfError as error:
        where = f"{study.where}, {name}" if error.where == COMMAND_LINE else error.where
        raise ConfError(error.message, where=where, hint=error.hint) from None
    try:
        result = train(conf, on_step=lambda step, epoch, params: seen.append((step, epoch, params.copy())))
    except DivergedError as error:  # its hint names a checkpoint, which a study does not keep
        raise DivergedError(f"{name}: {error.message}", where=error.where, hint="a lower learning rate") from None
    objective = Objective(bundle.load(Path(result["run"])), Penalty(conf.model.l2, conf.model.l1), table)
    steps, epochs, params = (np.array(column) for column in zip(*seen, strict=True))
    losses = np.array([objective(w) for w in params])
    return Trace(name, result, steps, epochs, params, losses, objective)


def _check(record: Record) -> None:
    """Refuse a reference that is no minimum, and pictures that the problem has no plane for."""
    if record.least is not None and min(t.losses.min() for t in record.traces.values()) < record.least - 1e-9:
        raise ConfError(
            "the reference does not end in the minimum", where=record.study.where, hint="a longer reference"
        )
    features = record.table.X.shape[1]
    for kind in record.study.pictures:
        sizes = {t.params.shape[1] for t in record.shown(kind)}
        what = ""
        if kind == "path" and sizes != {2}:
            what = f"a path needs two parameters, not {', '.join(map(str, sorted(sizes)))}"
        elif kind == "surface" and features != 2:
            what = f"a surface needs two features, not {features}"
        elif kind == "fit" and features != 1:
            what = f"a fit needs one feature, not {features}"
        if what:
            raise ConfError(what, where=record.study.where, hint="another picture, model or problem")


def _write(record: Record, folder: Path) -> None:
    features = [f"x{k}" for k in range(record.table.X.shape[1])]
    _csv(folder / "rows.csv", [*features, "y"], ([*x, y] for x, y in zip(*record.table, strict=True)))
    metrics = sorted({k for t in record.traces.values() for k, v in t.result["metrics"].items() if np.isscalar(v)})
    _csv(
        folder / "summary.csv",
        ["run", "steps", "epochs", "objective", "excess", *metrics],
        (
            [t.name, t.steps[-1], t.epochs[-1], t.losses[-1], None if record.least is None else record.excess(t)[-1]]
            + [t.result["metrics"].get(m) for m in metrics]
            for t in record.traces.values()
        ),
    )
    _csv(
        folder / "curve.csv",
        ["run", "step", "epoch", "objective", "excess", "error"],
        (
            [t.name, *row]
            for t in record.traces.values()
            for row in zip(t.steps, t.epochs, t.losses, *_distances(record, t), strict=True)
        ),
    )
    if "path" in record.study.pictures:
        _csv(
            folder / "path.csv",
            ["run", "step", "w0", "w1"],
            ([t.name, k, *w] for t in record.shown("path") for k, w in zip(t.steps, t.params, strict=True)),
        )
        _csv(folder / "error_surface.csv", ["w0", "w1", "objective"], _points(record.error_surface))
    stages = record.study.stages
    if "fit" in record.study.pictures:
        _csv(
            folder / "fit.csv",
            ["run", "step", "x", "value"],
            (
                [t.name, t.steps[k], *point]
                for t in record.shown("fit")
                for k in map(t.stage, stages)
                for point in zip(*record.fitted(t, k), strict=True)
            ),
        )
    if "surface" in record.study.pictures:
        _csv(
            folder / "surface.csv",
            ["run", "step", *features, "probability"],
            (
                [t.name, t.steps[k], *point]
                for t in record.shown("surface")
                for k in map(t.stage, stages)
                for point in _points(record.prediction(t, k))
            ),
        )


def _distances(record: Record, trace: Trace) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return excess and ||w - w*|| at every step; nothing without a reference."""
    if record.minimum is None:
        nothing = [None] * len(trace.steps)
        return nothing, nothing
    return list(record.excess(trace)), list(np.linalg.norm(trace.params - record.minimum, axis=1))


def _points(plane: Plane) -> Iterable[list[float]]:
    return ([a, b, plane.values[j, i]] for j, b in enumerate(plane.y) for i, a in enumerate(plane.x))


def _csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table; numbers with all their digits, nothing where there is none."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([v.item() if isinstance(v, np.generic) else v for v in row])
