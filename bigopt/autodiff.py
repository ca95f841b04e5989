"""Reverse-mode differentiation in one page: the teaching twin of the backpropagation that is written by hand.

Every operation returns a node that remembers its value, the nodes it came from and, for each of those, how a small
change of its own result pulls back to them: for c = a b a derivative d = df/dc becomes d b for a and d a for b. Walking
the graph once from the result f back to the variables, each node after all that use it, and adding up what arrives at
a node, gives df/dx for all x at the price of a few evaluations of f (the chain rule, from the outside in).

>>> x, y, z = variable(-2.0), variable(5.0), variable(-4.0)
>>> f = (x + y) * z
>>> float(f.value), [float(d) for d in gradients(f, x, y, z)]
(-12.0, [-4.0, -4.0, 3.0])

Nodes hold float64 arrays of any shape, and broadcast like NumPy's; a number is an array of shape (). Subtraction and
division are a sum with a negation and a product with a reciprocal. The graph keeps every intermediate value: the models
(`bigopt.models.mlp`) do not use it, their tests do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Pull = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Node:
    """A value and where it came from.

    Parameters
    ----------
    value : ndarray, float64
    inputs : tuple of (Node, function)
        The function takes df/dvalue and returns what it adds to df/dinput.
    """

    value: Array
    inputs: tuple[tuple[Node, Pull], ...] = ()

    __array_ufunc__: ClassVar[None] = None  # so that array * node is the node's business

    def __add__(self, other: Any) -> Node:
        """Return a + b; the derivative goes to both."""
        other = variable(other)
        a, b = self.value.shape, other.value.shape
        return Node(self.value + other.value, ((self, lambda d: _fit(d, a)), (other, lambda d: _fit(d, b))))

    def __mul__(self, other: Any) -> Node:
        """Return a b (entry by entry); the derivative is d b and d a."""
        other = variable(other)
        a, b = self.value, other.value
        return Node(a * b, ((self, lambda d: _fit(d * b, a.shape)), (other, lambda d: _fit(d * a, b.shape))))

    def __neg__(self) -> Node:
        """Return -a."""
        return Node(-self.value, ((self, lambda d: -d),))

    def reciprocal(self) -> Node:
        """Return 1 / a; the derivative is -d / a^2."""
        z = 1.0 / self.value
        return Node(z, ((self, lambda d: -d * z * z),))

    def __matmul__(self, other: Any) -> Node:
        """Return the product of two matrices; the derivative is d b^T and a^T d.

        Raises
        ------
        ValueError
            For operands that are not matrices.
        """
        other = variable(other)
        a, b = self.value, other.value
        if a.ndim != 2 or b.ndim != 2:
            raise ValueError(f"a matrix product of shapes {a.shape} and {b.shape}")
        return Node(a @ b, ((self, lambda d: d @ b.T), (other, lambda d: a.T @ d)))

    def sum(self, axis: int | None = None) -> Node:
        """Return the sum of all entries, or along one axis (which stays, with length 1); d goes to every entry."""
        shape = self.value.shape
        total = np.asarray(self.value.sum(axis=axis, keepdims=axis is not None))
        return Node(total, ((self, lambda d: np.broadcast_to(d, shape)),))

    def __sub__(self, other: Any) -> Node:
        """Return a + (-b)."""
        return self + -variable(other)

    def __truediv__(self, other: Any) -> Node:
        """Return a (1 / b)."""
        return self * variable(other).reciprocal()

    def __radd__(self, other: Any) -> Node:
        """Return b + a."""
        return variable(other) + self

    def __rmul__(self, other: Any) -> Node:
        """Return b a."""
        return variable(other) * self

    def __rsub__(self, other: Any) -> Node:
        """Return b - a."""
        return variable(other) - self

    def __rtruediv__(self, other: Any) -> Node:
        """Return b / a."""
        return variable(other) / self

    def __rmatmul__(self, other: Any) -> Node:
        """Return the product of b and a."""
        return variable(other) @ self


def variable(value: Any) -> Node:
    """Return a node without inputs; a node as it is."""
    return value if isinstance(value, Node) else Node(np.asarray(value, dtype=np.float64))


def exp(a: Node) -> Node:
    """Return exp a; the derivative is d exp a."""
    z = np.exp(a.value)
    return Node(z, ((a, lambda d: d * z),))


def log(a: Node) -> Node:
    """Return log a; the derivative is d / a."""
    return Node(np.log(a.value), ((a, lambda d: d / a.value),))


def tanh(a: Node) -> Node:
    """Return tanh a; the derivative is d (1 - tanh^2 a)."""
    z = np.tanh(a.value)
    return Node(z, ((a, lambda d: d * (1.0 - z) * (1.0 + z)),))


def sigmoid(a: Node) -> Node:
    """Return 1 / (1 + exp(-a)); the derivative is d z (1 - z)."""
    z = np.exp(-np.logaddexp(0.0, -a.value))
    return Node(z, ((a, lambda d: d * z * (1.0 - z)),))


def relu(a: Node) -> Node:
    """Return max(a, 0); the derivative is d where a > 0, and 0 at 0."""
    return Node(np.maximum(a.value, 0.0), ((a, lambda d: d * (a.value > 0.0)),))


def gradients(f: Node, *variables: Node) -> tuple[Array, ...]:
    """Return df/dx for each variable x, of x's shape; zeros where f does not depend on x.

    Raises
    ------
    ValueError
        Where f is not a single number.
    """
    if f.value.size != 1:
        raise ValueError(f"the gradient of an array of shape {f.value.shape}: sum it first")
    found: dict[Node, Array] = {f: np.ones_like(f.value)}
    for node in reversed(_order(f)):
        for source, pull in node.inputs:
            arrived = pull(found[node])
            found[source] = found[source] + arrived if source in found else arrived
    return tuple(np.array(found.get(x, np.zeros_like(x.value))) for x in variables)


def _order(f: Node) -> list[Node]:
    """Return the nodes below f, every node after its inputs; without recursion, as graphs may be deep."""
    done: dict[Node, None] = {}
    stack = [(f, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            done[node] = None
        elif node not in done:
            stack.append((node, True))
            stack.extend((source, False) for source, _ in node.inputs)
    return list(done)


def _fit(d: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: add up what went to the same entry."""
    d = d.sum(axis=tuple(range(d.ndim - len(shape))))
    return np.asarray(d.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 and d.shape[i] != 1), keepdims=True))
