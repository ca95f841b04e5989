"""The one table of optimizers: it drives the conf, ``describe``, the docs and the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from bigopt.optim.adam import Adam, AdamW
from bigopt.optim.adaptive import Adadelta, Adagrad, RMSProp
from bigopt.optim.descent import SGD, Momentum, Nesterov
from bigopt.optim.transform import Transform

MINI_BATCH: Final = 128
"""Rows of a batch where ``batch.size`` is null and the optimizer does not need all of them."""


@dataclass(frozen=True)
class Optimizer:
    """What is known of an optimizer by its name.

    Parameters
    ----------
    make : callable
        The class of the transform; its fields are the conf keys.
    learning_rate : float
        Used where ``schedule.learning_rate`` is null.
    vectors : int
        Vectors of length p that its state holds (for the memory table).
    formula : str
        One line for ``describe`` and the docs, in the letters of the class's docstring.
    full_batch : bool
        Whether it takes all rows in every step, and nothing else.
    """

    make: Callable[..., Transform[Any]]
    learning_rate: float
    vectors: int
    formula: str
    full_batch: bool = False

    @property
    def batch(self) -> int | Literal["full"]:
        """``batch.size`` where the conf says null."""
        return "full" if self.full_batch else MINI_BATCH

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the conf's ``optimizer`` group that this optimizer uses, besides ``name``."""
        return keys_of(self.make)


def keys_of(cls: Any) -> tuple[str, ...]:
    """Return the fields of a frozen dataclass: the conf keys of a transform or schedule."""
    return tuple(f.name for f in dataclasses.fields(cls))


_SCALED: Final = "w -= eta g / (sqrt(G) + eps)"
_ADAM: Final = "m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= eta mh / (sqrt(vh) + eps)"

OPTIMIZERS: Final[Mapping[str, Optimizer]] = MappingProxyType(
    {
        "gd": Optimizer(SGD, 0.01, 0, "w -= eta g, g over all rows", full_batch=True),
        "sgd": Optimizer(SGD, 0.01, 0, "w -= eta g"),
        "momentum": Optimizer(Momentum, 0.01, 1, "D = mu D - g; w += eta D"),
        "nesterov": Optimizer(Nesterov, 0.01, 1, "D = mu D - g; w += eta (mu D - g)"),
        "adagrad": Optimizer(Adagrad, 0.01, 1, f"G += g^2; {_SCALED}"),
        "rmsprop": Optimizer(RMSProp, 0.001, 1, f"G = b G + (1-b) g^2; {_SCALED}"),
        "adadelta": Optimizer(
            Adadelta, 1.0, 2, "E = r E + (1-r) g^2; d = sqrt(U + eps)/sqrt(E + eps) g; U = r U + (1-r) d^2; w -= eta d"
        ),
        "adam": Optimizer(Adam, 0.001, 2, _ADAM),
        "adamw": Optimizer(AdamW, 0.001, 2, f"w *= 1 - eta wd (no intercepts); {_ADAM}"),
    }
)
"""Names of ``optimizer.name``."""
