"""Evaluate and predict: a trained model on other data, prepared or raw, matched by column name.

Prepared data has all the model's feature columns and is evaluated by one Map-Reduce on any backend. Raw data has the
columns that the ingest recipe started from; the recipe travels in the model and is applied again, batch by batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt import bundle, sessions
from bigopt.backends.base import one_blas_thread
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.bundle import Bundle
from bigopt.bycolumns import metrics_by_columns, scored
from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError, DataError
from bigopt.core.sums import merge
from bigopt.data.columnview import cuts_within
from bigopt.data.plan import Ints, homes, whole
from bigopt.data.predictions import PredictionWriter
from bigopt.data.rooms import finite_rows
from bigopt.data.source import Dataset, Rows
from bigopt.data.view import DataView, Whitening
from bigopt.models.linear import LinearModel
from bigopt.models.metrics import MetricSums, evaluate_block, predicted_class
from bigopt.problem import default_block_rows
from bigopt.work import MetricSum
from bigopt.work_columns import Columns, PartialMargins
from bigopt.work_profile import Profile, ProfileData

if TYPE_CHECKING:
    from bigopt.config import Conf

Array = npt.NDArray[Any]

_PREDICT_ROWS = 65_536


class _Opened(NamedTuple):
    """Data to score: a prepared dataset, or batches of raw rows with the recipe applied."""

    dataset: Dataset | None
    batches: Iterator[Rows] | None


def _conf(run: Path, overrides: Sequence[str]) -> Conf:
    from bigopt.config import load_conf

    if not (run / "conf.yml").is_file():
        raise ConfError("not a run directory (no conf.yml)", where=str(run), hint="give what train printed as run")
    return load_conf([run / "conf.yml"], overrides)


def evaluate(run: Path, data: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate a run's model on a dataset.

    Parameters
    ----------
    run : Path
        Run directory.
    data : str
        Prepared or raw data with the target.
    overrides : sequence of str
        ``key=value``: backend.* to evaluate on an engine (local where none is given), data.memory, data.weight,
        data.unknown, data.storage_options.

    Returns
    -------
    dict
        ``{"status": "completed", "metrics": {...}, "rows": n}``.

    Raises
    ------
    DataError
        Missing columns, damaged data, or labels never seen in training.
    """
    conf, model = _conf(run, overrides), bundle.load(run)
    opened = _open(conf, model, data, predict=False)
    if opened.dataset is not None:
        sums = _map_reduce(conf, model, opened.dataset, on_engine=any(o.startswith("backend.") for o in overrides))
    else:
        assert opened.batches is not None
        sums = _in_process(model, opened.batches, data)
    metrics = {name: value for name, value in sums.values().items() if name != "loss"}
    return {"status": "completed", "metrics": {**metrics, **sums.tables()}, "rows": sums.rows}


def _open(conf: Conf, model: Bundle, uri: str, *, predict: bool) -> _Opened:
    """Open prepared data where all the model's columns are there, else raw data where the recipe's are."""
    from bigopt.data.open import open_dataset

    spec = conf.data
    try:
        dataset = open_dataset(
            uri,
            target=None if predict else (model.target[0] if len(model.target) == 1 else model.target),
            features=model.columns,
            weight=None if predict else spec.weight,
            on_bad_rows="skip" if predict else spec.on_bad_rows,
            storage_options=spec.storage_options,
            need_target=not predict,
            index_base=spec.index_base,
        )
    except (ConfError, DataError) as error:
        missing = isinstance(error, ConfError) and error.where in ("data.features", "data.target")
        found = DataError(error.message, where=uri, hint=error.hint) if missing else error
        if model.recipe is None:
            raise found from error
        from bigopt.data.apply import raw_batches

        batches = raw_batches(
            model.recipe,
            uri,
            predict=predict,
            unknown=spec.unknown,
            columns=model.columns,
            storage_options=spec.storage_options,
        )
        if batches is None:
            raise found from error
        return _Opened(None, batches)
    return _Opened(dataset, None)


def _view(conf: Conf, model: Bundle, dataset: Dataset) -> DataView:
    bounds = np.array([0, *(p.stop for p in dataset.partitions)], dtype=np.int64)
    skip = conf.data.on_bad_rows == "skip"
    return DataView(dataset.source, bounds, model.dtype, skip, None, model.scaling, model.targets)


def _map_reduce(conf: Conf, model: Bundle, dataset: Dataset, *, on_engine: bool) -> MetricSums:
    from bigopt.config import choose_backend

    view = _view(conf, model, dataset)
    rounds = Rounds(Ledger(), conf.backend.retries)
    engine = on_engine or sessions.under_spark()
    name = choose_backend(conf, under_spark=sessions.under_spark())[0] if engine else "local"
    session = sessions.open_session(conf, name, "evaluate")
    with contextlib.closing(session):
        counts = np.diff(view.bounds)
        units = whole(np.arange(view.partitions), counts)
        if len(units) == 0:
            raise DataError("0 rows", where=conf.data.uri or "")
        if view.skip_bad:
            found: Profile = rounds.run(
                session, ProfileData(view.raw, False), (), units, lambda k: homes(counts, k)[units[:, 0]], "counting"
            )
            counts = np.zeros_like(counts)
            counts[found.partitions] = found.used
            units = whole(np.arange(view.partitions), counts)
        block_rows = default_block_rows(len(model.columns), model.dtype, sparse=dataset.sparse)
        cuts = None if view.skip_bad else _cuts(conf, model, view)
        if cuts is not None and isinstance(model.model, LinearModel):
            columns = Columns(view, cuts, model.model.outputs, 0, str(model.params.dtype), block_rows)
            return metrics_by_columns(session, rounds, model.model, model.params, PartialMargins(columns), counts)
        work = MetricSum(model.model, view, block_rows)
        result: MetricSums = rounds.run(
            session, work, (model.params,), units, lambda k: homes(counts, k)[units[:, 0]], "the evaluation"
        )
        return result


