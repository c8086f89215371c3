"""Columns bent towards a normal distribution and back, with the Jacobian."""

__all__ = ["PowerTransform", "Unbending", "fit_power_transform"]

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.lazy import UnconditionalTransform
from zuko.transforms import DependentTransform

#: Exponents to choose from, each with its mirror image: one is the identity, zero a logarithm.
EXPONENTS = np.arange(21) / 10


class PowerTransform(Transform):
    r"""A Yeo-Johnson transform of each column, straight beyond the training rows.

    .. math::

        \psi_\lambda(x) = \frac{(1 + x)^\lambda - 1}{\lambda} \text{ for } x \ge 0, \qquad
        -\psi_{2 - \lambda}(-x) \text{ for } x < 0,

    then standardised. What rows of the training data do not show is not extrapolated: beyond the
    smallest and the largest of them the transform goes on along its tangent, so that it has the
    whole real line as its range and samples far out stay in proportion. (The
    :class:`~sklearn.preprocessing.PowerTransformer` of scikit-learn has neither weights nor that.)

    Parameters
    ----------
    exponents, means, scales : Tensor of shape (d,), float64
        The exponents, and what bent columns are standardised by.
    edges : Tensor of shape (2, d), float64
        Smallest and largest value of each column.

    References
    ----------
    Yeo and Johnson, *A New Family of Power Transformations to Improve Normality or Symmetry*,
    Biometrika 87, 2000.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, exponents: Tensor, means: Tensor, scales: Tensor, edges: Tensor) -> None:
        super().__init__()
        self.parameters = exponents, means, scales, edges
        self.exponents, self._means, self._scales, self._edges = self.parameters

    def _call(self, x: Tensor) -> Tensor:
        inside = x.clamp(*self._edges)
        slope = _log_slope(inside, self.exponents).exp()
        bent = _bend(inside, self.exponents) + slope * (x - inside)
        return (bent - self._means) / self._scales

    def _inverse(self, y: Tensor) -> Tensor:
        bent = y * self._scales + self._means
        inside = bent.clamp(*_bend(self._edges, self.exponents))
        x = _unbend(inside, self.exponents)
        slope = _log_slope(x, self.exponents).exp()
        return x + (bent - inside) / slope

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of how much each value of ``x`` is stretched, of the shape of ``x``."""
        return _log_slope(x.clamp(*self._edges), self.exponents) - self._scales.log()


class Unbending(nn.Module):
    """Features as they were before they were bent, to fit mixtures to.

    It stands where regressions on conditions do, of which there are none.

    Parameters
    ----------
    power : PowerTransform
        By which they were bent.
    """

    n_conditions = 0

    def __init__(self, power: PowerTransform) -> None:
        super().__init__()
        self.power = UnconditionalTransform(PowerTransform, *power.parameters, buffer=True)

    def first(self, n_members: int) -> "Unbending":
        """Return that of the first members: it is the same for all."""
        return self

    def transform(self, conditions: Tensor) -> DependentTransform:
        """From bent features to those before."""
        return DependentTransform(self.power().inv, 1)

    def preprocess(self, rows: Tensor) -> Tensor:
        """Compute features before they were bent, (n_members, n, d)."""
        return self.power().inv(rows)


def fit_power_transform(rows: np.ndarray, weights: np.ndarray) -> PowerTransform:
    """Find the exponent of each column under which it is most likely normal.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Standardised training rows. A constant column, of conditions, is only shifted to zero.
    weights : ndarray of shape (n,)
        Their sum is one.
    """
    rows = torch.from_numpy(rows.astype(float))
    exponents = np.array([_best_exponent(column, weights) for column in rows.unbind(dim=1)])
    exponents = torch.from_numpy(exponents)
    means, scales = _moments(_bend(rows, exponents).numpy(), weights)
    edges = torch.stack([rows.min(dim=0).values, rows.max(dim=0).values])
    return PowerTransform(exponents, torch.from_numpy(means), torch.from_numpy(scales), edges)


def _best_exponent(column: Tensor, weights: np.ndarray) -> float:
    """Return the exponent with the largest likelihood of a normal density."""
    exponents = torch.from_numpy(EXPONENTS)
    _, scales = _moments(_bend(column[:, None], exponents).numpy(), weights)
    log_slope = _log_slope(column[:, None], exponents).numpy()
    return EXPONENTS[(weights @ log_slope - np.log(scales)).argmax()]


def _moments(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard deviations, one where there is no spread."""
    means = weights @ rows
    scales = np.sqrt(weights @ (rows - means) ** 2)
    return means, np.where(scales > 0, scales, 1.0)


def _bend(x: Tensor, exponents: Tensor) -> Tensor:
    # Either term is zero where the other is not.
    return _power(x.clamp(min=0), exponents) - _power((-x).clamp(min=0), 2 - exponents)


def _unbend(y: Tensor, exponents: Tensor) -> Tensor:
    return _root(y.clamp(min=0), exponents) - _root((-y).clamp(min=0), 2 - exponents)


def _power(x: Tensor, exponents: Tensor) -> Tensor:
    """``((1 + x)^exponent - 1) / exponent``, or its limit at zero, a logarithm."""
    divisor = exponents.where(exponents != 0, 1.0)
    return torch.where(exponents != 0, (exponents * x.log1p()).expm1() / divisor, x.log1p())


def _root(y: Tensor, exponents: Tensor) -> Tensor:
    """Inverse of :func:`_power`."""
    divisor = exponents.where(exponents != 0, 1.0)
    return torch.where(exponents != 0, (exponents * y).log1p() / divisor, y).expm1()


def _log_slope(x: Tensor, exponents: Tensor) -> Tensor:
    return (exponents - 1) * x.sign() * x.abs().log1p()
