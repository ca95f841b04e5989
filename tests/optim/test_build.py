"""Names and numbers to methods: the tables, the defaults of the documents, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import numpy as np
import pytest

from bigopt.core.errors import ConfError
from bigopt.core.layout import Block, Layout
from bigopt.optim.build import build_method, build_schedule, build_transform, settings
from bigopt.optim.schedules import SCHEDULES, Constant, Cosine, Warmup
from bigopt.optim.table import OPTIMIZERS, keys_of

LAYOUT = Layout((Block("weight", (2,), True),))

DEFAULTS = {  # SPEC section 3 and the rates printed where schedule.learning_rate is null
    "gd": ({}, 0.01, "full"),
    "sgd": ({}, 0.01, 128),
    "momentum": ({"momentum": 0.9}, 0.01, 128),
    "nesterov": ({"momentum": 0.9}, 0.01, 128),
    "adagrad": ({"eps": 1e-10}, 0.01, 128),
    "rmsprop": ({"decay": 0.9, "eps": 1e-8}, 0.001, 128),
    "adadelta": ({"rho": 0.9, "eps": 1e-6}, 1.0, 128),
    "adam": ({"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, 0.001, 128),
    "adamw": ({"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}, 0.001, 128),
    "amsgrad": ({"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, 0.001, 128),
    "adamax": ({"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, 0.002, 128),
    "nadam": ({"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, 0.002, 128),
    "yogi": ({"beta1": 0.9, "beta2": 0.999, "eps": 1e-3}, 0.01, 128),
    "lion": ({"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}, 1e-4, 128),
    "lars": ({"momentum": 0.9, "weight_decay": 0.0}, 0.1, 128),
    "lamb": ({"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0}, 0.001, 128),
}


def test_table_holds_the_documented_defaults() -> None:
    assert set(OPTIMIZERS) == set(DEFAULTS)
    for name, (keys, rate, batch) in DEFAULTS.items():
        entry = OPTIMIZERS[name]
        assert settings(build_transform(name)) == keys
        assert entry.keys == tuple(keys)
        assert (entry.learning_rate, entry.batch) == (rate, batch)
        assert build_method(name, LAYOUT).schedule == Constant(rate)


def test_formulas_of_the_table_are_those_of_the_docstrings() -> None:
    for entry in OPTIMIZERS.values():
        text = " ".join(inspect.getdoc(entry.make).split())
        last = entry.formula.split(", g over")[0].split("; ")[-1]
        assert last in text


def test_schedules_use_the_keys_of_the_conf() -> None:
    assert {name: keys_of(cls) for name, cls in SCHEDULES.items()} == {
        "constant": ("learning_rate",),
        "inverse_time": ("learning_rate", "decay"),
        "inverse_sqrt": ("learning_rate", "decay"),
        "exponential": ("learning_rate", "gamma"),
        "step": ("learning_rate", "every", "gamma"),
        "polynomial": ("learning_rate", "period", "power"),
        "one_cycle": ("learning_rate", "period", "pct_start", "div", "final_div"),
        "cosine": ("learning_rate", "period", "t_mul", "eta_min"),
    }


def test_tables_and_values_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        OPTIMIZERS["mine"] = OPTIMIZERS["sgd"]
    with pytest.raises(TypeError):
        SCHEDULES["mine"] = Constant
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_transform("adam").beta1 = 0.5


def test_given_values_are_used_and_null_means_the_default() -> None:
    method = build_method(
        "adam",
        LAYOUT,
        keys={"beta1": 0.5, "eps": None, "momentum": None},
        schedule="cosine",
        schedule_keys={"learning_rate": 0.2, "t_mul": 1.5, "gamma": None},
        default_period=12,
        unit="epoch",
    )
    assert settings(method.transform) == {"beta1": 0.5, "beta2": 0.999, "eps": 1e-8}
    assert method.schedule == Cosine(0.2, 12.0, 1.5, 0.0)
    assert method.unit == "epoch"
    assert build_schedule("cosine", {"period": 3}, default_rate=0.1, default_period=12).period == 3.0


def test_warm_up_through_the_keys_of_a_conf() -> None:
    keys = {"learning_rate": 0.2, "warmup": 5, "start_factor": None, "M": None, "decay": None}
    method = build_method("sgd", LAYOUT, schedule_keys=keys)
    assert method.schedule == Warmup(Constant(0.2), 5.0, 1 / 3)


def test_numpy_numbers_become_plain_floats() -> None:
    transform = build_transform("momentum", {"momentum": np.float64(0.5)})
    assert type(transform.momentum) is float


@pytest.mark.parametrize(
    ("arguments", "where", "text"),
    [
        ({"name": "adm"}, "optimizer.name", "unknown optimizer 'adm' (did you mean 'adam'?)"),
        (
            {"keys": {"beta_1": 0.9}},
            "optimizer.beta_1",
            "optimizer 'adam' does not use this key (did you mean 'beta1'?)",
        ),
        (
            {"name": "sgd", "keys": {"momentum": 0.9}},
            "optimizer.momentum",
            "'sgd' does not use this key (sgd has no keys",
        ),
        ({"keys": {"beta1": 1.0}}, "optimizer.beta1", "1 is not in [0, 1)"),
        ({"keys": {"eps": 0}}, "optimizer.eps", "0 is not in (0, inf)"),
        ({"keys": {"eps": "tiny"}}, "optimizer.eps", "'tiny' is not a number"),
        ({"schedule": "cosin"}, "schedule.name", "unknown schedule 'cosin' (did you mean 'cosine'?)"),
        ({"schedule_keys": {"decay": 1.0}}, "schedule.decay", "schedule 'constant' does not use this key"),
        ({"schedule_keys": {"learning_rate": -1.0}}, "schedule.learning_rate", "-1 is not in (0, inf)"),
        ({"schedule": "cosine"}, "schedule.period", "null means the run's length, and this run has none"),
        ({"unit": "epochs"}, "schedule.unit", "unknown unit 'epochs' (did you mean 'epoch'?)"),
    ],
)
def test_refusals(arguments, where, text) -> None:
    with pytest.raises(ConfError) as caught:
        build_method(**{"name": "adam", "layout": LAYOUT, **arguments})
    assert caught.value.where == where
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_imports_with_numpy_alone() -> None:
    code = (
        "import sys, bigopt.optim.build; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'zarr', 'msgspec', 'yaml', 'click', 'torch', 'scipy'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
