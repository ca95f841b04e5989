"""What a strategy makes of the other keys: its own optimizer, its defaults, and what it refuses."""

from __future__ import annotations

import pytest

from bigopt.config import describe_defaults, load_text
from bigopt.core.errors import ConfError


def conf(text: str, *keys: str):
    return load_text(f"model: {{name: softmax}}\n{text}", "x", list(keys))


@pytest.mark.parametrize(
    ("name", "optimizer", "rate"), [("local_sgd", "sgd", 0.01), ("easgd", "sgd", 0.01), ("downpour", "adagrad", 0.01)]
)
def test_its_own_optimizer_where_nobody_names_one(name: str, optimizer: str, rate: float) -> None:
    found = conf(f"strategy: {{name: {name}}}")
    assert (found.optimizer.name, found.schedule.learning_rate) == (optimizer, rate)
    assert f"optimizer.name = {optimizer} (default of strategy {name})" in describe_defaults(found)
    assert conf(f"strategy: {{name: {name}}}", f"optimizer.name={optimizer}").optimizer.name == optimizer


@pytest.mark.parametrize("name", ["sync", "backup", "async", "ssp"])
def test_the_others_keep_the_optimizer_of_the_conf(name: str) -> None:
    assert conf(f"strategy: {{name: {name}}}").optimizer.name == "adam"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("strategy: {name: easgd}\noptimizer: {name: adam}", "takes plain sgd steps, not adam"),
        ("strategy: {name: local_sgd}\noptimizer: {name: sgd, clip_norm: 1}", "clip_norm does not go with"),
        ("strategy: {name: local_sgd, n_push: 3}", "strategy.n_push is not used by strategy 'local_sgd'"),
        ("strategy: {name: ssp, spares: 1}", "strategy.spares is not used by strategy 'ssp'"),
        ("strategy: {name: local_sgd, outer: {name: adamm}}", "no optimizer 'adamm'"),
        ("strategy: {name: local_sgd, outer: {name: momentum, beta1: 0.9}}", "momentum does not use 'beta1'"),
        ("strategy: {name: local_sgd, outer: {name: sgd, learning_rate: fast}}", "learning_rate is fast"),
        ("strategy: {name: easgd, alpha: 1.5}", "strategy.alpha"),
    ],
)
def test_what_does_not_go_with_a_strategy(text: str, said: str) -> None:
    with pytest.raises(ConfError, match=said):
        conf(text)


@pytest.mark.parametrize("path", ["model.l1=0.1", "model.backprop=driver"])
@pytest.mark.parametrize("name", ["local_sgd", "downpour", "easgd"])
def test_local_steps_take_no_l1_and_run_where_the_rows_are(path: str, name: str) -> None:
    with pytest.raises(ConfError, match="does not go with the local steps"):
        conf(f"strategy: {{name: {name}}}", path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["strategy.name=backup"], "does not go with strategy.name=backup"),
        (["strategy.compression.name=int8"], "codes are decoded on the driver"),
        (["model.backprop=driver"], "rows are sent, not gradients"),
        (["backend.channel=off"], "workers find each other by the channel"),
        (["model.name=logistic", "optimizer.name=newton"], "newton asks for Hessians"),
    ],
)
def test_what_sums_among_workers_do_not_go_with(keys: list[str], said: str) -> None:
    text = "backend: {name: dask, reduce: workers}"
    with pytest.raises(ConfError, match=said):
        conf(text, *keys)
    assert conf(text).backend.reduce == "workers"
    assert conf("backend: {name: dask}", *keys).backend.reduce == "auto"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["backend.name=local"], "needs the resident workers of Dask, not backend.name=local"),
        (["backend.name=spark"], "needs the resident workers of Dask, not backend.name=spark"),
        (["backend.name=dask", "backend.channel=off"], "not backend.channel=off"),
        (["backend.name=dask", "strategy.n_fetch=3", "strategy.n_push=2"], "n_fetch = 3 is no multiple of n_push = 2"),
        (["backend.name=dask", "strategy.n_push=2"], "n_fetch = 5 is no multiple of n_push = 2"),
        (["backend.name=dask", "strategy.replay=updates.csv"], "there is no log to repeat"),
        (["backend.name=dask", "backend.address=scheduler.json"], "needs the scheduler's address"),
        (["backend.name=dask", "optimizer.name=lamb"], "lamb looks at whole layers"),
    ],
)
def test_what_shards_on_workers_do_not_go_with(keys: list[str], said: str) -> None:
    text = "strategy: {name: downpour, shards_on: workers}"
    with pytest.raises(ConfError, match=said):
        conf(text, *keys)
    assert conf(text, "backend.name=dask").strategy.shards_on == "workers"
