"""Gaussian mixtures of several members: fitted, given heavy tails, evaluated and sampled."""

__all__ = [
    "BENT_COVARIANCES",
    "COVARIANCES",
    "RESIDUAL_COVARIANCES",
    "GaussianMixtures",
    "Kind",
    "Mixture",
    "affordable_kinds",
    "fit_mixture",
    "join",
    "mean",
    "shrunk",
    "standard_normal",
    "training_rows",
    "with_tails",
]

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from ._power import Unbending
from ._regression import LinearRegressions
from ._rows import Folds

#: Numbers of components of the mixtures that are fitted.
N_COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128)
#: Their covariances, and what is added to each variance, of standardised columns.
COVARIANCES = [("full", 1e-6), ("diag", 1e-6), ("tied", 1e-6)]
#: Those of bent columns, which are about normal: there smooth mixtures pay as well.
BENT_COVARIANCES = [*COVARIANCES, ("full", 0.1), ("full", 0.3), ("shrunk", 1e-6)]
#: Those of residuals given conditions.
RESIDUAL_COVARIANCES = [("diag", 1e-6)]
#: Rows for each column that the shared covariance counts for, beside those of a component.
SHRINKAGE = 0.1
#: Rows for each column that a covariance needs, lest it be that of a few rows only.
ROWS_PER_COLUMN = 2
#: What is added, at least, where a covariance has fewer.
FEW_ROWS_REG_COVAR = 1e-4
#: Products in a step of expectation maximisation, at most: fewer components in many columns.
MAXIMUM_PRODUCTS = 2e8
#: Numbers in the covariances of a mixture, at most: memory, where there are hundreds of columns.
MAXIMUM_COVARIANCES = 2e5
#: Gain of a step of expectation maximisation, in nats, of the log-likelihood of all rows, below
#: which a mixture has converged. The more rows, the less of a small gain a row is luck.
TOLERANCE = 100.0
#: The same a row, at most.
MAXIMUM_TOLERANCE = 0.05
#: Rows that a mixture is fitted on, at most.
MAXIMUM_ROWS = 5000
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


class Kind(NamedTuple):
    """How a mixture is fitted, in the terms of :class:`sklearn.mixture.GaussianMixture`.

    Covariances that are "shrunk" are full ones, of which :func:`shrunk` is taken after the fit.
    """

    n_components: int
    covariance_type: str
    reg_covar: float
    init_params: str = "kmeans"

    @property
    def fitted(self) -> "Kind":
        """What is fitted: the same for full covariances and for shrunk ones."""
        is_shrunk = self.covariance_type == "shrunk"
        return self._replace(covariance_type="full") if is_shrunk else self


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


def affordable_kinds(
    n_rows: int, n_features: int, covariances: Sequence[tuple[str, float]]
) -> list[Kind]:
    """Return the kinds of mixtures that so many rows and columns allow, started from k-means."""
    affordable = min(MAXIMUM_PRODUCTS / n_rows, MAXIMUM_COVARIANCES) // n_features**2
    largest = min(n_rows // 2, affordable)
    return [
        Kind(n_components, *covariance)
        for n_components, covariance in product(N_COMPONENTS, covariances)
        if n_components <= max(1, largest)
    ]


def training_rows(folds: Folds, preprocessing: LinearRegressions | Unbending) -> np.ndarray:
    """Return what mixtures are fitted to, for each member, of shape (n_members, n, d).

    Preprocessed training rows, in double precision.
    """
    return preprocessing.preprocess(folds.rows.values[_resample(folds)].double()).numpy()


def fit_mixture(rows: np.ndarray, kind: Kind, seed: int) -> Mixture:
    """Fit a mixture to rows, (n, d).

    Columns that nearly determine each other are narrow in some direction, on rows left out too, but
    a component of few rows is narrow because of these. So it is made wider.
    """
    tolerance = min(MAXIMUM_TOLERANCE, TOLERANCE / len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture = GaussianMixture(**kind._asdict(), tol=tolerance, random_state=seed).fit(rows)
    n_features = rows.shape[1]
    factors = mixture.precisions_cholesky_
    if kind.covariance_type == "diag":
        factors = factors[:, :, None] * np.eye(n_features)
    shape = (kind.n_components, n_features, n_features)
    factors = np.broadcast_to(factors, shape).copy()
    shares = 1.0 if kind.covariance_type == "tied" else mixture.weights_
    few = np.broadcast_to(shares * len(rows) < ROWS_PER_COLUMN * n_features, kind.n_components)
    factors[few] = _widened(factors[few], max(0.0, FEW_ROWS_REG_COVAR - kind.reg_covar))
    return Mixture(mixture.weights_, mixture.means_, factors)


def shrunk(mixture: Mixture, n_rows: int) -> Mixture:
    r"""Shrink the covariances of components of few rows towards the one that they share.

    .. math:: \frac{n_k S_k + s d T}{n_k + s d}, \qquad
        T = (1 - t) \sum_k w_k S_k + t \operatorname{diag} \sum_k w_k S_k, \quad
        t = \frac{d}{d + n}

    as if ``s`` more rows for each of the ``d`` columns had been seen, with covariance ``T``. A
    single component shares with none: its covariance becomes ``T``.

    Parameters
    ----------
    mixture : Mixture
        With full covariances.
    n_rows : int
        That it was fitted to.
    """
    n_features = mixture.means.shape[1]
    covariances = _covariances(mixture.factors)
    shared = np.einsum("k,kij->ij", mixture.weights, covariances)
    to_diagonal = n_features / (n_features + n_rows)
    shared -= to_diagonal * (shared - np.diag(np.diag(shared)))
    if len(covariances) == 1:
        return mixture._replace(factors=_factors(shared[None]))
    counts = (mixture.weights * n_rows)[:, None, None]
    prior = SHRINKAGE * n_features
    return mixture._replace(
        factors=_factors((counts * covariances + prior * shared) / (counts + prior))
    )


def _widened(factors: np.ndarray, added: float) -> np.ndarray:
    """Add to the variances, given factors of precisions, (k, d, d)."""
    return _factors(_covariances(factors) + added * np.eye(factors.shape[-1]))


def _covariances(factors: np.ndarray) -> np.ndarray:
    """From factors of precisions, (k, d, d)."""
    inverses = np.linalg.inv(factors)
    return inverses.swapaxes(1, 2) @ inverses


def _factors(covariances: np.ndarray) -> np.ndarray:
    """Factor the precisions, (k, d, d)."""
    return np.linalg.inv(np.linalg.cholesky(covariances)).swapaxes(1, 2)


def _resample(folds: Folds) -> Tensor:
    """Return indices of the training rows of each member, each as often as its weight says.

    Systematic resampling: rows of equal weight come once each, unless they are too many.
    """
    n = min(folds.training.shape[1], MAXIMUM_ROWS)
    cumulative = folds.rows.weights[folds.training].cumsum(dim=1)
    points = cumulative[:, -1:] * torch.from_numpy((np.arange(n) + 0.5) / n)
    return folds.training.gather(1, torch.searchsorted(cumulative, points))
