import numpy as np
import pytest
import torch
from torch import nn

from skjeffreys._energy import Tilt, TiltedReference
from skjeffreys._flow import coupling_flow, sample_flow
from skjeffreys._problem import (
    DAMPING,
    DUAL_STEP,
    MINIMUM_MULTIPLIERS,
    AdaptiveMultipliers,
    FixedMultipliers,
)
from skjeffreys._rows import Rows
from skjeffreys._training import (
    MAXIMUM_RECOVERIES,
    SLOW_DECAY,
    EarlyStopping,
    Recovery,
    Trainer,
    train,
)

CPU = torch.device("cpu")
ENTROPY = 2.5


def random_models(with_proxy=True, seed=0):
    """Models in double precision, away from their symmetrical start."""
    torch.manual_seed(seed)
    flow = coupling_flow(2, hidden_layer_sizes=(8,), n_transforms=2, n_bins=4)
    models = nn.ModuleDict({"flow": flow})
    if with_proxy:
        models["proxy"] = TiltedReference(flow, Tilt(2, (8,), 1.8))
    for parameter in models.parameters():
        nn.init.normal_(parameter, std=0.3)
    return models.double()


def make_trainer(multipliers=None, with_proxy=True, learning_rate=0.01):
    multipliers = AdaptiveMultipliers(CPU) if multipliers is None else multipliers
    for name, value in vars(multipliers).items():
        setattr(multipliers, name, value.double())
    return Trainer(random_models(with_proxy), multipliers, ENTROPY, learning_rate)


def batches(n=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, n, 2, generator=generator, dtype=torch.float64)


def some_rows(n=100):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return Rows(values, torch.full((n,), 1 / n, dtype=torch.float64))


def run(trainer, early_stopping=None, **options):
    defaults = {"max_iter": 100, "batch_size": 16, "verbose": False}
    generator = torch.Generator().manual_seed(0)
    return train(trainer, some_rows(), early_stopping, generator=generator, **defaults | options)


def test_a_step_equals_the_step_written_by_hand(monkeypatch):
    monkeypatch.setattr("skjeffreys._training.MAXIMUM_GRADIENT_NORM", float("inf"))
    step, (x, noise) = 0.01, batches()
    trainer = make_trainer()
    trainer.optimizer = torch.optim.SGD(
        [*trainer.flow.parameters(), *trainer.proxy.tilt.parameters()], lr=step
    )

    by_hand = make_trainer()
    flow, proxy, slow_flow = by_hand.flow, by_hand.proxy, by_hand.slow_flow
    theta, psi = list(flow.parameters()), list(proxy.tilt.parameters())
    lambda_1, lambda_2, lambda_3 = by_hand.multipliers.lambdas
    mu = by_hand.multipliers.mu
    y = sample_flow(flow, noise).detach()

    def mean_gradient(values, parameters):
        return torch.autograd.grad(values.mean(), parameters)

    log_ratio = (flow().log_prob(y) - proxy.log_density(y)).detach()
    centred = (log_ratio - log_ratio.mean()) * len(y) / (len(y) - 1)
    forward = mean_gradient(-flow().log_prob(x), theta)
    reverse_theta = mean_gradient(centred * flow().log_prob(y), theta)
    reverse_psi = mean_gradient(-proxy.log_density(y), psi)
    fidelity = mean_gradient(-proxy.log_density(x), psi)
    weights = torch.exp(proxy.log_density(y) - flow().log_prob(y).detach())
    assert weights.max() < len(y) ** 0.5  # none is truncated
    normalizer = mean_gradient(weights, psi)
    d1 = -flow().log_prob(x).mean() - ENTROPY
    d2 = log_ratio.mean()
    d3 = -proxy.log_density(x).mean() - ENTROPY
    divergences = torch.stack([d1, d2, d3]).detach()
    z = weights.mean().detach()
    with torch.no_grad():
        for p, g1, g2 in zip(theta, forward, reverse_theta, strict=True):
            p -= step * (lambda_1 * g1 + lambda_2 * g2)
        for p, g2, g3, gz in zip(psi, reverse_psi, fidelity, normalizer, strict=True):
            p -= step * (lambda_2 * g2 + lambda_3 * g3 + (mu + DAMPING * (z - 1)) * gz)
        for slow, p in zip(slow_flow.parameters(), theta, strict=True):
            slow.copy_(SLOW_DECAY * slow + (1 - SLOW_DECAY) * p)
    lambdas = by_hand.multipliers.lambdas
    minimum = torch.tensor(MINIMUM_MULTIPLIERS).double()
    lambdas = lambdas + DUAL_STEP * (divergences - (lambdas - minimum))
    lambdas = torch.maximum(lambdas, minimum)

    trainer.step(x, noise)
    for stepped, written in (
        (trainer.flow, flow),
        (trainer.slow_flow, slow_flow),
        (trainer.proxy.tilt, proxy.tilt),
    ):
        torch.testing.assert_close(stepped.state_dict(), written.state_dict())
    torch.testing.assert_close(trainer.multipliers.lambdas, lambdas)
    torch.testing.assert_close(trainer.multipliers.mu, mu + DUAL_STEP * (z - 1))


