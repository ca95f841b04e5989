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
from bigopt.core.staging import Stage

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


def send(array: Any) -> Any:
    """Copy a host array to the calling thread's card."""
    return _cupy().asarray(array)


def astype(array: Any, dtype: str) -> Any:
    """Return an array in another dtype (no copy where it has it)."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    xp = namespace(array)
    return xp.astype(array, getattr(xp, dtype), copy=False)


def gathered(array: Any, rows: Any) -> Any:
    """Return rows of an array on a card by their numbers, which are on the host."""
    xp = namespace(array)
    return xp.take(array, xp.asarray(rows), axis=0)


def to_host(array: Any) -> Any:
    """Return a NumPy array of the same values (no copy where it is one)."""
    return array if isinstance(array, np.ndarray) else _cupy().asnumpy(array)


def use_card(number: int) -> int:
    """Let the calling thread compute on one of the visible cards.

    Parameters
    ----------
    number : int
        Of the slot: slots take the cards in turn, so that each has its own where there are enough, else they share.

    Returns
    -------
    int
        Number of the card among those that ``CUDA_VISIBLE_DEVICES`` leaves.
    """
    runtime = _cupy().cuda.runtime
    card: int = number % runtime.getDeviceCount()
    runtime.setDevice(card)
    return card


def card_number() -> int:
    """Return the card that the calling thread computes on."""
    found: int = _cupy().cuda.runtime.getDevice()
    return found


def free_card_memory() -> int:
    """Return the bytes of the calling thread's card that nobody has taken."""
    free, _ = _cupy().cuda.runtime.memGetInfo()
    return int(free)


class CudaCard:
    """The calling thread's card (`bigopt.core.staging.Card`)."""

    def __init__(self) -> None:
        self._cuda = _cupy().cuda
        self._copying = self._cuda.Stream(non_blocking=True)

    def pinned(self, size: int, dtype: np.dtype[Any]) -> Any:
        """Return an uninitialised vector in page-locked host memory."""
        memory = self._cuda.alloc_pinned_memory(max(1, size * dtype.itemsize))
        return np.frombuffer(memory, dtype=dtype, count=size)

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        """Return an uninitialised vector on the card."""
        return _cupy().empty(size, dtype=dtype)

    def shaped(self, vector: Any, shape: tuple[int, ...]) -> Any:
        """Return the same memory of the card as an array of another shape."""
        return vector.reshape(shape)

    def copy(self, source: Any, target: Any) -> None:
        """Let the copying stream copy pinned memory to the card."""
        target.set(source, stream=self._copying)

    def copied(self) -> Any:
        """Return an event after all copies asked for so far."""
        return self._copying.record()

    def computed(self) -> Any:
        """Return an event after all kernels asked for so far."""
        return self._cuda.get_current_stream().record()

    def copy_after(self, event: Any) -> None:
        """Let the copying stream wait for an event."""
        self._copying.wait_event(event)

    def compute_after(self, event: Any) -> None:
        """Let the computing stream wait for an event."""
        self._cuda.get_current_stream().wait_event(event)

    def host_after(self, event: Any) -> None:
        """Wait here until an event has happened."""
        event.synchronize()


def stage() -> Stage:
    """Return new lanes to the calling thread's card."""
    return Stage(CudaCard())
