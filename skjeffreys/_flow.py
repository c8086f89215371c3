"""The main model: neural spline coupling flows of several members, computed together."""

__all__ = ["CouplingFlows", "Flows"]

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Transform
from zuko.transforms import (
    ComposedTransform,
    CouplingTransform,
    DependentTransform,
    MonotonicAffineTransform,
)

from ._mixing import linear_mixings
from ._mixtures import Mixtures
from ._power import Unbending
from ._regression import LinearRegressions
from ._spline import RationalQuadraticSpline


class Flows(nn.Module):
    """Preprocessed features, then a base density; one for each member.

    Rows may begin with columns of conditions; the density is that of the other columns, the
    features, given these.

    Parameters
    ----------
    base : Mixtures
        Base density of each member.
    preprocessing : LinearRegressions or Unbending
        What features go through first: to the residuals of regressions on the conditions, of which
        there may be none, or back to what they were before they were bent.
    """

    def __init__(self, base: Mixtures, preprocessing: LinearRegressions | Unbending) -> None:
        super().__init__()
        self.base = base
        self.preprocessing = preprocessing
        self.n_conditions = n_conditions = preprocessing.n_conditions
        columns = torch.arange(n_conditions + base.n_features, device="cpu")
        self.register_buffer("is_condition", columns < n_conditions)

    @property
    def n_members(self) -> int:
        """Number of members."""
        return self.base.n_members

    @property
    def transform(self) -> ComposedTransform:
        """From rows to the base, each of shape (n_members, n, q + d)."""
        return ComposedTransform(*self._transforms())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each member at its rows, (n_members, n, q + d) to (n_members, n).

        Rows of shape (n, q + d) are those of every member.
        """
        z, log_abs_det = self.transform.call_and_ladj(x.expand(self.n_members, -1, -1))
        return self.base.log_prob(z) + log_abs_det

    @torch.no_grad()
    def sample(self, conditions: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a row for each row of conditions, (n_members, n, q) to (n_members, n, q + d).

        Conditions of shape (n, q) are those of every member.
        """
        return self.transform.inv(self.base.sample(conditions, generator))

    def _transforms(self) -> list[Transform]:
        return [CouplingTransform(self.preprocessing.transform, self.is_condition)]


class CouplingFlows(Flows):
    """Flows of rational-quadratic spline couplings, one for each member of an ensemble.

    Every second coupling splits the features at random, the next one swaps the two halves, so
    that two in a row transform every feature. Between two of them a linear transform mixes the
    features. All start as the identity: training starts from the base density, whatever the seed.

    Every coupling sees the conditions and leaves them as they are. Where there are any, the
    first transform is from the features to the standardised residuals of the regression, and
    the first coupling is affine, to follow how conditions move and scale all features further.

    The members share the splits and nothing else. Row ``k`` of the one parameter, ``weights``,
    holds all weights of member ``k``: an average, a gradient norm or a copy is one operation.

    Parameters
    ----------
    base : Mixtures
        As for Flows.
    regressions : LinearRegressions
        Preprocessing.
    hidden_layer_sizes : tuple of int
        Hidden layers of the network of each coupling.
    n_transforms : int
    n_bins : int

    References
    ----------
    Durkan et al., *Neural Spline Flows*, NeurIPS 2019. https://arxiv.org/abs/1906.04032
    """

    def __init__(
        self,
        base: Mixtures,
        *,
        regressions: LinearRegressions,
        hidden_layer_sizes: tuple[int, ...],
        n_transforms: int,
        n_bins: int,
    ) -> None:
        super().__init__(base, regressions)
        n_conditions = self.n_conditions
        masks = _alternating_masks(base.n_features, n_transforms)
        self.univariates = [(RationalQuadraticSpline, 3 * n_bins - 1)] * n_transforms
        if n_conditions > 0:
            masks = torch.cat([torch.zeros_like(masks[:1]), masks])
            self.univariates = [(_affine, 2), *self.univariates]
        masks = F.pad(masks, (n_conditions, 0), value=True)
        self.layer_sizes = []
        for mask, (_, n_parameters) in zip(masks, self.univariates, strict=True):
            n_fixed, n_outputs = int(mask.sum()), int((~mask).sum()) * n_parameters
            self.layer_sizes.append(list(pairwise([n_fixed, *hidden_layer_sizes, n_outputs])))
        # The columns of each coupling: first those that it leaves as they are.
        self.register_buffer("orders", torch.argsort(~masks, dim=1, stable=True))
        self.mixing_shape = (n_transforms - 1, base.n_features, base.n_features)
        networks = [self._initial_weights(sizes) for sizes in self.layer_sizes]
        mixing = torch.zeros(self.n_members, math.prod(self.mixing_shape))
        self.weights = nn.Parameter(torch.cat([*networks, mixing], dim=1))

    def _transforms(self) -> list[Transform]:
        n_mixing = math.prod(self.mixing_shape)
        networks, mixing = self.weights.split([self.weights.shape[1] - n_mixing, n_mixing], dim=1)
        # With zeros in their rows and columns, conditions stay as they are.
        padding = (self.n_conditions, 0)
        mixings = linear_mixings(
            F.pad(mixing.unflatten(1, self.mixing_shape), (*padding, *padding))
        )
        couplings = self._couplings(networks)
        n_before = len(couplings) - len(mixings)
        transforms = super()._transforms() if self.n_conditions > 0 else []
        transforms += couplings[:n_before]
        for pair in zip(mixings, couplings[n_before:], strict=True):
            transforms += pair
        return transforms

    def _couplings(self, weights: Tensor) -> list["_Coupling"]:
        sizes = [n * m for layers in self.layer_sizes for i, o in layers for n, m in _shapes(i, o)]
        weights = iter(weights.split(sizes, dim=1))
        couplings = []
        for order, position, layers, univariate in zip(
            self.orders, self.orders.argsort(dim=1), self.layer_sizes, self.univariates, strict=True
        ):
            unflat = [
                next(weights).unflatten(1, shape) for i, o in layers for shape in _shapes(i, o)
            ]
            meta, n_fixed = partial(_conditioned, *univariate, unflat), layers[0][0]
            couplings.append(_Coupling(meta, order, position, n_fixed))
        return couplings

    def _initial_weights(self, layers: list[tuple[int, int]]) -> Tensor:
        """Draw as torch's linear layers do, except the last layer: zeros, for the identity."""
        n_members = self.n_members
        parts = []
        for n_inputs, n_outputs in layers[:-1]:
            bound = 1 / math.sqrt(max(n_inputs, 1))
            n_weights = (n_inputs + 1) * n_outputs
            parts.append(torch.empty(n_members, n_weights).uniform_(-bound, bound))
        n_inputs, n_outputs = layers[-1]
        return torch.cat([*parts, torch.zeros(n_members, (n_inputs + 1) * n_outputs)], dim=1)


