"""The proxy: an energy-based model that stands in for the unknown data density."""

__all__ = ["EnsembleReference", "FixedReference", "Proxy", "Tilt"]

import torch
from torch import Tensor, nn
from zuko.nn import MLP

from ._ensemble import mixture_log_density, mixture_of_others
from ._flow import CouplingFlows
from ._mixtures import Mixtures


class Tilt(nn.Module):
    r"""A network with bounded output and a free constant, :math:`b + c \tanh(f_\psi(x) / c)`.

    It starts at zero.

    Parameters
    ----------
    n_columns : int
        Conditions included.
    hidden_layer_sizes : tuple of int
    bound : float
        The bound :math:`c`, in nats.
    """

    def __init__(self, n_columns: int, hidden_layer_sizes: tuple[int, ...], bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.network = MLP(n_columns, 1, hidden_layer_sizes, activation=nn.SiLU)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)
        self.constant = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate at ``x`` of shape (..., d), with result of shape (...)."""
        return self.constant + self.bound * torch.tanh(self.network(x).squeeze(-1) / self.bound)


class EnsembleReference(nn.Module):
    """The mean density of the members of the ensemble, and for a member that of all others.

    All methods take rows and the log-densities ``log_p`` of the members at them. No gradient
    reaches the members.
    """

    def log_density(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate at ``x`` of shape (n, d), with result of shape (n,)."""
        return mixture_log_density(log_p.detach())

    def log_density_without_each(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate as each member sees it, without itself, (n_members, n)."""
        return mixture_of_others(log_p.detach())

    def bound_log_density(self, x: Tensor, log_p: Tensor) -> Tensor:
        r"""Bound the mean at rows of each member from below, (n_members, n, d) to (n_members, n).

        By Jensen's inequality :math:`\mathrm{E} \log r(x) \ge \tfrac1M \sum_k \mathrm{E} \log
        p_k(x)`, and the members have their own rows at hand.
        """
        return log_p.detach()

    def proposals(self, flow: CouplingFlows) -> list[CouplingFlows | Mixtures]:
        """Return whose samples cover the reference: the members."""
        return [flow]

    def log_ratio(self, y: Tensor, flow: CouplingFlows) -> Tensor:
        """Log-ratio of the reference to the proposals at ``y`` of shape (n, d): zero."""
        return y.new_zeros(len(y))


class FixedReference(nn.Module):
    """A density of its own, the same for all members; with the methods of EnsembleReference.

    Parameters
    ----------
    density : Mixtures
        With one member.
    """

    def __init__(self, density: Mixtures) -> None:
        super().__init__()
        self.density = density

    def log_density(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate at ``x`` of shape (n, d), with result of shape (n,)."""
        return self.density.log_prob(x)[0]

    def log_density_without_each(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate for each member, (n_members, n)."""
        return self.log_density(x, log_p).expand_as(log_p)

    def bound_log_density(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate at rows of each member, (n_members, n, d) to (n_members, n)."""
        return self.log_density(x.flatten(0, 1), log_p).view_as(log_p)

    def proposals(self, flow: CouplingFlows) -> list[CouplingFlows | Mixtures]:
        """Return whose samples cover the proxy: the members and the reference.

        A proposal that misses a region where the proxy has mass makes an estimate confidently
        wrong; their equal mixture is as wide as the wider of them (defensive importance
        sampling: Hesterberg, Technometrics 37, 1995).
        """
        return [flow, self.density]

    def log_ratio(self, y: Tensor, flow: CouplingFlows) -> Tensor:
        """Log-ratio of the reference to the mixture of the proposals at ``y``, (n, d) to (n,)."""
        log_densities = [mixture_log_density(p.log_prob(y)) for p in self.proposals(flow)]
        return log_densities[1] - mixture_log_density(torch.stack(log_densities))


class Proxy(nn.Module):
    r"""An un-normalised density that tilts a reference density.

    .. math:: \log \tilde q_\psi(x) = \log r(x) + b + c \tanh(f_\psi(x) / c), \qquad
        E_\psi = -\log \tilde q_\psi .

    With a fixed reference this is the independent energy of the paper. Where the ensemble is
    the reference, what a member sees is the mean of all others, without what it alone has learned
    from its rows by chance; the tilt then only has to learn what the members miss, and the proxy
    starts as good as they are.

    The weights :math:`\tilde q / r` lie within a factor :math:`e^{\pm c}` of :math:`e^b`, so the
    effective sample size of the normaliser on samples of the reference is at least
    :math:`1 / \cosh^2 c`, whatever the dimension and the network (Polya and Szego's inequality).

    Parameters
    ----------
    reference : EnsembleReference or FixedReference
    tilt : Tilt
    """

    def __init__(self, reference: EnsembleReference | FixedReference, tilt: Tilt) -> None:
        super().__init__()
        self.reference = reference
        self.tilt = tilt

    def log_density(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate ``log q~`` at ``x`` of shape (n, d), with result of shape (n,).

        ``log_p`` of shape (n_members, n) are the log-densities of the members at ``x``.
        """
        return self.reference.log_density(x, log_p) + self.tilt(x)

    def log_density_without_each(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Evaluate ``log q~`` as each member sees it, (n_members, n)."""
        return self.reference.log_density_without_each(x, log_p) + self.tilt(x)

    def bound_log_density(self, x: Tensor, log_p: Tensor) -> Tensor:
        """Bound the mean of ``log q~`` at rows of each member, (n_members, n, d), from below."""
        return self.reference.bound_log_density(x, log_p) + self.tilt(x)

    def log_weights(self, y: Tensor, flow: CouplingFlows) -> Tensor:
        """Log-ratio of ``q~`` to the proposals of its reference at ``y``, (n, d) to (n,)."""
        return self.reference.log_ratio(y, flow) + self.tilt(y)

    @torch.no_grad()
    def add_constant(self, constant: float) -> None:
        """Add a constant to ``log q~``, which multiplies the normaliser by its exponential."""
        self.tilt.constant += constant
