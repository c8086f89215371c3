"""Mixtures of normal and Student's t densities: joined, given heavy tails, evaluated, sampled."""

__all__ = [
    "Mixture",
    "Mixtures",
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
from scipy.special import gammaincinv, gammaln, stdtr
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
    r"""A mixture of ``k`` components, each a normal density or one of Student's t.

    .. math:: t(x) = \frac{\Gamma(\frac{\nu + d}2) |A|}{\Gamma(\frac\nu2) (\nu \pi)^{d/2}}
        \Big[ 1 + \frac{|z|^2}\nu \Big]^{-\frac{\nu + d}2}, \qquad z = (x - m) A

    with the mean ``m``, the factor ``A`` of a precision ``A A^T`` and ``nu`` degrees of freedom. If
    these are infinite, ``z`` is standard normal.
    """

    #: Of shape (k,).
    weights: np.ndarray
    #: Of shape (k, d).
    means: np.ndarray
    #: Of shape (k, d, d).
    factors: np.ndarray
    #: Of shape (k,), infinite for normal components.
    degrees_of_freedom: np.ndarray


def standard_normal(n_features: int) -> Mixture:
    """Return the standard normal density as a mixture of one component."""
    return Mixture(
        np.ones(1), np.zeros((1, n_features)), np.eye(n_features)[None], np.full(1, np.inf)
    )


def with_tails(mixture: Mixture, tailed: np.ndarray) -> Mixture:
    """Add normal components of little weight around zero that are wide in the columns ``tailed``.

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
        np.r_[mixture.degrees_of_freedom, np.full(len(weights), np.inf)],
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


def _side_by_side(mixtures: Sequence[Mixture]) -> Mixture:
    """Return arrays with a leading axis of mixtures, Student's t first: each kind is a slice.

    Components that a mixture does not have, but others have, are there with weight zero.
    """
    n_members, n_features = len(mixtures), mixtures[0].means.shape[1]
    normal = [np.isinf(mixture.degrees_of_freedom) for mixture in mixtures]
    n_student = max((~each).sum() for each in normal)
    shape = (n_members, n_student + max(each.sum() for each in normal))
    weights, means = np.zeros(shape), np.zeros((*shape, n_features))
    factors = np.broadcast_to(np.eye(n_features), (*shape, n_features, n_features)).copy()
    degrees = np.where(np.arange(shape[1]) < n_student, 1.0, np.inf)
    degrees = np.broadcast_to(degrees, shape).copy()
    for k, mixture in enumerate(mixtures):
        of_normal = n_student + np.cumsum(normal[k])
        places = np.where(normal[k], of_normal, np.cumsum(~normal[k])) - 1
        weights[k, places], means[k, places], factors[k, places], degrees[k, places] = mixture
    return Mixture(weights, means, factors, degrees)


class Mixtures(nn.Module):
    """Mixtures, one for each member, evaluated together.

    The log-density of a normal component is a polynomial of second degree in the features, and
    so is what is raised to a power in Student's t. One product of their monomials with
    coefficients serves all components of a member. Far from zero the terms of narrow components
    cancel: fitted mixtures need the double precision in which they are made; a normal density
    around zero does not.

    Rows may begin with columns of conditions, on which the mixtures do not depend.

    Parameters
    ----------
    mixtures : sequence of Mixture
    """

    def __init__(self, mixtures: Sequence[Mixture]) -> None:
        super().__init__()
        weights, means, factors, degrees = _side_by_side(mixtures)
        self.n_members, self.n_components, self.n_features = means.shape
        self.n_student = int(np.isfinite(degrees[0]).sum())
        precisions = factors @ factors.swapaxes(-1, -2)
        linear = (precisions @ means[..., None])[..., 0]
        # Diagonal covariances need no products of two different features.
        pairs = np.nonzero(np.triu((precisions != 0).any(axis=(0, 1))))
        quadratic = -np.where(np.equal(*pairs), 0.5, 1.0) * precisions[:, :, *pairs]
        coefficients = np.concatenate([linear, quadratic], axis=2)
        intercepts = -0.5 * (means * linear).sum(axis=2)
        with np.errstate(divide="ignore"):
            constants = np.log(weights)
        constants += np.log(np.diagonal(factors, axis1=2, axis2=3)).sum(axis=2)
        student, normal = np.s_[:, : self.n_student], np.s_[:, self.n_student :]
        constants[normal] -= 0.5 * self.n_features * math.log(2 * math.pi)
        intercepts[normal] += constants[normal]
        # From minus half a square to one and the square over the degrees of freedom.
        nu = degrees[student]
        coefficients[student] *= -2 / nu[..., None]
        intercepts[student] = 1 - 2 / nu * intercepts[student]
        exponents = -0.5 * (nu + self.n_features)
        constants[student] -= 0.5 * self.n_features * np.log(nu * math.pi)
        constants[student] += gammaln(-exponents) - gammaln(0.5 * nu)
        buffers = {
            "weights": weights,
            "means": means,
            "inverse_factors": np.linalg.inv(factors),
            "degrees_of_freedom": degrees,
            "intercepts": intercepts[:, None],
            "coefficients": coefficients.swapaxes(1, 2),
            "pairs": np.stack(pairs),
            "exponents": exponents[:, None],
            "constants": constants[student][:, None],
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
            components = torch.baddbmm(self.intercepts, monomials, self.coefficients)
            if self.n_student > 0:  # The base of flows, in every step of training, has none.
                student, normal = components.tensor_split([self.n_student], dim=-1)
                # Rounding aside, what is raised to a power is one and a square.
                student = torch.addcmul(self.constants, self.exponents, student.clamp(min=1).log())
                components = torch.cat([student, normal], dim=-1)
            log_p.append(torch.logsumexp(components, dim=-1))
        # Beyond 1e154 squares overflow, and their differences are not numbers: the density is zero.
        overflows = z.square().sum(dim=-1).isinf()
        return torch.cat(log_p, dim=1).masked_fill(overflows, -math.inf)

    def distribution_function(self, z: Tensor) -> Tensor:
        """Distribution function, of one feature: (n_members, n, q + 1) to (n_members, n)."""
        means, scales = self.means[..., 0], self.inverse_factors[..., 0, 0]
        coordinates = (z[..., -1:] - means[:, None]) / scales[:, None]
        student, normal = coordinates.tensor_split([self.n_student], dim=-1)
        degrees = self.degrees_of_freedom[:, None, : self.n_student].numpy(force=True)
        student = torch.from_numpy(stdtr(degrees, student.numpy(force=True))).to(normal)
        values = torch.cat([student, torch.special.ndtr(normal)], dim=-1)
        return (self.weights[:, None] * values).sum(dim=-1)

    def sample(self, conditions: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a row for each row of conditions, (n_members, n, q) to (n_members, n, q + d).

        Conditions of shape (n, q) are those of every member.
        """
        n, device = conditions.shape[-2], self.means.device
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        shape = (self.n_members, n, self.n_features)
        options = {"generator": generator, "dtype": self.means.dtype, "device": device}
        noise = torch.randn(shape, **options)
        if self.n_student > 0:
            noise *= self._spread(component, torch.rand(component.shape, **options))
        rows = self._place(noise, component)
        return torch.cat([conditions.expand(self.n_members, -1, -1), rows], dim=-1)

    def quadrature(self, n: int) -> Tensor:
        """Nodes of equal weight for expectations, (n_members, n, d): a scrambled Sobol sequence.

        A power of two is best for ``n``. The first coordinate of the sequence chooses the
        component of a mixture, the others are normal after the inverse distribution function, but
        for a last one that spreads Student's t. Where there are more components than nodes, most
        are not chosen: the nodes are moved so that their mean is that of the mixture.
        """
        engines = [
            SobolEngine(1 + self.n_features + (self.n_student > 0), scramble=True, seed=k)
            for k in range(self.n_members)
        ]
        uniform = torch.stack([engine.draw(n, dtype=torch.float64) for engine in engines])
        uniform = uniform.to(self.means).clamp(1e-9, 1 - 1e-9)  # Zero is a point of a sequence.
        component = torch.searchsorted(self.weights.cumsum(dim=1), uniform[..., 0].contiguous())
        component = component.clamp(max=self.n_components - 1)  # Where rounding leaves one short.
        noise = torch.special.ndtri(uniform[..., 1 : 1 + self.n_features])
        if self.n_student > 0:
            noise *= self._spread(component, uniform[..., -1])
        nodes = self._place(noise, component)
        return nodes + (self.weights[:, None] @ self.means - nodes.mean(dim=1, keepdim=True))

    def _spread(self, component: Tensor, uniform: Tensor) -> Tensor:
        """Return scales that make normal rows those of Student's t, of shape (n_members, n, 1).

        The root of the degrees of freedom over a chi-squared number, which follows from a
        uniform one; one for normal components. ``component`` and ``uniform`` are (n_members, n).
        """
        half = 0.5 * self.degrees_of_freedom.gather(1, component)
        student = component < self.n_student
        half, level = half[student], uniform[student].numpy(force=True)
        gamma = torch.from_numpy(gammaincinv(half.numpy(force=True), level)).to(half)
        return torch.ones_like(uniform).masked_scatter(student, (half / gamma).sqrt())[..., None]

    def _place(self, noise: Tensor, component: Tensor) -> Tensor:
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
