"""The proxy: an energy-based model that stands in for the unknown data density."""

__all__ = ["Tilt", "TiltedReference"]

import torch
from torch import Tensor, nn
from zuko.lazy import Flow
from zuko.nn import MLP


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
        """Evaluate at ``x`` of shape (n, d), with result of shape (n,)."""
        return self.constant + self.bound * torch.tanh(self.network(x).squeeze(-1) / self.bound)


class TiltedReference(nn.Module):
    r"""An un-normalised density that tilts a reference density.

    .. math:: \log \tilde q_\psi(x) = \log r(x) + b + c \tanh(f_\psi(x) / c), \qquad
        E_\psi = -\log \tilde q_\psi .

    With a standard normal reference this is the independent energy of the paper. With a slow
    copy of the flow as reference, the tilt only has to learn what the flow misses, and the
    proxy starts as good as the flow. No gradient reaches the reference.

    The weights :math:`\tilde q / r` lie within a factor :math:`e^{\pm c}` of :math:`e^b`, so the
    effective sample size of the normaliser on samples of the reference is at least
    :math:`1 / \cosh^2 c`, whatever the dimension and the network (Polya and Szego's inequality).

    Parameters
    ----------
    reference : zuko.lazy.Flow
        Called at every use, so it may change between calls.
    tilt : Tilt
    """

    def __init__(self, reference: Flow, tilt: Tilt) -> None:
        super().__init__()
        self.reference = reference
        self.tilt = tilt

    def log_density(self, x: Tensor) -> Tensor:
        """Evaluate ``log q~`` at ``x`` of shape (n, d), with result of shape (n,)."""
        with torch.no_grad():
            log_reference = self.reference().log_prob(x)
        return log_reference + self.tilt(x)

    @torch.no_grad()
    def add_constant(self, constant: float) -> None:
        """Add a constant to ``log q~``, which multiplies the normaliser by its exponential."""
        self.tilt.constant += constant
