"""Blocks of columns: the trajectory of sync, whatever holds the blocks; what they read; what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arena import Arena, Case, drive, picker
from killer import Killer
from problems import MODELS, files, run, run_on

from bigopt import bundle, sessions
from bigopt.config import load_conf
from bigopt.core import codec
from bigopt.core.errors import ConfError, DataError
from bigopt.data.memory import from_arrays
from bigopt.evaluate import evaluate, predict
from bigopt.facts import Datasets
from bigopt.fit import resume, train
from bigopt.strategies import model_parallel, sync
from bigopt.strategies.base import Blocks, Setting

WORKER = "strategy.update_on=worker"
BLOCKS = ["strategy.name=model_parallel", "strategy.blocks=3"]
STEPS = ["batch.size=40", "stop.steps=200"]


def params(result: dict[str, Any]) -> np.ndarray:
    return np.asarray(bundle.load(Path(result["run"])).params)


def apart(result: dict[str, Any], other: dict[str, Any]) -> float:
    return float(np.abs(params(result) - params(other)).max() / np.abs(params(other)).max())


OPTIMIZERS = {
    "sgd": ["optimizer.name=sgd", "schedule.learning_rate=0.02"],
    "momentum l1": ["optimizer.name=momentum", "schedule.learning_rate=0.005", "model.l1=0.01"],
    "adam cosine": ["optimizer.name=adam", "schedule.learning_rate=0.02", "schedule.name=cosine"],
    "averaged": ["optimizer.name=adagrad", "optimizer.average=0.9", "optimizer.clip_value=0.5"],
    "averaged, clipped": ["optimizer.name=nesterov", "optimizer.average=true", "optimizer.clip_norm=1"],
}


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        *(("ridge", name) for name in OPTIMIZERS),
        ("logistic", "sgd"),
        ("softmax", "momentum l1"),
        ("softmax", "adam cosine"),
    ],
)
def test_the_trajectory_is_that_of_sync(tmp_path: Path, kind: str, optimizer: str) -> None:
    same_trajectory(tmp_path, kind, optimizer, BLOCKS)


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("ridge", "momentum l1"), ("softmax", "adam cosine"), ("logistic", "averaged")]
)
def test_the_trajectory_is_that_of_sync_where_workers_update(tmp_path: Path, kind: str, optimizer: str) -> None:
    same_trajectory(tmp_path, kind, optimizer, [*BLOCKS, WORKER])


def same_trajectory(tmp_path: Path, kind: str, optimizer: str, blocks: list[str]) -> None:
    problem, model = MODELS[kind]
    seen: dict[str, list[np.ndarray]] = {}
    results = {}
    for name, keys in (("sync", []), ("blocks", blocks)):
        path = seen.setdefault(name, [])
        results[name] = run(
            tmp_path,
            problem,
            *model,
            *OPTIMIZERS[optimizer],
            *STEPS,
            *keys,
            "backend.workers=2",
            on_step=lambda step, epoch, w, path=path: path.append(np.array(w)),
        )
    scale = max(np.abs(w).max() for w in seen["sync"])
    assert len(seen["blocks"]) == len(seen["sync"]) == 201
    assert max(np.abs(a - b).max() for a, b in zip(*seen.values(), strict=True)) <= 1e-10 * scale
    assert results["blocks"]["loss"] == pytest.approx(results["sync"]["loss"], rel=1e-10)
    assert results["blocks"]["metrics"] == pytest.approx(results["sync"]["metrics"], rel=1e-9)


@pytest.mark.parametrize("where", ["driver", "worker"])
@pytest.mark.parametrize("size", ["40", "full"])
def test_bits_do_not_depend_on_the_workers(tmp_path: Path, size: str, where: str) -> None:
    problem, model = MODELS["softmax"]
    keys = [
        *model,
        *BLOCKS,
        f"strategy.update_on={where}",
        "optimizer.name=momentum",
        f"batch.size={size}",
        "stop.steps=20",
    ]
    found = [run(tmp_path, problem, *keys, f"backend.workers={k}") for k in (1, 2, 3, 5)]
    assert len({result["params_sha256"] for result in found}) == 1
    assert len({result["loss"] for result in found}) == 1


class Forgetful(Arena):
    """Slots that lose what they keep for the run now and then, as workers that are replaced do."""

    def wait(self) -> Any:
        if self._chance.random() < 0.3:
            self._blocks.kept.drop()
        return super().wait()


def machine_of(case: Case, where: str) -> tuple[Setting, Any]:
    blocks = Blocks(case.model, case.view, 3, "float64", 16, "cpu", "numpy", 10**8, 2, case.penalty)
    setting = case.setting(blocks=lambda: blocks, options={"update_on": where})
    return setting, model_parallel.machine(setting, model_parallel.start(setting, case.start()))


@pytest.mark.parametrize("where", ["driver", "worker"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_losses_repetitions_and_forgetting_change_no_bit(where: str, optimizer: str) -> None:
    case = Case(optimizer=optimizer, rate=0.01, steps=30)
    setting, machine = machine_of(case, where)
    drive(machine, Arena(2, picker(0)), setting.rounds, updates=30)
    expected = machine.params
    reference = sync.Sync(setting, sync.start(setting, case.start()))
    drive(reference, Arena(1, picker(0)), setting.rounds, updates=30)
    assert np.abs(expected - reference.params).max() < 1e-13
    for seed, slots in ((1, 1), (2, 2), (3, 3)):
        setting, machine = machine_of(case, where)
        records = drive(machine, Forgetful(slots, picker(seed), lose=0.2, repeat=0.2), setting.rounds, updates=30)
        assert machine.params.tobytes() == expected.tobytes()
        assert [record.step for record in records] == list(range(1, 31))
    assert records[-1].grad_norm == pytest.approx(drive_norms(case), rel=1e-9)


def drive_norms(case: Case) -> float:
    """Return sync's last gradient norm."""
    setting = case.setting()
    machine = sync.Sync(setting, sync.start(setting, case.start()))
    return drive(machine, Arena(1, picker(0)), setting.rounds, updates=30)[-1].grad_norm


