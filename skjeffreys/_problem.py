r"""The constrained problem: three divergences, their relaxed levels, their multipliers.

.. math::

    \min_{\theta, \psi, u} h(u) \quad \text{subject to} \quad
    & D_1 = \mathrm{KL}(\pi \| p_\theta) \le u_1, \\
    & D_2 = \mathrm{KL}(p_\theta \| q_\psi) \le u_2, \\
    & D_3 = \mathrm{KL}(\pi \| q_\psi) \le u_3, \qquad Z_\psi = 1,

with :math:`h` the price of relaxing: convex and Lipschitz, with slope
:math:`\partial_i h(u) = \min(\varepsilon_i + \max(u_i, 0), \lambda_i^{\max})`. There are several
main models, the members of an ensemble, each with its own :math:`\theta` and the same multipliers.
The Lagrangian is descended in the models and ascended in the multipliers (Ben-Dov and Chamon,
*Adaptive Symmetrization of the KL Divergence*, arXiv:2511.11159; Hounie, Ribeiro and Chamon,
*Resilient Constrained Learning*, arXiv:2306.02426).
"""

__all__ = [
    "AdaptiveMultipliers",
    "FixedMultipliers",
    "LogDensities",
    "Terms",
    "evaluate_terms",
    "lagrangian",
]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ._ensemble import mixture_log_density

#: Smallest and largest multipliers of the forward divergence, the reverse divergence and the
#: fidelity: the slopes of ``h`` at zero and far out. A reverse divergence that stays large says
#: that the proxy is far from the flow, not that it is the better of the two: it never outweighs
#: the rows of flows that do not overfit.
SMALLEST, LARGEST = (0.1, 0.01, 0.1), (0.3, 0.15, 0.3)
#: Scale, in nats by which the log-likelihood of all rows left out is behind its best, on which the
#: largest reverse multiplier grows exponentially: flows that overfit learn more from the other
#: members than from their rows.
OVERFITTING_SCALE = 60.0
#: Largest factor by which it grows.
MAXIMUM_GROWTH = 10.0
#: What overfitting may cost, in nats of all rows left out together, before it grows much.
MAXIMUM_LOSS = 20.0
#: Standard deviation of the log-ratio of flow and proxy, in nats, beyond which the reverse term
#: grows in proportion to it, no longer to its square.
MAXIMUM_DEVIATION = 0.5
#: Step of the dual ascent.
DUAL_STEP = 0.05
#: Weight of the squared violation of ``Z = 1`` in the augmented Lagrangian.
DAMPING = 3.0


class Terms(NamedTuple):
    """The three divergences and the normaliser, estimated on one batch; scalars, in nats."""

    forward: Tensor
    reverse: Tensor
    fidelity: Tensor
    normalizer: Tensor


@dataclass(frozen=True)
class LogDensities:
    """Log-densities of the members and of the proxy on one batch, in nats.

    ``x`` are ``n`` data rows of each of the ``m`` members, ``y`` are ``s`` samples of the
    ensemble that all members share.
    """

    #: ``log p(x)`` of each member at its own rows, (m, n).
    p_x: Tensor
    #: ``log p(y)`` of each member at all samples, (m, s).
    p_y: Tensor
    #: ``log q~(x)`` of the un-normalised proxy, or a lower bound in the mean, (m, n).
    q_x: Tensor
    #: ``log q~(y)`` as each member sees it, (m, s).
    q_y_without_each: Tensor
    #: Whether ``y`` is near rows that each member leaves out, (m, s) of bool.
    near_held_out: Tensor

    @cached_property
    def q_y(self) -> Tensor:
        """``log q~(y)``, (s,): the mean of what the members see, each all others."""
        return mixture_log_density(self.q_y_without_each)

    @cached_property
    def reverse_weights(self) -> Tensor:
        """Weights of the samples in means over each member, (m, s); rows sum to one.

        The samples come from the mean of the members, of which a member is a fraction at
        least ``1 / m``: no importance weight ``p / mean(p)`` exceeds ``m``.
        """
        log_p = self.p_y.detach()
        return torch.softmax(log_p - mixture_log_density(log_p), dim=1)

    @cached_property
    def normalizer_weights(self) -> Tensor:
        """Importance weights ``q~(y) / mean(p)(y)``, truncated at their number, (s,).

        One sample in the tail of the flow can otherwise outweigh all others by many orders of
        magnitude and throw the multiplier of the normaliser off; so it adds one to their mean at
        most. Truncation at the root of the number (Ionides, *Truncated Importance Sampling*, JCGS
        17, 2008) is steadier but, with the few samples of a step, so biased that an independent
        energy settles at a normaliser well above one.
        """
        log_weights = (self.q_y - mixture_log_density(self.p_y)).detach()
        return log_weights.clamp(max=math.log(len(log_weights))).exp()


