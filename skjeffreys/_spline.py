"""The univariate transform of the flows: the rational-quadratic spline of zuko, made faster."""

__all__ = ["BOUND", "RationalQuadraticSpline"]

import math

import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Transform
from zuko.transforms import MonotonicRQSTransform

#: The splines are the identity beyond this distance from zero.
BOUND = 5.0
#: Smallest slope at a knot, and smallest share of a bin relative to the largest.
SMALLEST_SLOPE = 1e-3


class RationalQuadraticSpline(MonotonicRQSTransform):
    """Monotonic rational-quadratic spline with the same map as that of zuko.

    A softmax over fewer numbers side by side than a vector register holds is not vectorised in
    torch, and eight bins are few. So the sizes of the bins, widths and heights at once, are
    normalised with the rows side by side.

    Parameters
    ----------
    parameters : Tensor of shape (..., 3 * n_bins - 1)
        Unbounded: those of the widths of the bins, of their heights and of the slopes at the
        knots between them. Zeros are the identity.

    References
    ----------
    Durkan et al., *Neural Spline Flows*, NeurIPS 2019. https://arxiv.org/abs/1906.04032
    """

    def __init__(self, parameters: Tensor) -> None:
        Transform.__init__(self)
        n_bins = (parameters.shape[-1] + 1) // 3
        sizes, slopes = parameters.split([2 * n_bins, n_bins - 1], dim=-1)
        sizes = sizes.unflatten(-1, (2, n_bins)).movedim((-2, -1), (0, 1)).contiguous()
        sizes = F.softmax(_bounded(sizes, -math.log(SMALLEST_SLOPE) / 2), dim=1)
        ends = F.pad(sizes.cumsum(dim=1).movedim(1, -1), (1, 0))
        self.horizontal, self.vertical = (BOUND * (2 * ends - 1)).unbind()
        self.derivatives = F.pad(_bounded(slopes, -math.log(SMALLEST_SLOPE)), (1, 1)).exp()


def _bounded(values: Tensor, bound: float) -> Tensor:
    """Map numbers smoothly into ``(-bound, bound)``."""
    return values / (1 + values.abs() / bound)