def test_a_checkpoint_of_any_step_goes_on_with_the_same_bits() -> None:
    """Commit and log: what the workers kept is gone, as after a resume."""
    case = Case(optimizer="adam", rate=0.01, steps=30)
    setting, machine = machine_of(case, "worker")
    drive(machine, Arena(2, picker(0)), setting.rounds, updates=30)
    for cut in (0, 3, 8, 17, 29):
        setting, part = machine_of(case, "worker")
        drive(part, Arena(2, picker(1)), setting.rounds, updates=cut) if cut else None
        state = codec.loads(codec.dumps(part.snapshot()))
        assert state.steps == cut
        assert len(state.log) == cut - state.committed < 9
        rest = model_parallel.machine(setting, state)
        drive(rest, Arena(3, picker(2)), setting.rounds, updates=30 - cut)
        assert rest.params.tobytes() == machine.params.tobytes()


@pytest.mark.parametrize("model", ["perceptron", "svm"])
def test_models_of_signs(tmp_path: Path, model: str) -> None:
    keys = [f"model.name={model}", "optimizer.name=sgd", "schedule.learning_rate=0.05", *STEPS, "backend.workers=2"]
    assert apart(run(tmp_path, "two", *keys, *BLOCKS), run(tmp_path, "two", *keys)) < 1e-12


@pytest.mark.parametrize(("form", "where"), [("zarr", "driver"), ("parquet", "driver"), ("zarr", "worker")])
def test_stores_validation_weights_and_classes(tmp_path: Path, form: str, where: str) -> None:
    """Everything that goes beside the gradient: held-out rows, class weights, centring, evaluate."""
    data = files(tmp_path, "four", form)
    keys = ["model.name=softmax", "data.validation=0.3", "data.class_weight=balanced", "model.standardize=center"]
    keys += ["optimizer.name=adam", *STEPS, "backend.workers=2", "stop.tolerance=0.0"]
    sync = run_on(data, tmp_path, *keys)
    cut = run_on(data, tmp_path, *keys, *BLOCKS, f"strategy.update_on={where}")
    assert apart(cut, sync) < 1e-10
    assert cut["metrics"] == pytest.approx(sync["metrics"], rel=1e-9)
    assert evaluate(Path(cut["run"]), str(data)) == evaluate(Path(sync["run"]), str(data))


@pytest.mark.parametrize("where", ["driver", "worker"])
def test_a_run_that_was_cut_goes_on(tmp_path: Path, where: str) -> None:
    problem, model = MODELS["logistic"]
    data = files(tmp_path, problem, "parquet")
    keys = [*model, "optimizer.name=adam", "batch.size=40", "strategy.name=model_parallel", "backend.workers=2"]
    keys += [f"strategy.update_on={where}"]
    whole = run_on(data, tmp_path, *keys, "stop.steps=30")
    part = run_on(data, tmp_path, *keys, "stop.steps=11", "checkpoint.every_steps=4")
    rest = resume(Path(part["run"]), ["stop.steps=30", "backend.workers=1"])  # still two blocks
    assert rest["params_sha256"] == whole["params_sha256"]
    assert "strategy.blocks: 2 of 2 to 3 columns" in (Path(rest["run"]) / "log.txt").read_text()


