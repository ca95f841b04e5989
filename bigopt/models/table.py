"""The table that ``bigopt describe`` prints: what a model consists of, what a row costs and what a batch keeps.

Multiply-adds are those of the forward products for one row; the backward pass takes about twice as many (once for the
weights, once for the layer below). A layer of g groups has 1/g of the parameters and multiply-adds of a full one.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.models.base import Model
from bigopt.models.mlp import MLP


class LayerRow(NamedTuple):
    """One line of the table.

    Parameters
    ----------
    name : str
        ``linear``, or ``layer1``, ``layer2``, ...
    kind : str
        ``dense``, with its groups, shortcut and normalised input where it has them.
    inputs, outputs : int
        Widths of what goes in and out.
    shape : tuple of int
        Of the weight: (in, out) or (g, in/g, out/g).
    parameters : int
        Weights and intercepts.
    multiply_adds : int
        Of the forward product for one row.
    shortcut : bool
        Whether the layer adds its input to its output.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    shortcut: bool = False


class BatchMemory(NamedTuple):
    """Bytes alive during one step with all rows of the batch in one block.

    Parameters
    ----------
    rows : int
        The batch itself: X.
    activations : int
        Outputs of all layers; with a shortcut or batch normalisation also what they make of them.
    deltas : int
        The largest delta and the activation's derivative beside it, with the delta of the layer above and what goes
        around a shortcut: no more are alive at a time.
    parameters : int
        params in ``run.dtype``, and their copy in the block dtype where that differs.
    gradients : int
        The block's gradient, and its sum in ``run.dtype``.
    optimizer : int
        The optimizer's vectors.
    """

    rows: int
    activations: int
    deltas: int
    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(self)


class ModelTable(NamedTuple):
    """All lines and their totals."""

    layers: tuple[LayerRow, ...]
    parameters: int
    multiply_adds: int


def model_table(model: Model) -> ModelTable:
    """Return the table of a model.

    Examples
    --------
    A layer 8 -> 4 in two groups has 2 (4 x 2) = 16 weights instead of 8 x 4 = 32.
    """
    layers: list[LayerRow] = []
    shortcuts = model.shortcuts if isinstance(model, MLP) else ()
    prepared = ", batchnorm" if isinstance(model, MLP) and model.batchnorm is True else ", center"
    for block in model.layout.blocks:
        name, _, role = block.name.rpartition(".")
        if role != "weight":
            last = layers[-1]
            kind = last.kind + (prepared if role == "mean" else "")
            layers[-1] = last._replace(parameters=last.parameters + block.size, kind=kind)
            continue
        g = block.shape[0] if len(block.shape) == 3 else 1
        ends = g * block.shape[-2], g * block.shape[-1]
        shortcut = len(layers) < len(shortcuts) and shortcuts[len(layers)]
        kind = "dense" + (f", {g} groups" if g > 1 else "") + (", shortcut" if shortcut else "")
        layers.append(LayerRow(name or "linear", kind, *ends, block.shape, block.size, block.size, shortcut))
    return ModelTable(tuple(layers), model.layout.size, sum(row.multiply_adds for row in layers))


def batch_memory(
    model: Model,
    rows: int,
    *,
    dtype: npt.DTypeLike = np.float32,
    run_dtype: npt.DTypeLike = np.float64,
    state_vectors: int = 0,
) -> BatchMemory:
    """Return the memory that one step keeps.

    Parameters
    ----------
    model : Model
    rows : int
        Of the batch, or of a block of it.
    dtype, run_dtype : dtype
        Of the blocks, and of params and optimizer state.
    state_vectors : int
        Vectors of length p that the optimizer keeps (adam: 2).
    """
    block, run = np.dtype(dtype), np.dtype(run_dtype)
    layers = model_table(model).layers
    inner = isinstance(model, MLP) and bool(model.batchnorm)
    kept = layers[-1].outputs + sum((2 if row.shortcut or inner else 1) * row.outputs for row in layers[:-1])
    pairs = itertools.pairwise(layers)
    hidden = ((3 if row.shortcut else 2) * row.outputs + above.outputs for row, above in pairs)
    deltas = max(2 * layers[-1].outputs, *hidden, 0)
    p = model.layout.size
    vector = p * run.itemsize
    cast = p * block.itemsize
    cell = rows * block.itemsize
    return BatchMemory(
        rows=cell * model.features,
        activations=cell * kept,
        deltas=cell * deltas,
        parameters=vector + (cast if block != run else 0),
        gradients=vector + cast,
        optimizer=state_vectors * vector,
    )


def si(count: float) -> str:
    """Return a count as people read it: 159.0K, 1.2M.

    Examples
    --------
    >>> si(101770), si(32)
    ('101.8K', '32')
    """
    if count < 1000:
        return f"{count:g}"
    power = min(int(math.log10(count) // 3), 4)
    return f"{count / 1000**power:.1f}{'_KMGT'[power]}"
