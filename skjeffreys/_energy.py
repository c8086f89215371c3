"""The proxy: an energy-based model that stands in for the unknown data density."""

__all__ = ["TiltedReference"]

import torch
from torch import Tensor, nn
from zuko.lazy import LazyDistribution
from zuko.nn import MLP


class TiltedReference(nn.Module):
    r"""Un-normalised density that tilts a reference density by a network,

    .. math:: \log \tilde q_\psi(x) = \log r(x) + f_\psi(x), \qquad E_\psi = -\log \tilde q_\psi .

    With a standard normal reference this is the independent energy of the paper. With a slow
    copy of the flow as reference, the tilt only has to learn what the flow misses, so the
    proxy is never much worse than the flow and its normaliser is known in any dimension.
    The tilt starts at zero, hence the proxy at its reference and its normaliser at one. No
    gradient reaches the reference.

    Parameters
    ----------
    reference : zuko.lazy.LazyDistribution
        Lazy distribution of shape (d,); called at every use, so it may change between calls.
    n_features : int
    hidden_layer_sizes : tuple of int
    """

    def __init__(
        self,
        reference: LazyDistribution,
        n_features: int,
        hidden_layer_sizes: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.reference = reference
        self.tilt = MLP(n_features, 1, hidden_layer_sizes, activation=nn.SiLU)
        nn.init.zeros_(self.tilt[-1].weight)
        nn.init.zeros_(self.tilt[-1].bias)

    def log_density(self, x: Tensor) -> Tensor:
        """``log q~(x)`` for x of shape (n, d), shape (n,)."""
        with torch.no_grad():
            log_reference = self.reference().log_prob(x)
        return log_reference + self.tilt(x).squeeze(-1)

    @torch.no_grad()
    def add_constant(self, constant: float) -> None:
        """Add a constant to ``log q~``, which multiplies the normaliser by its exponential."""
        self.tilt[-1].bias += constant
