"""Pieces of an MLP against the whole: sums of parts are the scores, the gradient's parts lie side by side."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bigopt.core import codec
from bigopt.core.errors import ConfError
from bigopt.models.build import build_model
from bigopt.models.kernels import totals
from bigopt.models.mlp import MLP
from bigopt.models.split import (
    Stage,
    by_layers,
    by_units,
    check_splittable,
    dense_last,
    loss_delta,
    most_parts,
    pieces,
)


def mlp(hidden: tuple[int, ...], activation: str = "tanh", classes: int | None = None, **more) -> MLP:
    model = build_model("mlp", features=7, targets=2, classes=classes, hidden=hidden, activation=activation, **more)
    assert isinstance(model, MLP)
    return model


def rows(model: MLP, n: int = 23, dtype: str = "float64"):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, 7)).astype(dtype)
    if model.loss.task == "regression":
        y = rng.normal(size=(n, 2)).astype(dtype)
    else:
        y = rng.integers(0, model.outputs if model.outputs > 1 else 2, size=n).astype(dtype)
    return X, y, rng.uniform(0.5, 2.0, size=n).astype(dtype)


def through(model: MLP, stages: tuple[Stage, ...], params, X, y, weight):
    """Forward and backward of a model that is cut, by hand."""
    held, v = [], X
    for stage in stages:
        x = v if stage.first == 0 else pieces(model, stage)[0].entered(v)
        parts = [(piece, piece.take(params)) for piece in pieces(model, stage)]
        inner = [piece.inputs(mine, x) for piece, mine in parts]
        v = sum(piece.output(mine, z) for (piece, mine), z in zip(parts, inner, strict=True))
        held.append((parts, inner))
    scores = v.copy()
    value, delta = loss_delta(model, v, y, weight)
    grad = np.full(model.layout.size, np.nan)
    for stage, (parts, inner) in reversed(list(zip(stages, held, strict=True))):
        below = []
        for (piece, mine), z in zip(parts, inner, strict=True):
            own, handed = piece.gradient(mine, z, delta.copy(), below=stage.first > 0)
            piece.put(own, grad)
            below.append(handed)
        if stage.first:
            single = stage.by_units and stage.last - stage.first == 1
            delta = np.concatenate(below, axis=1) if single else sum(below)
    return scores, grad, totals(value, weight)


CUTS = {
    "units 2": lambda m: by_units(m, 2),
    "units 3": lambda m: by_units(m, 3),
    "one piece": lambda m: by_units(m, 1),
    "stages": lambda m: by_layers(m, len(m.layers)),
    "two stages": lambda m: by_layers(m, 2),
    "dense last": lambda m: dense_last(m, 2),
}


@pytest.mark.parametrize("hidden", [(5,), (6, 4), (6, 4, 5)])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("cut", CUTS)
def test_the_parts_are_the_whole(hidden: tuple[int, ...], activation: str, cut: str) -> None:
    for classes, intercept in ((None, True), (4, True), (2, False)):
        model = mlp(hidden, activation, classes, intercept=intercept)
        X, y, weight = rows(model)
        params = model.init("he_normal", 3)
        params += 0.1 * np.random.default_rng(2).normal(size=params.size)
        scores, grad, sums = through(model, CUTS[cut](model), params, X, y, weight)
        expected, *expected_sums = model.grad_sum(params, X, y, weight)
        assert np.allclose(scores, model.scores(params, X), rtol=0, atol=1e-13)
        assert np.abs(grad - expected).max() <= 1e-13 * np.abs(expected).max()
        assert np.allclose(sums, expected_sums, rtol=1e-14)


def test_an_output_activation_is_applied_once() -> None:
    model = build_model("mlp", features=7, targets=2, hidden=(6,), output_activation="softmax", loss="squared")
    assert isinstance(model, MLP)
    X, y, weight = rows(model)
    params = model.init("he_normal", 3)
    _, grad, _ = through(model, by_units(model, 2), params, X, y, weight)
    assert np.allclose(grad, model.grad_sum(params, X, y, weight)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("cut", CUTS)
def test_every_parameter_is_in_one_piece(cut: str) -> None:
    model = mlp((6, 5, 4))
    params = np.arange(model.layout.size, dtype=float)
    back, seen = np.zeros_like(params), np.zeros_like(params)
    for stage in CUTS[cut](model):
        for piece in pieces(model, stage):
            mine = piece.take(params)
            assert piece.layout.size == len(mine)
            piece.put(mine, back)
            own = np.zeros_like(params)
            piece.put(np.ones_like(mine), own)
            seen += own
    assert (back == params).all()
    assert (seen == 1).all()


def test_halves_of_a_pair_by_hand() -> None:
    model = mlp((4,))
    first, second = pieces(model, by_units(model, 2)[0])
    params = np.arange(model.layout.size, dtype=float)
    w = model.layout.views(params)
    assert first.take(params).tolist() == [
        *w["layer1.weight"][:, :2].ravel(),
        *w["layer1.intercept"][:2],
        *w["layer2.weight"][:2].ravel(),
        *w["layer2.intercept"],
    ]
    assert second.take(params).tolist() == [
        *w["layer1.weight"][:, 2:].ravel(),
        *w["layer1.intercept"][2:],
        *w["layer2.weight"][2:].ravel(),
    ]


def test_stages_are_as_even_as_can_be() -> None:
    model = mlp((8, 2, 9, 3))  # multiply-adds 56, 16, 18, 27, 6
    work = [n * m for n, m, _ in model.layers]
    for number in range(1, 6):
        stages = by_layers(model, number)
        assert [s.first for s in stages[1:]] == [s.last for s in stages[:-1]]
        assert (stages[0].first, stages[-1].last, len(stages)) == (0, 5, number)
        largest = max(sum(work[s.first : s.last]) for s in stages)
        for inner in itertools.combinations(range(1, 5), number - 1):
            other = [sum(work[a:b]) for a, b in itertools.pairwise((0, *inner, 5))]
            assert largest <= max(other)


def test_pairs_and_their_rest() -> None:
    assert by_units(mlp((6,)), 2) == (Stage(0, 2, 2),)
    assert by_units(mlp((6, 5)), 2) == (Stage(0, 2, 2), Stage(2, 3, 2))
    assert by_units(mlp((6, 5, 4)), 3) == (Stage(0, 2, 3), Stage(2, 4, 3))
    assert by_units(mlp(()), 3) == (Stage(0, 1, 3),)
    assert dense_last(mlp((6,)), 2) == (Stage(0, 2, 2),)
    assert dense_last(mlp((6, 5, 4)), 2) == (Stage(0, 2, 2, "rows"), Stage(2, 4, 2))
    assert most_parts(mlp((6, 5))) == 5


def test_refused_by_name() -> None:
    with pytest.raises(ConfError, match="4 stages of 3 layers"):
        by_layers(mlp((6, 5)), 4)
    with pytest.raises(ConfError, match="7 pieces of 6 units of layer 1"):
        by_units(mlp((6, 9)), 7)
    for key, more in (
        ("groups", {"groups": [1, 2]}),
        ("shortcut", {"shortcut": True}),
        ("batchnorm", {"batchnorm": True}),
        ("batchnorm", {"batchnorm": "center"}),
    ):
        with pytest.raises(ConfError, match=f"model.{key} does not go with layers that are cut"):
            check_splittable(mlp((6, 6), **more))
    with pytest.raises(ConfError, match="only an mlp has layers"):
        check_splittable(build_model("ridge", features=3))
    check_splittable(mlp((6,), groups=1, shortcut=True))


def test_a_stage_travels() -> None:
    stage = Stage(0, 2, 3, "rows")
    assert codec.loads(codec.dumps(stage)) == stage


def test_on_the_array_api() -> None:
    """What a GPU's arrays offer is enough."""
    xp = pytest.importorskip("array_api_strict")
    model = mlp((6, 5), "relu", 4)
    X, y, weight = rows(model)
    params = model.init("he_normal", 3)
    _, expected, _ = through(model, by_units(model, 2), params, X, y, weight)
    for stage in by_units(model, 2):
        for piece in pieces(model, stage):
            x = X if stage.first == 0 else np.ones((23, model.layers[stage.first][0]))
            mine = piece.take(params)
            inner, strict = piece.inputs(mine, x), piece.inputs(xp.asarray(mine), xp.asarray(x))
            v, other = piece.output(mine, inner), piece.output(xp.asarray(mine), strict)
            assert np.allclose(v, np.asarray(other), rtol=0, atol=1e-14)
            grad, _ = piece.gradient(mine, inner, v.copy(), below=True)
            found, _ = piece.gradient(xp.asarray(mine), strict, xp.asarray(v.copy()), below=True)
            assert np.allclose(grad, np.asarray(found), rtol=0, atol=1e-12)
    assert np.isfinite(expected).all()
