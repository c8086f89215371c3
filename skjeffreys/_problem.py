r"""The constrained problem: three divergences, their relaxed levels, their multipliers.

.. math::

    \min_{\theta, \psi, u} h(u) \quad \text{subject to} \quad
    & D_1 = \mathrm{KL}(\pi \| p_\theta) \le u_1, \\
    & D_2 = \mathrm{KL}(p_\theta \| q_\psi) \le u_2, \\
    & D_3 = \mathrm{KL}(\pi \| q_\psi) \le u_3, \qquad Z_\psi = 1,

with :math:`h(u) = \sum_i \varepsilon_i u_i + \tfrac12 \max(u_i, 0)^2` the price of relaxing. The
Lagrangian is descended in the models and ascended in the multipliers (Ben-Dov and Chamon,
*Adaptive Symmetrization of the KL Divergence*, arXiv:2511.11159; Hounie, Ribeiro and Chamon,
*Resilient Constrained Learning*, arXiv:2306.02426).
"""

__all__ = [
    "AdaptiveMultipliers",
    "FixedMultipliers",
    "Terms",
    "evaluate_terms",
    "importance_weights",
    "lagrangian",
]

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Slopes of ``h`` at zero: what a multiplier falls to once its divergence is zero or below. Where
#: the data terms say that the flow overfits, the reverse divergence is then in charge.
MINIMUM_MULTIPLIERS = (0.005, 0.1, 0.005)
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


def importance_weights(log_p_y: Tensor, log_q_y: Tensor) -> Tensor:
    """Return ``q(y) / p(y)`` at samples of the flow, truncated at the root of their number.

    One sample in the tail of the flow can otherwise outweigh all others by many orders of
    magnitude and throw the multiplier of the normaliser off. Truncation vanishes as the batch
    grows (Ionides, *Truncated Importance Sampling*, JCGS 17, 2008).
    """
    log_weights = (log_q_y - log_p_y).detach()
    return log_weights.clamp(max=0.5 * math.log(len(log_weights))).exp()


@torch.no_grad()
def evaluate_terms(
    log_p_x: Tensor, log_q_x: Tensor, log_p_y: Tensor, log_q_y: Tensor, entropy: float
) -> Terms:
    """Estimate the terms from data rows ``x`` and samples ``y`` of the flow.

    ``log_p`` is the log-density of the flow, ``log_q`` the un-normalised one of the proxy,
    all of shape (batch,); ``entropy`` is that of the data.
    """
    return Terms(
        forward=-log_p_x.mean() - entropy,
        reverse=(log_p_y - log_q_y).mean(),
        fidelity=-log_q_x.mean() - entropy,
        normalizer=importance_weights(log_p_y, log_q_y).mean(),
    )


def lagrangian(
    log_p_x: Tensor,
    log_q_x: Tensor,
    log_p_y: Tensor,
    log_q_y: Tensor,
    multipliers: "FixedMultipliers",
) -> Tensor:
    r"""Return a scalar whose gradient is that of the Lagrangian in both models.

    The samples ``y`` carry no gradient. That of the reverse divergence in the flow is

    .. math:: \nabla_\theta D_2 = \mathrm{Cov}_{y \sim p_\theta}
        \big( \log p_\theta(y) - \log \tilde q(y), \nabla_\theta \log p_\theta(y) \big)
        = \nabla_\theta \tfrac12 \mathrm{Var}_y ( \log p_\theta(y) - \log \tilde q(y) ),

    whose noise vanishes as the two models agree and which needs no derivative of the sampler
    or of the energy (VarGrad: Richter et al., NeurIPS 2020, arXiv:2010.10436). That of the
    normaliser in the proxy is the mean of :math:`w(y) \nabla_\psi \log \tilde q(y)` with the
    importance weights :math:`w`.
    """
    forward = -log_p_x.mean()
    reverse = 0.5 * (log_p_y - log_q_y.detach()).var() - log_q_y.mean()
    fidelity = -log_q_x.mean()
    weights = importance_weights(log_p_y, log_q_y)
    divergences = multipliers.lambdas @ torch.stack([forward, reverse, fidelity])
    return divergences + multipliers.damped_mu(weights.mean()) * (weights * log_q_y).mean()


class FixedMultipliers:
    """Multipliers that never move: the weighted problem.

    ``mu`` is the sum of the last two, where a normaliser of one is stationary.
    """

    def __init__(self, weights: Sequence[float], device: torch.device) -> None:
        self.lambdas = torch.tensor(weights, dtype=torch.float32, device=device)
        self.mu = self.lambdas[1] + self.lambdas[2]

    def damped_mu(self, normalizer: Tensor) -> Tensor:
        """Return ``mu``, the weight of the normaliser in the Lagrangian."""
        return self.mu

    def ascend(self, terms: Terms) -> None:
        """Do nothing."""


class AdaptiveMultipliers(FixedMultipliers):
    r"""Multipliers that ascend the dual of the relaxed problem.

    The levels are where the Lagrangian is smallest, :math:`\lambda_i = \partial_i h(u)`, so
    :math:`u_i = \lambda_i - \varepsilon_i`; then

    .. math:: \lambda_i \leftarrow \max(\varepsilon_i, \lambda_i + \eta (D_i - u_i)), \qquad
        \mu \leftarrow \mu + \eta (Z_\psi - 1) .

    A multiplier settles where it equals its divergence plus :math:`\varepsilon_i`. Divergences
    are in nats and do not depend on the units of the data; neither do the multipliers.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__((1.0, 1.0, 1.0), device)
        self.minimum = torch.tensor(MINIMUM_MULTIPLIERS, dtype=torch.float32, device=device)

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
        self.lambdas = (self.lambdas + DUAL_STEP * violation).clamp(min=self.minimum)
        self.mu = self.mu + DUAL_STEP * (terms.normalizer - 1)
