"""Whole runs with the compiled kernel set: near NumPy's result, the same bits anywhere, refused where it is missing."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import datasets, files, run, run_on

from bigopt import kernelset
from bigopt.backends.base import check_fingerprint, fingerprint
from bigopt.config import load_conf
from bigopt.core import compiled
from bigopt.core.errors import ClusterError, ConfError
from bigopt.data.memory import from_arrays
from bigopt.fit import resume
from bigopt.models import LinearModel, fused
from bigopt.models.losses import BinaryCrossEntropy
from bigopt.work import GradientSum

pytestmark = pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())

KEYS = ("model.name=logistic", "optimizer.name=momentum", "batch.size=90", "data.dtype=float32")


def test_same_bits_with_any_number_of_slots_and_near_numpy(tmp_path: Path) -> None:
    ends = [run(tmp_path, "two", *KEYS, f"backend.workers={w}", "run.kernels=compiled") for w in (1, 3)]
    plain = run(tmp_path, "two", *KEYS, "run.kernels=numpy")
    assert ends[0]["params_sha256"] == ends[1]["params_sha256"] != plain["params_sha256"]
    assert abs(ends[0]["loss"] / plain["loss"] - 1) < 1e-5
    for end, name in ((ends[0], "compiled"), (plain, "numpy")):
        assert f"kernels {name} (run.kernels)" in (Path(end["run"]) / "log.txt").read_text()
        assert f'"kernels": "{compiled.identity(name)}"' in (Path(end["run"]) / "manifest.json").read_text()


NETWORK = (
    *("model.name=mlp", "model.hidden=[9]", "optimizer.name=adamw", "optimizer.clip_norm=1", "batch.size=30"),
    *("data.dtype=float32", "data.task=classification", "stop.epochs=3"),
)


@pytest.mark.parametrize("lanes", [2, 0])
@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
def test_a_network_has_the_same_bits_wherever_it_is_added_up(tmp_path: Path, kernels: str, lanes: int) -> None:
    """One slot adds float32 gradients itself, two leave that to the driver, three have some of both."""
    keys = (*NETWORK, f"run.kernels={kernels}", f"batch.lanes={lanes}")
    ends = [run(tmp_path, "four", *keys, f"backend.workers={w}") for w in (1, 2, 3)]
    ends.append(run(tmp_path, "four", *keys, "model.backprop=driver"))
    assert len({end["params_sha256"] for end in ends}) == 1


@pytest.mark.slow
def test_a_network_has_the_same_bits_on_dask(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("zarr")
    path = files(tmp_path, "four", "zarr")
    keys = (*NETWORK, "run.kernels=compiled", "batch.lanes=2")
    local = run_on(path, tmp_path, *keys)
    there = run_on(path, tmp_path, *keys, "backend.name=dask", "backend.workers=2")
    assert there["params_sha256"] == local["params_sha256"]


@pytest.mark.slow
def test_same_bits_on_dask(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("zarr")
    path = files(tmp_path, "two", "zarr")
    local = run_on(path, tmp_path, *KEYS, "run.kernels=compiled")
    there = run_on(path, tmp_path, *KEYS, "run.kernels=compiled", "backend.name=dask", "backend.workers=2")
    assert there["params_sha256"] == local["params_sha256"]


def test_a_resumed_run_keeps_its_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zarr")
    path = files(tmp_path, "two", "zarr")
    monkeypatch.setattr(kernelset, "LONG", 1.0)
    begun = run_on(path, tmp_path, *KEYS)
    monkeypatch.setattr(kernelset, "LONG", 1e99)  # a new run would now take numpy
    ended = resume(Path(begun["run"]), ["stop.epochs=6"])
    whole = run_on(path, tmp_path, *KEYS, "stop.epochs=6", "run.kernels=compiled")
    assert ended["params_sha256"] == whole["params_sha256"]
    assert "kernels compiled (as the run began)" in (Path(begun["run"]) / "log.txt").read_text()
    monkeypatch.setattr(compiled, "missing", lambda: "numba is not installed")
    with pytest.raises(ClusterError, match="kernels: 'numpy' here, 'compiled"):
        resume(Path(begun["run"]), ["stop.epochs=7"])


def test_auto_looks_at_the_length_of_the_run() -> None:
    rows, d = 1000, 20
    data = from_arrays(np.zeros((rows, d)), np.zeros(rows))

    def chosen(*keys: str) -> str:
        return kernelset.choose(load_conf([], ["data.uri=memory", *keys]), data, "cpu").name

    long = f"stop.epochs={int(kernelset.LONG) // (rows * d) + 1}"
    assert chosen("model.name=logistic", long) == "compiled"
    assert chosen("model.name=logistic", long, "run.kernels=numpy") == "numpy"
    assert chosen("model.name=logistic", "stop.epochs=3") == "numpy"
    assert chosen("model.name=logistic", "stop.epochs=3", "run.kernels=compiled") == "compiled"
    assert chosen("model.name=logistic", "batch.size=1", "stop.steps=1000000") == "numpy"
    assert chosen("model.name=logistic", "batch.size=full", "stop.steps=1000000") == "compiled"
    assert chosen("model.name=logistic", "stop.seconds=5") == "compiled"
    assert chosen("model.name=softmax", long) == "compiled"
    assert chosen("model.name=mlp", "model.hidden=[3]", "stop.epochs=3") == "numpy"
    assert chosen("model.name=mlp", "model.hidden=[3000]", "batch.size=1", "stop.epochs=30") == "compiled"
    conf = load_conf([], ["data.uri=memory", "model.name=logistic", long])
    assert kernelset.choose(conf, data, "gpu").name == "numpy"
    asked = load_conf([], ["data.uri=memory", "run.kernels=compiled"])
    with pytest.raises(ConfError, match=r"run.kernels=compiled: .*CPU"):
        kernelset.choose(asked, data, "gpu")


def test_without_numba(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "missing", lambda: "numba is not installed")
    assert run(tmp_path, "two", *KEYS)["status"] == "completed"
    with pytest.raises(ConfError, match="numba is not installed"):
        run(tmp_path, "two", *KEYS, "run.kernels=compiled")
    with pytest.raises(ClusterError, match="numba is not installed"):
        compiled.uses_compiled("compiled (numba 1)")


def test_work_of_another_set_is_refused_by_whoever_gets_it() -> None:
    view = datasets("two")
    model = LinearModel(5, 1, BinaryCrossEntropy())
    work: Any = GradientSum(model, view.train, 0, "float64", 32, kernels="compiled (numba 0.1)")  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="the driver's 'compiled"):
        work.prepare((np.zeros(6),))
    with contextlib.suppress(AttributeError):  # the set is agreed: it goes on, to the view, which is none here
        replace(work, kernels=compiled.identity("compiled")).prepare((np.zeros(6),))
    assert fused.has_kernel(model, "float32")


def test_fingerprints_name_the_set() -> None:
    mine = fingerprint("compiled")
    assert mine["kernels"] == compiled.identity("compiled")
    assert "numba" in mine["kernels"]
    with pytest.raises(ClusterError, match="kernels: 'compiled"):
        check_fingerprint(mine, fingerprint(), who="the run so far", bits="strict")
