"""From a conf, a dataset and its facts to a problem: which model, which preparation, which batches.

`build` is a pure function, so that a resumed run builds the same problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Rounds
from bigopt.batches import batch_rate, build_plan, schedule_keys, span
from bigopt.core import arrays, compiled
from bigopt.core.errors import DataError
from bigopt.core.sums import whole
from bigopt.data.columnview import column_views
from bigopt.data.plan import Ints, Plan
from bigopt.data.source import Dataset
from bigopt.data.view import DataView, Preparation, TargetKind, Targets
from bigopt.facts import Datasets, Facts, check_sparse, column_blocks, is_classification, views
from bigopt.models.base import Model
from bigopt.models.build import build_model
from bigopt.models.linear import LinearModel
from bigopt.models.losses import Task
from bigopt.models.metrics import metric_names
from bigopt.models.mlp import MLP
from bigopt.models.penalties import Penalty
from bigopt.models.second import check_newton, is_quadratic, shifted_classes
from bigopt.optim.build import build_method
from bigopt.optim.method import AskKind, Method
from bigopt.preparing import class_weight, scaling_of, whitening
from bigopt.strategies.base import Evaluation, Renewal, Setting, scaled
from bigopt.work import GradientSum, MetricSum, SelectRows, sum_selected
from bigopt.work_curvature import HiddenMoments
from bigopt.work_second import HessianSum, LineSum

if TYPE_CHECKING:
    from bigopt.config import Conf

Array = npt.NDArray[Any]
Log = Callable[[str], None]

_TWO_CLASSES = ("logistic", "perceptron", "svm")
_BLOCK_BYTES = 1 << 20
_MOST_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class Problem:
    """Everything a strategy needs, and what is printed at the start.

    Parameters
    ----------
    model : Model
    penalty : Penalty
    targets : Targets
        How labels are encoded.
    view : DataView
        Training rows.
    validation : DataView or None
    facts : Facts
    plan : Plan
    block_rows : int
    device : str
    notes : tuple of str
        What null became, and warnings.
    kernels : str
        The kernel set of the work; see `bigopt.kernelset`.
    cuts : ndarray, shape (B + 1,), or None
        Where blocks of columns begin and end; None where workers hold whole rows.
    """

    model: Model
    penalty: Penalty
    targets: Targets
    view: DataView
    validation: DataView | None
    facts: Facts
    plan: Plan
    block_rows: int
    device: arrays.Device
    notes: tuple[str, ...]
    kernels: str = compiled.NUMPY
    cuts: Ints | None = None

    def gradient(self, dtype: str) -> GradientSum:
        """Return the work of ``backprop: map``."""
        return GradientSum(self.model, self.view, self.plan.seed, dtype, self.block_rows, self.device, self.kernels)

    def batch_work(self, kind: AskKind, dtype: str, backprop: str) -> Evaluation:
        """Return what a batch's units compute for a kind of `Ask`, and how the root of the tree becomes the answer."""
        view, seed = self.view, self.plan.seed
        work: GradientSum | HessianSum | LineSum
        if kind == "gradient":
            work = self.gradient(dtype)
        elif kind == "hessian":
            assert isinstance(self.model, LinearModel), "newton is refused elsewhere"
            work = HessianSum(self.model, view, seed, dtype, self.block_rows, self.device)
        else:
            work = LineSum(self.model, view, seed, self.block_rows, self.device, kind == "line", self.kernels)
        if backprop == "map":
            return Evaluation(work, lambda _, root: whole(root))
        return Evaluation(SelectRows(view, seed), lambda inputs, rows: whole(sum_selected(work, inputs, rows)))

    def method(self, conf: Conf, length: int | None, *, rate: float = 1.0) -> Method[Any]:
        """Return the optimizer with its schedule and the penalty.

        Parameters
        ----------
        conf : Conf
        length : int or None
            Steps planned at the first start: what a period of null means.
        rate : float
            What the learning rate is multiplied by, besides ``schedule.scaling``.
        """
        layout, unit = self.model.layout, conf.schedule.unit
        keys = {f: getattr(conf.optimizer, f) for f in conf.optimizer.__struct_fields__ if f != "name"}
        if conf.optimizer.name == "newton" and conf.strategy.solver != "coordinate":
            check_newton(self.model, conf.data.memory)
        period, tick = span(self.plan, length, unit)
        method = build_method(
            conf.optimizer.name,
            layout,
            keys=keys,
            schedule=conf.schedule.name,
            schedule_keys=schedule_keys(conf),
            unit=unit,
            default_period=period,
            tick=tick,
            l1=conf.model.l1,
            quadratic=is_quadratic(self.model),
            shifted=shifted_classes(self.model),
            kernels=self.kernels,
            penalty=(lambda grad, params: self.penalty.add_gradient(grad, params, layout)) if self.penalty.l2 else None,
        )
        return scaled(method, rate * batch_rate(conf, self.plan.batch_rows(0)))

    def setting(self, conf: Conf, rounds: Rounds, length: int | None, *, rate: float = 1.0) -> Setting:
        """Return what the strategy's machine is made from; `length` and `rate` as in `method`."""
        layout, plan = self.model.layout, self.plan
        first = batch_rate(conf, plan.batch_rows(0))
        return Setting(
            self.method(conf, length, rate=rate),
            self.plan,
            lambda kind: self.batch_work(kind, conf.run.dtype, conf.model.backprop),
            penalty=lambda params: self.penalty.value(params, layout),
            total_weight=self.total_weight,
            rounds=rounds,
            pace=lambda epoch: batch_rate(conf, plan.at(epoch).batch_rows(0)) / first,
            renewal=self.renewal(),
        )

    def renewal(self) -> Renewal | None:
        """Return what renews the moments inside the model; None where it has none."""
        model = self.model
        if not isinstance(model, MLP) or not model.batchnorm or not model.hidden:
            return None
        work = HiddenMoments(model, self.view, self.block_rows, self.device)
        return Renewal(work, len(model.hidden), model.with_moments)

    @property
    def total_weight(self) -> float:
        """W = sum_i s_i of the training rows, with class weights."""
        factors = self.view.class_weight
        if not factors:
            return self.facts.train.moments.weight
        return float(sum(f * w for f, w in zip(factors, self.facts.class_weights, strict=True)))

    @property
    def unbalanced(self) -> DataView:
        """The training rows without class weights: what metrics are taken on."""
        return replace(self.view, class_weight=()) if self.view.class_weight else self.view

    def metrics(self, view: DataView) -> MetricSum:
        """Return the work that evaluates the model on a view."""
        return MetricSum(self.model, view, self.block_rows, self.device)


