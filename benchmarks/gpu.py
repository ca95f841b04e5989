"""bigopt's gradients on a card, beside PyTorch on the same card: for a bare machine with NumPy, CuPy and PyTorch.

::

    python -m benchmarks.gpu                    # from the project's folder; needs no installation
    python -m benchmarks.gpu --device cpu       # the same code on NumPy and PyTorch's CPU: a rehearsal

Where there is no card it says why and ends well. Nothing of Dask, Spark, Zarr or Parquet is imported. The rows:

- ``linear``: the logistic gradient of rows that lie on the card, as a share of the card's memory read rate. Every byte
  of X must come from the card's memory once, whatever the kernels do.
- ``mlp``: forward and backward of 784-256-10 for batches of several sizes, as a share of the rate of a large matrix
  product in float32 (PyTorch and CuPy both without TF32).
- ``step``: the same with the Adam step. bigopt's update is the driver's, on the host: the vector crosses twice.

Rounds alternate within one process; a figure is the median of the rounds' figures, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.harness import Outcome, RowResult
from benchmarks.statistics import PAIRS, Bar, spread

WIDTHS: Final = (784, 256, 10)
_WARM_UP: Final = 3
_LEAST_SECONDS: Final = 0.05


class Card(NamedTuple):
    """Where to compute.

    Parameters
    ----------
    name : str
    xp : module
        CuPy, or NumPy for a rehearsal.
    device : str
        PyTorch's name of it.
    synchronize : callable
    memory : int
        Bytes that the rows may take.
    """

    name: str
    xp: Any
    device: str
    synchronize: Callable[[], None]
    memory: int


def find_card() -> tuple[Card | None, str]:
    """Return the card, or None and why there is none."""
    from bigopt.core.arrays import gpu_reason

    reason = gpu_reason()
    if reason is not None:
        return None, reason
    try:
        import torch
    except ImportError:
        return None, "PyTorch is not installed"
    if not torch.cuda.is_available():
        return None, "PyTorch sees no CUDA device"
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()

    def synchronize() -> None:
        cupy.cuda.runtime.deviceSynchronize()

    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return Card(name, cupy, "cuda", synchronize, int(free) // 8), ""


def rehearsal() -> Card:
    """Return the host in the place of a card."""
    return Card("NumPy and PyTorch on the CPU (a rehearsal)", np, "cpu", lambda: None, 40_000_000)


def seconds(card: Card, work: Callable[[], Any]) -> float:
    """Return the seconds of one call, of as many calls as take a twentieth of a second together."""
    calls = 1
    while True:
        card.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        card.synchronize()
        took = time.perf_counter() - begin
        if took >= _LEAST_SECONDS:
            return took / calls
        calls = max(calls + 1, int(calls * 1.2 * _LEAST_SECONDS / max(took, 1e-9)))


def rounds(card: Card, sides: dict[str, Callable[[], Any]], pairs: int) -> list[dict[str, float]]:
    """Warm up, then time every side once a round, in rotating order."""
    for work in sides.values():
        for _ in range(_WARM_UP):
            work()
    names = list(sides)
    found = []
    for number in range(pairs):
        turn = number % len(names)
        found.append({name: seconds(card, sides[name]) for name in names[turn:] + names[:turn]})
    return found


def outcome(
    label: str,
    rounds: list[dict[str, float]],
    of: Callable[[dict[str, float]], float],
    unit: str = "x",
    bar: Bar | None = None,
) -> Outcome:
    """Return a figure over the rounds."""
    values = [of(r) for r in rounds]
    return Outcome(label, unit, bar, spread(values), values)


def tensor(card: Card, array: Any) -> Any:
    """Return a tensor on the card with the values of a host array."""
    import torch

    return torch.from_numpy(np.array(array)).to(card.device)


def agree(ours: Any, theirs: Any, what: str) -> None:
    """Check that two gradients are the same up to float32.

    Raises
    ------
    RuntimeError
        Where they are not: a figure about another gradient would mean nothing.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    distance = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    if not distance < 1e-4:
        raise RuntimeError(f"{what}: the gradients differ by {distance:.2g} of their length")


