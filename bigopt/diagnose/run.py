"""`bigopt diagnose`: measure a problem by Map-Reduce before it is trained, and say what the figures mean.

Before a run the current w is where training would start (``model.init``); w* is found by Newton or L-BFGS; the recorded
iterates are w_0, steps 1, 2, 4, 8, 16 of gradient descent from there with the step 1/lambda_max(H), and w*. Of a run
the current w is its newest checkpoint, and the recorded iterates are w_0, its checkpoints and w*.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bigopt import sessions
from bigopt.backends.base import one_blas_thread
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.core import arrays
from bigopt.core.errors import ConfError, DivergedError
from bigopt.diagnose import theory
from bigopt.diagnose.advice import advise
from bigopt.diagnose.knee import measure_knee
from bigopt.diagnose.lanczos import Extremes
from bigopt.diagnose.measure import FLAT, Features, Measure, wide
from bigopt.diagnose.optimum import minimise
from bigopt.diagnose.recorded import Recorded, recorded
from bigopt.facts import Datasets, open_data, profile
from bigopt.models.linear import LinearModel
from bigopt.models.losses import BinaryCrossEntropy
from bigopt.models.rows import has_curvature
from bigopt.problem import Problem, build
from bigopt.warmstart import initial_params

if TYPE_CHECKING:
    from bigopt.config import Conf

Log = Callable[[str], None]

_RECORDED: Final = (1, 2, 4, 8, 16)
_SHOWN: Final = 5


def diagnose(
    conf: Conf,
    data: Datasets | None = None,
    *,
    run: Path | None = None,
    tau: float | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """Diagnose the problem of a conf.

    Parameters
    ----------
    conf : Conf
        Checked.
    data : Datasets, optional
        Opened data; ``data.uri`` is opened where it is not given.
    run : Path, optional
        The run directory that the conf belongs to.
    tau : float, optional
        Delay for `gamma_crit`, at least 1; by default the largest staleness of the run, 1 for synchronous steps.
    log : callable, optional
        Takes lines about what is going on.

    Returns
    -------
    dict
        The figures of `bigopt.diagnose.theory.FORMULAS` by name (NaN where there is none), ``stable_steps`` (one
        mapping a batch size), ``hessian_at_optimum``, ``optimum``, ``saddle`` (None without one), ``knee``,
        ``recommendation``, ``formulas``, ``notes`` and ``rounds``.

    Raises
    ------
    ConfError
        A model or loss without second derivatives; a delay below 1.
    CheckpointError
        A run without checkpoints.
    DivergedError
        Where f is not finite at w_0.
    """
    from bigopt.config import choose_backend

    if tau is not None and not tau >= 1.0:
        raise ConfError(f"a delay of {tau:g}", where="--tau", hint="at least 1, the delay of synchronous steps")
    say = log or (lambda _: None)
    data = data or open_data(conf)
    backend, notice = choose_backend(conf, under_spark=sessions.under_spark())
    if notice:
        say(notice)
    ledger = Ledger()
    rounds = Rounds(ledger, conf.backend.retries)
    with contextlib.closing(sessions.open_session(conf, backend, "diagnose")) as session:
        facts = profile(conf, data, session, rounds)
        problem = wide(build(conf, data, facts, arrays.resolve_device(conf.backend.device)))
        _check(problem)
        for line in problem.notes:
            say(line)
        start = initial_params(
            conf.model.init,
            problem.model,
            conf.run.seed,
            columns=problem.view.source.columns,
            preparation=problem.view.scaling,
        )
        with one_blas_thread():
            measure = Measure(problem, session, rounds, conf.data.memory)
            start = measure.settled(start)
            past = None if run is None else recorded(run, conf, problem, rounds)
            found = _figures(measure, start, past, _delay(tau, past), say)
            say("time of a batch against its rows")
            found["knee"] = measure_knee(measure)
        found["rounds"] = ledger.rounds
        found["slots"] = session.slots
    found["recommendation"] = advise(found, measure.exact, conf.model.l1)
    return found


def _check(problem: Problem) -> None:
    model = problem.model
    if isinstance(model, LinearModel) and not has_curvature(model.loss):
        raise ConfError(
            f"the {model.loss.name} loss has no second derivatives to diagnose",
            where="model.loss",
            hint="squared_hinge has them",
        )


def _delay(tau: float | None, past: Recorded | None) -> tuple[float, str]:
    if tau is not None:
        return tau, "--tau"
    if past is not None and past.staleness > 0:
        return float(max(1, past.staleness)), "the largest staleness of the run"
    return 1.0, "synchronous steps"


def _figures(measure: Measure, first: Any, past: Recorded | None, delay: tuple[float, str], say: Log) -> dict[str, Any]:
    problem = measure.problem
    model, plan = problem.model, problem.plan
    linear = isinstance(model, LinearModel)
    notes: list[str] = []
    start, tau = first if past is None else past.params[-1], delay[0]
    if past is not None:
        notes.append(f"the current w is step {past.steps[-1]} of the run")
    if past is not None and past.staleness:
        notes.append("with N workers the delay exceeds the largest staleness by at most N - 1")
    if problem.penalty.l1:
        notes.append("the l1 penalty has no curvature: figures are those of the smooth part of f")

    say("features: E||x||^2, Sigma, R2")
    features = measure.features()
    say("gradient noise at the current w")
    here = measure.noise(start)
    if not math.isfinite(here.value):
        raise DivergedError(f"f is {here.value} at the first params", where="model.init", hint="model.standardize=true")
    say("curvature at the current w")
    ends = measure.spectrum(start)
    say("w*")
    best = minimise(measure, start)
    at_best = measure.noise(best.params)
    best_ends = measure.spectrum(best.params, both=linear)
    if not best.reached:
        notes.append(f"w* was not reached: figures at w* are taken where {best.method} ended after {best.steps} steps")
    say("gradient descent, for M and L" if past is None else "checkpoints, for M and L")
    sigma2 = 2.0 * at_best.second
    if past is None:
        iterates = list(measure.path(here, ends.largest, _RECORDED))
    else:
        iterates = [here, *(measure.noise(w) for w in (first, *past.params[:-1]))]
    M = max(_ratio(max(0.0, at.variance - sigma2), at.grad_norm2) for at in iterates)
    L = max(ends.largest, best_ends.largest)
    if isinstance(model.loss, BinaryCrossEntropy) and isinstance(model, LinearModel):
        L = max(features.largest, 1.0 if model.intercept else 0.0) / 4.0 + 2.0 * problem.penalty.l2
    elif not _quadratic(problem):
        L = max(L, *(measure.spectrum(at.params, both=False).largest for at in iterates[1:]), -math.inf)

    b = plan.batch_rows(0)
    b_noise = _ratio(here.variance, here.grad_norm2)
    curved = features
    if not _quadratic(problem):
        steeper = (start, ends.largest) if ends.largest >= best_ends.largest else (best.params, best_ends.largest)
        curved = measure.features(steeper[0], None if linear else steeper[1])
    if curved.r2_least < (1.0 - 1e-6) * curved.r2:
        why = "Sigma is too large to form" if linear else "an mlp's rows by tr G_i / 2, see docs/diagnose.md"
        notes.append(
            f"R2 lies between {curved.r2_least:.4g} and the longest row's {curved.r2:.4g}, which eta_b takes: {why}"
        )
    if not linear:
        notes.append("eta_b and b_stable of an mlp hold near its w, while its curvature stays what it is")
    size = model.layout.size
    at = features if linear else curved  # where b_stable is taken
    result = {
        "rows": measure.rows,
        "parameters": size,
        "mlp": not linear,
        "batch": b,
        "loss": here.value,
        **_ends(ends),
        "mean_square_x": features.mean_square,
        "lambda_max_sigma": features.largest,
        "r2": features.r2,
        "r2_least": features.r2_least,
        "curved": {
            "mean_square": curved.mean_square,
            "largest": curved.largest,
            "r2": curved.r2,
            "r2_least": curved.r2_least,
        },
        "sigma2": sigma2,
        "M": M,
        "trace_cov": here.variance,
        "grad_norm2": here.grad_norm2,
        "b_stable": theory.b_stable(at.mean_square, at.largest),
        "b_M": M,
        "b_noise": b_noise,
        "full_batch_step": 2.0 / ends.largest if ends.largest > 0.0 else math.inf,
        "L": L,
        "tau": tau,
        "tau_from": delay[1],
        "gamma_crit": theory.gamma_crit(b, L, M, tau),
        "correlation": _ratio(here.grad_norm2, here.second),
        "phase": 1 if b_noise < b else 2,
        "hessian_at_optimum": _ends(best_ends) if linear else {"lambda_max": best_ends.largest},
        "optimum": {
            "method": best.method,
            "steps": best.steps,
            "reached": best.reached,
            "loss": at_best.value,
            "grad_norm": math.sqrt(at_best.grad_norm2),
        },
        "saddle": _saddle(measure, ends),
        "stable_steps": _steps(measure, curved, ends, lambda b: theory.gamma_crit(b, L, M, tau)),
        "gaussian": None if curved.bounded else bool(curved.r2 <= 1.25 * (curved.mean_square + 2.0 * curved.largest)),
        "formulas": dict(theory.FORMULAS),
        "notes": notes,
    }
    if ends.products and ends.smallest_error > 0.05 * abs(ends.smallest):
        notes.append(
            f"lambda_min is at most {ends.smallest:.4g}: Lanczos ended after {ends.products} products, "
            f"within {ends.smallest_error:.2g} of an eigenvalue"
        )
    return result


def _ratio(a: float, b: float) -> float:
    if b > 0.0:
        return a / b
    return 0.0 if a == 0.0 else math.inf


def _quadratic(problem: Problem) -> bool:
    return isinstance(problem.model, LinearModel) and problem.model.loss.name == "squared"


def _ends(ends: Extremes) -> dict[str, Any]:
    zero = FLAT * ends.largest
    smallest = ends.smallest
    if ends.values is not None and (ends.values > zero).any():
        smallest = float(ends.values[ends.values > zero][0])
    convex = ends.smallest > zero
    return {
        "lambda_max": ends.largest,
        "lambda_min": ends.smallest,
        "condition_number": ends.largest / ends.smallest if convex else math.inf,
        "effective_condition_number": ends.largest / smallest if smallest > zero else math.inf,
        "flat_directions": 0 if ends.values is None else int((np.abs(ends.values) <= zero).sum()),
        "how": "eigh of H" if ends.values is not None else f"Lanczos, {ends.products} products with H",
    }


def _saddle(measure: Measure, ends: Extremes) -> dict[str, Any] | None:
    """The direction of a clearly negative eigenvalue, by its largest entries."""
    if ends.smallest >= -1e-6 * abs(ends.largest):
        return None
    names = []
    for block, s in measure.problem.model.layout.slices():
        names += [(block, i) for i in range(s.stop - s.start)]
    order = np.argsort(-np.abs(ends.direction), kind="stable")[:_SHOWN]
    entries = {}
    for index in order:
        block, offset = names[int(index)]
        place = ", ".join(str(int(i)) for i in np.unravel_index(offset, block.shape))
        entries[f"{block.name}[{place}]"] = float(ends.direction[index])
    return {"eigenvalue": ends.smallest, "direction": entries}


def _steps(measure: Measure, curved: Features, ends: Extremes, crit: Callable[[float], float]) -> list[dict[str, Any]]:
    """The largest stable step of each batch size: powers of 2, the conf's, and all rows."""
    problem, n = measure.problem, measure.rows
    sizes = {2**k for k in range(32) if 2**k < n} | ({problem.plan.batch_rows(0)} if not problem.plan.full else set())
    l2 = problem.penalty.l2
    rows: list[dict[str, Any]] = []
    for b in sorted(sizes):
        root = None
        if l2 == 0.0 and curved.eigenvalues is not None and curved.largest > 0.0:
            root = theory.gaussian_root(curved.eigenvalues, b)
        rows.append(
            {
                "batch": b,
                "eta_b": theory.eta_b(b, curved.r2, curved.largest, l2),
                "gaussian_root": root,
                "gamma_crit": crit(b),
            }
        )
    full = 2.0 / ends.largest if ends.largest > 0.0 else math.inf
    return [*rows, {"batch": "full", "two_over_lambda_max": full, "gamma_crit": crit(n)}]
