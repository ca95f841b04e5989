"""Describe: figures by hand, and the promises that a run keeps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bigopt.cli import bigopt
from bigopt.cli_show import cell
from bigopt.config import load_conf, load_text
from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError
from bigopt.data.memory import from_arrays
from bigopt.describe import describe
from bigopt.facts import Datasets
from bigopt.fit import train


def data(rows: int = 1000, columns: int = 8, classes: int = 0, partition_rows: int = 100) -> Datasets:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, columns)).astype(np.float32)
    y = np.arange(rows) % classes if classes else X @ np.arange(columns) + 0.5
    return Datasets(from_arrays(X, y, partition_rows=partition_rows), None)


CUT = {
    "units": (["strategy.name=model_parallel"], "cut by units in 2 pieces: layers 1-2, layer 3; what they hand on"),
    "layers": (
        ["strategy.name=model_parallel", "strategy.split=layers"],
        "cut by layers in 2 stages: layer 1 (128 multiply-adds), layers 2-3 (102 multiply-adds); 4 micro-batches",
    ),
    "hybrid": (
        ["strategy.name=hybrid", "backend.workers=4"],
        "2 groups of 2 members: layer 1 with rows dealt to the members, layers 2-3 by units within a group",
    ),
}


def test_workers_that_add_among_themselves_relieve_the_driver() -> None:
    keys = ["data.uri=memory", "model.name=mlp", "data.task=classification", "backend.name=dask", "backend.workers=4"]
    by_driver, among = (
        describe(load_conf([], [*keys, *more]), data(classes=2)) for more in ([], ["backend.reduce=workers"])
    )
    vector = 8 * among["parameters"]
    assert (among["round"]["bytes_down"], among["round"]["bytes_up"]) == (vector, vector)
    assert by_driver["round"]["bytes_down"] == 4 * vector <= by_driver["round"]["bytes_up"]
    assert among["memory"]["gradients"] == 2 * vector < by_driver["memory"]["gradients"]
    said = "workers add the gradients among themselves"
    assert [any(said in line for line in found["lines"]) for found in (by_driver, among)] == [False, True]


@pytest.mark.parametrize("name", CUT)
def test_a_cut_model_says_how_and_what_travels(name: str) -> None:
    keys, said = CUT[name]
    given = ["data.uri=memory", "model.name=mlp", "model.hidden=[16,6]", "backend.workers=2", "backend.name=dask"]
    given = [key for key in given if not any(k.partition("=")[0] == key.partition("=")[0] for k in keys)]
    found = describe(load_conf([], [*given, "data.task=classification", *keys]), data(classes=2))
    line = next(line for line in found["lines"] if said in line)
    assert line.startswith(keys[0].partition("=")[2])
    assert not any(line.startswith("prediction") for line in found["lines"])
    assert found["tables"][1]["title"] == "a step"
    widths = {"units": 6 + 1 + 6, "layers": 16 + 16, "hybrid": 16 + 1 + 16}  # v, scores, the widest delta
    assert found["memory"]["exchanged"] == 4 * 128 * widths[name]
    params = 8 * found["parameters"]
    if name != "hybrid":  # parameters once, the gradient once or for each micro-batch; what is exchanged on top
        assert found["round"]["bytes_down"] > params
        assert found["round"]["bytes_up"] > params * (4 if name == "layers" else 1)


COLUMNS = {
    "driver": ([], "2 blocks of 4 columns, a worker opens only its own; the update runs on the driver", 2),
    "worker": (["strategy.update_on=worker"], "each updates its own block where it is", 1),
    "coordinate": (["strategy.solver=coordinate", "optimizer.name=sgd"], "one after the other takes its step", 3),
    "dual": (["strategy.solver=dual", "model.l2=1", "model.intercept=false"], "dual coordinate ascent by groups", 1),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_blocks_of_columns_say_where_the_update_runs_and_what_travels(name: str, tmp_path: Path) -> None:
    keys, said, rounds = COLUMNS[name]
    keys = ["data.uri=memory", "model.name=ridge", "backend.workers=2", "strategy.name=model_parallel", *keys]
    found = describe(load_conf([], [*keys, "run.dtype=float32"]), data())
    assert any(said in line for line in found["lines"])
    assert not any("once a step" in line for line in found["lines"])
    if name == "worker":  # a residual of 128 float32 for each of two workers; two margins and the labels back
        assert found["round"]["bytes_down"] == 2 * 128 * 4
        assert found["round"]["bytes_up"] == 2 * 128 * 4 + 128 * 8
    steps = train(load_conf([], [*keys, f"run.dir={tmp_path}", "stop.steps=3"]), data=data())
    assert steps["rounds"] - 2 - 3 * rounds in (0, 1)  # the first pass and the evaluation; a last update


def test_two_groups_halve_the_work() -> None:
    """SPEC section 2: an 8 x 4 layer in two blocks needs 2 (4 x 2) = 16 multiplications instead of 32."""
    for groups, products in (("null", 32), ("[2, 1]", 16)):
        conf = load_text(f"model: {{hidden: [4], groups: {groups}}}", "x")
        found = describe(conf, data())
        assert found["tables"][0]["rows"][0][-1] == products
        assert found["multiply_adds"] == products + 4
        assert found["parameters"] == products + 4 + 4 + 1


def test_figures_by_hand() -> None:
    text = "model: {hidden: [16]}\nbatch: {size: 300, lanes: 0}\nbackend: {workers: 3}\noptimizer: {name: adam}"
    found = describe(load_text(text, "x"), data())
    p = 8 * 16 + 16 + 16 + 1
    assert (found["rows"], found["rows_per_step"], found["steps_per_epoch"]) == (1000, 300, 4)
    assert found["round"] == {
        "multiply_adds": 300 * (2 * 8 * 16 + 3 * 16),  # the first layer has no layer below
        "units": 10,
        "messages": 3,
        "bytes_down": 3 * 8 * p,
        "bytes_up": 10 * 8 * p,  # every unit's sum, fewer than 3 messages of 2 log2(10)
    }
    memory = found["memory"]
    assert memory["params"] == 8 * p + 4 * p
    assert memory["state"] == 2 * 8 * p
    assert memory["gradients"] == 11 * 8 * p
    assert memory["rows"] == 2 * 10**9
    assert memory["block"] == 4 * 300 * (8 + (16 + 1) + (2 * 16 + 1))  # X, activations, deltas with their product


def test_a_run_does_what_describe_says(tmp_path: Path) -> None:
    settings = ["model.name=ridge", "data.validation=0.3", "stop.epochs=2", "backend.workers=1", f"run.dir={tmp_path}"]
    conf = load_text("", "x", settings)
    found = describe(conf, data())
    result = train(conf, data=data())
    assert result["steps"] == 2 * found["steps_per_epoch"]
    notes = (Path(result["run"]) / "log.txt").read_text()
    assert f"{found['parameters']} parameters, {found['rows']} training rows in 10 partitions" in notes


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        ("{name: constant, learning_rate: 0.5}", "0.5 at the first step, 0.5 after one epoch, 0.5 at the last step"),
        (
            "{name: inverse_time, learning_rate: 1, decay: 1}",
            "1 at the first step, 0.1111 after one epoch, 0.0625 at the last",
        ),
        ("{name: inverse_time, learning_rate: 1, unit: epoch}", "1 at the first step, 0.5 after one epoch"),
        (
            "{name: cosine, learning_rate: 2, period: 16}",
            "2 at the first step, 1 after one epoch, 0.01921 at the last step",
        ),
    ],
)
def test_schedule(schedule: str, line: str) -> None:
    """125 rows a batch: 8 steps an epoch, 16 steps."""
    found = describe(load_text(f"schedule: {schedule}\nbatch: {{size: 125}}\nstop: {{epochs: 2}}", "x"), data())
    assert line in next(text for text in found["lines"] if text.startswith("schedule: "))


def test_convergence_conditions() -> None:
    answers = {}
    for name in ("constant", "inverse_time", "cosine"):
        lines = describe(load_text(f"schedule: {{name: {name}}}", "x"), data())["lines"]
        answers[name] = next(text for text in lines if text.startswith("convergence: "))
    assert "eta_t -> 0: yes; sum eta_t = infinity: yes" in answers["inverse_time"]
    assert "eta_t -> 0: no; sum eta_t = infinity: yes" in answers["constant"]
    assert "eta_t -> 0: no" in answers["cosine"]


def test_where_things_run() -> None:
    lines = " ".join(describe(load_text("", "x"), data())["lines"])
    assert "forward and backward run in the Map" in lines
    assert "the update runs on the driver" in lines
    lines = " ".join(describe(load_text("model: {backprop: driver}", "x"), data())["lines"])
    assert "forward and backward run on the driver" in lines


def test_bottlenecks() -> None:
    def warnings(hidden: str) -> list[str]:
        conf = load_text(f"model: {{hidden: {hidden}}}\ndata: {{task: classification}}", "x")
        return [text for text in describe(conf, data(classes=10))["lines"] if "bottleneck" in text]

    assert warnings("[16, 2, 16]") == ["warning: layer2 is a bottleneck: 2 units between 16 and 16"]
    assert warnings("[16, 12]") == []


def test_labels_are_found_or_taken_from_the_conf() -> None:
    text = "model: {name: softmax}"
    assert describe(load_text(text, "x"), data(classes=5))["parameters"] == 8 * 5 + 5
    named = load_text(f"{text}\ndata: {{classes: [0, 1, 2, 3, 4, 5, 6]}}", "x")
    assert describe(named, data(classes=5))["parameters"] == 8 * 7 + 7


def test_integers_ask_for_the_task() -> None:
    with pytest.raises(ConfError) as caught:
        describe(load_text("", "x"), data(classes=5))
    assert "data.task" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "yes"), (1234567, "1,234,567"), (0.123456789, "0.123457"), ({"a": 1}, "a 1"), ([], "-")],
)  # fmt: skip
def test_cells(value: Any, text: str) -> None:
    assert cell(value) == text


def test_long_lists_are_cut() -> None:
    assert cell(list(range(40))).endswith(", ... (40)")


def test_shapes_are_counted_from_a_file(tmp_path: Path) -> None:
    """SPEC section 2: GoogLeNet's second convolution has 112K parameters and 360M operations."""
    shapes = Path(__file__).parents[2] / "conf" / "shapes" / "googlenet.yml"
    done = CliRunner().invoke(bigopt, ["describe", "--json", "--shapes", str(shapes)])
    assert done.exit_code == 0, done.output
    rows = {row[0]: row for row in json.loads(done.stdout)["tables"][0]["rows"]}
    assert (rows["conv2"][3] // 1024, round(rows["conv2"][5] / 1e6)) == (112, 360)
    assert (rows["linear"][3], round(rows["linear"][5] / 1e6)) == (1024 * 1000 + 1000, 1)


def test_bad_shapes_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "net.yml"
    for text, said in (("- 1\n", "no mapping"), ("input: [8, 8]\nlayers: [{name: a, dense: 3}]\n", "height, width")):
        file.write_text(text)
        done = CliRunner().invoke(bigopt, ["describe", "--shapes", str(file)])
        assert done.exit_code == 2
        assert said in done.stderr
    done = CliRunner().invoke(bigopt, ["describe", "--shapes", str(file), "model.name=ridge"])
    assert (done.exit_code, "takes no conf" in done.stderr) == (2, True)


def test_sparse_rows_cost_their_values_and_send_their_columns() -> None:
    n, d = 320, 10_000
    rng = np.random.default_rng(0)
    X = CSR(rng.normal(size=5 * n), np.arange(5 * n, dtype=np.int32) % d, np.arange(0, 5 * n + 1, 5), d)
    rows = Datasets(from_arrays(X, rng.integers(0, 2, n), partition_rows=40), None)
    keys = ["data.uri=memory", "model.name=logistic", "batch.size=32", "batch.lanes=2", "backend.workers=2"]
    found = describe(load_conf([], keys), rows)
    text = "\n".join(found["lines"])
    assert "10000 features, 1,600 values in sparse rows (5.0 a row)" in text
    assert "gradients travel sparse: the 8 rows of a unit have values in at most 40 of 10,000 columns" in text
    assert "sparse features are scaled, not centred" in text
    assert found["round"]["multiply_adds"] == 2 * 5 * 32
    assert found["round"]["bytes_up"] == (5 * 32 + 4) * 12  # four sums of disjoint rows, with their intercepts
    assert found["memory"]["block"] < 32 * 200


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["strategy.name=sync"], "raise batch.size, or strategy local_sgd with local_steps"),
        (["strategy.name=async"], "raise batch.size, or strategy local_sgd with local_steps"),
        (["strategy.name=local_sgd"], r"raise strategy.local_steps \(8\)"),
        (["strategy.name=downpour"], r"raise strategy.n_push \(5\) and n_fetch"),
        (["strategy.name=easgd", "strategy.every=3"], r"raise strategy.every \(3\)"),
    ],
)
def test_messages_that_dominate_are_said_with_the_remedy(keys: list[str], said: str) -> None:
    def warnings(*more: str) -> list[str]:
        model = ["model.name=ridge", "batch.size=20", "backend.workers=2", *keys]
        conf = load_conf([], ["data.uri=memory", *model, *more])
        return [line for line in describe(conf, data())["lines"] if line.startswith("warning: messages")]

    (line,) = warnings("backend.name=dask")
    assert re.search(said, line)
    factor = float(line.split("about ")[1].split()[0])
    assert factor > 10
    assert warnings("backend.name=local") == []


