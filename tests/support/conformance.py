"""Every optimizer against torch.optim, or against its formula where torch lacks the name; prints docs/optimizers.md.

    python tests/support/conformance.py > docs/optimizers.md

Both sides start at the same w and are fed the same gradient, the one at the reference's w, 200 times. What is reported
is the largest of max abs(w - w_ref) / max abs(w_ref) over all steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigopt.core.layout import Block, Layout
from bigopt.core.sums import Sums
from bigopt.optim.build import build_method, build_schedule
from bigopt.optim.schedules import FROM_LENGTH, SCHEDULES
from bigopt.optim.search import SEARCHERS, SEARCHES
from bigopt.optim.table import OPTIMIZERS, SECOND_ORDER, keys_of

STEPS = 200
BOUND = 1e-12
Gradient = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Problem:
    start: np.ndarray
    gradient: Gradient


def quadratic() -> Problem:
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    hessian = (basis * np.geomspace(0.01, 1.0, 12)) @ basis.T
    center = rng.normal(size=12)
    return Problem(rng.normal(size=12), lambda w: hessian @ (w - center))


def rosenbrock() -> Problem:
    def gradient(w: np.ndarray) -> np.ndarray:
        x, y = w
        return np.array([-400.0 * x * (y - x * x) - 2.0 * (1.0 - x), 200.0 * (y - x * x)])

    return Problem(np.array([-1.2, 1.0]), gradient)


def logistic() -> Problem:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(60, 8))
    y = (X @ rng.normal(size=8) + rng.normal(size=60) > 0).astype(float)
    return Problem(rng.normal(size=8), lambda w: X.T @ (1.0 / (1.0 + np.exp(-X @ w)) - y) / 60 + 0.01 * w)


PROBLEMS: dict[str, Callable[[], Problem]] = {"quadratic": quadratic, "Rosenbrock": rosenbrock, "logistic": logistic}

TORCH: dict[str, tuple[str, dict[str, Any]]] = {
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
"""Torch's class and arguments for the defaults of SPEC section 3."""


def yogi(w: np.ndarray, eta: float, _: slice) -> Iterator[np.ndarray]:
    """m = b1 m + (1-b1) g; v -= (1-b2) sign(v - g^2) g^2; w -= eta m / (sqrt(v) + eps)."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    while True:
        g = yield w
        m = 0.9 * m + (1 - 0.9) * g
        v = v - (1 - 0.999) * np.sign(v - g**2) * g**2
        w = w - eta * m / (np.sqrt(v) + 1e-3)


def lion(w: np.ndarray, eta: float, weights: slice) -> Iterator[np.ndarray]:
    """c = b1 m + (1-b1) g; w -= eta (sign(c) + wd w); m = b2 m + (1-b2) g; wd = 0.01 on weights."""
    m = np.zeros_like(w)
    while True:
        g = yield w
        decay = np.zeros_like(w)
        decay[weights] = 0.01 * w[weights]
        w = w - eta * (np.sign(0.9 * m + (1 - 0.9) * g) + decay)
        m = 0.99 * m + (1 - 0.99) * g


def lars(w: np.ndarray, eta: float, weights: slice) -> Iterator[np.ndarray]:
    """r = 1e-3 norm(w)/(norm(g) + wd norm(w)); D = mu D - eta r (g + wd w); w += D; intercepts r = 1, wd = 0."""
    D = np.zeros_like(w)
    while True:
        g = yield w
        r, decay = np.ones_like(w), np.zeros_like(w)
        size = np.linalg.norm(w[weights])
        r[weights] = 1e-3 * size / (np.linalg.norm(g[weights]) + 0.01 * size)
        decay[weights] = 0.01 * w[weights]
        D = 0.9 * D - eta * r * (g + decay)
        w = w + D


def lamb(w: np.ndarray, eta: float, weights: slice) -> Iterator[np.ndarray]:
    """u = mh/(sqrt(vh)+eps) + wd w, r = norm(w)/norm(u); w -= eta r u; intercepts r = 1, wd = 0."""
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = yield w
        t += 1
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * g**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
        u[weights] += 0.01 * w[weights]
        r = np.ones_like(w)
        r[weights] = np.linalg.norm(w[weights]) / np.linalg.norm(u[weights])
        w = w - eta * r * u


DERIVED: dict[str, Callable[[np.ndarray, float, slice], Any]] = {"yogi": yogi, "lion": lion, "lars": lars, "lamb": lamb}
"""The formulas of SPEC section 3 written a second time, for the names that torch lacks."""

RATES = {"adadelta": 1.0, "lion": 0.01, "lars": 1.0, "lamb": 0.01}
STEEP = {"gd": 5e-4, "sgd": 5e-4, "momentum": 5e-5, "nesterov": 5e-5}
"""On Rosenbrock's walls the plain rules need 2/lambda_max, some 1e-3; the momenta a tenth of that."""


def rate_of(name: str, problem: str) -> float:
    """Return a rate under which the optimizer moves and does not diverge."""
    return STEEP[name] if problem == "Rosenbrock" and name in STEEP else RATES.get(name, 0.05)


def torch_path(name: str, start: np.ndarray, rates: Callable[[int], float]) -> Any:
    """Yield torch's w and take the gradient there, as a generator; float64 throughout."""
    import torch

    kind, arguments = TORCH[name]
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = getattr(torch.optim, kind)([w], lr=rates(0), **arguments)
    before, t = torch.get_default_dtype(), 0
    while True:
        gradient = yield w.detach().numpy().copy()
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = rates(t)
        torch.set_default_dtype(torch.float64)  # NAdam keeps the product of its momenta in this dtype
        try:
            optimizer.step()
        finally:
            torch.set_default_dtype(before)
        t += 1


