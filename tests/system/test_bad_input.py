"""Bad confs and bad data: one clear line that says what and where, the documented exit code, nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import files, table

from bigopt.cli import main

CONFS: dict[str, tuple[str, int, str]] = {
    # name: (conf text, exit code, what the message says)
    "unknown key": ("optimizer: {name: adam, learnig_rate: 1}", 2, r"learnig_rate"),
    "unknown group": ("optimiser: {name: adam}", 2, r"optimiser.*optimizer"),
    "unknown optimizer": ("optimizer: {name: adm}", 2, r"adm.*adam"),
    "unknown model": ("model: {name: rigde}", 2, r"rigde.*ridge"),
    "wrong type": ("batch: {size: many}", 2, r"batch.size"),
    "out of range": ("optimizer: {name: momentum, momentum: 1.5}", 2, r"momentum"),
    "negative penalty": ("model: {name: ridge, l2: -1}", 2, r"l2"),
    "duplicate key": ("model: {name: ridge}\nmodel: {name: logistic}", 2, r"model"),
    "duplicate nested key": ("model:\n  name: ridge\n  name: mlp", 2, r"name"),
    "key of another optimizer": ("optimizer: {name: sgd, beta1: 0.9}", 2, r"beta1"),
    "key of another schedule": ("schedule: {name: constant, period: 3}", 2, r"period"),
    "mini-batch with gd": ("optimizer: {name: gd}\nbatch: {size: 32}", 2, r"batch"),
    "no end": ("stop: {epochs: null}", 2, r"epochs"),
    "unknown compression": ("strategy: {compression: {name: topk}}", 2, r"topk.*top_k"),
    "later key": ("strategy: {name: model_parallel, update_on: worker}", 2, r"update_on.*not available"),
    "lanes of a redrawn batch": ("batch: {sampling: bernoulli, lanes: 2}\nmodel: {name: ridge}", 2, r"lanes"),
    "bad yaml": ("model: {name: ridge", 2, r""),
    "not a mapping": ("- a\n- b", 2, r""),
    "tag": ("run: {seed: !!python/object/apply:os.system ['touch canary']}", 7, r""),
    "alias": ("model: &m {name: ridge}\noptimizer: *m", 2, r""),
    "unknown metric": ("stop: {target_metric: {acuracy: 0.9}}", 2, r"acuracy.*accuracy"),
    "bad size": ("data: {memory: 2 GigaBananas}", 2, r"memory"),
    "bad loss": ("model: {name: logistic, loss: squared}", 2, r"loss"),
    "bad groups": ("model: {name: mlp, hidden: [7], groups: 2, loss: squared}", 2, r"group"),
}


def cli(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any], str]:
    """Run a command line with --json; return exit code, the object, and stderr."""
    with pytest.raises(SystemExit) as ended:
        main([*args, "--json"])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), json.loads(out), err


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return files(tmp_path, "numbers", "zarr")


@pytest.mark.parametrize("name", CONFS)
def test_a_broken_conf(name, tmp_path, dataset, capsys, monkeypatch):
    text, code, message = CONFS[name]
    monkeypatch.chdir(tmp_path)
    conf = tmp_path / "conf.yml"
    conf.write_text(text)
    runs = tmp_path / "runs"
    found, result, _ = cli(capsys, "train", "-c", str(conf), f"data.uri={dataset}", f"run.dir={runs}")
    whole = f"{result['where']}: {result['error']} {result['hint']}"
    assert (found, result["code"], result["status"]) == (code, code, "error")
    assert re.search(message, whole), whole
    assert "\n" not in result["error"]
    assert str(conf) in whole or "conf.yml" in whole or name == "bad groups", whole
    assert not (tmp_path / "canary").exists()
    assert not list(runs.glob("*/checkpoints/*"))


def zarr_group(path: Path, X: np.ndarray, y: np.ndarray | None, **attributes: Any) -> Path:
    """Write a group with plain zarr-python, as a stranger would."""
    import zarr

    group = zarr.create_group(str(path))
    group.create_array("X", data=X, chunks=(max(1, len(X) // 4), X.shape[1]))
    if y is not None:
        group.create_array("y", data=y, chunks=(max(1, len(y) // 4),))
    group.attrs.update(attributes)
    return path


def largest(path: Path) -> Path:
    """A chunk of X."""
    chunks = (p for p in (path / "X").rglob("*") if p.is_file() and p.name != "zarr.json")
    return max(chunks, key=lambda p: p.stat().st_size)


def flip(path: Path) -> None:
    chunk = max(
        (p for p in (path / "X").rglob("*") if p.is_file() and p.name != "zarr.json"), key=lambda p: p.stat().st_size
    )
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)


def cut(path: Path) -> None:
    chunk = max(
        (p for p in (path / "X").rglob("*") if p.is_file() and p.name != "zarr.json"), key=lambda p: p.stat().st_size
    )
    chunk.write_bytes(chunk.read_bytes()[:-9])


def drop(path: Path) -> None:
    largest(path).unlink()


def spoil_manifest(path: Path) -> None:
    manifest = path / "bigopt-manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows"', '"rosw"', 1))


@pytest.mark.parametrize("harm", [flip, cut, drop, spoil_manifest])
def test_a_dataset_of_ours_that_was_altered(harm, dataset, tmp_path, capsys):
    harm(dataset)
    code, result, _ = cli(
        capsys, "train", f"data.uri={dataset}", "model.name=ridge", "stop.epochs=1", f"run.dir={tmp_path / 'runs'}"
    )
    assert (code, result["code"]) == (3, 3)
    assert str(dataset) in f"{result['where']} {result['error']}"


@pytest.mark.parametrize(
    ("change", "keys", "expected", "message"),
    [
        (lambda X, y: (X[:-3], y), [], 3, "rows"),
        (lambda X, y: (X[:0], y[:0]), [], 3, "0 rows|no rows|empty"),
        (lambda X, y: (np.where(np.arange(X.size).reshape(X.shape) == 800, np.nan, X), y), [], 3, r"x0.*nan|nan.*x0"),
        (lambda X, y: (X, np.where(np.arange(len(y)) == 77, np.inf, y)), [], 3, "target is inf"),
        (lambda X, _: (X, None), [], 2, "target|no y|'y'"),
        (lambda X, y: (X, np.arange(len(y))), ["model.name=logistic"], 3, "softmax"),
        (lambda X, y: (X, np.ones(len(y), dtype=np.int64)), ["model.name=logistic"], 3, "one class"),
        (lambda X, y: (X, y), ["data.target=nope"], 2, "nope"),
        (lambda X, y: (X, y), ["data.features=[x0, x9]"], 2, "x9"),
        (lambda X, y: (X, y), ["data.weight=heavy"], 2, "heavy"),
    ],
)
def test_bad_data_of_a_stranger(change, keys, expected, message, tmp_path, capsys):
    X, y = table("numbers", n=200)
    changed_X, changed_y = change(X, y)
    path = zarr_group(tmp_path / "foreign.zarr", changed_X, changed_y)
    model = [] if keys and keys[0].startswith("model") else ["model.name=ridge"]
    runs = f"run.dir={tmp_path / 'runs'}"
    code, result, _ = cli(capsys, "train", f"data.uri={path}", *model, *keys, "stop.epochs=1", runs)
    whole = f"{result['where']}: {result['error']} ({result['hint']})"
    assert code == expected, whole
    assert re.search(message, whole), whole


def test_no_data_and_data_that_is_not_there(tmp_path, capsys):
    assert cli(capsys, "train", f"run.dir={tmp_path}")[0] == 2
    code, result, _ = cli(capsys, "train", f"data.uri={tmp_path / 'none.zarr'}", f"run.dir={tmp_path}")
    assert code == 3
    assert "none.zarr" in f"{result['where']} {result['error']}"


def test_a_run_directory_that_is_none(tmp_path, dataset, capsys):
    assert cli(capsys, "resume", str(tmp_path))[0] == 2
    assert cli(capsys, "evaluate", str(tmp_path), "--data", str(dataset))[0] == 2


def test_a_checkpoint_that_is_a_pickle_or_torn_is_refused(tmp_path, dataset, capsys):
    runs = tmp_path / "runs"
    keys = [f"data.uri={dataset}", "model.name=ridge", "stop.epochs=1", f"run.dir={runs}"]
    code, result, _ = cli(capsys, "train", *keys)
    assert code == 0
    run = Path(result["run"])
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    code, result, _ = cli(capsys, "resume", str(run), "stop.epochs=2")
    assert code == 6
    assert "checkpoint" in f"{result['where']} {result['error']}"


def test_a_model_meets_data_that_lacks_a_column(tmp_path, dataset, capsys):
    code, result, _ = cli(
        capsys, "train", f"data.uri={dataset}", "model.name=ridge", "stop.epochs=1", f"run.dir={tmp_path / 'runs'}"
    )
    X, y = table("numbers", n=50)
    other = zarr_group(tmp_path / "other.zarr", X[:, :4], y)
    code, result, _ = cli(capsys, "evaluate", result["run"], "--data", str(other))
    assert code == 3
    assert "x4" in f"{result['error']} {result['hint']}"


def test_predictions_do_not_overwrite(tmp_path, dataset, capsys):
    _, result, _ = cli(
        capsys, "train", f"data.uri={dataset}", "model.name=ridge", "stop.epochs=1", f"run.dir={tmp_path / 'runs'}"
    )
    out = tmp_path / "p.csv"
    assert cli(capsys, "predict", result["run"], "--data", str(dataset), "--out", str(out))[0] == 0
    before = out.read_bytes()
    code, refused, _ = cli(capsys, "predict", result["run"], "--data", str(dataset), "--out", str(out))
    assert (code, out.read_bytes()) == (2, before)
    assert "--force" in refused["hint"]
    shutil.rmtree(tmp_path / "runs")
