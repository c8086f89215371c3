import numpy as np
import pytest
import torch

from skjeffreys import JeffreysDensity
from skjeffreys._problem import (
    DUAL_STEP,
    MINIMUM_MULTIPLIERS,
    AdaptiveMultipliers,
    FixedMultipliers,
    Terms,
    evaluate_terms,
    importance_weights,
    lagrangian,
)

CPU = torch.device("cpu")


def terms(forward, reverse, fidelity, normalizer):
    return Terms(*map(torch.tensor, (forward, reverse, fidelity, normalizer)))


def fixed_multipliers(*weights):
    multipliers = FixedMultipliers(weights, CPU)
    multipliers.lambdas = multipliers.lambdas.double()
    return multipliers


class Normal:
    """One-dimensional normal density with a trainable mean and log-scale."""

    def __init__(self, mean, log_scale):
        self.parameters = torch.tensor([mean, log_scale], dtype=torch.float64, requires_grad=True)

    def log_prob(self, x):
        mean, log_scale = self.parameters
        z = (x - mean) / log_scale.exp()
        return -0.5 * z**2 - log_scale - 0.5 * np.log(2 * np.pi)


def test_lagrangian_gradient_equals_the_gradients_of_its_terms():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, generator=generator, dtype=torch.float64)
    y = 1 + torch.randn(60, generator=generator, dtype=torch.float64)
    p, q = Normal(1.0, 0.0), Normal(0.3, 0.2)
    multipliers = fixed_multipliers(0.7, 0.4, 1.3)
    multipliers.mu = torch.tensor(1.9)
    value = lagrangian(p.log_prob(x), q.log_prob(x), p.log_prob(y), q.log_prob(y), multipliers)
    in_p, in_q = torch.autograd.grad(value, [p.parameters, q.parameters])

    def gradient(function, model):
        return torch.autograd.grad(function(), model.parameters)[0]

    scores = torch.stack([gradient(lambda r=r: p.log_prob(r), p) for r in y])
    difference = (p.log_prob(y) - q.log_prob(y)).detach()
    covariance = ((difference - difference.mean())[:, None] * scores).sum(0) / (len(y) - 1)
    expected_in_p = 0.7 * gradient(lambda: -p.log_prob(x).mean(), p) + 0.4 * covariance
    expected_in_q = (
        -1.3 * gradient(lambda: q.log_prob(x).mean(), q)
        - 0.4 * gradient(lambda: q.log_prob(y).mean(), q)
        + 1.9 * gradient(lambda: (q.log_prob(y) - p.log_prob(y)).exp().mean(), q)
    )
    torch.testing.assert_close(in_p, expected_in_p)
    torch.testing.assert_close(in_q, expected_in_q)


def test_reverse_gradient_is_that_of_the_kl_between_normals():
    p, q = Normal(0.5, -0.2), Normal(0.0, 0.0)
    y = 0.5 + np.exp(-0.2) * torch.randn(
        400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x = torch.zeros(1, dtype=torch.float64)
    only_reverse = fixed_multipliers(0.0, 1.0, 0.0)
    value = lagrangian(p.log_prob(x), q.log_prob(x), p.log_prob(y), q.log_prob(y), only_reverse)
    (estimated,) = torch.autograd.grad(value, [p.parameters])
    # KL(N(m, s) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s, differentiated in m and log s.
    exact = torch.tensor([0.5, np.exp(-0.4) - 1], dtype=torch.float64)
    torch.testing.assert_close(estimated, exact, atol=0.01, rtol=0)


def test_terms_of_known_densities():
    p, q = Normal(0.0, 0.0), Normal(1.0, 0.0)
    y = torch.randn(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    log_densities = [model.log_prob(rows) for rows in (y, y) for model in (p, q)]
    estimated = evaluate_terms(*log_densities, entropy)
    assert estimated.forward == pytest.approx(0, abs=0.01)
    assert estimated.reverse == pytest.approx(0.5, abs=0.01)
    assert estimated.fidelity == pytest.approx(0.5, abs=0.01)
    assert estimated.normalizer == pytest.approx(1, abs=0.01)


def test_dual_step_ascends():
    multipliers = AdaptiveMultipliers(CPU)
    before, mu = multipliers.lambdas.clone(), multipliers.mu.clone()
    multipliers.ascend(terms(5.0, -5.0, 0.5, 1.5))
    levels = before - torch.tensor(MINIMUM_MULTIPLIERS)
    expected = before + DUAL_STEP * (torch.tensor([5.0, -5.0, 0.5]) - levels)
    torch.testing.assert_close(multipliers.lambdas, expected)
    torch.testing.assert_close(multipliers.mu, mu + DUAL_STEP * 0.5)


def test_multipliers_settle_at_the_divergences():
    multipliers = AdaptiveMultipliers(CPU)
    for _ in range(1000):
        multipliers.ascend(terms(0.3, 2.0, -1.0, 1.0))
    expected = torch.tensor([0.3, 2.0, 0.0]) + torch.tensor(MINIMUM_MULTIPLIERS)
    torch.testing.assert_close(multipliers.lambdas, expected)


def test_damping_vanishes_at_the_solution_and_opposes_the_violation():
    multipliers = AdaptiveMultipliers(CPU)
    assert multipliers.damped_mu(torch.tensor(1.0)) == multipliers.mu
    assert multipliers.damped_mu(torch.tensor(1.5)) > multipliers.mu
    assert multipliers.damped_mu(torch.tensor(0.5)) < multipliers.mu


def test_weights_are_truncated_at_the_root_of_their_number():
    log_p, log_q = torch.zeros(100), torch.linspace(-3, 30, 100)
    weights = importance_weights(log_p, log_q)
    torch.testing.assert_close(weights, log_q.exp().clamp(max=10))


def test_fixed_multipliers_stay():
    multipliers = FixedMultipliers((1.0, 2.0, 3.0), CPU)
    multipliers.ascend(terms(5.0, 5.0, 5.0, 5.0))
    assert multipliers.damped_mu(torch.tensor(9.0)) == 5
    assert multipliers.lambdas.tolist() == [1, 2, 3]
    assert multipliers.mu == 5


def test_mu_converges_to_the_sum_of_the_multipliers_of_the_proxy():
    X = np.random.RandomState(0).standard_normal((2000, 2))
    density = JeffreysDensity(early_stopping=False, max_iter=1000, random_state=0).fit(X)
    last = density.history_.tail(10).mean()
    assert last["mu"] == pytest.approx(last["lambda_2"] + last["lambda_3"], abs=0.03)
    assert last["normalizer"] == pytest.approx(1, abs=0.02)
