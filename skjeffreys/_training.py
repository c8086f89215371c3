"""The training loop: batches, primal-dual steps, evaluation, early stopping, recovery."""

__all__ = ["EarlyStopping", "Recovery", "Trainer", "train"]

import copy
import math
from itertools import count

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ._ensemble import ambiguity_at_samples
from ._problem import FixedMultipliers, LogDensities, Terms, evaluate_terms, lagrangian
from ._rows import Folds

#: Optimiser steps between two evaluations, at least; each evaluation is a row of the history.
EVALUATION_INTERVAL = 25
#: Evaluations at most. In a few steps of a long training, noise hides what is learned.
MAXIMUM_EVALUATIONS = 100
#: Samples of each member in an evaluation, the same noise in all.
EVALUATION_SAMPLES = 32
#: Steps at the start over which the learning rate rises from zero.
WARM_UP = 30
#: What a plateau divides the remaining steps by, and thereby the learning rate.
PLATEAU_DIVISOR = 4
#: Steps from one with samples to the next; those between take less time.
SAMPLING_INTERVAL = 2
#: Samples of the ensemble in such a step, per data row of a member. Each serves all members.
SAMPLES_PER_ROW = 1 / 3
#: Decay, per step, of the slow copy of the flow: an exponential average of its weights.
SLOW_DECAY = 0.99
#: Decay, per step, of the averages of gradients and of their squares in Adam. Batches are small: a
#: memory of 20 steps instead of the usual 10 leaves less of their noise, and allows larger steps.
ADAM_DECAYS = (0.95, 0.999)
#: Weight decay for each nat by which the log-likelihood of the training rows is ahead.
DECAY_PER_NAT = 0.1
#: Largest weight decay.
MAXIMUM_DECAY = 0.5
#: Largest gradient norm of a step, for each member and for the tilt of the proxy.
MAXIMUM_GRADIENT_NORM = 10.0
#: Nats per column that the entropy may lie below the best held-out negative log-likelihood.
ENTROPY_ALLOWANCE = 0.25
#: How often training returns to its last finite state before it gives up.
MAXIMUM_RECOVERIES = 5


