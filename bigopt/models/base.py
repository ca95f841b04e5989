"""What a model is: additive sums over rows, on one flat vector.

Everything a model computes over rows is a plain sum, so that blocks, units, partitions and workers can be cut anywhere.
Means, penalties and their gradients are the driver's (`bigopt.models.penalties`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core.buffers import Buffers
from bigopt.core.layout import Layout
from bigopt.models.losses import Loss


class Model(Protocol):
    """A frozen dataclass that travels; arrays are NumPy, CuPy or of any library with the array API.

    X has shape (rows, features) and is C-contiguous; params has shape (p,) and X's dtype (the caller casts once a
    round); y is as the loss says; weight has shape (rows,) or is None for ones.
    """

    @property
    def features(self) -> int:
        """Columns of X."""
        ...

    @property
    def outputs(self) -> int:
        """Columns of the scores."""
        ...

    @property
    def loss(self) -> Loss:
        """The loss of a row."""
        ...

    @property
    def layout(self) -> Layout:
        """Names and shapes within the flat vector."""
        ...

    def init(self, rule: str, seed: int) -> npt.NDArray[np.float64]:
        """Return initial params of shape (p,) in float64, a function of the rule, the seed and the layout alone."""
        ...

    def grad_sum(
        self, params: Any, X: Any, y: Any, weight: Any | None, buffers: Buffers | None = None
    ) -> tuple[Any, float, float]:
        """Return (sum_i s_i dloss_i/dparams, sum_i s_i loss_i, sum_i s_i).

        The gradient has shape (p,) and X's dtype, without penalty and not divided by anything; loss and weight are
        summed in float64. With `buffers` (NumPy only) its memory may be lent by them.
        """
        ...

    def loss_sum(self, params: Any, X: Any, y: Any, weight: Any | None) -> tuple[float, float]:
        """Return (sum_i s_i loss_i, sum_i s_i) in float64."""
        ...

    def scores(self, params: Any, X: Any) -> Any:
        """Return what comes before link and output activation: values or logits, shape (rows, outputs)."""
        ...

    def predict(self, params: Any, X: Any) -> Any:
        """Return values or scores (rows, outputs), or one probability a class (rows, C); C = 2 for one logit."""
        ...
