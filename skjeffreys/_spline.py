"""The univariate transform of the flows: the rational-quadratic spline of zuko, made faster."""

__all__ = ["BOUND", "RationalQuadraticSpline"]

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributions import Transform, constraints

#: The splines are the identity beyond this distance from zero.
BOUND = 5.0
#: Smallest slope at a knot, and smallest share of a bin relative to the largest.
SMALLEST_SLOPE = 1e-3


class RationalQuadraticSpline(Transform):
    """Monotonic rational-quadratic spline with the same map as that of zuko.

    Half of a training step is splines, and most of it is spent on calling operations. So three
    things are done for their speed. The knots are the first axis, not the last: operations on whole
    rows side by side are vectorised, those on the few numbers of one spline are not. The gradient
    of the map is written by hand. And what can be one operation is not two.

    Parameters
    ----------
    parameters : Tensor of shape (..., 3 * n_bins - 1)
        Unbounded: those of the widths of the bins, of their heights and of the slopes at the
        knots between them. Zeros are the identity.

    References
    ----------
    Durkan et al., *Neural Spline Flows*, NeurIPS 2019. https://arxiv.org/abs/1906.04032
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, parameters: Tensor) -> None:
        super().__init__()
        self.parameters = parameters.movedim(-1, 0).contiguous()
        with torch.no_grad():
            n_bins = (len(self.parameters) + 1) // 3
            bounds = _parameter_bounds(n_bins, parameters.ndim, parameters.dtype, parameters.device)
            self.shrinkage = self.parameters.abs().div_(bounds).add_(1).reciprocal_()
            sizes, slopes = (self.parameters * self.shrinkage).split([2 * n_bins, n_bins - 1])
            self.shares = F.softmax(sizes.unflatten(0, (2, n_bins)), dim=1)
            ends = self.shares.cumsum(dim=1).mul_(2 * BOUND).sub_(BOUND)
            self.knots = _pad(ends, 1, (1, 0), -BOUND)
            self.horizontal, self.vertical = self.knots
            self.derivatives = _pad(slopes.exp_(), 0, (1, 1), 1.0)

    def bin_of(self, values: Tensor, knots: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find the bins that values are in, the first or the last for those outside.

        Returns
        -------
        ends : Tensor of int, shape (2, ...)
            Indices of the knots at both ends.
        lower, sizes, slopes : Tensor of shape (2, ...)
            The lower corner, the width and the height, and the slopes at both ends.
        """
        k = (knots[1:-1] < values).sum(dim=0)
        ends = torch.stack([k, k + 1])
        lower, upper = self.knots.gather(1, ends.expand(2, *ends.shape)).unbind(dim=1)
        return ends, lower, upper - lower, self.derivatives.gather(0, ends)

    def _inverse(self, y: Tensor) -> Tensor:
        x = self._solve(y)
        if not torch.is_grad_enabled():
            return x
        # At the solution a step of Newton's method moves nothing, and carries the gradient.
        value, log_slope = self.call_and_ladj(x)
        return x - (value - y) * (-log_slope.detach()).exp()

    @torch.no_grad()
    def _solve(self, y: Tensor) -> Tensor:
        _, (x0, y0), (w, h), (d0, d1) = self.bin_of(y, self.vertical)
        s = h / w
        part = (y.clamp(-BOUND, BOUND) - y0) / h
        bent = part * torch.sub(d0 + d1, s, alpha=2)
        a, b, c = s - d0 + bent, d0 - bent, s * part
        # The root of a z^2 + b z = c that has no cancellation.
        z = 2 * c / (b + torch.addcmul(b * b, a, c, value=4).sqrt())
        return torch.where(y.abs() < BOUND, torch.addcmul(x0, w, z), y)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of the slope at ``x``; ``y`` is the value there."""
        return self.call_and_ladj(x)[1]

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
        ends, lower, sizes, slopes = spline.bin_of(x, spline.horizontal)
        (x0, y0), (w, h), (d0, d1) = lower, sizes, slopes
        s = h / w
        z = (x.clamp(-BOUND, BOUND) - x0) / w
        t = torch.addcmul(z, z, z, value=-1)
        c = torch.sub(d0 + d1, s, alpha=2)
        denominator = torch.addcmul(s, c, t)
        part = z * torch.lerp(d0, s, z) / denominator
        numerator = torch.addcmul(torch.lerp(d0, d1, z), c, t, value=-1)
        log_slope = (numerator * (s / denominator).square()).log()
        y = torch.where(inside, torch.addcmul(y0, h, part), x)
        inside = inside.to(x)
        ctx.save_for_backward(
            *(inside, ends, lower, sizes, slopes, s, z, t, c, denominator, part, numerator),
            *(spline.shrinkage, spline.shares, spline.derivatives),
        )
        return y, inside * log_slope

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, y_gradient: Tensor, log_gradient: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        inside, ends, lower, sizes, slopes, s, z, t, c, *others = ctx.saved_tensors
        denominator, part, numerator, shrinkage, shares, derivatives = others
        (w, h), (d0, d1) = sizes, slopes
        of_y, of_log = y_gradient * inside, log_gradient * inside
        twice_of_log = of_log + of_log
        # The gradient in what the two formulas are made of: ``of_s`` is that in ``s``.
        of_numerator = of_log / numerator
        of_product = of_y * h / denominator
        of_square = twice_of_log / denominator
        minus_of_denominator = torch.addcmul(of_square, of_product, part)
        minus_of_ct = minus_of_denominator + of_numerator
        bend = torch.addcmul(c, c, z, value=-2)
        of_s = torch.addcmul(twice_of_log / s - minus_of_denominator, of_product, z - t)
        of_s = of_s.addcmul_(t, minus_of_ct, value=2)
        of_z = torch.addcmul(of_product * s * numerator / denominator, bend, of_square, value=-1)
        of_z = of_z.addcmul_(d1 - d0 - bend, of_numerator)
        of_end = z * of_numerator
        of_d1 = torch.addcmul(of_end, t, minus_of_ct, value=-1)
        of_d0 = torch.addcmul(of_numerator - of_end, t, of_product - minus_of_ct)
        # Minus that in the lower corner, with which the upper one goes along, and in the upper one.
        of_x, of_s = of_z / w, of_s / w
        minus_of_both = torch.stack([of_x, -of_y])
        minus_of_upper = torch.addcmul(of_s, of_y, part).neg_()
        minus_of_upper = torch.stack([torch.addcmul(of_s * s, of_x, z), minus_of_upper])
        # In the shares, each of which moves the knots after it, and in the parameters.
        after = torch.addcmul(minus_of_both * (lower + BOUND), minus_of_upper, sizes)
        before = torch.sub(after, minus_of_both, alpha=2 * BOUND)
        at = torch.sub(after, minus_of_upper, alpha=2 * BOUND)
        k = ends[:1]
        bins = torch.arange(shares.shape[1], device=k.device).reshape(-1, *[1] * (k.ndim - 1))
        of_sizes = torch.where(bins < k, before[:, None], after[:, None])
        of_sizes = of_sizes.scatter_(1, k.expand(2, *k.shape), at[:, None]).mul_(shares)
        of_slopes = torch.stack([of_d0, of_d1])
        of_slopes = torch.zeros_like(derivatives).scatter_(0, ends, of_slopes).mul_(derivatives)
        of_parameters = torch.cat([of_sizes.flatten(0, 1), of_slopes[1:-1]])
        of_parameters = of_parameters.mul_(shrinkage).mul_(shrinkage)
        return of_parameters, of_x + (y_gradient - of_y), None


@cache
def _parameter_bounds(n_bins: int, n_axes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what bounds the parameters of a spline: half as much for sizes, which are relative."""
    bounds = torch.full((3 * n_bins - 1,), -math.log(SMALLEST_SLOPE), dtype=dtype, device=device)
    bounds[: 2 * n_bins] /= 2
    return bounds.reshape(-1, *[1] * (n_axes - 1))


def _pad(values: Tensor, dim: int, sizes: tuple[int, int], value: float) -> Tensor:
    """Pad an axis."""
    return F.pad(values, (*[0, 0] * (values.ndim - 1 - dim), *sizes), value=value)