class Trainer:
    """The models, their optimiser and their multipliers: everything a step changes.

    Parameters
    ----------
    models : ModuleDict
        Under ``"flow"`` the slow flows that a fit returns, an exponential average of those
        that are trained; under ``"proxy"`` a Proxy. Without a proxy the flows are trained
        alone, by maximum likelihood.
    multipliers : FixedMultipliers
        Fixed or adaptive.
    learning_rate : float
        The largest; it rises and falls during training.

    Attributes
    ----------
    entropy : float
        Of the data, in nats: infinite until :meth:`heed_held_out`.
    """

    def __init__(
        self,
        models: nn.ModuleDict,
        multipliers: FixedMultipliers,
        learning_rate: float,
    ) -> None:
        self.slow_flow = models["flow"]
        self.flow = copy.deepcopy(self.slow_flow)
        self.proxy = dict(models.items()).get("proxy")
        self.multipliers = multipliers
        self.entropy = math.inf
        self.learning_rate = learning_rate
        self._tilt = [] if self.proxy is None else list(self.proxy.tilt.parameters())
        groups = [{"params": [self.flow.weights]}, {"params": self._tilt}]
        self.optimizer = torch.optim.AdamW(groups, betas=ADAM_DECAYS, weight_decay=0, fused=True)

    def step(self, x: Tensor, folds: Folds, generator: torch.Generator, iteration: int) -> Terms:
        """Descend the Lagrangian and, where there are samples, ascend its dual.

        Every step descends the forward divergence. The other terms, those of the proxy, are
        estimated in every second step, for which samples are drawn, and count twice there.

        Parameters
        ----------
        x : Tensor of shape (n_members, n, q + d)
            Data rows of each member.
        folds : Folds
            Of all rows.
        generator : Generator
            Draws about ``n / 3`` samples of the ensemble, given the conditions of rows of ``x``.
        iteration : int
            Number of the step, from one, which has samples.
        """
        with_samples = self.proxy is not None and (iteration - 1) % SAMPLING_INTERVAL == 0
        loss, terms = self._jeffreys(x, folds, generator) if with_samples else self._likelihood(x)
        # Only ratios of the multipliers matter to the optimiser; with their sum taken out, they
        # do not change where gradients are clipped.
        loss = loss / self.multipliers.lambdas.sum()
        self.optimizer.zero_grad()
        loss.backward()
        _clip_each_row(self.flow.weights.grad)
        nn.utils.clip_grad_norm_(self._tilt, MAXIMUM_GRADIENT_NORM)
        self.optimizer.step()
        with torch.no_grad():
            self.slow_flow.weights.lerp_(self.flow.weights, 1 - SLOW_DECAY)
        if with_samples:
            self.multipliers.ascend(terms)
        return terms

    def _likelihood(self, x: Tensor) -> tuple[Tensor, Terms]:
        forward = -self.flow.log_prob(x).mean(dim=1).sum()
        unknown = forward.new_tensor(math.nan)
        terms = Terms(forward.detach() / len(x) - self.entropy, unknown, unknown, unknown)
        return self.multipliers.lambdas[0] * forward, terms

    def _jeffreys(
        self, x: Tensor, folds: Folds, generator: torch.Generator
    ) -> tuple[Tensor, Terms]:
        n_members, n, _ = x.shape
        n_samples = math.ceil(SAMPLES_PER_ROW * n / n_members)
        conditions = x[:, :n_samples, : self.flow.n_conditions]
        y = self.flow.sample(conditions, generator).flatten(0, 1)
        rows = torch.cat([x, y.expand(n_members, -1, -1)], dim=1)
        p_x, p_y = self.flow.log_prob(rows).split([n, len(y)], dim=1)
        log_densities = LogDensities(
            p_x=p_x,
            p_y=p_y,
            q_x=self.proxy.bound_log_density(x, p_x),
            q_y_without_each=self.proxy.log_density_without_each(y, p_y),
            near_held_out=folds.near_held_out(y),
        )
        loss = SAMPLING_INTERVAL * lagrangian(log_densities, self.multipliers)
        in_other_steps = self.multipliers.lambdas[0] * -p_x.mean(dim=1).sum()
        loss = loss - (SAMPLING_INTERVAL - 1) * in_other_steps
        return loss, evaluate_terms(log_densities, self.entropy)

    def heed_held_out(self, log_likelihood: float, gap: float) -> float:
        """Lower the entropy of the data and return what overfitting costs, in nats a row.

        The entropy is at most the negative log-likelihood that any model reaches on rows it
        has not seen. An allowance below the best so far leaves the flow room to improve; where
        it goes further on its training rows, it overfits and its multiplier falls. How far the
        held-out rows are behind their best says how much it does. But the noise of large steps
        takes them back too, and the training rows with them: what overfitting has cost is no more
        than what these are ahead by.

        Parameters
        ----------
        log_likelihood : float
            Mean over the rows that the members leave out.
        gap : float
            How far that of the training rows is ahead of it.
        """
        allowance = ENTROPY_ALLOWANCE * self.flow.base.n_features
        self.entropy = min(self.entropy, -log_likelihood - allowance)
        best = -self.entropy - allowance
        return min(best - log_likelihood, max(gap, 0.0))

    def decay_weights(self, gap: float) -> None:
        """Let the weights of the flows decay from now on, the faster the more they overfit.

        With all weights at zero a flow is its base. Decay costs sharp shapes, and flows that do
        not overfit have no use for it; so it is in proportion to how far they are ahead on the
        rows they are trained on. It is decoupled from the gradient: each step takes away the
        learning rate times the decay (Loshchilov and Hutter, *Decoupled Weight Decay
        Regularization*, ICLR 2019, arXiv:1711.05101).

        Parameters
        ----------
        gap : float
            How far the log-likelihood of the training rows is ahead of that of the rows left out,
            in nats a row.
        """
        decay = min(DECAY_PER_NAT * max(gap, 0.0), MAXIMUM_DECAY)
        self.optimizer.param_groups[0]["weight_decay"] = decay

    @torch.no_grad()
    def held_out_log_likelihood(self, folds: Folds) -> float:
        """Mean log-density of the slow members on the rows that each leaves out, in nats."""
        log_p = self.slow_flow.log_prob(folds.rows.values[folds.held_out])
        return float(folds.held_out_means(log_p).mean())

    @torch.no_grad()
    def ambiguity(self, noise: Tensor) -> float:
        """How far the mean of the slow members is ahead of one of them on new rows, in nats.

        Parameters
        ----------
        noise : Tensor of shape (n_members, n, q + d)
            Of the base of the flows, with conditions.
        """
        samples = self.slow_flow.transform.inv(noise)
        log_p = self.slow_flow.log_prob(samples.flatten(0, 1))
        return float(ambiguity_at_samples(log_p.unflatten(1, samples.shape[:2])))

    def is_finite(self) -> bool:
        """Whether every trained weight and every multiplier is finite."""
        values = [self.flow.weights, *self._tilt, self.multipliers.lambdas, self.multipliers.mu]
        return all(bool(value.isfinite().all()) for value in values)

    def state(self) -> dict:
        """Return a copy of everything a step changes."""
        modules = {"flow": self.flow, "slow_flow": self.slow_flow}
        if self.proxy is not None:
            modules["tilt"] = self.proxy.tilt
        return copy.deepcopy(
            {
                "modules": {name: module.state_dict() for name, module in modules.items()},
                "optimizer": self.optimizer.state_dict(),
                "multipliers": vars(self.multipliers),
            }
        )

    def restore(self, state: dict) -> None:
        """Return to a state got from :meth:`state`."""
        state = copy.deepcopy(state)
        self.flow.load_state_dict(state["modules"]["flow"])
        self.slow_flow.load_state_dict(state["modules"]["slow_flow"])
        if self.proxy is not None:
            self.proxy.tilt.load_state_dict(state["modules"]["tilt"])
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self.multipliers).update(state["multipliers"])

    def schedule(self, iteration: int, fraction_left: float) -> None:
        """Set the learning rate: up in 30 steps, and in proportion to the steps that are left."""
        rising = iteration / WARM_UP
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(rising, fraction_left)


