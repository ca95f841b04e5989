"""The same code on other array libraries, the block's dtype, and memory: no temporary of the size of X."""

from __future__ import annotations

import tracemalloc
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from bigopt.core.arrays import namespace
from bigopt.models.activations import ACTIVATIONS
from bigopt.models.linear import LinearModel
from bigopt.models.losses import BinaryCrossEntropy, CategoricalCrossEntropy, Loss, SquaredLoss
from bigopt.models.mlp import MLP
from bigopt.models.table import batch_memory


def models(loss: Loss, outputs: int) -> list[Any]:
    layered = [MLP(6, (8, 4), outputs, loss, name, (2, 4, 1)) for name in ACTIVATIONS]
    short = [MLP(6, (6, 6), outputs, loss, name, shortcut=True) for name in ("identity", "tanh", "relu")]
    normal = [MLP(6, (6, 4), outputs, loss, "tanh", shortcut=True, batchnorm=how) for how in (True, "center")]
    return [LinearModel(6, outputs, loss), MLP(6, (5,), outputs, loss), *layered, *short, *normal]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_array_api_strict_gives_numpys_numbers(
    loss_outputs: tuple[Loss, int], weighted: bool, dtype: str, rows_of: Any, params_of: Any
) -> None:
    loss, outputs = loss_outputs
    for model in models(loss, outputs):
        rows = rows_of(model, weighted=weighted)
        X, params = rows.X.astype(dtype), params_of(model).astype(dtype)
        y = rows.y if loss.task == "multiclass" else rows.y.astype(dtype)
        expected = model.grad_sum(params, X, y, rows.weight)
        device = [None if a is None else strict.asarray(a) for a in (params, X, y, rows.weight)]
        grad, total_loss, total_weight = model.grad_sum(*device)
        assert isinstance(grad, type(strict.asarray(1.0)))
        assert grad.dtype == getattr(strict, dtype)
        np.testing.assert_array_equal(np.asarray(grad), expected[0])
        assert (total_loss, total_weight) == expected[1:]
        assert model.loss_sum(*device)[1] == expected[2]
        for name in ("scores", "predict"):
            found = getattr(model, name)(device[0], device[1])
            np.testing.assert_array_equal(np.asarray(found), getattr(model, name)(params, X))


def test_hidden_moments_on_array_api_strict(rows_of: Any, params_of: Any) -> None:
    model = MLP(6, (8, 4), 3, SquaredLoss(), "tanh", batchnorm=True)
    rows, params = rows_of(model, weighted=True), abs(params_of(model))
    for weight in (rows.weight, None):
        expected = model.hidden_moments(params, rows.X, weight)
        device = None if weight is None else strict.asarray(weight)
        found = model.hidden_moments(strict.asarray(params), strict.asarray(rows.X), device)
        assert found[0] == expected[0]
        np.testing.assert_allclose(np.asarray(found[1]), expected[1], rtol=1e-14)
        np.testing.assert_allclose(np.asarray(found[2]), expected[2], rtol=1e-13)
        assert found[1].shape == found[2].shape == (12,)


def test_output_activations_on_array_api_strict(rows_of: Any, params_of: Any) -> None:
    for name in ACTIVATIONS:
        model = MLP(6, (8,), 3, SquaredLoss(), "tanh", output_activation=name)
        rows, params = rows_of(model, weighted=True), params_of(model)
        grad, *_ = model.grad_sum(strict.asarray(params), *(strict.asarray(a) for a in rows))
        np.testing.assert_array_equal(np.asarray(grad), model.grad_sum(params, *rows)[0])


def test_a_float32_block_stays_float32(
    loss_outputs: tuple[Loss, int], weighted: bool, rows_of: Any, params_of: Any
) -> None:
    loss, outputs = loss_outputs
    for model in models(loss, outputs):
        rows = rows_of(model, weighted=weighted, n=40)
        params = params_of(model)
        single = params.astype("f4"), rows.X.astype("f4"), rows.y, rows.weight
        grad, total_loss, total_weight = model.grad_sum(*single)
        exact = model.grad_sum(params, *rows)
        assert grad.dtype == np.float32
        assert type(total_loss) is float
        assert model.scores(*single[:2]).dtype == model.predict(*single[:2]).dtype == np.float32
        assert np.linalg.norm(grad - exact[0]) < 2e-6 * np.linalg.norm(exact[0])
        assert total_loss == pytest.approx(exact[1], rel=1e-6)
        assert total_weight == exact[2], "weights are summed in float64"


