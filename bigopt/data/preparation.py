"""What a view does to features and labels: scaling, whitening, encoding of targets.

All of it is fitted elsewhere (one Map-Reduce over the data), stored with the model and applied again at prediction.
Sparse rows are scaled, not centred: subtracting a mean would fill them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError, DataError

Array = npt.NDArray[Any]
TargetKind = Literal["values", "binary", "sign", "index", "onehot"]

_BLOCK_ROWS = 4096
_BLOCK_VALUES = 1 << 18


@wire
@dataclass(frozen=True)
class Scaling:
    """Features are used as (x - mean) / scale, column by column.

    Parameters
    ----------
    mean, scale : ndarray, shape (d,), float64
    """

    mean: Array
    scale: Array

    def apply(self, X: Array | CSR) -> None:
        """Standardise a block of shape (k, d) in place, computed in float64; sparse rows are divided by the scale.

        Raises
        ------
        ConfError
            For sparse rows where a mean is not 0.
        """
        if isinstance(X, CSR):
            if self.mean.any():
                raise ConfError("sparse rows are scaled, not centred", where="model.standardize", hint="true or false")
            for lo in range(0, len(X.data), _BLOCK_VALUES):
                part = X.data[lo : lo + _BLOCK_VALUES]
                part[...] = part.astype(np.float64) / self.scale[X.indices[lo : lo + _BLOCK_VALUES]]
            return
        for lo in range(0, len(X), _BLOCK_ROWS):
            part = X[lo : lo + _BLOCK_ROWS]
            part[...] = (part.astype(np.float64) - self.mean) / self.scale

    def undo(self, weight: Array, shift: Array) -> tuple[Array, Array]:
        """Return (d, q) coefficients and (q,) intercepts on the original features: w/scale, b - mean.(w/scale)."""
        weight = weight / self.scale[:, None]
        return weight, shift - self.mean @ weight

    def redo(self, weight: Array, shift: Array) -> tuple[Array, Array]:
        """Return the coefficients on prepared features that do what `weight` and `shift` do on the original ones."""
        return weight * self.scale[:, None], shift + self.mean @ weight


@wire
@dataclass(frozen=True)
class Whitening:
    """Features are used as (x - mean) T, so that their covariance is the identity.

    Parameters
    ----------
    mean : ndarray, shape (d,), float64
    matrix : ndarray, shape (d, d), float64
        T: the inverse root of the covariance; 0 along directions without variance.
    """

    mean: Array
    matrix: Array

    def apply(self, X: Array | CSR) -> None:
        """Whiten a block of shape (k, d) in place, computed in float64.

        Raises
        ------
        ConfError
            For sparse rows.
        """
        if isinstance(X, CSR):
            raise ConfError("sparse rows are not whitened", where="model.whiten", hint="model.whiten=false")
        for lo in range(0, len(X), _BLOCK_ROWS):
            part = X[lo : lo + _BLOCK_ROWS]
            part[...] = (part.astype(np.float64) - self.mean) @ self.matrix

    def undo(self, weight: Array, shift: Array) -> tuple[Array, Array]:
        """Return (d, q) coefficients and (q,) intercepts on the original features: T w, b - mean.(T w)."""
        weight = self.matrix @ weight
        return weight, shift - self.mean @ weight

    def redo(self, weight: Array, shift: Array) -> tuple[Array, Array]:
        """Return the coefficients on prepared features that do what `weight` and `shift` do on the original ones."""
        return np.linalg.pinv(self.matrix) @ weight, shift + self.mean @ weight


Preparation = Scaling | Whitening
"""What is done to the features."""


@wire
@dataclass(frozen=True)
class Targets:
    """How raw labels become what a loss takes.

    Parameters
    ----------
    kind : str
        ``values`` floats (k, q); ``binary`` 0/1 (k,), 1 for the larger class; ``sign`` -1/+1 (k,), +1 for the larger;
        ``index`` int64 class numbers (k,); ``onehot`` floats (k, C), as stored.
    classes : tuple
        Sorted labels; empty for ``values``.
    """

    kind: TargetKind
    classes: tuple[Any, ...] = ()

    def encode(self, y: Array, dtype: str) -> Array:
        """Return the encoded targets of raw labels of shape (k,) or (k, q).

        Raises
        ------
        DataError
            A label that is none of the classes, with its count.
        """
        if self.kind in ("values", "onehot"):
            return np.ascontiguousarray(_numbers(y if y.ndim == 2 else y[:, None]), dtype=dtype)
        classes = np.asarray(self.classes)
        y = y.reshape(-1)
        if (classes.dtype.kind == "U") != (y.dtype.kind == "U"):
            y = y.astype(str) if classes.dtype.kind == "U" else _numbers(y)
        if len(classes) == 2:
            index: Array = (y == classes[1]).astype(np.int64)
        else:
            order = np.argsort(classes)
            index = order[np.minimum(np.searchsorted(classes, y, sorter=order), len(classes) - 1)]
        wrong = classes[index] != y
        if wrong.any():
            label = y[wrong][0]
            raise DataError(
                f"label {label!s} ({int((y == label).sum())} rows) is none of the {len(classes)} training classes",
                hint=f"the classes are {', '.join(map(str, self.classes[:10]))}",
            )
        if self.kind == "sign":
            index = 2 * index - 1
        return index.astype(np.int64) if self.kind == "index" else index.astype(dtype)


def _numbers(y: Array) -> Array:
    """Read text labels as numbers; others pass."""
    if y.dtype.kind != "U":
        return y
    try:
        return y.astype(np.float64)
    except ValueError as error:
        raise DataError(f"the target holds text where the model has numbers: {error}") from error