def _clip_each_row(gradient: Tensor) -> None:
    """Shorten each row of a gradient to the largest norm; (n_members, n_weights), in place."""
    norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    gradient.mul_((MAXIMUM_GRADIENT_NORM / norms).clamp(max=1.0))


class EarlyStopping:
    """Remembers the best weights, and shortens training on a plateau.

    A plateau need not be the end: often the learning rate is too large to go further down. So
    the first plateau leaves a quarter of the remaining steps, with learning rates as at the end
    of the schedule, and so does each that follows an improvement. The others end training.

    The first plateau is there, too, once the pull of the other members grows, whether the ensemble
    still improves or not: while steps are large it throws flows back, on new rows too.

    Where flows were no further on the rows they are trained on than on new ones when they were
    best, and still are not, they do not overfit. What holds them up is the noise of large steps,
    and the schedule makes these smaller.

    Parameters
    ----------
    patience : int
        Evaluations of flows that overfit, one after the other without an improvement of more than
        ``tolerance``, that make a plateau.
    tolerance : float
        In nats.
    """

    def __init__(self, patience: int, tolerance: float) -> None:
        self.patience = patience
        self.tolerance = tolerance
        self.best_score = -math.inf
        self.best_gap = math.inf
        self.best_weights = None
        self.evaluations_without_change = 0
        self.last_plateau = -math.inf

    def update(self, score: float, gap: float, pull_grows: bool, weights: Tensor) -> None:
        """Take note of an evaluation.

        Parameters
        ----------
        score : float
            Log-likelihood of new rows, in nats.
        gap : float
            How far the log-likelihood of the training rows is ahead of that of new ones, in nats.
        pull_grows : bool
            Whether the pull of the other members grows much.
        weights : Tensor
        """
        improved = score > self.best_score + self.tolerance
        if self.best_weights is None or score > self.best_score:
            self.best_score, self.best_gap = score, gap
            self.best_weights = weights.detach().clone()
        goes_on = improved or max(gap, self.best_gap) <= 0
        self.evaluations_without_change = 0 if goes_on else self.evaluations_without_change + 1
        if pull_grows and self.last_plateau == -math.inf:
            self.evaluations_without_change = self.patience

    def shorten(self, remaining: int) -> int:
        """Return how many of the remaining steps to take: fewer on a plateau, or none."""
        if self.evaluations_without_change < self.patience:
            return remaining
        self.evaluations_without_change = 0
        before, self.last_plateau = self.last_plateau, self.best_score
        improved = self.last_plateau > before + self.tolerance
        return remaining // PLATEAU_DIVISOR if improved else 0


class Recovery:
    """Returns a trainer whose numbers overflowed to its last finite state, with smaller steps."""

    def __init__(self, trainer: Trainer) -> None:
        self.finite_state = trainer.state()
        self.recoveries = 0

    def check(self, trainer: Trainer) -> bool:
        """Return whether the trainer is finite; if not, take it back.

        Raises
        ------
        FloatingPointError
            After more than 5 recoveries.
        """
        if trainer.is_finite():
            self.finite_state = trainer.state()
            return True
        if self.recoveries == MAXIMUM_RECOVERIES:
            raise _left_finite_numbers(self.recoveries + 1)
        self.recoveries += 1
        trainer.restore(self.finite_state)
        trainer.learning_rate /= 2
        return False


