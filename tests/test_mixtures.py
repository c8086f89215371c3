import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from skjeffreys._mixtures import (
    COVARIANCES,
    GaussianMixtures,
    Kind,
    Mixture,
    _resample,
    affordable_kinds,
    fit_mixture,
    join,
    mean,
    shrunk,
    standard_normal,
    training_rows,
    with_tails,
)
from skjeffreys._regression import fit_regressions
from skjeffreys._rows import Rows, split_rows


def clusters(n, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((n, 3)) @ rng.standard_normal((3, 3))
    X[: n // 3] = 0.2 * X[: n // 3] + 5
    return (X - X.mean(axis=0)) / X.std(axis=0)


def make_folds(X, weights=None, n_members=4, fraction=0.25):
    weights = np.ones(len(X)) if weights is None else weights
    rows = Rows(torch.tensor(X, dtype=torch.float32), torch.tensor(weights / weights.sum()))
    return split_rows(rows, n_members, fraction, np.random.RandomState(0))


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


def training_rows_of(folds):
    return training_rows(folds, fit_regressions(folds).double())


def test_mixtures_are_fitted_to_the_rows_of_each_member():
    folds = make_folds(clusters(300))
    kinds = affordable_kinds(folds.training.shape[1], 3, COVARIANCES)
    for kind in kinds:
        for own, index in zip(training_rows_of(folds), folds.training, strict=True):
            mixture = fit_mixture(own, kind, seed=0)
            assert len(mixture.weights) == kind.n_components
            rows = folds.rows.values[index].double().numpy()
            np.testing.assert_allclose(
                mixture.weights @ mixture.means, rows.mean(axis=0), atol=0.02
            )
            if kind.covariance_type == "diag":
                off_diagonal = mixture.factors * (1 - np.eye(3))
                assert (off_diagonal == 0).all()
            if kind.covariance_type == "tied":
                assert (mixture.factors == mixture.factors[0]).all()
            variances = np.linalg.eigvalsh(mixture.factors @ mixture.factors.transpose(0, 2, 1))
            assert (1 / variances > 0.99 * kind.reg_covar).all()


@pytest.mark.parametrize("n_rows, tolerance", [(500, 0.05), (4000, 0.025)])
def test_fits_end_where_all_rows_together_gain_little(n_rows, tolerance):
    rows = clusters(n_rows)
    kind = Kind(16, "full", 1e-4, "random_from_data")
    ended = fit_mixture(rows, kind, seed=0).means
    means = {
        gain: GaussianMixture(**kind._asdict(), tol=gain, random_state=0).fit(rows).means_
        for gain in (0.05, 0.025)
    }
    assert not np.array_equal(*means.values())
    np.testing.assert_array_equal(ended, means[tolerance])


def test_several_fits_are_averaged():
    folds = make_folds(clusters(100))
    kind, rows = Kind(8, "diag", 1e-4, "random_from_data"), training_rows_of(folds)
    fits = [fit_mixture(rows[0], kind, seed) for seed in (3, 4)]
    X = torch.tensor(clusters(50, seed=1))
    densities = GaussianMixtures([*fits, mean(fits)]).log_prob(X).exp()
    assert not torch.allclose(densities[0], densities[1])
    torch.testing.assert_close(densities[2], (densities[0] + densities[1]) / 2)


def test_joined_mixtures_keep_their_weights():
    one, two = standard_normal(1), standard_normal(1)._replace(means=np.full((1, 1), 5.0))
    joined = join([one, two, one], np.array([0.3, 0.7, 0.0]))
    assert joined.weights.tolist() == [0.3, 0.7]
    assert joined.means.tolist() == [[0.0], [5.0]]


@pytest.mark.parametrize("n_rows", [2, 3, 9, 160])
def test_few_rows_have_mixtures_of_few_components(n_rows):
    sizes = {kind.n_components for kind in affordable_kinds(n_rows, 3, COVARIANCES)}
    assert 1 in sizes
    assert max(sizes) <= max(1, n_rows // 2)


def test_many_columns_have_mixtures_of_few_components():
    for n_rows in (50, 300, 5000):
        kinds = affordable_kinds(n_rows, 300, COVARIANCES)
        largest = max(kind.n_components for kind in kinds)
        assert largest * n_rows * 300**2 <= 2e8 or largest == 1
        assert largest * 300**2 <= 2e5
        assert {kind.covariance_type for kind in kinds} == {"full", "diag", "tied"}


def test_components_of_few_rows_are_wider():
    # Narrow clusters, of which the second has few rows for its three columns.
    clusters_of = [(200, 0.0), (5, 10.0)]
    rng = np.random.RandomState(0)
    rows = [at + 0.002 * rng.standard_normal((n, 3)) for n, at in clusters_of]
    mixture = fit_mixture(np.concatenate(rows), Kind(2, "full", 1e-6), seed=0)
    precisions = mixture.factors @ mixture.factors.swapaxes(1, 2)
    variances = dict(zip(mixture.means[:, 0].round(), np.linalg.inv(precisions), strict=True))
    for cluster, (n, location) in zip(rows, clusters_of, strict=True):
        added = 1e-6 if n > 2 * 3 else 1e-4
        expected = np.cov(cluster.T, bias=True) + added * np.eye(3)
        np.testing.assert_allclose(variances[location], expected, rtol=1e-3, atol=1e-9)


def test_a_shared_covariance_has_the_rows_of_all_components():
    rows = clusters(300)
    rows[:, 2] = rows[:, 0] + 0.002 * rows[:, 1]
    for kind in (Kind(128, "tied", 1e-6), Kind(1, "full", 1e-6)):
        mixture = fit_mixture(rows, kind, seed=0)
        precision = mixture.factors[0] @ mixture.factors[0].T
        assert 1 / np.linalg.eigvalsh(precision).max() < 2e-5


def covariances(mixture):
    return np.linalg.inv(mixture.factors @ mixture.factors.swapaxes(1, 2))


def test_shrunk_covariances_are_between_their_own_and_the_shared_one():
    mixture = fit_mixture(clusters(90), Kind(3, "full", 1e-6), seed=0)
    own, few, many = (
        covariances(m) for m in (mixture, shrunk(mixture, 90), shrunk(mixture, 10**9))
    )
    np.testing.assert_allclose(many, own, rtol=1e-4, atol=1e-6)
    shared = np.einsum("k,kij->ij", mixture.weights, own)
    shared = np.where(np.eye(3), shared, shared * 90 / 93)
    share = 0.3 / (90 * mixture.weights + 0.3)
    expected = own + share[:, None, None] * (shared - own)
    np.testing.assert_allclose(few, expected, rtol=1e-6, atol=1e-9)


def test_a_single_covariance_of_few_rows_is_shrunk_to_its_diagonal():
    rows = clusters(6)
    mixture = fit_mixture(rows, Kind(1, "full", 1e-6), seed=0)
    own, result = covariances(mixture)[0], covariances(shrunk(mixture, 6))[0]
    np.testing.assert_allclose(result, np.where(np.eye(3), own, own * 6 / 9), rtol=1e-6, atol=1e-9)


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


def test_resampling_keeps_rows_of_equal_weight_and_repeats_heavy_ones():
    folds = make_folds(np.arange(80.0).reshape(40, 2))
    np.testing.assert_array_equal(_resample(folds), folds.training)
    weights = np.repeat([3.0, 1.0], 200)
    folds = make_folds(np.arange(400.0)[:, None], weights)
    for index, training in zip(_resample(folds).numpy(), folds.training.numpy(), strict=True):
        expected = weights[training][training < 200].sum() / weights[training].sum()
        assert np.mean(index < 200) == pytest.approx(expected, abs=0.05)
        assert len(index) == len(training)
