"""Models: what one block of rows contributes to the gradient, and how its predictions are judged.

A model is a frozen dataclass over one flat parameter vector. It knows nothing of batches, penalties, means or machines:
`grad_sum` adds over the rows it is given, and whoever adds further (the tree) gets the same mathematics for any split.
"""

from bigopt.models.base import Model
from bigopt.models.build import MODELS, build_model
from bigopt.models.linear import LinearModel, coefficients
from bigopt.models.mlp import MLP

__all__ = ["MLP", "MODELS", "LinearModel", "Model", "build_model", "coefficients"]
