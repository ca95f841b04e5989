"""The source of the compiled loop that reads rows from files and hands them to a kernel that adds them.

A pass over rows that do not stay in memory opens a file, reads it, adds its rows and goes on to the next: too little
work at a time for an interpreter whose lock every thread wants back each time. Here all of it is one call, with the
functions of the system at addresses that are handed in. The kernel that adds is called at its address too, with the
arguments that it would get from Python but for the rows, so that there is one machine code for rows from files and
from memory, and the bits are the same.

Rows are read in pieces that stay in a cache of the core until they are added. What is left over at the end of a file,
where its rows are no multiple of what the kernel takes, is moved to just before the place where pieces are read to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

SIGNATURE: Final = ("int64[::1]",) * 6
"""Types of calls, names, numbers, flat, scale and out."""

RESIDUE: Final = 0x48674BC7
"""CRC-32C of anything followed by its own."""

_READ_ONLY: Final = 0o2000000
"""And not for children of this process."""
_WILL_NEED: Final = 3
_WORD: Final = 64
_LOW: Final = 0xFFFFFFFF
AT_X: Final = 2
AT_Y: Final = 11
AT_WEIGHT: Final = 18
"""Where the first arrays begin among the arguments of a kernel: after two words come owner, its object, entries, bytes
of one, address, shape and strides of each."""


def make_fold_files(count: int) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel that adds the rows of files by another kernel.

    Its arguments, all of int64:

    - ``calls``, addresses: of `bigopt.core.extents.system`, of the kernel that adds, of the one that scales or 0, of
      ``crc32c_extend`` or 0;
    - ``names``: where the name of each file is in memory;
    - ``numbers``: rows, rows of an extent, bytes of a row, where an extent begins, whether it must end the file, rows
      of a piece, what all but the last rows are added in multiples of, where pieces are read to (behind room for so
      many rows), and whether the system is to be told what comes next;
    - ``flat``, the arguments of the kernel that adds (`Kernel.bound`), of which X, y and weight come first;
      ``scale``, those of the one that scales, X first;
    - ``out``: the rows that were added, and the bytes that were read. They stay 0 where anything was not as expected.

    Parameters
    ----------
    count : int
        Arguments of the kernel that adds.
    """
    open_file, close_file = make_call(32, 64, 32), make_call(32, 32)
    read_file, advise = make_call(64, 32, 64, 64, 64), make_call(32, 32, 64, 64, 32)
    move, check = make_call(64, 64, 64, 64), make_call(32, 32, 64, 64)
    add, prepare = make_spread(count), make_spread(_SCALE)

    def fold_files(calls: Any, names: Any, numbers: Any, flat: Any, scale: Any, out: Any) -> None:
        rows, height, width, start = numbers[0], numbers[1], numbers[2], numbers[3]
        beyond, most, step, place = numbers[4], numbers[5], numbers[6], numbers[7]
        tail = 4 if calls[7] != 0 else 0
        weighted = flat[AT_WEIGHT + 2] > 0
        done, held, read = 0, 0, 0
        for k in range(names.shape[0]):
            handle = open_file(calls[0], names[k], _READ_ONLY, 0, 0)
            if handle < 0:
                return
            if numbers[8] != 0 and k + 1 < names.shape[0]:
                following = open_file(calls[0], names[k + 1], _READ_ONLY, 0, 0)
                if following >= 0:
                    advise(calls[4], following, start, height * width, _WILL_NEED)
                    close_file(calls[2], following, 0, 0, 0)
            first, crc, fine = 0, 0, True
            while fine and first < height:
                m = min(most - held, height - first)
                at, size, ends = start + first * width, m * width, first + m == height
                first += m
                if ends:
                    size += tail
                if read_file(calls[1], handle, place, size + beyond if ends else size, at) != size:
                    fine = False
                    break
                if tail > 0:
                    crc = check(calls[7], crc, place, size, 0)
                    if ends and crc & _LOW != RESIDUE:
                        fine = False
                        break
                read += size
                m = min(m, rows - done - held)
                if calls[6] != 0 and m > 0:
                    scale[AT_X + 2], scale[AT_X + 4], scale[AT_X + 5] = m * scale[AT_X + 6], place, m
                    fine = prepare(calls[6], scale) == 0
                n = held + m
                use = n if done + n == rows else n // step * step
                if fine and use > 0:
                    flat[AT_X + 2], flat[AT_X + 4], flat[AT_X + 5] = use * flat[AT_X + 6], place - held * width, use
                    flat[AT_Y + 2], flat[AT_Y + 5] = use, use
                    if weighted:
                        flat[AT_WEIGHT + 2], flat[AT_WEIGHT + 5] = use, use
                    fine = add(calls[5], flat) == 0
                    flat[AT_Y + 4] += use * flat[AT_Y + 3]
                    if weighted:
                        flat[AT_WEIGHT + 4] += use * flat[AT_WEIGHT + 3]
                    done += use
                held = n - use
                if held > 0:
                    move(calls[3], place - held * width, place + (m - held) * width, held * width, 0)
            close_file(calls[2], handle, 0, 0, 0)
            if not fine:
                return
        out[0], out[1] = done, read

    return fold_files, frozenset()


_SCALE: Final = 25
"""Arguments of the kernel that scales."""


def scale_signature(dtype: str) -> tuple[str, ...]:
    """Return the types of X, mean and scale."""
    return f"{dtype}[:,::1]", "float64[::1]", "float64[::1]"


def make_scale(dtype: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel of ``X = (X - mean) / scale`` in place, computed in float64, with NumPy's bits."""
    T = np.dtype(dtype).type

    def scale_rows(X: Any, mean: Any, scale: Any) -> None:
        for i in range(X.shape[0]):
            for j in range(X.shape[1]):
                X[i, j] = T((np.float64(X[i, j]) - mean[j]) / scale[j])

    return scale_rows, frozenset()


def make_call(result: int, *bits: int) -> Any:
    """Return ``call(address, a, b, c, d)`` for a C function of up to four integers of so many bits, the first ones."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def call(_typing: Any, _address: Any, _a: Any, _b: Any, _c: Any, _d: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            kinds = [ir.IntType(n) for n in bits]
            given = [
                value if n == _WORD else builder.trunc(value, kind)
                for value, kind, n in zip(values[1:], kinds, bits, strict=False)
            ]
            kind = ir.FunctionType(ir.IntType(result), kinds)
            found = builder.call(builder.inttoptr(values[0], kind.as_pointer()), given)
            return found if result == _WORD else builder.sext(found, ir.IntType(_WORD))

        return types.int64(*(types.int64,) * 5), generate

    return intrinsic(call)


def make_spread(count: int) -> Any:
    """Return ``call(address, values)``: call a function of `count` words with the entries of an array."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def call(_typing: Any, _address: Any, values: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            data = context.make_array(signature.args[1])(context, builder, given[1]).data
            word = ir.IntType(_WORD)
            kind = ir.FunctionType(ir.IntType(32), [word] * count)
            entries = [builder.load(builder.gep(data, [word(k)])) for k in range(count)]
            return builder.sext(builder.call(builder.inttoptr(given[0], kind.as_pointer()), entries), word)

        return types.int64(types.int64, values), generate

    return intrinsic(call)