def test_messages_that_do_not_dominate_are_not_mentioned() -> None:
    wide = data(rows=400, columns=64, partition_rows=200)
    for strategy in ("sync", "async", "local_sgd"):
        model = ["model.name=mlp", "model.hidden=[4096,1024]", "batch.size=400", "backend.workers=2"]
        conf = load_conf([], ["data.uri=memory", *model, "backend.name=dask", f"strategy.name={strategy}"])
        assert not [line for line in describe(conf, wide)["lines"] if "messages dominate" in line]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["strategy.name=sync"], "strategy sync: the update runs on the driver, once a step"),
        (["strategy.name=ssp"], "strategy ssp: the update runs on the driver, once a gradient"),
        (
            ["strategy.name=easgd"],
            "plain SGD runs where the rows are, each pull of a replica and the centre on the driver",
        ),
        (["strategy.name=downpour"], "the update runs on the driver, once a push"),
        (["strategy.name=downpour", "strategy.shards=2"], "the update runs on the driver, in 2 shards, once a push"),
        (
            ["strategy.name=downpour", "strategy.shards=2", "strategy.shards_on=workers", "backend.name=dask"],
            "the update runs on Dask workers, in 2 shards, once a push",
        ),
    ],
)
def test_it_says_where_the_update_runs(keys: list[str], said: str) -> None:
    conf = load_conf([], ["data.uri=memory", "model.name=ridge", "batch.size=20", "backend.workers=2", *keys])
    assert any(said in line for line in describe(conf, data())["lines"])
