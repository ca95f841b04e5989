"""scikit-learn, in memory, with the threads it takes by itself."""

from __future__ import annotations

import time
import warnings
from typing import Any

from benchmarks import data, evaluate
from benchmarks.sides import Base


class Marginal(Base):
    """Seconds of one more iteration of lbfgs: the difference between a long and a short fit, over their iterations."""

    def __init__(self, folder: str, few: int, many: int) -> None:
        import sklearn.linear_model  # noqa: F401

        self._X, self._y = data.load(folder)
        self._few, self._many = few, many

    def _fit(self, iterations: int) -> tuple[float, int]:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=1e12, tol=1e-12, max_iter=iterations)
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it has not converged
            model.fit(self._X, self._y)
        return time.perf_counter() - begin, int(model.n_iter_[0])

    def run(self) -> dict[str, float]:
        """Return seconds of an iteration."""
        short, few = self._fit(self._few)
        long, many = self._fit(self._many)
        return {"seconds": (long - short) / (many - few), "fit": long}


class Fit(Base):
    """Seconds of a fit with its own stopping rule, and the loss that it ends with.

    Parameters
    ----------
    folder : str
    solver : {"lbfgs", "saga", "sgd"}
    l2 : float
        Of bigopt's penalty l2 ||w||^2.
    max_iter : int
        Enough to stop by itself.
    """

    def __init__(self, folder: str, solver: str, l2: float, max_iter: int = 1000) -> None:
        import sklearn.linear_model as sk

        self._X, self._y = data.load(folder)
        self._referee = evaluate.Referee("logistic", folder, l2)
        self._make: Any
        if solver == "sgd":
            self._make = lambda: sk.SGDClassifier(loss="log_loss", alpha=2 * l2, random_state=0)
        else:
            C = 1.0 / (2 * l2 * len(self._X))
            self._make = lambda: sk.LogisticRegression(C=C, solver=solver, max_iter=max_iter, random_state=0)
        self._model: Any = None

    def run(self) -> dict[str, float]:
        """Return seconds of a fit."""
        self._model = self._make()
        begin = time.perf_counter()
        self._model.fit(self._X, self._y)
        return {"seconds": time.perf_counter() - begin}

    def judge(self) -> dict[str, float]:
        """Return the final loss with the penalty."""
        return {"loss": self._referee.loss([*self._model.coef_[0], float(self._model.intercept_[0])])}

    def check(self) -> dict[str, float]:
        """Return the same."""
        return self.judge()


class NetworkEpoch(Base):
    """Seconds of an epoch of MLPClassifier with its Adam (``partial_fit`` over all rows is one)."""

    def __init__(self, folder: str, hidden: list[int], batch: int, learning_rate: float) -> None:
        from sklearn.neural_network import MLPClassifier

        self._X, self._y = data.load(folder)
        self._model = MLPClassifier(
            hidden, alpha=0.0, batch_size=batch, learning_rate_init=learning_rate, random_state=0
        )
        self._classes = sorted(set(self._y.tolist()))

    def run(self) -> dict[str, float]:
        """Return seconds of an epoch."""
        begin = time.perf_counter()
        self._model.partial_fit(self._X, self._y, classes=self._classes)
        return {"seconds": time.perf_counter() - begin}

    def check(self) -> dict[str, float]:
        """Return the loss over all rows."""
        layers = list(zip(self._model.coefs_, self._model.intercepts_, strict=True))
        return {"loss": evaluate.network(self._X, self._y, layers, "relu")}


class RidgeFit(Base):
    """Seconds of a fit of Ridge, and its loss: mean squared error plus l2 ||w||^2."""

    def __init__(self, folder: str, l2: float) -> None:
        import sklearn.linear_model  # noqa: F401

        self._X, self._y = data.load(folder)
        self._l2 = l2
        self._referee = evaluate.Referee("squared", folder, l2)
        self._model: Any = None

    def run(self) -> dict[str, float]:
        """Return seconds of a fit."""
        from sklearn.linear_model import Ridge

        self._model = Ridge(alpha=self._l2 * len(self._X))
        begin = time.perf_counter()
        self._model.fit(self._X, self._y)
        return {"seconds": time.perf_counter() - begin}

    def judge(self) -> dict[str, float]:
        """Return the loss."""
        return {"loss": self._referee.loss([*self._model.coef_.ravel(), float(self._model.intercept_)])}
