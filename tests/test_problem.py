import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import huber_loss

from skjeffreys import JeffreysDensity
from skjeffreys._problem import (
    DUAL_STEP,
    LARGEST,
    MAXIMUM_DEVIATION,
    MAXIMUM_GROWTH,
    MAXIMUM_LOSS,
    OVERFITTING_SCALE,
    SMALLEST,
    AdaptiveMultipliers,
    FixedMultipliers,
    LogDensities,
    Terms,
    evaluate_terms,
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


def densities_of(members, proxies, x, y, near_held_out=None):
    """Log-densities of members whose proxies do not depend on them; ``x`` is (m, n)."""
    q_y = torch.stack([proxy.log_prob(y) for proxy in proxies])
    if near_held_out is None:
        near_held_out = torch.zeros(q_y.shape, dtype=torch.bool)
    return LogDensities(
        p_x=torch.stack([p.log_prob(rows) for p, rows in zip(members, x, strict=True)]),
        p_y=torch.stack([p.log_prob(y) for p in members]),
        q_x=torch.stack([q.log_prob(rows) for q, rows in zip(proxies, x, strict=True)]),
        q_y_without_each=q_y,
        near_held_out=near_held_out,
    )


def test_lagrangian_gradient_equals_the_gradients_of_its_terms():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    y = 0.5 + torch.randn(60, generator=generator, dtype=torch.float64)
    members, q = [Normal(1.0, 0.0), Normal(0.2, 0.15)], Normal(0.3, 0.2)
    multipliers = fixed_multipliers(0.7, 0.4, 1.3)
    multipliers.mu = torch.tensor(1.9)
    near = torch.rand((2, 60), generator=generator) < 0.5
    value = lagrangian(densities_of(members, [q, q], x, y, near), multipliers)
    *in_members, in_q = torch.autograd.grad(value, [m.parameters for m in [*members, q]])

    def gradient(value, model):
        return torch.autograd.grad(value, model.parameters)[0]

    mean_density = torch.stack([p.log_prob(y).exp() for p in members]).mean(dim=0).detach()
    expected_in_q = -2 * 1.9 * gradient(-(q.log_prob(y).exp() / mean_density).mean(), q)
    deviations = []
    for p, rows, in_p, hidden in zip(members, x, in_members, near, strict=True):
        difference = (p.log_prob(y) - q.log_prob(y))[~hidden]
        deviations.append(difference.std(correction=0))
        reverse = huber_loss(deviations[-1], torch.zeros(()).double(), delta=MAXIMUM_DEVIATION)
        expected = 0.7 * gradient(-p.log_prob(rows).mean(), p) + 0.4 * gradient(reverse, p)
        torch.testing.assert_close(in_p, expected)
        expected_in_q -= 1.3 * gradient(q.log_prob(rows).mean(), q)
        expected_in_q -= 0.4 * gradient(q.log_prob(y).mean(), q)
    torch.testing.assert_close(in_q, expected_in_q)
    assert deviations[0] > MAXIMUM_DEVIATION > deviations[1]


def only_reverse(p, q, y):
    x = torch.zeros((1, 1), dtype=torch.float64)
    value = lagrangian(densities_of([p], [q], x, y), fixed_multipliers(0.0, 1.0, 0.0))
    return torch.autograd.grad(value, p.parameters)[0]


def test_nothing_is_learned_from_samples_near_rows_left_out():
    members, q = [Normal(0.5, -0.2), Normal(0.2, 0.1)], Normal(0.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros((2, 1), dtype=torch.float64)
    y = torch.randn(60, generator=generator, dtype=torch.float64)
    near = torch.tensor([[True], [False]]).expand(2, 60)
    values = densities_of(members, [q, q], x, y, near)
    value = lagrangian(values, fixed_multipliers(0.0, 1.0, 0.0))
    of_first, of_second = torch.autograd.grad(value, [p.parameters for p in members])
    assert (of_first == 0).all()
    assert (of_second != 0).all()


def test_reverse_gradient_is_that_of_the_kl_between_normals(monkeypatch):
    p, q = Normal(0.5, -0.2), Normal(0.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    y = 0.5 + np.exp(-0.2) * torch.randn(400_000, generator=generator, dtype=torch.float64)
    # KL(N(m, s) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s, differentiated in m and log s.
    exact = torch.tensor([0.5, np.exp(-0.4) - 1], dtype=torch.float64)
    monkeypatch.setattr("skjeffreys._problem.MAXIMUM_DEVIATION", float("inf"))
    torch.testing.assert_close(only_reverse(p, q, y), exact, atol=0.01, rtol=0)


def test_the_pull_of_a_proxy_is_bounded_however_far_it_is_off():
    p = Normal(0.0, 0.0)
    y = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = torch.stack([y, y**2 - 1])  # the gradients of log p in mean and log-scale
    bound = MAXIMUM_DEVIATION * scores.std(dim=1, correction=0) + 1e-12  # Cauchy-Schwarz
    for mean in (3.0, 30.0, 300.0):
        assert (only_reverse(p, Normal(mean, 0.0), y).abs() <= bound).all()


def test_terms_of_known_densities():
    p, q = Normal(0.0, 0.0), Normal(1.0, 0.0)
    y = torch.randn(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    estimated = evaluate_terms(densities_of([p], [q], y[None], y), entropy)
    assert estimated.forward == pytest.approx(0, abs=0.01)
    assert estimated.reverse == pytest.approx(0.5, abs=0.01)
    assert estimated.fidelity == pytest.approx(0.5, abs=0.01)
    assert estimated.normalizer == pytest.approx(1, abs=0.01)


def test_samples_shared_by_members_measure_the_divergence_of_each():
    members, q = [Normal(-1.0, 0.0), Normal(1.0, 0.0)], Normal(0.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    y = torch.cat([noise[0] - 1, noise[1] + 1])
    estimated = evaluate_terms(densities_of(members, [q, q], noise, y), 0.0)
    assert estimated.reverse == pytest.approx(0.5, abs=0.01)


def test_dual_step_ascends():
    multipliers = AdaptiveMultipliers(SMALLEST, LARGEST, CPU)
    before, mu = multipliers.lambdas.clone(), multipliers.mu.clone()
    multipliers.ascend(terms(5.0, -5.0, 0.5, 1.5))
    minimum, maximum = multipliers.minimum, multipliers.maximum
    expected = before + DUAL_STEP * (torch.tensor([5.0, -5.0, 0.5]) - (before - minimum))
    expected = expected.clamp(minimum, maximum)
    torch.testing.assert_close(multipliers.lambdas, expected)
    torch.testing.assert_close(multipliers.mu, mu + DUAL_STEP * 0.5)


def test_multipliers_settle_at_the_divergences():
    multipliers = AdaptiveMultipliers(SMALLEST, LARGEST, CPU)
    for _ in range(1000):
        multipliers.ascend(terms(0.15, 0.0, -1.0, 1.0))
    expected = torch.tensor([0.15, 0.0, 0.0]) + multipliers.minimum
    torch.testing.assert_close(multipliers.lambdas, expected)


def test_damping_vanishes_at_the_solution_and_opposes_the_violation():
    multipliers = AdaptiveMultipliers(SMALLEST, LARGEST, CPU)
    assert multipliers.damped_mu(torch.tensor(1.0)) == multipliers.mu
    assert multipliers.damped_mu(torch.tensor(1.5)) > multipliers.mu
    assert multipliers.damped_mu(torch.tensor(0.5)) < multipliers.mu


def test_no_sample_adds_more_than_one_to_the_normalizer():
    log_q = torch.linspace(-3, 30, 100)
    zeros = torch.zeros(1, 100)
    weights = LogDensities(zeros, zeros, zeros, log_q[None], zeros > 0).normalizer_weights
    torch.testing.assert_close(weights, log_q.exp().clamp(max=100))


def test_multipliers_stay_within_their_bounds():
    multipliers = AdaptiveMultipliers(SMALLEST, LARGEST, CPU)
    for _ in range(5000):
        multipliers.ascend(terms(1e3, 1e3, 1e3, 1.0))
    assert multipliers.lambdas.tolist() == pytest.approx(LARGEST)
    for _ in range(5000):
        multipliers.ascend(terms(-1e3, -1e3, -1e3, 1.0))
    assert multipliers.lambdas.tolist() == pytest.approx(SMALLEST)


def test_without_a_largest_value_multipliers_follow_their_divergences():
    multipliers = AdaptiveMultipliers([0.1] * 3, [torch.inf] * 3, CPU)
    for _ in range(1000):
        multipliers.ascend(terms(50.0, 7.0, -3.0, 1.0))
    assert multipliers.lambdas.tolist() == pytest.approx([50.1, 7.1, 0.1])


def ascend_far(multipliers):
    for _ in range(1000):
        multipliers.ascend(terms(50.0, 7.0, 50.0, 1.0))
    return multipliers.lambdas.tolist()


@pytest.mark.parametrize("fraction_left", [1.0, 0.5, 0.25])
def test_the_reverse_divergence_counts_for_less_late_in_training(fraction_left):
    multipliers = AdaptiveMultipliers(SMALLEST, LARGEST, CPU)
    multipliers.move_bounds(0.0, fraction_left)
    forward, reverse, fidelity = LARGEST
    assert ascend_far(multipliers) == pytest.approx([forward, fraction_left * reverse, fidelity])


@pytest.mark.parametrize("loss", [20.0, 60.0, 600.0])
def test_the_reverse_divergence_counts_for_more_where_flows_overfit(loss):
    multipliers = AdaptiveMultipliers(SMALLEST, LARGEST, CPU)
    multipliers.move_bounds(loss, 0.5)
    forward, reverse, fidelity = LARGEST
    reverse *= min(0.5 + math.expm1(loss / OVERFITTING_SCALE), MAXIMUM_GROWTH)
    assert ascend_far(multipliers) == pytest.approx([max(forward, reverse), reverse, fidelity])


def test_no_bound_falls_below_the_smallest_multiplier():
    multipliers = AdaptiveMultipliers(SMALLEST, LARGEST, CPU)
    multipliers.move_bounds(0.0, 1e-6)
    assert ascend_far(multipliers)[1] == pytest.approx(SMALLEST[1])


@pytest.mark.parametrize("loss", [0.0, 1e6])
def test_an_infinite_bound_does_not_move(loss):
    multipliers = AdaptiveMultipliers(SMALLEST, [torch.inf] * 3, CPU)
    expected = ascend_far(copy.deepcopy(multipliers))
    multipliers.move_bounds(loss, 1e-6)
    assert ascend_far(multipliers) == expected


@pytest.mark.parametrize("fraction_left", [1.0, 0.5])
def test_the_pull_grows_where_overfitting_adds_to_the_reverse_bound(fraction_left):
    multipliers = AdaptiveMultipliers(SMALLEST, LARGEST, CPU)
    assert not multipliers.pull_grows(MAXIMUM_LOSS)
    assert multipliers.pull_grows(MAXIMUM_LOSS + 1)
    multipliers.move_bounds(MAXIMUM_LOSS, fraction_left)
    # What is added by then is less than half of what there is at the start.
    assert float(multipliers.largest[1]) < (fraction_left + 0.5) * LARGEST[1]


def test_fixed_multipliers_never_grow():
    assert not FixedMultipliers((1.0, 2.0, 3.0), CPU).pull_grows(1e6)


def test_fixed_multipliers_stay():
    multipliers = FixedMultipliers((1.0, 2.0, 3.0), CPU)
    multipliers.ascend(terms(5.0, 5.0, 5.0, 5.0))
    multipliers.move_bounds(1e6, 0.5)
    assert multipliers.damped_mu(torch.tensor(9.0)) == 5
    assert multipliers.lambdas.tolist() == [1, 2, 3]
    assert multipliers.mu == 5


def test_mu_converges_to_the_sum_of_the_multipliers_of_the_proxy():
    X = np.random.RandomState(0).standard_normal((2000, 2))
    density = JeffreysDensity(early_stopping=False, max_iter=1000, random_state=0).fit(X)
    last = density.history_.tail(10).mean()
    assert last["mu"] == pytest.approx(last["lambda_2"] + last["lambda_3"], abs=0.03)
    assert last["normalizer"] == pytest.approx(1, abs=0.02)
