"""The families of names: what exists, which keys each name uses and what null means under it.

One entry says everything that a conf has to know about an optimizer, a schedule or a strategy. The defaults stand here
a second time beside the transforms' own (`bigopt.optim.table`), because a conf must be checked without loading them; a
test keeps the two equal. `available` is False for names that are specified and known, but not built in this version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Name:
    """One name of a family.

    Parameters
    ----------
    uses : mapping
        Keys of the group that it uses, with the default that null stands for (None: decided later, or off).
    learning_rate : float or None
        Optimizers: the rate that ``schedule.learning_rate: null`` means.
    full_batch : bool
        Optimizers and schedules: needs ``batch.size: full``.
    available : bool
        False: known, and refused by name.
    l1 : bool
        Optimizers: takes ``model.l1``, by proximal steps or (lbfgs) as OWL-QN.
    searches : bool
        Optimizers and schedules: every step is a line search, which clipping and averaging do not go with.
    """

    uses: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    full_batch: bool = False
    available: bool = True
    l1: bool = False
    searches: bool = False


def _later(*keys: str) -> Name:
    return Name(dict.fromkeys(keys), available=False)


_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

OPTIMIZERS: Mapping[str, Name] = {
    "gd": Name({}, 0.01, full_batch=True, l1=True),
    "sgd": Name({}, 0.01, l1=True),
    "momentum": Name({"momentum": 0.9}, 0.01, l1=True),
    "nesterov": Name({"momentum": 0.9}, 0.01),
    "adagrad": Name({"eps": 1e-10}, 0.01, l1=True),
    "rmsprop": Name({"decay": 0.9, "eps": 1e-8}, 0.001, l1=True),
    "adadelta": Name({"rho": 0.9, "eps": 1e-6}, 1.0),
    "adam": Name(_ADAM, 0.001, l1=True),
    "adamw": Name({**_ADAM, "weight_decay": 0.01}, 0.001, l1=True),
    "amsgrad": Name(_ADAM, 0.001, l1=True),
    "adamax": Name(_ADAM, 0.002),
    "nadam": Name(_ADAM, 0.002),
    "yogi": Name({**_ADAM, "eps": 1e-3}, 0.01),
    "lion": Name({"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}, 1e-4),
    "lars": Name({"momentum": 0.9, "weight_decay": 0.0}, 0.1),
    "lamb": Name({**_ADAM, "eps": 1e-6, "weight_decay": 0.0}, 0.001),
    "newton": Name({"damping": 0.0}, 1.0, full_batch=True, searches=True),
    "lbfgs": Name({"history": 10}, 1.0, full_batch=True, l1=True, searches=True),
}

LAYERWISE = ("lars", "lamb")
"""Optimizers whose step in an entry depends on its whole layer."""

SEARCHERS = ("gd", "sgd")
"""Optimizers whose direction is -g: a line search as the schedule needs one of them."""

_ALWAYS = dict.fromkeys(("learning_rate", "unit", "scaling", "base_batch", "M", "warmup", "start_factor"))

START_FACTOR = 1.0 / 3.0
"""What ``schedule.start_factor: null`` means where there is a warm-up: torch's."""

SCHEDULES: Mapping[str, Name] = {
    "constant": Name(_ALWAYS),
    "inverse_time": Name({**_ALWAYS, "decay": 1.0}),
    "inverse_sqrt": Name({**_ALWAYS, "decay": 1.0}),
    "exponential": Name({**_ALWAYS, "gamma": None}),
    "step": Name({**_ALWAYS, "gamma": 0.1, "every": None}),
    "polynomial": Name({**_ALWAYS, "power": 1.0, "period": None}),
    "one_cycle": Name({**_ALWAYS, "pct_start": 0.3, "div": 25.0, "final_div": 1e4, "period": None}),
    "cosine": Name({**_ALWAYS, "eta_min": 0.0, "period": None, "t_mul": 1.0}),
    "exact_line_search": Name({"learning_rate": 1.0}, full_batch=True, searches=True),
    "backtracking": Name({"learning_rate": 1.0, "gamma": 0.5, "delta": 1e-4}, full_batch=True, searches=True),
}

STRATEGIES: Mapping[str, Name] = {
    "sync": Name({"compression": None, "replicas": None}),
    "backup": Name({"spares": 1, "replicas": None, "compression": None}),
    "async": Name({"every": None, "reply": "worker", "replay": None, "compression": None}),
    "ssp": Name({"bound": 3, "every": None, "replay": None, "compression": None}),
    "hogwild": Name({"write": "overwrite", "threads": None}),
    "local_sgd": Name({"replicas": None, "local_steps": 8, "local_learning_rate": None, "outer": None}),
    "downpour": Name(
        {
            "replicas": None,
            "n_fetch": 5,
            "n_push": 5,
            "local_learning_rate": None,
            "shards": 1,
            "shards_on": "driver",
            "replay": None,
            "compression": None,
        }
    ),
    "easgd": Name({"replicas": None, "every": 10, "alpha": None, "local_learning_rate": None, "replay": None}),
    "model_parallel": Name(
        {"blocks": None, "update_on": "driver", "solver": "gradient", "split": None, "micro_batches": None}
    ),
    "hybrid": Name({"replicas": None, "blocks": 2, "update_on": "driver"}),
}

