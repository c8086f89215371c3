"""The normaliser of the proxy, by importance sampling, with what is known of its error."""

__all__ = ["Normalizer", "importance_estimate", "measure_normalizer"]

import math
from typing import NamedTuple

import torch
from sklearn.utils import gen_batches
from torch import Tensor

from ._energy import Proxy
from ._flow import CouplingFlows
from ._rows import Rows

#: Samples evaluated at once.
BATCH_SIZE = 1000
#: Effective samples below which an estimate counts as unknown.
MINIMUM_EFFECTIVE_SAMPLES = 100


class Normalizer(NamedTuple):
    """An importance-sampling estimate of ``Z = E_r[q(y) / r(y)]``.

    ``ess`` is the effective sample size as a fraction of the number of samples,
    ``(sum w)^2 / (n sum w^2)``: 1 when all weights are equal, 1/n when one row carries all.
    """

    value: float
    std_error: float
    ess: float
    n_samples: int

    @property
    def is_known(self) -> bool:
        """Whether it is a positive number, and enough weights count for it to mean anything."""
        enough = self.ess * self.n_samples >= MINIMUM_EFFECTIVE_SAMPLES
        return enough and 0 < self.value < math.inf


def importance_estimate(log_weights: Tensor) -> Normalizer:
    """Mean of ``exp(log_weights)``, its standard error and its effective sample size.

    Computed relative to the largest weight, so that the effective sample size is right even
    where the weights themselves overflow to infinity.
    """
    log_weights = log_weights.double()
    n = len(log_weights)
    largest = log_weights.max()
    weights = torch.exp(log_weights - largest)
    scale = largest.exp().item()
    ess = weights.sum().square() / (n * weights.square().sum())
    return Normalizer(
        value=weights.mean().item() * scale,
        std_error=weights.std().item() / math.sqrt(n) * scale,
        ess=ess.item(),
        n_samples=n,
    )


@torch.no_grad()
def measure_normalizer(
    proxy: Proxy, flow: CouplingFlows, rows: Rows, n_samples: int, generator: torch.Generator
) -> Normalizer:
    """Measure the normaliser of ``proxy`` with fresh samples that cover it.

    The mean of that given conditions, over the conditions of ``rows``.
    """
    proposals = proxy.reference.proposals(flow)
    log_weights = []
    for proposal in proposals:
        for batch in gen_batches(n_samples // len(proposals), BATCH_SIZE):
            rows_per_member = math.ceil((batch.stop - batch.start) / proposal.n_members)
            conditions = rows.draw_conditions(proposal.n_members * rows_per_member, generator)
            conditions = conditions.unflatten(0, (proposal.n_members, -1))
            y = proposal.sample(conditions, generator).flatten(0, 1)
            log_weights.append(proxy.log_weights(y, flow))
    return importance_estimate(torch.cat(log_weights))