def deviations(name: str, problem: str, schedule: str = "constant", **keys: float) -> tuple[np.ndarray, np.ndarray]:
    """Return max abs(w - w_ref) / max abs(w_ref) after each step, and the last w_ref."""
    case, rate = PROBLEMS[problem](), rate_of(name, problem)
    p = case.start.size
    weights = p if name in TORCH or p == 2 else p - 1  # where it matters the last entry is an intercept
    blocks = (Block("weight", (weights,), True), Block("bias", (p - weights,), False))
    method = build_method(
        name,
        Layout(blocks if weights < p else blocks[:1]),
        keys={"weight_decay": 0.01} if "weight_decay" in OPTIMIZERS[name].keys else {},
        schedule=schedule,
        schedule_keys={"learning_rate": rate, **keys},
        default_period=STEPS,
    )
    if name in TORCH:
        path = torch_path(name, case.start, method.schedule)
    else:
        path = DERIVED[name](case.start.copy(), rate, slice(0, weights))
    reference, found = next(path), []
    state, _ = method.start(case.start)
    for _ in range(STEPS):
        gradient = case.gradient(reference)
        reference = path.send(gradient.copy())
        state, step = method.tell(state, Sums(gradient * 7.0, 0.0, 7.0, 7), 7.0, 0.0)
        found.append(float(np.abs(step.params - reference).max() / np.abs(reference).max()))
    return np.array(found), reference


def document() -> str:
    """Return docs/optimizers.md."""
    lines = [
        "# Optimizers and schedules",
        "",
        "Made by `python tests/support/conformance.py > docs/optimizers.md`; a test keeps it up to date.",
        "",
        "## The rules",
        "",
        "g is the mean gradient with that of the penalty's l2 part, t = 1, 2, ... the step, eta = schedule(t - 1);",
        "mh = m / (1 - b1^t), vh = v / (1 - b2^t). Weight decay and trust ratios leave intercepts alone.",
        "`model.l1` goes with those marked l1: by proximal steps in the optimizer's own metric, with lbfgs as OWL-QN.",
        "`clip_value`, `clip_norm`, `average` go with every name but newton and lbfgs, whose steps are searched for.",
        "",
        "| name | update | keys and defaults | learning rate | vectors of state | |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in {**OPTIMIZERS, **SECOND_ORDER}.items():
        keys = ", ".join(f"{f.name} {f.default:g}" for f in dataclasses.fields(entry.make)) or "none"
        formula = entry.formula.replace("|", "\\|")
        mark = "l1" if entry.l1 is not None else ""
        more = {"newton": " + 4 p", "lbfgs": " + 2 history"}.get(name, "")
        lines.append(f"| {name} | {formula} | {keys} | {entry.learning_rate:g} | {entry.vectors}{more} | {mark} |")
    lines += [
        "",
        "## Conformance",
        "",
        f"Largest max abs(w - w_ref) / max abs(w_ref) over {STEPS} steps; both get the gradient at w_ref, in float64.",
        "w_ref is torch.optim's where it has the name, else that of the formula, written a second time.",
        "newton and lbfgs are judged by the optimum that they reach.",
        "",
        f"| name | reference | {' | '.join(PROBLEMS)} |",
        "|---|---|" + "---|" * len(PROBLEMS),
    ]
    for name in (*TORCH, *DERIVED):
        cells = []
        for problem in PROBLEMS:
            largest = deviations(name, problem)[0].max()
            cells.append(f"<= {BOUND:g}" if largest <= BOUND else f"{largest:.1g}")
        kind, arguments = TORCH.get(name, ("", {}))
        shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
        lines.append(f"| {name} | {f'{kind}({shown})' if kind else 'formula'} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Schedules",
        "",
        "With eta0 = 0.1 and a run of K = 300 steps. A warm-up (`warmup`, `start_factor`) goes before any of them.",
        "SGD converges when eta_t -> 0 and sum eta_t = infinity.",
        "",
        "| name | rule | keys | eta_t -> 0 | sum = infinity |",
        "|---|---|---|---|---|",
    ]
    for name, cls in SCHEDULES.items():
        rule = build_schedule(name, {}, default_rate=0.1, default_period=300.0)
        null = {FROM_LENGTH[name][0]: FROM_LENGTH[name][1]} if name in FROM_LENGTH else {}
        given = {f.name: f.default for f in dataclasses.fields(cls) if f.name in keys_of(cls)[1:]}
        keys = ", ".join(f"{k} ({null[k]})" if k in null else f"{k} {given[k]:g}" for k in given) or "none"
        met = ["yes" if held else "no" for held in (rule.vanishes, rule.sum_infinite)]
        lines.append(f"| {name} | {rule.formula} | {keys} | {met[0]} | {met[1]} |")
    lines += [
        "",
        "## Line searches",
        "",
        f"Names of `schedule.name` too, with {' and '.join(SEARCHERS)}, over all rows in every step. Many step sizes",
        "share one pass over the data; for linear models further rounds of a search do not touch the features again.",
        "",
        "| name | rule | keys |",
        "|---|---|---|",
    ]
    for name, search in SEARCHES.items():
        keys = ", ".join(f"{f.name} {f.default:g}" for f in dataclasses.fields(search))
        lines.append(f"| {name} | {search().formula.replace('|', chr(92) + '|')} | {keys} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