LOCAL_SGD = ("local_sgd", "easgd", "hogwild")
"""Strategies whose steps are plain SGD: they take no other optimizer."""

OWN_OPTIMIZER: Mapping[str, str] = {**dict.fromkeys(LOCAL_SGD, "sgd"), "downpour": "adagrad"}
"""The optimizer of a strategy where no layer above base names one; the others take base's."""

REPLICATED = ("local_sgd", "easgd", "downpour", "hogwild")
"""Strategies with local steps: l1 and batch normalisation do not act there, and rows are where the steps are."""

COMMON: Mapping[str, tuple[str, ...]] = {"optimizer": ("clip_norm", "clip_value", "average")}
"""Keys that every name of a group may have."""

_MLP = {"hidden": None, "activation": None, "groups": None, "shortcut": None, "batchnorm": None, "init": None}
_MODEL = dict.fromkeys(("loss", "huber_delta", "l2", "l1", "intercept", "standardize", "whiten", "init", "backprop"))

MODELS: Mapping[str, Name] = {
    "linear": Name(_MODEL),
    "ridge": Name(_MODEL),
    "logistic": Name(_MODEL),
    "softmax": Name(_MODEL),
    "mlp": Name({**_MODEL, **_MLP}),
    "perceptron": Name(_MODEL),
    "svm": Name(_MODEL),
}

_ENGINE = dict.fromkeys(("workers", "device", "retries", "timeout"))

BACKENDS: Mapping[str, Name] = {
    "auto": Name({**_ENGINE, "address": None, "channel": None, "reduce": None}),
    "local": Name(_ENGINE),
    "dask": Name({**_ENGINE, "address": None, "channel": None, "reduce": None}),
    "spark": Name({**_ENGINE, "address": None, "channel": None, "reduce": None}),
}

COMPRESSIONS: Mapping[str, Name] = {
    "top_k": Name({"fraction": 0.01}),
    "random_k": Name({"fraction": 0.01}),
    "sign": Name(),
    "int8": Name(),
}
"""Gradients on the wire; all of them take ``error_feedback``."""

GROUPS: Mapping[str, Mapping[str, Name]] = {
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "strategy": STRATEGIES,
    "backend": BACKENDS,
}
"""Groups with a ``name``: changing it drops the lower layers' keys which the new one does not use."""

STRICT_GROUPS = ("optimizer", "schedule", "strategy", "backend")
"""Groups in which a key that the chosen name does not use is an error; in the others it is a notice."""

VALUES: Mapping[str, Mapping[str, bool]] = {
    "model.activation": dict.fromkeys(("identity", "sigmoid", "tanh", "relu", "softmax"), True),
    "model.loss": dict.fromkeys(
        (
            "squared",
            "huber",
            "binary_cross_entropy",
            "categorical_cross_entropy",
            "perceptron",
            "hinge",
            "squared_hinge",
        ),
        True,
    ),
    "batch.sampling": {
        **dict.fromkeys(("auto", "permuted", "block", "subset", "bernoulli", "replacement"), True),
    },
    "schedule.scaling": dict.fromkeys(("none", "linear", "sqrt", "critical"), True),
    "run.on_divergence": dict.fromkeys(("stop", "halve_rate"), True),
}
"""Plain keys that hold a name, and whether this version has it."""

INIT_RULES = ("glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "zeros")

METRICS = ("mse", "rmse", "mae", "r2", "accuracy", "log_loss", "auc", "precision", "recall", "f1", "top_k")
"""What stop.target_metric may name."""

LOSSES_OF: Mapping[str, tuple[str, ...]] = {
    "linear": ("squared", "huber"),
    "ridge": ("squared", "huber"),
    "logistic": ("binary_cross_entropy",),
    "softmax": ("categorical_cross_entropy",),
    "perceptron": ("perceptron", "hinge", "squared_hinge", "squared"),
    "svm": ("hinge", "squared_hinge", "perceptron", "squared"),
}
"""Losses that fit a model; the first is what null means. The mlp takes all."""

REGRESSION_LOSSES = ("squared", "huber")
"""Losses of numbers. All but these say that the target is classes; of these squared takes the labels -1 and +1 too."""


def later(what: str) -> str:
    """Return the message for something known that this version does not have."""
    return f"{what} is not available in this version"