REFUSED = {
    "whiten": (["model.whiten=true"], "mixes all columns"),
    "backprop": (["model.backprop=driver"], "rows are never sent"),
    "bad rows": (["data.on_bad_rows=skip"], "left out of all"),
    "split": (["strategy.split=units"], "layers of an mlp"),
    "line search": (["schedule.name=backtracking", "optimizer.name=gd"], "backtracking asks several times"),
    "lbfgs": (["optimizer.name=lbfgs"], "lbfgs asks several times"),
    "layers": ([WORKER, "optimizer.name=lamb"], "looks at whole layers"),
    "norm": ([WORKER, "optimizer.clip_norm=1"], "clip_norm is of the whole gradient"),
    "blocks": (["strategy.blocks=6"], "6 blocks of 5 columns"),
    "memory": (["batch.size=full", "data.memory=14KB"], "margins and residuals of 451 rows"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_blocks_of_columns_refuse(tmp_path: Path, name: str) -> None:
    keys, message = REFUSED[name]
    plain = [] if name == "blocks" else ["strategy.blocks=2"]
    with pytest.raises(ConfError, match=message):
        run(tmp_path, "numbers", "model.name=ridge", "strategy.name=model_parallel", *plain, *keys)


def test_sparse_rows_are_refused(tmp_path: Path) -> None:
    from bigopt.core.csr import CSR

    rows = CSR(np.ones(40), np.tile([0, 2], 20).astype(np.int32), np.arange(0, 41, 2), 5)
    data = Datasets(from_arrays(rows, np.arange(20.0)), None)
    with pytest.raises(ConfError, match="dense rows"):
        run(tmp_path, "", "model.name=ridge", *BLOCKS, data=data)


def wide(folder: Path, *, n: int, d: int, rows: int, columns: int, seed: int = 0) -> Path:
    """Write a Zarr group chunked both ways: normal features, a target that 20 columns decide."""
    import zarr

    rng = np.random.default_rng(seed)
    path = folder / "wide.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    X = group.create_array("X", shape=(n, d), chunks=(rows, columns), dtype="float32", compressors=None)
    y = np.zeros(n)
    weights = np.zeros(d)
    weights[:: d // 20] = 1.0
    for start in range(0, n, rows):
        block = rng.standard_normal((min(rows, n - start), d), dtype=np.float32)
        X[start : start + rows] = block
        y[start : start + rows] = block @ weights
    group.create_array("y", data=y + rng.normal(size=n), chunks=(n,))
    return path


WIDE = ["model.name=ridge", "model.l2=0.1", "data.dtype=float64", "optimizer.name=sgd", "batch.size=32"]


def test_zarr_reads_each_chunk_once(tmp_path: Path) -> None:
    """Four blocks together read what one pass over the whole reads, first pass and training together."""
    path = wide(tmp_path, n=240, d=400, rows=60, columns=100)
    keys = [*WIDE, "schedule.learning_rate=0.0002", "stop.steps=20", "backend.workers=2"]
    found = run_on(path, tmp_path, *keys, "strategy.name=model_parallel", "strategy.blocks=4")
    ledger = json.loads((Path(found["run"]) / "result.json").read_text())["ledger"]
    stored = 240 * 400 * 4 + 240 * 8
    assert stored <= ledger["bytes_read"] <= stored + 20_000  # zarr.json of each array, each time it is opened
    assert apart(found, run_on(path, tmp_path, *keys)) < 1e-10


def quarter(tmp: Path, backend: str, n: int, d: int, rows: int, steps: int, *more: str) -> None:
    """Train where no process may hold more than a quarter of the columns; the trajectory is that of the unsplit run."""
    path = wide(tmp, n=n, d=d, rows=rows, columns=d // 4)
    part = n * (d // 4) * 8
    memory = int(1.1 * part + 2 * rows * (d // 4) * 8)  # one block, and what decoding a chunk takes beside it
    assert memory < 2 * part
    keys = [*WIDE, f"schedule.learning_rate={0.1 / d}", f"stop.steps={steps}"]
    cut = [*more, "strategy.name=model_parallel", "strategy.blocks=4", f"backend.name={backend}", "backend.workers=4"]
    seen: list[list[np.ndarray]] = [[], []]

    def trained(path_of: list[np.ndarray], *keys: str) -> dict[str, Any]:
        def keep(step: int, _: float, w: np.ndarray) -> None:
            if step % max(1, steps // 10) == 0:
                path_of.append(np.array(w))

        return train(load_conf([], [f"data.uri={path}", f"run.dir={tmp}", *keys]), on_step=keep)

    found = trained(seen[0], *keys, *cut, f"data.memory={memory}")
    whole = trained(seen[1], *keys, f"data.memory={16 * part}", "backend.workers=2", "batch.sampling=permuted")
    scale = max(np.abs(w).max() for w in seen[1])
    assert max(np.abs(a - b).max() for a, b in zip(*seen, strict=True)) <= 1e-10 * scale
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-9)
    assert found["metrics"] == pytest.approx(whole["metrics"], rel=1e-9)
    ledger = json.loads((Path(found["run"]) / "result.json").read_text())["ledger"]
    if backend != "local":  # four processes: each reads its own columns
        assert ledger["bytes_read"] < 2.5 * n * d * 4


def test_a_quarter_of_the_columns_is_enough(tmp_path: Path) -> None:
    quarter(tmp_path, "local", 256, 2000, 64, 12)


@pytest.mark.slow
def test_a_quarter_of_the_columns_is_enough_for_a_dask_worker(tmp_path: Path) -> None:
    quarter(tmp_path, "dask", 256, 2000, 64, 12)


@pytest.mark.all
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("where", ["driver", "worker"])
def test_200_000_columns_in_four_blocks(tmp_path: Path, where: str) -> None:
    quarter(tmp_path, "dask", 400, 200_000, 50, 200, f"strategy.update_on={where}")


@pytest.mark.all
@pytest.mark.parametrize("backend", ["dask", "spark"])
def test_blocks_that_died_with_their_worker_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Workers with blocks of their own are killed: the next ones are caught up, and the bits are the same."""
    problem, model = MODELS["softmax"]
    data = files(tmp_path, problem, "zarr")
    keys = [*model, *BLOCKS, WORKER, "optimizer.name=adam", "batch.size=40", "stop.steps=40", "run.audit=true"]
    expected = run_on(data, tmp_path, *keys, "backend.workers=2")
    made: list[Killer] = []
    real = sessions.open_session

    def opened(*args: Any) -> Killer:
        made.append(Killer(real(*args), at=(9, 25)))
        return made[-1]

    monkeypatch.setattr(sessions, "open_session", opened)
    result = run_on(data, tmp_path, *keys, f"backend.name={backend}", "backend.workers=2")
    assert len(made[0].killed) == 2
    assert result["params_sha256"] == expected["params_sha256"]
    assert result["audit_sha256"] == expected["audit_sha256"]


@pytest.mark.parametrize("kind", ["ridge", "softmax"])
def test_evaluate_and_predict_within_little_memory(tmp_path: Path, kind: str) -> None:
    """Where a partition does not fit whole, a linear model is evaluated a few columns at a time."""
    problem, model = MODELS[kind]
    data = files(tmp_path, problem, "zarr")
    run = Path(run_on(data, tmp_path, *model, "optimizer.name=adam", "batch.size=40", "stop.steps=20")["run"])
    metrics = [evaluate(run, str(data), [f"data.memory={memory}"])["metrics"] for memory in ("2GB", "9KB")]
    for name, value in metrics[0].items():
        assert np.allclose(metrics[1][name], value, rtol=1e-12), name
    tables = []
    for memory in ("2GB", "9KB"):
        out = tmp_path / f"{memory}.csv"
        assert predict(run, str(data), str(out), [f"data.memory={memory}"])["rows"] == 451
        lines = [line.split(",") for line in out.read_text().splitlines()]
        tables.append((lines[0], np.array(lines[1:], dtype=np.float64)))
    assert tables[0][0] == tables[1][0]
    assert np.allclose(tables[0][1], tables[1][1], rtol=1e-12, atol=1e-12)


def test_labels_that_are_damaged_are_found(tmp_path: Path) -> None:
    import zarr

    path = wide(tmp_path, n=240, d=40, rows=60, columns=10)
    X = zarr.open_array(str(path / "X"), mode="r+")
    X[100, 33] = np.nan
    with pytest.raises(DataError, match="column 'x33' is nan") as found:
        run_on(path, tmp_path, *WIDE, "strategy.name=model_parallel", "strategy.blocks=4")
    assert "global row 100" in found.value.where
    conf = load_conf([], [f"data.uri={path}", f"run.dir={tmp_path}", *WIDE])
    with pytest.raises(DataError, match="x33"):
        train(conf)
