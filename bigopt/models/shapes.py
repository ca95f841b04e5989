"""Checks of sizes that every model makes once, when it is built."""

from __future__ import annotations

from bigopt.core.errors import ConfError
from bigopt.models.losses import Loss


def check_shapes(features: int, outputs: int, loss: Loss) -> None:
    """Refuse sizes that no model can have.

    Raises
    ------
    ConfError
        No features, no outputs, several scores for a loss of two classes, or fewer than two for a categorical one.
    """
    if features < 1:
        raise ConfError("a model needs at least one feature", where="data.features")
    if outputs < 1:
        raise ConfError("a model needs at least one output", where="data.target")
    if loss.task in ("binary", "sign") and outputs != 1:
        raise ConfError(
            f"{loss.name} has one {'logit' if loss.task == 'binary' else 'score'}, not {outputs}",
            where="model.loss",
            hint="categorical_cross_entropy has one a class",
        )
    if loss.task == "multiclass" and outputs < 2:
        raise ConfError(f"{loss.name} needs at least two classes, not {outputs}", where="model.loss")
