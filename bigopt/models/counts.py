"""Parameters and multiply-adds of convolutional networks, counted and not built.

A convolution uses the same few weights at every place of a picture. That is why its parameters are few and its
operations many, and why the two are best shared out differently between machines: layers with many operations and few
parameters by rows of the data, layers with many parameters and few operations by columns of the model.

===========  ==================================  =================================
layer        weights                             multiply-adds of one picture
===========  ==================================  =================================
convolution  kernel^2 channels filters           weights x places of the output
pooling      none                                none (it compares or adds)
inception    four convolutional branches         their sum
dense        height width channels units         weights
===========  ==================================  =================================

An inception module (Szegedy et al., "Going deeper with convolutions", 2015) runs four branches side by side and stacks
their channels: 1 x 1; 1 x 1 then 3 x 3; 1 x 1 then 5 x 5; pooling then 1 x 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol

from bigopt.core.errors import ConfError
from bigopt.core.names import lookup, nearest

Padding = Literal["same", "valid"]


class Shape(NamedTuple):
    """Height, width and channels of what goes between two layers."""

    height: int
    width: int
    channels: int


class Counted(NamedTuple):
    """What a layer makes of its input, its parameters (weights and intercepts) and multiply-adds for one picture."""

    output: Shape
    parameters: int
    multiply_adds: int


class CountRow(NamedTuple):
    """One line of the table: a layer by name, what it is, and its counts."""

    name: str
    kind: str
    output: Shape
    parameters: int
    multiply_adds: int


class Layer(Protocol):
    """A layer that can be counted."""

    @property
    def kind(self) -> str:
        """What it is, for the table."""
        ...

    def count(self, shape: Shape) -> Counted:
        """Count the layer on an input of a shape."""
        ...


def _moved(shape: Shape, kernel: int, stride: int, padding: Padding) -> Shape:
    """Return the places that a window takes: ceil(side / stride) of each side with padding."""
    if padding == "same":
        return shape._replace(height=-(-shape.height // stride), width=-(-shape.width // stride))
    if kernel > min(shape.height, shape.width):
        raise ConfError(f"a window of {kernel} does not fit {shape.height} x {shape.width}", hint="padding: same")
    return shape._replace(height=(shape.height - kernel) // stride + 1, width=(shape.width - kernel) // stride + 1)


@dataclass(frozen=True)
class Convolution:
    """`filters` square kernels moved over the picture, each through all channels."""

    filters: int
    kernel: int = 3
    stride: int = 1
    padding: Padding = "same"
    intercept: bool = True

    def __post_init__(self) -> None:
        _check(self.padding, filters=self.filters, kernel=self.kernel, stride=self.stride)

    @property
    def kind(self) -> str:
        """Its kernel, and its stride where that is not 1."""
        return f"convolution {self.kernel} x {self.kernel}" + (f", stride {self.stride}" if self.stride > 1 else "")

    def count(self, shape: Shape) -> Counted:
        """Count kernel^2 channels filters weights, each used at every place of the output."""
        output = _moved(shape, self.kernel, self.stride, self.padding)._replace(channels=self.filters)
        weights = self.kernel**2 * shape.channels * self.filters
        parameters = weights + (self.filters if self.intercept else 0)
        return Counted(output, parameters, weights * output.height * output.width)


@dataclass(frozen=True)
class Pooling:
    """The largest, or the mean, under a square window."""

    kernel: int = 3
    stride: int = 2
    padding: Padding = "same"

    def __post_init__(self) -> None:
        _check(self.padding, kernel=self.kernel, stride=self.stride)

    @property
    def kind(self) -> str:
        """Its window and stride."""
        return f"pooling {self.kernel} x {self.kernel}, stride {self.stride}"

    def count(self, shape: Shape) -> Counted:
        """Count nothing but the smaller output."""
        return Counted(_moved(shape, self.kernel, self.stride, self.padding), 0, 0)


@dataclass(frozen=True)
class Inception:
    """Four branches side by side, by the channels of the columns of the paper's table."""

    one: int
    reduce3: int
    three: int
    reduce5: int
    five: int
    pool: int

    @property
    def kind(self) -> str:
        """An inception module."""
        return "inception"

    def count(self, shape: Shape) -> Counted:
        """Count the branches; their channels are stacked."""
        three = Stack((Convolution(self.reduce3, 1), Convolution(self.three, 3)))
        five = Stack((Convolution(self.reduce5, 1), Convolution(self.five, 5)))
        pool = Stack((Pooling(3, 1), Convolution(self.pool, 1)))
        branches = [branch.count(shape) for branch in (Convolution(self.one, 1), three, five, pool)]
        output = shape._replace(channels=sum(branch.output.channels for branch in branches))
        return Counted(output, sum(b.parameters for b in branches), sum(b.multiply_adds for b in branches))


@dataclass(frozen=True)
class Dense:
    """`units` sums over everything that comes in."""

    units: int
    intercept: bool = True

    def __post_init__(self) -> None:
        _check(units=self.units)

    @property
    def kind(self) -> str:
        """A dense layer."""
        return "dense"

    def count(self, shape: Shape) -> Counted:
        """Count one weight for each input and unit."""
        weights = shape.height * shape.width * shape.channels * self.units
        return Counted(Shape(1, 1, self.units), weights + (self.units if self.intercept else 0), weights)


