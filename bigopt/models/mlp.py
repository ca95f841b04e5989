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

With batch normalisation a layer above the first takes (a_l - mean_l) / scale_l in place of a_l, so that its problem is
as well conditioned as one on standardised features. Mean and scale are those of all rows, by one Map-Reduce an epoch
(`MLP.hidden_moments`, `MLP.with_moments`), and constants in between: rows do not see each other, and the gradient stays
a sum over rows. They live in the flat vector, so that they travel and are saved with the weights, with a gradient of 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.arrays import namespace
from bigopt.core.buffers import Buffers, room
from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.core.layout import Block, Layout
from bigopt.core.names import lookup
from bigopt.core.sums import Moments
from bigopt.models import kernels
from bigopt.models.activations import ACTIVATIONS
from bigopt.models.init import initial
from bigopt.models.losses import Loss
from bigopt.models.shapes import check_shapes


class _Layer(NamedTuple):
    """Views of one layer's parameters; mean and scale are those of its input, None without batch normalisation."""

    weight: Any
    intercept: Any | None
    mean: Any | None
    scale: Any | None


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
    batchnorm : bool or "center"
        Whether what goes from a hidden layer to the next is standardised, or centred only.

    Notes
    -----
    Layout: ``layer1.weight`` (in, out) or (g, in/g, out/g), ``layer1.intercept`` (out,), ``layer2.weight``, ...; with
    batch normalisation also ``layer2.mean`` and ``layer2.scale`` (in,), ..., which no penalty or decay touches.
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
    batchnorm: bool | Literal["center"] = False

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

    @cached_property
    def layers(self) -> tuple[tuple[int, int, int], ...]:
        """(inputs, outputs, groups) of each layer."""
        widths = (self.features, *self.hidden, self.outputs)
        groups = self.groups or (1,) * (len(widths) - 1)
        return tuple(zip(widths[:-1], widths[1:], groups, strict=True))

    @cached_property
    def shortcuts(self) -> tuple[bool, ...]:
        """Which hidden layers add their input to their output."""
        return tuple(self.shortcut and n == m for n, m, _ in self.layers[:-1])

    @cached_property
    def layout(self) -> Layout:
        """Weight and intercept (and moments of the input) of each layer, from the input up."""
        blocks: list[Block] = []
        for k, (n, m, g) in enumerate(self.layers, 1):
            shape = (n, m) if g == 1 else (g, n // g, m // g)
            blocks.append(Block(f"layer{k}.weight", shape, True, n // g, m // g))
            if self.intercept:
                blocks.append(Block(f"layer{k}.intercept", (m,), False))
            if self.batchnorm and k > 1:
                blocks.append(Block(f"layer{k}.mean", (n,), False))
            if self.batchnorm is True and k > 1:
                blocks.append(Block(f"layer{k}.scale", (n,), False))
        return Layout(tuple(blocks))

    def init(self, rule: str, seed: int) -> npt.NDArray[np.float64]:
        """Return initial params by a rule of `bigopt.models.init.INITS`; means start at 0 and scales at 1."""
        params = initial(self.layout, rule, seed)
        for layer in self._parameters(params):
            if layer.scale is not None:
                layer.scale[:] = 1.0
        return params

    def grad_sum(
        self, params: Any, X: Any, y: Any, weight: Any | None, buffers: Buffers | None = None
    ) -> tuple[Any, float, float]:
        """Return (gradient sum by backpropagation, weighted loss sum, weight sum)."""
        if buffers is None:
            grad = namespace(X).empty(params.shape, dtype=X.dtype)
        else:
            grad = buffers.lend(params.shape[0], X.dtype)
        g = self._parameters(grad)
        value, steps = self.backward(params, X, y, weight, buffers)
        for k, z, delta in steps:
            kernels.dense_gradient(z, delta, g[k].weight, g[k].intercept)
            for constant in (g[k].mean, g[k].scale):
                if constant is not None:
                    constant[...] = 0.0
        return grad, *kernels.totals(value, weight)

    def backward(
        self, params: Any, X: Any, y: Any, weight: Any | None, buffers: Buffers | None = None
    ) -> tuple[Any, Iterator[tuple[int, Any, Any]]]:
        """Run forward, and backward as far as it is asked to; `buffers` may hold what lies between the layers.

        Returns
        -------
        value : array, shape (rows,)
            The loss of each row.
        steps : iterator
            From the top layer down (k, z, delta): its number from 0, its input (rows, in), and s_i dloss_i/dv
            (rows, out), which lasts until the next one is asked for.
        """
        kernels.same_dtype(params, X)
        w = self._parameters(params)
        top = ACTIVATIONS[self.output_activation]
        inputs, outputs = [X], []
        for z, _, x in self._hidden(w, X, buffers):
            inputs.append(x)
            outputs.append(z)
        out = room(buffers, "scores", (X.shape[0], self.outputs), X)
        z = top.forward(kernels.dense(inputs[-1], w[-1].weight, w[-1].intercept, **out))
        value, delta = self.loss.value_delta(z, y)
        delta = kernels.weighted(top.backward(z, delta), weight)
        return value, self._deltas(w, inputs, outputs, delta, buffers)

    def _deltas(
        self, w: list[_Layer], inputs: list[Any], outputs: list[Any], delta: Any, buffers: Buffers | None
    ) -> Iterator[tuple[int, Any, Any]]:
        phi = ACTIVATIONS[self.activation]
        around: Any = None  # dloss/da of the layer above, where that has a shortcut
        for k in reversed(range(len(w))):
            yield k, inputs[k], delta
            if k:
                out = room(buffers, f"delta{k}", (delta.shape[0], self.layers[k][0]), delta)
                below = kernels.dense_input(delta, w[k].weight, **out)
                if w[k].scale is not None:
                    below /= w[k].scale
                if around is not None:
                    below += around
                around = namespace(below).astype(below, below.dtype) if k > 1 and self.shortcuts[k - 1] else None
                delta = phi.backward(outputs[k - 1], below)

    def loss_sum(self, params: Any, X: Any, y: Any, weight: Any | None) -> tuple[float, float]:
        """Return (weighted loss sum, weight sum)."""
        kernels.same_dtype(params, X)
        z = ACTIVATIONS[self.output_activation].forward(self.scores(params, X))
        return kernels.totals(self.loss.value(z, y), weight)

    def scores(self, params: Any, X: Any) -> Any:
        """Return v_L, shape (rows, outputs): before the output activation and the link."""
        w, x = self._parameters(params), X
        for step in self._hidden(w, X):
            x = step[2]
        return kernels.dense(x, w[-1].weight, w[-1].intercept)

    def predict(self, params: Any, X: Any) -> Any:
        """Return values, or one probability a class."""
        return self.loss.link(ACTIVATIONS[self.output_activation].forward(self.scores(params, X)))

    def hidden_moments(self, params: Any, X: Any, weight: Any | None) -> tuple[float, Any, Any]:
        """Return the fields of `Moments` (weight, mean, spread) of the outputs of all hidden layers, side by side.

        Parameters
        ----------
        params, X, weight
            As in `grad_sum`. Below each layer the moments in params are used: those of the last pass.

        Returns
        -------
        tuple
            sum_i s_i, and two float64 arrays of shape (units of all hidden layers,) of X's library.
        """
        xp = namespace(X)
        s = xp.ones(X.shape[0], dtype=xp.float64) if weight is None else xp.astype(weight, xp.float64)
        total = float(xp.sum(s))
        mean, spread = [xp.zeros(0, dtype=xp.float64)], [xp.zeros(0, dtype=xp.float64)]
        for _, a, _ in self._hidden(self._parameters(params), X):
            exact = xp.astype(a, xp.float64)  # a copy
            mean.append(xp.matmul(s, exact) / (total or 1.0))
            exact -= mean[-1]
            exact *= exact
            spread.append(xp.matmul(s, exact))
        return total, xp.concat(mean), xp.concat(spread)

    def with_moments(self, params: npt.NDArray[Any], moments: Moments) -> npt.NDArray[Any]:
        """Return a copy of params with the means and deviations of `moments`; a unit that never changes has scale 1.

        Parameters
        ----------
        params : ndarray, shape (p,)
        moments : Moments
            Of all rows, of what `hidden_moments` gives.
        """
        params = params.copy()
        variance = moments.spread / moments.weight
        constant = variance <= (16 * np.finfo(np.float64).eps * np.abs(moments.mean)) ** 2
        scale = np.sqrt(np.where(constant, 1.0, variance))
        start = 0
        for layer, width in zip(self._parameters(params)[1:], self.hidden, strict=True):
            part = slice(start, start + width)
            if layer.mean is not None:
                layer.mean[:] = moments.mean[part]
            if layer.scale is not None:
                layer.scale[:] = scale[part]
            start += width
        return params

    def _parameters(self, flat: Any) -> list[_Layer]:
        """View a flat vector as layers."""
        views = self.layout.views(flat)
        return [_Layer(*map(views.get, names)) for names in self._names]

    @cached_property
    def _names(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(f"layer{k}.{role}" for role in _Layer._fields) for k in range(1, len(self.hidden) + 2))

    def _hidden(self, w: list[_Layer], X: Any, buffers: Buffers | None = None) -> Iterator[tuple[Any, Any, Any]]:
        """Yield z = phi(v), a = z or z plus the layer's input, and what the next layer takes, of each hidden layer."""
        phi = ACTIVATIONS[self.activation]
        a = x = X
        for k, (layer, above, shortcut) in enumerate(zip(w[:-1], w[1:], self.shortcuts, strict=True)):
            out = room(buffers, f"hidden{k}", (X.shape[0], self.hidden[k]), X)
            z = phi.forward(kernels.dense(x, layer.weight, layer.intercept, **out))
            a = z + a if shortcut else z
            x = a if above.mean is None else a - above.mean
            if above.scale is not None:
                x /= above.scale
            yield z, a, x
