"""The proxy: an energy-based model that stands in for the unknown data density."""

__all__ = ["Proxy", "Tilt", "mixture_log_density"]

import math

import torch
from torch import Tensor, nn
from zuko.nn import MLP

from ._base import GaussianMixtures


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


class Tilt(nn.Module):
    r"""A network with bounded output and a free constant, :math:`b + c \tanh(f_\psi(x) / c)`.

    It starts at zero.

    Parameters
    ----------
    n_features : int
    hidden_layer_sizes : tuple of int
    bound : float
        The bound :math:`c`, in nats.
    """

    def __init__(self, n_features: int, hidden_layer_sizes: tuple[int, ...], bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.network = MLP(n_features, 1, hidden_layer_sizes, activation=nn.SiLU)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)
        self.constant = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate at ``x`` of shape (..., d), with result of shape (...)."""
        return self.constant + self.bound * torch.tanh(self.network(x).squeeze(-1) / self.bound)


class Proxy(nn.Module):
    r"""An un-normalised density that tilts a reference density.

    .. math:: \log \tilde q_\psi(x) = \log r(x) + b + c \tanh(f_\psi(x) / c), \qquad
        E_\psi = -\log \tilde q_\psi .

    With a standard normal reference this is the independent energy of the paper. Without one
    of its own, the reference is the mean density of the members of the ensemble, and for a
    member that of all others: they have seen the rows that it leaves out. The tilt then only
    has to learn what the members miss, and the proxy starts as good as they are. No gradient
    reaches the reference.

    The weights :math:`\tilde q / r` lie within a factor :math:`e^{\pm c}` of :math:`e^b`, so the
    effective sample size of the normaliser on samples of the reference is at least
    :math:`1 / \cosh^2 c`, whatever the dimension and the network (Polya and Szego's inequality).

    Parameters
    ----------
    tilt : Tilt
    reference : GaussianMixtures with one member, or None
        None for the members of the ensemble.
    """

    def __init__(self, tilt: Tilt, reference: GaussianMixtures | None = None) -> None:
        super().__init__()
        self.tilt = tilt
        self.reference = reference

    def log_density(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate ``log q~`` at ``x`` of shape (n, d), with result of shape (n,).

        ``log_p`` of shape (n_members, n) are the log-densities of the members at ``x``.
        """
        log_p = log_p.detach()
        reference = mixture_log_density(log_p) if self.reference is None else self._independent(x)
        return reference + self.tilt(x)

    def log_density_without_each(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate ``log q~`` as each member sees it, (n_members, n): without the member."""
        log_p = log_p.detach()
        reference = mixture_of_others(log_p) if self.reference is None else self._independent(x)
        return (reference + self.tilt(x)).expand_as(log_p)

    def bound_log_density(self, x: Tensor, log_p: Tensor) -> Tensor:
        r"""Evaluate a lower bound in the mean of ``log q~`` at rows of each member.

        By Jensen's inequality :math:`\mathrm{E} \log r(x) \ge \tfrac1M \sum_k \mathrm{E} \log
        p_k(x)`, and the members have their own rows at hand. ``x`` has the shape (n_members, n,
        d), ``log_p`` and the result have (n_members, n).
        """
        reference = (
            log_p.detach()
            if self.reference is None
            else self.reference.log_prob(x.flatten(0, 1)[None]).view_as(log_p)
        )
        return reference + self.tilt(x)

    def _independent(self, x: Tensor) -> Tensor:
        return self.reference.log_prob(x[None])[0]

    @torch.no_grad()
    def add_constant(self, constant: float) -> None:
        """Add a constant to ``log q~``, which multiplies the normaliser by its exponential."""
        self.tilt.constant += constant
