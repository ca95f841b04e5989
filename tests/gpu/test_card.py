"""The models on a CUDA card give what they give on the host.

For a bare machine too: ``python -m unittest tests/gpu/test_card.py`` needs NumPy and CuPy alone, and PyTorch for the
last test. Where there is no card every test of the card is skipped with the reason.
"""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np

from benchmarks import gpu
from bigopt.core.arrays import gpu_reason, to_device, to_host
from bigopt.models.linear import LinearModel
from bigopt.models.losses import BinaryCrossEntropy, CategoricalCrossEntropy, SquaredLoss
from bigopt.models.mlp import MLP

REASON = gpu_reason()


def problem(model: Any, rows: int, classes: int, dtype: str) -> tuple[Any, ...]:
    """Return params, X, y, weight on the host."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, model.features)).astype(dtype)
    y = rng.integers(0, classes, rows) if classes > 2 else rng.integers(0, 2, rows).astype(dtype)
    params = (rng.standard_normal(model.layout.size) * 0.1).astype(dtype)
    return params, X, y, rng.random(rows)


@unittest.skipIf(REASON is not None, str(REASON))
class Card(unittest.TestCase):
    """Gradients on the card against those of the host in float64."""

    def check(self, model: Any, classes: int) -> None:
        """Compare gradient, loss and weight in both dtypes."""
        for dtype, tolerance in (("float64", 1e-12), ("float32", 2e-5)):
            host = problem(model, 3001, classes, dtype)
            params, X, y, weight = host
            exact = model.grad_sum(params.astype(np.float64), X.astype(np.float64), y, weight)
            grad, loss, total = model.grad_sum(*(to_device(a, "gpu") for a in host))
            assert str(grad.dtype) == dtype
            distance = np.linalg.norm(to_host(grad) - exact[0]) / np.linalg.norm(exact[0])
            assert distance < tolerance
            assert abs(loss / exact[1] - 1.0) < tolerance
            assert abs(total / exact[2] - 1.0) < 1e-12

    def test_logistic(self) -> None:
        """One logit."""
        self.check(LinearModel(20, 1, BinaryCrossEntropy()), 2)

    def test_softmax(self) -> None:
        """Several classes."""
        self.check(LinearModel(20, 5, CategoricalCrossEntropy()), 5)

    def test_squared(self) -> None:
        """Least squares."""
        self.check(LinearModel(20, 1, SquaredLoss()), 2)

    def test_network(self) -> None:
        """Two hidden layers, one of them grouped."""
        self.check(MLP(20, (16, 8), 5, CategoricalCrossEntropy(), "tanh", (2, 4, 1)), 5)


class Benchmark(unittest.TestCase):
    """The benchmark of a card, rehearsed on the host: the same code, with NumPy in CuPy's place."""

    def test_rehearsal(self) -> None:
        """The gradients agree with PyTorch's, else it raises; every figure is a number."""
        try:
            import torch
        except ImportError:
            self.skipTest("PyTorch is not installed")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            card = gpu.rehearsal()._replace(memory=4_000_000)
            results = [gpu.linear(card, 1), gpu.mlp(card, 1, 64)]
        finally:
            torch.set_num_threads(threads)
        for result in results:
            for found in result.outcomes:
                assert found.spread is not None
                assert found.spread.median > 0.0, found.label


if __name__ == "__main__":
    unittest.main()
