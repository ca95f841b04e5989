"""PyTorch on the CPU: the loops of its tutorials, one thread a core."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from benchmarks import data, evaluate
from benchmarks.machine import cores
from benchmarks.sides import Base


class FullBatch(Base):
    """Seconds of a step of gradient descent on logistic regression: forward, backward, SGD."""

    def __init__(self, folder: str, learning_rate: float, steps: int) -> None:
        import torch

        torch.set_num_threads(len(cores()))
        self._X, self._y = data.load(folder)
        self._tensors = torch.from_numpy(self._X), torch.from_numpy(self._y.astype(np.float32))
        self._model = torch.nn.Linear(self._X.shape[1], 1)
        with torch.no_grad():
            for p in self._model.parameters():
                p.zero_()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=learning_rate)
        self._loss = torch.nn.BCEWithLogitsLoss()
        self._steps = steps

    def run(self) -> dict[str, float]:
        """Return seconds of one step."""
        X, y = self._tensors
        begin = time.perf_counter()
        for _ in range(self._steps):
            self._optimizer.zero_grad()
            loss = self._loss(self._model(X)[:, 0], y)
            loss.backward()
            self._optimizer.step()
        return {"seconds": (time.perf_counter() - begin) / self._steps}

    def check(self) -> dict[str, float]:
        """Return the loss reached."""
        w, b = (p.detach().numpy().astype(np.float64) for p in self._model.parameters())
        return {"loss": evaluate.logistic(self._X, self._y, w[0], float(b[0]))}


class MiniBatches(Base):
    """Seconds of an epoch of a network with Adam: shuffled indices, slices of them, or a DataLoader.

    Parameters
    ----------
    folder, widths, batch, learning_rate
    init : str
        NPY of the starting parameters in bigopt's order.
    loader : int or None
        None: index a tensor by slices of a permutation. Else a DataLoader with so many worker processes.
    fused : bool
        Which of torch's Adams: the fused one, or the default.
    dtype : str
    """

    def __init__(
        self,
        folder: str,
        widths: list[int],
        batch: int,
        learning_rate: float,
        init: str,
        loader: int | None = None,
        fused: bool = True,
    ) -> None:
        import torch

        torch.set_num_threads(len(cores()))
        torch.manual_seed(0)
        self._X, self._y = data.load(folder)
        self._batch = batch
        self._tensors = torch.from_numpy(self._X), torch.from_numpy(self._y)
        layers: list[Any] = []
        for n, m in itertools.pairwise(widths):
            layers += [torch.nn.Linear(n, m), torch.nn.ReLU()]
        self._model = torch.nn.Sequential(*layers[:-1])
        with torch.no_grad():
            start = evaluate.layers_of(np.load(init), widths)
            for linear, (W, b) in zip(layers[::2], start, strict=True):
                linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(W.T)))
                linear.bias.copy_(torch.from_numpy(np.ascontiguousarray(b)))
        self._linear = layers[::2]
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=learning_rate, fused=fused)
        self._loss = torch.nn.CrossEntropyLoss()
        self._loader: Any = None
        if loader is not None:
            rows = torch.utils.data.TensorDataset(*self._tensors)
            self._loader = torch.utils.data.DataLoader(
                rows, batch_size=batch, shuffle=True, num_workers=loader, persistent_workers=loader > 0
            )

    def _batches(self) -> Any:
        import torch

        if self._loader is not None:
            yield from self._loader
            return
        X, y = self._tensors
        order = torch.randperm(len(X))
        for start in range(0, len(X), self._batch):
            part = order[start : start + self._batch]
            yield X[part], y[part]

    def run(self) -> dict[str, float]:
        """Return seconds of an epoch."""
        begin = time.perf_counter()
        for X, y in self._batches():
            self._optimizer.zero_grad()
            self._loss(self._model(X), y).backward()
            self._optimizer.step()
        return {"seconds": time.perf_counter() - begin}

    def check(self) -> dict[str, float]:
        """Return the loss over all rows."""
        layers = [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in self._linear]
        return {"loss": evaluate.network(self._X, self._y, layers, "relu")}
