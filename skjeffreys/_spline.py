"""The univariate transform of the flows: the rational-quadratic spline of zuko, made faster."""

__all__ = ["BOUND", "RationalQuadraticSpline"]

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributions import Transform
from zuko.transforms import MonotonicRQSTransform

#: The splines are the identity beyond this distance from zero.
BOUND = 5.0
#: Smallest slope at a knot, and smallest share of a bin relative to the largest.
SMALLEST_SLOPE = 1e-3


class RationalQuadraticSpline(MonotonicRQSTransform):
    """Monotonic rational-quadratic spline with the same map as that of zuko.

    Half of a training step is splines, so two things are done for their speed. The knots are the
    first axis, not the last: operations on whole rows side by side are vectorised, those on the few
    numbers of one spline are not. And the gradient of the map is written by hand.

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
        self.parameters = parameters.movedim(-1, 0).contiguous()
        with torch.no_grad():
            n_bins = (len(self.parameters) + 1) // 3
            bounds = self.parameters.new_full((len(self.parameters),), -math.log(SMALLEST_SLOPE))
            bounds[: 2 * n_bins] /= 2
            bounds = bounds.reshape(-1, *[1] * (self.parameters.ndim - 1))
            self.shrinkage = self.parameters.abs().div_(bounds).add_(1).reciprocal_()
            sizes, slopes = (self.parameters * self.shrinkage).split([2 * n_bins, n_bins - 1])
            self.shares = F.softmax(sizes.unflatten(0, (2, n_bins)), dim=1)
            ends = self.shares.cumsum(dim=1).mul_(2 * BOUND).sub_(BOUND)
            self.knots = _pad(ends, 1, (1, 0), -BOUND)
            self.horizontal, self.vertical = self.knots
            self.derivatives = _pad(slopes.exp_(), 0, (1, 1), 1.0)

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
        (x0, y0), (w, h), (d0, d1) = self.bin_inside(k % self.bins)
        return inside, x0, x0 + w, y0, y0 + h, d0, d1, h / w

    def bin_inside(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the lower corner of bin ``k``, its sizes and slopes, each of shape (2, ...)."""
        ends = torch.stack([k, k + 1])
        lower, upper = self.knots.gather(1, ends.expand(2, *ends.shape)).unbind(dim=1)
        return lower, upper - lower, self.derivatives.gather(0, ends)

    def _inverse(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            x = super()._inverse(y)
        if not torch.is_grad_enabled():
            return x
        # At the solution a step of Newton's method moves nothing, and carries the gradient.
        value, log_slope = self.call_and_ladj(x)
        return x - (value - y) * (-log_slope.detach()).exp()

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map and the logarithm of its slope."""
        return _Map.apply(self.parameters, x, self)


class _Map(torch.autograd.Function):
    r"""Values of splines and the logarithms of their slopes, with gradients by hand.

    In a bin of width ``w``, height ``h`` and mean slope ``s = h / w``, at the part ``z`` of its
    width, with slopes ``d0`` and ``d1`` at its ends and ``c = d0 + d1 - 2 s``:

    .. math:: y = y_0 + h \frac{z (d_0 + (s - d_0) z)}{s + c z (1 - z)}, \qquad
        y' = s^2 \frac{d_0 + (d_1 - d_0) z - c z (1 - z)}{(s + c z (1 - z))^2} .
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, parameters: Tensor, x: Tensor, spline: RationalQuadraticSpline
    ) -> tuple[Tensor, Tensor]:
        inside = x.abs() < BOUND
        k = spline.searchsorted(spline.horizontal[1:-1], x)  # First or last of what is outside.
        lower, sizes, slopes = spline.bin_inside(k)
        (x0, y0), (w, h), (d0, d1) = lower, sizes, slopes
        s = h / w
        z = (x.clamp(-BOUND, BOUND) - x0) / w
        t = z - z * z
        c = d0 + d1 - 2 * s
        denominator = s + c * t
        part = z * torch.lerp(d0, s, z) / denominator
        numerator = torch.lerp(d0, d1, z) - c * t
        log_slope = (numerator * (s / denominator).square()).log()
        ctx.save_for_backward(
            *(inside, k, lower, sizes, slopes, s, z, t, c, denominator, part, numerator),
            *(spline.shrinkage, spline.shares, spline.derivatives),
        )
        return torch.where(inside, y0 + h * part, x), inside * log_slope

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, y_gradient: Tensor, log_gradient: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        inside, k, lower, sizes, slopes, s, z, t, c, *others = ctx.saved_tensors
        denominator, part, numerator, shrinkage, shares, derivatives = others
        (w, h), (d0, d1) = sizes, slopes
        of_y, twice_of_log = y_gradient * inside, 2 * log_gradient * inside
        # The gradient in what the two formulas are made of: ``of_s`` is that in ``s``.
        of_numerator = twice_of_log / (2 * numerator)
        of_product = of_y * h / denominator
        of_square = twice_of_log / denominator
        of_denominator = -torch.addcmul(of_square, of_product, part)
        surplus = of_denominator - of_numerator
        bend = torch.addcmul(c, c, z, value=-2)
        of_s = torch.addcmul(of_denominator + twice_of_log / s, of_product, z * z)
        of_s = of_s.addcmul_(t, surplus, value=-2)
        of_z = torch.addcmul(of_product * s * numerator / denominator, bend, of_square, value=-1)
        of_z = of_z.addcmul_(d1 - d0 - bend, of_numerator)
        of_d1 = torch.addcmul(z * of_numerator, t, surplus)
        of_d0 = torch.addcmul(of_numerator + t * of_product, t, surplus) - z * of_numerator
        # In the lower corner, with which the upper one goes along, and in the upper one.
        of_x, of_s = of_z / w, of_s / w
        of_both = torch.stack([-of_x, of_y])
        of_upper = torch.stack([-torch.addcmul(of_s * s, of_x, z), torch.addcmul(of_s, of_y, part)])
        # In the shares, each of which moves the knots after it, and in the parameters.
        mean = torch.addcmul(of_both * (lower + BOUND), of_upper, sizes)
        before, at = 2 * BOUND * of_both - mean, 2 * BOUND * of_upper - mean
        bins = torch.arange(shares.shape[1], device=k.device).reshape(-1, *[1] * k.ndim)
        of_sizes = torch.where(bins == k, at[:, None], -mean[:, None])
        of_sizes = torch.where(bins < k, before[:, None], of_sizes).mul_(shares)
        ends, of_slopes = torch.stack([k, k + 1]), torch.stack([of_d0, of_d1])
        of_slopes = torch.zeros_like(derivatives).scatter_(0, ends, of_slopes).mul_(derivatives)
        of_parameters = torch.cat([of_sizes.flatten(0, 1), of_slopes[1:-1]])
        of_parameters = of_parameters.mul_(shrinkage).mul_(shrinkage)
        return of_parameters, of_x + (y_gradient - of_y), None


def _pad(values: Tensor, dim: int, sizes: tuple[int, int], value: float) -> Tensor:
    """Pad an axis."""
    return F.pad(values, (*[0, 0] * (values.ndim - 1 - dim), *sizes), value=value)