class _Coupling(CouplingTransform):
    """Coupling with the same map as that of zuko, whose columns are selected, not indexed: faster.

    Parameters
    ----------
    meta : callable
        From the columns that stay as they are to the transform of the others.
    order : Tensor of int, shape (n_columns,)
        The columns, first those that stay as they are.
    position : Tensor of int, shape (n_columns,)
        Where each column is in ``order``.
    n_fixed : int
        How many stay as they are.
    """

    def __init__(
        self, meta: Callable[[Tensor], Transform], order: Tensor, position: Tensor, n_fixed: int
    ) -> None:
        Transform.__init__(self)
        self.meta = meta
        self.order = order
        self.position = position
        self.sizes = [n_fixed, len(order) - n_fixed]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Select the columns that stay as they are, and the others."""
        return x.index_select(-1, self.order).split(self.sizes, dim=-1)

    def merge(self, x_a: Tensor, x_b: Tensor, shape: torch.Size) -> Tensor:
        """Put columns back where they were."""
        return torch.cat([x_a, x_b], dim=-1).index_select(-1, self.position)


def _conditioned(
    univariate: Callable[[Tensor], Transform], n_parameters: int, weights: list[Tensor], x: Tensor
) -> DependentTransform:
    """Transform features, each by its own parameters that a network computes from ``x``."""
    *hidden, (weight, bias) = zip(weights[::2], weights[1::2], strict=True)
    for hidden_weight, hidden_bias in hidden:
        x = F.silu(torch.baddbmm(hidden_bias, x, hidden_weight))
    parameters = torch.baddbmm(bias, x, weight).unflatten(-1, (-1, n_parameters))
    return DependentTransform(univariate(parameters), 1)


def _affine(parameters: Tensor) -> MonotonicAffineTransform:
    """Shift and scale, from two parameters."""
    return MonotonicAffineTransform(*parameters.unbind(dim=-1))


def _shapes(n_inputs: int, n_outputs: int) -> list[tuple[int, int]]:
    """Shapes of the weight and of the bias of a layer."""
    return [(n_inputs, n_outputs), (1, n_outputs)]


def _alternating_masks(n_features: int, n_transforms: int) -> Tensor:
    """Masks of the features that a coupling leaves as they are, (n_transforms, n_features)."""
    masks = []
    for i in range(n_transforms):
        masks.append(torch.randperm(n_features) % 2 == 1 if i % 2 == 0 else ~masks[-1])
    return torch.stack(masks)
