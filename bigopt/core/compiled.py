"""Compiled kernels: plain Python functions that numba turns into machine code, kept as object files.

A run uses one **kernel set** everywhere: ``numpy``, or ``compiled``, in which some sums and updates are loops written
in Python and compiled for the machine (`bigopt.models.fused`, `bigopt.optim.fused`). What such a loop computes depends
on numba, LLVM and the CPU, so their versions are part of the set's `identity`, which work carries to the workers.

Compiling takes seconds, a short job does not. So the machine code of a kernel is written to a file once, and later
processes load it with llvmlite alone in a few milliseconds; numba is not even imported::

    <cache>/bigopt/kernels/<digest of source, signature, numba, LLVM and CPU>.o

The folder belongs to the user and nobody else may write to it; otherwise it is not used, and every process compiles.
A file is the digest of what follows, the name of the function, and an ELF object: nothing is pickled.

Kernels keep to a small part of Python: arrays of fixed type and rank come in as arguments, nothing is allocated,
nothing is raised or returned. Then the function has no other symbols than itself, and the interpreter's lock is free
while it runs. `Kernel` passes the arrays as numba's calling convention wants them.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import inspect
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import ClusterError

NUMPY: Final = "numpy"
COMPILED: Final = "compiled"

Maker = Callable[..., tuple[Callable[..., None], frozenset[str]]]
"""``maker(*key)`` imports numba and gives the Python function of a kernel and the fast-math flags it may use."""

_LOCK: Final = threading.Lock()
_DIGEST: Final = hashlib.sha256().digest_size


@cache
def missing() -> str:
    """Return why the compiled set cannot be used here, or nothing."""
    for package in ("numba", "llvmlite"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install 'bigopt[fast]')"
    return ""


@cache
def name_of(dtype: np.dtype[Any]) -> str:
    """Return what signatures call a dtype; NumPy takes ten microseconds to say it."""
    return dtype.name


def identity(kernels: str) -> str:
    """Return what decides the bits of a kernel set on this machine.

    Parameters
    ----------
    kernels : str
        ``numpy`` or ``compiled``.

    Returns
    -------
    str
        ``numpy``, or ``compiled`` with the versions of numba and llvmlite, and the CPU with a digest of its features.
    """
    return NUMPY if kernels == NUMPY else _compiled_identity()


@cache
def _compiled_identity() -> str:
    from importlib.metadata import version

    from llvmlite import binding

    features = hashlib.sha256(binding.get_host_cpu_features().flatten().encode()).hexdigest()[:8]
    cpu = f"{binding.get_host_cpu_name()}-{features}"
    return f"{COMPILED} (numba {version('numba')}, llvmlite {version('llvmlite')}, {cpu})"


def uses_compiled(kernels: str) -> bool:
    """Return whether a work that was made for this kernel set uses the compiled kernels, after a check of the place.

    Parameters
    ----------
    kernels : str
        ``numpy``, ``compiled``, or the driver's `identity` of it, which this process must then share.

    Raises
    ------
    ClusterError
        Where the set is not the one of this process: the bits would differ.
    """
    if kernels == NUMPY:
        return False
    if why := missing():
        raise ClusterError(
            f"this run computes with the compiled kernels, and {why}",
            where=_here(),
            hint="install it on all workers, or set run.kernels=numpy",
        )
    if kernels not in (COMPILED, mine := identity(COMPILED)):
        raise ClusterError(
            f"the kernels are '{mine}', the driver's '{kernels}'",
            where=_here(),
            hint="use the same machines and packages, or set run.kernels=numpy, or run.bits=any",
        )
    return True


def _here() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _header() -> int:
    """Return where in a NumPy array's own structure the address of its data is; 0 where that is not as documented."""
    probe, header = np.arange(3.0), object.__basicsize__
    found = sys.implementation.name == "cpython" and all(
        ctypes.c_void_p.from_address(id(a) + header).value == a.__array_interface__["data"][0]
        for a in (probe, probe[1:], probe.reshape(3, 1))
    )
    return header if found else 0


