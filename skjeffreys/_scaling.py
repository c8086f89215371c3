"""Standardisation of the columns, with the Jacobian a density needs."""

__all__ = ["Scaling"]

import numpy as np
from sklearn.preprocessing import StandardScaler

#: Scale of a constant column, as a share of its value.
CONSTANT_SCALE = 0.01


class Scaling(StandardScaler):
    """A :class:`~sklearn.preprocessing.StandardScaler` that knows its Jacobian.

    If ``z = (x - mean) / scale`` then ``log p(x) = log p(z) + log_abs_det_jacobian_``.

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

    @property
    def log_abs_det_jacobian_(self) -> float:
        """``log |det dz/dx| = -sum(log scale)``, in nats."""
        return -float(np.log(self.scale_).sum())
