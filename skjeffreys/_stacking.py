"""The density that a fit returns: flows beside mixtures, as rows left out weigh them."""

__all__ = ["Candidate", "StackedDensity", "stack", "stacking_weights", "worth_of_a_fit"]

from collections.abc import Iterable, Sequence
from itertools import compress, product
from typing import NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from ._ensemble import mixture_log_density, mixture_of_others
from ._flow import Flows
from ._mixture_fitting import (
    Kind,
    covariance_rows,
    fit_mixture,
    predictive,
    regularised,
    training_rows,
)
from ._mixtures import Mixture, Mixtures, join, mean, with_tails
from ._power import Unbending
from ._regression import LinearRegressions
from ._rows import Folds

#: Rows that count for each density before any is seen: the prior of their weights.
PRIOR_COUNT = 0.1
#: Smallest weight, beside other mixtures that are tried, of one that is useful.
USEFUL_WEIGHT = 0.01
#: Smallest weight, beside flows, of a mixture that is kept.
SMALLEST_WEIGHT = 0.001
#: Where the fits of a useful kind start, each with a weight of its own.
STARTS = ("kmeans", "random_from_data")
#: Smallest worth of a fit of each, in nats a row left out, for which there is one more.
USEFUL_WORTH = 0.05
#: Fits of each, at most.
MAXIMUM_FITS = 8
#: Gain of a step of expectation maximisation, in nats a row, below which it has converged.
TOLERANCE = 1e-7
#: Steps at most.
MAXIMUM_STEPS = 2000


