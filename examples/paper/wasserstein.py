"""A Wasserstein GAN whose generator is the flow, as a peer with an exact log-density."""

__all__ = ["TracedWasserstein"]

import torch
from traced import Trace, TracedDensity
from zuko.nn import MLP

from skjeffreys._problem import FixedMultipliers, Terms
from skjeffreys._torch import seeded_initialization
from skjeffreys._training import SLOW_DECAY, Trainer

#: Updates of the critic per update of the generator, and weight of its gradient penalty.
CRITIC_STEPS, PENALTY = 5, 10.0
#: Decay rates of Adam. All three are those of Gulrajani et al., arXiv:1704.00028.
BETAS = (0.0, 0.9)


class WassersteinTrainer(Trainer):
    """Takes a step of the generator, the flow, after some of its critic.

    Batches, learning-rate schedule, slow copy, evaluation and recovery are those of the
    library. The critic is not taken back where numbers overflow.
    """

    def __init__(self, models, multipliers, learning_rate):
        super().__init__(models, multipliers, learning_rate)
        weights = self.flow.weights
        self.critic = MLP(self.flow.base.n_features, 1, (128, 128)).to(weights.device)
        self.optimizer = torch.optim.Adam([weights], betas=BETAS)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), betas=BETAS)

    def step(self, x, folds, generator, iteration):
        """Train the critic on rows ``x`` of the one member, (1, n, d), then the generator."""
        real, (n, _) = x[0], x[0].shape
        for _ in range(CRITIC_STEPS):
            with torch.no_grad():
                fake = self._generate(n, generator)
            share = torch.rand((n, 1), generator=generator, device=x.device)
            between = torch.lerp(real, fake, share).requires_grad_()
            (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            loss = self.critic(fake).mean() - self.critic(real).mean() + PENALTY * penalty
            self._descend(self.critic_optimizer, loss)
        self._descend(self.optimizer, -self.critic(self._generate(n, generator)).mean())
        with torch.no_grad():
            self.slow_flow.weights.lerp_(self.flow.weights, 1 - SLOW_DECAY)
            forward = -self.flow.log_prob(x).mean() - self.entropy
        unknown = forward.new_tensor(float("nan"))
        return Terms(forward, unknown, unknown, unknown)

    def decay_weights(self, gap):
        """Do nothing: a generator has no weight decay in Gulrajani et al."""

    def schedule(self, iteration, last_iteration):
        """Set both learning rates."""
        super().schedule(iteration, last_iteration)
        self.critic_optimizer.param_groups[0]["lr"] = self.optimizer.param_groups[0]["lr"]

    def _generate(self, n, generator):
        flow = self.flow
        no_conditions = flow.weights.new_empty(n, 0)
        return flow.transform.inv(flow.base.sample(no_conditions, generator))[0]

    @staticmethod
    def _descend(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class TracedWasserstein(TracedDensity):
    """The flow of a JeffreysDensity with one member, trained as a generator."""

    def _new_trainer(self, models):
        multipliers = FixedMultipliers((1.0, 0.0, 0.0), models["flow"].weights.device)
        with seeded_initialization(self.random_state):
            trainer = WassersteinTrainer(models, multipliers, self.learning_rate_init)
        self._trace = Trace(trainer)
        return trainer
