"""Which kernel set a run uses: ``run.kernels``, resolved once on the driver and sent with the work.

``auto`` weighs what compiled kernels save against what it may take to compile them, a few seconds once on a machine:
they are used where numba is installed and the run is long, as far as conf and data say so beforehand. The choice is
part of the fingerprint, and a resumed run keeps it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from bigopt.core import compiled
from bigopt.core.arrays import Device
from bigopt.data.source import Dataset

if TYPE_CHECKING:
    from bigopt.config import Conf

LONG: Final = 4e9
"""Entries of X that a run of the linear family reads (or parameters that it updates) before compiling pays."""

_FUSED: Final = ("linear", "ridge", "logistic", "perceptron", "svm")


class KernelSet(NamedTuple):
    """A choice.

    Parameters
    ----------
    name : str
        ``numpy`` or ``compiled``.
    why : str
        For the person who reads the log.
    """

    name: str
    why: str


def choose(conf: Conf, data: Dataset, device: Device) -> KernelSet:
    """Return the kernel set of a new run.

    Raises
    ------
    ConfError
        Where ``compiled`` was asked for and cannot be had.
    """
    asked, reason = conf.run.kernels, compiled.missing()
    if device != "cpu":
        reason = "compiled kernels run on the CPU only"
    if asked == compiled.COMPILED and reason:
        raise conf.error("run.kernels", f"run.kernels=compiled: {reason}", "numpy or auto")
    if asked != "auto":
        return KernelSet(asked, "run.kernels")
    if conf.strategy.name == "hogwild" and conf.batch.size == 1 and conf.model.name in (*_FUSED, "softmax"):
        if reason:
            message = f"hogwild takes batches of one row in a compiled loop, and {reason}"
            raise conf.error("run.kernels", message, "a larger batch.size")
        return KernelSet(compiled.COMPILED, "the loop of hogwild")
    if reason:
        return KernelSet(compiled.NUMPY, reason)
    amount, what = _amount(conf, data)
    if amount >= LONG:
        return KernelSet(compiled.COMPILED, f"a long run: {amount:.0e} {what}")
    return KernelSet(compiled.NUMPY, "the run is too short for compiling to pay; run.kernels=compiled asks for it")


def kept(fingerprint: Mapping[str, str]) -> KernelSet:
    """Return the kernel set that a run began with; numpy where it cannot be had, which the fingerprints then show."""
    began = fingerprint.get("kernels", compiled.NUMPY).partition(" ")[0]
    return KernelSet(compiled.NUMPY if compiled.missing() else began, "as the run began")


def _amount(conf: Conf, data: Dataset) -> tuple[float, str]:
    rows, columns = data.rows, len(data.source.columns)
    size = rows if conf.batch.size in (None, "full") else min(int(conf.batch.size), rows)
    steps = min(
        math.inf if conf.stop.steps is None else conf.stop.steps,
        math.inf if conf.stop.epochs is None else conf.stop.epochs * math.ceil(rows / max(1, size)),
    )
    if conf.model.name in (*_FUSED, "softmax"):
        if data.source.sparse:
            return 0.0, ""
        return steps * size * columns, "entries to read"
    if conf.model.name == "mlp":
        widths = (columns, *conf.model.hidden)
        return steps * 10.0 * sum(n * m for n, m in itertools.pairwise(widths)), "tenths of an update"
    return 0.0, ""
