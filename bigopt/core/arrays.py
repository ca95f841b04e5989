"""The only file that knows CuPy: where arrays live and which namespace computes on them.

Models are written against the array API namespace of their inputs (`namespace`), so that the same code runs on NumPy
and on CuPy.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np

from bigopt.core.errors import ConfError

Device = Literal["cpu", "gpu"]


def namespace(array: Any) -> Any:
    """Return the array API namespace of an array (numpy, cupy, array_api_strict)."""
    return array.__array_namespace__()


def _cupy() -> Any:
    return importlib.import_module("cupy")


def gpu_reason() -> str | None:
    """Return why no GPU can be used here, or None where one can."""
    try:
        cupy = _cupy()
    except ImportError:
        return "CuPy is not installed (pip install 'bigopt[gpu]')"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no CUDA device: {error}"
    return None if count else "no CUDA device"


def resolve_device(asked: str) -> Device:
    """Turn ``cpu | gpu | auto`` into the device that is used.

    Raises
    ------
    ConfError
        Where ``gpu`` was asked for and there is none; never a silent CPU run.
    """
    if asked == "cpu":
        return "cpu"
    reason = gpu_reason()
    if asked == "gpu" and reason is not None:
        raise ConfError(f"device gpu: {reason}", where="backend.device", hint="set backend.device=cpu")
    return "cpu" if reason is not None else "gpu"


def to_device(array: Any, device: Device) -> Any:
    """Copy a host array to the device (no copy on the CPU)."""
    return _cupy().asarray(array) if device == "gpu" else array


def to_host(array: Any) -> Any:
    """Return a NumPy array of the same values (no copy where it is one)."""
    return array if isinstance(array, np.ndarray) else _cupy().asnumpy(array)
