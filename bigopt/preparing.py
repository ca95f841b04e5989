"""What a run does to its features and weights, from the facts of the first pass: scaling, whitening, class weights.

The values are fitted here, on the driver, and travel with the view (`bigopt.data.preparation` applies them); what a
person should know of it (constant columns, directions without variance) becomes notes for the lines at the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bigopt.core.errors import DataError
from bigopt.core.sums import Moments, Scatter
from bigopt.data.source import Dataset
from bigopt.data.view import Scaling, Targets, Whitening
from bigopt.facts import Facts

if TYPE_CHECKING:
    from bigopt.config import Conf

_NO_VARIANCE = 1e-10


def class_weight(conf: Conf, facts: Facts, targets: Targets, notes: list[str]) -> tuple[float, ...]:
    """Return the factor of each class; empty for none."""
    spec, where = conf.data.class_weight, "data.class_weight"
    if spec is None:
        return ()
    if not targets.classes:
        raise conf.error(where, "data.class_weight needs one column of labels", "leave it at null")
    if spec == "balanced" and not facts.class_weights:
        notes.append("class weights: balanced, by the first pass over the data")
        return ()
    names = [str(c) for c in targets.classes]
    if spec == "balanced":
        mass = facts.class_weights
        seen = sum(w > 0.0 for w in mass)
        total = sum(mass)
        factors = tuple(total / (seen * w) if w > 0.0 else 1.0 for w in mass)
    else:
        factor = dict(spec)
        wrong = [label for label in factor if label not in names]
        if wrong:
            raise conf.error(
                where, f"data.class_weight: no class is '{wrong[0]}'", f"the classes are {', '.join(names[:10])}"
            )
        factors = tuple(factor.get(name, 1.0) for name in names)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in list(zip(names, factors, strict=True))[:10])
    notes.append(f"class weights: {shown}" + (", ..." if len(names) > 10 else ""))
    return factors


def scaling_of(conf: Conf, dataset: Dataset, moments: Moments, notes: list[str]) -> Scaling | None:
    how = conf.model.standardize
    if how is False:
        return None
    if how == "center":
        return Scaling(moments.mean, np.ones_like(moments.mean))
    variance = moments.spread / moments.weight
    if not np.isfinite(variance).all():
        over = np.flatnonzero(~np.isfinite(variance))
        raise DataError(
            f"the variance of column {dataset.columns[int(over[0])]} overflows"
            + (f" (and of {len(over) - 1} more)" if len(over) > 1 else ""),
            where="model.standardize",
            hint="leave it out (data.features), or write it in other units",
        )
    with np.errstate(over="ignore"):  # then the variance is below it
        constant = variance <= (16 * np.finfo(np.float64).eps * np.abs(moments.mean)) ** 2
    if constant.any():
        still = np.flatnonzero(constant)
        shown = ", ".join(dataset.columns[int(i)] for i in still[:10])
        shown += f" and {len(still) - 10} more" if len(still) > 10 else ""
        notes.append(f"warning: constant columns are not scaled: {shown}")
    if dataset.sparse:
        notes.append("model.standardize: sparse features are scaled, not centred")
    mean = np.zeros_like(moments.mean) if dataset.sparse else moments.mean
    return Scaling(mean, np.where(constant, 1.0, np.sqrt(np.where(constant, 1.0, variance))))


def whitening(found: Scatter, notes: list[str]) -> Whitening:
    """Return x' = (x - mean) D^-1 V L^-1/2 V^T, with D the deviations and V L V^T the correlation of the features."""
    covariance = found.scatter / found.weight
    if not np.isfinite(covariance).all():
        raise DataError(
            "the covariance of the features overflows",
            where="model.whiten",
            hint="leave the largest out (data.features), or write them in other units",
        )
    deviation = np.sqrt(np.diag(covariance))
    scale = np.where(deviation > 1e-12 * np.abs(found.mean), deviation, np.inf)
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    kept = values > _NO_VARIANCE * values.max()
    if not kept.all():
        notes.append(f"warning: {int((~kept).sum())} directions of the features have no variance and are left out")
    roots = np.where(kept, 1.0 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    return Whitening(found.mean, ((vectors * roots) @ vectors.T) / scale[:, None])