def _left_finite_numbers(times: int) -> FloatingPointError:
    return FloatingPointError(
        f"Training left the finite numbers {times} times, although the step was halved each "
        "time. Use a smaller learning_rate_init, and look for values in X many orders of "
        "magnitude larger than the others."
    )


def train(
    trainer: Trainer,
    folds: Folds,
    early_stopping: EarlyStopping | None,
    *,
    max_iter: int,
    batch_size: int,
    generator: torch.Generator,
    verbose: bool,
) -> pd.DataFrame:
    """Train for ``max_iter`` steps, or fewer as ``early_stopping`` says.

    The slow flow ends with its last weights or, with early stopping, with those where the estimated
    log-likelihood of the ensemble is best: the mean of what its members reach on the rows that
    they leave out, and their ambiguity. That is later than what is best for a member: what each
    has learned by chance averages out.

    Returns
    -------
    history : DataFrame
        One row per evaluation: ``iteration``; the means since the last evaluation of
        ``forward`` and, of steps with samples, ``reverse``, ``fidelity`` and ``normalizer``, not a
        number where there was none; the multipliers ``lambda_1``,
        ``lambda_2``, ``lambda_3`` and ``mu``; the ``training_log_likelihood`` of the flow, over
        the same batches; the ``validation_log_likelihood`` of its slow copy, on the rows
        that each member leaves out; and the ``ambiguity`` by which the mean of the members is ahead
        of a member, estimated on samples. In nats, of the coordinates.

    Raises
    ------
    FloatingPointError
        If training leaves the finite numbers more than 5 times, or at every evaluation.
    """
    interval = max(EVALUATION_INTERVAL, math.ceil(max_iter / MAXIMUM_EVALUATIONS))
    recovery = Recovery(trainer)
    history, recent = [], []
    n_held_out = folds.held_out.numel()
    trainer.heed_held_out(trainer.held_out_log_likelihood(folds), 0.0)
    conditions = folds.rows.draw_conditions(EVALUATION_SAMPLES, generator)
    noise = trainer.slow_flow.base.sample(conditions, generator)
    remaining = max_iter
    for iteration in tqdm(count(1), total=max_iter, disable=not verbose, unit="step"):
        trainer.schedule(iteration, remaining / max_iter)
        x = folds.draw(batch_size, generator)
        recent.append(trainer.step(x, folds, generator, iteration))
        remaining -= 1
        if iteration % interval != 0 and remaining > 0:
            continue
        if recovery.check(trainer):
            score, ambiguity = trainer.held_out_log_likelihood(folds), trainer.ambiguity(noise)
            history.append(_evaluation(iteration, recent, trainer, score, ambiguity))
            gap = history[-1]["training_log_likelihood"] - score
            loss = n_held_out * trainer.heed_held_out(score, gap)
            trainer.decay_weights(gap)
            if early_stopping is not None:
                pull_grows = trainer.multipliers.pull_grows(loss)
                weights = trainer.slow_flow.weights
                early_stopping.update(score + ambiguity, gap, pull_grows, weights)
                remaining = early_stopping.shorten(remaining)
            trainer.multipliers.move_bounds(loss, max(remaining, 1) / max_iter)
        recent = []
        if remaining == 0:
            break
    if not history:
        raise _left_finite_numbers(recovery.recoveries)
    if early_stopping is not None:
        with torch.no_grad():
            trainer.slow_flow.weights.copy_(early_stopping.best_weights)
    return pd.DataFrame(history)


def _evaluation(
    iteration: int, recent: list[Terms], trainer: Trainer, score: float, ambiguity: float
) -> dict:
    means = torch.stack([torch.stack(terms) for terms in recent]).nanmean(dim=0).tolist()
    terms = dict(zip(Terms._fields, means, strict=True))
    lambdas = trainer.multipliers.lambdas.tolist()
    return {
        "iteration": iteration,
        **terms,
        **{f"lambda_{i}": value for i, value in enumerate(lambdas, start=1)},
        "mu": float(trainer.multipliers.mu),
        "training_log_likelihood": -terms["forward"] - trainer.entropy,
        "validation_log_likelihood": score,
        "ambiguity": ambiguity,
    }
