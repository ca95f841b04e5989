"""Initial params: every block from its own counter-based stream, intercepts at zero.

=================  =========================================
rule               entries of a weight
=================  =========================================
glorot_uniform     uniform in +-sqrt(6 / (fan_in + fan_out))
glorot_normal      normal, variance 2 / (fan_in + fan_out)
he_uniform         uniform in +-sqrt(6 / fan_in)
he_normal          normal, variance 2 / fan_in
zeros              0
=================  =========================================

fan_in and fan_out count the inputs and outputs that one unit is connected with: those of its own group in a grouped
layer. Sources: Glorot and Bengio (2010), He et al. (2015).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core import rng
from bigopt.core.layout import Block, Layout
from bigopt.core.names import lookup


class Rule(NamedTuple):
    """A distribution of zero mean; its variance is gain / fan, with fan = fan_in or (fan_in + fan_out) / 2."""

    kind: Literal["uniform", "normal", "zeros"]
    gain: float
    both: bool

    def deviation(self, block: Block) -> float:
        """Return the standard deviation for a block."""
        fan = (block.fan_in + block.fan_out) / 2 if self.both else block.fan_in
        return math.sqrt(self.gain / fan)


INITS: Final[Mapping[str, Rule]] = {
    "glorot_uniform": Rule("uniform", 1.0, True),
    "glorot_normal": Rule("normal", 1.0, True),
    "he_uniform": Rule("uniform", 2.0, False),
    "he_normal": Rule("normal", 2.0, False),
    "zeros": Rule("zeros", 0.0, False),
}


def initial(layout: Layout, rule: str, seed: int) -> npt.NDArray[np.float64]:
    """Return initial params.

    Parameters
    ----------
    layout : Layout
        Blocks without ``fan_in`` (intercepts) start at zero.
    rule : str
        A name of `INITS`.
    seed : int
        The run's seed; block k draws from the stream ("init", partition=k).

    Returns
    -------
    ndarray, shape (p,), float64

    Raises
    ------
    ConfError
        For an unknown rule.
    """
    chosen = lookup(INITS, rule, family="init rule", where="model.init")
    params = np.zeros(layout.size)
    for k, (block, where) in enumerate(layout.slices()):
        if chosen.kind == "zeros" or block.fan_in == 0:
            continue
        source = rng.stream(seed, "init", partition=k)
        deviation = chosen.deviation(block)
        if chosen.kind == "normal":
            params[where] = deviation * rng.normal(source, block.size)
        else:
            limit = math.sqrt(3.0) * deviation
            params[where] = limit * (2.0 * rng.uniform(source, block.size) - 1.0)
    return params
