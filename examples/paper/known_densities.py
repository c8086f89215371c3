"""Densities that are known, to compare with what an estimator learns of them."""

__all__ = ["KNOWN_DENSITIES", "KnownDensity", "eight_gaussians", "funnel"]

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_t, norm


@dataclass(frozen=True)
class KnownDensity:
    """A density in ``d`` dimensions."""

    #: From a number of rows and a RandomState to rows, (n, d).
    sample: Callable[[int, np.random.RandomState], np.ndarray]
    #: From rows, (n, d), to their log-density in nats, (n,).
    log_density: Callable[[np.ndarray], np.ndarray]


def _gaussians(centres: np.ndarray, scale: float) -> KnownDensity:
    """Return the equal mixture of normal densities around ``centres``, (k, d)."""

    def sample(n, random_state):
        rows = centres[random_state.randint(len(centres), size=n)]
        return rows + scale * random_state.standard_normal(rows.shape)

    def log_density(rows):
        each = norm.logpdf(rows[:, None], centres, scale).sum(axis=-1)
        return logsumexp(each, axis=1) - np.log(len(centres))

    return KnownDensity(sample, log_density)


def eight_gaussians() -> KnownDensity:
    """Return eight normal densities on a circle of radius 2, with standard deviation 0.2."""
    angles = 2 * np.pi * np.arange(8) / 8
    return _gaussians(2 * np.c_[np.cos(angles), np.sin(angles)], scale=0.2)


def mixture(d: int) -> KnownDensity:
    """Return eight normal densities around centres drawn once, with standard deviation 0.5."""
    return _gaussians(2 * np.random.RandomState(0).standard_normal((8, d)), scale=0.5)


def funnel(d: int) -> KnownDensity:
    """Return the funnel: the first column sets the scale of all others (Neal, 2003)."""

    def sample(n, random_state):
        rows = random_state.standard_normal((n, d))
        rows[:, 1:] *= np.exp(rows[:, :1] / 2)
        return rows

    def log_density(rows):
        others = norm.logpdf(rows[:, 1:], 0, np.exp(rows[:, :1] / 2)).sum(axis=1)
        return norm.logpdf(rows[:, 0]) + others

    return KnownDensity(sample, log_density)


def banana(d: int) -> KnownDensity:
    """Return a density where every second column is bent along the one before it."""

    def centre(rows):
        result = np.zeros_like(rows)
        result[:, 1::2] = rows[:, 0 : 2 * (d // 2) : 2] ** 2 - 1
        return result

    scale = np.where(np.arange(d) % 2 == 1, 0.3, 1.0)

    def sample(n, random_state):
        rows = scale * random_state.standard_normal((n, d))
        return rows + centre(rows)

    def log_density(rows):
        return norm.logpdf(rows, centre(rows), scale).sum(axis=1)

    return KnownDensity(sample, log_density)


def student(d: int) -> KnownDensity:
    """Return a multivariate Student t with three degrees of freedom: heavy tails."""
    density = multivariate_t(np.zeros(d), np.eye(d), df=3)

    def sample(n, random_state):
        return density.rvs(n, random_state=random_state)

    return KnownDensity(sample, density.logpdf)


#: From a name to a function from a dimension to a density.
KNOWN_DENSITIES = {"mixture": mixture, "funnel": funnel, "banana": banana, "student": student}
