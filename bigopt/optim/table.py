"""The one table of optimizers: it drives the conf, ``describe``, the docs and the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from bigopt.core.names import lookup
from bigopt.optim.adam import Adam, AdamW, AMSGrad
from bigopt.optim.adam_kin import AdaMax, NAdam, Yogi
from bigopt.optim.adaptive import Adadelta, Adagrad, RMSProp
from bigopt.optim.descent import SGD, Momentum, Nesterov
from bigopt.optim.layerwise import LAMB, LARS
from bigopt.optim.lbfgs import LBFGSKeys
from bigopt.optim.lion import Lion
from bigopt.optim.newton import NewtonKeys
from bigopt.optim.owlqn import Orthantwise
from bigopt.optim.proximal import Proximal, ProximalMomentum

MINI_BATCH: Final = 128
"""Rows of a batch where ``batch.size`` is null and the optimizer does not need all of them."""


@dataclass(frozen=True)
class Optimizer:
    """What is known of an optimizer by its name.

    Parameters
    ----------
    make : callable
        The class of the transform, or in `SECOND_ORDER` of its keys; its fields are the conf keys.
    learning_rate : float
        Used where ``schedule.learning_rate`` is null.
    vectors : int
        Vectors of length p that its state holds (for the memory table).
    formula : str
        One line for ``describe`` and the docs, in the letters of the class's docstring.
    full_batch : bool
        Whether it takes all rows in every step, and nothing else.
    l1 : callable or None
        ``l1(made, l1)`` gives what takes l1 ||w||_1 into account, a transform with proximal steps or in `SECOND_ORDER`
        the keys of OWL-QN; None: refuses ``model.l1``.
    """

    make: Callable[..., Any]
    learning_rate: float
    vectors: int
    formula: str
    full_batch: bool = False
    l1: Callable[[Any, float], Any] | None = None

    @property
    def batch(self) -> int | Literal["full"]:
        """``batch.size`` where the conf says null."""
        return "full" if self.full_batch else MINI_BATCH

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the conf's ``optimizer`` group that this optimizer uses, besides ``name``."""
        return keys_of(self.make)


def keys_of(cls: Any) -> tuple[str, ...]:
    """Return the conf keys of a transform or schedule: the fields of the dataclass, but for those marked otherwise."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("conf", True))


def _heavy_ball(transform: Momentum, l1: float) -> ProximalMomentum:
    return ProximalMomentum(transform.momentum, l1)


_SCALED: Final = "w -= eta g / (sqrt(G) + eps)"
_ADAM: Final = "m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= eta mh / (sqrt(vh) + eps)"

OPTIMIZERS: Final[Mapping[str, Optimizer]] = MappingProxyType(
    {
        "gd": Optimizer(SGD, 0.01, 0, "w -= eta g, g over all rows", full_batch=True, l1=Proximal),
        "sgd": Optimizer(SGD, 0.01, 0, "w -= eta g", l1=Proximal),
        "momentum": Optimizer(Momentum, 0.01, 1, "D = mu D - g; w += eta D", l1=_heavy_ball),
        "nesterov": Optimizer(Nesterov, 0.01, 1, "D = mu D - g; w += eta (mu D - g)"),
        "adagrad": Optimizer(Adagrad, 0.01, 1, f"G += g^2; {_SCALED}", l1=Proximal),
        "rmsprop": Optimizer(RMSProp, 0.001, 1, f"G = b G + (1-b) g^2; {_SCALED}", l1=Proximal),
        "adadelta": Optimizer(
            Adadelta, 1.0, 2, "E = r E + (1-r) g^2; d = sqrt(U + eps)/sqrt(E + eps) g; U = r U + (1-r) d^2; w -= eta d"
        ),
        "adam": Optimizer(Adam, 0.001, 2, _ADAM, l1=Proximal),
        "adamw": Optimizer(AdamW, 0.001, 2, f"w *= 1 - eta wd (no intercepts); {_ADAM}", l1=Proximal),
        "amsgrad": Optimizer(AMSGrad, 0.001, 3, f"x = max(x, v), vh = x / (1 - b2^t); {_ADAM}", l1=Proximal),
        "adamax": Optimizer(
            AdaMax, 0.002, 2, "m = b1 m + (1-b1) g; u = max(b2 u, abs(g) + eps); w -= eta m / ((1-b1^t) u)"
        ),
        "nadam": Optimizer(
            NAdam,
            0.002,
            2,
            "mu_t = b1 (1 - 0.5 * 0.96^(0.004 t)), P_t = mu_1 ... mu_t; "
            "w -= eta [(1-mu_t) g/(1-P_t) + mu_{t+1} m/(1-P_{t+1})] / (sqrt(vh) + eps)",
        ),
        "yogi": Optimizer(
            Yogi, 0.01, 2, "m = b1 m + (1-b1) g; v -= (1-b2) sign(v - g^2) g^2; w -= eta m / (sqrt(v) + eps)"
        ),
        "lion": Optimizer(Lion, 1e-4, 1, "c = b1 m + (1-b1) g; w -= eta (sign(c) + wd w); m = b2 m + (1-b2) g"),
        "lars": Optimizer(
            LARS, 0.1, 1, "r = 1e-3 norm(w) / (norm(g) + wd norm(w)) per layer; D = mu D - eta r (g + wd w); w += D"
        ),
        "lamb": Optimizer(
            LAMB, 0.001, 2, "u = mh / (sqrt(vh) + eps) + wd w, r = norm(w)/norm(u) per layer; w -= eta r u"
        ),
    }
)
"""Names of ``optimizer.name``."""

SECOND_ORDER: Final[Mapping[str, Optimizer]] = MappingProxyType(
    {
        "newton": Optimizer(
            NewtonKeys, 1.0, 3, "solve (H + damping I) s = g; w -= a s, a = 1 halved until f decreases", True
        ),
        "lbfgs": Optimizer(
            LBFGSKeys,
            1.0,
            5,
            "d = -(two loops over the last pairs) g; w += a d, strong Wolfe search; with l1 as OWL-QN",
            full_batch=True,
            l1=Orthantwise,
        ),
    }
)
"""More names of ``optimizer.name``: methods that ask for several rounds a step. `make` holds their keys only."""


def optimizer(name: str) -> Optimizer:
    """Return the entry of a name of either table.

    Raises
    ------
    ConfError
        For an unknown name, with the nearest one.
    """
    return lookup({**OPTIMIZERS, **SECOND_ORDER}, name, family="optimizer", where="optimizer.name")


def state_vectors(name: str, parameters: int, history: int | None = None) -> int:
    """Return how many vectors of length p the state and the working memory of an optimizer hold on the driver.

    Parameters
    ----------
    name : str
    parameters : int
        p; newton holds four p x p matrices: the sum, the Hessian, its scaled form and the factor.
    history : int or None
        Of lbfgs, two vectors a pair.
    """
    extra = {"newton": 4 * parameters, "lbfgs": 2 * (history or LBFGSKeys().history)}
    return optimizer(name).vectors + extra.get(name, 0)
