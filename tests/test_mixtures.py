import numpy as np
import pytest
import torch
from scipy.stats import kstest, multivariate_t, norm, t
from sklearn.mixture import GaussianMixture

from skjeffreys._mixtures import Mixture, Mixtures, join, standard_normal, with_tails


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
    one, three = (
        Mixture(m.weights_, m.means_, m.precisions_cholesky_, np.full(m.n_components, np.inf))
        for m in fitted
    )
    return Mixtures([one, standard_normal(3), three])


#: One normal component between others, so that they change places where they are evaluated.
DEGREES = np.array([5.0, np.inf, 30.0])


@pytest.fixture(scope="module")
def student(fitted):
    m = fitted[1]
    return Mixture(m.weights_, m.means_, m.precisions_cholesky_, DEGREES)


def one_feature(degrees):
    """A mixture with components around 0, 1 and so on, of scales 1, 2 and so on."""
    places = np.arange(len(degrees))
    weights = (1.0 + places) / (1 + places).sum()
    factors = 1 / (1.0 + places)
    return Mixture(weights, places[:, None].astype(float), factors[:, None, None], degrees)


def test_log_density_is_that_of_the_mixtures(fitted, bases):
    X = clusters(50, seed=1)
    log_density = bases.log_prob(torch.tensor(X))
    normal = norm.logpdf(X).sum(axis=1)
    expected = [fitted[0].score_samples(X), normal, fitted[1].score_samples(X)]
    np.testing.assert_allclose(log_density, np.stack(expected), rtol=1e-9)


def test_log_density_is_that_of_student_t(fitted, student):
    X = clusters(50, seed=1)
    # Beside a mixture of other numbers of components of each kind.
    log_density = Mixtures([standard_normal(3), student]).log_prob(torch.tensor(X))[1]
    parameters = zip(student.means, fitted[1].covariances_, DEGREES, strict=True)
    components = np.array([multivariate_t(m, c, df=nu).pdf(X) for m, c, nu in parameters])
    np.testing.assert_allclose(log_density, np.log(student.weights @ components), rtol=1e-9)


@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("nu", [3.0, 5000.0, np.inf])
def test_log_density_of_narrow_components_is_exact_far_from_zero(mean, nu):
    narrow = Mixture(np.ones(1), np.full((1, 2), mean), 100 * np.eye(2)[None], np.full(1, nu))
    X = mean + 0.01 * np.random.RandomState(0).standard_normal((50, 2))
    log_density = Mixtures([narrow]).log_prob(torch.tensor(X))[0]
    expected = multivariate_t([mean, mean], 0.0001, df=nu).logpdf(X)
    np.testing.assert_allclose(log_density, expected, atol=1e-5)


@pytest.mark.parametrize("distance", [1e100, 1e160, 1e300])
def test_log_density_falls_without_end(bases, distance):
    X = distance * torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
    assert (bases.log_prob(X) < -1e100).all()
    assert bases.log_prob(torch.nan * X).isnan().all()


def test_log_density_of_student_t_falls_with_the_logarithm_of_the_distance():
    alone = Mixtures([standard_normal(3)._replace(degrees_of_freedom=np.array([4.0]))])
    X = torch.tensor([[1e50], [1e100], [1e150]], dtype=torch.float64) * torch.ones(1, 3)
    falls = -alone.log_prob(X)[0].diff()
    np.testing.assert_allclose(falls, (4 + 3) * np.log(1e50))


def test_few_nodes_of_many_components_have_the_mean_of_the_mixture():
    rng = np.random.RandomState(0)
    weights = rng.dirichlet(np.ones(500))
    means = rng.standard_normal((500, 2))
    factors = np.broadcast_to(10 * np.eye(2), (500, 2, 2))
    mixture = Mixture(weights, means, factors, rng.uniform(3, 9, size=500))
    base = Mixtures([mixture, standard_normal(2)])
    nodes = base.quadrature(16)
    np.testing.assert_allclose(nodes[0].mean(dim=0), weights @ means, atol=1e-12)
    np.testing.assert_allclose(nodes[1].mean(dim=0), 0, atol=1e-12)


def test_gradient_is_that_of_a_normal_density():
    X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    # The second mixture has fewer components: those it lacks must not turn gradients into NaN.
    mixtures = [with_tails(standard_normal(3), tailed=False), standard_normal(3)]
    Mixtures(mixtures).float().log_prob(X)[1].sum().backward()
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


@pytest.mark.parametrize("sample", [sample for sample, *_ in SAMPLES.values()], ids=SAMPLES)
def test_samples_of_student_t_have_its_moments(fitted, student, sample):
    drawn = sample(Mixtures([student]))[0]
    spread = np.where(np.isinf(DEGREES), 1, 1 / (1 - 2 / DEGREES))
    mean = student.weights @ student.means
    centred = student.means - mean
    expected = np.einsum("k,kij->ij", student.weights * spread, fitted[1].covariances_)
    expected += np.einsum("k,ki,kj->ij", student.weights, centred, centred)
    np.testing.assert_allclose(drawn.mean(dim=0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T.numpy()), expected, atol=0.05)


@pytest.mark.parametrize("degrees", [[3.0], [np.inf], [np.inf, 3.0, 10.0]], ids=str)
def test_samples_follow_the_distribution_function(degrees):
    mixture = one_feature(np.array(degrees))
    base = Mixtures([standard_normal(1), mixture])

    def distribution_function(x):
        rows = torch.tensor(x).expand(2, -1)[..., None]
        return base.distribution_function(rows)[1].numpy()

    x = np.linspace(-10, 10, 50)
    of_components = [
        t.cdf(x, nu, place, 1 + place) for place, nu in enumerate(mixture.degrees_of_freedom)
    ]
    expected = mixture.weights @ of_components
    np.testing.assert_allclose(distribution_function(x), expected, atol=1e-12)
    for sample, *_ in SAMPLES.values():
        assert kstest(sample(base)[1][:, 0].numpy(), distribution_function).pvalue > 0.01


def test_joined_mixtures_keep_their_weights():
    one, two = standard_normal(1), standard_normal(1)._replace(means=np.full((1, 1), 5.0))
    two = two._replace(degrees_of_freedom=np.full(1, 3.0))
    joined = join([one, two, one], np.array([0.3, 0.7, 0.0]))
    assert joined.weights.tolist() == [0.3, 0.7]
    assert joined.means.tolist() == [[0.0], [5.0]]
    assert joined.degrees_of_freedom.tolist() == [np.inf, 3.0]


def test_tails_are_heavy_and_cost_nothing_close_by():
    plain = Mixtures([standard_normal(3)])
    tailed = Mixtures([with_tails(standard_normal(3), tailed=True)])
    X = torch.tensor(clusters(300))
    assert (tailed.log_prob(X) > plain.log_prob(X) - 0.00011).all()
    X_far = X[:1] * torch.tensor([[1.0], [30], [300], [3000]])
    near, *far = tailed.log_prob(X_far)[0]
    # A normal density would lose the square of the distance: 450, 45,000, 4,500,000 nats.
    assert torch.stack(far).min() > near - 100


def test_tails_hardly_change_the_variance():
    weights, _, factors, _ = with_tails(standard_normal(2), tailed=np.array([True, False]))
    assert weights.sum() == pytest.approx(1)
    assert weights @ factors[:, 0, 0] ** -2.0 == pytest.approx(1, abs=0.0025)
    assert (factors[:, 1, 1] == 1).all()
