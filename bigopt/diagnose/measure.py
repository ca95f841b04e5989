"""What a diagnosis measures, one Map-Reduce a question, over all training rows in float64.

The driver adds the penalty: with g_i = gradient of (n s_i / W) loss_i + penalty, whose mean is grad f,

    E||g_i||^2 = (n / W^2) sum s_i^2 ||gradient loss_i||^2 + 2 grad(loss) . grad(penalty) + ||grad(penalty)||^2

so that the rows' gradients are never centred or formed. The l1 part of a penalty has no gradient and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.base import Session
from bigopt.backends.ledger import Rounds
from bigopt.core.errors import DivergedError
from bigopt.core.sums import HessianSums, Sums
from bigopt.data.plan import Plan, homes, whole
from bigopt.data.view import DataView
from bigopt.diagnose.lanczos import Extremes, formed, lanczos
from bigopt.models.linear import LinearModel
from bigopt.models.losses import SquaredLoss
from bigopt.models.mlp import MLP
from bigopt.models.penalties import Penalty
from bigopt.models.rows import has_curvature
from bigopt.problem import Problem, default_block_rows
from bigopt.work import Work
from bigopt.work_curvature import FeatureSum, FeatureSums, HessianVector, HiddenMoments, NoiseSum, NoiseSums

Floats = npt.NDArray[np.float64]

FLAT: Final = 1e-10
"""Share of lambda_max below which an eigenvalue counts as 0: nothing that rows of rounded numbers can tell."""

_FORMED: Final = 1024


class Noise(NamedTuple):
    """At some params: f, grad f (p,), E||g_i||^2, and from them the variance tr Cov(g_i)."""

    params: Floats
    value: float
    grad: Floats
    second: float

    @property
    def grad_norm2(self) -> float:
        """||grad f||^2."""
        return float(self.grad @ self.grad)

    @property
    def variance(self) -> float:
        """tr Cov(g_i) = E||g_i - grad f||^2."""
        return max(0.0, self.second - self.grad_norm2)


class Features(NamedTuple):
    """E||x||^2, eigenvalues of Sigma = E x x^T (None where it is not formed), its largest one, and R2.

    Where Sigma is not formed `r2` is the bound max_i ||x_i||^2 and `r2_least` = E||x||^4 / E||x||^2 bounds it from
    below; else they are equal.
    """

    mean_square: float
    eigenvalues: Floats | None
    largest: float
    r2: float
    r2_least: float

    @property
    def bounded(self) -> bool:
        """Whether R2 is only known to lie between two bounds."""
        return self.eigenvalues is None


@dataclass(frozen=True)
class Measure:
    """Asks questions about a problem.

    Parameters
    ----------
    problem : Problem
        With a float64 view; see `wide`.
    session : Session
    rounds : Rounds
    memory : int
        ``data.memory``, bytes.
    products : int
        Products with the Hessian at most, each time.
    sample : int or None
        Rows that are drawn, the same ones for every question; None for all.
    """

    problem: Problem
    session: Session
    rounds: Rounds
    memory: int
    products: int = 100
    sample: int | None = None

    @property
    def rows(self) -> int:
        """Training rows n."""
        return self.problem.plan.rows

    @cached_property
    def weight(self) -> float:
        """W."""
        return self.problem.total_weight

    @cached_property
    def penalty(self) -> Penalty:
        """The smooth part of the penalty."""
        return Penalty(self.problem.penalty.l2)

    @property
    def exact(self) -> bool:
        """Whether H is formed."""
        model = self.problem.model
        if not (isinstance(model, LinearModel) and has_curvature(model.loss)):
            return False
        return model.layout.size <= _FORMED and 8 * model.layout.size**2 <= self.memory

    @cached_property
    def ones(self) -> bool:
        """Whether x ends with a 1: with an intercept and without centring."""
        view = self.problem.view
        return getattr(self.problem.model, "intercept", False) and (view.scaling is None or view.source.sparse)

    @cached_property
    def free(self) -> npt.NDArray[np.bool_]:
        """Coordinates that are trained: all but moments of a batch normalisation."""
        layout = self.problem.model.layout
        mask = np.ones(layout.size, dtype=np.bool_)
        for block, s in layout.slices():
            mask[s] = not block.name.endswith((".mean", ".scale"))
        return mask

    def settled(self, params: Floats) -> Floats:
        """Return params with the moments of a batch normalisation at them, held fixed from then on.

        One pass a hidden layer: the moments of a layer depend on those below.
        """
        model, p = self.problem.model, self.problem
        if not (isinstance(model, MLP) and model.batchnorm):
            return params
        work = HiddenMoments(model, p.view, p.block_rows, p.device)
        for _ in model.hidden:
            params = model.with_moments(params, self.ask(work, (params,), "moments inside the mlp"))
        return params

    def ask(self, work: Work, inputs: tuple[Any, ...], what: str) -> Any:
        """Run one Map-Reduce over all training rows, or the sample of them, and return its root."""
        counts = self.problem.facts.train.counts
        if self.sample is None or self.sample >= self.rows:
            units = whole(np.arange(len(counts)), counts)
        else:
            units = Plan(counts, self.sample, 0, self.problem.plan.seed, "subset").units(0, 0)
        return self.rounds.run(
            self.session, work, inputs, units, lambda k: homes(counts, k)[units[:, 0]], f"diagnose: {what}"
        )

    def smooth(self, grad: Floats, params: Floats) -> Floats:
        """Add the gradient of the penalty's smooth part at `params` to `grad`, in place; return it."""
        return self.penalty.add_gradient(grad, params, self.problem.model.layout)

    def noise(self, params: Floats) -> Noise:
        """Return f, its gradient and E||g_i||^2 at some params."""
        p = self.problem
        sums: NoiseSums = self.ask(NoiseSum(p.model, p.view, p.block_rows, p.device), (params,), "gradient noise")
        mean = sums.grad / self.weight
        held = self.smooth(np.zeros_like(params), params)
        second = self.rows * (sums.squares / self.weight**2) + 2.0 * float(mean @ held) + float(held @ held)
        value = sums.loss / self.weight + self.penalty.value(params, p.model.layout)
        return Noise(params, value, mean + held, second)

    def hessian(self, params: Floats) -> tuple[Floats, Floats, float]:
        """Return H (p, p), grad f and f, where `exact`."""
        sums: HessianSums = self.ask(self.problem.batch_work("hessian", "float64", "map").work, (params,), "Hessian")
        H = sums.hessian / self.weight
        _finite(H, "the Hessian")
        H = 0.5 * (H + H.T)
        np.einsum("ii->i", H)[:] += self._held()
        value = sums.loss / self.weight + self.penalty.value(params, self.problem.model.layout)
        return H, self.smooth(sums.grad / self.weight, params), value

    def _held(self) -> Floats:
        """The diagonal that the penalty adds to H."""
        p = self.problem.model.layout.size
        return self.smooth(np.zeros(p), np.ones(p))

    def spectrum(self, params: Floats, *, both: bool = True) -> Extremes:
        """Return the ends of H's spectrum: by `eigh` where it is formed, else by Lanczos."""
        if self.exact:
            return formed(self.hessian(params)[0])
        p, held = self.problem, self._held()
        assert isinstance(p.model, LinearModel | MLP), "models of this version"
        work = HessianVector(p.model, p.view, p.block_rows, p.device)

        def product(v: Floats) -> Floats:
            sums: Sums = self.ask(work, (params, v), "Hessian times a vector")
            found: Floats = sums.grad / self.weight + held * v
            return found

        share = 0.01 if both else None
        return lanczos(product, self.free, seed=p.plan.seed, most=self.products, smallest_share=share)

    def features(self, curved: Floats | None = None, largest: float | None = None) -> Features:
        """Return moments of x, or of sqrt(h_i/2) x with the row curvatures h_i at some params.

        Each row counts with n s_i / W, as in the gradients. For an mlp ||x||^2 stands for tr G_i / 2 and
        lambda_max(Sigma) for lambda_max(H)/2 - l2, what they are in the linear family.

        Parameters
        ----------
        curved : ndarray, shape (p,), or None
        largest : float or None
            lambda_max(H) there, for an mlp.
        """
        p = self.problem
        d = len(p.view.source.columns) + self.ones
        deep = curved is not None and isinstance(p.model, MLP)
        small = d <= _FORMED and 24 * d * d <= self.memory and not deep
        model = None
        if curved is not None:
            assert isinstance(p.model, LinearModel | MLP), "models of this version"
            model = p.model
        inputs = () if curved is None else (curved,)
        work = FeatureSum(p.view, p.block_rows, self.rows / self.weight, self.ones, small, model, p.device)
        sums: FeatureSums = self.ask(work, inputs, "moments of the features")
        mean_square = sums.trace / sums.rows
        _finite(np.append(sums.fourth, mean_square), "the moments of the features")
        if small:
            second = sums.second / sums.rows
            values, vectors = np.linalg.eigh(0.5 * (second + second.T))
            top = max(0.0, float(values[-1]))
            kept = values > d * np.finfo(np.float64).eps * top
            roots = vectors[:, kept] / np.sqrt(values[kept])
            fourth = roots.T @ (sums.fourth / sums.rows) @ roots
            r2 = float(np.linalg.eigvalsh(0.5 * (fourth + fourth.T))[-1]) if kept.any() else 0.0
            return Features(mean_square, np.maximum(values, 0.0), top, r2, r2)
        least = sums.squares / sums.trace if sums.trace > 0.0 else 0.0
        if largest is not None:
            top = max(0.0, largest / 2.0 - p.penalty.l2)
        else:
            assert not isinstance(model, MLP), "lambda_max(H) is given"
            top = self._largest(model, curved)
        return Features(mean_square, None, top, sums.largest, least)

    def _largest(self, model: LinearModel | None, curved: Floats | None) -> float:
        """lambda_max(Sigma) by Lanczos on half of the Hessian of least squares, or of the model itself."""
        p = self.problem
        asked = model or LinearModel(len(p.view.source.columns), 1, SquaredLoss(), self.ones)
        view = p.view if model is not None else replace(p.view, targets=None)
        work = HessianVector(asked, view, p.block_rows, p.device)
        at = np.zeros(asked.layout.size) if curved is None else curved
        mask = np.ones(asked.layout.size, dtype=np.bool_)

        def product(v: Floats) -> Floats:
            sums: Sums = self.ask(work, (at, v), "Sigma times a vector")
            found: Floats = sums.grad * (self.rows / sums.rows / (2.0 * self.weight))
            return found

        return lanczos(product, mask, seed=p.plan.seed, most=self.products, smallest_share=None).largest

    def path(self, first: Noise, largest: float, recorded: tuple[int, ...]) -> Iterator[Noise]:
        """Give the recorded iterates of gradient descent with the step 1/largest, as long as f does not rise.

        Parameters
        ----------
        first : Noise
            At w_0, which is always recorded.
        largest : float
            lambda_max(H) there; nothing follows where it is not positive.
        recorded : tuple of int
            Ascending steps to record.
        """
        yield first
        here = first
        for step in range(1, recorded[-1] + 1):
            if largest <= 0.0 or here.grad_norm2 == 0.0:
                return
            after = self.noise(here.params - here.grad / largest)
            if not after.value <= here.value:
                return
            if step in recorded:
                yield after
            here = after


def _finite(values: Floats, what: str) -> None:
    if not np.isfinite(values).all():
        raise DivergedError(f"{what} overflow", where="diagnose", hint="model.standardize=true")


def wide(problem: Problem) -> Problem:
    """Return the same problem with float64 blocks."""
    view: DataView = replace(problem.view, dtype="float64")
    d = len(view.source.columns)
    sparse = view.source.sparse and d > _FORMED  # a block of few columns is made dense
    return replace(problem, view=view, block_rows=default_block_rows(d, "float64", sparse=sparse))
