"""Mixtures fitted to the rows of each member: of which kinds, and how."""

__all__ = [
    "BENT_COVARIANCES",
    "COVARIANCES",
    "RESIDUAL_COVARIANCES",
    "Kind",
    "affordable_kinds",
    "covariance_rows",
    "fit_mixture",
    "predictive",
    "regularised",
    "training_rows",
]

import warnings
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ._mixtures import Mixture
from ._power import Unbending
from ._regression import LinearRegressions
from ._rows import Folds

#: Numbers of components of the mixtures that are fitted.
N_COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128)
#: Type, shrinkage and ridge of their covariances: of a :class:`Kind`.
COVARIANCES = [("full",), ("diag",), ("tied",)]
#: Those of bent columns, which are about normal: there smooth mixtures pay as well.
BENT_COVARIANCES = [*COVARIANCES, ("full", 0.1), ("full", 0.5), ("full", 0.0, 0.01)]
#: Those of residuals given conditions.
RESIDUAL_COVARIANCES = [("diag",)]
#: What is added to each variance in a fit, of standardised columns.
REG_COVAR = 1e-6
#: Rows for each column that a covariance needs, lest it be that of a few rows only.
ROWS_PER_COLUMN = 2
#: What is added to each variance, instead, where a covariance has fewer.
FEW_ROWS_REG_COVAR = 1e-4
#: Degrees of freedom of a predictive density, at least: with two its variance is infinite.
SMALLEST_DEGREES = 3.0
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


class Kind(NamedTuple):
    """How a mixture is fitted, and its full covariances :func:`regularised` after the fit.

    The rest is in the terms of :class:`sklearn.mixture.GaussianMixture`.
    """

    n_components: int
    covariance_type: str
    #: Rows for each column that the shared covariance counts for, beside those of a component.
    shrinkage: float = 0.0
    #: Share of each variance that is added to it.
    ridge: float = 0.0
    init_params: str = "kmeans"

    @property
    def fitted(self) -> "Kind":
        """What is fitted: without regularisation, which comes after."""
        return self._replace(shrinkage=0.0, ridge=0.0)


def affordable_kinds(n_rows: int, n_features: int, covariances: Sequence[tuple]) -> list[Kind]:
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
    a component of few rows is narrow because of these. So it is made wider, but not across a value
    that they repeat.
    """
    estimator = GaussianMixture(
        kind.n_components,
        covariance_type=kind.covariance_type,
        tol=min(MAXIMUM_TOLERANCE, TOLERANCE / len(rows)),
        reg_covar=REG_COVAR,
        init_params=kind.init_params,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture = estimator.fit(rows)
    n_features = rows.shape[1]
    factors = mixture.precisions_cholesky_
    if kind.covariance_type == "diag":
        factors = factors[:, :, None] * np.eye(n_features)
    shape = (kind.n_components, n_features, n_features)
    factors = np.broadcast_to(factors, shape).copy()
    n_rows = covariance_rows(mixture.weights_, kind, len(rows))
    few = n_rows < ROWS_PER_COLUMN * n_features
    factors[few] = _widened(factors[few], several=n_rows[few] > 1.5)
    normal = np.full(kind.n_components, np.inf)
    return Mixture(mixture.weights_, mixture.means_, factors, degrees_of_freedom=normal)


def covariance_rows(weights: np.ndarray, kind: Kind, n_rows: int) -> np.ndarray:
    """Return of how many of its rows a mixture has the covariance of each component, (k,)."""
    shares = np.ones_like(weights) if kind.covariance_type == "tied" else weights
    return n_rows * shares


def regularised(mixture: Mixture, kind: Kind, n_rows: int) -> Mixture:
    """Make the covariances of a fit what its kind says.

    Parameters
    ----------
    mixture : Mixture
    kind : Kind
        With full covariances, unless they stay as they are.
    n_rows : int
        That the mixture was fitted to.
    """
    if kind.shrinkage > 0:
        mixture = _shrunk(mixture, kind.shrinkage, n_rows)
    if kind.ridge > 0:
        covariances = _covariances(mixture.factors)
        variances = np.diagonal(covariances, axis1=1, axis2=2)
        covariances += kind.ridge * variances[:, None] * np.eye(covariances.shape[-1])
        mixture = mixture._replace(factors=_factors(covariances))
    return mixture


def predictive(mixture: Mixture, n_rows: np.ndarray) -> Mixture:
    r"""Make a component of few rows as wide, and its tails as heavy, as these few leave open.

    A component has the mean ``m`` and the covariance ``S`` of its ``n`` rows, but these are not
    those of new rows. Given the ``n`` rows, the density of a new one is Student's t with ``n``
    degrees of freedom, but at least three, and the scale matrix :math:`(1 + 1 / n) S`.

    Parameters
    ----------
    mixture : Mixture
        Of ``k`` components.
    n_rows : ndarray of shape (k,)
        That each covariance was fitted to; in the scale less than one counts as one.

    References
    ----------
    Gelman et al., *Bayesian Data Analysis*, 3rd edition, 2013, section 3.6: the predictive density
    under a normal-inverse-Wishart prior with ``d - 1`` degrees of freedom and no other information.
    """
    scales = np.sqrt(1 + 1 / np.maximum(n_rows, 1.0))
    return mixture._replace(
        factors=mixture.factors / scales[:, None, None],
        degrees_of_freedom=np.maximum(n_rows, SMALLEST_DEGREES),
    )


def _widened(factors: np.ndarray, several: np.ndarray) -> np.ndarray:
    """Add to the variances of components of few rows, given factors of precisions, (k, d, d).

    Components of ``several`` rows, (k,), keep the variance of a column that has one value in all of
    these, but for what ``REG_COVAR`` would hide: new rows repeat it.
    """
    covariances = _covariances(factors)
    constant = np.diagonal(covariances, axis1=1, axis2=2) < 2 * REG_COVAR
    added = np.where(several[:, None] & constant, 0, FEW_ROWS_REG_COVAR - REG_COVAR)
    return _factors(covariances + added[:, None] * np.eye(factors.shape[-1]))


def _shrunk(mixture: Mixture, shrinkage: float, n_rows: int) -> Mixture:
    r"""Shrink the covariances of components of few rows towards the one that they share.

    .. math:: \frac{n_k S_k + s d T}{n_k + s d}, \qquad
        T = (1 - t) \sum_k w_k S_k + t \operatorname{diag} \sum_k w_k S_k, \quad
        t = \frac{d}{d + n}

    as if ``s`` more rows for each of the ``d`` columns had been seen, with covariance ``T``. A
    single component shares with none: its covariance becomes ``T``.
    """
    n_features = mixture.means.shape[1]
    covariances = _covariances(mixture.factors)
    shared = np.einsum("k,kij->ij", mixture.weights, covariances)
    to_diagonal = n_features / (n_features + n_rows)
    shared -= to_diagonal * (shared - np.diag(np.diag(shared)))
    if len(covariances) == 1:
        return mixture._replace(factors=_factors(shared[None]))
    counts = (mixture.weights * n_rows)[:, None, None]
    prior = shrinkage * n_features
    return mixture._replace(
        factors=_factors((counts * covariances + prior * shared) / (counts + prior))
    )


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