def test_loss_and_weight_are_summed_in_float64() -> None:
    """2^24 + 1 ones: a float32 sum would stop at 2^24."""
    n = (1 << 24) + 1
    model = LinearModel(1, 1, SquaredLoss(), intercept=False)
    X = np.ones((n, 1), dtype=np.float32)
    loss, weight = model.loss_sum(np.ones(1, dtype=np.float32), X, np.zeros(n, dtype=np.float32), X[:, 0])
    assert loss == weight == n


def test_params_of_another_dtype_are_refused() -> None:
    for model in (LinearModel(2, 1, SquaredLoss()), MLP(2, (2,), 1, SquaredLoss())):
        X = np.ones((3, 2), dtype=np.float32)
        for method in (model.grad_sum, model.loss_sum):
            with pytest.raises(TypeError, match="cast params to the block's dtype"):
                method(np.zeros(model.layout.size), X, np.zeros(3, dtype=np.float32), None)


def test_targets_of_another_shape_are_refused() -> None:
    model = LinearModel(2, 2, SquaredLoss())
    with pytest.raises(ValueError, match=r"targets of shape \(3, 1\) for outputs of shape \(3, 2\)"):
        model.grad_sum(np.zeros(6), np.ones((3, 2)), np.zeros(3), None)


def test_nothing_is_written_to_the_inputs(rows_of: Any, params_of: Any, loss_outputs: tuple[Loss, int]) -> None:
    loss, outputs = loss_outputs
    for model in models(loss, outputs):
        rows, params = rows_of(model, weighted=True), params_of(model)
        for array in (*rows, params):
            array.flags.writeable = False
        first = model.grad_sum(params, *rows)
        model.predict(params, rows.X)
        again = model.grad_sum(params, *rows)
        assert first[0].tobytes() == again[0].tobytes()


def test_no_rows_give_zero_sums(loss_outputs: tuple[Loss, int], rows_of: Any, params_of: Any) -> None:
    loss, outputs = loss_outputs
    for model in models(loss, outputs):
        rows = rows_of(model, weighted=True)[:0]
        grad, total_loss, total_weight = model.grad_sum(params_of(model), *rows)
        assert not grad.any()
        assert (total_loss, total_weight) == (0.0, 0.0)


def _peak(call: Any) -> int:
    call()
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "model",
    [
        LinearModel(256, 1, BinaryCrossEntropy()),
        LinearModel(256, 4, CategoricalCrossEntropy()),
        MLP(256, (16,), 2, SquaredLoss(), "relu", (4, 1)),
    ],
    ids=["logistic", "softmax", "grouped mlp"],
)
def test_no_temporary_of_the_size_of_x(model: Any) -> None:
    rng = np.random.default_rng(0)
    X = rng.random((8192, 256), dtype=np.float32)
    y = np.zeros((8192, 2), dtype=np.float32) if model.loss.task == "regression" else rng.integers(0, 2, 8192)
    params = model.init("glorot_uniform", 0).astype(np.float32)
    assert _peak(lambda: model.grad_sum(params, X, y, None)) < X.nbytes / 3


@pytest.mark.parametrize(
    ("hidden", "more"),
    [((256, 128), {}), ((128, 128, 128), {"shortcut": True}), ((256, 128), {"batchnorm": True})],
    ids=["plain", "shortcut", "batchnorm"],
)
def test_the_memory_that_describe_prints_is_what_a_step_takes(hidden: tuple[int, ...], more: Any) -> None:
    model = MLP(20, hidden, 10, CategoricalCrossEntropy(), **more)
    rng = np.random.default_rng(0)
    X, y = rng.random((4096, 20), dtype=np.float32), rng.integers(0, 10, 4096)
    params = model.init("glorot_uniform", 0).astype(np.float32)
    memory = batch_memory(model, 4096, dtype="f4", run_dtype="f4")
    stated = memory.activations + memory.deltas
    peak = _peak(lambda: model.grad_sum(params, X, y, None))
    assert 0.8 * stated < peak < 1.1 * stated


def test_cupy_arrays_are_known_by_their_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy 14's arrays have no __array_namespace__; its module is the namespace."""
    import bigopt.core.arrays as arrays

    fake = type("ndarray", (), {"__module__": "cupy"})()
    monkeypatch.setattr(arrays, "_cupy", lambda: np)
    assert namespace(fake) is np
    with pytest.raises(TypeError, match="list is no array"):
        namespace([1.0])
