import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from skjeffreys._energy import EnsembleReference, FixedReference, Proxy, Tilt
from skjeffreys._ensemble import mixture_log_density
from skjeffreys._flow import CouplingFlows
from skjeffreys._mixtures import Mixtures, standard_normal
from skjeffreys._problem import (
    DAMPING,
    DUAL_STEP,
    LARGEST,
    MAXIMUM_DEVIATION,
    OVERFITTING_SCALE,
    SMALLEST,
    AdaptiveMultipliers,
    FixedMultipliers,
)
from skjeffreys._regression import no_regressions
from skjeffreys._rows import Rows, split_rows
from skjeffreys._training import (
    DECAY_PER_NAT,
    ENTROPY_ALLOWANCE,
    MAXIMUM_DECAY,
    MAXIMUM_RECOVERIES,
    SAMPLES_PER_ROW,
    SLOW_DECAY,
    WARM_UP,
    EarlyStopping,
    Recovery,
    Trainer,
    _clip_each_row,
    train,
)

CPU = torch.device("cpu")
N_MEMBERS = 3
ENTROPY = 2.5


def random_models(with_proxy=True, seed=0):
    """Models in double precision, away from their symmetrical start."""
    torch.manual_seed(seed)
    base = Mixtures([standard_normal(2)] * N_MEMBERS).float()
    regressions = no_regressions(N_MEMBERS, 0, 2)
    flow = CouplingFlows(
        base, regressions=regressions, hidden_layer_sizes=(8,), n_transforms=2, n_bins=4
    )
    models = nn.ModuleDict({"flow": flow})
    if with_proxy:
        models["proxy"] = Proxy(EnsembleReference(), Tilt(2, (8,), 1.8))
    for parameter in models.parameters():
        nn.init.normal_(parameter, std=0.3)
    return models.double()


def make_trainer(multipliers=None, with_proxy=True, learning_rate=0.01):
    if multipliers is None:
        multipliers = AdaptiveMultipliers(SMALLEST, LARGEST, CPU)
    for name, value in vars(multipliers).items():
        setattr(multipliers, name, value.double())
    trainer = Trainer(random_models(with_proxy), multipliers, learning_rate)
    trainer.entropy = ENTROPY
    trainer.schedule(WARM_UP, 1.0)
    return trainer


def batch(n=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N_MEMBERS, n, 2, generator=generator, dtype=torch.float64)


def seeded():
    return torch.Generator().manual_seed(3)


def some_folds(n=100):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    rows = Rows(values, torch.full((n,), 1 / n, dtype=torch.float64))
    return split_rows(rows, N_MEMBERS, 0.2, np.random.RandomState(0))


def run(trainer, early_stopping=None, **options):
    defaults = {"max_iter": 100, "batch_size": 16, "verbose": False}
    generator = torch.Generator().manual_seed(0)
    return train(trainer, some_folds(), early_stopping, generator=generator, **defaults | options)


