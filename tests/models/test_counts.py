"""Counts of convolutional networks: the published table of GoogLeNet, torch's parameters, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bigopt.core.errors import ConfError
from bigopt.describe import describe_shapes
from bigopt.models.counts import (
    Convolution,
    Counted,
    Dense,
    Inception,
    Pooling,
    Shape,
    count_layers,
    count_shapes,
    millions,
    thousands,
)

GOOGLENET = Path(__file__).parents[2] / "conf" / "shapes" / "googlenet.yml"

MILLIONS = {"3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5b": 71}
"""Operations of Szegedy et al. (2015), table 1. Its parameters of these lines, and line 5a, do not follow from its own
columns of channels; those of conv2, 3a and linear do."""


def test_googlenet_is_as_published() -> None:
    rows = {row.name: row for row in count_shapes(yaml.safe_load(GOOGLENET.read_text()))}

    def found(name: str) -> tuple[str, str]:
        return thousands(rows[name].parameters), millions(rows[name].multiply_adds)

    assert found("conv2") == ("112K", "360M")
    assert found("3a") == ("159K", "128M")
    assert found("linear") == ("1000K", "1M")
    for name, operations in MILLIONS.items():
        assert rows[name].multiply_adds == pytest.approx(operations * 1e6, abs=1e6)
    assert [rows[f"pool{i}"].output for i in range(1, 6)] == [
        (56, 56, 64), (28, 28, 192), (14, 14, 480), (7, 7, 832), (1, 1, 1024)
    ]  # fmt: skip
    for counts in ([r.parameters for r in rows.values()], [r.multiply_adds for r in rows.values()]):
        assert max(counts) < sum(counts) / 4, "no layer is above a quarter of the total"


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 1), (8, 3, 2), (9, 5, 3), (5, 5, 1), (6, 1, 2)])
def test_a_convolution_is_torchs(size: int, kernel: int, stride: int, padding: Any) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Conv2d(3, 4, kernel, stride=stride, padding=kernel // 2 if padding == "same" else 0)
    places = layer(torch.zeros(1, 3, size, size)).shape[2:]
    parameters = sum(p.numel() for p in layer.parameters())
    found = Convolution(4, kernel, stride, padding).count(Shape(size, size, 3))
    assert found == (Shape(*places, 4), parameters, layer.weight.numel() * places[0] * places[1])
    pool = torch.nn.MaxPool2d(kernel, stride, padding=kernel // 2 if padding == "same" else 0)
    places = pool(torch.zeros(1, 3, size, size)).shape[2:]
    assert Pooling(kernel, stride, padding).count(Shape(size, size, 3)) == (Shape(*places, 3), 0, 0)


def test_intercepts_and_dense_layers() -> None:
    shape = Shape(2, 3, 4)
    assert Convolution(5, 1, intercept=False).count(shape) == Counted(Shape(2, 3, 5), 20, 120)
    assert Dense(7).count(shape) == Counted(Shape(1, 1, 7), 24 * 7 + 7, 24 * 7)
    assert Dense(7, intercept=False).count(shape).parameters == 24 * 7
    rows = count_layers((8, 8, 1), [("a", Convolution(2)), ("b", Pooling()), ("c", Inception(1, 1, 1, 1, 1, 1))])
    assert [row.kind for row in rows] == ["convolution 3 x 3", "pooling 3 x 3, stride 2", "inception"]
    assert rows[-1].output == (4, 4, 4)


def test_describe_shows_shares_of_the_total() -> None:
    shown = describe_shapes(yaml.safe_load(GOOGLENET.read_text()))
    (table,) = shown["tables"]
    by_name = {row[0]: row for row in table["rows"]}
    assert by_name["conv2"][2:] == ["56 x 56 x 192", 114_944, "1.6 %", 359_661_568, "22.7 %"]
    assert by_name["3a"][3] == 163_696
    assert table["columns"][0] == "layer"
    assert by_name["total"][3] == shown["parameters"] == sum(r[3] for r in table["rows"][:-1])
    assert by_name["total"][5] == shown["multiply_adds"] == sum(r[5] for r in table["rows"][:-1])


LINE = {"name": "a", "dense": 3}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "input: None is not [height, width, channels]"),
        ({"input": [8, 8], "layers": [LINE]}, "input: [8, 8] is not"),
        ({"input": [8, 8, 0], "layers": [LINE]}, "input: [8, 8, 0] is not"),
        ({"input": [8, 8, 1]}, "layers: no layers"),
        ({"input": [8, 8, 1], "layers": ["dense"]}, "layers, entry 1: 'dense' is not {name: ..., KIND: ...}"),
        ({"input": [8, 8, 1], "layers": [LINE, {"name": "b", "convolutoin": 3}]}, "did you mean 'convolution'?"),
        ({"input": [8, 8, 1], "layers": [{"name": "b", "pooling": {"kernle": 3}}]}, "b: unknown key 'kernle'"),
        ({"input": [8, 8, 1], "layers": [{"name": "b", "inception": [1, 2, 3]}]}, "b: [1, 2, 3] lacks some of one"),
        ({"input": [8, 8, 1], "layers": [{"name": "b", "dense": [1, True, 3]}]}, "b: 3 values for units, intercept"),
        ({"input": [8, 8, 1], "layers": [{"name": "b", "dense": 2.5}]}, "b: 2.5: sizes are whole numbers above 0"),
        (
            {"input": [8, 8, 1], "layers": [{"name": "b", "pooling": [9, 1, "valid"]}]},
            "b: a window of 9 does not fit 8 x 8",
        ),
        ({"input": [8, 8, 1], "layers": [{"name": "b", "pooling": [2, 1, "full"]}]}, "b: unknown padding 'full'"),
    ],
)
def test_refusals(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfError) as caught:
        count_shapes(spec)
    assert message in str(caught.value)
    with pytest.raises(ConfError, match="filters is 0, at least 1 is needed"):
        Convolution(0)
