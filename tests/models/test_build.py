"""Names to models, layouts, initial params, the wire, and the table that describe prints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bigopt.core.codec import dumps, loads
from bigopt.core.errors import BigoptError, ConfError, DataError
from bigopt.models import MLP, MODELS, LinearModel, build_model
from bigopt.models.build import default_loss
from bigopt.models.init import INITS, initial
from bigopt.models.losses import (
    LOSSES,
    CategoricalCrossEntropy,
    HuberLoss,
    SignedSquaredLoss,
    SquaredHingeLoss,
    SquaredLoss,
)
from bigopt.models.penalties import Penalty
from bigopt.models.table import batch_memory, model_table, si


def test_each_name_has_its_default_loss_and_outputs() -> None:
    built = {
        "linear": build_model("linear", features=3, targets=2),
        "ridge": build_model("ridge", features=3),
        "logistic": build_model("logistic", features=3, classes=2),
        "softmax": build_model("softmax", features=3, classes=5),
        "perceptron": build_model("perceptron", features=3, classes=2),
        "svm": build_model("svm", features=3, classes=2),
        "mlp": build_model("mlp", features=3),
    }
    assert set(built) == set(MODELS)
    assert {k: (m.loss.name, m.outputs, type(m)) for k, m in built.items()} == {
        "linear": ("squared", 2, LinearModel),
        "ridge": ("squared", 1, LinearModel),
        "logistic": ("binary_cross_entropy", 1, LinearModel),
        "softmax": ("categorical_cross_entropy", 5, LinearModel),
        "perceptron": ("perceptron", 1, LinearModel),
        "svm": ("hinge", 1, LinearModel),
        "mlp": ("squared", 1, MLP),
    }
    assert default_loss("mlp", 2) == "binary_cross_entropy"
    assert build_model("mlp", features=3, classes=2).outputs == 1
    assert build_model("mlp", features=3, classes=2, loss="categorical_cross_entropy").outputs == 2
    assert build_model("mlp", features=3, classes=7).outputs == 7
    assert build_model("linear", features=3, loss="huber", huber_delta=2).loss == HuberLoss(2.0)


@pytest.mark.parametrize("model_name", list(MODELS))
@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_pair_of_model_and_loss_is_built_or_refused(model_name: str, loss: str) -> None:
    classes = None if model_name in ("linear", "ridge") or loss == "huber" else 2
    if loss in MODELS[model_name].losses:
        built = build_model(model_name, features=2, classes=classes, loss=loss).loss
        assert built.name == loss
        assert (built.task == "regression") == (classes is None)
    else:
        with pytest.raises(ConfError, match=f"model '{model_name}' has no loss '{loss}'"):
            build_model(model_name, features=2, classes=2, loss=loss)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"name": "svm"}, ConfError, "hinge needs classes, and the target is numbers"),
        ({"name": "perceptron", "classes": 3}, DataError, "use model.name=softmax"),
        ({"name": "svm", "classes": 3, "loss": "squared"}, DataError, "squared separates two"),
        ({"name": "mpl"}, ConfError, "unknown model 'mpl' (did you mean 'mlp'?)"),
        ({"name": "mlp", "loss": "hinge"}, ConfError, "hinge needs classes"),
        ({"name": "mlp", "loss": "hinge", "classes": 4}, DataError, "use model.loss=categorical_cross_entropy"),
        ({"name": "mlp", "loss": "huber", "classes": 2}, ConfError, "huber needs numbers, and the target is classes"),
        ({"name": "mlp", "loss": "hubber"}, ConfError, "did you mean 'huber'?"),
        ({"name": "mlp", "activation": "rely"}, ConfError, "model.activation: unknown activation 'rely' (did you mean"),
        ({"name": "logistic"}, ConfError, "needs classes, and the target is numbers"),
        ({"name": "logistic", "classes": 3}, DataError, "use model.name=softmax"),
        ({"name": "logistic", "classes": 1}, DataError, "the target has 1 class"),
        ({"name": "mlp", "classes": 3, "loss": "binary_cross_entropy"}, DataError, "use model.loss=categorical"),
        ({"name": "mlp", "hidden": [4, 0]}, ConfError, "model.hidden: a hidden layer needs at least one unit: [4, 0]"),
        ({"name": "mlp", "hidden": [9], "groups": 2}, ConfError, "layer 1 with 6 inputs and 9 outputs cannot have 2"),
        ({"name": "mlp", "hidden": [4], "groups": [1, 2]}, ConfError, "layer 2 with 4 inputs and 1 outputs cannot"),
        ({"name": "mlp", "hidden": [4, 4], "groups": [2]}, ConfError, "model.groups: 1 numbers for 3 layers"),
        ({"name": "mlp", "hidden": [4], "groups": 0}, ConfError, "cannot have 0 groups"),
        ({"name": "mlp", "hidden": [], "groups": 2}, ConfError, "groups without a hidden layer"),
        ({"name": "mlp", "classes": 3, "output_activation": "softmax"}, ConfError, "takes logits"),
        ({"name": "linear", "features": 0}, ConfError, "at least one feature"),
        ({"name": "linear", "targets": 0}, ConfError, "at least one output"),
        ({"name": "linear", "loss": "huber", "huber_delta": 0.0}, ConfError, "model.huber_delta"),
    ],
)
def test_refusals(arguments: dict[str, Any], kind: type[BigoptError], message: str) -> None:
    with pytest.raises(kind) as caught:
        build_model(arguments.pop("name"), **{"features": 6, **arguments})
    assert message in str(caught.value)


def test_categorical_needs_two_logits_and_binary_one() -> None:
    with pytest.raises(ConfError, match="at least two classes"):
        LinearModel(3, 1, CategoricalCrossEntropy())
    with pytest.raises(ConfError, match="has one logit, not 2"):
        LinearModel(3, 2, LOSSES["binary_cross_entropy"]())
    with pytest.raises(ConfError, match="has one score, not 2"):
        MLP(3, (4,), 2, LOSSES["hinge"]())


def test_groups_by_one_number_or_a_list() -> None:
    def of(groups: Any) -> tuple[int, ...]:
        model = build_model("mlp", features=8, hidden=[4, 6], groups=groups, targets=2)
        assert isinstance(model, MLP)
        return tuple(g for _, _, g in model.layers)

    assert of(None) == (1, 1, 1)
    assert of(2) == (2, 2, 1)
    assert of([4, 2]) == (4, 2, 1)
    assert of([4, 1, 2]) == (4, 1, 2)


def test_a_grouped_layer_is_the_block_diagonal_one() -> None:
    grouped = MLP(8, (4,), 2, SquaredLoss(), "tanh", (2, 1))
    full = MLP(8, (4,), 2, SquaredLoss(), "tanh")
    flat = np.random.default_rng(0).normal(size=grouped.layout.size)
    views = grouped.layout.views(flat)
    w = np.zeros((8, 4))
    w[:4, :2], w[4:, 2:] = views["layer1.weight"]
    dense = full.layout.flatten({**views, "layer1.weight": w}, np.empty(full.layout.size))
    X = np.random.default_rng(1).normal(size=(7, 8))
    np.testing.assert_allclose(grouped.scores(flat, X), full.scores(dense, X), rtol=1e-13)


def test_layout_of_the_mlp() -> None:
    model = MLP(8, (4,), 3, SquaredLoss(), groups=(2, 1))
    assert [(b.name, b.shape, b.penalized, b.fan_in, b.fan_out) for b in model.layout.blocks] == [
        ("layer1.weight", (2, 4, 2), True, 4, 2),
        ("layer1.intercept", (4,), False, 0, 0),
        ("layer2.weight", (4, 3), True, 4, 3),
        ("layer2.intercept", (3,), False, 0, 0),
    ]
    assert [b.name for b in LinearModel(3, 2, SquaredLoss(), intercept=False).layout.blocks] == ["weight"]


@pytest.mark.parametrize("rule", list(INITS))
def test_initial_params_have_the_rules_spread(rule: str) -> None:
    model = MLP(300, (200,), 50, SquaredLoss(), groups=(2, 1))
    params = model.init(rule, 7)
    views = model.layout.views(params)
    assert params.dtype == np.float64
    assert not views["layer1.intercept"].any()
    assert not views["layer2.intercept"].any()
    for name, fan_in, fan_out in (("layer1.weight", 150, 100), ("layer2.weight", 200, 50)):
        w = views[name]
        variance = {"glorot": 2 / (fan_in + fan_out), "he": 2 / fan_in, "zeros": 0.0}[rule.split("_")[0]]
        assert w.var() == pytest.approx(variance, rel=0.05)
        assert abs(w.mean()) <= 4 * math.sqrt(variance / w.size)
        if rule.endswith("uniform"):
            assert 0.99 * math.sqrt(3 * variance) < abs(w).max() <= math.sqrt(3 * variance)
        if rule.endswith("normal"):
            assert abs(w).max() > 3 * math.sqrt(variance)


def test_initial_params_are_a_function_of_seed_and_place() -> None:
    model = MLP(5, (5,), 5, SquaredLoss())
    params = model.init("he_normal", 3)
    assert params.tobytes() == model.init("he_normal", 3).tobytes()
    assert params.tobytes() == initial(model.layout, "he_normal", 3).tobytes()
    first, second = params[:25], params[30:55]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.9
    assert not np.array_equal(params, model.init("he_normal", 4))
    with pytest.raises(ConfError, match=r"model\.init: unknown init rule 'he' "):
        model.init("he", 0)


@pytest.mark.parametrize(
    "value",
    [
        LinearModel(3, 2, HuberLoss(0.5), False),
        LinearModel(3, 1, SignedSquaredLoss()),
        MLP(3, (2,), 1, SquaredHingeLoss()),
        MLP(8, (4, 4), 3, CategoricalCrossEntropy(), "tanh", (2, 2, 1), False),
        MLP(8, (4,), 3, SquaredLoss(), output_activation="softmax", shortcut=True),
        MLP(8, (4,), 3, SquaredLoss(), batchnorm="center"),
        Penalty(0.25),
    ],
)
def test_models_travel(value: Any) -> None:
    again = loads([bytes(part) for part in dumps(value)])
    assert again == value
    assert hash(again) == hash(value)
    if not isinstance(value, Penalty):
        assert again.layout == value.layout


def test_table_of_the_fashion_mnist_mlp() -> None:
    table = model_table(MLP(784, (128,), 10, CategoricalCrossEntropy()))
    assert [(r.name, r.kind, r.shape, r.parameters, r.multiply_adds) for r in table.layers] == [
        ("layer1", "dense", (784, 128), 784 * 128 + 128, 784 * 128),
        ("layer2", "dense", (128, 10), 1290, 1280),
    ]
    assert table.parameters == 101_770
    assert table.multiply_adds == 784 * 128 + 1280


def test_two_blocks_halve_the_work() -> None:
    """8 x 4 = 32 multiplications become 2 (4 x 2) = 16."""
    full, grouped = (model_table(MLP(8, (4,), 1, SquaredLoss(), groups=g)).layers[0] for g in ((1, 1), (2, 1)))
    assert (full.multiply_adds, grouped.multiply_adds) == (32, 16)
    assert grouped.kind == "dense, 2 groups"
    assert (grouped.inputs, grouped.outputs, grouped.shape, grouped.parameters) == (8, 4, (2, 4, 2), 20)


def test_shortcuts_join_hidden_layers_of_equal_width() -> None:
    model = build_model("mlp", features=4, hidden=[4, 4, 6, 6], targets=6, groups=[1, 2, 1, 1], shortcut=True)
    assert isinstance(model, MLP)
    assert model.shortcuts == (True, True, False, True)
    assert [row.kind for row in model_table(model).layers] == [
        "dense, shortcut", "dense, 2 groups, shortcut", "dense", "dense, shortcut", "dense"
    ]  # fmt: skip
    assert model.layout == build_model("mlp", features=4, hidden=[4, 4, 6, 6], targets=6, groups=[1, 2, 1, 1]).layout
    assert MLP(3, (4,), 4, SquaredLoss(), shortcut=True).shortcuts == (False,)


def test_table_with_batchnorm() -> None:
    model = build_model("mlp", features=4, hidden=[4, 6], targets=2, groups=[1, 2, 1], shortcut=True, batchnorm=True)
    assert [(row.kind, row.parameters) for row in model_table(model).layers] == [
        ("dense, shortcut", 20),
        ("dense, 2 groups, batchnorm", 12 + 6 + 2 * 4),
        ("dense, batchnorm", 12 + 2 + 2 * 6),
    ]
    centred = build_model("mlp", features=4, hidden=[3], batchnorm="center")
    assert [row.kind for row in model_table(centred).layers] == ["dense", "dense, center"]
    assert not centred.layout.penalized[-3:].any()


def test_table_of_a_linear_model() -> None:
    table = model_table(LinearModel(3, 2, SquaredLoss()))
    assert table.layers == (("linear", "dense", 3, 2, (3, 2), 8, 6, False),)
    assert model_table(LinearModel(3, 2, SquaredLoss(), intercept=False)).parameters == 6


def test_batch_memory_counts_each_part() -> None:
    model = MLP(784, (128,), 10, CategoricalCrossEntropy())
    p, b = 101_770, 128
    memory = batch_memory(model, b, state_vectors=2)
    assert memory == (b * 784 * 4, b * 138 * 4, b * (2 * 128 + 10) * 4, p * (8 + 4), p * (8 + 4), 2 * p * 8)
    assert memory.total == sum(memory)
    same = batch_memory(LinearModel(3, 2, SquaredLoss()), 10, dtype="f8")
    assert same == (240, 160, 320, 64, 128, 0)


def test_counts_as_people_read_them() -> None:
    assert [si(x) for x in (0, 32, 999, 1000, 101_770, 2_500_000, 7e9)] == [
        "0", "32", "999", "1.0K", "101.8K", "2.5M", "7.0G"
    ]  # fmt: skip