_HEADER: Final = _header()
_PLAIN: Final = 0x101
"""NumPy's flags C_CONTIGUOUS and ALIGNED."""


def pointer(array: Any) -> Any:
    """Return the address of an array's data; `__array_interface__` takes microseconds to say it."""
    if _HEADER:
        return ctypes.c_void_p.from_address(id(array) + _HEADER).value
    return array.__array_interface__["data"][0]


class Kernel:
    """A loaded kernel: call it with the arrays (C-contiguous, of the signature's types), integers and floats.

    Parameters
    ----------
    engine : llvmlite.binding.ExecutionEngine
        Holds the machine code.
    name : str
        Of the function in it.
    signature : tuple of str
        Types of the arguments in numba's words: ``float32[:,::1]``, ``intp``, ``float64``.

    Attributes
    ----------
    address : int
        Of the machine code.
    words : int
        Arguments that it takes, an array's being several.
    """

    def __init__(self, engine: Any, name: str, signature: tuple[str, ...]) -> None:
        self._engine = engine
        kinds: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
        for kind in signature:
            rank = kind.count(":") - 1
            if rank > 0:  # memory owner, its object, size, item size, data, then shape and strides
                kinds += [ctypes.c_void_p] * 2 + [ctypes.c_ssize_t] * 2 + [ctypes.c_void_p]
                kinds += [ctypes.c_ssize_t] * (2 * rank)
            else:
                kinds.append({"intp": ctypes.c_ssize_t, "float64": ctypes.c_double, "float32": ctypes.c_float}[kind])
        self.words = len(kinds)
        self.address = engine.get_function_address(name)
        self._function = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(self.address)
        self._types = tuple(np.dtype(kind.partition("[")[0]) if "[" in kind else None for kind in signature)
        self._ranks = tuple(max(0, kind.count(":") - 1) for kind in signature)
        self._starts = [2 + sum(5 + 2 * rank if rank else 1 for rank in self._ranks[:k]) for k in range(len(signature))]

    def __call__(self, *values: Any) -> None:
        """Run the kernel; the interpreter's lock is released.

        Raises
        ------
        TypeError
            For an array of another dtype, rank or order than the signature has.
        """
        out, raised = ctypes.c_void_p(), ctypes.c_void_p()
        if self._function(ctypes.addressof(out), ctypes.addressof(raised), *self._flat(values)):
            raise RuntimeError("a compiled kernel failed")

    def bound(self, *values: Any) -> npt.NDArray[np.int64]:
        """Return all that the machine code at `address` is called with for some arrays, as numbers of 8 bytes.

        The arrays must outlive its use; whoever calls may exchange where they lie and how long they are. First come
        the addresses of two words that the code may write to, which lie behind the arguments.

        Raises
        ------
        TypeError
            As a call.
        """
        found = np.array([0, 0, *(0 if n is None else n for n in self._flat(values)), 0, 0], dtype=np.int64)
        end = pointer(found) + found.nbytes
        found[:2] = end - 16, end - 8
        return found

    def run(self, words: npt.NDArray[np.int64]) -> None:
        """Run the kernel with what `bound` has returned; the interpreter's lock is released."""
        if self._function(*words[:-2].tolist()):
            raise RuntimeError("a compiled kernel failed")

    def rebind(self, words: npt.NDArray[np.int64], k: int, array: Any) -> None:
        """Put another array, or integer, in the place of the k-th value of what `bound` has returned.

        An array is of the same kind, in C order, and but for its first axis of the same shape.
        """
        at = self._starts[k]
        if self._types[k] is None:
            words[at] = array
            return
        words[at + 2], words[at + 4], words[at + 5] = array.size, pointer(array), array.shape[0]

    def _flat(self, values: tuple[Any, ...]) -> list[Any]:
        flat: list[Any] = []
        for value, dtype, rank in zip(values, self._types, self._ranks, strict=True):
            if dtype is None:
                flat.append(value)
                continue
            kind = value.dtype
            if (kind is not dtype and kind != dtype) or value.ndim != rank or value.flags.num & _PLAIN != _PLAIN:
                raise TypeError(f"a kernel wants {dtype} of {rank} axes in C order, not {value.dtype}{value.shape}")
            flat += [
                None,
                None,
                value.size,
                dtype.itemsize,
                pointer(value),
                *value.shape,
                *value.strides,
            ]
        return flat


