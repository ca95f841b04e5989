"""The compiled kernels of the linear family against NumPy's losses, float64 sums and themselves elsewhere in memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigopt.core import compiled
from bigopt.core.errors import ClusterError
from bigopt.models import LinearModel, fused
from bigopt.models.fused_points import POINTS
from bigopt.models.losses import LOSSES, HuberLoss, Loss

pytestmark = pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())

ALL = [
    pytest.param(
        name,
        dtype,
        marks=() if (name, dtype) in (("binary_cross_entropy", "float32"), ("huber", "float64")) else pytest.mark.all,
    )
    for name in POINTS
    for dtype in ("float32", "float64")
]


def make_fused_point(loss: str, dtype: str) -> tuple[Callable[..., None], frozenset[str]]:
    """A kernel that is nothing but the loss."""
    from numba import njit

    point = njit(fastmath={"contract"})(POINTS[loss](np.dtype(dtype).type))

    def one(v, y, delta, value, scalars):  # type: ignore[no-untyped-def]
        point(v, y, delta, value, scalars[0])

    return one, frozenset({"contract"})


def a_loss(name: str) -> Loss:
    return HuberLoss(0.7) if name == "huber" else LOSSES[name]()


def labels(loss: Loss, n: int, rng: np.random.Generator, dtype: str) -> np.ndarray:
    if loss.task == "regression":
        return rng.normal(size=n).astype(dtype)
    high = rng.random(n) < 0.4
    return np.where(high, 1.0, -1.0 if loss.task == "sign" else 0.0).astype(dtype)


def problem(
    name: str, dtype: str, n: int, d: int
) -> tuple[LinearModel, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + d)
    model = LinearModel(d, 1, a_loss(name))
    X = rng.normal(size=(n, d)).astype(dtype)
    w = (rng.normal(size=d + 1) / np.sqrt(d)).astype(dtype)
    return model, w, X, labels(model.loss, n, rng, dtype), rng.random(n) * 3


@pytest.mark.parametrize(("name", "dtype"), ALL)
def test_loss_and_delta_are_those_of_numpy(name: str, dtype: str) -> None:
    T, eps = np.dtype(dtype).type, np.finfo(dtype).eps
    rng, loss = np.random.default_rng(1), a_loss(name)
    v = np.concatenate([rng.normal(size=3000) * 4, np.linspace(-30, 30, 997), [0.0, -0.0, 1.0, -1.0, 1e4, -1e4]])
    v = v.astype(dtype)
    y = labels(loss, len(v), rng, dtype)
    delta, value = np.empty_like(v), np.empty_like(v)
    kinds = (f"{dtype}[::1]",) * 5
    compiled.kernel(make_fused_point, (name, dtype), kinds)(v, y, delta, value, np.array([0.7], dtype=dtype))
    want, slope = loss.value_delta(v[:, None].astype(np.float64), y)
    same, tangent = loss.value_delta(v[:, None], y)
    scale = np.abs(want) + (1.0 if name == "squared_hinge" else np.abs(v) * (np.abs(y) + (v > 0)))
    # as exact as NumPy: both within a few units in the last place of what enters the sums
    assert np.all(np.abs(value - want) <= 4 * eps * np.maximum(scale, T(1e-30)))
    assert np.all(np.abs(value - same) <= 6 * eps * np.maximum(scale, T(1e-30)))
    assert np.all(np.abs(delta - slope[:, 0]) <= 4 * eps * np.maximum(1.0, np.abs(slope[:, 0])))
    assert np.all(np.abs(delta - tangent[:, 0]) <= 6 * eps * np.maximum(1.0, np.abs(slope[:, 0])))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.all)])
def test_small_losses_keep_their_digits(dtype: str) -> None:
    """log1p(exp(-v)) of well classified rows, and 1 - s(v) of the other tail, are right in relative terms."""
    v = np.linspace(1.0, 80.0, 200).astype(dtype)
    y = np.ones_like(v)
    delta, value = np.empty_like(v), np.empty_like(v)
    point = compiled.kernel(make_fused_point, ("binary_cross_entropy", dtype), (f"{dtype}[::1]",) * 5)
    point(v, y, delta, value, np.zeros(1, dtype=dtype))
    exact = np.log1p(np.exp(-v.astype(np.float64)))
    spread = np.finfo(dtype).eps * (8 + np.abs(v)) + 1e-300
    ours, theirs = value.astype(np.float64), exact - (v.astype(np.float64) - v)
    assert np.all(np.abs(ours - theirs) <= spread * np.maximum(theirs, 1e-30) + np.finfo(dtype).eps * v)
    point(-v, 0 * y, delta, value, np.zeros(1, dtype=dtype))
    np.testing.assert_allclose(value, exact, rtol=float(8 * np.finfo(dtype).eps))
    np.testing.assert_allclose(delta, np.exp(-v.astype(float)) / (1 + np.exp(-v.astype(float))), rtol=2e-6)


SHAPES = [(1, 1), (3, 5), (4, 8), (31, 9), (32, 16), (33, 17), (129, 100), (1000, 7), (515, 40)]


@pytest.mark.parametrize(("name", "dtype"), ALL)
def test_sums_against_float64(name: str, dtype: str) -> None:
    for n, d in SHAPES:
        model, w, X, y, s = problem(name, dtype, n, d)
        exact = X.astype(np.float64), y.astype(np.float64)
        for weight in (None, s):
            for intercept in (True, False):
                m = LinearModel(d, 1, model.loss, intercept)
                params = w if intercept else w[:d]
                found = fused.fused_sum(m, params, X, y.reshape(-1, 1) if n % 2 else y, weight)
                assert found is not None
                grad, loss, mass = m.grad_sum(params.astype(np.float64), *exact, weight)
                assert found[0].dtype == np.float64
                near = 1e-6 if dtype == "float32" else 1e-14
                kink = name in ("perceptron", "hinge") and dtype == "float32"  # a score may fall on the other side
                bound = near * max(1.0, float(np.abs(grad).max())) * (n if kink else np.sqrt(n))
                np.testing.assert_allclose(found[0], grad, atol=bound, rtol=0)
                np.testing.assert_allclose(found[1], loss, rtol=near * 10, atol=near * n)
                np.testing.assert_allclose(found[2], mass, rtol=1e-15)


def test_float32_gradient_over_many_rows_is_right_to_a_millionth() -> None:
    model, w, X, y, _ = problem("binary_cross_entropy", "float32", 200_000, 20)
    found = fused.fused_sum(model, w, X, y, None)
    exact, loss, _ = model.grad_sum(w.astype(float), X.astype(float), y.astype(float), None)
    assert found is not None
    assert np.linalg.norm(found[0] - exact) < 1e-7 * np.linalg.norm(exact)
    assert abs(found[1] / loss - 1) < 1e-7


def test_bits_depend_on_the_rows_alone() -> None:
    """The same rows at another address, in another slice, by another thread: the same bits."""
    model, w, X, y, s = problem("binary_cross_entropy", "float32", 1003, 37)
    first = fused.fused_sum(model, w, X, y, s)
    assert first is not None
    room = np.empty(X.size + 64, dtype=np.float32)
    for shift in (1, 2, 3, 5, 7, 16):
        moved = room[shift : shift + X.size].reshape(X.shape)
        moved[:] = X
        again = fused.fused_sum(model, w, moved, y.copy(), s.copy())
        assert again is not None
        assert again[0].tobytes() == first[0].tobytes()
        assert again[1:] == first[1:]
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(fused.fused_sum(model, w, X, y, s))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(other[0].tobytes() == first[0].tobytes() for other in found)


def test_a_score_that_is_no_number_reaches_the_loss() -> None:
    for name in ("binary_cross_entropy",):
        model, w, X, y, _ = problem(name, "float32", 50, 10)
        w[3] = np.nan
        found = fused.fused_sum(model, w, X, y, None)
        assert found is not None
        assert np.isnan(found[1])


@pytest.mark.all
@pytest.mark.parametrize("name", list(POINTS))
def test_no_loss_swallows_nan(name: str) -> None:
    model, w, X, y, _ = problem(name, "float64", 50, 10)
    w[3] = np.nan
    found = fused.fused_sum(model, w, X, y, None)
    assert found is not None
    assert np.isnan(found[1])


def test_what_has_no_kernel() -> None:
    rng = np.random.default_rng(0)
    several = LinearModel(5, 3, a_loss("squared"))
    assert fused.fused_sum(several, np.zeros(18), rng.normal(size=(9, 5)), np.zeros((9, 3)), None) is None
    with pytest.raises(TypeError, match="cast params"):
        fused.fused_sum(
            LinearModel(5, 1, a_loss("huber")), np.zeros(6), np.zeros((9, 5), np.float32), np.zeros(9), None
        )


def test_a_kernel_refuses_other_arrays() -> None:
    kernel = compiled.kernel(make_fused_point, ("huber", "float64"), ("float64[::1]",) * 5)
    good = np.zeros(4)
    for bad in (np.zeros(4, np.float32), np.zeros((2, 2)), np.zeros(8)[::2], np.zeros(33, np.uint8)[1:].view(float)):
        with pytest.raises(TypeError, match="a kernel wants float64"):
            kernel(good, bad, good, good, good)


def test_machine_code_is_kept_and_checked(tmp_path: Path) -> None:
    """The second process imports no numba; a damaged file is compiled again; another user's folder is not used."""
    code = (
        "import sys; sys.path[:0] = ['tests/models', '.']; import numpy as np\n"
        "from bigopt.core import compiled\n"
        "from test_fused import make_fused_point\n"
        "a = np.ones(3); out = np.zeros(3)\n"
        "compiled.kernel(make_fused_point, ('squared', 'float64'), ('float64[::1]',) * 5)(a, 2 * a, out, a, a)\n"
        "assert (out == -2).all(); print('numba' in sys.modules)"
    )

    def fresh() -> str:
        env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert fresh() == "True"
    (file,) = (tmp_path / "bigopt" / "kernels").iterdir()
    content = file.read_bytes()
    assert fresh() == "False"
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fresh() == "True"
    assert file.read_bytes() == content
    file.parent.chmod(0o777)
    assert fresh() == "True"


def test_another_set_is_refused() -> None:
    assert not compiled.uses_compiled("numpy")
    assert compiled.uses_compiled("compiled")
    assert compiled.uses_compiled(compiled.identity("compiled"))
    with pytest.raises(ClusterError, match="the driver's 'compiled \\(numba 0.1"):
        compiled.uses_compiled("compiled (numba 0.1, llvmlite 0.1, cray-1)")


@pytest.mark.parametrize("name", list(POINTS))
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_rows_that_are_not_finite_make_a_gradient_that_is_not(name: str, wrong: float) -> None:
    """Whatever their residual: who reads rows unchecked relies on it."""
    for d, start in ((3, 0.0), (8, 0.0), (11, 40.0)):
        model, params, X, y, _ = problem(name, "float32", 37, d)
        for weight in (None, np.zeros(37)):
            for row, column in ((0, 0), (18, d - 1), (36, d // 2)):
                at, values = np.full_like(params, start), X.copy()
                values[row, column] = wrong
                found = fused.fused_sum(model, at, values, y, weight)
                assert found is not None
                assert not np.isfinite(found[0][column])
