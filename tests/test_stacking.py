from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import kstest
from sklearn.datasets import make_blobs, make_moons
from sklearn.mixture import GaussianMixture
from test_mixture_fitting import make_folds
from test_mixtures import clusters

from skjeffreys import JeffreysDensity
from skjeffreys._flow import Flows
from skjeffreys._mixture_fitting import (
    COVARIANCES,
    Kind,
    affordable_kinds,
    fit_mixture,
    training_rows,
)
from skjeffreys._mixtures import TAIL_SCALES, Mixtures, standard_normal
from skjeffreys._power import Unbending, fit_power_transform
from skjeffreys._regression import LinearRegressions, fit_regressions, no_regressions
from skjeffreys._rows import Rows, split_rows
from skjeffreys._stacking import (
    MAXIMUM_FITS,
    PRIOR_COUNT,
    Candidate,
    StackedDensity,
    stack,
    stacking_weights,
    worth_of_a_fit,
)

NO_TAILS = np.array([False])


def normals(means, scale, regressions=None):
    """Flows without couplings around a mean for each member, in one dimension."""
    normal = standard_normal(1)._replace(factors=np.full((1, 1, 1), 1 / scale))
    bases = [normal._replace(means=np.full((1, 1), m)) for m in means]
    regressions = regressions or no_regressions(len(means), 0, 1)
    return Flows(Mixtures(bases), regressions).double()


@pytest.fixture(scope="module")
def stacked():
    parts = [normals([-4.0, -2.0], 0.5), normals([1.0, 5.0], 1.0)]
    return StackedDensity(parts, torch.tensor([0.3, 0.7], dtype=torch.float64))


def log_density(stacked, x):
    return stacked.log_density(x, stacked.parts[0].log_prob(x))


@pytest.mark.parametrize("seed", range(3))
def test_weights_maximise_the_posterior(seed):
    rng = np.random.RandomState(seed)
    log_densities = 2 * rng.standard_normal((4, 60)) + rng.standard_normal((4, 1))
    row_weights = rng.uniform(0.1, 2, size=60)
    n_effective = row_weights.sum() ** 2 / np.square(row_weights).sum()

    def loss(logits):
        log_weights = log_softmax(logits)
        mixed = logsumexp(log_densities.T + log_weights, axis=1)
        log_prior = PRIOR_COUNT * log_weights.sum()
        return -np.average(mixed, weights=row_weights) - log_prior / n_effective

    weights = stacking_weights(torch.tensor(log_densities), torch.tensor(row_weights)).numpy()
    assert weights.sum() == pytest.approx(1)
    best = minimize(loss, np.zeros(4))
    assert loss(np.log(weights)) == pytest.approx(best.fun, abs=1e-5)
    assert weights == pytest.approx(softmax(best.x), abs=0.01)


def test_densities_that_agree_share_their_weight():
    log_densities = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).expand(3, 50)
    worse = log_densities[:1] - 50
    weights = stacking_weights(torch.cat([log_densities, worse]), torch.ones(50))
    kept = PRIOR_COUNT / (50 + 4 * PRIOR_COUNT)
    assert weights.tolist() == pytest.approx([(1 - kept) / 3] * 3 + [kept])


def test_weights_do_not_depend_on_the_scale_of_row_weights():
    rng = np.random.RandomState(0)
    log_densities = torch.from_numpy(rng.standard_normal((3, 40)))
    row_weights = torch.from_numpy(rng.uniform(0.1, 2, size=40))
    weights = stacking_weights(log_densities, row_weights)
    torch.testing.assert_close(stacking_weights(log_densities, 7 * row_weights), weights)


