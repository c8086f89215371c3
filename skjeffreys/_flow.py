"""The main model: a neural spline coupling flow, with exact density and one-pass samples."""

__all__ = ["coupling_flow", "sample_flow", "standard_normal"]

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.lazy import Flow, UnconditionalDistribution, UnconditionalTransform
from zuko.transforms import IdentityTransform, MonotonicRQSTransform


def coupling_flow(
    n_features: int, *, hidden_layer_sizes: tuple[int, ...], n_transforms: int, n_bins: int
) -> Flow:
    """Build a flow of rational-quadratic spline couplings over a standard normal base.

    Every second coupling splits the features at random, the next one swaps the two halves, so
    that two in a row transform every feature. The splines start as the identity: training
    starts from the standard normal density, whatever the seed.

    References
    ----------
    Durkan et al., *Neural Spline Flows*, NeurIPS 2019. https://arxiv.org/abs/1906.04032
    """
    couplings = []
    mask = None
    for i in range(n_transforms):
        mask = torch.randperm(n_features) % 2 == 0 if i % 2 == 0 else ~mask
        coupling = GeneralCouplingTransform(
            n_features,
            mask=mask,
            univariate=MonotonicRQSTransform,
            shapes=[(n_bins,), (n_bins,), (n_bins - 1,)],
            hidden_features=hidden_layer_sizes,
            activation=nn.SiLU,
        )
        _start_as_identity(coupling)
        couplings.append(coupling)
    return Flow(couplings, _base(n_features))


def standard_normal(n_features: int) -> Flow:
    """Build the flow that does nothing: the standard normal density."""
    return Flow(UnconditionalTransform(IdentityTransform), _base(n_features))


def sample_flow(flow: Flow, noise: Tensor) -> Tensor:
    """Map standard normal ``noise`` of shape (n, d) to samples of the flow, (n, d)."""
    return flow().transform.inv(noise)


def _start_as_identity(coupling: nn.Module) -> None:
    """Zero the parameters of the splines, in 1-D all there are, else the network's last layer."""
    last = coupling.hyper[-1] if hasattr(coupling, "hyper") else coupling
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


def _base(n_features: int) -> UnconditionalDistribution:
    return UnconditionalDistribution(
        _unchecked_normal, loc=torch.zeros(n_features), scale=torch.ones(n_features), buffer=True
    )


def _unchecked_normal(loc: Tensor, scale: Tensor) -> Distribution:
    # The loop recovers from NaN by itself; the checks of torch would raise first.
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