def test_a_step_equals_the_step_written_by_hand(monkeypatch):
    monkeypatch.setattr("skjeffreys._training.MAXIMUM_GRADIENT_NORM", float("inf"))
    step, x = 0.01, batch()
    trainer = make_trainer()
    trainer.optimizer = torch.optim.SGD(
        [trainer.flow.weights, *trainer.proxy.tilt.parameters()], lr=step
    )

    by_hand = make_trainer()
    flow, slow_flow, tilt = by_hand.flow, by_hand.slow_flow, by_hand.proxy.tilt
    theta, psi = flow.weights, list(tilt.parameters())
    lambda_1, lambda_2, lambda_3 = by_hand.multipliers.lambdas
    mu = by_hand.multipliers.mu
    n_samples = math.ceil(SAMPLES_PER_ROW * 64 / N_MEMBERS)
    y = flow.sample(torch.empty(n_samples, 0), seeded()).flatten(0, 1)

    def in_theta(value):
        return torch.autograd.grad(value, theta)[0]

    def in_psi(value):
        return torch.autograd.grad(value, psi, allow_unused=True)

    near = some_folds().near_held_out(y)
    assert 0 < near.sum() < near.numel()
    p_y = flow.log_prob(y).detach().exp()
    z_weights = tilt(y).detach().exp()
    assert z_weights.max() < len(y)  # none is truncated
    z = z_weights.mean()
    gradient_theta = torch.zeros_like(theta)
    gradients_psi = [torch.zeros_like(p) for p in psi]
    divergences = torch.zeros(3, dtype=torch.float64)
    for k in range(N_MEMBERS):
        others = torch.cat([p_y[:k], p_y[k + 1 :]]).mean(dim=0)
        weights = p_y[k] / p_y.mean(dim=0)
        weights = weights / weights.sum()
        difference = torch.log(p_y[k] / others) - tilt(y).detach()
        learned_from = (~near[k]).double() / (~near[k]).sum()
        centred = difference - learned_from @ difference
        deviation = (learned_from @ centred**2).sqrt()
        shrunk = centred * MAXIMUM_DEVIATION / max(float(deviation), MAXIMUM_DEVIATION)
        gradient_theta += lambda_1 * in_theta(-flow.log_prob(x)[k].mean())
        # What needs samples is in one step of two: there it counts twice.
        gradient_theta += 2 * lambda_2 * in_theta((learned_from * shrunk) @ flow.log_prob(y)[k])
        for total, g2, g3, gz in zip(
            gradients_psi,
            in_psi(-tilt(y).mean()),
            in_psi(-tilt(x[k]).mean()),
            in_psi((z_weights * tilt(y)).mean()),
            strict=True,
        ):
            total += 2 * (lambda_2 * g2 + lambda_3 * g3 + (mu + DAMPING * (z - 1)) * gz)
        d1 = -flow.log_prob(x)[k].mean() - ENTROPY
        d3 = d1 - tilt(x[k]).mean()
        divergences += torch.stack([d1, weights @ difference, d3]).detach() / N_MEMBERS
    with torch.no_grad():
        total = lambda_1 + lambda_2 + lambda_3
        theta -= step * gradient_theta / total
        for p, gradient in zip(psi, gradients_psi, strict=True):
            p -= step * gradient / total
        slow_flow.weights.copy_(SLOW_DECAY * slow_flow.weights + (1 - SLOW_DECAY) * theta)
    lambdas, smallest = by_hand.multipliers.lambdas, torch.tensor(SMALLEST).double()
    lambdas = lambdas + DUAL_STEP * (divergences - (lambdas - smallest))
    lambdas = lambdas.clamp(smallest, torch.tensor(LARGEST).double())

    trainer.step(x, some_folds(), seeded(), 1)
    for stepped, written in (
        (trainer.flow, flow),
        (trainer.slow_flow, slow_flow),
        (trainer.proxy.tilt, tilt),
    ):
        torch.testing.assert_close(stepped.state_dict(), written.state_dict())
    torch.testing.assert_close(trainer.multipliers.lambdas, lambdas)
    torch.testing.assert_close(trainer.multipliers.mu, mu + DUAL_STEP * (z - 1))


def test_every_second_step_descends_the_forward_divergence_alone():
    x, trainer = batch(), make_trainer()
    without_proxy = make_trainer(
        FixedMultipliers(trainer.multipliers.lambdas, CPU), with_proxy=False
    )
    without_proxy.flow.load_state_dict(trainer.flow.state_dict())
    before = copy.deepcopy([trainer.proxy.tilt.state_dict(), vars(trainer.multipliers)])
    terms = trainer.step(x, some_folds(), seeded(), 2)
    assert terms[:1] == without_proxy.step(x, some_folds(), seeded(), 1)[:1]
    assert all(term.isnan() for term in terms[1:])
    torch.testing.assert_close(trainer.flow.state_dict(), without_proxy.flow.state_dict())
    torch.testing.assert_close(
        [trainer.proxy.tilt.state_dict(), vars(trainer.multipliers)], before, rtol=0, atol=0
    )


