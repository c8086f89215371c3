"""The linear transform of the flows, which mixes columns between two couplings."""

__all__ = ["LinearMixing"]

import torch
from torch import Tensor
from torch.distributions import Transform, constraints


class LinearMixing(Transform):
    r"""Linear map :math:`x \mapsto L U x` of rows, one for each member.

    What depends on sums and differences of columns is hard to follow for couplings, each of which
    moves some columns given the others. With a matrix between them a flow finds directions of its
    own. The factors are triangular, so that the Jacobian costs nothing: :math:`L` has ones on its
    diagonal, :math:`U` exponentials, and no step of training makes the map singular.

    The same map as ``LULinearTransform`` of zuko, as a product of matrices for each member instead
    of one for each row.

    Parameters
    ----------
    parameters : Tensor of shape (n_members, n_columns, n_columns)
        Below the diagonal those of ``L``, above it those of ``U``, on it the logarithms of the
        diagonal of ``U``. Zeros are the identity.

    References
    ----------
    Kingma and Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018.
    https://arxiv.org/abs/1807.03039
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, parameters: Tensor) -> None:
        super().__init__()
        self.log_scales = parameters.diagonal(dim1=-2, dim2=-1)
        ones = torch.diag_embed(torch.ones_like(self.log_scales))
        self.lower = parameters.tril(-1) + ones
        self.upper = parameters.triu(1) + torch.diag_embed(self.log_scales.exp())

    def _call(self, x: Tensor) -> Tensor:
        return x @ (self.lower @ self.upper).mT

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.linalg.solve_triangular(self.lower, y.mT, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(self.upper, x, upper=True).mT

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of the determinant, the same for all rows of a member."""
        return self.log_scales.sum(dim=-1, keepdim=True).expand(x.shape[:-1])
