"""What the studies of the paper rest on."""

import numpy as np
import pytest
import torch
from images import Autoencoder, frechet_distance
from known_densities import KNOWN_DENSITIES, eight_gaussians
from scipy.stats import norm
from sklearn.datasets import load_digits
from test_density import integral
from traced import TracedDensity
from wasserstein import TracedWasserstein

DENSITIES = {name: build(2) for name, build in KNOWN_DENSITIES.items()}
DENSITIES["eight Gaussians"] = eight_gaussians()


@pytest.mark.parametrize("name", DENSITIES)
def test_known_densities_integrate_to_one_and_are_sampled(name):
    truth = DENSITIES[name]
    low, high = [-40, -40], [40, 40]
    assert integral(truth.log_density, low, high, 1000) == pytest.approx(1, abs=0.01)

    # The expectation of a density that is zero far out, by samples and by the integral.
    def weighted(rows):
        return truth.log_density(rows) + norm.logpdf(rows, 0.5, 2.0).sum(axis=1)

    expected = integral(weighted, low, high, 1000)
    samples = truth.sample(40_000, np.random.RandomState(0))
    values = np.exp(norm.logpdf(samples, 0.5, 2.0).sum(axis=1))
    assert values.mean() == pytest.approx(expected, abs=5 * values.std() / 200)


@pytest.mark.parametrize("name", KNOWN_DENSITIES)
@pytest.mark.parametrize("d", [5, 10])
def test_known_densities_agree_with_their_samples_in_more_dimensions(name, d):
    truth = KNOWN_DENSITIES[name](d)
    rows = truth.sample(40_000, np.random.RandomState(0))
    assert rows.shape == (40_000, d)
    # Moved by a little, rows have the density ratio one in the mean.
    shift = 0.05 * np.eye(d)[1]
    ratio = np.exp(truth.log_density(rows - shift) - truth.log_density(rows))
    assert ratio.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("objective", ["jeffreys", "likelihood"])
def test_iterates_are_those_of_training_and_end_with_the_fit(objective):
    rows = eight_gaussians().sample(100, np.random.RandomState(0))
    density = TracedDensity(objective=objective, n_estimators=2, max_iter=110, random_state=0)
    last = density.fit(rows).score(rows)
    scores = {iteration: density.score(rows) for iteration in density.iterates()}
    assert list(scores) == density.history_["iteration"].tolist() == [25, 50, 75, 100, 110]
    assert scores[25] < scores[110] == last == density.score(rows)
    assert list(density.iterates(every=2)) == [25, 75, 110]


def test_wasserstein_training_moves_samples_towards_the_data():
    rng = np.random.RandomState(0)
    rows = np.exp(0.7 * rng.standard_normal((500, 2)))
    density = TracedWasserstein(
        objective="likelihood", n_estimators=1, max_iter=300, random_state=0
    )
    state = torch.get_rng_state()
    density.fit(rows)
    assert torch.equal(torch.get_rng_state(), state)
    iterates = [density.sample(4000) for _ in density.iterates(every=11)]
    first, *_, last = (np.mean(samples < 0) for samples in iterates)
    assert last < 0.5 * first


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_autoencoder_restores_digits():
    X = load_digits().data[:400] / 16
    autoencoder = Autoencoder(max_iter=100).fit(X)
    codes = autoencoder.transform(X)
    assert codes.shape == (400, 16)
    restored = autoencoder.inverse_transform(codes)
    np.testing.assert_allclose(restored, autoencoder.network_.predict(X), atol=1e-9)
    assert np.square(restored - X).mean() < 0.5 * X.var(axis=0).mean()


def test_frechet_distance_of_normal_samples():
    rng = np.random.RandomState(0)
    rows = rng.standard_normal((100_000, 2)) * [1, 2]
    others = rng.standard_normal((100_000, 2)) * [3, 2] + [0, 5]
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows, others) == pytest.approx(25 + 4, rel=0.01)
