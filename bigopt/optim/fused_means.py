"""The source of the compiled norm: ||total / divisor|| in one pass, and the mean itself where that is wanted.

An update needs the norm of the mean gradient before it may touch the state: a gradient that is not finite is refused,
and clipping scales by it. NumPy walks the vector three times for that (divide, square, add). Here it is read once.
Vectors that stay in the cache are divided on the way; long ones are left alone, and the update divides each entry when
it comes by (`bigopt.optim.fused_updates`), because writing them would cost more than dividing twice.

The sum has the bits of `bigopt.optim.transform.norm`: tile by tile, each by NumPy's pairwise sum. That cuts a tile in
halves (of whole eights) down to 128 entries, adds those in eight strands, and the strands and the pieces in pairs. Who
is added to whom depends on the length alone: `pairs`. Eight strands are a vector of the machine's, which is said in the
words of LLVM, since a compiler may not make vectors of a sum without reordering it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BLOCK: Final = 128
"""Entries that NumPy's pairwise sum does not cut any more."""

Ints = npt.NDArray[np.intp]


@lru_cache(maxsize=8)
def pairs(n: int) -> Ints:
    """Return the order of NumPy's pairwise sum of n contiguous entries.

    Returns
    -------
    ndarray, shape (3 pieces,)
        The number of pieces; where each piece ends; then pairs (left, right): sum `right` is added to sum `left`, and
        what is left is the first one.
    """
    ends: list[int] = []
    joins: list[int] = []

    def cut(start: int, n: int) -> int:
        if n <= BLOCK:
            ends.append(start + n)
            return len(ends) - 1
        half = n // 2 - n // 2 % 8
        first = cut(start, half)
        joins.extend((first, cut(start + half, n - half)))
        return first

    cut(0, n)
    return np.array([len(ends), *ends, *joins], dtype=np.intp)


def signature(dtype: str) -> tuple[str, ...]:
    """Return the types of total, scale, first, last, tile, order, last_order, sums and parts."""
    ints, floats = ("intp[::1]",) * 2, ("float64[::1]",) * 2
    return (f"{dtype}[::1]", dtype, "intp", "intp", "intp", *ints, *floats)


