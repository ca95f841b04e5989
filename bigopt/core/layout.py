"""The layout: one flat parameter vector seen as named arrays.

Optimizers work on the flat vector; models read it through views. The order of the blocks is the layout order of
checkpoints and of ``params_sha256``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.core.arrays import namespace
from bigopt.core.codec import wire


@wire
@dataclass(frozen=True)
class Block:
    """One named array of a model.

    Parameters
    ----------
    name : str
        For example ``layer1.weight``.
    shape : tuple of int
    penalized : bool
        False for intercepts: no penalty, no weight decay, no layer-wise scaling.
    fan_in, fan_out : int
        Inputs and outputs of one unit, for the initialisation rules; 0 for intercepts (they start at zero).
    """

    name: str
    shape: tuple[int, ...]
    penalized: bool
    fan_in: int = 0
    fan_out: int = 0

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.shape)


@wire
@dataclass(frozen=True)
class Layout:
    """Blocks in their order within the flat vector; their names differ."""

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        if len({b.name for b in self.blocks}) != len(self.blocks):
            raise ValueError(f"blocks with the same name in {[b.name for b in self.blocks]}")

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each block, and the total at the end."""
        starts = [0]
        for block in self.blocks:
            starts.append(starts[-1] + block.size)
        return tuple(starts)

    @property
    def size(self) -> int:
        """Number of parameters p."""
        return self.offsets[-1]

    def slices(self) -> tuple[tuple[Block, slice], ...]:
        """Return each block with its slice of the flat vector."""
        return self._slices

    @cached_property
    def _slices(self) -> tuple[tuple[Block, slice], ...]:
        return tuple((b, slice(o, o + b.size)) for b, o in zip(self.blocks, self.offsets, strict=False))

    def views(self, flat: Any) -> dict[str, Any]:
        """Return named views of a flat vector of shape (p,), NumPy or CuPy."""
        xp = namespace(flat)
        return {b.name: xp.reshape(flat[s], b.shape) for b, s in self.slices()}

    def flatten(self, named: Mapping[str, Any], out: Any) -> Any:
        """Copy named arrays into the flat vector `out` of shape (p,) and return it."""
        for b, s in self.slices():
            out[s] = named[b.name].reshape(-1)
        return out

    @cached_property
    def penalized(self) -> npt.NDArray[np.bool_]:
        """Mask of shape (p,): True where a penalty acts."""
        mask = np.zeros(self.size, dtype=np.bool_)
        for b, s in self.slices():
            mask[s] = b.penalized
        return mask
