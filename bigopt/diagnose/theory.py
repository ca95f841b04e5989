"""Formulas of a diagnosis, on numbers that are measured elsewhere.

SGD on least squares with mean gradients of b rows contracts in mean square while eta is below a threshold. With Sigma =
E x x^T (H = 2 Sigma) and R2 the smallest number with E[||x||^2 x x^T] <= R2 Sigma a sufficient one is

    eta_b = b / (R2 + (b - 1) lambda_max(Sigma) + b l2)

It rises with b from about 1/E||x||^2 towards 1/lambda_max(Sigma); half of that is reached at about
b_stable = 1 + E||x||^2 / lambda_max(Sigma): beyond it a larger batch buys no longer steps. For zero-mean Gaussian rows
(and l2 = 0) the threshold itself is known: the root of (eta/b) sum_i l_i / (1 - eta (1 + 1/b) l_i) = 1.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FORMULAS: Final = {
    "lambda_max": "largest eigenvalue of the Hessian H of f",
    "lambda_min": "smallest eigenvalue of H; negative: a saddle, and a direction that leads down",
    "condition_number": "lambda_max / lambda_min",
    "effective_condition_number": "lambda_max / the smallest eigenvalue above 1e-10 lambda_max",
    "mean_square_x": "E||x||^2",
    "lambda_max_sigma": "largest eigenvalue of Sigma = E x x^T",
    "r2": "R2, the smallest number with E[||x||^2 x x^T] <= R2 Sigma; the longest row's where Sigma is not formed",
    "r2_least": "E||x||^4 / E||x||^2 <= R2 where Sigma is not formed, else R2",
    "sigma2": "sigma^2 = 2 E||g_i||^2 at w*",
    "M": "max over recorded iterates of (E||g_i - grad f||^2 - sigma^2)+ / ||grad f||^2",
    "trace_cov": "tr Cov(g_i) = E||g_i||^2 - ||grad f||^2 at the current w",
    "grad_norm2": "||grad f||^2 at the current w",
    "b_stable": "1 + E||x||^2 / lambda_max(Sigma): the largest stable step is half of its limit",
    "b_M": "M: linear speed-up below, none in the deterministic term above",
    "b_noise": "tr Cov(g_i) / ||grad f||^2 at the current w",
    "full_batch_step": "2 / lambda_max(H): the largest stable step of full batches",
    "eta_b": "b / (R2 + (b - 1) lambda_max(Sigma) + b l2), of the curved rows",
    "gaussian_root": "root of (eta/b) sum l_i / (1 - eta (1 + 1/b) l_i) = 1: zero-mean Gaussian rows, l2 = 0",
    "tau": "delay: given, or the largest staleness of the run; 1 for synchronous steps",
    "gamma_crit": "1 / (10 L (M/b + tau))",
    "L": "largest lambda_max(H) over w_0 and the recorded iterates; logistic: lambda_max(Sigma)/4 + 2 l2",
    "correlation": "c = ||grad f||^2 / E||g_i||^2",
    "phase": "1 where b_noise < b (the rows' gradients agree), else 2",
    "knee": "b at which a batch takes twice the time of the smallest one, by seconds = fixed + b x a row's",
}
"""What each figure is called, and how it comes about."""


def b_stable(mean_square: float, largest: float) -> float:
    """Return 1 + E||x||^2 / lambda_max(Sigma); infinite where all features are 0."""
    return 1.0 + mean_square / largest if largest > 0.0 else np.inf


def eta_b(b: float, r2: float, largest: float, l2: float = 0.0) -> float:
    """Return a step below which mean-gradient SGD with batches of b rows contracts.

    Parameters
    ----------
    b : float
        Rows of a batch, drawn with replacement.
    r2 : float
        R2 of the rows (for other losses than squares: of sqrt(h_i/2) x).
    largest : float
        lambda_max(Sigma) of the same rows.
    l2 : float
    """
    below = r2 + (b - 1.0) * largest + b * l2
    return b / below if below > 0.0 else np.inf


def gaussian_root(eigenvalues: Floats, b: float) -> float:
    """Return the step at which mean-gradient SGD on zero-mean Gaussian rows stops contracting in mean square.

    The left side of (eta/b) sum_i l_i / (1 - eta (1 + 1/b) l_i) = 1 rises from 0 to infinity between 0 and the pole of
    the largest eigenvalue; halving intervals finds the root to the last bit.

    Parameters
    ----------
    eigenvalues : ndarray, shape (d,)
        Of Sigma, at least 0, not all 0.
    b : float
    """
    spread = np.maximum(np.asarray(eigenvalues, dtype=np.float64), 0.0)
    high = 1.0 / ((1.0 + 1.0 / b) * float(spread.max()))
    low = 0.0
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return middle
        rest = 1.0 - middle * (1.0 + 1.0 / b) * spread
        if bool((rest <= 0.0).any()) or middle / b * float(np.sum(spread / rest)) > 1.0:
            high = middle
        else:
            low = middle


def gamma_crit(b: float, curvature: float, noise: float, tau: float = 1.0) -> float:
    """Return 1 / (10 L (M/b + tau)), the step up to which the bound for delayed mean gradients holds."""
    return 1.0 / (10.0 * curvature * (noise / b + tau)) if curvature > 0.0 else np.inf


class SteadyState(NamedTuple):
    """Where constant-step SGD stays: MSD = E||w - w*||^2 and ER = E f(w) - f(w*)."""

    msd: float
    er: float


def steady_state(eigenvalues: Floats, noise: float, eta: float, b: int = 1) -> SteadyState:
    """Return the exact fixed point on zero-mean Gaussian rows with y = x.w* + noise, squared loss, l2 = 0.

    In the eigenbasis of Sigma the fixed point of P = (I - eta H) P (I - eta H) + eta^2 (gradient noise at P) is
    diagonal, with S = sum l_i p_i the excess risk::

        p_i = (1 - 2 eta l_i)^2 p_i + (4 eta^2 / b) l_i (l_i p_i + S + noise)

    Parameters
    ----------
    eigenvalues : ndarray, shape (d,)
        Of Sigma.
    noise : float
        Variance of the noise of y.
    eta : float
    b : int
        Rows of a batch, drawn with replacement.

    Raises
    ------
    ValueError
        Where eta is not below `gaussian_root`.
    """
    spread = np.asarray(eigenvalues, dtype=np.float64)
    limit = gaussian_root(spread, b)
    if eta >= limit:
        raise ValueError(f"no steady state: {eta} is not below the stable step {limit}")
    share = (eta / b) / (1.0 - eta * (1.0 + 1.0 / b) * spread)
    total = float(np.sum(spread * share))
    er = noise * total / (1.0 - total)
    return SteadyState(float(np.sum(share)) * (er + noise), er)


def small_step(hessian: npt.NDArray[Any], R: npt.NDArray[Any], eta: float, b: int = 1) -> SteadyState:
    """Return the theory for small eta: MSD = eta/(2b) tr(H^-1 R), ER = eta/(4b) tr(R), R = E g_i g_i^T at w*."""
    msd = eta / (2.0 * b) * float(np.trace(np.linalg.solve(hessian, R)))
    return SteadyState(msd, eta / (4.0 * b) * float(np.trace(R)))
