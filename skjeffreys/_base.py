"""Where training starts: the base density of each member, a mixture with heavy tails."""

__all__ = ["GaussianMixtures", "Mixture", "fit_bases", "standard_normal"]

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from ._regression import LinearRegressions
from ._rows import Folds

#: Mixtures that are tried, by their number of components.
N_COMPONENTS = (1, 2, 3)
#: Smallest variance of a component, of standardised columns.
SMALLEST_VARIANCE = 1e-4
#: Rows that a mixture is fitted on, at most.
MAXIMUM_ROWS = 5000
#: Standard deviations of the wide components of every base.
TAIL_SCALES = np.array([4.0, 16.0, 64.0, 256.0, 1024.0])
#: Weight of the first; that of the others falls with the cube of their scale.
TAIL_WEIGHT = 1e-3


class Mixture(NamedTuple):
    """A Gaussian mixture with ``k`` components.

    With the factor ``A`` of a precision ``A A^T``, rows ``(x - mean) A`` are standard normal.
    """

    #: Of shape (k,).
    weights: np.ndarray
    #: Of shape (k, d).
    means: np.ndarray
    #: Of shape (k, d, d).
    factors: np.ndarray


def standard_normal(n_features: int) -> Mixture:
    """Return the standard normal density as a mixture of one component."""
    return Mixture(np.ones(1), np.zeros((1, n_features)), np.eye(n_features)[None])


def _with_tails(mixture: Mixture, tailed: np.ndarray) -> Mixture:
    """Add components of little weight around zero that are wide in the columns ``tailed``.

    Beyond the splines a flow has the tails of its base. A row far from all others, of which new
    tables have some, would otherwise cost the square of its distance in log-likelihood; this
    way it costs a few times the logarithm. The weights fall fast enough for the variance of
    samples to stay what it is, within 2%.
    """
    n_features = mixture.means.shape[1]
    weights = TAIL_WEIGHT * (TAIL_SCALES[0] / TAIL_SCALES) ** 3
    scales = np.where(tailed, TAIL_SCALES[:, None], 1.0)
    return Mixture(
        np.r_[(1 - weights.sum()) * mixture.weights, weights],
        np.r_[mixture.means, np.zeros((len(weights), n_features))],
        np.r_[mixture.factors, np.eye(n_features) / scales[:, None]],
    )


class GaussianMixtures(nn.Module):
    """Gaussian mixtures, one for each member, evaluated together.

    Rows may begin with columns of conditions, on which the mixtures do not depend.

    Parameters
    ----------
    mixtures : sequence of Mixture
    """

    def __init__(self, mixtures: Sequence[Mixture]) -> None:
        super().__init__()
        self.n_members, self.n_features = len(mixtures), mixtures[0].means.shape[1]
        self.n_components = max(len(mixture.weights) for mixture in mixtures)
        shape = (self.n_members, self.n_components)
        weights = np.zeros(shape)  # of components that a smaller mixture does not have
        means = np.zeros((*shape, self.n_features))
        factors = np.broadcast_to(np.eye(self.n_features), (*shape, *[self.n_features] * 2)).copy()
        for k, mixture in enumerate(mixtures):
            used = slice(len(mixture.weights))
            weights[k, used], means[k, used], factors[k, used] = mixture
        log_determinants = np.log(np.diagonal(factors, axis1=2, axis2=3)).sum(axis=2)
        with np.errstate(divide="ignore"):
            log_scales = np.log(weights) + log_determinants
        log_scales -= 0.5 * self.n_features * math.log(2 * math.pi)
        side_by_side = factors.transpose(0, 2, 1, 3)
        buffers = {
            "weights": weights,
            "means": means,
            "inverse_factors": np.linalg.inv(factors),
            # Side by side, so that one product serves all components of a member.
            "factors": side_by_side.reshape(self.n_members, self.n_features, -1),
            "offsets": -np.einsum("kci,kcij->kcj", means, factors).reshape(self.n_members, 1, -1),
            "log_scales": log_scales[:, None],
        }
        for name, value in buffers.items():
            value = torch.as_tensor(value, dtype=torch.float32, device="cpu")
            self.register_buffer(name, value)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each mixture at its rows, (n_members, n, q + d) to (n_members, n)."""
        z = z[..., -self.n_features :].expand(self.n_members, -1, -1)
        coordinates = torch.baddbmm(self.offsets, z, self.factors)
        squares = coordinates.unflatten(-1, (self.n_components, -1)).square().sum(dim=-1)
        return torch.logsumexp(self.log_scales - 0.5 * squares, dim=-1)

    def distribution_function(self, z: Tensor) -> Tensor:
        """Distribution function, of one feature: (n_members, n, q + 1) to (n_members, n)."""
        coordinates = torch.baddbmm(self.offsets, z[..., -1:], self.factors)
        return (self.weights[:, None] * torch.special.ndtr(coordinates)).sum(dim=-1)

    def sample(self, conditions: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a row for each row of conditions, (n_members, n, q) to (n_members, n, q + d).

        Conditions of shape (n, q) are those of every member.
        """
        n, device = conditions.shape[-2], self.means.device
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        shape = (self.n_members, n, self.n_features)
        noise = torch.randn(shape, generator=generator, dtype=self.means.dtype, device=device)
        rows = self._colour(noise, component)
        return torch.cat([conditions.expand(self.n_members, -1, -1), rows], dim=-1)

    def quadrature(self, n: int) -> Tensor:
        """Nodes of equal weight for expectations, (n_members, n, d): a scrambled Sobol sequence.

        A power of two is best for ``n``. The first coordinate of the sequence chooses the
        component of a mixture, the others are normal after the inverse distribution function.
        """
        engines = [
            SobolEngine(1 + self.n_features, scramble=True, seed=k) for k in range(self.n_members)
        ]
        uniform = torch.stack([engine.draw(n, dtype=torch.float64) for engine in engines])
        uniform = uniform.to(self.means).clamp(1e-9, 1 - 1e-9)  # Zero is a point of a sequence.
        component = torch.searchsorted(self.weights.cumsum(dim=1), uniform[..., 0].contiguous())
        component = component.clamp(max=self.n_components - 1)  # Where rounding leaves one short.
        return self._colour(torch.special.ndtri(uniform[..., 1:]), component)

    def _colour(self, noise: Tensor, component: Tensor) -> Tensor:
        """From standard normal rows to those of the component of each, (n_members, n, d)."""
        member = torch.arange(self.n_members, device=noise.device)[:, None]
        rows = noise[..., None, :] @ self.inverse_factors[member, component]
        return rows.squeeze(-2) + self.means[member, component]