@dataclass(frozen=True)
class Stack:
    """Layers one after the other, counted as one."""

    layers: tuple[Layer, ...]

    @property
    def kind(self) -> str:
        """What its layers are."""
        return ", then ".join(layer.kind for layer in self.layers)

    def count(self, shape: Shape) -> Counted:
        """Add up the layers."""
        parameters = multiply_adds = 0
        for layer in self.layers:
            counted = layer.count(shape)
            shape = counted.output
            parameters, multiply_adds = parameters + counted.parameters, multiply_adds + counted.multiply_adds
        return Counted(shape, parameters, multiply_adds)


LAYERS: Final[Mapping[str, Callable[..., Layer]]] = {
    "convolution": Convolution,
    "pooling": Pooling,
    "inception": Inception,
    "dense": Dense,
}


def count_layers(shape: Sequence[int], layers: Sequence[tuple[str, Layer]]) -> tuple[CountRow, ...]:
    """Count named layers one after the other.

    Parameters
    ----------
    shape : sequence of int
        Height, width and channels of the input.
    layers : sequence of (name, Layer)

    Raises
    ------
    ConfError
        A window that does not fit.
    """
    rows: list[CountRow] = []
    now = Shape(*shape)
    for name, layer in layers:
        try:
            counted = layer.count(now)
        except ConfError as error:
            raise ConfError(error.message, where=name, hint=error.hint) from error
        rows.append(CountRow(name, layer.kind, *counted))
        now = counted.output
    return tuple(rows)


def count_shapes(spec: Mapping[str, Any]) -> tuple[CountRow, ...]:
    """Count a network that is written down as data.

    Parameters
    ----------
    spec : mapping
        ``input: [height, width, channels]`` and ``layers:`` a list of ``{name: ..., KIND: {...}}``, where KIND is
        convolution, pooling, inception or dense, and its value the fields of that layer by name, the list of them in
        order, or the first alone. A list of mappings is a stack. See ``conf/shapes/googlenet.yml``.

    Raises
    ------
    ConfError
        Anything else, naming the layer.
    """
    shape, layers = spec.get("input"), spec.get("layers")
    if not (_whole(shape) and isinstance(shape, Sequence) and len(shape) == 3):
        raise ConfError(f"{shape!r} is not [height, width, channels]", where="input")
    if not isinstance(layers, Sequence) or not layers:
        raise ConfError("no layers", where="layers")
    return count_layers(shape, [_layer(entry, i) for i, entry in enumerate(layers, 1)])


def thousands(parameters: int) -> str:
    """Return whole K of parameters, K = 1024, as such tables print them: 114944 is 112K."""
    return f"{parameters // 1024}K"


def millions(multiply_adds: int) -> str:
    """Return M of operations, M = 10^6, to the nearest: 359661568 is 360M."""
    return f"{round(multiply_adds / 10**6)}M"


def _layer(entry: Any, number: int) -> tuple[str, Layer]:
    where = f"layers, entry {number}"
    if not isinstance(entry, Mapping) or len(entry) != 2 or "name" not in entry:
        raise ConfError(f"{entry!r} is not {{name: ..., KIND: ...}}", where=where, hint=f"KIND: {', '.join(LAYERS)}")
    name = str(entry["name"])
    kind, given = next((k, v) for k, v in entry.items() if k != "name")
    make = lookup(LAYERS, str(kind), family="layer", where=where)
    if isinstance(given, list) and given and all(isinstance(part, Mapping) for part in given):
        return name, Stack(tuple(_made(make, part, name) for part in given))
    return name, _made(make, given, name)


def _made(make: Callable[..., Layer], given: Any, name: str) -> Layer:
    fields = list(getattr(make, "__dataclass_fields__", {}))
    if isinstance(given, Mapping):
        wrong = next((key for key in given if key not in fields), None)
        if wrong is not None:
            raise ConfError(f"unknown key '{wrong}'", where=name, hint=nearest(str(wrong), fields))
        named: Mapping[str, Any] = given
    else:
        values = list(given) if isinstance(given, (list, tuple)) else [given]
        if len(values) > len(fields):
            raise ConfError(f"{len(values)} values for {', '.join(fields)}", where=name)
        named = dict(zip(fields, values, strict=False))
    counts = [value for key, value in named.items() if key not in ("padding", "intercept")]
    if not _whole(counts):
        raise ConfError(f"{given!r}: sizes are whole numbers above 0", where=name)
    try:
        return make(**named)
    except TypeError:
        raise ConfError(f"{given!r} lacks some of {', '.join(fields)}", where=name) from None
    except ConfError as error:
        raise ConfError(error.message, where=name, hint=error.hint) from error


def _whole(values: Any) -> bool:
    return isinstance(values, Sequence) and all(type(v) is int and v > 0 for v in values)


def _check(padding: str = "same", **sizes: int) -> None:
    """Refuse sizes below 1 and unknown paddings."""
    for key, size in sizes.items():
        if size < 1:
            raise ConfError(f"{key} is {size}, at least 1 is needed")
    if padding not in ("same", "valid"):
        raise ConfError(f"unknown padding '{padding}'", hint="same or valid")