def test_weights_do_not_overflow_far_out():
    log_densities = torch.tensor([[-1e6, -2e6, 5.0], [-1e6, -2e6 + 800, 4.0]])
    weights = stacking_weights(log_densities, torch.ones(3))
    assert weights[1] > 0.4


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_worth_of_a_fit_is_what_rows_lose_without_it(spread):
    rng = np.random.RandomState(0)
    of_fits = rng.standard_normal((3, 40)) + spread * rng.standard_normal((4, 3, 40))
    row_weights = rng.uniform(0.1, 2, size=40)

    def means(of_fits):
        return logsumexp(of_fits, axis=0) - np.log(len(of_fits))

    weights = stacking_weights(torch.from_numpy(means(of_fits)), torch.from_numpy(row_weights))

    def score(of_fits):
        mixed = logsumexp(means(of_fits), axis=0, b=weights.numpy()[:, None])
        return np.average(mixed, weights=row_weights)

    without_each = [score(np.delete(of_fits, each, axis=0)) for each in range(4)]
    worth = worth_of_a_fit(torch.from_numpy(of_fits), weights, torch.from_numpy(row_weights))
    assert worth == pytest.approx(score(of_fits) - np.mean(without_each), abs=1e-9)
    assert (worth > 0.01) == (spread > 0)


def test_density_is_that_of_both_parts_and_integrates_to_one(stacked):
    x = torch.linspace(-15, 15, 3001, dtype=torch.float64)[:, None]
    density = log_density(stacked, x).exp()
    each = [part.log_prob(x).exp().mean(dim=0) for part in stacked.parts]
    torch.testing.assert_close(density, 0.3 * each[0] + 0.7 * each[1])
    assert torch.trapezoid(density, x[:, 0]) == pytest.approx(1, abs=1e-6)
    distribution = stacked.distribution_function(x)
    expected = torch.cumulative_trapezoid(density, x[:, 0])
    torch.testing.assert_close(distribution[1:], expected, atol=1e-4, rtol=0)


def test_samples_follow_the_density(stacked):
    generator = torch.Generator().manual_seed(0)
    samples = stacked.sample(torch.empty(20_000, 0, dtype=torch.float64), generator)

    def distribution(values):
        return stacked.distribution_function(torch.tensor(values)[:, None]).numpy()

    assert kstest(samples[:, 0].numpy(), distribution).pvalue > 0.001


def test_samples_belong_to_their_conditions():
    slope = torch.full((2, 1, 1), 10.0)
    regressions = LinearRegressions(slope, torch.zeros(2, 1, 1), torch.ones(1))
    parts = [normals([0.0, 0.0], 1.0, regressions) for _ in range(2)]
    density = StackedDensity(parts, torch.tensor([0.5, 0.5], dtype=torch.float64))
    conditions = torch.arange(200.0, dtype=torch.float64)[:, None]
    samples = density.sample(conditions, torch.Generator().manual_seed(0))
    assert (samples[:, :1] == conditions).all()
    assert (samples[:, 1:] - 10 * conditions).abs().max() < 5
    one = density.sample(conditions[:1], torch.Generator().manual_seed(0))
    assert one.shape == (1, 2)


def standard_normal_flow(folds):
    regressions = fit_regressions(folds)
    base = Mixtures([standard_normal(folds.rows.targets.shape[1])] * folds.n_members)
    return Flows(base, regressions).double()


def candidates_of(flow, kinds):
    return [Candidate(flow.preprocessing, kind) for kind in kinds]


def test_stack_weighs_by_the_rows_left_out():
    folds = make_folds(clusters(300))
    flow = standard_normal_flow(folds)
    candidates = candidates_of(flow, affordable_kinds(folds.training.shape[1], 3, COVARIANCES))
    density = stack(flow, candidates, folds, NO_TAILS, seed=0)
    # Rows in two clusters are not standard normal.
    assert density.weights[0] < 0.05
    held_out = folds.rows.values[folds.held_out].double()
    score = folds.held_out_means(density.parts[1].log_prob(held_out)).mean()
    rows = training_rows(folds, flow.preprocessing)
    for preprocessing, kind in candidates:
        mixtures = [fit_mixture(own, kind, seed=0) for own in rows]
        other = Flows(Mixtures(mixtures), preprocessing)
        assert score > folds.held_out_means(other.log_prob(held_out)).mean() - 0.02


