"""Multilayer perceptron: dense layers of any number, forward and backward by hand.

Forward, for layers l = 1..L with z_0 = X::

    v_l = z_{l-1} W_l + b_l,      z_l = phi(v_l)         (phi_L is the identity unless an output activation is named)

Backward, every W from before the update::

    delta_L = J_phi(v_L)^T dloss/dz_L * s                (for cross-entropies z_L are the logits: softmax(v) - Y)
    grad W_l = z_{l-1}^T delta_l,   grad b_l = column sums of delta_l
    delta_{l-1} = (delta_l W_l^T) * phi'(v_{l-1})

Each line is one matrix product for all rows of the block. Only the z_l are kept; the deltas of two neighbouring layers
are alive at a time. A grouped (locally connected) layer has a block-diagonal W, stored as its blocks (g, in/g, out/g).

With shortcuts a hidden layer as wide as its input adds that input to what it hands on::

    a_l = phi(v_l) + a_{l-1},      dloss/da_{l-1} = (dloss/da_l * phi'(v_l)) W_l^T + dloss/da_l

so that its Jacobian starts near the identity and the deltas of deep stacks keep their size. Where a layer has none,
a_l = phi(v_l).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.core.arrays import namespace
from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.core.layout import Block, Layout
from bigopt.core.names import lookup
from bigopt.models import kernels
from bigopt.models.activations import ACTIVATIONS
from bigopt.models.init import initial
from bigopt.models.losses import Loss
from bigopt.models.shapes import check_shapes


@wire
@dataclass(frozen=True)
class MLP:
    """Dense layers ``features -> hidden... -> outputs``.

    Parameters
    ----------
    features : int
        Columns d of X.
    hidden : tuple of int
        Widths of the hidden layers; empty for a linear model.
    outputs : int
        Columns q of the scores: targets, one logit, or C logits.
    loss : Loss
    activation : str
        Of the hidden layers, a name of `bigopt.models.activations.ACTIVATIONS`.
    groups : tuple of int
        Groups of each layer, ``len(hidden) + 1`` numbers; empty for all 1.
    intercept : bool
        Whether the layers have a b; intercepts are never penalised.
    output_activation : str
        Between the scores and a squared or Huber loss ("softmax" with squared error, say); cross-entropies take
        logits and refuse anything but "identity".
    shortcut : bool
        Whether hidden layers as wide as their input add it to their output. The output layer never does.

    Notes
    -----
    Layout: ``layer1.weight`` (in, out) or (g, in/g, out/g), ``layer1.intercept`` (out,), ``layer2.weight``, ...
    """

    features: int
    hidden: tuple[int, ...]
    outputs: int
    loss: Loss
    activation: str = "relu"
    groups: tuple[int, ...] = ()
    intercept: bool = True
    output_activation: str = "identity"
    shortcut: bool = False

    def __post_init__(self) -> None:
        check_shapes(self.features, self.outputs, self.loss)
        lookup(ACTIVATIONS, self.activation, family="activation", where="model.activation")
        lookup(ACTIVATIONS, self.output_activation, family="activation", where="output_activation")
        if self.output_activation != "identity" and self.loss.task != "regression":
            raise ConfError(
                f"{self.loss.name} takes logits, not outputs of {self.output_activation}", where="model.loss"
            )
        if any(width < 1 for width in self.hidden):
            raise ConfError(f"a hidden layer needs at least one unit: {list(self.hidden)}", where="model.hidden")
        if self.groups and len(self.groups) != len(self.hidden) + 1:
            raise ConfError(
                f"{len(self.groups)} numbers for {len(self.hidden) + 1} layers",
                where="model.groups",
                hint="one number a layer, the output layer included",
            )
        for k, (fan_in, fan_out, g) in enumerate(self.layers, 1):
            if g < 1 or fan_in % g or fan_out % g:
                raise ConfError(
                    f"layer {k} with {fan_in} inputs and {fan_out} outputs cannot have {g} groups",
                    where="model.groups",
                    hint="the number of groups divides both",
                )

    @property
    def layers(self) -> tuple[tuple[int, int, int], ...]:
        """(inputs, outputs, groups) of each layer."""
        widths = (self.features, *self.hidden, self.outputs)
        groups = self.groups or (1,) * (len(widths) - 1)
        return tuple(zip(widths[:-1], widths[1:], groups, strict=True))

    @property
    def shortcuts(self) -> tuple[bool, ...]:
        """Which hidden layers add their input to their output."""
        return tuple(self.shortcut and n == m for n, m, _ in self.layers[:-1])

    @cached_property
    def layout(self) -> Layout:
        """Weight and intercept of each layer, from the input up."""
        blocks: list[Block] = []
        for k, (n, m, g) in enumerate(self.layers, 1):
            shape = (n, m) if g == 1 else (g, n // g, m // g)
            blocks.append(Block(f"layer{k}.weight", shape, True, n // g, m // g))
            if self.intercept:
                blocks.append(Block(f"layer{k}.intercept", (m,), False))
        return Layout(tuple(blocks))

    def init(self, rule: str, seed: int) -> npt.NDArray[np.float64]:
        """Return initial params by a rule of `bigopt.models.init.INITS`."""
        return initial(self.layout, rule, seed)

    def grad_sum(self, params: Any, X: Any, y: Any, weight: Any | None) -> tuple[Any, float, float]:
        """Return (gradient sum by backpropagation, weighted loss sum, weight sum)."""
        kernels.same_dtype(params, X)
        w = self._parameters(params)
        grad = namespace(X).empty(params.shape, dtype=X.dtype)
        g = self._parameters(grad)
        phi, top = ACTIVATIONS[self.activation], ACTIVATIONS[self.output_activation]

        inputs, outputs, v = self._forward(w, X)
        z = top.forward(v)
        value, delta = self.loss.value_delta(z, y)
        delta = kernels.weighted(top.backward(z, delta), weight)
        around: Any = None  # dloss/da of the layer above, where that has a shortcut
        for k in reversed(range(len(w))):
            kernels.dense_gradient(inputs[k], delta, *g[k])
            if k:
                below = kernels.dense_input(delta, w[k][0])
                if around is not None:
                    below += around
                around = namespace(X).astype(below, below.dtype) if k > 1 and self.shortcuts[k - 1] else None
                delta = phi.backward(outputs[k - 1], below)
        return grad, *kernels.totals(value, weight)

    def loss_sum(self, params: Any, X: Any, y: Any, weight: Any | None) -> tuple[float, float]:
        """Return (weighted loss sum, weight sum)."""
        kernels.same_dtype(params, X)
        z = ACTIVATIONS[self.output_activation].forward(self.scores(params, X))
        return kernels.totals(self.loss.value(z, y), weight)

    def scores(self, params: Any, X: Any) -> Any:
        """Return v_L, shape (rows, outputs): before the output activation and the link."""
        phi, a = ACTIVATIONS[self.activation], X
        *below, last = self._parameters(params)
        for layer, shortcut in zip(below, self.shortcuts, strict=True):
            z = phi.forward(kernels.dense(a, *layer))
            if shortcut:
                z += a
            a = z
        return kernels.dense(a, *last)

    def predict(self, params: Any, X: Any) -> Any:
        """Return values, or one probability a class."""
        return self.loss.link(ACTIVATIONS[self.output_activation].forward(self.scores(params, X)))

    def _parameters(self, flat: Any) -> list[tuple[Any, Any | None]]:
        """View a flat vector as the (weight, intercept) of each layer."""
        views = self.layout.views(flat)
        return [(views[f"layer{k}.weight"], views.get(f"layer{k}.intercept")) for k in range(1, len(self.hidden) + 2)]

    def _forward(self, w: list[tuple[Any, Any | None]], X: Any) -> tuple[list[Any], list[Any], Any]:
        """Return the input of every layer, a_0 .. a_{L-1}, the z_1 .. z_{L-1} (the a_l without shortcut), and v_L."""
        phi = ACTIVATIONS[self.activation]
        inputs, outputs = [X], []
        for layer, shortcut in zip(w[:-1], self.shortcuts, strict=True):
            a, z = inputs[-1], phi.forward(kernels.dense(inputs[-1], *layer))
            outputs.append(z)
            inputs.append(z + a if shortcut else z)
        return inputs, outputs, kernels.dense(inputs[-1], *w[-1])
