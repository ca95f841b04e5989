"""Every optimizer against torch.optim: float64, both fed the gradient at torch's w, every one of 200 steps."""

from __future__ import annotations

import numpy as np
import pytest

from bigopt.core.sums import Sums
from bigopt.optim.build import build_method
from bigopt.optim.table import OPTIMIZERS

torch = pytest.importorskip("torch")

TORCH = {
    "gd": ("SGD", {}),
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {"eps": 1e-10}),
    "rmsprop": ("RMSprop", {"alpha": 0.9, "eps": 1e-8}),
    "adadelta": ("Adadelta", {"rho": 0.9, "eps": 1e-6}),
    "adam": ("Adam", {"betas": (0.9, 0.999), "eps": 1e-8}),
    "adamw": ("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}),
    "amsgrad": ("Adam", {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": True}),
    "adamax": ("Adamax", {"betas": (0.9, 0.999), "eps": 1e-8}),
    "nadam": ("NAdam", {"betas": (0.9, 0.999), "eps": 1e-8}),
}
LACKS = {"yogi", "lion", "lars", "lamb"}
# On Rosenbrock's walls the plain rules need 2/lambda_max, some 1e-3; the momenta a tenth of that.
SMALL = {"gd": 5e-4, "sgd": 5e-4, "momentum": 5e-5, "nesterov": 5e-5}


def test_every_optimizer_is_compared() -> None:
    """What torch lacks is derived again in test_formulas.py."""
    assert set(TORCH) | LACKS == set(OPTIMIZERS)
    assert not any(hasattr(torch.optim, name) for name in ("Yogi", "Lion", "LARS", "LAMB"))


@pytest.fixture(autouse=True)
def _double_precision():
    """NAdam keeps a product of its momenta in torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("schedule", ["constant", "inverse_time", "cosine"])
@pytest.mark.parametrize("name", TORCH)
def test_equals_torch(name, schedule, problem, flat) -> None:
    p = problem.start.size
    rate = SMALL[name] if p == 2 and name in SMALL else 0.05 if name != "adadelta" else 1.0
    keys = {"constant": {}, "inverse_time": {"decay": 0.02}, "cosine": {"period": 30.5, "t_mul": 1.5}}[schedule]
    method = build_method(name, flat(p), schedule=schedule, schedule_keys={"learning_rate": rate, **keys})

    kind, arguments = TORCH[name]
    w = torch.tensor(problem.start, dtype=torch.float64, requires_grad=True)
    theirs = getattr(torch.optim, kind)([w], lr=rate, **arguments)
    state, _ = method.start(problem.start)
    for t in range(1, 201):
        gradient = problem.gradient(w.detach().numpy().copy())
        w.grad = torch.tensor(gradient)
        theirs.param_groups[0]["lr"] = method.schedule(t - 1)
        theirs.step()
        state, step = method.tell(state, Sums(gradient * 7.0, 0.0, 7.0, 7), 7.0, 0.0)
        want = w.detach().numpy()
        assert np.abs(step.params - want).max() <= 1e-12 * np.abs(want).max(), t
    assert np.isfinite(want).all()
    assert np.abs(want - problem.start).max() > 1e-2
