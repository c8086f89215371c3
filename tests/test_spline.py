import math

import pytest
import torch
from zuko.transforms import MonotonicRQSTransform

from skjeffreys._spline import BOUND, RationalQuadraticSpline


def random_parameters(n_bins, scale=2.0):
    generator = torch.Generator().manual_seed(n_bins)
    shape = (3, 40, 2, 3 * n_bins - 1)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n_bins", [2, 8, 17])
def test_the_map_is_that_of_zuko(n_bins):
    parameters = random_parameters(n_bins)
    x = torch.linspace(-BOUND - 1, BOUND + 1, 40, dtype=torch.float64)[:, None].expand(3, 40, 2)
    sizes = [n_bins, n_bins, n_bins - 1]
    expected = MonotonicRQSTransform(*parameters.split(sizes, dim=-1), bound=BOUND)
    spline = RationalQuadraticSpline(parameters)
    torch.testing.assert_close(spline.call_and_ladj(x), expected.call_and_ladj(x))
    torch.testing.assert_close(spline.inv(x), expected.inv(x))


@pytest.mark.parametrize("n_bins", [2, 8, 17])
def test_gradients_are_those_of_zuko(n_bins):
    parameters = random_parameters(n_bins).requires_grad_()
    x = torch.linspace(-BOUND - 1, BOUND + 1, 40, dtype=torch.float64)[:, None].expand(3, 40, 2)
    x = x.clone().requires_grad_()
    sizes = [n_bins, n_bins, n_bins - 1]
    expected = MonotonicRQSTransform(*parameters.split(sizes, dim=-1), bound=BOUND)
    gradients = []
    for spline in (RationalQuadraticSpline(parameters), expected):
        y, log_slope = spline.call_and_ladj(x)
        loss = (y + y * log_slope + spline.inv(x).square()).sum()
        gradients.append(torch.autograd.grad(loss, (parameters, x)))
    torch.testing.assert_close(*gradients)


def test_gradients_are_those_of_finite_differences():
    parameters = random_parameters(3)[:1, :4].requires_grad_()
    x = torch.linspace(-BOUND - 1, 4, 8, dtype=torch.float64).reshape(1, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda parameters, x: RationalQuadraticSpline(parameters).call_and_ladj(x), (parameters, x)
    )


@pytest.mark.parametrize("x", [-math.inf, -1e30, 1e30, math.inf])
def test_far_rows_stay_where_they_are(x):
    x = torch.full((3, 40, 2), x, dtype=torch.float64, requires_grad=True)
    parameters = random_parameters(8).requires_grad_()
    y, log_slope = RationalQuadraticSpline(parameters).call_and_ladj(x)
    assert (y == x).all()
    assert (log_slope == 0).all()
    of_parameters, of_x = torch.autograd.grad((y + log_slope).sum(), (parameters, x))
    assert (of_parameters == 0).all()
    assert (of_x == 1).all()


def test_zeros_are_the_identity():
    x = torch.linspace(-BOUND - 1, BOUND + 1, 30)[:, None]
    y, log_slope = RationalQuadraticSpline(torch.zeros(30, 1, 23)).call_and_ladj(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros(30, 1))