@torch.no_grad()
def evaluate_terms(log_densities: LogDensities, entropy: float) -> Terms:
    """Estimate the terms, means over the members, where ``entropy`` is that of the data."""
    difference = log_densities.p_y - log_densities.q_y_without_each
    reverse = log_densities.reverse_weights * difference
    return Terms(
        forward=-log_densities.p_x.mean() - entropy,
        reverse=reverse.sum(dim=1).mean(),
        fidelity=-log_densities.q_x.mean() - entropy,
        normalizer=log_densities.normalizer_weights.mean(),
    )


def lagrangian(log_densities: LogDensities, multipliers: "FixedMultipliers") -> Tensor:
    r"""Return a scalar whose gradient is that of the Lagrangian, summed over the members.

    The samples ``y`` carry no gradient. The reverse divergence is descended in a flow along the
    gradient of half the variance of its log-ratio to the proxy, under the ensemble:

    .. math:: \nabla_\theta \tfrac12 \mathrm{Var}_y
        \big( \log p_\theta(y) - \log \tilde q(y) \big) = \mathrm{Cov}_y
        \big( \log p_\theta(y) - \log \tilde q(y), \nabla_\theta \log p_\theta(y) \big) .

    With ``y`` from the flow itself that is the gradient of ``D_2`` (Richter et al., *VarGrad*,
    NeurIPS 2020, arXiv:2010.10436), and whatever ``y`` are from, it vanishes, noise included, where
    the two models agree. Samples of a member say where it has too much mass, those of the others
    where it has too little; it needs no derivative of the sampler or of the energy. Where the
    standard deviation is above half a nat, the differences are shrunk to that, in proportion, so
    that what is descended is its Huber function: the pull of a proxy that knows less than the flow
    stays bounded, however far it is off.

    A member does not learn from samples near rows that it leaves out. The others are trained on
    these, and it would get to know them: they would no longer say when it overfits.

    The gradient of the normaliser in the proxy is the mean of :math:`w(y) \nabla_\psi \log
    \tilde q(y)` with the importance weights :math:`w`.
    """
    p_y, q_y_without_each = log_densities.p_y, log_densities.q_y_without_each
    learned_from = (~log_densities.near_held_out).to(p_y.dtype)
    weights = learned_from / learned_from.sum(dim=1, keepdim=True).clamp(min=1)
    difference = (p_y - q_y_without_each).detach()
    centred = difference - (weights * difference).sum(dim=1, keepdim=True)
    deviation = (weights * centred**2).sum(dim=1, keepdim=True).sqrt()
    shrunk = centred * (MAXIMUM_DEVIATION / deviation).clamp(max=1)
    forward = -log_densities.p_x.mean(dim=1).sum()
    reverse = (weights * shrunk * p_y).sum() - q_y_without_each.mean(dim=1).sum()
    fidelity = -log_densities.q_x.mean(dim=1).sum()
    divergences = multipliers.lambdas @ torch.stack([forward, reverse, fidelity])
    weights = log_densities.normalizer_weights
    mu = multipliers.damped_mu(weights.mean())
    return divergences + len(p_y) * mu * (weights * log_densities.q_y).mean()


