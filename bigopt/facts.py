"""What the data decide, found once by one pass over them and kept in the run directory.

`profile` decodes, checks and counts every row by one Map-Reduce a side and returns the `Facts`: used rows of each
partition, feature moments, classes. A resumed run reads them again instead of making the pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bigopt.backends.base import Session
from bigopt.backends.ledger import Rounds
from bigopt.core.codec import wire
from bigopt.core.errors import ConfError, DataError
from bigopt.core.sums import Moments, Scatter
from bigopt.data.columnview import block_homes, column_cuts
from bigopt.data.plan import Ints, homes, whole
from bigopt.data.source import Dataset, block_dtype
from bigopt.data.view import DataView, Split
from bigopt.models.sparse import require_scipy
from bigopt.work_columns import ProfileColumns, Profiles
from bigopt.work_profile import Profile, ProfileData, ScatterData

if TYPE_CHECKING:
    from bigopt.config import Conf

_CLASSIFIERS = ("logistic", "softmax", "perceptron", "svm")
_REGRESSION_LOSSES = ("squared", "huber")
_WHITEN_COLUMNS = 4096


@wire
class Side(NamedTuple):
    """Facts about the training or the validation rows.

    Parameters
    ----------
    counts, skipped : ndarray, shape (P,), int64
        Used and skipped rows of each partition.
    moments : Moments
        Of the raw features; empty, with the weight alone, where nothing is standardised by them.
    width : int
        Columns of the target.
    """

    counts: Ints
    skipped: Ints
    moments: Moments
    width: int


@wire
class Facts(NamedTuple):
    """What the data decided, once, at the first start.

    Parameters
    ----------
    identity : str
        Of the training dataset.
    train : Side
    validation : Side or None
    classes : tuple
        Sorted labels; empty for a regression.
    labels_seen : int
        Distinct labels of the training rows; 0 for a regression.
    validation_identity : str
        Of a validation dataset of its own; empty otherwise.
    slots : int
        Workers at the first start.
    scatter : Scatter or None
        Of the training features, for ``model.whiten``.
    learning_rate : float or None
        What ``schedule.learning_rate: auto`` found.
    class_weights : tuple of float
        Weight (sum of s_i) of the training rows of each class; empty for a regression.
    sampling : str or None
        What ``batch.sampling: auto`` became: kept at a resume, where ``data.scratch`` may be another.
    """

    identity: str
    train: Side
    validation: Side | None
    classes: tuple[Any, ...]
    labels_seen: int
    validation_identity: str
    slots: int
    scatter: Scatter | None = None
    learning_rate: float | None = None
    class_weights: tuple[float, ...] = ()
    sampling: str | None = None


class Datasets(NamedTuple):
    """The opened data of a run: training rows, and a validation dataset of its own or None."""

    train: Dataset
    validation: Dataset | None


def open_data(conf: Conf) -> Datasets:
    """Open the training data, and the validation data where it is a dataset of its own."""
    from bigopt.data.open import open_dataset

    spec = conf.data
    if spec.uri is None:
        raise ConfError("no data", where="data.uri", hint="set data.uri to Zarr, Parquet, NPZ, NPY or svmlight data")

    def opened(uri: str, target: Any, features: Any, weight: str | None) -> Any:
        return open_dataset(
            uri,
            target=target,
            features=features,
            weight=weight,
            on_bad_rows=spec.on_bad_rows,
            storage_options=spec.storage_options,
            index_base=spec.index_base,
        )

    data = opened(spec.uri, spec.target, spec.features, spec.weight)
    if not isinstance(spec.validation, str):
        return Datasets(data, None)
    target = data.target[0] if len(data.target) == 1 else data.target
    return Datasets(data, opened(spec.validation, target, data.columns, data.weight))


def side_view(conf: Conf, dataset: Dataset, *, validation: bool, own: bool) -> DataView:
    """Return the raw view of the training or validation rows (`own`: of a validation dataset of its own)."""
    fraction = conf.data.validation
    split = Split(conf.run.seed, fraction, validation) if isinstance(fraction, float) and not own else None
    bounds = np.array([0, *(p.stop for p in dataset.partitions)], dtype=np.int64)
    dtype = block_dtype(dataset.stored, conf.data.dtype).name
    return DataView(dataset.source, bounds, dtype, conf.data.on_bad_rows == "skip", split)


def views(conf: Conf, data: Datasets) -> tuple[DataView, DataView | None]:
    """Return the raw training and validation views."""
    train = side_view(conf, data.train, validation=False, own=False)
    if data.validation is not None:
        other = side_view(conf, data.validation, validation=True, own=True)
        return train, replace(other, dtype=train.dtype)
    if conf.data.validation is None:
        return train, None
    return train, side_view(conf, data.train, validation=True, own=False)


def is_classification(conf: Conf, dataset: Dataset) -> tuple[bool, str]:
    """Decide the task of a model by CONTRACTS' rules.

    Returns
    -------
    bool
    str
        Why, for the line at the start; empty where the model's name says it.

    Raises
    ------
    ConfError
        An mlp on integers without ``data.task``.
    """
    model = conf.model
    if model.name != "mlp":
        return model.name in _CLASSIFIERS, ""
    if conf.data.task is not None:
        return conf.data.task == "classification", "data.task"
    if model.loss is not None:
        return model.loss not in _REGRESSION_LOSSES, "model.loss"
    if conf.data.classes is not None:
        return True, "data.classes"
    manifest = "the manifest" if dataset.manifest is not None else "the target's dtype"
    if dataset.classes:
        return True, "the manifest's classes"
    kind = dataset.target_kind
    if kind == "integer":
        raise conf.error(
            "data.task",
            f"the target {', '.join(dataset.target)} holds integers: numbers or classes?",
            "set data.task=regression or data.task=classification",
        )
    return kind in ("text", "category", "boolean"), manifest


def check_sparse(conf: Conf) -> None:
    """Refuse what sparse rows do not go with: whatever would fill them.

    Raises
    ------
    ConfError
        Centring, whitening, models with hidden layers; or where SciPy is not installed.
    """
    if conf.model.standardize == "center":
        raise conf.error("model.standardize", "sparse rows are not centred: it would fill them", "true or false")
    if conf.model.whiten:
        raise conf.error("model.whiten", "sparse rows are not whitened: it would fill them", "model.standardize=true")
    if conf.model.name == "mlp":
        hint = "a linear model, or dense data (ingest.sparse=false for few columns)"
        raise conf.error("model.name", "the mlp takes no sparse rows", hint)
    require_scipy()


def column_blocks(conf: Conf, data: Dataset, slots: int) -> Ints | None:
    """Return where blocks of columns begin and end; None where workers hold whole rows.

    Parameters
    ----------
    conf : Conf
    data : Dataset
        The training data.
    slots : int
        Workers at the first start.

    Raises
    ------
    ConfError
        Data that are not cut, or more blocks than columns.
    """
    if conf.strategy.name != "model_parallel" or conf.model.name == "mlp" or conf.strategy.solver == "dual":
        return None
    return column_cuts(data.source, conf.strategy.blocks or slots)


def profile(conf: Conf, data: Datasets, session: Session, rounds: Rounds) -> Facts:
    """Decode, check and count every row once, by one Map-Reduce a side.

    Raises
    ------
    DataError
        For the first bad row, no rows, no weight, or labels that the model cannot take.
    """
    labels = is_classification(conf, data.train)[0]
    if data.train.sparse:
        check_sparse(conf)
    train_view, validation_view = views(conf, data)
    cuts = column_blocks(conf, data.train, session.slots)
    features = conf.model.standardize is not False
    found = _pass(session, rounds, ProfileData(train_view, labels, features), cuts, "the first pass over the data")
    train = _side(found, train_view)
    if int(train.counts.sum()) == 0:
        raise DataError("no training rows", where=conf.data.uri or "", hint="empty data, or all rows held out or bad")
    if train.moments.weight <= 0.0:
        raise DataError("the weights add up to 0", where=conf.data.uri or "", hint="set data.weight to another column")
    validation = None
    if validation_view is not None:
        work = ProfileData(validation_view, False, False)
        where = "the first pass over the validation data"
        validation = _side(_pass(session, rounds, work, cuts, where), validation_view)
        if int(validation.counts.sum()) == 0:
            raise conf.error("data.validation", "no validation rows", "a larger fraction, or another URI")
    classes = tuple(conf.data.classes or ()) or tuple(v.item() for v in found.labels)
    if len(classes) == 2:  # the larger is the positive one, in whatever order they are declared
        classes = tuple(sorted(classes))
    mass = {str(v): float(w) for v, w in zip(found.labels.tolist(), found.label_weight, strict=True)}
    return Facts(
        train_view.source.identity(),
        train,
        validation,
        classes if labels and found.width == 1 else (),
        len(found.labels),
        "" if data.validation is None else data.validation.source.identity(),
        session.slots,
        _scatter(conf, train_view, train, session, rounds) if conf.model.whiten else None,
        class_weights=tuple(mass.get(str(c), 0.0) for c in classes) if labels and found.width == 1 else (),
    )


def _scatter(conf: Conf, view: DataView, side: Side, session: Session, rounds: Rounds) -> Scatter:
    """One more pass for the covariance of the features."""
    d = len(view.source.columns)
    if d > _WHITEN_COLUMNS:
        raise conf.error("model.whiten", f"{d} columns, their covariance is too large", f"at most {_WHITEN_COLUMNS}")
    units = whole(np.arange(view.partitions), side.counts)
    result: Scatter = rounds.run(
        session, ScatterData(view), (), units, lambda k: homes(side.counts, k)[units[:, 0]], "the covariance"
    )
    return result


def _pass(session: Session, rounds: Rounds, work: ProfileData, cuts: Ints | None, where: str) -> Profile:
    view = work.view
    counts = np.diff(view.bounds)
    units = whole(np.arange(view.partitions), counts)
    if len(units) == 0:
        raise DataError("0 rows", where=where, hint="the dataset is empty")
    result: Profile
    if cuts is None:
        result = rounds.run(session, work, (), units, lambda slots: homes(counts, slots)[units[:, 0]], where)
        return result
    blocks, partitions = len(cuts) - 1, view.partitions
    leaves = np.concatenate([units + np.array([block * partitions, 0, 0, 0]) for block in range(blocks)])
    by_columns = ProfileColumns(view, cuts, work.labels, work.features)
    found: Profiles = rounds.run(
        session, by_columns, (), leaves, lambda slots: block_homes(blocks, slots)[leaves[:, 0] // partitions], where
    )
    return found.joined()


def _side(found: Profile, view: DataView) -> Side:
    counts, skipped = np.zeros(view.partitions, dtype=np.int64), np.zeros(view.partitions, dtype=np.int64)
    counts[found.partitions], skipped[found.partitions] = found.used, found.skipped
    return Side(counts, skipped, found.moments, found.width)
