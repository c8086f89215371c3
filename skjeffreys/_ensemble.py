"""The mean density of members, and how far it is ahead of them."""

__all__ = ["ambiguity_at_samples", "mixture_log_density", "mixture_of_others"]

import math

import torch
from torch import Tensor


def mixture_log_density(log_p: Tensor) -> Tensor:
    """Log-density of the mean of the members, from (n_members, n) to (n,)."""
    return torch.logsumexp(log_p, dim=0) - math.log(len(log_p))


def mixture_of_others(log_p: Tensor) -> Tensor:
    """Log-density of the mean of all other members, for each; (n_members, n) as ``log_p``.

    A single member has no others and gets its own.
    """
    n_members = len(log_p)
    if n_members == 1:
        return log_p
    itself = torch.eye(n_members, dtype=torch.bool, device=log_p.device)
    others = log_p.expand(n_members, -1, -1).masked_fill(itself[:, :, None], -math.inf)
    return torch.logsumexp(others, dim=1) - math.log(n_members - 1)


def ambiguity_at_samples(log_p: Tensor) -> Tensor:
    r"""How far the mean of the members is ahead of a member, on rows that are new to all.

    .. math:: \mathrm{E} \Big[ \log \tfrac1M \sum_k p_k(x) - \tfrac1M \sum_k \log p_k(x) \Big]

    Among rows of the data there are none such. But a sample of a member is new to the others: the
    estimate is the mean over the members of what it is for all others on samples of theirs.

    Parameters
    ----------
    log_p : Tensor of shape (n_members, n_members, n)
        Log-densities ``log_p[j, k]`` of member ``j`` at samples of member ``k``.

    Returns
    -------
    ambiguity : Tensor
        A scalar, in nats; zero for fewer than three members.

    References
    ----------
    Krogh and Vedelsby, *Neural Network Ensembles, Cross Validation, and Active Learning*, NIPS
    1994.
    """
    n_members = len(log_p)
    if n_members == 1:
        return log_p.new_zeros(())
    itself = torch.eye(n_members, dtype=torch.bool, device=log_p.device)[:, :, None]
    of_mixtures = torch.logsumexp(log_p.masked_fill(itself, -math.inf), dim=0)
    sums = log_p.masked_fill(itself, 0.0).sum(dim=0)
    return (of_mixtures - math.log(n_members - 1) - sums / (n_members - 1)).mean()