def _cuts(conf: Conf, model: Bundle, view: DataView) -> Ints | None:
    """Return blocks of columns where a linear model's rows do not fit ``data.memory`` whole."""
    if not isinstance(model.model, LinearModel) or isinstance(model.scaling, Whitening):
        return None
    return cuts_within(view, conf.data.memory)


def _in_process(model: Bundle, batches: Iterator[Rows], where: str) -> MetricSums:
    params = np.ascontiguousarray(model.params, dtype=model.dtype)
    total: Any = None
    with one_blas_thread():
        for rows in batches:
            if rows.y is None:
                raise DataError(f"no target {', '.join(model.target)}", where=where)
            X = _features(model, rows.X)
            y = model.targets.encode(rows.y, model.dtype)
            weight = None if rows.weight is None else np.asarray(rows.weight, dtype=np.float64)
            value = evaluate_block(model.model, params, X, y, weight)
            total = value if total is None else merge(total, value)
    if total is None:
        raise DataError("0 rows", where=where)
    result: MetricSums = total
    return result


def _features(model: Bundle, X: Array | CSR) -> Array | CSR:
    """Cast to the block dtype (a copy) and standardise."""
    block: Array | CSR
    if isinstance(X, CSR):
        block = CSR(np.array(X.data, dtype=model.dtype), X.indices, X.indptr, X.columns)
    else:
        block = np.array(X, dtype=model.dtype, order="C")
    if model.scaling is not None:
        model.scaling.apply(block)
    return block


def predict(
    run: Path, data: str, out: str, overrides: Sequence[str] = (), *, scores: bool = False, force: bool = False
) -> dict[str, Any]:
    """Write one line a row: row number, label or value, one probability (or score) a class.

    The perceptron, the svm and an mlp with their losses have a score and no probabilities.

    Parameters
    ----------
    run : Path
        Run directory.
    data : str
        Prepared or raw data; a target is not needed.
    out : str
        ``*.csv`` or ``*.parquet``.
    overrides : sequence of str
        ``key=value``: data.memory, data.unknown, data.storage_options.
    scores : bool
        Logits instead of probabilities.
    force : bool
        Replace an existing file.

    Returns
    -------
    dict
        ``{"status": "completed", "out": path, "rows": n}``.
    """
    conf, model = _conf(run, overrides), bundle.load(run)
    params = np.ascontiguousarray(model.params, dtype=model.dtype)
    with PredictionWriter(Path(out), force=force) as writer, one_blas_thread():
        opened = _open(conf, model, data, predict=True)
        batches = opened.batches
        if opened.dataset is not None:
            view = _view(conf, model, opened.dataset)
            cuts = _cuts(conf, model, view)
            if cuts is not None and isinstance(model.model, LinearModel):
                for found, bad in scored(view, cuts, model.model, params):
                    link = partial(model.model.loss.link, found)
                    writer.append(_columns(model, found, link, scores), bad if bad.any() else None)
                return {"status": "completed", "out": str(Path(out).resolve()), "rows": writer.rows}
            source, partitions = opened.dataset.source, opened.dataset.partitions
            batches = (piece for partition in partitions for piece in source.pieces(partition))
        assert batches is not None
        for rows in batches:
            for lo in range(0, len(rows.X), _PREDICT_ROWS):
                part = slice(lo, lo + _PREDICT_ROWS)
                X = _features(model, rows.X[part])
                bad = ~finite_rows(X)
                if rows.bad is not None:
                    bad |= rows.bad[part]
                if isinstance(X, CSR):
                    X.data[np.repeat(bad, np.diff(X.indptr))] = 0
                else:
                    X[bad] = 0
                found, link = model.model.scores(params, X), partial(model.model.predict, params, X)
                writer.append(_columns(model, found, link, scores), bad if bad.any() else None)
    return {"status": "completed", "out": str(Path(out).resolve()), "rows": writer.rows}


def _columns(model: Bundle, found: Array, link: Callable[[], Array], scores: bool) -> dict[str, Array]:
    """Return the columns of some rows, from their scores and what `link` makes of them."""
    if model.targets.kind == "values":
        values = link()
        names = ["prediction"] if values.shape[1] == 1 else [f"prediction_{name}" for name in model.target]
        if len(names) != values.shape[1]:
            names = [f"prediction_{i}" for i in range(values.shape[1])]
        return {name: np.asarray(values[:, i], dtype=np.float64) for i, name in enumerate(names)}
    classes = model.targets.classes or tuple(range(found.shape[1]))
    label = np.asarray(classes)[predicted_class(model.model.loss, found)]
    scores = scores or model.targets.kind == "sign"
    kind, values = ("score", found) if scores else ("probability", link())
    if scores and found.shape[1] == 1:
        return {"prediction": label, "score": np.asarray(found[:, 0], dtype=np.float64)}
    columns = {f"{kind}_{c}": np.asarray(values[:, i], dtype=np.float64) for i, c in enumerate(classes)}
    return {"prediction": label, **columns}
