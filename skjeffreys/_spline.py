"""The univariate transform of the flows: the rational-quadratic spline of zuko, made faster."""

__all__ = ["BOUND", "RationalQuadraticSpline"]

import math

import torch
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

    Here the knots are the first axis, not the last: operations on whole rows side by side are
    vectorised, those on the few numbers of one spline are not. The formulas are those of zuko.

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
        sizes, slopes = parameters.movedim(-1, 0).contiguous().split([2 * n_bins, n_bins - 1])
        sizes = _bounded(sizes.unflatten(0, (2, n_bins)), -math.log(SMALLEST_SLOPE) / 2)
        ends = 2 * BOUND * F.softmax(sizes, dim=1).cumsum(dim=1) - BOUND
        self.horizontal, self.vertical = (_pad_first(end, (1, 0), -BOUND) for end in ends)
        slopes = _bounded(slopes, -math.log(SMALLEST_SLOPE)).exp()
        self.derivatives = _pad_first(slopes, (1, 1), 1.0)

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.horizontal) - 1

    @staticmethod
    def searchsorted(knots: Tensor, value: Tensor) -> Tensor:
        """Count the knots below each value."""
        return (knots < value).sum(dim=0)

    def bin(self, k: Tensor) -> tuple[Tensor, ...]:
        """Return whether there is a bin ``k``, its corners, the slopes there and between them."""
        inside = (k >= 0) & (k < self.bins)
        k = k % self.bins
        ends = torch.stack([k, k + 1])
        x0, x1 = self.horizontal.gather(0, ends)
        y0, y1 = self.vertical.gather(0, ends)
        d0, d1 = self.derivatives.gather(0, ends)
        return inside, x0, x1, y0, y1, d0, d1, (y1 - y0) / (x1 - x0)


def _pad_first(values: Tensor, sizes: tuple[int, int], value: float) -> Tensor:
    """Pad the first axis."""
    return F.pad(values, (*[0, 0] * (values.ndim - 1), *sizes), value=value)


def _bounded(values: Tensor, bound: float) -> Tensor:
    """Map numbers smoothly into ``(-bound, bound)``."""
    return values / (1 + values.abs() / bound)
