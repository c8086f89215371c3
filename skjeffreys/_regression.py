"""What conditions say of the location of targets before training: linear regressions."""

__all__ = ["LinearRegressions", "fit_regressions", "no_regressions"]

import math

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from zuko.transforms import DependentTransform, MonotonicAffineTransform

from ._rows import Folds

#: Penalties that are tried, per row: from none to no regression.
PENALTIES = np.logspace(-6, 2, 9)
#: Smallest standard deviation of residuals, of standardised targets.
SMALLEST_SCALE = 1e-2
#: Smallest slope of a transform, which bounds the logarithm of its scale softly.
SLOPE = 1e-6


class LinearRegressions(nn.Module):
    """Regressions of standardised targets on conditions, one for each member.

    Parameters
    ----------
    coefficients : Tensor of shape (n_members, q, d)
    intercepts : Tensor of shape (n_members, 1, d)
    scales : Tensor of shape (d,)
        Standard deviations of residuals at rows that were left out.
    """

    def __init__(self, coefficients: Tensor, intercepts: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("coefficients", coefficients)
        self.register_buffer("intercepts", intercepts)
        self.register_buffer("scales", scales)

    def first(self, n_members: int) -> "LinearRegressions":
        """Return those of the first members."""
        coefficients, intercepts = self.coefficients[:n_members], self.intercepts[:n_members]
        return LinearRegressions(coefficients, intercepts, self.scales)

    @property
    def n_conditions(self) -> int:
        """Number of columns of conditions."""
        return self.coefficients.shape[1]

    def preprocess(self, rows: Tensor) -> Tensor:
        """Compute standardised residuals, (n_members, n, q + d) to (n_members, n, d)."""
        conditions, targets = rows.tensor_split([self.n_conditions], dim=-1)
        return self.transform(conditions)(targets)

    def transform(self, conditions: Tensor) -> DependentTransform:
        """From targets to standardised residuals, given conditions (n_members, n, q)."""
        location = torch.baddbmm(self.intercepts, conditions, self.coefficients)
        # Undo the soft bound on the logarithm of the scale.
        log_scale = -self.scales.log()
        unbounded = log_scale / (1 - (log_scale / math.log(SLOPE)).abs())
        shift = -location / self.scales
        scale = unbounded.expand_as(shift)
        return DependentTransform(MonotonicAffineTransform(shift, scale, slope=SLOPE), 1)


def no_regressions(n_members: int, n_conditions: int, n_targets: int) -> LinearRegressions:
    """Return those that leave the targets as they are."""
    return _from_arrays(
        np.zeros((n_members, n_conditions, n_targets)),
        np.zeros((n_members, 1, n_targets)),
        np.ones(n_targets),
    )


def fit_regressions(folds: Folds) -> LinearRegressions:
    """Fit a ridge regression to the training rows of each member.

    The penalty is what does best on the rows that the members leave out; so are the scales
    those of residuals there, which a regression on many conditions does not fake.
    """
    rows = folds.rows
    best = no_regressions(folds.n_members, rows.n_conditions, rows.targets.shape[1])
    if rows.n_conditions == 0:
        return best
    best_error = math.inf
    for penalty in PENALTIES:
        regressions = _fit_ridge(folds, penalty)
        squares = regressions.preprocess(rows.values[folds.held_out]).square()
        variances = torch.stack([folds.held_out_means(column) for column in squares.unbind(-1)])
        error = float(variances.mean())
        if error < best_error:
            scales = variances.mean(dim=1).sqrt().clamp(min=SMALLEST_SCALE).float()
            best, best_error = regressions, error
            best.scales.copy_(scales)
    return best


def _fit_ridge(folds: Folds, penalty: float) -> LinearRegressions:
    """Fit one to each member, without standardisation of the residuals."""
    conditions = folds.rows.conditions.double().numpy()
    targets = folds.rows.targets.double().numpy()
    coefficients, intercepts = [], []
    for training in folds.training.numpy():
        weights = folds.rows.weights.numpy()[training]
        ridge = Ridge(alpha=penalty * weights.sum())
        ridge.fit(conditions[training], targets[training], sample_weight=weights)
        # For a single target scikit-learn drops its axis.
        coefficients.append(np.atleast_2d(ridge.coef_).T)
        intercepts.append(np.atleast_2d(ridge.intercept_))
    return _from_arrays(np.stack(coefficients), np.stack(intercepts), np.ones(targets.shape[1]))


def _from_arrays(*arrays: np.ndarray) -> LinearRegressions:
    """Convert to single precision on the CPU, whatever torch's defaults."""
    return LinearRegressions(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))
