"""Where the routines of the BLAS lie that NumPy has loaded, for compiled loops that call them as NumPy does.

Whoever calls the same routine with the same arguments gets the bits of `numpy.matmul`, under the number of threads that
NumPy's calls are held to. Names say how long the integers are: OpenBLAS of NumPy's own packages takes 64 bits and ends
its names in ``64_``.
"""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from typing import Final, NamedTuple

_MODULES: Final = "numpy._core._multiarray_umath", "numpy.core._multiarray_umath"
_NAMES: Final = ("scipy_cblas_{}64_", 64), ("cblas_{}64_", 64), ("cblas_{}", 32)
_PREFIXES: Final = {"float32": "s", "float64": "d"}


class Routines(NamedTuple):
    """CBLAS routines of one dtype.

    Parameters
    ----------
    gemm, gemv : int
        Their addresses.
    integer : int
        Bits of the integers that they take.
    """

    gemm: int
    gemv: int
    integer: int


@cache
def routines(dtype: str) -> Routines | None:
    """Return the routines for ``float32`` or ``float64``, or None where NumPy has no BLAS that is known here."""
    for module in _MODULES:
        try:
            library = ctypes.CDLL(importlib.import_module(module).__file__)
        except (ImportError, OSError, TypeError):
            continue
        for name, integer in _NAMES:
            try:
                gemm, gemv = (getattr(library, name.format(_PREFIXES[dtype] + kind)) for kind in ("gemm", "gemv"))
            except AttributeError:
                continue
            return Routines(_address(gemm), _address(gemv), integer)
    return None


def _address(routine: ctypes._NamedFuncPointer) -> int:
    return ctypes.cast(routine, ctypes.c_void_p).value or 0
