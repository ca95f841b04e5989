"""What compressed gradients send and keep, before a run: a vector of zeros is encoded, whose code is as long as any."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bigopt.core.compress import code_bytes, compressor
from bigopt.models.table import si
from bigopt.problem import Problem
from bigopt.strategies.mirrors import groups

if TYPE_CHECKING:
    from bigopt.config import Conf


class Codes(NamedTuple):
    """Compressed gradients of a step: replicas that send one, bytes of a code, bytes of a gradient."""

    replicas: int
    code: int
    dense: int


def codes_of(conf: Conf, problem: Problem, slots: int) -> Codes | None:
    """Return what the replicas of a step send; None where gradients travel whole."""
    spec, layout = conf.strategy.compression, problem.model.layout
    if spec.name is None:
        return None
    code = compressor(spec.name, layout.offsets, fraction=spec.fraction or 1.0, seed=0, feedback=spec.error_feedback)
    zeros = np.zeros(layout.size, dtype=conf.run.dtype)
    least = groups(slots, conf.strategy.spares or 0, feedback=spec.error_feedback)
    replicas = 1 if conf.strategy.name in ("async", "ssp") else conf.strategy.replicas or least
    return Codes(replicas, code_bytes(code.encode(zeros, 0, 0)), zeros.nbytes)


def codes_lines(codes: Codes | None, conf: Conf) -> list[str]:
    """Say it."""
    if codes is None:
        return []
    spec, ratio = conf.strategy.compression, codes.dense / codes.code
    kept = f"; its residual, {si(codes.dense)}B, stays on its worker" if spec.error_feedback else ""
    return [
        f"compression {spec.name}: {si(codes.code)}B a gradient instead of {si(codes.dense)}B (1/{ratio:.3g}), "
        f"{codes.replicas} a step{kept}"
    ]
