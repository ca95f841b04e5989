"""Where arrays live: the namespaces, and never a silent CPU run."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from bigopt.core import arrays
from bigopt.core.errors import ConfError


def test_the_namespace_is_the_arrays_own() -> None:
    strict = pytest.importorskip("array_api_strict")
    assert arrays.namespace(np.ones(2)) is np
    assert arrays.namespace(strict.ones(2)) is strict


def test_the_cpu_copies_nothing() -> None:
    x = np.ones(3)
    assert arrays.resolve_device("cpu") == "cpu"
    assert arrays.to_device(x, "cpu") is x
    assert arrays.to_host(x) is x


def test_without_cupy_gpu_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ConfError, match="CuPy is not installed") as caught:
        arrays.resolve_device("gpu")
    assert caught.value.where == "backend.device"
    assert arrays.resolve_device("auto") == "cpu"


@pytest.mark.parametrize(("count", "device"), [(0, None), (1, "gpu")])
def test_a_driver_without_a_card_is_no_gpu(monkeypatch: pytest.MonkeyPatch, count: int, device: str | None) -> None:
    runtime = types.SimpleNamespace(getDeviceCount=lambda: count, CUDARuntimeError=RuntimeError)
    fake = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    if device is None:
        with pytest.raises(ConfError, match="no CUDA device"):
            arrays.resolve_device("gpu")
    else:
        assert arrays.resolve_device("gpu") == device
    assert arrays.resolve_device("auto") == (device or "cpu")


def test_a_driver_that_fails_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    runtime = types.SimpleNamespace(getDeviceCount=fails, CUDARuntimeError=RuntimeError)
    fake = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    with pytest.raises(ConfError, match="cudaErrorInsufficientDriver"):
        arrays.resolve_device("gpu")


@pytest.mark.gpu
def test_a_round_trip_through_the_card_keeps_the_bits() -> None:
    if arrays.gpu_reason() is not None:
        pytest.skip(f"no GPU: {arrays.gpu_reason()}")
    x = np.random.default_rng(0).standard_normal((5, 3))
    on_card = arrays.to_device(x, "gpu")
    assert arrays.namespace(on_card).__name__ == "cupy"
    assert arrays.to_host(on_card).tobytes() == x.tobytes()


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfError, match="unknown device 'tpu'"):
        arrays.resolve_device("tpu")