class FixedMultipliers:
    """Multipliers that never move: the weighted problem.

    ``mu`` is the sum of the last two, where a normaliser of one is stationary.
    """

    def __init__(self, weights: Sequence[float], device: torch.device) -> None:
        self.lambdas = torch.as_tensor(weights, dtype=torch.float32, device=device)
        self.mu = self.lambdas[1] + self.lambdas[2]

    def damped_mu(self, normalizer: Tensor) -> Tensor:
        """Return ``mu``, the weight of the normaliser in the Lagrangian."""
        return self.mu

    def ascend(self, terms: Terms) -> None:
        """Do nothing."""

    def pull_grows(self, loss: float) -> bool:
        """Whether the pull of the other members grows much: never."""
        return False

    def move_bounds(self, loss: float, fraction_left: float) -> None:
        """Do nothing."""


class AdaptiveMultipliers(FixedMultipliers):
    r"""Multipliers that ascend the dual of the relaxed problem.

    The levels are where the Lagrangian is smallest, :math:`\lambda_i = \partial_i h(u)`, so
    :math:`u_i = \lambda_i - \varepsilon_i`; then

    .. math:: \lambda_i \leftarrow \min(\lambda_i^{\max},
        \max(\varepsilon_i, \lambda_i + \eta (D_i - u_i))), \qquad
        \mu \leftarrow \mu + \eta (Z_\psi - 1) .

    A multiplier settles where it equals its divergence plus :math:`\varepsilon_i`, or at its
    largest value, which :meth:`move_bounds` moves. Divergences are in nats and do not depend on
    the units of the data; neither do the multipliers.

    Parameters
    ----------
    smallest, largest : sequence of float, shape (3,)
        The slopes of ``h`` at zero and far out, which may be infinite.
    device : torch.device
    """

    def __init__(
        self, smallest: Sequence[float], largest: Sequence[float], device: torch.device
    ) -> None:
        self.minimum = torch.as_tensor(smallest, dtype=torch.float32, device=device)
        self.maximum = torch.as_tensor(largest, dtype=torch.float32, device=device)
        self.largest = self.maximum
        super().__init__(torch.ones_like(self.minimum).clamp(self.minimum, self.maximum), device)

    @property
    def levels(self) -> Tensor:
        """The relaxed levels ``u`` of the three constraints, shape (3,), in nats."""
        return self.lambdas - self.minimum

    def damped_mu(self, normalizer: Tensor) -> Tensor:
        """Return ``mu + rho (Z - 1)``, that of the augmented Lagrangian.

        The square ``rho / 2 (Z - 1)^2`` added to the Lagrangian changes nothing at the
        solution and damps the oscillation between ``mu`` and the constant of the energy.
        """
        return self.mu + DAMPING * (normalizer - 1)

    def ascend(self, terms: Terms) -> None:
        """Take one step of dual ascent."""
        violation = torch.stack(terms[:3]) - self.levels
        self.lambdas = (self.lambdas + DUAL_STEP * violation).clamp(self.minimum, self.largest)
        self.mu = self.mu + DUAL_STEP * (terms.normalizer - 1)

    def pull_grows(self, loss: float) -> bool:
        """Whether the pull of the other members grows much, where overfitting costs so many nats.

        ``loss`` is that of :meth:`move_bounds`.
        """
        return loss > MAXIMUM_LOSS

    def move_bounds(self, loss: float, fraction_left: float) -> None:
        """Let the other members count for less late in training, and for more where flows overfit.

        The largest reverse multiplier falls with the learning rate: what members learn at small
        steps, each something else, their mean adds up. What it grows by where they overfit does not
        fall. The largest forward multiplier is never below it: flows that are pulled off their
        rows must be able to return.

        Parameters
        ----------
        loss : float
            What overfitting costs the log-likelihood of the rows left out, their sum, in nats.
        fraction_left : float
            Of the steps, in proportion to which the learning rate falls; positive.
        """
        overfitting = math.expm1(min(loss / OVERFITTING_SCALE, math.log1p(MAXIMUM_GROWTH)))
        forward, reverse, fidelity = self.maximum
        reverse = reverse * min(fraction_left + overfitting, MAXIMUM_GROWTH)
        largest = torch.stack([torch.maximum(forward, reverse), reverse, fidelity])
        self.largest = torch.maximum(largest, self.minimum)
