"""Hogwild's compiled loops: every loss, kind of rows and dtype against serial SGD by NumPy; no lock; real delays."""

from __future__ import annotations

import itertools
import re
import threading
from typing import Any

import numpy as np
import pytest

from bigopt.core import compiled
from bigopt.core.csr import CSR
from bigopt.models import fused_hogwild as loops
from bigopt.models.linear import LinearModel
from bigopt.models.losses import LOSSES, HuberLoss

numba = pytest.importorskip("numba")

N, D, C = 120, 9, 4
SOFTMAX = "categorical_cross_entropy"
MARGINS = ("perceptron", "hinge", "squared_hinge")
FORMS = list(itertools.product(("dense", "sparse"), ("float32", "float64"), ("float32", "float64"), (False, True)))
SOME = [FORMS[3], FORMS[5], FORMS[8], FORMS[12], FORMS[15]]
"""Rows, their dtype, that of w, penalty: each value of each, with each loss in the longer test."""


def problem(loss: str, sparse: bool, block: str) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, the same rows dense, targets and weights."""
    rng = np.random.default_rng(4)
    X = np.where(rng.random((N, D)) < 0.4, rng.normal(size=(N, D)), 0.0).astype(block)
    v = X @ rng.normal(size=D) + 0.3 * rng.normal(size=N)
    y = v if loss in ("squared", "huber") else (v > 0) * 1.0
    y = 2 * y - 1 if loss in MARGINS else rng.integers(0, C, N) if loss == SOFTMAX else y
    filled = X != 0
    starts = np.concatenate([[0], np.cumsum(filled.sum(axis=1))]).astype(np.int64)
    rows = CSR(X[filled], np.nonzero(filled)[1].astype(np.int32), starts, D) if sparse else X
    return rows, X, y.astype(block), rng.uniform(0.5, 2.0, N)


def arrays(rows: Any) -> tuple[np.ndarray, ...]:
    if isinstance(rows, CSR):
        return rows.data, rows.indices, rows.indptr
    return rows.reshape(-1), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)


def outputs(loss: str) -> int:
    return C if loss == SOFTMAX else 1


def by_loop(
    loss: str,
    form: tuple[str, str, str, bool],
    chosen: np.ndarray,
    rates: np.ndarray,
    decay: np.ndarray,
    atomic: bool,
    shrink: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    rows, _, y, weight = problem(loss, form[0] == "sparse", form[1])
    q, dtype = outputs(loss), form[2]
    key = (loss, form[1], dtype, form[0] == "sparse", atomic, form[3])
    loop = compiled.kernel(loops.make_rows, key, loops.signature(form[1], dtype, "int32"))
    w, sums = np.zeros((D + 1) * q, dtype=dtype), np.zeros(3)
    loop(
        *(*arrays(rows), y, weight, chosen, w, rates, decay.astype(dtype), np.empty((4, q), dtype=dtype)),
        *(np.zeros((2, loops.LINE), dtype=np.int64), np.zeros(loops.BINS + 3, dtype=np.int64), sums),
        *(1.0, 0.9, shrink, 0.7 if shrink else 1.0, D, q, 1, 0, 8, 0, 0),
    )
    if shrink:
        w[: D * q] *= 0.7 * np.prod(1.0 - shrink * rates[np.arange(len(chosen)) // 8])
    return w, sums


def by_hand(
    loss: str,
    form: tuple[str, str, str, bool],
    chosen: np.ndarray,
    rates: np.ndarray,
    decay: np.ndarray,
    shrink: float = 0.0,
) -> tuple[np.ndarray, list[float]]:
    """Serial SGD in float64 by the model's own gradient (tested elsewhere); penalty of touched or all columns."""
    _, X, y, weight = problem(loss, False, form[1])
    q = outputs(loss)
    model = LinearModel(D, q, HuberLoss(1.0) if loss == "huber" else LOSSES[loss]())
    w, sums = np.zeros((D + 1) * q), [0.0, 0.0, 0.0]
    for step, row in enumerate(chosen):
        x, target = X[row : row + 1].astype(np.float64), y[row : row + 1].astype(np.float64)
        target = target.astype(np.int64) if loss == SOFTMAX else target[:, None]
        grad, value, mass = model.grad_sum(w, x, target, weight[row : row + 1])
        sums = [a + b for a, b in zip(sums, (value, mass, float(np.sum((0.9 * grad) ** 2))), strict=True)]
        change = 0.9 * grad
        if form[3]:
            touched = x[0] != 0 if form[0] == "sparse" else np.ones(D, dtype=bool)
            change[: D * q] += (np.where(touched, decay, 0.0)[:, None] * w[: D * q].reshape(D, q)).reshape(-1)
        change[: D * q] += shrink * w[: D * q]
        w = w - rates[step // 8] * change
    return w, sums


def check(loss: str, form: tuple[str, str, str, bool], atomic: bool, shrink: float = 0.0) -> None:
    rng = np.random.default_rng(1)
    chosen = np.concatenate([rng.permutation(N), rng.permutation(N)])
    rates = 0.05 / np.sqrt(1.0 + np.arange(len(chosen) // 8 + 1))
    decay = np.linspace(0.01, 0.05, D) if form[3] else np.empty(0)
    w, sums = by_loop(loss, form, chosen, rates, decay, atomic, shrink)
    expected, totals = by_hand(loss, form, chosen, rates, decay, shrink)
    exact = 1e-12 if form[2] == "float64" and form[1] == "float64" else 2e-5
    assert np.abs(w - expected).max() < exact * np.abs(expected).max()
    assert sums == pytest.approx(totals, rel=10 * exact)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_loss_is_serial_sgd(loss: str) -> None:
    number = list(LOSSES).index(loss)
    check(loss, SOME[number % len(SOME)], atomic=False)


@pytest.mark.parametrize("loss", ["squared", SOFTMAX])
def test_a_penalty_on_the_whole_vector_is_one_number(loss: str) -> None:
    check(loss, ("sparse", "float64", "float64", False), atomic=False, shrink=0.3)


@pytest.mark.parametrize("form", SOME[1:3])
def test_atomic_additions_are_serial_sgd(form: tuple[str, str, str, bool]) -> None:
    check("binary_cross_entropy", form, atomic=True)


@pytest.mark.all
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_serial_sgd(loss: str, form: tuple[str, str, str, bool]) -> None:
    check(loss, form, atomic=False)


def machine_code(function: Any, signature: tuple[str, ...]) -> str:
    """Return the code of a function and of all that it calls, as LLVM has optimised it."""
    dispatcher = numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)
    compiled_ = dispatcher(function)
    compiled_.compile(f"void({', '.join(signature)})")
    (overload,) = compiled_.overloads.values()
    return str(overload.library._final_module)


def test_no_lock_in_the_machine_code() -> None:
    """The loop that overwrites has no atomic instruction, no fence and no call of anything outside."""
    atomic = re.compile(r"\b(atomicrmw|cmpxchg|fence)\b")
    rows, _ = loops.make_rows("binary_cross_entropy", "float32", "float64", True, False, True)
    code = machine_code(rows, loops.signature("float32", "float64", "int32"))
    assert "fmul" in code
    assert atomic.findall(code) == []
    called = re.findall(r"^declare [^@]*@\"?([\w.]+)", code, flags=re.MULTILINE)
    assert all(name.startswith("llvm.") for name in called)

    subtract = loops.make_subtract()
    assert atomic.findall(machine_code(lambda w: subtract(w, 0, 1.0), ("float64[::1]",)))


def test_two_threads_read_without_each_other() -> None:
    """Loops of two threads on one vector: delays of more than one gradient, and no row is forgotten."""
    rng = np.random.default_rng(0)
    n, d, k = 20_000, 500, 20
    columns = np.sort(rng.permuted(np.tile(np.arange(d, dtype=np.int32), (n // 100, 1)), axis=1)[:, :k], axis=1)
    columns = np.tile(columns, (100, 1)).reshape(-1)
    values, y = rng.normal(size=n * k), rng.integers(0, 2, n).astype(np.float64)
    starts, chosen = np.arange(n + 1) * k, np.arange(n)
    key = ("binary_cross_entropy", "float64", "float64", True, False, False)
    loop = compiled.kernel(loops.make_rows, key, loops.signature("float64", "float64", "int32"))
    w, counters = np.zeros(d + 1), np.zeros((3, loops.LINE), dtype=np.int64)
    delays = np.zeros((2, loops.BINS + 3), dtype=np.int64)
    sums, tries = np.zeros((2, 3)), 0

    def work(me: int) -> None:
        loop(
            *(values, columns, starts, y, np.empty(0), chosen, w, np.full(n, 0.01), np.empty(0)),
            *(np.empty((4, 1)), counters, delays[me], sums[me], 0.0, 1.0, 0.0, 1.0, d, 1, 1, 0, 1, me, 0),
        )

    while delays[:, loops.BINS + 2].max() <= 1 and tries < 300:  # on a busy machine they may run after each other
        threads = [threading.Thread(target=work, args=(me,)) for me in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tries += 1
    assert delays[:, loops.BINS + 2].max() > 1
    assert counters[:2, loops.READ].tolist() == counters[:2, loops.WRITTEN].tolist() == [tries * n] * 2
    assert sums[:, 1].tolist() == [tries * n] * 2
    assert delays[:, loops.BINS].tolist() == [tries * -(-n // loops.SAMPLED)] * 2
    assert delays[:, : loops.BINS].sum(axis=1).tolist() == delays[:, loops.BINS].tolist()
