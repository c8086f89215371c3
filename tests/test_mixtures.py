import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from skjeffreys._mixtures import GaussianMixtures, Mixture, join, standard_normal, with_tails


def clusters(n, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((n, 3)) @ rng.standard_normal((3, 3))
    X[: n // 3] = 0.2 * X[: n // 3] + 5
    return (X - X.mean(axis=0)) / X.std(axis=0)


@pytest.fixture(scope="module")
def fitted():
    return [GaussianMixture(k, random_state=0).fit(clusters(200)) for k in (1, 3)]


@pytest.fixture(scope="module")
def bases(fitted):
    one, three = (Mixture(m.weights_, m.means_, m.precisions_cholesky_) for m in fitted)
    return GaussianMixtures([one, standard_normal(3), three])


def test_log_density_is_that_of_the_mixtures(fitted, bases):
    X = clusters(50, seed=1)
    log_density = bases.log_prob(torch.tensor(X))
    normal = norm.logpdf(X).sum(axis=1)
    expected = [fitted[0].score_samples(X), normal, fitted[1].score_samples(X)]
    np.testing.assert_allclose(log_density, np.stack(expected), rtol=1e-9)


@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
def test_log_density_of_narrow_components_is_exact_far_from_zero(mean):
    narrow = Mixture(np.ones(1), np.full((1, 2), mean), 100 * np.eye(2)[None])
    X = mean + 0.01 * np.random.RandomState(0).standard_normal((50, 2))
    log_density = GaussianMixtures([narrow]).log_prob(torch.tensor(X))[0]
    expected = norm.logpdf(X, mean, 0.01).sum(axis=1)
    np.testing.assert_allclose(log_density, expected, atol=1e-5)


@pytest.mark.parametrize("distance", [1e100, 1e160, 1e300])
def test_log_density_falls_without_end(bases, distance):
    X = distance * torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
    assert (bases.log_prob(X) < -1e100).all()
    assert bases.log_prob(torch.nan * X).isnan().all()


def test_few_nodes_of_many_components_have_the_mean_of_the_mixture():
    rng = np.random.RandomState(0)
    weights = rng.dirichlet(np.ones(500))
    means = rng.standard_normal((500, 2))
    factors = np.broadcast_to(10 * np.eye(2), (500, 2, 2))
    base = GaussianMixtures([Mixture(weights, means, factors), standard_normal(2)])
    nodes = base.quadrature(16)
    np.testing.assert_allclose(nodes[0].mean(dim=0), weights @ means, atol=1e-12)
    np.testing.assert_allclose(nodes[1].mean(dim=0), 0, atol=1e-12)


def test_gradient_is_that_of_a_normal_density():
    X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    # The second mixture has fewer components: those it lacks must not turn gradients into NaN.
    mixtures = [with_tails(standard_normal(3), tailed=False), standard_normal(3)]
    GaussianMixtures(mixtures).float().log_prob(X)[1].sum().backward()
    torch.testing.assert_close(X.grad, -X.detach())


def test_blocks_do_not_matter(bases, monkeypatch):
    X = torch.tensor(clusters(50))

    def evaluate():
        generator = torch.Generator().manual_seed(0)
        return bases.log_prob(X), bases.sample(X[:, :0], generator), bases.quadrature(16)

    together = evaluate()
    monkeypatch.setattr("skjeffreys._mixtures.BLOCK_SIZE", 100)
    torch.testing.assert_close(evaluate(), together)
    assert bases.log_prob(X[:0]).shape == (3, 0)


SAMPLES = {
    "random": (lambda bases: bases.sample(torch.empty(40_000, 0), torch.Generator()), 0.03, 0.05),
    "quadrature": (lambda bases: bases.quadrature(1024), 0.005, 0.02),
}


@pytest.mark.parametrize("sample, mean_error, covariance_error", SAMPLES.values(), ids=SAMPLES)
def test_samples_have_the_moments_of_the_mixtures(bases, sample, mean_error, covariance_error):
    # A fitted mixture has the mean and the covariance of its rows.
    X = clusters(200)
    rows = X.mean(axis=0), np.cov(X.T, ddof=0)
    expected = [rows, (np.zeros(3), np.eye(3)), rows]
    for drawn, (centre, covariance) in zip(sample(bases), expected, strict=True):
        np.testing.assert_allclose(drawn.mean(dim=0), centre, atol=mean_error)
        np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=covariance_error)


def test_joined_mixtures_keep_their_weights():
    one, two = standard_normal(1), standard_normal(1)._replace(means=np.full((1, 1), 5.0))
    joined = join([one, two, one], np.array([0.3, 0.7, 0.0]))
    assert joined.weights.tolist() == [0.3, 0.7]
    assert joined.means.tolist() == [[0.0], [5.0]]


def test_tails_are_heavy_and_cost_nothing_close_by():
    plain = GaussianMixtures([standard_normal(3)])
    tailed = GaussianMixtures([with_tails(standard_normal(3), tailed=True)])
    X = torch.tensor(clusters(300))
    assert (tailed.log_prob(X) > plain.log_prob(X) - 0.00011).all()
    X_far = X[:1] * torch.tensor([[1.0], [30], [300], [3000]])
    near, *far = tailed.log_prob(X_far)[0]
    # A normal density would lose the square of the distance: 450, 45,000, 4,500,000 nats.
    assert torch.stack(far).min() > near - 100


def test_tails_hardly_change_the_variance():
    weights, _, factors = with_tails(standard_normal(2), tailed=np.array([True, False]))
    assert weights.sum() == pytest.approx(1)
    assert weights @ factors[:, 0, 0] ** -2.0 == pytest.approx(1, abs=0.0025)
    assert (factors[:, 1, 1] == 1).all()
