"""From columns in original units to the coordinates models see, with the Jacobian."""

__all__ = ["Coordinates", "Scaling"]

import numpy as np
from sklearn.preprocessing import StandardScaler

from ._bounds import Bounds

#: Scale of a constant column, as a share of its value.
CONSTANT_SCALE = 0.01


class Scaling(StandardScaler):
    """A :class:`~sklearn.preprocessing.StandardScaler` that gives constant columns a scale.

    Attributes
    ----------
    constant_columns_ : ndarray of int
        Columns without spread beyond rounding error. Their scale is one per cent of their
        value, or 0.01 if that is zero.
    """

    def fit(self, X, y=None, sample_weight=None):
        """Learn mean and scale of the columns of ``X``, ndarray of shape (n, d)."""
        super().fit(X, y, sample_weight)
        # StandardScaler gives a constant column scale 1 whatever its variance.
        self.constant_columns_ = np.flatnonzero(self.scale_ != np.sqrt(self.var_))
        value = np.abs(self.mean_[self.constant_columns_])
        self.scale_[self.constant_columns_] = CONSTANT_SCALE * np.where(value > 0, value, 1.0)
        return self


class Coordinates:
    """Standardised conditions beside targets that are freed of their bounds and standardised.

    Parameters
    ----------
    bounds : Bounds
        Of the targets.
    conditions : ndarray of shape (n, q)
        Of the training rows; ``q`` may be zero.
    targets : ndarray of shape (n, d)
        Of the training rows, inside the bounds.
    sample_weight : ndarray of shape (n,)
        Positive weights of the training rows.

    Attributes
    ----------
    bounds : Bounds
    n_conditions : int
    """

    def __init__(
        self,
        bounds: Bounds,
        conditions: np.ndarray,
        targets: np.ndarray,
        sample_weight: np.ndarray,
    ) -> None:
        self.bounds = bounds
        self.n_conditions = conditions.shape[1]
        table = np.hstack([conditions, bounds.transform(targets)])
        self._scaling = Scaling().fit(table, sample_weight=sample_weight)

    @property
    def constant_columns(self) -> np.ndarray:
        """Indices of the targets that are constant."""
        columns = self._scaling.constant_columns_ - self.n_conditions
        return columns[columns >= 0]

    def transform(self, conditions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Compute coordinates of rows that are inside the bounds, (n, q + d)."""
        return self._scaling.transform(np.hstack([conditions, self.bounds.transform(targets)]))

    def transform_conditions(self, conditions: np.ndarray) -> np.ndarray:
        """Compute the coordinates of conditions, (n, q)."""
        q = self.n_conditions
        return (conditions - self._scaling.mean_[:q]) / self._scaling.scale_[:q]

    def inverse_transform(self, rows: np.ndarray) -> np.ndarray:
        """Compute the targets of rows, (n, q + d) to (n, d)."""
        table = self._scaling.inverse_transform(rows)
        return self.bounds.inverse_transform(table[:, self.n_conditions :])

    def log_abs_det_jacobian(self, targets: np.ndarray) -> np.ndarray:
        """Logarithm of how much the coordinates stretch volumes at targets, (n, d) to (n,).

        ``log p(target | conditions)`` is that of the coordinates plus this, in nats.
        """
        scale = self._scaling.scale_[self.n_conditions :]
        return self.bounds.log_abs_det_jacobian(targets) - np.log(scale).sum()
