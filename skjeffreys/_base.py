"""Where training starts: the base density of each member, a Gaussian mixture or standard normal."""

__all__ = ["GaussianMixtures", "fit_bases"]

import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from ._rows import Folds

#: Mixtures that are tried, by their number of components.
N_COMPONENTS = (1, 2, 3)
#: Smallest variance of a component, of standardised columns.
SMALLEST_VARIANCE = 1e-4
#: Rows that a mixture is fitted on, at most.
MAXIMUM_ROWS = 5000


class GaussianMixtures(nn.Module):
    """Gaussian mixtures, one for each member, evaluated together.

    Parameters
    ----------
    mixtures : sequence of GaussianMixture
        Fitted mixtures with full covariances, or None for a standard normal density.
    n_features : int
    """

    def __init__(self, mixtures: Sequence[GaussianMixture | None], n_features: int) -> None:
        super().__init__()
        self.n_members, self.n_features = len(mixtures), n_features
        self.n_components = max(1 if m is None else m.n_components for m in mixtures)
        shape = (self.n_members, self.n_components)
        weights = np.zeros(shape)
        means = np.zeros((*shape, n_features))
        # With factor A of the precision, A A^T, a row x of a component is (x - mean) A in
        # standard normal coordinates.
        factors = np.broadcast_to(np.eye(n_features), (*shape, n_features, n_features)).copy()
        for k, mixture in enumerate(mixtures):
            if mixture is None:
                weights[k, 0] = 1.0
            else:
                used = slice(mixture.n_components)
                weights[k, used] = mixture.weights_
                means[k, used] = mixture.means_
                factors[k, used] = mixture.precisions_cholesky_
        log_determinants = np.log(np.diagonal(factors, axis1=2, axis2=3)).sum(axis=2)
        with np.errstate(divide="ignore"):
            log_scales = np.log(weights) + log_determinants
        log_scales -= 0.5 * n_features * math.log(2 * math.pi)
        buffers = {
            "weights": weights,
            "means": means,
            "inverse_factors": np.linalg.inv(factors),
            # Side by side, so that one product serves all components of a member.
            "factors": factors.transpose(0, 2, 1, 3).reshape(self.n_members, n_features, -1),
            "offsets": -np.einsum("kci,kcij->kcj", means, factors).reshape(self.n_members, 1, -1),
            "log_scales": log_scales[:, None],
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32, device="cpu"))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each mixture at its rows, (n_members, n, d) to (n_members, n)."""
        z = z.expand(self.n_members, -1, -1)
        coordinates = torch.baddbmm(self.offsets, z, self.factors)
        squares = coordinates.unflatten(-1, (self.n_components, -1)).square().sum(dim=-1)
        return torch.logsumexp(self.log_scales - 0.5 * squares, dim=-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw rows from each mixture, with result of shape (n_members, n, d)."""
        device = self.means.device
        member = torch.arange(self.n_members, device=device)[:, None]
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        shape = (self.n_members, n, 1, self.n_features)
        noise = torch.randn(shape, generator=generator, dtype=self.means.dtype, device=device)
        rows = noise @ self.inverse_factors[member, component]
        return rows.squeeze(-2) + self.means[member, component]


def fit_bases(folds: Folds, seed: int) -> list[GaussianMixture | None]:
    """Choose a base for each member: for every second one a mixture, else a standard normal.

    The mixture is fitted to the rows of its member. Its number of components, or whether it
    is a standard normal density after all, is what does best on the rows left out. Mixtures
    follow correlated and clustered rows, and stand in the way where shapes are curved; an
    ensemble of both is ahead of either.
    """
    standard_normal = [None] * folds.n_members
    best_score, best = _held_out_score(standard_normal, folds), standard_normal
    for n_components in N_COMPONENTS:
        if n_components > folds.training.shape[1]:
            break
        mixtures = [_fit_mixture(rows, n_components, seed) for rows in _resampled(folds)]
        score = _held_out_score(mixtures, folds)
        if score > best_score:
            best_score, best = score, mixtures
    return [mixture if k % 2 else None for k, mixture in enumerate(best)]


def _fit_mixture(rows: np.ndarray, n_components: int, seed: int) -> GaussianMixture:
    mixture = GaussianMixture(n_components, reg_covar=SMALLEST_VARIANCE, random_state=seed)
    # In one thread the mixture is the same whatever the number of threads.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(rows)


def _resampled(folds: Folds) -> Iterator[np.ndarray]:
    """Yield the training rows of each member, each as often as its weight says.

    Systematic resampling: rows of equal weight come once each, unless they are too many.
    """
    n = min(folds.training.shape[1], MAXIMUM_ROWS)
    for training in folds.training:
        cumulative = folds.rows.weights[training].cumsum(dim=0).numpy()
        points = cumulative[-1] * (np.arange(n) + 0.5) / n
        index = training[np.searchsorted(cumulative, points)]
        yield folds.rows.values[index].numpy().astype(np.float64)


def _held_out_score(mixtures: list[GaussianMixture | None], folds: Folds) -> float:
    """Weighted mean log-density of the rows that each mixture has not seen."""
    rows = folds.rows.values[folds.held_out]
    weights = folds.rows.weights[folds.held_out]
    log_density = GaussianMixtures(mixtures, rows.shape[-1]).log_prob(rows)
    return float((weights * log_density).sum() / weights.sum())
