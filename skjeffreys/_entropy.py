"""The entropy of the data, from which the divergences to the data are counted."""

__all__ = ["nearest_neighbor_entropy"]

import math

import numpy as np
from scipy.special import digamma, gammaln
from sklearn.neighbors import NearestNeighbors

#: Neighbours of the estimate: more lower its variance and raise its bias.
N_NEIGHBORS = 3
#: Rows the estimate uses at most, since neighbours in many dimensions cost the square of them.
MAXIMUM_ROWS = 2000


def nearest_neighbor_entropy(rows: np.ndarray, weights: np.ndarray) -> float:
    r"""Estimate the entropy of standardised rows, in nats.

    The Kozachenko-Leonenko estimate from the distance :math:`\rho_i` of each row to its k-th
    neighbour,

    .. math:: \hat H = \psi(n) - \psi(k) + \log V_d + \sum_i w_i (d \log \rho_i - \log n w_i),

    but no more than the entropy of the normal density with the same variances, the largest
    there is. With equal weights the last term vanishes.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Distinct rows in random order, of which the first 2,000 count; columns have unit
        variance.
    weights : ndarray of shape (n,)
        Positive weights of the rows.

    References
    ----------
    Kozachenko and Leonenko, *Sample estimate of the entropy of a random vector*, Problems of
    Information Transmission 23, 1987.
    """
    rows, weights = rows[:MAXIMUM_ROWS], weights[:MAXIMUM_ROWS]
    weights = weights / weights.sum()
    n, d = rows.shape
    largest = 0.5 * d * math.log(2 * math.pi * math.e)
    k = min(N_NEIGHBORS, n - 1)
    distances, _ = NearestNeighbors(n_neighbors=k).fit(rows).kneighbors()
    log_unit_ball = 0.5 * d * math.log(math.pi) - gammaln(0.5 * d + 1)
    log_terms = d * np.log(distances[:, -1]) - np.log(n * weights)
    estimate = digamma(n) - digamma(k) + log_unit_ball + weights @ log_terms
    return min(float(estimate), largest)
