"""Names to models: what a conf's ``model`` group builds.

==========  ===========  ==========================================  ===========================================
name        model        losses (first: the default)                 outputs
==========  ===========  ==========================================  ===========================================
linear      LinearModel  squared, huber                              targets
ridge       LinearModel  squared, huber                              targets (with ``model.l2``)
logistic    LinearModel  binary_cross_entropy                        1 logit, of the larger of two classes
softmax     LinearModel  categorical_cross_entropy                   C >= 2 logits
perceptron  LinearModel  perceptron, hinge, squared_hinge, squared   1 score, above 0 for the larger of two classes
svm         LinearModel  hinge, squared_hinge, perceptron, squared   as perceptron
mlp         MLP          by the target: squared for numbers,         targets, 1 logit or score, or C logits
                         binary for two classes, else categorical
==========  ===========  ==========================================  ===========================================

Squared error of the perceptron, the svm and an mlp on classes is that of a score and the labels -1 and +1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from bigopt.core.errors import ConfError, DataError
from bigopt.core.names import lookup
from bigopt.models.linear import LinearModel
from bigopt.models.losses import LOSSES, HuberLoss, Loss, SignedSquaredLoss
from bigopt.models.mlp import MLP


class ModelEntry(NamedTuple):
    """What a name stands for: its losses, the default first, and whether it has hidden layers."""

    losses: tuple[str, ...]
    layered: bool


MODELS: Final[Mapping[str, ModelEntry]] = {
    "linear": ModelEntry(("squared", "huber"), False),
    "ridge": ModelEntry(("squared", "huber"), False),
    "logistic": ModelEntry(("binary_cross_entropy",), False),
    "softmax": ModelEntry(("categorical_cross_entropy",), False),
    "perceptron": ModelEntry(("perceptron", "hinge", "squared_hinge", "squared"), False),
    "svm": ModelEntry(("hinge", "squared_hinge", "perceptron", "squared"), False),
    "mlp": ModelEntry(tuple(LOSSES), True),
}
_SIGNS: Final = ("perceptron", "svm")


def default_loss(name: str, classes: int | None) -> str:
    """Return the loss of a model whose conf names none.

    Parameters
    ----------
    name : str
        A name of `MODELS`.
    classes : int or None
        Number of classes of the target; None for numbers.
    """
    if name != "mlp":
        return _entry(name).losses[0]
    if classes is None:
        return "squared"
    return "binary_cross_entropy" if classes == 2 else "categorical_cross_entropy"


def build_loss(name: str, *, huber_delta: float = 1.0, labels: bool = False) -> Loss:
    """Return a loss by its name in a conf.

    Parameters
    ----------
    name : str
        A name of `LOSSES`.
    huber_delta : float
        Of the Huber loss.
    labels : bool
        Whether the target is labels, not numbers: squared error is then that of the labels -1 and +1.

    Raises
    ------
    ConfError
        For an unknown name, or a bad `huber_delta`.
    """
    kind = lookup(LOSSES, name, family="loss", where="model.loss")
    if kind is HuberLoss:
        return HuberLoss(float(huber_delta))
    return SignedSquaredLoss() if labels and name == "squared" else kind()


def build_model(
    name: str,
    *,
    features: int,
    targets: int = 1,
    classes: int | None = None,
    loss: str | None = None,
    huber_delta: float = 1.0,
    hidden: Sequence[int] = (128,),
    activation: str = "relu",
    groups: int | Sequence[int] | None = None,
    intercept: bool = True,
    output_activation: str = "identity",
    shortcut: bool = False,
    batchnorm: bool | Literal["center"] = False,
) -> LinearModel | MLP:
    """Build a model from the names and numbers of a conf and the shape of the data.

    Parameters
    ----------
    name : str
        linear, ridge, logistic, softmax, perceptron, svm or mlp.
    features : int
        Columns of X.
    targets : int
        Columns of numeric targets; not used for classes.
    classes : int or None
        Number of classes of the target; None for numbers.
    loss : str or None
        None for `default_loss`.
    huber_delta : float
        Of the Huber loss.
    hidden, activation, groups, output_activation, shortcut, batchnorm
        Of the mlp; other models do not use them. `groups`: one number for every hidden layer (the output layer stays
        full), or a list with one number a layer, with or without the output layer.
    intercept : bool

    Raises
    ------
    ConfError
        Unknown names, a loss that the model or the target does not go with, impossible sizes.
    DataError
        A number of classes that the model cannot have.
    """
    entry = _entry(name)
    labels = name in _SIGNS or (entry.layered and classes is not None)
    chosen = build_loss(loss or default_loss(name, classes), huber_delta=huber_delta, labels=labels)
    if chosen.name not in entry.losses:
        raise ConfError(
            f"model '{name}' has no loss '{chosen.name}'", where="model.loss", hint=f"one of {', '.join(entry.losses)}"
        )
    if labels and chosen.task == "regression":
        raise ConfError(f"{chosen.name} needs numbers, and the target is classes", where="model.loss")
    outputs = targets if chosen.task == "regression" else _logits(name, chosen, classes)
    if not entry.layered:
        return LinearModel(features, outputs, chosen, intercept)
    widths = tuple(hidden)
    per_layer = _groups(groups, len(widths))
    return MLP(
        features, widths, outputs, chosen, activation, per_layer, intercept, output_activation, shortcut, batchnorm
    )


def _entry(name: str) -> ModelEntry:
    return lookup(MODELS, name, family="model", where="model.name")


def _logits(name: str, loss: Loss, classes: int | None) -> int:
    """Return the number of logits or scores of a loss on classes, or say why the target has none."""
    if classes is None:
        raise ConfError(
            f"{loss.name} needs classes, and the target is numbers",
            where="model.loss",
            hint="set data.task=classification or data.classes",
        )
    if classes < 2:
        raise DataError(f"the target has {classes} class; a classifier needs two", where="data.target")
    if loss.task == "multiclass":
        return classes
    if classes > 2:
        hint = "use model.loss=categorical_cross_entropy" if name == "mlp" else "use model.name=softmax"
        raise DataError(f"the target has {classes} classes; {loss.name} separates two", where="data.target", hint=hint)
    return 1


def _groups(groups: int | Sequence[int] | None, hidden: int) -> tuple[int, ...]:
    """Return the groups of each layer, the output layer included; empty for none."""
    if groups is None:
        return ()
    if isinstance(groups, int):
        if hidden == 0:
            raise ConfError("groups without a hidden layer", where="model.groups", hint="a list names the output layer")
        return (groups,) * hidden + (1,)
    return (*groups, 1) if len(groups) == hidden else tuple(groups)
