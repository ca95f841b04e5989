"""How the layers of an MLP are cut into pieces, and forward and backward of one piece.

**By units** (Megatron-LM). Two layers that follow each other are cut together: the first by its outputs, the second by
its inputs, so that a piece needs nothing of the others in between::

    z_k = phi(x W1[:, k] + b1[k])          every piece sees the whole x
    v   = sum_k z_k W2[k, :]  + b2         the sum over the pieces is the one exchange of the pair (piece 0 adds b2)

Backward, from delta = dloss/dv, with nothing exchanged on the way either::

    grad W2[k, :] = z_k^T delta,     delta_k = (delta W2[k, :]^T) * phi'(z_k)
    grad W1[:, k] = x^T delta_k,     dloss/dx = sum_k delta_k W1[:, k]^T

A layer left over at the top is cut by its inputs: its pieces hand down columns of dloss/dx side by side.

**By layers** (GPipe). A stage is some consecutive layers, as they are.

What passes between two stages is v, before the activation, since only v is a sum over pieces; the stage above takes
x = phi(v), and hands down (dloss/dx) * phi'(x), which again is a sum. Shoeybi et al. (2019), Huang et al. (2019).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bigopt.core.arrays import namespace
from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.core.layout import Block, Layout
from bigopt.models import kernels
from bigopt.models.activations import ACTIVATIONS
from bigopt.models.mlp import MLP

Array = npt.NDArray[Any]
Cut = Literal["units", "rows"]


@wire
@dataclass(frozen=True)
class Stage:
    """Consecutive layers, and what divides their work.

    Parameters
    ----------
    first, last : int
        Layers [first, last), counted from 0.
    parts : int
        Pieces that compute the stage.
    cut : {"units", "rows"}
        Pieces of its units, at most two layers; or of the rows, each with all of the stage's parameters.
    """

    first: int
    last: int
    parts: int = 1
    cut: Cut = "units"

    @property
    def by_units(self) -> bool:
        """Whether a piece has some of the units only."""
        return self.parts > 1 and self.cut == "units"


def check_splittable(model: Any) -> MLP:
    """Return the model, where its layers can be cut.

    Raises
    ------
    ConfError
        No MLP, or one whose layers lean on each other in other ways.
    """
    if not isinstance(model, MLP):
        raise ConfError("only an mlp has layers to cut", where="model.name", hint="model.name=mlp, or strategy sync")
    for path, there in (
        ("model.groups", any(g > 1 for _, _, g in model.layers)),
        ("model.shortcut", any(model.shortcuts)),
        ("model.batchnorm", bool(model.batchnorm) and bool(model.hidden)),
    ):
        if there:
            raise ConfError(f"{path} does not go with layers that are cut", where=path, hint="strategy sync")
    return model


def by_units(model: MLP, parts: int) -> tuple[Stage, ...]:
    """Return the pairs of layers, from the input up, each cut into `parts` pieces.

    Raises
    ------
    ConfError
        Where a layer has too few units for so many pieces.
    """
    layers = len(model.layers)
    return _checked(model, tuple(Stage(k, min(k + 2, layers), parts) for k in range(0, layers, 2)))


def by_layers(model: MLP, number: int) -> tuple[Stage, ...]:
    """Return stages of whole layers whose largest has as few multiply-adds as possible.

    Raises
    ------
    ConfError
        Where there are fewer layers than stages.
    """
    work = [n * m for n, m, _ in model.layers]
    if number > len(work):
        raise ConfError(
            f"{number} stages of {len(work)} layers", where="strategy.blocks", hint=f"at most {len(work)} stages"
        )

    ends = list(itertools.accumulate(work, initial=0))
    best: list[tuple[int, tuple[int, ...]]] = [(end, ()) for end in ends]  # most work of a stage, and the cuts, by end
    for stages in range(2, number + 1):
        best = [
            min((max(best[at][0], ends[k] - ends[at]), (*best[at][1], at)) for at in range(stages - 1, k))
            if k >= stages
            else best[k]
            for k in range(len(ends))
        ]
    return tuple(Stage(a, b) for a, b in itertools.pairwise((0, *best[-1][1], len(work))))


def dense_last(model: MLP, parts: int) -> tuple[Stage, ...]:
    """Return the early layers with their rows dealt to `parts` members, and the last pair cut by units.

    Krizhevsky (2014): early layers have few parameters and much work, the last ones the reverse.
    """
    layers = len(model.layers)
    pair = max(0, layers - 2)
    early = (Stage(0, pair, parts, "rows"),) if pair else ()
    return _checked(model, (*early, Stage(pair, layers, parts)))


def most_parts(model: MLP) -> int:
    """Return the pieces that every pair of layers can be cut into."""
    return min(_width(model, stage) for stage in by_units(model, 1))


def _width(model: MLP, stage: Stage) -> int:
    """Units that are dealt: those between the two layers of a pair, else the inputs of the one layer."""
    return model.layers[stage.first][1 if stage.last - stage.first > 1 else 0]


def _checked(model: MLP, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    for stage in stages:
        if stage.by_units and _width(model, stage) < stage.parts:
            raise ConfError(
                f"{stage.parts} pieces of {_width(model, stage)} units of layer {stage.first + 1}",
                where="strategy.blocks",
                hint=f"at most {most_parts(model)}",
            )
    return stages


@dataclass(frozen=True)
class Piece:
    """What one member of a stage computes.

    Parameters
    ----------
    model : MLP
        The whole one.
    stage : Stage
    part : int
        Which piece of it, from 0; 0 where a piece has all of the stage's parameters.
    """

    model: MLP
    stage: Stage
    part: int = 0

    @cached_property
    def units(self) -> slice:
        """The units that are this piece's, of those that are dealt."""
        width, parts = _width(self.model, self.stage), self.stage.parts
        return slice(width * self.part // parts, width * (self.part + 1) // parts)

    @cached_property
    def cuts(self) -> tuple[tuple[str, tuple[slice, ...]], ...]:
        """Names of the model's blocks, from the input up, with the part of each that is this piece's."""
        stage, found = self.stage, list[tuple[str, tuple[slice, ...]]]()
        every = slice(None)
        for k in range(stage.first, stage.last):
            above = stage.by_units and k == stage.last - 1
            below = stage.by_units and not above
            weight = (self.units, every) if above else (every, self.units) if below else (every, every)
            found.append((f"layer{k + 1}.weight", weight))
            if self.model.intercept and not (above and self.part):
                found.append((f"layer{k + 1}.intercept", (self.units if below else every,)))
        return tuple(found)

    @cached_property
    def layout(self) -> Layout:
        """This piece's parameters as one flat vector."""
        shapes = {block.name: block.shape for block in self.model.layout.blocks}
        return Layout(
            tuple(
                Block(
                    name,
                    tuple(len(range(*s.indices(n))) for s, n in zip(part, shapes[name], strict=True)),
                    len(part) > 1,
                )
                for name, part in self.cuts
            )
        )

    def take(self, params: Array) -> Array:
        """Return this piece's parameters, a copy, out of those of the model, shape (p,)."""
        views, out = self.model.layout.views(params), np.empty(self.layout.size, dtype=params.dtype)
        mine = self.layout.views(out)
        for name, part in self.cuts:
            mine[name][...] = views[name][part]
        return out

    def put(self, mine: Array, params: Array) -> None:
        """Write this piece's parameters, or their gradient, to their places in a vector of the model's."""
        views, own = self.model.layout.views(params), self.layout.views(mine)
        for name, part in self.cuts:
            views[name][part] = own[name]

    def entered(self, v: Any) -> Any:
        """Return x = phi(v) of what the stage below handed on, in fresh memory."""
        return ACTIVATIONS[self.model.activation].forward(namespace(v).astype(v, v.dtype))

    def inputs(self, params: Any, x: Any) -> list[Any]:
        """Return what each layer of this piece takes.

        Parameters
        ----------
        params : array, shape (layout.size,)
            Of this piece, in x's dtype.
        x : array, shape (rows, in)
            The stage's whole input.
        """
        kernels.same_dtype(params, x)
        phi = ACTIVATIONS[self.model.activation]
        if self.stage.by_units and self.stage.last - self.stage.first == 1:
            x = namespace(x).astype(x[:, self.units], x.dtype)  # a copy: rows that lie side by side
        found = [x]
        for weight, intercept in self._layers(params)[:-1]:
            found.append(phi.forward(kernels.dense(found[-1], weight, intercept)))
        return found

    def output(self, params: Any, inputs: list[Any]) -> Any:
        """Return v, shape (rows, out): this piece's part of the sum."""
        return kernels.dense(inputs[-1], *self._layers(params)[-1])

    def gradient(self, params: Any, inputs: list[Any], delta: Any, *, below: bool) -> tuple[Any, Any | None]:
        """Run backward.

        Parameters
        ----------
        params, inputs
            As in, and of, `inputs`.
        delta : array, shape (rows, out)
            s_i dloss_i/dv.
        below : bool
            Whether a stage below wants to know.

        Returns
        -------
        grad : array, shape (layout.size,)
        handed : array or None
            This piece's part of s_i dloss_i/dv of the stage below: a summand of shape (rows, in), or, of a layer cut
            by its inputs, the columns of its units.
        """
        phi, layers = ACTIVATIONS[self.model.activation], self._layers(params)
        grad = namespace(delta).empty(params.shape, dtype=params.dtype)
        own = self._layers(grad)
        for k in reversed(range(len(layers))):
            kernels.dense_gradient(inputs[k], delta, *own[k])
            if k or below:
                delta = phi.backward(inputs[k], kernels.dense_input(delta, layers[k][0]))
        return grad, delta if below else None

    def _layers(self, params: Any) -> list[tuple[Any, Any | None]]:
        views = self.layout.views(params)
        return [
            (views[f"layer{k + 1}.weight"], views.get(f"layer{k + 1}.intercept"))
            for k in range(self.stage.first, self.stage.last)
        ]


def pieces(model: MLP, stage: Stage) -> tuple[Piece, ...]:
    """Return the pieces of a stage's parameters, in order; one where each has all of them."""
    return tuple(Piece(model, stage, part) for part in range(stage.parts if stage.by_units else 1))


def loss_delta(model: MLP, v: Any, y: Any, weight: Any | None) -> tuple[Any, Any]:
    """Return the loss of each row, and s_i dloss_i/dv, at the scores v, which may be overwritten."""
    top = ACTIVATIONS[model.output_activation]
    z = top.forward(v)
    value, delta = model.loss.value_delta(z, y)
    return value, kernels.weighted(top.backward(z, delta), weight)