def test_the_likelihood_of_the_flow_alone_is_the_first_term():
    x = batch()
    alone = make_trainer(FixedMultipliers((1.0, 0.0, 0.0), CPU), with_proxy=False)
    with_proxy = make_trainer(FixedMultipliers((1.0, 0.0, 0.0), CPU))
    with_proxy.flow.load_state_dict(alone.flow.state_dict())
    for trainer in (alone, with_proxy):
        trainer.step(x, some_folds(), seeded(), 1)
    torch.testing.assert_close(alone.flow.state_dict(), with_proxy.flow.state_dict())


@pytest.mark.parametrize("fixed", [None, Mixtures([standard_normal(2)]).float()])
def test_what_the_proxy_says_of_samples_and_rows(fixed):
    """Whatever the reference: its mean density is ``log_density``, up to the tilt."""
    torch.manual_seed(0)
    reference = EnsembleReference() if fixed is None else FixedReference(fixed)
    proxy, y = Proxy(reference, Tilt(2, (8,), 1.8)), torch.randn(40, 2)
    nn.init.normal_(proxy.tilt.network[-1].weight)
    log_p = torch.randn(N_MEMBERS, 40)
    each = proxy.log_density_without_each(y, log_p)
    torch.testing.assert_close(mixture_log_density(each), proxy.log_density(y, log_p))
    x = y[:30].view(N_MEMBERS, 10, 2)
    bound = proxy.bound_log_density(x, log_p[:, :10])
    expected = log_p[:, :10] if fixed is None else fixed.log_prob(y[:30]).view(-1, 10)
    torch.testing.assert_close(bound, expected + proxy.tilt(x))


def test_a_single_member_is_its_own_reference():
    log_p, y = torch.randn(1, 20), torch.randn(20, 2)
    reference = EnsembleReference()
    torch.testing.assert_close(reference.log_density_without_each(y, log_p), log_p)


def test_restoring_a_state_repeats_the_same_step():
    trainer, x = make_trainer(), batch()
    trainer.step(x, some_folds(), seeded(), 1)
    state = trainer.state()
    first = trainer.step(x, some_folds(), seeded(), 3)
    trainer.step(x, some_folds(), seeded(), 5)
    trainer.restore(state)
    assert trainer.step(x, some_folds(), seeded(), 3) == first


@pytest.mark.parametrize(
    ("gap", "decay"),
    [(-1.0, 0.0), (0.0, 0.0), (2.0, 2 * DECAY_PER_NAT), (100.0, MAXIMUM_DECAY)],
)
def test_weights_of_flows_decay_beside_the_step_as_training_rows_are_ahead(gap, decay):
    """By the learning rate times the decay, whatever the gradient."""
    plain, decaying, x = make_trainer(), make_trainer(), batch()
    before = plain.flow.weights.detach().clone()
    decaying.decay_weights(gap)
    for trainer in (plain, decaying):
        trainer.step(x, some_folds(), seeded(), 1)
    torch.testing.assert_close(
        decaying.flow.weights, plain.flow.weights - plain.learning_rate * decay * before
    )
    torch.testing.assert_close(
        decaying.proxy.tilt.state_dict(), plain.proxy.tilt.state_dict(), rtol=0, atol=0
    )


def test_weights_decay_once_flows_overfit():
    trainer = make_overfitting_trainer()
    run(trainer, max_iter=24)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == MAXIMUM_DECAY


def test_gradients_are_clipped_for_each_member():
    gradient = torch.tensor([[6.0, 8.0], [60.0, 80.0], [0.0, 0.0]])
    _clip_each_row(gradient)
    torch.testing.assert_close(gradient, torch.tensor([[6.0, 8.0], [6.0, 8.0], [0.0, 0.0]]))


def test_learning_rate_rises_and_falls():
    trainer, rates = make_trainer(learning_rate=0.5), []
    for iteration in range(1, 1001):
        trainer.schedule(iteration, (1001 - iteration) / 1000)
        rates += {group["lr"] for group in trainer.optimizer.param_groups}
    assert len(rates) == 1000
    np.testing.assert_allclose(rates[:20], 0.5 * np.arange(1, 21) / WARM_UP)
    np.testing.assert_allclose(rates[WARM_UP:], 0.5 * np.arange(1000 - WARM_UP, 0, -1) / 1000)


