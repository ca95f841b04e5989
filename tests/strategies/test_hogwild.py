"""hogwild: one thread is serial SGD by hand, several come to the same minimum; no lock; delays; what is refused."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arena import Arena, Case, drive, picker
from problems import MODELS, SIZES, datasets, files, run, run_on

from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError
from bigopt.data.memory import from_arrays
from bigopt.data.plan import Plan, draw
from bigopt.data.shares import Shares
from bigopt.data.turns import row_order, turn_pieces
from bigopt.facts import Datasets
from bigopt.fit import resume
from bigopt.models import fused_hogwild
from bigopt.strategies.hogwild import Hogwild, HogwildState
from bigopt.strategies.turns import Averaging
from bigopt.work_delays import DELAYS, joined_delays, summary
from bigopt.work_hogwild import HogwildSteps

KEYS = ["strategy.name=hogwild", "stop.epochs=3", "run.metrics_every_steps=1", "batch.lanes=0"]
ROWS = [*KEYS, "model.init=zeros", "batch.size=1", "schedule.learning_rate=0.05"]


def sparse_problem(n: int = 3000, d: int = 40, seed: int = 1) -> tuple[CSR, np.ndarray]:
    """Logistic rows with about 8 nonzeros, some columns rare, targets 0 and 1."""
    rng = np.random.default_rng(seed)
    chance = np.linspace(0.02, 0.4, d)
    X = np.where(rng.random((n, d)) < chance, rng.normal(size=(n, d)), 0.0)
    y = (X @ rng.normal(size=d) + 0.5 + rng.logistic(size=n) > 0).astype(np.int64)
    filled = X != 0
    starts = np.concatenate([[0], np.cumsum(filled.sum(axis=1))]).astype(np.int64)
    return CSR(X[filled], np.nonzero(filled)[1].astype(np.int32), starts, d), y


def in_memory(X: Any, y: np.ndarray, weight: np.ndarray | None = None, rows: int = 1000) -> Datasets:
    return Datasets(from_arrays(X, y, weight, partition_rows=[rows] * (len(y) // rows)), None)


def params_of(result: dict[str, Any]) -> np.ndarray:
    from bigopt.bundle import load

    return load(Path(result["run"])).params


def told(result: dict[str, Any]) -> dict[str, Any]:
    return json.loads((Path(result["run"]) / "result.json").read_text())


def order_of(counts: np.ndarray, seed: int, epoch: int, lanes: int = 0) -> list[int]:
    """Global rows of an epoch of batches of one row, in the order of the turns; odd epochs go backwards."""
    n, odd = int(counts.sum()), epoch % 2
    plan = Plan(counts, -(-n // 10), lanes, seed)
    starts = np.cumsum(counts) - counts
    rows = [
        int(starts[unit[0]] + row)
        for step in range(plan.steps_per_epoch)
        for unit in plan.units(epoch - odd, step)
        for row in row_order(seed, unit, int(counts[unit[0]]))
    ]
    return rows[::-1] if odd else rows


def test_an_epoch_takes_every_row_once_in_blocks() -> None:
    counts = np.array([100, 257, 0, 64, 1])
    rows = order_of(counts, 3, 0)
    assert sorted(rows) == list(range(counts.sum()))
    assert np.mean(np.diff(rows) == 1) > 0.85
    assert rows != order_of(counts, 3, 2)
    with_lanes = order_of(counts, 3, 1, lanes=2)
    assert sorted(with_lanes) == list(range(counts.sum()))


@pytest.mark.parametrize("lanes", [0, 2])
def test_turns_cut_anywhere_make_up_the_epochs(lanes: int) -> None:
    """Turns of 48 rows, the last of an epoch of 38, dealt to three replicas; odd epochs are those before, backwards."""
    counts = np.array([100, 257, 0, 64, 1])
    n, turn = int(counts.sum()), 48
    shares, starts = Shares.of(Plan(counts, 1, lanes, 3), 1), np.cumsum(counts) - counts
    epochs: list[list[int]] = []
    for epoch in range(4):
        epochs.append([])
        for begin in range(epoch * n, (epoch + 1) * n, turn):
            end = min(begin + turn, (epoch + 1) * n)
            bounds = begin + (end - begin) * np.arange(4) // 3
            for first, last in itertools.pairwise(bounds.tolist()):
                pieces = turn_pieces(shares, turn, first, last, 10)
                assert [at for *_, at in pieces] == [0, *np.cumsum([len(rows) for _, rows, _ in pieces])[:-1]]
                assert all(0 < len(rows) <= 10 for _, rows, _ in pieces)
                epochs[-1] += [int(starts[p] + row) for p, rows, _ in pieces for row in rows]
                assert len(epochs[-1]) == last - epoch * n
    for epoch, rows in enumerate(epochs):
        assert sorted(rows) == list(range(n))
        assert (rows == epochs[epoch - 1][::-1]) == (epoch % 2 == 1)


@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_thread_is_serial_sgd(tmp_path: Path, form: str, weighted: bool) -> None:
    """Logistic regression with the lazy penalty, a row at a time, against a loop in Python."""
    pytest.importorskip("numba")
    X, y = sparse_problem(400)
    dense, l2 = X.dense(), 0.01
    weight = np.random.default_rng(2).uniform(0.5, 2.0, len(y)) if weighted else None
    data = in_memory(X if form == "sparse" else dense, y, weight, rows=100)
    keys = [
        "model.name=logistic",
        f"model.l2={l2}",
        "model.standardize=false",
        "data.dtype=float64",
        "backend.workers=1",
    ]
    keys += ["schedule.name=inverse_time", "schedule.decay=0.002"]
    result = run(tmp_path, "", *keys, *ROWS, data=data)

    touched = (dense != 0).sum(axis=0) if form == "sparse" else np.full(X.columns, len(y))
    decay = 2 * l2 * len(y) / touched
    s = np.ones(len(y)) if weight is None else weight * len(y) / weight.sum()
    w, b, step, eta = np.zeros(X.columns), 0.0, 0, 0.0
    for epoch in range(3):
        for number, row in enumerate(order_of(np.full(4, 100), 0, epoch)):
            if number % 40 == 0:  # a rate holds for 64 rows of a turn of 40
                eta = 0.05 / (1 + 0.002 * step)
            x = dense[row]
            g = s[row] * (1 / (1 + np.exp(-(x @ w + b))) - y[row])
            at = x != 0 if form == "sparse" else slice(None)
            w[at] -= eta * (g * x[at] + decay[at] * w[at])
            b -= eta * g
            step += 1
    assert result["steps"] == 1200
    assert np.abs(params_of(result) - [*w, b]).max() < 1e-12 * np.abs(w).max()
    assert told(result)["tau"]["max"] <= 1
    assert told(result)["lost_share"] == 0.0


def test_a_weak_penalty_shrinks_the_whole_vector_in_every_step(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    X, y = sparse_problem(400)
    dense, l2 = X.dense(), 0.002
    keys = ["model.name=logistic", f"model.l2={l2}", "model.standardize=false", "data.dtype=float64"]
    keys += [*ROWS, "backend.workers=1", "schedule.name=inverse_time"]
    result = run(tmp_path, "", *keys, data=in_memory(X, y, rows=100))
    plan = Plan(np.full(4, 100), 40, 0, 0)
    w, b = np.zeros(X.columns), 0.0
    for turn in range(30):
        eta = 0.05 / (1 + 40 * turn)
        epoch, number = divmod(turn, 10)
        units = plan.units(epoch, number) if epoch % 2 == 0 else plan.units(epoch - 1, 9 - number)[::-1]
        for unit in units:
            rows = row_order(0, unit, 100)
            for row in 100 * unit[0] + (rows[::-1] if epoch % 2 else rows):
                g = 1 / (1 + np.exp(-(dense[row] @ w + b))) - y[row]
                w = (1 - 2 * l2 * eta) * w - eta * g * dense[row]
                b -= eta * g
    assert np.abs(params_of(result) - [*w, b]).max() < 1e-12 * np.abs(w).max()


def test_a_rare_column_under_a_strong_penalty_does_not_swing(tmp_path: Path) -> None:
    """Of 400 rows one touches the last column: it would be multiplied by 1 - 0.05 x 2 x 0.5 x 400 = -19 there."""
    pytest.importorskip("numba")
    X, y = sparse_problem(400)
    data, indices, starts = (np.array(part) for part in (X.data, X.indices, X.indptr))
    data[starts[1] - 1] = 1.0
    indices[(indices == X.columns - 1)] = X.columns - 2
    indices[starts[1] - 1] = X.columns - 1
    keep = np.concatenate([[True], (np.diff(indices) != 0) | np.isin(np.arange(1, len(indices)), starts)])
    starts = np.concatenate([[0], np.cumsum(keep)])[starts]
    rare = CSR(data[keep], indices[keep], starts, X.columns)
    assert np.count_nonzero(rare.indices == X.columns - 1) == 1
    keys = ["model.name=logistic", "model.l2=0.5", "model.standardize=false", "data.dtype=float64", *ROWS]
    result = run(tmp_path, "", *keys, "backend.workers=1", data=in_memory(rare, y, rows=100))
    assert 0.0 < abs(params_of(result)[X.columns - 1]) <= 0.05


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_on_dense_rows_is_serial_sgd(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    y = np.argmax(X @ rng.normal(size=(3, 5)) + rng.normal(size=(300, 5)), axis=1)
    keys = ["model.name=softmax", "model.standardize=false", "data.dtype=float64", f"run.dtype={dtype}"]
    result = run(tmp_path, "", *keys, *ROWS, "backend.workers=1", data=in_memory(X, y, rows=100))
    w, b = np.zeros((3, 5)), np.zeros(5)
    for epoch in range(3):
        for row in order_of(np.full(3, 100), 0, epoch):
            v = X[row] @ w + b
            g = np.exp(v - v.max()) / np.exp(v - v.max()).sum() - np.eye(5)[y[row]]
            w -= 0.05 * np.outer(X[row], g)
            b -= 0.05 * g
    expected = np.concatenate([w.ravel(), b])
    assert np.abs(params_of(result) - expected).max() < (1e-4 if dtype == "float32" else 1e-12)
    value = result["loss"]
    scores = X @ w + b
    truth = np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(300), y])
    assert value == pytest.approx(truth, rel=1e-4 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize("write", ["overwrite", "atomic_add"])
def test_several_threads_come_to_the_loss_of_one(tmp_path: Path, write: str) -> None:
    pytest.importorskip("numba")
    X, y = sparse_problem(6000)
    keys = [
        "model.name=logistic",
        "model.l2=0.001",
        "model.standardize=false",
        "data.dtype=float64",
        f"strategy.write={write}",
    ]
    keys += [*ROWS, "schedule.name=cosine", "run.dtype=float64"]
    data = in_memory(X, y)
    one, again, *several = (run(tmp_path, "", *keys, f"backend.workers={k}", data=data) for k in (1, 1, 2, 4))
    assert one["params_sha256"] == again["params_sha256"]
    for result in several:
        assert result["loss"] == pytest.approx(one["loss"], rel=0.01)
        assert told(result)["tau"]["max"] >= 1
        assert 0 <= told(result)["lost_share"] < 1 if write == "overwrite" else True
    assert one["loss"] < 0.6 * np.log(2)


def test_the_loop_has_no_lock() -> None:
    names = {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(ast.parse(inspect.getsource(fused_hogwild)))
        if isinstance(node, ast.Name | ast.Attribute)
    }
    assert not names & {"Lock", "RLock", "Semaphore", "Condition", "Barrier", "acquire", "wait", "threading", "lock"}


def case_steps(case: Case, threads: int, shares: int = 1, **more: Any) -> HogwildSteps:
    return HogwildSteps(
        case.model,
        case.view,
        Shares.of(case.plan, shares),
        case.weight,
        case.penalty,
        "float64",
        16,
        turn=-(-case.plan.steps_per_epoch // 2),
        threads=threads,
        **more,
    )


def drive_case(
    case: Case, replicas: int, threads: int = 1, shares: int = 1
) -> tuple[Averaging[HogwildState], list[Any]]:
    setting = case.setting()
    state = HogwildState(case.start(), 0, replicas, np.zeros(DELAYS, dtype=np.int64))
    machine = Averaging(setting, state, Hogwild(setting, case_steps(case, threads, shares), case.rates))
    return machine, drive(machine, Arena(2, picker(0)), setting.rounds)


def test_batches_with_one_thread_are_sync_and_turns_are_averaged() -> None:
    from bigopt.strategies import sync

    case = Case()
    setting = case.setting()
    reference = sync.Sync(setting, sync.start(setting, case.start()))
    drive(reference, Arena(1, picker(0)), setting.rounds, updates=case.steps)
    machine, records = drive_case(case, 1)
    assert np.abs(machine.params - reference.params).max() < 1e-12 * np.abs(reference.params).max()
    assert [r.step for r in records[:5]] == [4, 7, 11, 14, 18]  # 7 steps an epoch, turns of 4
    assert [r.end_of_epoch for r in records[:4]] == [False, True, False, True]
    assert machine.steps == case.steps
    assert sum(r.rows for r in records) == 5 * 200 + 5 * 32
    assert machine.epochs == pytest.approx(5 + 5 * 32 / 200)

    case = Case(steps=4)  # one turn: two replicas take two steps each from the start
    found, _ = drive_case(case, 2)
    halves = []
    for first in (0, 2):
        w = case.start()
        for step in (first, first + 1):
            grad, rows = np.zeros_like(w), 0
            for unit in case.plan.units(0, step):
                block = case.view.load(int(unit[0]))
                at = draw(case.plan.seed, unit, len(block.X))[unit[2] : unit[3]]
                grad += case.model.grad_sum(w, block.X[at], block.y[at], None)[0]
                rows += len(at)
            w = w - case.rate * case.penalty.add_gradient(grad / rows, w, case.model.layout)
        halves.append(w)
    assert np.abs(found.params - np.mean(halves, axis=0)).max() < 1e-12


def test_replicas_take_their_shares_of_every_batch() -> None:
    case = Case(steps=4)
    found, _ = drive_case(case, 2, shares=2)
    parts, weights = [], []
    for replica in (0, 1):
        w, taken = case.start(), 0
        for step in range(4):
            grad, rows = np.zeros_like(w), 0
            for unit in Shares.of(case.plan, 2).units(replica, step)[0]:
                block = case.view.load(int(unit[0]))
                at = draw(case.plan.seed, unit, len(block.X))[unit[2] : unit[3]]
                grad += case.model.grad_sum(w, block.X[at], block.y[at], None)[0]
                rows += len(at)
            w = w - case.rate * case.penalty.add_gradient(grad / rows, w, case.model.layout)
            taken += rows
        parts.append(w)
        weights.append(taken)
    assert sum(weights) == sum(case.plan.batch_rows(step) for step in range(4))
    assert np.abs(found.params - np.average(parts, axis=0, weights=weights)).max() < 1e-12
    assert found.steps == 4


def test_two_threads_read_without_each_other() -> None:
    """The first reading takes until the other thread is in its third: it is without at least two gradients."""
    case = Case(steps=4)
    calls, third = itertools.count(), threading.Event()

    class Held(HogwildSteps):
        def _sums(self, *values: Any) -> Any:
            found, call = super()._sums(*values), next(calls)
            if call == 0:
                assert third.wait(20)
            elif call == 3:
                third.set()
            return found

    plain = case_steps(case, 2)
    held = Held(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    setting = case.setting()
    state = HogwildState(case.start(), 0, 1, np.zeros(DELAYS, dtype=np.int64))
    machine = Averaging(setting, state, Hogwild(setting, held, case.rates))
    drive(machine, Arena(1, picker(0)), setting.rounds)
    tau = machine.snapshot().delays["tau"]
    assert tau["max"] in (2, 3)
    assert sum(tau["histogram"].values()) == 4


def test_delays_are_joined_and_told() -> None:
    left, right = np.zeros(DELAYS, dtype=np.int64), np.zeros(DELAYS, dtype=np.int64)
    left[[0, 2]] = 3, 1
    left[-5:] = 4, 8, 5, 100, 99
    right[[1]] = 2
    right[-5:] = 2, 5, 3, 100, 98
    found = summary(joined_delays(left, right))
    assert found["tau"] == {"mean": 13 / 6, "max": 5, "histogram": {"1": 3, "2": 2, "4": 1}}
    assert found["lost_share"] == pytest.approx(3 / 200)


@pytest.mark.parametrize("kind", ["softmax", "mlp_classes"])
def test_mini_batches_learn_on_two_threads(tmp_path: Path, kind: str) -> None:
    name, keys = MODELS[kind]
    keys = [*keys, "batch.size=20", "schedule.learning_rate=0.1", "optimizer.name=sgd", "stop.epochs=4"]
    hogwild = run(tmp_path, name, *keys, "strategy.name=hogwild", "backend.workers=2")
    sync = run(tmp_path, name, *keys, "backend.workers=2")
    assert hogwild["steps"] == sync["steps"]
    assert hogwild["epochs"] == pytest.approx(4, abs=0.1)
    assert hogwild["loss"] < 1.1 * sync["loss"]
    assert told(hogwild)["tau"]["max"] >= 1


@pytest.mark.parametrize("size", [1, 20])
def test_a_run_that_was_cut_goes_on_with_the_same_bits(tmp_path: Path, size: int) -> None:
    pytest.importorskip("numba")
    name, keys = MODELS["logistic"]
    keys = [*keys, *KEYS, f"batch.size={size}", "schedule.learning_rate=0.02", "backend.workers=1"]
    data = files(tmp_path, name, "parquet")
    whole = run_on(data, tmp_path / "whole", *keys)
    per_epoch = -(-sum(SIZES) // size)
    turn = -(-per_epoch // 10)
    part = run_on(data, tmp_path / "part", *keys, f"stop.steps={per_epoch + 3 * turn}", "checkpoint.every_steps=1")
    rest = resume(Path(part["run"]), ["stop.epochs=3"])
    assert rest["params_sha256"] == whole["params_sha256"]
    assert told(rest)["tau"] == told(whole)["tau"]


def test_what_hogwild_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, keys = MODELS["logistic"]
    with pytest.raises(ConfError, match="atomic_add is the compiled loop's"):
        run(tmp_path, name, *keys, *KEYS, "batch.size=20", "strategy.write=atomic_add")
    with pytest.raises(ConfError, match="takes plain sgd steps, not adam"):
        run(tmp_path, name, *keys, *KEYS, "batch.size=20", "optimizer.name=adam")
    with pytest.raises(ConfError, match="no random numbers of rows"):
        run(tmp_path, name, *keys, *KEYS[:3], "batch.size=1", "batch.sampling=bernoulli", "run.kernels=numpy")
    monkeypatch.setattr("bigopt.core.compiled.missing", lambda: "numba is not installed")
    with pytest.raises(ConfError, match="a compiled loop, and numba is not installed"):
        run(tmp_path, name, *keys, *ROWS)


def test_batches_of_one_row_without_the_loop(tmp_path: Path) -> None:
    name, keys = MODELS["logistic"]
    rows = [*keys, *ROWS, "run.kernels=numpy"]
    hogwild = run(tmp_path, name, *rows, "backend.workers=1", data=datasets(name, (50, 30)))
    assert hogwild["steps"] == 240
    assert hogwild["loss"] < np.log(2)
