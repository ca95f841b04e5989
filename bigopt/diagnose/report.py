"""A diagnosis as tables: every figure with its formula, and the largest stable step of each batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FIGURES = (
    "lambda_max",
    "lambda_min",
    "condition_number",
    "effective_condition_number",
    "mean_square_x",
    "lambda_max_sigma",
    "r2",
    "sigma2",
    "trace_cov",
    "grad_norm2",
    "M",
    "b_stable",
    "b_M",
    "b_noise",
    "full_batch_step",
    "L",
    "tau",
    "gamma_crit",
    "correlation",
    "phase",
)


def tables(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return title, columns and rows of what `diagnose` found."""
    formulas = found["formulas"]
    rows = [[name, found[name], formulas[name]] for name in _FIGURES]
    rows.append(["knee", found["knee"]["rows"], formulas["knee"]])
    curved = found["curved"]
    if found["r2_least"] < (1.0 - 1e-6) * found["r2"]:
        rows.insert(_FIGURES.index("r2") + 1, ["r2_least", found["r2_least"], formulas["r2_least"]])
    result = [
        {"title": f"at the current w ({found['how']})", "columns": ["figure", "value", "formula"], "rows": rows},
        {
            "title": "largest stable steps of mean-gradient sgd",
            "columns": ["batch", "eta_b", "gaussian_root", "gamma_crit"],
            "rows": [
                [_batch(s), s.get("eta_b", s.get("two_over_lambda_max")), s.get("gaussian_root"), s["gamma_crit"]]
                for s in found["stable_steps"]
            ],
        },
        {
            "title": "at w*",
            "columns": ["figure", "value"],
            "rows": [[k, v] for part in ("optimum", "hessian_at_optimum") for k, v in found[part].items()],
        },
    ]
    if curved["mean_square"] != found["mean_square_x"]:
        rows = [["E||x||^2", curved["mean_square"]], ["lambda_max(Sigma)", curved["largest"]]]
        rows += [["R2, which eta_b takes", curved["r2"]]]
        if curved["r2_least"] < (1.0 - 1e-6) * curved["r2"]:
            rows += [["R2 is at least", curved["r2_least"]]]
        what = "tr G_i / 2 for ||x||^2" if found["mlp"] else "sqrt(h_i/2) x for x"
        result.insert(1, {"title": f"curved rows: {what}", "columns": ["figure", "value"], "rows": rows})
    if found["saddle"] is not None:
        saddle = found["saddle"]
        title = f"a saddle: f falls along this direction (eigenvalue {saddle['eigenvalue']:.4g}, largest entries)"
        rows = [[name, value] for name, value in saddle["direction"].items()]
        result.append({"title": title, "columns": ["parameter", "entry"], "rows": rows})
    return result


def _batch(step: Mapping[str, Any]) -> str:
    return "full: 2/lambda_max(H)" if step["batch"] == "full" else str(step["batch"])