def make_squares(_dtype: str, how: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(total, scale, first, last, tile, order, last_order, sums, parts)``.

    It writes ``sums[j]``, the sum of the squares of ``total / scale`` over tile j, for the tiles ``first <= j < last``,
    each in its order (`pairs`), which is another one for a last tile that is not full; `parts` is room for the sums of
    the pieces of a tile.

    Parameters
    ----------
    _dtype : str
        ``run.dtype``; the signature says it.
    how : str
        ``times``: total is multiplied by the scale, and kept; ``over``: it is divided by it, and kept; ``write``: it is
        divided in place.
    """
    from numba import njit

    wide, eights = np.float64, make_eights(how)
    writes, times = how == "write", how == "times"

    def rest(t: Any, start: Any, stop: Any, s: Any, total: Any) -> Any:
        for i in range(start, stop):
            g = t[i] * s if times else t[i] / s
            if writes:
                t[i] = g
            total += wide(g) * wide(g)
        return total

    tail = njit(rest, error_model="numpy")

    def squares(
        t: Any, scale: Any, first: Any, last: Any, tile: Any, order: Any, last_order: Any, sums: Any, parts: Any
    ) -> None:
        for j in range(first, last):
            which = order if (j + 1) * tile <= t.shape[0] else last_order
            pieces, start = which[0], j * tile
            for k in range(pieces):
                stop = j * tile + which[1 + k]
                count = (stop - start) // 8
                parts[k] = tail(t, start + 8 * count, stop, scale, eights(t, start, count, scale))
                start = stop
            for k in range(1 + pieces, 3 * pieces - 1, 2):
                parts[which[k]] += parts[which[k + 1]]
            sums[j] = parts[0]

    return squares, frozenset()


def joined_signature(dtype: str, narrow: str) -> tuple[str, ...]:
    """Return the types of left, right, piece, scale, first, last, tile, order, last_order, sums and parts."""
    return (f"{narrow}[::1]", f"{narrow}[::1]", *signature(dtype))


def make_joined_squares(dtype: str, _narrow: str, how: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(left, right, piece, ...)``: `make_squares` of left + right, a sum that is not kept.

    Parameters
    ----------
    dtype, how : str
        As in `make_squares`; nothing is written, and `piece` is room for `BLOCK` entries.
    _narrow : str
        dtype of left and right (the signature says it): each is widened, then they are added.
    """
    from numba import njit

    wide, double, eights, times = np.dtype(dtype).type, np.float64, make_eights(how), how == "times"

    def rest(t: Any, start: Any, stop: Any, s: Any, total: Any) -> Any:
        for i in range(start, stop):
            g = t[i] * s if times else t[i] / s
            total += double(g) * double(g)
        return total

    def both(a: Any, b: Any, t: Any) -> None:
        for i in range(a.shape[0]):
            t[i] = wide(a[i]) + wide(b[i])

    tail, add = njit(rest, error_model="numpy"), njit(both, error_model="numpy")

    def joined(
        a: Any, b: Any, t: Any, scale: Any, first: Any, last: Any, tile: Any, order: Any, last_order: Any, sums: Any,
        parts: Any,
    ) -> None:  # fmt: skip
        for j in range(first, last):
            which = order if (j + 1) * tile <= a.shape[0] else last_order
            pieces, start = which[0], j * tile
            for k in range(pieces):
                stop = j * tile + which[1 + k]
                size = stop - start
                count = size // 8
                add(a[start:stop], b[start:stop], t)
                parts[k] = tail(t, 8 * count, size, scale, eights(t, 0, count, scale))
                start = stop
            for k in range(1 + pieces, 3 * pieces - 1, 2):
                parts[which[k]] += parts[which[k + 1]]
            sums[j] = parts[0]

    return joined, frozenset()


def make_eights(how: str) -> Any:
    """Return ``eights(t, start, count, s)``: the sum of squares of 8 count entries, in eight strands."""
    from llvmlite import ir
    from numba import float64, intp
    from numba.core import cgutils
    from numba.extending import intrinsic

    def eights(_typing: Any, t: Any, _start: Any, _count: Any, s: Any) -> Any:
        def generate(context: Any, builder: Any, given: Any, values: Any) -> Any:
            array = context.make_array(given.args[0])(context, builder, values[0])
            narrow, wide = ir.VectorType(values[3].type, 8), ir.VectorType(ir.DoubleType(), 8)
            scale = ir.Constant(narrow, ir.Undefined)
            for k in range(8):
                scale = builder.insert_element(scale, values[3], ir.Constant(ir.IntType(32), k))
            strands = cgutils.alloca_once_value(builder, ir.Constant(wide, [0.0] * 8))
            item = 4 if values[3].type == ir.FloatType() else 8
            with cgutils.for_range(builder, values[2]) as loop:
                at = builder.add(values[1], builder.mul(loop.index, ir.Constant(loop.index.type, 8)))
                place = builder.bitcast(builder.gep(array.data, [at]), narrow.as_pointer())
                g = builder.load(place, align=item)
                g = builder.fmul(g, scale) if how == "times" else builder.fdiv(g, scale)
                if how == "write":
                    builder.store(g, place, align=item)
                g = builder.fpext(g, wide) if item == 4 else g
                builder.store(builder.fadd(builder.load(strands), builder.fmul(g, g)), strands)
            eight = builder.load(strands)
            sums = [builder.extract_element(eight, ir.Constant(ir.IntType(32), k)) for k in range(8)]
            while len(sums) > 1:
                sums = [builder.fadd(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
            return sums[0]

        return float64(t, intp, intp, s), generate

    return intrinsic(eights)
