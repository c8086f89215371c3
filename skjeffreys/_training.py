"""The training loop: batches, primal-dual steps, evaluation, early stopping, recovery."""

__all__ = ["EarlyStopping", "Recovery", "Trainer", "train"]

import copy
import math

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import trange

from ._flow import sample_flow
from ._problem import FixedMultipliers, Terms, evaluate_terms, lagrangian
from ._rows import Rows

#: Optimiser steps between two evaluations; each evaluation is a row of the history.
EVALUATION_INTERVAL = 25
#: Decay, per step, of the slow copy of the flow: an exponential average of its weights.
SLOW_DECAY = 0.99
#: Largest gradient norm of a step, for each of the two models.
MAXIMUM_GRADIENT_NORM = 5.0
#: Nats per column that the entropy may lie below the best held-out negative log-likelihood.
ENTROPY_ALLOWANCE = 0.25
#: How often training returns to its last finite state before it gives up.
MAXIMUM_RECOVERIES = 5

_update_average = get_ema_multi_avg_fn(SLOW_DECAY)


class Trainer:
    """The models, their optimiser and their multipliers: everything a step changes.

    Parameters
    ----------
    models : ModuleDict
        Under ``"flow"`` the slow flow that a fit returns, an exponential average of the one
        that is trained; under ``"proxy"`` a TiltedReference. Without a proxy the flow is
        trained alone, by maximum likelihood.
    multipliers : FixedMultipliers
        Fixed or adaptive.
    entropy : float
        Estimated entropy of the data, in nats; early stopping may lower it.
    learning_rate : float
    """

    def __init__(
        self,
        models: nn.ModuleDict,
        multipliers: FixedMultipliers,
        entropy: float,
        learning_rate: float,
    ) -> None:
        self.slow_flow = models["flow"]
        self.flow = copy.deepcopy(self.slow_flow)
        self.proxy = dict(models.items()).get("proxy")
        self.multipliers = multipliers
        self.entropy = entropy
        self.learning_rate = learning_rate
        self.device = multipliers.mu.device
        self._trained = [list(self.flow.parameters())]
        if self.proxy is not None:
            self._trained.append(list(self.proxy.tilt.parameters()))
        self._averaged = (list(self.slow_flow.parameters()), list(self.flow.parameters()))
        groups = [{"params": parameters} for parameters in self._trained]
        self.optimizer = torch.optim.Adam(groups, lr=learning_rate, fused=True)

    def step(self, x: Tensor, noise: Tensor) -> Terms:
        """Descend the Lagrangian on data rows ``x`` and base ``noise``, then ascend its dual."""
        x, noise = x.to(self.device), noise.to(self.device)
        loss, terms = self._likelihood(x) if self.proxy is None else self._lagrangian(x, noise)
        self.optimizer.zero_grad()
        loss.backward()
        for parameters in self._trained:
            nn.utils.clip_grad_norm_(parameters, MAXIMUM_GRADIENT_NORM)
        self.optimizer.step()
        _update_average(*self._averaged, None)
        self.multipliers.ascend(terms)
        return terms

    def _likelihood(self, x: Tensor) -> tuple[Tensor, Terms]:
        loss = -self.flow().log_prob(x).mean()
        unknown = loss.new_tensor(math.nan)
        return loss, Terms(loss.detach() - self.entropy, unknown, unknown, unknown)

    def _lagrangian(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Terms]:
        with torch.no_grad():
            y = sample_flow(self.flow, noise)
        rows = torch.cat([x, y])
        log_p_x, log_p_y = self.flow().log_prob(rows).split([len(x), len(y)])
        log_q_x, log_q_y = self.proxy.log_density(rows).split([len(x), len(y)])
        log_densities = (log_p_x, log_q_x, log_p_y, log_q_y)
        loss = lagrangian(*log_densities, self.multipliers)
        return loss, evaluate_terms(*log_densities, self.entropy)

    def lower_entropy(self, held_out_log_likelihood: float, n_features: int) -> None:
        """Lower the entropy of the data where held-out rows show that it is smaller.

        The entropy is at most the negative log-likelihood that any model reaches on rows it
        has not seen, and the estimate from nearest neighbours can exceed it by far in many
        dimensions. An allowance below the best so far leaves the flow room to improve; where
        the flow goes further on its training rows, it overfits and the multipliers fall.
        """
        bound = -held_out_log_likelihood - ENTROPY_ALLOWANCE * n_features
        self.entropy = min(self.entropy, bound)

    @torch.no_grad()
    def log_likelihood(self, rows: Rows) -> float:
        """Weighted mean log-density of the slow flow, in nats of the standardised data."""
        log_density = self.slow_flow().log_prob(rows.values.to(self.device)).cpu().double()
        return float(rows.weights @ log_density / rows.weights.sum())

    def is_finite(self) -> bool:
        """Whether every trained weight and every multiplier is finite."""
        values = [p for parameters in self._trained for p in parameters]
        values += [self.multipliers.lambdas, self.multipliers.mu]
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

    def set_learning_rate(self, learning_rate: float) -> None:
        """Change the learning rate of both models."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


class EarlyStopping:
    """Remembers the state with the best validation log-likelihood and says when to stop.

    Parameters
    ----------
    validation : Rows
        Rows held out of training.
    patience : int
        Evaluations without an improvement of more than ``tolerance`` after which to stop.
    tolerance : float
        In nats.
    """

    def __init__(self, validation: Rows, patience: int, tolerance: float) -> None:
        self.validation = validation
        self.patience = patience
        self.tolerance = tolerance
        self.best_score = -math.inf
        self.best_state = None
        self.evaluations_without_change = 0

    def update(self, trainer: Trainer) -> float:
        """Evaluate the trainer; return the validation log-likelihood."""
        score = trainer.log_likelihood(self.validation)
        if score > self.best_score + self.tolerance:
            self.evaluations_without_change = 0
        else:
            self.evaluations_without_change += 1
        if score > self.best_score:
            self.best_score, self.best_state = score, trainer.state()
        return score

    @property
    def should_stop(self) -> bool:
        """Whether the patience is used up."""
        return self.evaluations_without_change >= self.patience


class Recovery:
    """Returns a trainer whose numbers overflowed to its last finite state, with smaller steps."""

    def __init__(self, trainer: Trainer) -> None:
        self.finite_state = trainer.state()
        self.learning_rate = trainer.learning_rate
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
        self.learning_rate /= 2
        trainer.restore(self.finite_state)
        trainer.set_learning_rate(self.learning_rate)
        return False


def _left_finite_numbers(times: int) -> FloatingPointError:
    return FloatingPointError(
        f"Training left the finite numbers {times} times, although the step was halved each "
        "time. Use a smaller learning_rate_init, and look for values in X many orders of "
        "magnitude larger than the others."
    )


def train(
    trainer: Trainer,
    rows: Rows,
    early_stopping: EarlyStopping | None,
    *,
    max_iter: int,
    batch_size: int,
    generator: torch.Generator,
    verbose: bool,
) -> pd.DataFrame:
    """Train for ``max_iter`` steps or until ``early_stopping`` says so.

    The trainer ends in its last state or, with early stopping, in the one with the best
    validation log-likelihood.

    Returns
    -------
    history : DataFrame
        One row per evaluation: ``iteration``; the means since the last evaluation of
        ``forward``, ``reverse``, ``fidelity`` and ``normalizer``; the multipliers ``lambda_1``,
        ``lambda_2``, ``lambda_3`` and ``mu``; the ``training_log_likelihood`` of the flow, over
        the same batches; and the ``validation_log_likelihood`` of its slow copy, NaN without
        early stopping. In nats, of the standardised data.

    Raises
    ------
    FloatingPointError
        If training leaves the finite numbers more than 5 times, or at every evaluation.
    """
    recovery = Recovery(trainer)
    history, recent = [], []
    size = (batch_size, rows.values.shape[1])
    for iteration in trange(1, max_iter + 1, disable=not verbose, unit="step"):
        noise = torch.randn(
            size, generator=generator, dtype=rows.values.dtype, device=generator.device
        )
        recent.append(trainer.step(rows.draw(batch_size, generator), noise))
        if iteration % EVALUATION_INTERVAL != 0 and iteration != max_iter:
            continue
        if recovery.check(trainer):
            score = math.nan if early_stopping is None else early_stopping.update(trainer)
            history.append(_evaluation(iteration, recent, trainer, score))
            if early_stopping is not None:
                trainer.lower_entropy(score, rows.values.shape[1])
        recent = []
        if early_stopping is not None and early_stopping.should_stop:
            break
    if not history:
        raise _left_finite_numbers(recovery.recoveries)
    if early_stopping is not None:
        trainer.restore(early_stopping.best_state)
    return pd.DataFrame(history)


def _evaluation(iteration: int, recent: list[Terms], trainer: Trainer, score: float) -> dict:
    means = torch.stack([torch.stack(terms) for terms in recent]).mean(dim=0).tolist()
    terms = dict(zip(Terms._fields, means, strict=True))
    lambdas = trainer.multipliers.lambdas.tolist()
    return {
        "iteration": iteration,
        **terms,
        **{f"lambda_{i}": value for i, value in enumerate(lambdas, start=1)},
        "mu": float(trainer.multipliers.mu),
        "training_log_likelihood": -terms["forward"] - trainer.entropy,
        "validation_log_likelihood": score,
    }