@pytest.mark.parametrize("n_conditions", [0, 1])
def test_components_are_predictive_densities_unless_there_are_conditions(n_conditions):
    folds = make_folds(clusters(300))
    folds = replace(folds, rows=replace(folds.rows, n_conditions=n_conditions))
    flow = standard_normal_flow(folds)
    density = stack(flow, candidates_of(flow, [Kind(4, "full")]), folds, NO_TAILS, seed=0)
    base = density.parts[1].base
    # Of the tails beside them all are normal.
    assert base.n_student == (0 if n_conditions > 0 else base.n_components - len(TAIL_SCALES))


def test_flows_do_not_change_which_mixtures_are_fitted(monkeypatch):
    """They may know of the rows left out, from the members that they learn from."""
    folds = make_folds(clusters(300))
    flow = standard_normal_flow(folds)
    candidates = candidates_of(flow, affordable_kinds(folds.training.shape[1], 3, COVARIANCES))
    log_prob, fitted = flow.log_prob, []

    def fit(rows, kind, seed):
        kinds.add(kind)
        return fit_mixture(rows, kind, seed)

    monkeypatch.setattr("skjeffreys._stacking.fit_mixture", fit)
    for known in (0.0, 2.0):
        kinds = set()
        monkeypatch.setattr(flow, "log_prob", lambda x, known=known: log_prob(x) + known)
        density = stack(flow, candidates, folds, NO_TAILS, seed=0)
        assert density.weights[0] < 0.9
        fitted.append(kinds)
    assert fitted[0] == fitted[1]