class StackedDensity(nn.Module):
    r"""A mixture of the densities of an ensemble: of its flows and of others, its parts.

    .. math:: p(x) = \sum_j w_j \tfrac1M \sum_{k=1}^M p_{j, k}(x)

    Parameters
    ----------
    parts : sequence of Flows
        The flows that are trained first.
    weights : Tensor of shape (n_parts,)
        Positive; their sum is one.
    """

    def __init__(self, parts: Sequence[Flows], weights: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.register_buffer("weights", weights)

    def log_density(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate at ``x`` of shape (n, q + d), with result of shape (n,).

        ``log_p`` of shape (n_members, n) are the log-densities of the flows at ``x``.
        """
        each = [log_p, *(part.log_prob(x) for part in self.parts[1:])]
        each = torch.stack([mixture_log_density(log_densities) for log_densities in each])
        return torch.logsumexp(self.weights.log()[:, None] + each, dim=0)

    def distribution_function(self, x: Tensor) -> Tensor:
        """Distribution function of a single feature at ``x``, (n, q + 1) to (n,)."""
        rows = x.expand(self.parts[0].n_members, -1, -1)
        values = [
            part.base.distribution_function(part.transform(rows)).mean(dim=0) for part in self.parts
        ]
        return self.weights @ torch.stack(values)

    def sample(self, conditions: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a row for each row of conditions, (n, q) to (n, q + d)."""
        n, flow = len(conditions), self.parts[0]
        rows = conditions.new_empty(n, flow.n_conditions + flow.base.n_features)
        options = {"generator": generator, "device": conditions.device}
        members = torch.randint(flow.n_members, (n,), **options)
        parts = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        for j, part in enumerate(self.parts):
            chosen = parts == j
            if chosen.any():
                index, position = _rectangle(members[chosen].numpy(), flow.n_members)
                drawn = part.sample(conditions[chosen][index], generator)
                rows[chosen] = drawn[members[chosen], position]
        return rows


class Candidate(NamedTuple):
    """A mixture to try beside flows."""

    #: What the rows that it is fitted to go through first.
    preprocessing: LinearRegressions | Unbending
    kind: Kind


@torch.no_grad()
def stack(
    flow: Flows,
    candidates: Sequence[Candidate],
    folds: Folds,
    tailed: np.ndarray,
    seed: int,
    n_jobs: int | None = None,
) -> StackedDensity:
    """Set mixtures of the same members beside flows, weighed by the rows left out.

    A mixture of many components depends on where its fit started, and a mean of fits that
    started elsewhere is better than any of them. So what is useful is fitted several times, as long
    as each fit is worth its time. That takes long: candidates are tried first on the rows of a few
    members, and then useful ones, from each start, once on those of all.

    Parameters
    ----------
    flow : Flows
        In double precision.
    candidates : sequence of Candidate
        There may be none.
    folds : Folds
    tailed : ndarray of bool, shape (d,)
        Columns in which the mixtures get heavy tails.
    seed : int
        Of the fits.
    n_jobs : int or None
        Fits at a time, each in a process of its own; None and -1 as in joblib.
    """
    fits = _Fits(candidates, folds, tailed, n_jobs)
    log_p = flow.log_prob(fits.held_out)
    few = max(1, flow.n_members // 2)
    useful = _restarts(fits.useful(candidates, log_p[:few], seed))
    useful = fits.useful(useful, log_p, seed)
    kept, n_fits, weights = fits.worthwhile(useful, log_p, seed)
    mixtures = fits.fit(kept, flow.n_members, range(seed, seed + n_fits))
    return _join_parts(flow, kept, mixtures, weights, tailed)


class _Fits:
    """Fits mixtures to the rows of members, each once, and weighs them by the rows left out.

    Parameters
    ----------
    candidates : sequence of Candidate
        Whose preprocessing there will be.
    folds, tailed, n_jobs
        As for :func:`stack`.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        folds: Folds,
        tailed: np.ndarray,
        n_jobs: int | None,
    ) -> None:
        self.held_out = folds.rows.values[folds.held_out].double()
        self._row_weights = folds.rows.weights[folds.held_out]
        self._training = {each: training_rows(folds, each) for each, _ in candidates}
        self._tailed = tailed
        self._n_jobs = n_jobs
        self._fitted = {}

    def fit(
        self, candidates: Sequence[Candidate], n_members: int, seeds: Sequence[int]
    ) -> list[list[Mixture]]:
        """Return, for each candidate and each of the first members, the mean of a fit per seed."""
        jobs = [
            (preprocessing, kind.fitted, member, seed)
            for (preprocessing, kind), member, seed in product(candidates, range(n_members), seeds)
        ]
        missing = [job for job in dict.fromkeys(jobs) if job not in self._fitted]
        # In one thread a mixture is the same whatever the number of threads and of processes.
        with threadpool_limits(1), parallel_config("loky", inner_max_num_threads=1):
            mixtures = Parallel(self._n_jobs)(
                delayed(fit_mixture)(self._training[preprocessing][member], kind, seed)
                for preprocessing, kind, member, seed in missing
            )
        self._fitted.update(zip(missing, mixtures, strict=True))
        return [
            [mean([self._mixture(each, k, seed) for seed in seeds]) for k in range(n_members)]
            for each in candidates
        ]

    def _mixture(self, candidate: Candidate, member: int, seed: int) -> Mixture:
        preprocessing, kind = candidate
        n_rows = len(self._training[preprocessing][member])
        mixture = regularised(self._fitted[preprocessing, kind.fitted, member, seed], kind, n_rows)
        # Given conditions flows know how residuals spread: predictive densities add nothing.
        if preprocessing.n_conditions > 0:
            return mixture
        return predictive(mixture, covariance_rows(mixture.weights, kind, n_rows))

    def log_densities(
        self, candidates: Sequence[Candidate], mixtures: Sequence[Sequence[Mixture]]
    ) -> list[Tensor]:
        """Evaluate each candidate at what the members leave out, of shape (n_members, n)."""
        return [
            _part(preprocessing, members, self._tailed).log_prob(self.held_out[: len(members)])
            for (preprocessing, _), members in zip(candidates, mixtures, strict=True)
        ]

    def useful(self, candidates: Sequence[Candidate], log_p: Tensor, seed: int) -> list[Candidate]:
        """Return the candidates that get a weight among each other, after a fit to some members.

        Flows are asked only whether any mixture is of use. Through the proxy they know something of
        the rows that their member leaves out, and would crowd out mixtures that are worth more on
        new rows.

        Parameters
        ----------
        candidates : sequence of Candidate
        log_p : Tensor of shape (n_members, n)
            Log-densities of the flows of these members, the first, at the rows that each leaves
            out.
        seed : int
        """
        if not candidates:
            return []
        tried = self.log_densities(candidates, self.fit(candidates, len(log_p), [seed]))
        if self.weigh([log_p, *tried])[1:].sum() < USEFUL_WEIGHT:
            return []
        return list(compress(candidates, self.weigh(tried) >= USEFUL_WEIGHT))

    def worthwhile(
        self, candidates: Sequence[Candidate], log_p: Tensor, seed: int
    ) -> tuple[list[Candidate], int, np.ndarray]:
        """Fit candidates again until one more fit of each is worth too little.

        Those that have next to no weight after a fit get no further one.

        Parameters
        ----------
        candidates : sequence of Candidate
        log_p : Tensor of shape (n_members, n)
            Log-densities of the flows at the rows that each leaves out.
        seed : int
            Of the first.

        Returns
        -------
        kept : list of Candidate
        n_fits : int
            Of each of them.
        weights : ndarray of shape (1 + n_kept,)
            Of the flows and of the mean of the fits of each; their sum is one.
        """
        of_fits, row_weights = [], self._row_weights.flatten()
        for n_fits in range(1, MAXIMUM_FITS + 1):
            mixtures = self.fit(candidates, len(log_p), [seed + n_fits - 1])
            of_fit = torch.stack([log_p, *self.log_densities(candidates, mixtures)])
            of_fits.append(of_fit.flatten(1))
            log_densities = torch.stack(of_fits)
            weights = stacking_weights(mixture_log_density(log_densities), row_weights)
            has_weight = weights >= SMALLEST_WEIGHT
            has_weight[0] = True
            candidates = list(compress(candidates, has_weight[1:]))
            if n_fits > 1 and worth_of_a_fit(log_densities, weights, row_weights) < USEFUL_WORTH:
                break
            of_fits = [of_fit[has_weight] for of_fit in of_fits]
        weights = weights[has_weight].numpy()
        return candidates, n_fits, weights / weights.sum()

    def weigh(self, log_densities: Sequence[Tensor]) -> np.ndarray:
        """Return the weights of densities, from (n_members, n) of each."""
        log_densities = torch.stack(log_densities).flatten(1)
        row_weights = self._row_weights.flatten()[: log_densities.shape[1]]
        return stacking_weights(log_densities, row_weights).numpy()


def _part(
    preprocessing: LinearRegressions | Unbending, members: Sequence[Mixture], tailed: np.ndarray
) -> Flows:
    """Return the densities of mixtures, one for each member, after preprocessing."""
    base = Mixtures([with_tails(member, tailed) for member in members])
    return Flows(base, preprocessing.first(base.n_members))


def _join_parts(
    flow: Flows,
    candidates: Sequence[Candidate],
    mixtures: Sequence[Sequence[Mixture]],
    weights: np.ndarray,
    tailed: np.ndarray,
) -> StackedDensity:
    """Return the density of flows, with the first weight, and one part for each preprocessing."""
    parts, part_weights = [flow], [weights[0]]
    for preprocessing in dict.fromkeys(each for each, _ in candidates):
        own = weights[1:] * [each is preprocessing for each, _ in candidates]
        joined = [join(members, own / own.sum()) for members in zip(*mixtures, strict=True)]
        parts.append(_part(preprocessing, joined, tailed))
        part_weights.append(own.sum())
    return StackedDensity(parts, torch.from_numpy(np.array(part_weights)))


def _restarts(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return candidates from each start; a single component has one fit."""
    return [
        candidate._replace(kind=candidate.kind._replace(init_params=start))
        for candidate in candidates
        for start in STARTS
        if candidate.kind.n_components > 1 or start == candidate.kind.init_params
    ]


def stacking_weights(log_densities: Tensor, row_weights: Tensor) -> Tensor:
    r"""Weights of the mixture of densities that is most probable, by expectation maximisation.

    .. math:: \operatorname{arg\,max}_w \; n \sum_i v_i \log \sum_j w_j p_j(x_i)
        + a \sum_j \log w_j

    with row weights ``v`` of sum one, the effective number of rows ``n = 1 / sum v^2`` and the
    prior counts ``a``. The prior, a Dirichlet density, keeps every density at some weight: where
    rows are few, which of several similar ones gets it all is luck, and their mean is better.

    Parameters
    ----------
    log_densities : Tensor of shape (n_densities, n)
        Of rows that the densities were not fitted to.
    row_weights : Tensor of shape (n,)

    Returns
    -------
    weights : Tensor of shape (n_densities,)
        Their sum is one.

    References
    ----------
    Smyth and Wolpert, *Linearly Combining Density Estimators via Stacking*, Machine Learning 36,
    1999.
    """
    row_weights = row_weights.double() / row_weights.sum()
    prior = PRIOR_COUNT * row_weights.square().sum()
    densities = (log_densities - log_densities.max(dim=0).values).double().exp()
    weights = densities.new_full((len(densities),), 1 / len(densities))
    score = -torch.inf
    for _ in range(MAXIMUM_STEPS):
        mixture = weights @ densities
        previous, score = score, float(row_weights @ mixture.log() + prior * weights.log().sum())
        if score - previous < TOLERANCE:
            break
        weights = weights * (densities @ (row_weights / mixture)) + prior
        weights = weights / weights.sum()
    return weights


def worth_of_a_fit(log_densities: Tensor, weights: Tensor, row_weights: Tensor) -> float:
    r"""Loss of rows without one of several fits of a mixture of densities, in nats a row.

    .. math:: \sum_i v_i \Big[ \log s(x_i) - \tfrac1F \sum_f \log s_{-f}(x_i) \Big], \qquad
        s_{-f} = \tfrac1{F - 1} \sum_{g \neq f} \sum_j w_j p_{g, j}

    with row weights ``v`` of sum one and the mean ``s`` of all ``F`` fits. It is never
    negative. The gain of the last fit has the same expectation, but is mostly noise where rows
    are few.

    Parameters
    ----------
    log_densities : Tensor of shape (n_fits, n_densities, n)
        Of two fits or more, at rows that they were not fitted to.
    weights : Tensor of shape (n_densities,)
        Of the densities; their sum is one.
    row_weights : Tensor of shape (n,)
    """
    row_weights = row_weights.double() / row_weights.sum()
    of_fits = torch.logsumexp(weights.log()[:, None] + log_densities, dim=1)
    return float(row_weights @ (mixture_log_density(of_fits) - mixture_of_others(of_fits).mean(0)))


def _rectangle(groups, n_groups):
    """Arrange the members of groups side by side.

    Parameters
    ----------
    groups : ndarray of int, shape (n,)
        The group of each.

    Returns
    -------
    index : ndarray of int, shape (n_groups, largest)
        Who is in each group, with the very first wherever a group is smaller than the largest.
    position : ndarray of int, shape (n,)
        ``index[groups[i], position[i]] == i``.
    """
    counts = np.bincount(groups, minlength=n_groups)
    order = np.argsort(groups, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.zeros((n_groups, counts.max()), dtype=int)
    index[groups, position] = np.arange(len(groups))
    return index, position