@cache
def _engines() -> Any:
    """Return llvmlite's binding, ready to make engines for this machine."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


def kernel(maker: Maker, key: tuple[Any, ...], signature: tuple[str, ...]) -> Kernel:
    """Return a kernel, from this process, from its object file, or compiled now.

    Parameters
    ----------
    maker : callable
        A function of a module ``fused*.py``; see `Maker`. All such modules beside it belong to the digest.
    key : tuple
        Its arguments, of which different ones give different kernels.
    signature : tuple of str
        Types of the kernel's arguments.
    """
    with _LOCK:  # two threads of one process want the same kernel in the first round
        return _kernel(maker, key, signature)


@cache
def _kernel(maker: Maker, key: tuple[Any, ...], signature: tuple[str, ...]) -> Kernel:
    source = "".join(path.read_text() for path in _sources(maker))
    text = "\0".join((_compiled_identity(), sys.platform, source, maker.__name__, repr(key), *signature))
    folder = cache_folder()
    path = None if folder is None else folder / f"{hashlib.sha256(text.encode()).hexdigest()}.o"
    found = None if path is None else _read(path)
    if found is None:
        found = _compile(maker, key, signature)
        if path is not None:
            _write(path, *found)
    name, code = found
    binding = _engines()
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.object_file.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Kernel(engine, name, signature)


def _sources(maker: Maker) -> list[Path]:
    """Return the files that a kernel may be made from: this one, and all ``fused*.py`` beside the maker's."""
    return [Path(__file__), *sorted(Path(inspect.getfile(maker)).parent.glob("fused*.py"))]


def _compile(maker: Maker, key: tuple[Any, ...], signature: tuple[str, ...]) -> tuple[str, bytes]:
    """Return the name of the function and its object code."""
    from numba import njit

    function, flags = maker(*key)
    dispatcher = njit(
        nogil=True,
        fastmath=set(flags) or False,
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        _nrt=False,
    )(function)
    dispatcher.compile(f"void({', '.join(signature)})")
    (overload,) = dispatcher.overloads.values()
    name, library = str(overload.fndesc.llvm_func_name), overload.library
    others = {f.name for f in library._final_module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    if others:  # would have no address in a process without numba
        raise TypeError(f"kernel '{function.__name__}' calls {', '.join(sorted(others))}")
    return name, bytes(library._get_compiled_object())


def cache_folder() -> Path | None:
    """Return the folder of the object files, or None where there is none that only this user can write to."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    parent = Path(home) / "bigopt"
    folder = parent / "kernels"
    try:
        parent.parent.mkdir(parents=True, exist_ok=True)
        for path in (parent, folder):
            path.mkdir(mode=0o700, exist_ok=True)
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
                return None
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _read(path: Path) -> tuple[str, bytes] | None:
    """Return what `_write` wrote, or None where there is nothing or it is damaged (it is written again)."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, rest = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(rest).digest() != digest:
        return None
    name, _, code = rest.partition(b"\n")
    return name.decode(), code


def _write(path: Path, name: str, code: bytes) -> None:
    rest = name.encode() + b"\n" + code
    with contextlib.suppress(OSError):  # a full or read-only disk: the next process compiles again
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(rest).digest() + rest)
        os.replace(temporary, path)
