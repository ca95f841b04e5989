"""The only file that knows CuPy: where arrays live and which namespace computes on them.

Models are written against the array API namespace of their inputs (`namespace`), so that the same code runs on NumPy
and on CuPy.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np

from bigopt.core.errors import ConfError
from bigopt.core.names import nearest

Device = Literal["cpu", "gpu"]


def namespace(array: Any) -> Any:
    """Return the array API namespace of an array (numpy, cupy, array_api_strict).

    CuPy mirrors the namespace in its main module, but its arrays (14.2) do not say so themselves.
    """
    if isinstance(array, np.ndarray):
        return np  # what it says itself, at a tenth of the time: this is asked a dozen times a block
    find = getattr(array, "__array_namespace__", None)
    if find is not None:
        return find()
    if type(array).__module__.partition(".")[0] == "cupy":
        return _cupy()
    raise TypeError(f"{type(array).__qualname__} is no array that models compute on")


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
        Where ``gpu`` was asked for and there is none (never a silent CPU run), or for another name.
    """
    names = ("cpu", "gpu", "auto")
    if asked not in names:
        raise ConfError(f"unknown device '{asked}'", where="backend.device", hint=nearest(asked, names))
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
