"""The source of the compiled loop that hands the rows of one unit after the other to a kernel, and folds their sums.

A pass over rows in memory adds a unit in a millisecond. Between two of them an interpreter finds the next rows,
somewhere to put their sum, and whom to add it to: little to do, but by then its own code has left the caches, and every
thread wants its lock. Here all units of an order are one call. The kernel that adds is called at its address, as for
rows in files (`bigopt.models.fused_files`), and sums are folded along the same tree, so that the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bigopt.models.fused_files import AT_WEIGHT, AT_X, AT_Y, make_spread

SIGNATURE: Final = ("int64[:,::1]", "int64[:,::1]", "int64[::1]", "int64[::1]", "float64[:,::1]", "float64[:,::1]")
"""Types of table, merges, flat, numbers, grads and sums."""

AT_GRAD: Final = 39
AT_OUT: Final = 46
"""Where these arrays begin among the arguments of a kernel that adds, as ``AT_X``, ``AT_Y`` and ``AT_WEIGHT``."""


def make_fold_units(count: int) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel that adds the rows of many units, each to sums of its own, and folds these.

    Its arguments:

    - ``table``, shape (units, 4): where X, y and weight of a unit are in memory (weight: 0 for none), and its rows;
    - ``merges``, shape (m, 2): unit j is added to unit i, and comes later;
    - ``flat``: the arguments of the kernel that adds (`Kernel.bound`), with the sums of the first unit;
    - ``numbers``: the address of the kernel that adds; whether the last entry of a gradient is the intercept's; and a 0
      that becomes 1 in the end;
    - ``grads``, shape (units, p), and ``sums``, shape (units, 3): zeros that become the sums.

    Parameters
    ----------
    count : int
        Arguments of the kernel that adds.
    """
    add = make_spread(count)

    def fold_units(table: Any, merges: Any, flat: Any, numbers: Any, grads: Any, sums: Any) -> None:
        p = grads.shape[1]
        for k in range(table.shape[0]):
            n = table[k, 3]
            flat[AT_X + 2], flat[AT_X + 4], flat[AT_X + 5] = n * flat[AT_X + 6], table[k, 0], n
            flat[AT_Y + 2], flat[AT_Y + 4], flat[AT_Y + 5] = n, table[k, 1], n
            if table[k, 2] != 0:
                flat[AT_WEIGHT + 2], flat[AT_WEIGHT + 4], flat[AT_WEIGHT + 5] = n, table[k, 2], n
            if add(numbers[0], flat) != 0:
                return
            flat[AT_GRAD + 4] += 8 * p
            flat[AT_OUT + 4] += 24
            if numbers[1] != 0:
                grads[k, p - 1] = sums[k, 2]
        for m in range(merges.shape[0]):
            i, j = merges[m, 0], merges[m, 1]
            for k in range(p):
                grads[i, k] += grads[j, k]
            for k in range(2):
                sums[i, k] += sums[j, k]
        numbers[2] = 1

    return fold_units, frozenset()