def test_what_is_of_no_use_is_fitted_no_further_than_it_takes_to_tell(monkeypatch):
    folds = make_folds(clusters(300))
    flow = standard_normal_flow(folds)
    good, poor = Kind(2, "full"), Kind(1, "diag")
    fits = Counter()

    def fit(rows, kind, seed):
        fits[kind] += 1
        # From rows drawn at random, fits end nowhere near the clusters.
        return fit_mixture(rows if kind.init_params == "kmeans" else rows + 50, kind, seed)

    monkeypatch.setattr("skjeffreys._stacking.fit_mixture", fit)
    stack(flow, candidates_of(flow, [good, poor]), folds, NO_TAILS, seed=0)
    n_members = folds.n_members
    # By half of the members; once by each, from a start of no use; twice, where all fits agree.
    expected = {poor: n_members // 2, good._replace(init_params="random_from_data"): n_members}
    assert fits == expected | {good: 2 * n_members}


def test_what_flows_do_better_is_fitted_once(monkeypatch):
    """Beside mixtures of the clusters alone it is of use, for the rows between them."""
    between = np.random.RandomState(0).standard_normal((60, 3))
    folds = make_folds(np.vstack([clusters(240), between]))
    flow = standard_normal_flow(folds)
    log_prob = flow.log_prob
    monkeypatch.setattr(flow, "log_prob", lambda x: log_prob(x) + 1)
    tight, wide = Kind(2, "full"), Kind(1, "full")
    fits = Counter()

    def fit(rows, kind, seed):
        fits[kind] += 1
        return standard_normal(3) if kind == wide else fit_mixture(clusters(240), kind, seed)

    monkeypatch.setattr("skjeffreys._stacking.fit_mixture", fit)
    stack(flow, candidates_of(flow, [tight, wide]), folds, NO_TAILS, seed=0)
    assert fits[wide] == folds.n_members
    assert fits[tight] == 2 * folds.n_members


def test_fits_go_on_as_long_as_each_is_worth_its_time(monkeypatch):
    """Here each knows one cluster of eight."""
    n_clusters = 8
    centers = np.random.RandomState(0).uniform(-2, 2, size=(n_clusters, 3))
    X, _ = make_blobs(400, centers=centers, cluster_std=0.05, random_state=0)
    folds = make_folds(X)
    fits = Counter()

    def fit(rows, kind, seed):
        fits[seed] += 1
        return standard_normal(3)._replace(
            means=centers[seed : seed + 1], factors=np.eye(3)[None] / 0.05
        )

    monkeypatch.setattr("skjeffreys._stacking.fit_mixture", fit)
    flow = standard_normal_flow(folds)
    stack(flow, candidates_of(flow, [Kind(1, "full")]), folds, NO_TAILS, seed=0)
    assert n_clusters == MAXIMUM_FITS
    assert fits == dict.fromkeys(range(MAXIMUM_FITS), folds.n_members)


def test_mixtures_of_columns_that_bending_spoils_get_the_weight():
    x = np.random.RandomState(0).lognormal(size=(600, 1))
    power = fit_power_transform(x, np.full(600, 1 / 600))
    centres = np.repeat([[0.5], [2.0], [6.0]], 200, axis=0)
    before = centres + 0.05 * np.random.RandomState(1).standard_normal((600, 1))
    folds = make_folds(power(torch.from_numpy(before)).numpy())
    flow = standard_normal_flow(folds)
    candidates = [
        Candidate(preprocessing, Kind(3, "tied"))
        for preprocessing in (flow.preprocessing, Unbending(power))
    ]
    density = stack(flow, candidates, folds, NO_TAILS, seed=0)
    assert density.weights[-1] > 0.9
    rows = torch.linspace(-10, 10, 20_001, dtype=torch.float64)[:, None]
    values = density.log_density(rows, flow.log_prob(rows)).exp()
    assert torch.trapezoid(values, rows[:, 0]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kinds", [[Kind(64, "full")], []], ids=["overfitted", "none"])
def test_a_part_that_is_the_density_of_the_rows_gets_the_weight(kinds):
    X = np.random.RandomState(0).standard_normal((400, 2))
    folds = make_folds(X)
    flow = standard_normal_flow(folds)
    rows = folds.rows.values.double()
    log_p = flow.log_prob(rows)
    density = stack(flow, candidates_of(flow, kinds), folds, NO_TAILS, seed=0)
    assert density.weights.tolist() == [1.0]
    torch.testing.assert_close(density.log_density(rows, log_p), log_p[0])


def test_mixtures_stand_beside_the_residuals_of_the_regression():
    rng = np.random.RandomState(0)
    condition = rng.standard_normal((400, 1))
    noise = rng.choice([-0.5, 0.5], size=(400, 1)) + 0.05 * rng.standard_normal((400, 1))
    rows = torch.tensor(np.hstack([condition, 3 * condition + noise]), dtype=torch.float32)
    weights = torch.full((400,), 1 / 400)
    folds = split_rows(Rows(rows, weights, n_conditions=1), 3, 0.25, np.random.RandomState(0))
    flow = standard_normal_flow(folds)
    candidates = candidates_of(flow, affordable_kinds(300, 1, COVARIANCES))
    density = stack(flow, candidates, folds, NO_TAILS, seed=0)
    samples = density.sample(rows[:, :1].double(), torch.Generator().manual_seed(0))
    drawn = samples[:, 1] - 3 * samples[:, 0]
    assert density.weights[0] < 0.05
    assert ((drawn.abs() - 0.5).abs() < 0.25).double().mean() > 0.95


@pytest.mark.parametrize(
    "X",
    [
        make_blobs(300, 5, centers=6, random_state=0)[0],
        make_moons(300, noise=0.1, random_state=0)[0],
    ],
    ids=["clusters", "curves"],
)
def test_fit_is_about_as_good_as_the_better_part(X):
    training, test = X[:150], X[150:]
    density = JeffreysDensity(max_iter=300, random_state=0).fit(training)
    mixtures = [GaussianMixture(k, random_state=0).fit(training) for k in range(1, 9)]
    assert density.score(test) > max(mixture.score(test) for mixture in mixtures) - 0.1
