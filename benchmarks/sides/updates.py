"""The update alone: what the driver does between two rounds."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.looking import Looks
from benchmarks.sides import Base


class AdamSteps(Base):
    """Seconds of an Adam step of bigopt on flat vectors of several sizes and dtypes.

    ``SIZE DTYPE`` is the change with its addition to the parameters: what torch's ``step`` does. ``tell SIZE DTYPE``
    is the whole update of a run: the mean, the gradient's norm (refused where it is not finite), the transform, and
    the new parameters in a buffer of their own. Each gradient is written while the clock stands, as the Reduce does it:
    just before its step, to memory that is used again (torch's step leaves its gradient, and finds it where it was).

    Parameters
    ----------
    cases : list of (int, str, int)
        Size, dtype, steps.
    """

    def __init__(self, cases: list[tuple[int, str, int]]) -> None:
        from bigopt.core import compiled
        from bigopt.core.buffers import Buffers
        from bigopt.core.layout import Block, Layout
        from bigopt.optim.build import build_method

        self._cases = []
        for size, dtype, steps in cases:
            layout = Layout((Block("weight", (size, 1), True, size, 1),))
            params, grad = start(size, dtype)
            kernels = compiled.NUMPY if compiled.missing() else compiled.COMPILED
            method: Any = build_method("adam", layout, schedule_keys={"learning_rate": 1e-3}, kernels=kernels)
            state, _ = method.start(params)
            self._cases.append(
                {
                    "name": f"{size} {dtype}",
                    "steps": steps,
                    "grad": grad,
                    "memory": Buffers(),
                    "method": method,
                    "state": state,
                    "inner": method.transform.init(params, layout),
                    "params": params.copy(),
                    "count": 0,
                }
            )

    def _update(self, case: dict[str, Any]) -> float:
        params, inner, transform = case["params"], case["inner"], case["method"].transform
        seconds = 0.0
        for _ in range(case["steps"]):
            grad = _written(case)
            case["count"] += 1
            begin = time.perf_counter()
            if hasattr(transform, "moved"):  # compiled: change and addition in one pass
                params, inner = transform.moved(grad, inner, params, case["count"], 1e-3)
            else:
                delta, inner = transform.update(grad, inner, params, case["count"], 1e-3)
                params = np.add(params, delta, out=delta)
            seconds += time.perf_counter() - begin
        case["params"], case["inner"] = params, inner
        return seconds / case["steps"]

    def _tell(self, case: dict[str, Any]) -> float:
        from bigopt.core.sums import Sums

        state, tell = case["state"], case["method"].tell
        seconds = 0.0
        for _ in range(case["steps"]):
            told = Sums(_written(case), 0.0, 1.0, 1)
            begin = time.perf_counter()
            state, _ = tell(state, told, 1.0, 0.0)
            seconds += time.perf_counter() - begin
        case["state"] = state
        return seconds / case["steps"]

    def run(self) -> dict[str, float]:
        """Return seconds of a step of each case."""
        found = {case["name"]: self._update(case) for case in self._cases}
        found |= {f"tell {case['name']}": self._tell(case) for case in self._cases}
        return {**found, "seconds": sum(found.values())}

    def profile(self) -> dict[str, Any]:
        """Return where this process is during its steps."""
        with Looks() as looks:
            self.run()
        return looks.found()

    def check(self) -> dict[str, float]:
        """Return the mean squares of the parameters, added up: as the peer's where all made the same steps."""
        return {"loss": sum(mean_square(case["state"].params) for case in self._cases)}


def _written(case: dict[str, Any]) -> Any:
    """Return a gradient as the Reduce leaves it."""
    grad = case["memory"].lend(case["grad"].size, case["grad"].dtype)
    grad[...] = case["grad"]
    return grad


class TorchSteps(Base):
    """Seconds of a step of torch's fused Adam, one thread a core."""

    def __init__(self, cases: list[tuple[int, str, int]]) -> None:
        import torch

        from benchmarks.machine import cores

        torch.set_num_threads(len(cores()))
        self._cases = []
        for size, dtype, steps in cases:
            params, grad = start(size, dtype)
            parameter = torch.nn.Parameter(torch.from_numpy(params))
            parameter.grad = torch.from_numpy(grad)
            optimizer = torch.optim.Adam([parameter], lr=1e-3, fused=True)
            self._cases.append((f"{size} {dtype}", steps, optimizer, parameter))

    def run(self) -> dict[str, float]:
        """Return seconds of a step of each case."""
        found: dict[str, float] = {}
        for name, steps, optimizer, _ in self._cases:
            begin = time.perf_counter()
            for _ in range(steps):
                optimizer.step()
            found[name] = (time.perf_counter() - begin) / steps
        return {**found, "seconds": sum(found.values())}

    def check(self) -> dict[str, float]:
        """Return the mean squares of the parameters, added up."""
        return {"loss": sum(mean_square(p.detach().numpy()) for *_, p in self._cases)}


def start(size: int, dtype: str) -> tuple[Any, Any]:
    """Return the parameters and the gradient that both sides begin with."""
    rng = np.random.default_rng(0)
    params, grad = (rng.standard_normal(size, dtype=np.float32).astype(dtype) for _ in range(2))
    return params, grad


def mean_square(values: Any) -> float:
    """Return the mean square in float64."""
    exact = np.asarray(values, dtype=np.float64)
    return float(np.mean(exact * exact))
