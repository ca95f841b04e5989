"""Layers: who wins, what un-sets what, what is dropped, where a key came from; resume; the spark-submit rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigopt.config import choose_backend, conf_hash, fill, load_conf, load_text, resume_conf, to_yaml
from bigopt.core.errors import ConfError


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_base_file_file_command_line(tmp_path: Path) -> None:
    low = _write(tmp_path / "low.yml", "run: {seed: 1, dir: a}\nmodel:\n  l2: 0.1\n")
    high = _write(tmp_path / "high.yml", "\nrun: {seed: 2}\n")
    conf = load_conf([low, high], ["model.l2=0.5"])
    assert (conf.run.seed, conf.run.dir, conf.model.l2, conf.run.dtype) == (2, "a", 0.5, "float64")
    assert conf.origin("run.seed") == f"{high}:2"
    assert conf.origin("run.dir") == f"{low}:1"
    assert conf.origin("model.l2") == "command line"
    assert conf.origin("run.dtype") == "base"
    assert conf.origin("optimizer.beta1") == "default of adam"
    assert conf.error("run.dir", "x").where == f"{low}:1"
    assert conf.error("run.dtype", "x").where == "run.dtype"
    assert conf.error("optimizer.beta1", "x").where == "optimizer.beta1"


def test_the_conf_of_the_issue() -> None:
    text = """
