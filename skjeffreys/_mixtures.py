"""Gaussian mixtures of several members: joined, given heavy tails, evaluated and sampled."""

__all__ = [
    "GaussianMixtures",
    "Mixture",
    "join",
    "mean",
    "standard_normal",
    "with_tails",
]

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

#: Numbers in a block of intermediate results: few enough to stay in the cache.
BLOCK_SIZE = 2**18
#: Standard deviations of the wide components that are added to every mixture.
TAIL_SCALES = np.array([4.0, 16.0, 64.0, 256.0, 1024.0])
#: Weight of the first; that of the others falls with the cube of their scale. A larger one makes
#: far rows cheaper, by its logarithm, and puts more samples far from any row.
TAIL_WEIGHT = 1e-4


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


def with_tails(mixture: Mixture, tailed: np.ndarray) -> Mixture:
    """Add components of little weight around zero that are wide in the columns ``tailed``.

    Beyond the splines a flow has the tails of its base. A row far from all others, of which new
    tables have some, would otherwise cost the square of its distance in log-likelihood; this
    way it costs a few times the logarithm. The weights fall fast enough for the variance of
    samples to stay what it is, within 0.3%.
    """
    n_features = mixture.means.shape[1]
    weights = TAIL_WEIGHT * (TAIL_SCALES[0] / TAIL_SCALES) ** 3
    scales = np.where(tailed, TAIL_SCALES[:, None], 1.0)
    return Mixture(
        np.r_[(1 - weights.sum()) * mixture.weights, weights],
        np.r_[mixture.means, np.zeros((len(weights), n_features))],
        np.r_[mixture.factors, np.eye(n_features) / scales[:, None]],
    )


def join(mixtures: Iterable[Mixture], weights: np.ndarray) -> Mixture:
    """Return the mixture of mixtures, without those of weight zero."""
    parts = [
        mixture._replace(weights=weight * mixture.weights)
        for mixture, weight in zip(mixtures, weights, strict=True)
        if weight > 0
    ]
    return Mixture(*map(np.concatenate, zip(*parts, strict=True)))


def mean(mixtures: Sequence[Mixture]) -> Mixture:
    """Return the mixture of mixtures of equal weight."""
    return join(mixtures, np.full(len(mixtures), 1 / len(mixtures)))


class GaussianMixtures(nn.Module):
    """Gaussian mixtures, one for each member, evaluated together.

    The log-density of a component is a polynomial of second degree in the features, so one
    product of their monomials with coefficients serves all components of a member. Far from zero
    the terms of narrow components cancel: fitted mixtures need the double precision in which
    they are made; a normal density around zero does not.

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
        precisions = factors @ factors.swapaxes(-1, -2)
        linear = (precisions @ means[..., None])[..., 0]
        constants = np.log(np.diagonal(factors, axis1=2, axis2=3)).sum(axis=2)
        constants -= 0.5 * (self.n_features * math.log(2 * math.pi) + (means * linear).sum(axis=2))
        with np.errstate(divide="ignore"):
            constants += np.log(weights)
        # Diagonal covariances need no products of two different features.
        pairs = np.nonzero(np.triu((precisions != 0).any(axis=(0, 1))))
        quadratic = -np.where(np.equal(*pairs), 0.5, 1.0) * precisions[:, :, *pairs]
        coefficients = np.concatenate([linear, quadratic], axis=2)
        buffers = {
            "weights": weights,
            "means": means,
            "inverse_factors": np.linalg.inv(factors),
            "constants": constants[:, None],
            "coefficients": coefficients.swapaxes(1, 2),
            "pairs": np.stack(pairs),
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.tensor(value, device="cpu"))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each mixture at its rows, (n_members, n, q + d) to (n_members, n)."""
        z = z[..., -self.n_features :].expand(self.n_members, -1, -1)
        log_p = []
        widest = max(self.coefficients.shape[1:])  # Monomials or components.
        for rows in z.split(self._block_rows(widest), dim=1):
            monomials = torch.cat([rows, rows[..., self.pairs[0]] * rows[..., self.pairs[1]]], -1)
            components = torch.baddbmm(self.constants, monomials, self.coefficients)
            log_p.append(torch.logsumexp(components, dim=-1))
        # Beyond 1e154 squares overflow, and their differences are not numbers: the density is zero.
        overflows = z.square().sum(dim=-1).isinf()
        return torch.cat(log_p, dim=1).masked_fill(overflows, -math.inf)

    def distribution_function(self, z: Tensor) -> Tensor:
        """Distribution function, of one feature: (n_members, n, q + 1) to (n_members, n)."""
        means, scales = self.means[..., 0], self.inverse_factors[..., 0, 0]
        coordinates = (z[..., -1:] - means[:, None]) / scales[:, None]
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
        component of a mixture, the others are normal after the inverse distribution function. Where
        there are more components than nodes, most are not chosen: the nodes are moved so that their
        mean is that of the mixture.
        """
        engines = [
            SobolEngine(1 + self.n_features, scramble=True, seed=k) for k in range(self.n_members)
        ]
        uniform = torch.stack([engine.draw(n, dtype=torch.float64) for engine in engines])
        uniform = uniform.to(self.means).clamp(1e-9, 1 - 1e-9)  # Zero is a point of a sequence.
        component = torch.searchsorted(self.weights.cumsum(dim=1), uniform[..., 0].contiguous())
        component = component.clamp(max=self.n_components - 1)  # Where rounding leaves one short.
        nodes = self._colour(torch.special.ndtri(uniform[..., 1:]), component)
        return nodes + (self.weights[:, None] @ self.means - nodes.mean(dim=1, keepdim=True))

    def _colour(self, noise: Tensor, component: Tensor) -> Tensor:
        """From standard normal rows to those of the component of each, (n_members, n, d)."""
        member = torch.arange(self.n_members, device=noise.device)[:, None]
        size = self._block_rows(self.n_features**2)
        rows = [
            (some[..., None, :] @ self.inverse_factors[member, of]).squeeze(-2)
            for some, of in zip(noise.split(size, dim=1), component.split(size, dim=1), strict=True)
        ]
        return torch.cat(rows, dim=1) + self.means[member, component]

    def _block_rows(self, numbers: int) -> int:
        """How many rows of each member to compute at once, with so many numbers for each."""
        return max(1, BLOCK_SIZE // (self.n_members * numbers))