def linear(card: Card, pairs: int) -> RowResult:
    """Logistic gradient of rows on the card."""
    import torch

    from bigopt.core.arrays import to_host
    from bigopt.models.linear import LinearModel
    from bigopt.models.losses import BinaryCrossEntropy

    d = 100
    n = min(8_000_000, card.memory // (4 * d))
    rng = np.random.default_rng(0)
    host = rng.standard_normal((n, d), dtype=np.float32)
    labels = (host @ rng.standard_normal(d).astype(np.float32) > 0).astype(np.float32)
    params = (rng.standard_normal(d + 1) * 0.1).astype(np.float32)
    model = LinearModel(d, 1, BinaryCrossEntropy())
    X, y, w = (card.xp.asarray(a) for a in (host, labels, params))
    tX, ty = tensor(card, host), tensor(card, labels)
    net = torch.nn.Linear(d, 1).to(card.device)
    with torch.no_grad():
        net.weight.copy_(tensor(card, params[None, :-1]))
        net.bias.copy_(tensor(card, params[-1:]))
    loss = torch.nn.BCEWithLogitsLoss(reduction="sum")

    def theirs() -> None:
        net.zero_grad()
        loss(net(tX)[:, 0], ty).backward()

    theirs()
    expected = torch.cat([net.weight.grad[0], net.bias.grad]).cpu().numpy()
    agree(to_host(model.grad_sum(w, X, y, None)[0]), expected, "linear")
    flat = X.reshape(-1)
    found = rounds(
        card,
        {
            "bigopt": lambda: model.grad_sum(w, X, y, None),
            "torch": theirs,
            "read": lambda: flat.sum(),
            "copy": lambda: flat.copy(),
        },
        pairs,
    )

    def read(r: dict[str, float]) -> float:
        return min(r["read"], r["copy"] / 2)  # a copy reads and writes

    size = 4 * n * d
    return RowResult(
        "linear",
        f"logistic gradient, {n:,} x {d} float32 on the card",
        [
            outcome("of the memory read rate", found, lambda r: read(r) / r["bigopt"], bar=Bar("at least", 0.65)),
            outcome("faster than PyTorch", found, lambda r: r["torch"] / r["bigopt"], bar=Bar("at least", 1.0)),
            outcome("a gradient", found, lambda r: 1e3 * r["bigopt"], "ms"),
            outcome("memory read rate", found, lambda r: size / read(r) / 1e9, "GB/s"),
        ],
    )


def mlp(card: Card, pairs: int, batch: int) -> RowResult:
    """Gradient and Adam step of a network, for one batch that lies on the card."""
    import torch

    from bigopt.core.arrays import to_host
    from bigopt.core.sums import Sums
    from bigopt.models.losses import CategoricalCrossEntropy
    from bigopt.models.mlp import MLP
    from bigopt.optim.build import build_method

    rng = np.random.default_rng(0)
    d, hidden, classes = WIDTHS
    host = rng.random((batch, d), dtype=np.float32)
    labels = rng.integers(0, classes, batch)
    model = MLP(d, (hidden,), classes, CategoricalCrossEntropy())
    params = model.init("glorot_uniform", 0).astype(np.float32)
    X, y, w = (card.xp.asarray(a) for a in (host, labels, params))
    net = torch.nn.Sequential(torch.nn.Linear(d, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, classes))
    net = net.to(card.device)
    views = model.layout.views(params)
    with torch.no_grad():
        for k, layer in ((1, net[0]), (2, net[2])):
            layer.weight.copy_(tensor(card, views[f"layer{k}.weight"].T))
            layer.bias.copy_(tensor(card, views[f"layer{k}.intercept"]))
    tX, ty = tensor(card, host), tensor(card, labels)
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    adam = torch.optim.Adam(net.parameters(), fused=True)

    def backward() -> None:
        adam.zero_grad()
        loss(net(tX), ty).backward()

    def torch_step() -> None:
        backward()
        adam.step()

    backward()
    parts = [part for layer in (net[0], net[2]) for part in (layer.weight.grad.T.reshape(-1), layer.bias.grad)]
    agree(to_host(model.grad_sum(w, X, y, None)[0]), torch.cat(parts).cpu().numpy(), f"mlp, batch {batch}")
    method = build_method("adam", model.layout)
    state = [method.start(params)[0]]

    def step() -> None:
        device = card.xp.asarray(state[0].params)
        grad, value, weight = model.grad_sum(device, X, y, None)
        sums = Sums(np.array(to_host(grad)), value, weight, batch)
        state[0] = method.tell(state[0], sums, float(batch), 0.0)[0]

    side = 4096 if card.device == "cuda" else 512
    square = card.xp.asarray(rng.random((side, side), dtype=np.float32))
    found = rounds(
        card,
        {
            "bigopt": lambda: model.grad_sum(w, X, y, None),
            "torch": backward,
            "step": step,
            "torch step": torch_step,
            "product": lambda: square @ square,
        },
        pairs,
    )
    flops = batch * (4 * d * hidden + 6 * hidden * classes)
    peak = 2.0 * side**3

    def share(r: dict[str, float], side: str) -> float:
        return flops / r[side] / (peak / r["product"])

    return RowResult(
        f"mlp-{batch}",
        f"MLP {'-'.join(map(str, WIDTHS))}, batch {batch:,}, on the card",
        [
            outcome("gradient, faster than PyTorch", found, lambda r: r["torch"] / r["bigopt"]),
            outcome("gradient, of the matrix rate", found, lambda r: share(r, "bigopt")),
            outcome("PyTorch's gradient, of the matrix rate", found, lambda r: share(r, "torch")),
            outcome("step with Adam, faster than PyTorch", found, lambda r: r["torch step"] / r["step"]),
            outcome("a gradient", found, lambda r: 1e3 * r["bigopt"], "ms"),
            outcome("a step", found, lambda r: 1e3 * r["step"], "ms"),
            outcome("matrix rate", found, lambda r: peak / r["product"] / 1e12, "TFLOP/s"),
        ],
    )


def main(argv: list[str]) -> int:
    """Measure and print; return 0, also where there is no card."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a rehearsal (%(default)s)")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="rounds (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(argv)
    card, reason = find_card() if options.device == "gpu" else (rehearsal(), "")
    if card is None:
        print(json.dumps({"status": "skipped", "reason": reason}) if options.json else f"skipped: {reason}")
        return 0
    batches = (512, 8_192, 65_536) if card.device == "cuda" else (512,)
    results = [linear(card, options.pairs), *(mlp(card, options.pairs, batch) for batch in batches)]
    about = report.about() | {"card": card.name}
    if options.json:
        print(report.as_json(results, about))
    else:
        print(f"{card.name}; numpy {np.__version__}, {card.xp.__name__} {card.xp.__version__}")
        print(report.terminal(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