def build(conf: Conf, data: Datasets, facts: Facts, device: arrays.Device) -> Problem:
    """Return the problem; a pure function of its arguments.

    Raises
    ------
    ConfError, DataError
        A model, loss, sampling or batch that does not go with the data.
    """
    notes: list[str] = []
    sparse = data.train.sparse
    if sparse:
        check_sparse(conf)
        device = _host(conf, device, notes)
    train_view, validation_view = views(conf, data)
    classification, why = is_classification(conf, data.train)
    if why:
        notes.append(f"task: {'classification' if classification else 'regression'} (by {why})")
    model, targets = _model(conf, data.train, facts, classification, notes)
    scaling: Preparation | None = scaling_of(conf, data.train, facts.train.moments, notes)
    if facts.scatter is not None:
        scaling = whitening(facts.scatter, notes)
    factors = class_weight(conf, facts, targets, notes)
    place = None if conf.data.scratch is None else (str(Path(conf.data.scratch.dir).resolve()), conf.data.scratch.size)
    view = replace(train_view, scaling=scaling, targets=targets, class_weight=factors, scratch=place)
    block_rows = conf.data.block_rows or default_block_rows(
        len(view.source.columns), view.dtype, sparse=sparse, layers=conf.model.name == "mlp"
    )
    cuts = column_blocks(conf, data.train, facts.slots)
    held = view if cuts is None else column_views(view, cuts)[int(np.argmax(np.diff(cuts)))]  # by one worker
    plan = build_plan(conf, held, facts, notes)
    skipped = int(facts.train.skipped.sum())
    if skipped:
        notes.append(f"{skipped} bad rows are left out (data.on_bad_rows=skip)")
    return Problem(
        model=model,
        penalty=Penalty(conf.model.l2, conf.model.l1),
        targets=targets,
        view=view,
        validation=validation_view and replace(validation_view, scaling=scaling, targets=targets, scratch=place),
        facts=facts._replace(sampling=plan.sampling),
        plan=plan,
        block_rows=block_rows,
        device=device,
        notes=tuple(notes),
        cuts=cuts,
    )