data:       {uri: data/primary/flights.zarr, target: arr_delay, memory: 2GB}
model:      {name: mlp, hidden: [128], activation: relu, l2: 0.0, standardize: true}
optimizer:  {name: adam}
schedule:   {name: constant, learning_rate: 0.001}
batch:      {size: 128}
backend:    {name: local, workers: 2}
stop:       {epochs: 5}
run:        {dir: data/runs, seed: 0}
"""
    conf = load_text(text, "flights.yml", ["backend.name=dask", "backend.workers=2", "optimizer.name=adam"])
    assert (conf.backend.name, conf.backend.workers, conf.data.target) == ("dask", 2, "arr_delay")
    assert conf.notices == ()


def test_groups_lists_and_mappings_on_the_command_line() -> None:
    conf = load_text(
        "", "x", ["schedule={name: cosine, period: 5}", "model.hidden=[64, 32]", "stop.target_metric={r2: 0.9}"]
    )
    assert (conf.schedule.name, conf.schedule.period, conf.model.hidden) == ("cosine", 5.0, (64, 32))
    assert conf.stop.target_metric == {"r2": 0.9}
    assert load_text("", "x", ["model.hidden=[]"]).model.hidden == ()
    assert load_text("", "x", ["ingest.where=a > 1 # b: c"]).ingest.where == "a > 1 # b: c"
    assert load_text("", "x", ["data.uri=s3://bucket/a=b c"]).data.uri == "s3://bucket/a=b c"
    assert load_text("", "x", ["data.target='010'"]).data.target == "010"


def test_a_part_of_a_mapping_replaces_that_part() -> None:
    text = "data: {storage_options: {anon: true, client_kwargs: {region_name: a, x: 1}}}"
    conf = load_text(text, "x", ["data.storage_options.client_kwargs.region_name=b"])
    assert conf.data.storage_options == {"anon": True, "client_kwargs": {"region_name": "b", "x": 1}}
    assert (
        load_text("data: {storage_options: {anon: true}}", "x", ["data.storage_options={}"]).data.storage_options == {}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.name", "'optimizer.name' is not key=value"),
        ("=3", "'=3' is not key=value"),
        ("model l2=3", "'model l2=3' is not key=value"),
        ("model.l2=", "model.l2= has no value"),
        ("l2=3", "unknown key 'l2'"),
        ("model.l2.x=3", "unknown key 'model.l2.x'"),
        ("modl.l2=3", "unknown key 'modl.l2'"),
        ("model=3", "model is 3, expected its keys"),
        ("model.hidden=[1", "not YAML"),
        ("model.hidden=&a [1]", "a YAML anchor"),
    ],
)
def test_bad_arguments(text: str, message: str) -> None:
    with pytest.raises(ConfError) as caught:
        load_text("", "x", [text])
    assert caught.value.exit_code == 2
    assert caught.value.where == "command line"
    assert caught.value.message.startswith(message)


def test_a_key_given_twice_on_the_command_line() -> None:
    with pytest.raises(ConfError, match=r"model.l2 is given twice"):
        load_text("", "x", ["model.l2=1", "model.l2=1"])
    with pytest.raises(ConfError, match=r"model.l2 is given twice"):
        load_text("", "x", ["model={l2: 1}", "model.l2=1"])


@pytest.mark.parametrize(
    ("file", "arguments", "limits"),
    [
        ("", [], (5, None, None)),
        ("", ["stop.steps=200"], (None, 200, None)),
        ("stop: {steps: 7}", [], (None, 7, None)),
        ("stop: {steps: 7}", ["stop.epochs=2"], (2, None, None)),
        ("stop: {steps: 7}", ["stop.steps=null", "stop.seconds=9"], (None, None, 9.0)),
        ("stop: {steps: 7, seconds: 9}", [], (None, 7, 9.0)),
        ("stop: {steps: 7, seconds: 9}", ["stop.steps=null"], (None, None, 9.0)),
        ("stop: {steps: 7, seconds: 9}", ["stop.epochs=1", "stop.steps=3"], (1, 3, None)),
        ("stop: {epochs: 3, steps: null}", [], (3, None, None)),
        ("stop: {target_loss: 0.1}", [], (5, None, None)),
        ("stop: {seconds: null}", ["stop.steps=null"], (5, None, None)),
    ],
)
def test_a_limit_un_sets_the_limits_below(file: str, arguments: list[str], limits: tuple[object, ...]) -> None:
    stop = load_text(file, "x", arguments).stop
    assert (stop.epochs, stop.steps, stop.seconds) == limits


def test_no_limit_at_all() -> None:
    with pytest.raises(ConfError) as caught:
        load_text("run: {}\nstop:\n  epochs: null\n", "x.yml")
    assert (caught.value.exit_code, caught.value.where) == (2, "x.yml:3")
    with pytest.raises(ConfError) as caught:
        load_text("stop: {steps: 3}", "x.yml", ["stop.steps=null"])
    assert caught.value.where == "command line"


def test_a_changed_name_drops_what_the_new_one_does_not_use() -> None:
    text = "optimizer:\n  name: nesterov\n  momentum: 0.95\nschedule: {name: cosine, period: 9, learning_rate: 0.1}\n"
    conf = load_text(text, "x.yml", ["optimizer.name=adam", "schedule.name=constant"])
    assert conf.optimizer.momentum is None
    assert (conf.schedule.period, conf.schedule.learning_rate) == (None, 0.1)
    assert conf.notices == (
        "optimizer.momentum: 0.95 (x.yml:3) is dropped: optimizer 'adam' does not use it",
        "schedule.period: 9 (x.yml:4) is dropped: schedule 'constant' does not use it",
    )


def test_a_changed_name_keeps_what_the_new_one_uses() -> None:
    conf = load_text("optimizer: {name: nesterov, momentum: 0.95}", "x", ["optimizer.name=momentum"])
    assert (conf.optimizer.momentum, conf.notices) == (0.95, ())
    conf = load_text("optimizer: {name: lion, beta1: 0.8}", "x", ["optimizer.name=adam"])
    assert (conf.optimizer.beta1, conf.notices) == (0.8, ())
    conf = load_text("model: {name: mlp, hidden: [3], l2: 0.1}", "x", ["model.name=ridge"])
    assert (conf.model.l2, conf.model.hidden) == (0.1, (128,))
    assert conf.notices == ("model.hidden: [3] (x:1) is dropped: model 'ridge' does not use it",)
    conf = load_text("backend: {name: dask, address: tcp://a:1, workers: 3}", "x", ["backend.name=local"])
    assert (conf.backend.address, conf.backend.workers) == (None, 3)


@pytest.mark.parametrize(
    ("file", "arguments", "where"),
    [
        ("optimizer: {name: adam, momentum: 0.9}", [], "x:1"),
        ("optimizer:\n  momentum: 0.9", [], "x:2"),
        ("optimizer: {name: adam, momentum: 0.9}", ["optimizer.name=adam"], "x:1"),
        ("optimizer: {name: sgd}", ["optimizer.momentum=0.9"], "command line"),
        ("optimizer: {name: momentum}", ["optimizer.name=adam", "optimizer.momentum=0.9"], "command line"),
    ],
)
def test_an_unused_key_on_the_same_or_a_higher_layer(file: str, arguments: list[str], where: str) -> None:
    with pytest.raises(ConfError) as caught:
        load_text(file, "x", arguments)
    assert caught.value.exit_code == 2
    assert caught.value.where == where
    assert caught.value.message.startswith("optimizer.momentum is not used by optimizer '")


def test_null_for_an_unused_key_says_nothing() -> None:
    assert load_text("optimizer: {name: adam, momentum: null, history: ~}", "x").notices == ()


def test_lower_layers_are_checked_too(tmp_path: Path) -> None:
    low = _write(tmp_path / "low.yml", "optimizer: {name: adamm}")
    with pytest.raises(ConfError) as caught:
        load_conf([low], ["optimizer.name=adam"])
    assert caught.value.where == f"{low}:1"


def test_fill_notes_why() -> None:
    conf = fill(load_text("", "x"), {"model.loss": "squared", "batch.lanes": 4}, "a float target")
    assert (conf.model.loss, conf.batch.lanes) == ("squared", 4)
    assert conf.origin("model.loss") == "default of a float target"
    with pytest.raises(ConfError):
        fill(conf, {"batch.lanes": -4}, "nothing")


@pytest.mark.parametrize(
    "argument",
    ["backend.name=dask", "backend.workers=3", "stop.epochs=10", "stop.steps=7", "checkpoint.keep=1", "run.bits=any",
     "data.storage_options={anon: true}", "data.storage_options.key=secret"],
)  # fmt: skip
def test_what_a_resumed_run_may_change(argument: str, tmp_path: Path) -> None:
    conf = load_text("data: {uri: a.zarr}\noptimizer: {name: sgd}", "x")
    saved = _write(tmp_path / "conf.yml", to_yaml(conf))
    again = resume_conf(saved, [argument])
    assert conf_hash(again) == conf_hash(conf)
    assert to_yaml(again) != to_yaml(conf) or "key" in argument


@pytest.mark.parametrize(
    ("argument", "difference"),
    [
        ("schedule.learning_rate=0.5", "schedule.learning_rate: 0.01 -> 0.5"),
        ("data.uri=b.zarr", "data.uri: a.zarr -> b.zarr"),
        ("run.dtype=float32", "run.dtype: float64 -> float32"),
        ("run.seed=1", "run.seed: 0 -> 1"),
        ("batch.size=64", "batch.size: 128 -> 64"),
        ("ingest.partition_rows=10", "ingest.partition_rows: null -> 10"),
        ("optimizer.name=adam", "optimizer.name: sgd -> adam"),
    ],
)
def test_what_a_resumed_run_may_not_change(argument: str, difference: str, tmp_path: Path) -> None:
    saved = _write(tmp_path / "conf.yml", to_yaml(load_text("data: {uri: a.zarr}\noptimizer: {name: sgd}", "x")))
    with pytest.raises(ConfError) as caught:
        resume_conf(saved, [argument])
    assert caught.value.exit_code == 2
    assert caught.value.where == "command line"
    assert difference in caught.value.message


def test_backend_under_spark_submit() -> None:
    assert choose_backend(load_text("", "x"), under_spark=False) == ("local", "")
    assert choose_backend(load_text("", "x"), under_spark=True)[0] == "spark"
    assert choose_backend(load_text("backend: {name: spark}", "x"), under_spark=True) == ("spark", "")
    for name in ("local", "dask"):
        conf = load_text(f"\nbackend: {{name: {name}}}", "x.yml")
        assert choose_backend(conf, under_spark=False) == (name, "")
        chosen, notice = choose_backend(conf, under_spark=True)
        assert chosen == "spark"
        assert f"backend.name: {name} (x.yml:2) gives way" in notice
        with pytest.raises(ConfError) as caught:
            choose_backend(load_text("", "x", [f"backend.name={name}"]), under_spark=True)
        assert (caught.value.exit_code, caught.value.where) == (2, "command line")