def recorded_rates(trainer):
    """Return a list to which each step will append its learning rate."""
    plain, rates = trainer.step, []

    def step(x, folds, generator, iteration):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return plain(x, folds, generator, iteration)

    trainer.step = step
    return rates


def make_overfitting_trainer():
    """A trainer whose flows are always far behind on new rows, and never get better there."""
    trainer = make_trainer(learning_rate=0.5)
    trainer.entropy = math.inf
    trainer.held_out_log_likelihood = lambda folds: -1000.0
    return trainer


def test_a_plateau_lowers_the_learning_rate_and_a_second_one_ends_training():
    trainer = make_overfitting_trainer()
    rates = recorded_rates(trainer)
    history = run(trainer, EarlyStopping(2, 1e6), max_iter=1000)
    assert history["iteration"].tolist() == [25, 50, 75, 100, 125]
    np.testing.assert_allclose(rates[WARM_UP:75], 0.5 * np.arange(1000 - WARM_UP, 925, -1) / 1000)
    np.testing.assert_allclose(rates[75:], 0.5 * np.arange(925 // 4, 925 // 4 - 50, -1) / 1000)


def test_training_ends_where_the_shortened_schedule_does():
    trainer = make_overfitting_trainer()
    rates = recorded_rates(trainer)
    history = run(trainer, EarlyStopping(2, 1e6), max_iter=125)
    assert history["iteration"].tolist() == [25, 50, 75, 75 + 50 // 4]
    assert rates[-1] == 0.5 / 125


def test_each_plateau_after_an_improvement_shortens_training_and_another_ends_it():
    early_stopping, shortened = EarlyStopping(patience=2, tolerance=0.1), []
    for score in [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]:
        early_stopping.update(score, 1.0, False, torch.zeros(1, 1))
        shortened.append(early_stopping.shorten(100))
    assert shortened == [100, 100, 25, 100, 100, 25, 100, 0]


def test_the_first_plateau_is_there_when_the_pull_grows_while_the_ensemble_improves():
    early_stopping, shortened = EarlyStopping(patience=2, tolerance=0.1), []
    for score, pull_grows in enumerate([False, False, True, True, True]):
        early_stopping.update(score, 1.0, pull_grows, torch.full((1, 1), float(score)))
        shortened.append(early_stopping.shorten(100))
    assert shortened == [100, 100, 25, 100, 100]
    assert early_stopping.best_weights.item() == 4.0


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        # They overfit when they were best; since then the others took them off their rows.
        ([-1.0, 1.0, -1.0, -1.0, -1.0], [100, 100, 100, 25, 100]),
        # They do now.
        ([-1.0, -1.0, 1.0, 1.0, 1.0], [100, 100, 100, 25, 100]),
        # Once is not enough: as long as they do not, nothing counts.
        ([-1.0, -1.0, 1.0, -1.0, 1.0], [100, 100, 100, 100, 100]),
        ([0.0, 0.0, 0.0, 0.0, 0.0], [100, 100, 100, 100, 100]),
    ],
)
def test_a_plateau_of_flows_that_do_not_overfit_changes_nothing(gaps, expected):
    early_stopping, shortened = EarlyStopping(patience=2, tolerance=0.1), []
    for score, gap in zip([0.0, 1.0, 0.5, 0.5, 0.5], gaps, strict=True):
        early_stopping.update(score, gap, False, torch.zeros(1, 1))
        shortened.append(early_stopping.shorten(100))
    assert shortened == expected


def test_long_training_is_evaluated_more_rarely(monkeypatch):
    monkeypatch.setattr("skjeffreys._training.MAXIMUM_EVALUATIONS", 3)
    assert run(make_trainer(), max_iter=100)["iteration"].tolist() == [34, 68, 100]


def test_history_has_a_row_per_evaluation():
    trainer = make_trainer()
    history = run(trainer, max_iter=60)
    assert history["iteration"].tolist() == [25, 50, 60]
    assert history.notna().all(axis=None)
    np.testing.assert_allclose(
        history["training_log_likelihood"], -history["forward"] - trainer.entropy, atol=1e-6
    )


def test_entropy_only_falls():
    trainer = make_trainer()
    trainer.heed_held_out(-2.0, 0.0)
    assert trainer.entropy == 2.0 - 2 * ENTROPY_ALLOWANCE
    trainer.heed_held_out(-3.0, 0.0)
    assert trainer.entropy == 2.0 - 2 * ENTROPY_ALLOWANCE


def test_overfitting_costs_what_held_out_rows_are_behind_their_best():
    trainer = make_trainer()
    losses = [trainer.heed_held_out(score, math.inf) for score in [-3.0, -2.0, -2.5, -3.0, -1.0]]
    assert losses == pytest.approx([0.0, 0.0, 0.5, 1.0, 0.0])


@pytest.mark.parametrize(("gap", "loss"), [(-1.0, 0.0), (0.0, 0.0), (0.3, 0.3), (2.0, 1.0)])
def test_held_out_rows_lose_no_more_by_overfitting_than_training_rows_are_ahead(gap, loss):
    trainer = make_trainer()
    trainer.heed_held_out(-1.0, gap)
    assert trainer.heed_held_out(-2.0, gap) == pytest.approx(loss)


def test_the_reverse_bound_grows_with_what_overfitting_costs_and_falls_as_steps_are_left():
    trainer, scores = make_overfitting_trainer(), iter([-1000.0, -999.0, -999.5])
    trainer.held_out_log_likelihood = lambda folds: next(scores)
    run(trainer, max_iter=50)
    growth = float(trainer.multipliers.largest[1] / trainer.multipliers.maximum[1])
    loss = 0.5 * some_folds().held_out.numel()
    assert growth == pytest.approx(1 / 50 + math.expm1(loss / OVERFITTING_SCALE))


def test_early_stopping_keeps_the_best_and_ignores_small_improvements():
    early_stopping = EarlyStopping(patience=2, tolerance=0.1)
    plateaus = []
    for i, score in enumerate([0.0, 1.0, 1.05, 0.5]):
        early_stopping.update(score, 1.0, False, torch.full((2, 3), float(i)))
        plateaus.append(early_stopping.shorten(100) < 100)
    assert plateaus == [False, False, False, True]
    # Small improvements are kept, though no reason to go on.
    assert early_stopping.best_weights.unique() == 2.0


def test_training_returns_the_iterate_that_is_best_for_the_ensemble():
    trainer, early_stopping = make_trainer(learning_rate=0.1), EarlyStopping(3, 0.0)
    history = run(trainer, early_stopping, max_iter=1000)
    assert len(history) < 40
    estimates = history["validation_log_likelihood"] + history["ambiguity"]
    assert early_stopping.best_score == estimates.max()
    best = history.loc[estimates.idxmax()]
    score = trainer.held_out_log_likelihood(some_folds())
    np.testing.assert_allclose(score, best["validation_log_likelihood"], atol=1e-12)


def test_ambiguity_is_the_lead_of_the_others_at_samples_of_each_member():
    trainer = make_trainer()
    noise = batch(10)
    flow = trainer.slow_flow
    samples, leads = flow.transform.inv(noise), []
    for k in range(N_MEMBERS):
        others = np.delete(flow.log_prob(samples[k]).detach().numpy(), k, axis=0)
        leads.append(np.log(np.exp(others).mean(axis=0)) - others.mean(axis=0))
    np.testing.assert_allclose(trainer.ambiguity(noise), np.mean(leads))


def broken_step(trainer, at):
    """Make the steps with the given numbers leave the finite numbers."""
    plain, count = trainer.step, iter(range(1, 10**6))

    def step(x, folds, generator, iteration):
        terms = plain(x, folds, generator, iteration)
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
    assert trainer.learning_rate == 0.004


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
        assert trainer.learning_rate == expected
        assert recovery.check(trainer)
