"""Types, ranges and sizes of single values, each refused with its line and what is expected."""

from __future__ import annotations

import pytest

from bigopt.config import load_text, values
from bigopt.config.table import Tree
from bigopt.core.errors import ConfError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("1.5GB", 1_500_000_000),
        ("64KiB", 65536),
        ("2MiB", 2 * 1024**2),
        ("3 TB", 3 * 10**12),
        ("1GiB", 1024**3),
        ("7KB", 7000),
        ("12B", 12),
        ("1000000", 10**6),
        ("1e6", 10**6),
    ],
)
def test_sizes(text: str, size: int) -> None:
    conf = load_text(f"data: {{memory: {text}}}", "a.yml")
    assert conf.data.memory == size
    assert type(conf.data.memory) is int
    assert values.parse_size(values.size_text(size)) == size or values.size_text(size) == str(size)


@pytest.mark.parametrize(
    "text", ["2gb", "GB", "2G", "-2GB", "1.0001KB0", "0.5B", "'2000'", "0", "-1", "true", "[2GB]", "2 000 MB", "null"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfError) as caught:
        load_text(f"data:\n  memory: {text}", "a.yml")
    assert caught.value.exit_code == 2
    assert caught.value.where == "a.yml:2"
    assert caught.value.message.startswith("data.memory is ")
    assert "a size such as 2GB" in caught.value.message


WRONG = [
    ("model.l2", "-0.1", "a number >= 0"),
    ("model.l2", "'0.1'", "a number >= 0"),
    ("model.l2", "true", "a number >= 0"),
    ("model.l2", "null", "a number >= 0"),
    ("model.huber_delta", "0", "a number > 0"),
    ("model.hidden", "128", "a list of integers >= 1"),
    ("model.hidden", "{a: 1}", "a list of integers >= 1"),
    ("model.intercept", "1", "true or false"),
    ("model.intercept", "yes", "true or false"),
    ("model.standardize", "scale", "true, false or 'center'"),
    ("model.backprop", "worker", "'driver' or 'map'"),
    ("optimizer.momentum", "1", "a number >= 0 and < 1 or null"),
    ("optimizer.momentum", "1.5", "a number >= 0 and < 1 or null"),
    ("optimizer.momentum", "-0.1", "a number >= 0 and < 1 or null"),
    ("optimizer.beta2", "1.0", "a number >= 0 and < 1 or null"),
    ("optimizer.eps", "0", "a number > 0 or null"),
    ("optimizer.name", "7", "text"),
    ("schedule.learning_rate", "0", "a number > 0, 'auto' or null"),
    ("schedule.learning_rate", "-1e-3", "a number > 0, 'auto' or null"),
    ("schedule.t_mul", "0.5", "a number >= 1 or null"),
    ("schedule.unit", "round", "'epoch' or 'step'"),
    ("batch.size", "0", "an integer >= 1, 'full' or null"),
    ("batch.size", "12.5", "an integer >= 1, 'full' or null"),
    ("batch.size", "all", "an integer >= 1, 'full' or null"),
    ("batch.lanes", "-1", "an integer >= 0 or null"),
    ("backend.workers", "0", "an integer >= 1 or null"),
    ("backend.retries", "-1", "an integer >= 0"),
    ("backend.timeout", "0", "a number > 0"),
    ("backend.device", "cuda", "'auto', 'cpu' or 'gpu'"),
    ("stop.epochs", "0", "a number > 0 or null"),
    ("stop.steps", "-3", "an integer >= 1 or null"),
    ("stop.target_metric", "0.9", "a mapping or null"),
    ("stop.target_metric", "{accuracy: high}", "a mapping or null"),
    ("checkpoint.keep", "0", "an integer >= 1"),
    ("run.seed", "-1", "an integer >= 0"),
    ("run.seed", "99999999999999999999", "an integer >= 0"),
    ("run.dtype", "float16", "'float32' or 'float64'"),
    ("run.bits", "some", "'any' or 'strict'"),
    ("data.validation", "1.0", "a number > 0 and < 1, text or null"),
    ("data.validation", "0", "a number > 0 and < 1, text or null"),
    ("data.validation", "''", "a number > 0 and < 1, text or null"),
    ("data.features", "[]", "a list of text or null"),
    ("data.features", "a", "a list of text or null"),
    ("data.task", "ranking", "'classification', 'regression' or null"),
    ("data.uri", "7", "text or null"),
    ("data.storage_options", "[]", "a mapping"),
    ("data.scratch", "/tmp", "a mapping with dir, size or null"),
    ("ingest.partition_rows", "0", "an integer >= 1, a list of integers >= 1 or null"),
    ("ingest.format", "csv", "'parquet', 'zarr' or null"),
]


@pytest.mark.parametrize(("path", "text", "expected"), WRONG)
def test_wrong_type_or_out_of_range(path: str, text: str, expected: str) -> None:
    group, _, key = path.partition(".")
    with pytest.raises(ConfError) as caught:
        load_text(f"# a conf\n{group}:\n  {key}: {text}\n", "a.yml")
    assert caught.value.exit_code == 2
    assert caught.value.where == "a.yml:3"
    assert caught.value.message.startswith(f"{path} is ")
    assert caught.value.message.endswith(f", expected {expected}")
    with pytest.raises(ConfError) as caught:
        load_text("", "a.yml", [f"{path}={text}"])
    assert caught.value.where == "command line"


def test_the_culprit_in_a_list_or_mapping_has_its_own_line() -> None:
    with pytest.raises(ConfError) as caught:
        load_text("model:\n  hidden:\n    - 3\n    - 2\n    - x\n", "a.yml")
    assert (caught.value.where, caught.value.message) == ("a.yml:5", "model.hidden[2] is x, expected an integer >= 1")
    with pytest.raises(ConfError) as caught:
        load_text("data:\n  scratch:\n    dir: /tmp\n    size: much\n", "a.yml")
    assert caught.value.where == "a.yml:4"
    assert caught.value.message == "data.scratch.size is much, expected a size such as 2GB"
    with pytest.raises(ConfError) as caught:
        load_text("data: {scratch: {dir: /tmp}}", "a.yml")
    assert caught.value.message == "data.scratch lacks 'size'"


def test_hints_say_what_to_write() -> None:
    for text, hint in [
        ("model: {intercept: no}", "write false"),
        ("model: {l2: '0.1'}", "a number in quotes, or with underscores, is text"),
        ("batch: {size: 1_000}", "a number in quotes, or with underscores, is text"),
        ("run: {seed: 99999999999999999999}", "an integer has 64 bits"),
    ]:
        with pytest.raises(ConfError) as caught:
            load_text(text, "a.yml")
        assert caught.value.hint == hint


def test_numbers_become_what_the_key_holds() -> None:
    conf = load_text("stop: {steps: 1e3, seconds: 60}\nmodel: {l2: 1, hidden: [2e1]}\nbatch: {size: 64.0}", "a.yml")
    assert (conf.stop.steps, conf.stop.seconds, conf.model.l2, conf.batch.size) == (1000, 60.0, 1.0, 64)
    assert [type(v) for v in (conf.stop.steps, conf.stop.seconds, conf.model.l2, conf.batch.size)] == [
        int, float, float, int
    ]  # fmt: skip
    assert conf.model.hidden == (20,)
    assert load_text("stop: {epochs: 0.5}", "a.yml").stop.epochs == 0.5


@pytest.mark.parametrize("path", list(values.leaves()))
def test_every_key_has_a_type_in_words_a_comment_and_a_fitting_default(path: str) -> None:
    from bigopt.config.layers import as_node

    assert values.comment(path)
    assert len(values.comment(path)) < (
        220 if values.comment(path).count(" | ") > 5 else 110
    )  # lists of names may wrap
    assert values.expects(path)
    assert values.convert(path, as_node(values.default(path), "here")) == values.default(path)


def test_the_keys_are_those_of_the_contract() -> None:
    contract = {
        "data": "uri target features weight task classes class_weight validation dtype index_base memory scratch "
        "block_rows unknown on_bad_rows storage_options",
        "ingest": "source columns join derive where encode nulls out format partition_rows",
        "model": "name hidden activation groups shortcut batchnorm loss huber_delta l2 l1 intercept standardize whiten "
        "init backprop",
        "optimizer": "name momentum beta1 beta2 eps decay rho weight_decay clip_norm clip_value average damping "
        "history",
        "schedule": "name learning_rate decay gamma every power eta_min period t_mul warmup start_factor pct_start div "
        "final_div delta M unit scaling base_batch",
        "batch": "size sampling lanes growth",
        "strategy": "name replicas bound local_steps n_fetch n_push local_learning_rate update_on solver shards "
        "shards_on alpha every spares split blocks micro_batches write threads reply outer replay compression",
        "strategy.compression": "name fraction error_feedback",
        "backend": "name workers device address retries timeout channel reduce",
        "stop": "epochs steps seconds target_loss target_metric tolerance patience",
        "checkpoint": "every_seconds every_epochs every_steps keep",
        "run": "dir seed dtype bits kernels audit on_divergence metrics_every_steps",
    }
    assert values.groups() == {group: tuple(keys.split()) for group, keys in contract.items()}


def test_the_defaults_are_those_of_the_contract() -> None:
    t = Tree()
    assert (t.model.name, t.model.hidden, t.model.activation, t.model.init) == ("mlp", (128,), "relu", "glorot_uniform")
    assert (t.optimizer.name, t.schedule.name, t.schedule.unit, t.schedule.scaling) == (
        "adam",
        "constant",
        "step",
        "none",
    )
    assert (t.batch.size, t.batch.sampling, t.batch.lanes) == (None, "auto", None)
    assert (t.backend.name, t.backend.device, t.backend.retries, t.backend.timeout) == ("auto", "cpu", 3, 60)
    assert (t.stop.epochs, t.stop.patience, t.checkpoint.every_seconds, t.checkpoint.keep) == (5, 5, 60, 3)
    assert (t.run.dir, t.run.seed, t.run.dtype, t.run.bits, t.run.audit) == ("data/runs", 0, "float64", "strict", False)
    assert (t.data.memory, t.data.unknown, t.data.on_bad_rows) == (2 * 10**9, "error", "error")
    assert (t.model.standardize, t.model.intercept, t.model.backprop, t.strategy.name) == (True, True, "map", "sync")
