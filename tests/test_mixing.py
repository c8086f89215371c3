import pytest
import torch
from zuko.transforms import LULinearTransform

from skjeffreys._mixing import linear_mixings


@pytest.mark.parametrize("n_columns", [1, 2, 7])
def test_is_the_linear_transform_of_zuko(n_columns):
    torch.manual_seed(0)
    parameters = 0.5 * torch.randn(3, n_columns, n_columns, dtype=torch.float64)
    x = torch.randn(3, 20, n_columns, dtype=torch.float64)
    _, mixing = linear_mixings(torch.stack([torch.zeros_like(parameters), parameters], dim=1))
    y, log_abs_det = mixing.call_and_ladj(x)
    torch.testing.assert_close(mixing.inv(y), x)
    for k in range(3):
        # There the diagonal is that of the first factor.
        scales = parameters[k].diagonal().exp()
        first = (torch.eye(n_columns) + parameters[k].tril(-1)) * scales
        second = parameters[k].triu(1) / scales[:, None]
        peer = LULinearTransform(first + second)
        torch.testing.assert_close(y[k], peer(x[k]))
        torch.testing.assert_close(log_abs_det[k], peer.log_abs_det_jacobian(x[k], y[k]))


def test_starts_as_the_identity():
    x = torch.randn(3, 20, 4)
    [mixing] = linear_mixings(torch.zeros(3, 1, 4, 4))
    y, log_abs_det = mixing.call_and_ladj(x)
    torch.testing.assert_close(y, x)
    assert (log_abs_det == 0).all()
