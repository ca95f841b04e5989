"""Keys that belong together, names of later versions, and what null becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigopt.config import describe_defaults, load_text, names
from bigopt.core.errors import ConfError


@pytest.mark.parametrize(
    "text", [f"{group}: {{name: {n}}}" for group in ("optimizer", "strategy") for n in list(names.GROUPS[group])[:2]]
)
def test_what_a_later_version_has_is_refused_by_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group, name = text.partition(":")[0], text.split()[-1].rstrip("}")
    monkeypatch.setitem(names.GROUPS[group], name, names.Name(available=False))  # type: ignore[arg-type]
    with pytest.raises(ConfError) as caught:
        load_text(f"\n{text}\n", "x.yml")
    assert caught.value.exit_code == 2
    assert caught.value.where == "x.yml:2"
    assert caught.value.message.endswith(" is not available in this version")
    path = text.replace("{", "").replace("}", "").split(": ")
    assert path[1] in caught.value.message
    assert path[-1] in caught.value.message


SPECIFIED = {
    "model": "linear ridge logistic softmax mlp perceptron svm",
    "optimizer": "gd sgd momentum nesterov adagrad rmsprop adadelta adam adamw amsgrad adamax nadam yogi lion lars "
    "lamb newton lbfgs",
    "schedule": "constant inverse_time inverse_sqrt exponential step polynomial one_cycle cosine exact_line_search "
    "backtracking",
    "strategy": "sync backup async ssp hogwild local_sgd downpour easgd model_parallel hybrid",
    "backend": "auto local dask spark",
}


def test_the_names_of_the_specification_are_all_known() -> None:
    for group, listed in SPECIFIED.items():
        assert sorted(names.GROUPS[group]) == sorted(listed.split())
    samplings = "permuted subset bernoulli replacement block auto"
    assert sorted(names.VALUES["batch.sampling"]) == sorted(samplings.split())


def test_a_file_or_run_as_init(tmp_path: Path) -> None:
    saved = tmp_path / "w.npy"
    assert load_text(f"model: {{init: {saved}}}", "x").model.init == str(saved)
    assert load_text(f"model: {{init: {tmp_path}}}", "x").model.init == str(tmp_path)
    with pytest.raises(ConfError, match="neither a rule, nor a run directory"):
        load_text(f"model: {{init: {saved}x}}", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optimizer: {name: gd}\nbatch: {size: 64}",
            "optimizer 'gd' takes all rows in every step, but batch.size is 64",
        ),
        ("schedule: {name: constant, decay: 1}", "schedule.decay is not used by schedule 'constant'"),
        ("schedule: {period: 1}", "schedule.period is not used by schedule 'constant'"),
        ("schedule: {start_factor: 0.5}", "schedule.start_factor without a warm-up"),
        ("strategy: {bound: 1}", "strategy.bound is not used by strategy 'sync'"),
        ("strategy: {replicas: 2}", "strategy.replicas is not used by strategy 'sync'"),
        ("strategy: {compression: {fraction: 0.1}}", "strategy.compression.fraction is not used by"),
        ("strategy: {compression: {name: sign, fraction: 0.1}}", "strategy.compression.fraction is not used by"),
        ("strategy: {compression: {error_feedback: false}}", "strategy.compression.error_feedback is not used by"),
        ("strategy: {name: local_sgd, compression: {name: sign}}", "strategy.compression.name is not used by"),
        ("strategy: {name: hogwild, compression: {name: sign}}", "strategy.compression.name is not used by"),
        ("backend: {name: local, address: tcp://a}", "backend.address is not used by backend 'local'"),
        ("schedule: {name: cosine, eta_min: 0.01}", "schedule.eta_min 0.01 is above learning_rate 0.001"),
        ("data: {target: y, features: [x, y]}", "'y' is both in data.features and data.target"),
        ("data: {weight: w, features: [x, w]}", "'w' is both in data.features and data.weight"),
        ("data: {weight: y, target: y}", "'y' is both data.weight and data.target"),
        ("data: {features: [x, x]}", "data.features names 'x' twice"),
        ("data: {target: [x, x]}", "data.target names 'x' twice"),
        ("data: {classes: [1]}", "data.classes names 1 of at least two classes"),
        ("data: {classes: [1, 1.0]}", "data.classes names 1.0 twice"),
        ("data: {classes: [1, a]}", "data.classes mixes number and text"),
        ("data: {classes: [1, true]}", "data.classes mixes boolean and number"),
        ("data: {classes: [a, b], task: regression}", "data.classes under data.task: regression"),
        ("model: {name: ridge, loss: binary_cross_entropy}", "ridge has no loss 'binary_cross_entropy'"),
        ("model: {name: softmax, loss: squared}", "softmax has no loss 'squared'"),
        (
            "model: {name: ridge}\ndata: {task: classification}",
            "data.task: classification, but ridge is for regression",
        ),
        ("model: {name: logistic}\ndata: {task: regression}", "data.task: regression, but logistic is for"),
        (
            "model: {loss: binary_cross_entropy}\ndata: {task: regression}",
            "loss 'binary_cross_entropy' under data.task",
        ),
        ("model: {hidden: [8, 4], groups: [2]}", "model.groups has 1 numbers for 3 layers"),
        ("stop: {target_metric: {r2: 0.9, mse: 1}}", "stop.target_metric has 2 metrics, expected one"),
        ("stop: {target_metric: {}}", "stop.target_metric has 0 metrics, expected one"),
    ],
)
def test_contradictions(text: str, message: str) -> None:
    with pytest.raises(ConfError) as caught:
        load_text(text, "x.yml")
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(message)
    assert caught.value.where.startswith("x.yml:")


RATES = {
    "gd": 0.01, "sgd": 0.01, "momentum": 0.01, "nesterov": 0.01, "adagrad": 0.01, "rmsprop": 0.001, "adadelta": 1.0,
    "adam": 0.001, "adamw": 0.001, "amsgrad": 0.001, "adamax": 0.002, "nadam": 0.002, "yogi": 0.01, "lion": 0.0001,
    "lars": 0.1, "lamb": 0.001,
}  # fmt: skip


@pytest.mark.parametrize(("name", "rate"), RATES.items())
def test_null_is_the_default_of_what_was_chosen(name: str, rate: float) -> None:
    conf = load_text(f"optimizer: {{name: {name}}}", "x")
    assert conf.schedule.learning_rate == rate
    assert conf.batch.size == ("full" if name == "gd" else 128)
    assert f"schedule.learning_rate = {rate} (default of {name})" in describe_defaults(conf)
    given = load_text(f"optimizer: {{name: {name}}}\nschedule: {{learning_rate: 0.5}}", "x")
    assert given.schedule.learning_rate == 0.5
    assert not any(line.startswith("schedule.learning_rate") for line in describe_defaults(given))


@pytest.mark.parametrize("name", sorted(n for n, e in names.SCHEDULES.items() if e.available and not e.searches))
def test_a_warm_up_goes_with_every_schedule(name: str) -> None:
    conf = load_text(f"schedule: {{name: {name}, warmup: 10}}", "x")
    assert (conf.schedule.warmup, conf.schedule.start_factor) == (10.0, 1 / 3)
    assert any(line.startswith("schedule.start_factor = 0.333") for line in describe_defaults(conf))
    conf = load_text(f"schedule: {{name: {name}, warmup: 10, start_factor: 0.1}}", "x")
    assert conf.schedule.start_factor == 0.1
    assert load_text(f"schedule: {{name: {name}}}", "x").schedule.start_factor is None


@pytest.mark.parametrize("name", sorted(n for n, e in names.OPTIMIZERS.items() if e.available and not e.searches))
def test_parts_that_go_with_every_optimizer(name: str) -> None:
    conf = load_text(f"optimizer: {{name: {name}, clip_norm: 1, clip_value: 0.5, average: 0.9}}", "x")
    assert (conf.optimizer.clip_norm, conf.optimizer.clip_value, conf.optimizer.average) == (1.0, 0.5, 0.9)
    assert load_text(f"optimizer: {{name: {name}, average: true}}", "x").optimizer.average is True


@pytest.mark.parametrize(
    "text",
    [
        *(f"optimizer: {{name: {n}}}" for n, entry in names.OPTIMIZERS.items() if entry.searches),
        *(f"optimizer: {{name: gd}}\nschedule: {{name: {n}}}" for n, e in names.SCHEDULES.items() if e.searches),
    ],
)
def test_what_does_not_go_with_a_line_search_in_every_step(text: str) -> None:
    model = "model: {name: logistic}\n"
    conf = load_text(model + text, "x.yml")
    assert (conf.batch.size, conf.schedule.learning_rate) == ("full", 1.0)
    with pytest.raises(ConfError, match="takes all rows in every step, but batch.size is 32"):
        load_text(f"{model}{text}\nbatch: {{size: 32}}", "x.yml")
    for part in ("clip_norm: 1", "clip_value: 1", "average: true"):
        with pytest.raises(ConfError, match="does not go with the line search of"):
            load_text(model + text.replace("}", f", {part}}}", 1), "x.yml")
    penalised = f"model: {{name: logistic, l1: 0.1}}\n{text}"
    if "lbfgs" in text:  # takes it as OWL-QN
        assert load_text(penalised, "x.yml").model.l1 == 0.1
    else:
        with pytest.raises(ConfError, match="has no l1 penalty"):
            load_text(penalised, "x.yml")


@pytest.mark.parametrize("schedule", sorted(n for n, e in names.SCHEDULES.items() if e.searches))
@pytest.mark.parametrize("name", ["adam", "momentum", "lbfgs"])
def test_a_line_search_as_the_schedule_needs_the_gradient_as_direction(name: str, schedule: str) -> None:
    with pytest.raises(ConfError, match=f"optimizer '{name}' does not follow") as caught:
        load_text(f"optimizer: {{name: {name}}}\nschedule: {{name: {schedule}}}", "x.yml")
    assert ("line search of its own" in caught.value.hint) == (name == "lbfgs")


def test_newton_is_refused_for_the_mlp_by_name() -> None:
    with pytest.raises(ConfError, match="newton needs the Hessian, which only the linear family forms") as caught:
        load_text("model: {name: mlp}\noptimizer: {name: newton}", "x.yml")
    assert caught.value.exit_code == 2
    assert "lbfgs" in caught.value.hint


def test_l1_is_refused_by_name_where_there_is_no_proximal_step() -> None:
    assert load_text("model: {l1: 0.1}", "x").model.l1 == 0.1
    for name, entry in names.OPTIMIZERS.items():
        if entry.available and not entry.l1:
            with pytest.raises(ConfError, match=f"optimizer '{name}' has no l1 penalty") as caught:
                load_text(f"optimizer: {{name: {name}}}\nmodel: {{l1: 0.1}}", "x.yml")
            assert (caught.value.where, caught.value.exit_code) == ("x.yml:2", 2)


def test_full_batches_are_welcome_everywhere() -> None:
    assert load_text("batch: {size: full}", "x").batch.size == "full"
    assert load_text("optimizer: {name: gd}\nbatch: {size: full}", "x").batch.size == "full"


def test_loss_of_a_model() -> None:
    chosen = {
        name: load_text(f"model: {{name: {name}}}", "x").model.loss
        for name in ("linear", "ridge", "logistic", "softmax", "mlp")
    }
    assert chosen == {
        "linear": "squared", "ridge": "squared", "logistic": "binary_cross_entropy",
        "softmax": "categorical_cross_entropy", "mlp": None,
    }  # fmt: skip


def test_keys_a_model_does_not_use_are_a_notice() -> None:
    conf = load_text("model:\n  name: ridge\n  activation: tanh\n  huber_delta: 2\n", "x")
    assert conf.notices == (
        "model.activation (x:3) is not used by ridge",
        "model.huber_delta (x:4) is used by the huber loss only",
    )


def test_groups_with_or_without_the_output_layer() -> None:
    for groups in ("2", "[2, 2]", "[2, 2, 1]", "null"):
        load_text(f"model: {{hidden: [8, 4], groups: {groups}}}", "x")
