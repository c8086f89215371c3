"""From columns in original units to the coordinates that models see, with the Jacobian."""

__all__ = ["Coordinates", "Scaling", "Standardisation"]

from dataclasses import replace

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from ._bounds import Bounds
from ._power import fit_power_transform
from ._rows import Rows

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


class Standardisation:
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
        """Standardise rows that are inside the bounds, (n, q + d)."""
        return np.hstack([self.transform_conditions(conditions), self.transform_targets(targets)])

    def transform_conditions(self, conditions: np.ndarray) -> np.ndarray:
        """Standardise conditions, (n, q)."""
        q = self.n_conditions
        return (conditions - self._scaling.mean_[:q]) / self._scaling.scale_[:q]

    def transform_targets(self, targets: np.ndarray) -> np.ndarray:
        """Standardise targets that are inside the bounds, (n, d)."""
        q = self.n_conditions
        return (self.bounds.transform(targets) - self._scaling.mean_[q:]) / self._scaling.scale_[q:]

    def inverse_transform_targets(self, targets: np.ndarray) -> np.ndarray:
        """Compute targets from standardised ones, (n, d)."""
        q = self.n_conditions
        return self.bounds.inverse_transform(
            targets * self._scaling.scale_[q:] + self._scaling.mean_[q:]
        )

    def log_abs_det_jacobian(self, targets: np.ndarray) -> np.ndarray:
        """Logarithm of how much targets are stretched at each row, (n, d) to (n,)."""
        scale = self._scaling.scale_[self.n_conditions :]
        return self.bounds.log_abs_det_jacobian(targets) - np.log(scale).sum()


class Coordinates:
    """Standardised columns, bent towards a normal distribution: what models see.

    Parameters
    ----------
    standardisation : Standardisation
    rows : Rows
        Standardised training rows.

    Attributes
    ----------
    power : PowerTransform
        How standardised targets are bent.
    """

    def __init__(self, standardisation: Standardisation, rows: Rows) -> None:
        self._standardisation = standardisation
        weights = rows.weights.numpy()
        self._conditions_power = fit_power_transform(rows.conditions.numpy(), weights)
        self.power = fit_power_transform(rows.targets.numpy(), weights)

    def bend(self, rows: Rows) -> Rows:
        """Compute the coordinates of standardised rows."""
        conditions = self._conditions_power(rows.conditions.double())
        targets = self.power(rows.targets.double())
        return replace(rows, values=torch.cat([conditions, targets], dim=1).float())

    def transform(self, conditions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Compute coordinates of rows that are inside the bounds, (n, q + d)."""
        targets = self._standardisation.transform_targets(targets)
        targets = self.power(torch.from_numpy(targets)).numpy()
        return np.hstack([self.transform_conditions(conditions), targets])

    def transform_conditions(self, conditions: np.ndarray) -> np.ndarray:
        """Compute the coordinates of conditions, (n, q)."""
        conditions = self._standardisation.transform_conditions(conditions)
        return self._conditions_power(torch.from_numpy(conditions)).numpy()

    def inverse_transform(self, rows: np.ndarray) -> np.ndarray:
        """Compute the targets of rows, (n, q + d) to (n, d)."""
        targets = torch.from_numpy(rows[:, self._standardisation.n_conditions :])
        return self._standardisation.inverse_transform_targets(self.power.inv(targets).numpy())

    def log_abs_det_jacobian(self, targets: np.ndarray) -> np.ndarray:
        """Logarithm of how much the coordinates stretch volumes at targets, (n, d) to (n,).

        ``log p(target | conditions)`` is that of the coordinates plus this, in nats.
        """
        standardised = torch.from_numpy(self._standardisation.transform_targets(targets))
        _, bending = self.power.call_and_ladj(standardised)
        return self._standardisation.log_abs_det_jacobian(targets) + bending.sum(dim=1).numpy()