def test_the_likelihood_of_the_flow_alone_is_the_first_term():
    x, noise = batches()
    alone = make_trainer(FixedMultipliers((1.0, 0.0, 0.0), CPU), with_proxy=False)
    with_proxy = make_trainer(FixedMultipliers((1.0, 0.0, 0.0), CPU))
    with_proxy.flow.load_state_dict(alone.flow.state_dict())
    for trainer in (alone, with_proxy):
        trainer.step(x, noise)
    torch.testing.assert_close(alone.flow.state_dict(), with_proxy.flow.state_dict())


def test_restoring_a_state_repeats_the_same_step():
    trainer = make_trainer()
    x, noise = batches()
    trainer.step(x, noise)
    state = trainer.state()
    first = trainer.step(x, noise)
    trainer.step(x, noise)
    trainer.restore(state)
    assert trainer.step(x, noise) == first


def test_history_has_a_row_per_evaluation():
    trainer = make_trainer()
    history = run(trainer, max_iter=60)
    assert history["iteration"].tolist() == [25, 50, 60]
    assert history.drop(columns="validation_log_likelihood").notna().all(axis=None)
    np.testing.assert_allclose(
        history["training_log_likelihood"], -history["forward"] - ENTROPY, rtol=1e-6
    )


class Script:
    """A trainer whose validation log-likelihoods are given beforehand."""

    def __init__(self, scores):
        self.scores = iter(scores)
        self.evaluations = 0

    def log_likelihood(self, rows):
        self.evaluations += 1
        return next(self.scores)

    def state(self):
        return self.evaluations


def test_early_stopping_keeps_the_best_and_runs_out_of_patience():
    early_stopping = EarlyStopping(some_rows(), patience=2, tolerance=0.1)
    trainer = Script([0.0, 1.0, 1.05, 0.5])
    stops = []
    for _ in range(4):
        early_stopping.update(trainer)
        stops.append(early_stopping.should_stop)
    assert stops == [False, False, False, True]
    assert early_stopping.best_state == 3  # 1.05 is best, though no reason to go on


def test_training_returns_the_best_iterate():
    trainer = make_trainer(learning_rate=0.1)
    validation = some_rows(20)
    history = run(trainer, EarlyStopping(validation, 3, 0.0), max_iter=1000)
    best = history["validation_log_likelihood"].max()
    assert trainer.log_likelihood(validation) == pytest.approx(best)


def broken_step(trainer, at):
    """Make the steps with the given numbers leave the finite numbers."""
    plain, count = trainer.step, iter(range(1, 10**6))

    def step(x, noise):
        terms = plain(x, noise)
        if next(count) in at:
            with torch.no_grad():
                next(trainer.flow.parameters()).fill_(float("nan"))
        return terms

    trainer.step = step


def test_recovers_from_a_step_out_of_the_finite_numbers():
    trainer = make_trainer(learning_rate=0.008)
    broken_step(trainer, at={30})
    history = run(trainer)
    assert history["iteration"].tolist() == [25, 75, 100]
    assert history["training_log_likelihood"].notna().all()
    assert trainer.is_finite()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.004}


def test_gives_up_rather_than_return_a_broken_model():
    trainer = make_trainer()
    broken_step(trainer, at=set(range(1, 1000)))
    with pytest.raises(FloatingPointError, match="smaller learning_rate_init"):
        run(trainer, max_iter=25 * (MAXIMUM_RECOVERIES + 1))


def test_gives_up_when_no_evaluation_was_finite():
    trainer = make_trainer()
    broken_step(trainer, at={10})
    with pytest.raises(FloatingPointError, match="smaller learning_rate_init"):
        run(trainer, max_iter=25)


def test_recovery_halves_each_time():
    trainer = make_trainer(learning_rate=0.008)
    recovery = Recovery(trainer)
    for expected in (0.004, 0.002, 0.001):
        trainer.multipliers.mu = torch.tensor(float("inf"))
        assert not recovery.check(trainer)
        assert trainer.optimizer.param_groups[0]["lr"] == expected
        assert recovery.check(trainer)
