"""The linear transform of the flows, which mixes columns between two couplings."""

__all__ = ["LinearMixing", "linear_mixings"]

import torch
from torch import Tensor
from torch.distributions import Transform, constraints


class LinearMixing(Transform):
    r"""Linear map :math:`x \mapsto L U x` of rows, one for each member.

    What depends on sums and differences of columns is hard to follow for couplings, each of which
    moves some columns given the others. With a matrix between them a flow finds directions of its
    own.

    The same map as ``LULinearTransform`` of zuko, as a product of matrices for each member instead
    of one for each row.

    Parameters
    ----------
    lower, upper : Tensor of shape (n_members, n_columns, n_columns)
        The triangular factors. The diagonal of ``lower`` is one.
    product : Tensor of shape (n_members, n_columns, n_columns)
        Of the two.
    log_abs_det : Tensor of shape (n_members, 1)
        Logarithm of the determinant, that of ``upper``.

    References
    ----------
    Kingma and Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018.
    https://arxiv.org/abs/1807.03039
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, lower: Tensor, upper: Tensor, product: Tensor, log_abs_det: Tensor) -> None:
        super().__init__()
        self.lower = lower
        self.upper = upper
        self.product = product
        self.log_abs_det = log_abs_det

    def _call(self, x: Tensor) -> Tensor:
        return x @ self.product.mT

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.linalg.solve_triangular(self.lower, y.mT, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(self.upper, x, upper=True).mT

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of the determinant, the same for all rows of a member."""
        return self.log_abs_det.expand(x.shape[:-1])


def linear_mixings(parameters: Tensor) -> list[LinearMixing]:
    """Build all linear maps of flows at once: matrices are small, and each operation takes time.

    Parameters
    ----------
    parameters : Tensor of shape (n_members, n_mixings, n_columns, n_columns)
        Below the diagonal those of ``L``, whose diagonal is one; above it those of ``U``; on it
        the logarithms of the diagonal of ``U``, so that no step of training makes a map singular.
        Zeros are the identity.
    """
    logarithms = parameters.diagonal(dim1=-2, dim2=-1)
    lower = parameters.tril(-1) + torch.diag_embed(torch.ones_like(logarithms))
    upper = parameters.triu(1) + torch.diag_embed(logarithms.exp())
    log_abs_det = logarithms.sum(dim=-1, keepdim=True)
    factors = (each.unbind(dim=1) for each in (lower, upper, lower @ upper, log_abs_det))
    return [LinearMixing(*each) for each in zip(*factors, strict=True)]