def _host(conf: Conf, device: arrays.Device, notes: list[str]) -> arrays.Device:
    """Sparse rows are computed on the CPU."""
    if device == "gpu" and conf.backend.device == "gpu":
        raise conf.error("backend.device", "sparse rows are computed on the CPU", "set backend.device=cpu")
    if device == "gpu":
        notes.append("backend.device: cpu, sparse rows are not computed on a GPU")
    return "cpu"


def default_block_rows(features: int, dtype: str, *, sparse: bool = False, layers: bool = False) -> int:
    """Return the rows of a block: a power of two of about 1 MB, between 32 and 8192; 8192 sparse rows.

    Every block of sparse rows costs one pass over the gradient of its unit, so there are few of them. So does every
    block of a network, whose gradient is long: its `layers` take blocks of about 4 MB, and the products inside them
    are blocked for the cache anyway.
    """
    if sparse:
        return _MOST_BLOCK_ROWS
    rows = _BLOCK_BYTES * (4 if layers else 1) // max(1, features * np.dtype(dtype).itemsize)
    return int(min(_MOST_BLOCK_ROWS, max(32, 1 << max(0, rows.bit_length() - 1))))


def _model(conf: Conf, dataset: Dataset, facts: Facts, classification: bool, notes: list[str]) -> tuple[Model, Targets]:
    spec, classes, width = conf.model, facts.classes, facts.train.width
    onehot = classification and width > 1
    if onehot and spec.name in _TWO_CLASSES:
        raise DataError(f"{width} one-hot columns", where="data.target", hint="use model.name=softmax")
    if onehot and spec.loss not in (None, "categorical_cross_entropy"):
        raise conf.error(
            "model.loss", f"one-hot columns take categorical_cross_entropy, not {spec.loss}", "or data.task=regression"
        )
    if classification and not onehot:
        _check_classes(conf, facts, notes)
    model = build_model(
        spec.name,
        features=len(dataset.columns),
        targets=width,
        classes=(width if onehot else len(classes)) if classification else None,
        loss="categorical_cross_entropy" if onehot else spec.loss,
        huber_delta=spec.huber_delta,
        hidden=spec.hidden,
        activation=spec.activation,
        groups=spec.groups,
        intercept=spec.intercept,
        shortcut=spec.shortcut,
        batchnorm=spec.batchnorm,
    )
    if isinstance(model, MLP) and model.shortcut and not any(model.shortcuts):
        notes.append("warning: model.shortcut: no hidden layer is as wide as its input, so there is none")
    if isinstance(model, MLP) and model.batchnorm and not model.hidden:
        notes.append("warning: model.batchnorm: there is no hidden layer whose output it could normalise")
    if spec.loss is None:
        notes.append(f"model.loss: {model.loss.name}")
    known = [name for name in metric_names(model.loss, model.outputs) if name != "loss"]
    for name in conf.stop.target_metric or {}:
        if name not in known:
            message = f"stop.target_metric: {model.loss.name} has no {name}"
            raise conf.error("stop.target_metric", message, f"one of {', '.join(known)}")
    if not classification:
        if dataset.target_kind in ("text", "category"):
            raise DataError(
                f"the target {', '.join(dataset.target)} holds text, {spec.name} needs numbers",
                where="data.target",
                hint="model.name=logistic or softmax, or another target",
            )
        return model, Targets("values")
    if onehot:
        return model, Targets("onehot")
    if model.outputs == 1:
        notes.append(f"classes: {classes[1]!r} is the positive one, {classes[0]!r} the other")
    else:
        notes.append(f"classes: {len(classes)}")
    kinds: dict[Task, TargetKind] = {"binary": "binary", "sign": "sign", "multiclass": "index"}
    return model, Targets(kinds[model.loss.task], classes)


def _check_classes(conf: Conf, facts: Facts, notes: list[str]) -> None:
    classes = facts.classes
    if conf.model.name in _TWO_CLASSES and len(classes) > 2:
        raise DataError(
            f"the target has {len(classes)} classes, {conf.model.name} separates two",
            where="data.target",
            hint="use model.name=softmax",
        )
    if facts.labels_seen > 1 and len(classes) > 1:
        return
    found = "the training rows have one class only" if facts.labels_seen else "the training rows have no labels"
    if len(classes) > 1 and conf.model.l2 > 0 and not conf.model.intercept:
        notes.append(f"warning: {found}")
        return
    raise DataError(
        found,
        where="data.target",
        hint="to go on name the others in data.classes, with model.l2 > 0 and model.intercept=false",
    )