def fit_bases(
    folds: Folds, regressions: LinearRegressions, tailed: np.ndarray, seed: int
) -> GaussianMixtures:
    """Choose a base for each member: for every second one a mixture, else a standard normal.

    The mixture is fitted to the rows of its member. Its number of components, or whether it
    is a standard normal density after all, is what does best on the rows left out. Mixtures
    follow correlated and clustered rows, and stand in the way where shapes are curved; an
    ensemble of both is ahead of either.

    What is modelled are the residuals of ``regressions``, which without conditions are the rows
    themselves. All bases get heavy tails in the columns ``tailed``, a mask of shape (d,).
    """
    normal = standard_normal(folds.rows.targets.shape[1])
    best = [normal] * folds.n_members
    training = regressions.residuals(folds.rows.values[_resample(folds)]).double().numpy()
    held_out = regressions.residuals(folds.rows.values[folds.held_out])

    def held_out_score(mixtures: list[Mixture]) -> float:
        bases = GaussianMixtures([_with_tails(mixture, tailed) for mixture in mixtures])
        return float(folds.held_out_means(bases.log_prob(held_out)).mean())

    best_score = held_out_score(best)
    for n_components in N_COMPONENTS:
        if n_components > training.shape[1]:
            break
        mixtures = [_fit_mixture(rows, n_components, seed) for rows in training]
        score = held_out_score(mixtures)
        if score > best_score:
            best_score, best = score, mixtures
    bases = [mixture if k % 2 else normal for k, mixture in enumerate(best)]
    return GaussianMixtures([_with_tails(base, tailed) for base in bases])


def _fit_mixture(rows: np.ndarray, n_components: int, seed: int) -> Mixture:
    mixture = GaussianMixture(n_components, reg_covar=SMALLEST_VARIANCE, random_state=seed)
    # In one thread the mixture is the same whatever the number of threads.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(rows)
    return Mixture(mixture.weights_, mixture.means_, mixture.precisions_cholesky_)


def _resample(folds: Folds) -> Tensor:
    """Return indices of the training rows of each member, each as often as its weight says.

    Systematic resampling: rows of equal weight come once each, unless they are too many.
    """
    n = min(folds.training.shape[1], MAXIMUM_ROWS)
    cumulative = folds.rows.weights[folds.training].cumsum(dim=1)
    points = cumulative[:, -1:] * torch.from_numpy((np.arange(n) + 0.5) / n)
    return folds.training.gather(1, torch.searchsorted(cumulative, points))
