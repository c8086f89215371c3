"""Columns bent towards a normal distribution, with the Jacobian."""

__all__ = ["PowerTransform"]

import numpy as np
from scipy.special import boxcox1p, inv_boxcox1p

#: Exponents to choose from, each with its mirror image: one is the identity, zero a logarithm.
EXPONENTS = np.arange(21) / 10


class PowerTransform:
    r"""A Yeo-Johnson transform of each column, straight beyond the training rows.

    .. math::

        \psi_\lambda(x) = \frac{(1 + x)^\lambda - 1}{\lambda} \text{ for } x \ge 0, \qquad
        -\psi_{2 - \lambda}(-x) \text{ for } x < 0,

    then standardised. The exponent is the one under which the column is most likely normal.
    What rows of the training data do not show is not extrapolated: beyond the smallest and the
    largest of them the transform goes on along its tangent, so that it has the whole real line
    as its range and samples far out stay in proportion. (The
    :class:`~sklearn.preprocessing.PowerTransformer` of scikit-learn has neither weights nor that.)

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Standardised training rows. A constant column, of conditions, is only shifted to zero.
    weights : ndarray of shape (n,)
        Their sum is one.

    Attributes
    ----------
    exponents : ndarray of shape (d,)

    References
    ----------
    Yeo and Johnson, *A New Family of Power Transformations to Improve Normality or Symmetry*,
    Biometrika 87, 2000.
    """

    def __init__(self, rows: np.ndarray, weights: np.ndarray) -> None:
        rows = rows.astype(float)
        self.exponents = np.array([_best_exponent(column, weights) for column in rows.T])
        bent = _bend(rows, self.exponents)
        self._mean, self._scale = _moments(bent, weights)
        self._edges = np.stack([rows.min(axis=0), rows.max(axis=0)])
        self._bent_edges = np.stack([bent.min(axis=0), bent.max(axis=0)])

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """Bend rows, (n, d)."""
        inside = np.clip(rows, *self._edges)
        slope = np.exp(_log_slope(inside, self.exponents))
        bent = _bend(inside, self.exponents) + slope * (rows - inside)
        return (bent - self._mean) / self._scale

    def inverse_transform(self, rows: np.ndarray) -> np.ndarray:
        """Bend rows back, (n, d)."""
        bent = rows * self._scale + self._mean
        inside = np.clip(bent, *self._bent_edges)
        result = _unbend(inside, self.exponents)
        slope = np.exp(_log_slope(result, self.exponents))
        return result + (bent - inside) / slope

    def log_abs_det_jacobian(self, rows: np.ndarray) -> np.ndarray:
        """Logarithm of how much :meth:`transform` stretches at each value, (n, d)."""
        inside = np.clip(rows, *self._edges)
        return _log_slope(inside, self.exponents) - np.log(self._scale)


def _best_exponent(column: np.ndarray, weights: np.ndarray) -> float:
    """Return the exponent with the largest likelihood of a normal density."""
    columns = np.repeat(column[:, None], len(EXPONENTS), axis=1)
    _, scale = _moments(_bend(columns, EXPONENTS), weights)
    log_likelihood = weights @ _log_slope(columns, EXPONENTS) - np.log(scale)
    return EXPONENTS[log_likelihood.argmax()]


def _moments(rows, weights):
    """Return means and standard deviations, one where there is no spread."""
    mean = weights @ rows
    scale = np.sqrt(weights @ (rows - mean) ** 2)
    return mean, np.where(scale > 0, scale, 1.0)


def _bend(x, exponents):
    # Either term is zero where the other is not.
    return boxcox1p(x.clip(min=0), exponents) - boxcox1p((-x).clip(min=0), 2 - exponents)


def _unbend(y, exponents):
    return inv_boxcox1p(y.clip(min=0), exponents) - inv_boxcox1p((-y).clip(min=0), 2 - exponents)


def _log_slope(x, exponents):
    return (exponents - 1) * np.sign(x) * np.log1p(np.abs(x))
