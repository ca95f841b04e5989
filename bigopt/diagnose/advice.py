"""From figures to advice: which optimizer, which batch, which step, and why."""

from __future__ import annotations

import math
from typing import Any, Final

_SMALL_MACHINE: Final = 8
_HEAVY: Final = 10.0


def advise(found: dict[str, Any], exact: bool, l1: float) -> dict[str, Any]:
    """Return a recommendation.

    Parameters
    ----------
    found : dict
        The figures of `diagnose`.
    exact : bool
        Whether the Hessian can be formed.
    l1 : float
        ``model.l1``.

    Returns
    -------
    dict
        ``optimizer``, ``batch``, ``learning_rate`` (a number, "auto", or None), ``momentum`` (None where it has none),
        ``reasons`` (sentences), and ``second_order``: the optimizer that ends in the optimum in few passes, or None.
    """
    reasons: list[str] = []
    mlp, curved = found["mlp"], found["curved"]
    tails = curved["r2_least"] / max(curved["mean_square"] + 2.0 * curved["largest"], 1e-300)
    batch = _batch(found, reasons)
    saddle = found["saddle"] is not None
    kappa = found["effective_condition_number"]
    kappa = found["hessian_at_optimum"].get("effective_condition_number", kappa)
    optimizer, momentum = "sgd", None
    if mlp:
        optimizer = "adam"
        reasons.append("adam: the loss of an mlp is not convex, and its layers ask for different steps")
    elif tails > _HEAVY:
        optimizer = "adam"
        reasons.append(
            f"adam: R2 is {tails:.3g} times that of Gaussian rows: a few rows are so long (rare categories, "
            "standardised?) that plain steps must be tiny; adam scales each coordinate by itself"
        )
    elif math.isinf(kappa):
        reasons.append("plain sgd: the Hessian has no positive eigenvalue, so that nothing can be said about momentum")
    elif kappa > 1e5:
        optimizer, momentum = "momentum", 0.99
        reasons.append(f"momentum 0.99: the condition number is {kappa:.3g}, above 1e5")
    elif kappa > 10.0:
        optimizer, momentum = "momentum", 0.9
        reasons.append(f"momentum 0.9: the condition number is {kappa:.3g}; flat directions get ten times the step")
    else:
        reasons.append(f"plain sgd: the condition number is {kappa:.3g}, momentum would gain little")
    rate: float | str | None = None
    if optimizer == "adam":
        rate = "auto"
        reasons.append("learning_rate auto: adam's steps are relative, curvature does not tell them; short trials do")
    else:
        rate = _rate(found, batch, reasons)
    if isinstance(rate, float) and momentum is not None:
        rate *= 1.0 - momentum
        reasons.append(f"times 1 - momentum: momentum multiplies the step by {1.0 / (1.0 - momentum):.0f}")
    if isinstance(rate, float) and math.isinf(rate):
        rate = None
    if saddle:
        reasons.append("w_0 is near a saddle: small batches leave it by their noise, full batches stall")
    second = None
    if l1 == 0.0 and not mlp:
        flat = found["hessian_at_optimum"]["flat_directions"]
        second = "newton" if exact and flat == 0 and found["optimum"]["reached"] else "lbfgs"
        steps = "a few passes, one of them for the Hessian" if second == "newton" else "some tens of passes"
        reasons.append(f"to the last digit: optimizer.name={second}, batch.size=full, {steps}")
    return {
        "optimizer": optimizer,
        "momentum": momentum,
        "batch": batch,
        "learning_rate": rate,
        "second_order": second,
        "reasons": reasons,
    }


def _batch(found: dict[str, Any], reasons: list[str]) -> int:
    n, stable = found["rows"], found["b_stable"]
    knee = found["knee"]["rows"] or n
    noise = found["b_noise"] if math.isfinite(found["b_noise"]) else n
    small = min(stable, knee)
    medium = max(stable, knee)
    large = max(medium, min(noise, n / 10))
    big = found["slots"] > _SMALL_MACHINE
    names = ("medium", "large") if big else ("small", "medium")
    name = names[found["phase"] - 1]
    b = {"small": small, "medium": medium, "large": large}[name]
    b = min(n, 1 << max(0, round(math.log2(max(1.0, b)))))
    where = f"{found['slots']} slots, phase {found['phase']}"
    why = "the rows' gradients agree" if found["phase"] == 1 else "noise is larger than the gradient"
    reasons.append(
        f"a {name} batch, {b} ({where}: {why}): up to b_stable = {stable:.3g} larger batches take larger steps, up to "
        f"the knee at {knee:.3g} rows they cost little more"
    )
    return int(b)


def _rate(found: dict[str, Any], batch: int, reasons: list[str]) -> float:
    full = 2.0 / found["L"] if found["L"] > 0.0 else math.inf
    steps = [s for s in found["stable_steps"] if s["batch"] != "full" and s["batch"] <= batch]
    if batch >= found["rows"] or not steps:
        reasons.append(f"learning_rate: half of 2/L = {full:.4g}, the largest stable step of full batches")
        return float(full) / 2.0
    at = steps[-1]
    root = at["gaussian_root"] if found["gaussian"] else None
    limit, name = (root, "gaussian_root, R2 is near that of Gaussian rows") if root else (at["eta_b"], "eta_b")
    limit = min(limit, full)
    reasons.append(f"learning_rate: half of the largest stable step {limit:.4g} at b = {at['batch']} ({name})")
    return float(limit) / 2.0
