import numpy as np
import pytest
import torch
from scipy.stats import norm, sem
from sklearn.mixture import GaussianMixture
from test_mixtures import clusters

from skjeffreys._mixture_fitting import (
    BENT_COVARIANCES,
    COVARIANCES,
    REG_COVAR,
    Kind,
    _resample,
    affordable_kinds,
    covariance_rows,
    fit_mixture,
    predictive,
    regularised,
    training_rows,
)
from skjeffreys._mixtures import Mixtures, mean
from skjeffreys._regression import fit_regressions
from skjeffreys._rows import Rows, split_rows


def make_folds(X, weights=None, n_members=4, fraction=0.25):
    weights = np.ones(len(X)) if weights is None else weights
    rows = Rows(torch.tensor(X, dtype=torch.float32), torch.tensor(weights / weights.sum()))
    return split_rows(rows, n_members, fraction, np.random.RandomState(0))


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
            assert (1 / variances > 0.99 * REG_COVAR).all()


@pytest.mark.parametrize("n_rows, tolerance", [(500, 0.05), (4000, 0.025)])
def test_fits_end_where_all_rows_together_gain_little(n_rows, tolerance):
    rows = clusters(n_rows)
    ended = fit_mixture(rows, Kind(16, "full", init_params="random_from_data"), seed=0).means
    means = {
        gain: GaussianMixture(16, tol=gain, init_params="random_from_data", random_state=0)
        .fit(rows)
        .means_
        for gain in (0.05, 0.025)
    }
    assert not np.array_equal(*means.values())
    np.testing.assert_array_equal(ended, means[tolerance])


def test_several_fits_are_averaged():
    folds = make_folds(clusters(100))
    kind, rows = Kind(8, "diag", init_params="random_from_data"), training_rows_of(folds)
    fits = [fit_mixture(rows[0], kind, seed) for seed in (3, 4)]
    X = torch.tensor(clusters(50, seed=1))
    densities = Mixtures([*fits, mean(fits)]).log_prob(X).exp()
    assert not torch.allclose(densities[0], densities[1])
    torch.testing.assert_close(densities[2], (densities[0] + densities[1]) / 2)


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
    # Of its three columns the last repeats a value; the last cluster, of a single row, does not.
    clusters_of = [(200, 0.0, [1e-6] * 3), (5, 10.0, [1e-4, 1e-4, 1e-6]), (1, -10.0, [1e-4] * 3)]
    rng = np.random.RandomState(0)
    scales = np.array([0.05, 0.05, 0.0])
    rows = [at + scales * rng.standard_normal((n, 3)) for n, at, _ in clusters_of]
    mixture = fit_mixture(np.concatenate(rows), Kind(3, "full"), seed=0)
    precisions = mixture.factors @ mixture.factors.swapaxes(1, 2)
    variances = dict(zip(mixture.means[:, 0].round(), np.linalg.inv(precisions), strict=True))
    for cluster, (_, location, added) in zip(rows, clusters_of, strict=True):
        expected = np.cov(cluster.T, bias=True) + np.diag(added)
        np.testing.assert_allclose(variances[location], expected, rtol=1e-3, atol=1e-9)


def test_a_shared_covariance_has_the_rows_of_all_components():
    rows = clusters(300)
    rows[:, 2] = rows[:, 0] + 0.002 * rows[:, 1]
    for kind in (Kind(128, "tied"), Kind(1, "full")):
        mixture = fit_mixture(rows, kind, seed=0)
        precision = mixture.factors[0] @ mixture.factors[0].T
        assert 1 / np.linalg.eigvalsh(precision).max() < 2e-5


def covariances(mixture):
    return np.linalg.inv(mixture.factors @ mixture.factors.swapaxes(1, 2))


@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
def test_shrunk_covariances_are_between_their_own_and_the_shared_one(shrinkage):
    kind = Kind(3, "full", shrinkage)
    mixture = fit_mixture(clusters(90), kind.fitted, seed=0)
    own, few, many = (
        covariances(m)
        for m in (mixture, regularised(mixture, kind, 90), regularised(mixture, kind, 10**9))
    )
    np.testing.assert_allclose(many, own, rtol=1e-4, atol=1e-6)
    shared = np.einsum("k,kij->ij", mixture.weights, own)
    shared = np.where(np.eye(3), shared, shared * 90 / 93)
    share = 3 * shrinkage / (90 * mixture.weights + 3 * shrinkage)
    expected = own + share[:, None, None] * (shared - own)
    np.testing.assert_allclose(few, expected, rtol=1e-6, atol=1e-9)


def test_a_single_covariance_of_few_rows_is_shrunk_to_its_diagonal():
    kind = Kind(1, "full", shrinkage=0.1)
    mixture = fit_mixture(clusters(6), kind.fitted, seed=0)
    own, result = covariances(mixture)[0], covariances(regularised(mixture, kind, 6))[0]
    np.testing.assert_allclose(result, np.where(np.eye(3), own, own * 6 / 9), rtol=1e-6, atol=1e-9)


def test_a_ridge_adds_its_share_to_each_variance_whatever_the_units():
    kind = Kind(3, "full", ridge=0.01)
    mixture = fit_mixture(clusters(90), kind.fitted, seed=0)
    expected = covariances(mixture) * np.where(np.eye(3), 1.01, 1)
    result = covariances(regularised(mixture, kind, 90))
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-9)
    units = np.array([1e-3, 1.0, 50.0])
    scaled = mixture._replace(factors=mixture.factors / units[:, None])
    result = covariances(regularised(scaled, kind, 90)) / np.outer(units, units)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-9)


def test_regularisation_is_of_a_fit_that_is_there_already():
    kinds = affordable_kinds(500, 3, BENT_COVARIANCES)
    fitted = affordable_kinds(500, 3, COVARIANCES)
    assert {kind.fitted for kind in kinds} == set(fitted)
    assert set(kinds) > set(fitted)
    mixture = fit_mixture(clusters(90), Kind(3, "tied"), seed=0)
    assert regularised(mixture, Kind(3, "tied"), 90) is mixture


def test_predictive_density_averages_over_what_the_rows_leave_open():
    """Over means and variances drawn given the rows, of one column."""
    rng = np.random.RandomState(0)
    rows = rng.standard_normal((10, 1))
    mixture = fit_mixture(rows, Kind(1, "full"), seed=0)
    # With d - 1 = 0 degrees of freedom before, and as many as rows after.
    variances = 10 * rows.var() / rng.chisquare(10, size=100_000)
    means = rows.mean() + np.sqrt(variances / 10) * rng.standard_normal(100_000)
    x = np.linspace(-4, 4, 9)
    expected = norm.pdf(x[:, None], means, np.sqrt(variances)).mean(axis=1)
    log_density = Mixtures([predictive(mixture, np.array([10.0]))]).log_prob(
        torch.tensor(x[:, None])
    )
    np.testing.assert_allclose(log_density[0].exp(), expected, rtol=0.05)


def test_predictive_density_of_next_to_no_rows_has_a_variance():
    mixture = fit_mixture(clusters(300), Kind(3, "full"), seed=0)
    result = predictive(mixture, np.array([0.01, 1.0, 2.9]))
    assert result.degrees_of_freedom.tolist() == [3, 3, 3]
    ratio = covariances(result) / covariances(mixture)
    np.testing.assert_allclose(ratio[:, 0, 0], [2, 2, 1 + 1 / 2.9])


def test_predictive_density_of_few_rows_is_closer_to_that_of_new_ones():
    rng = np.random.RandomState(0)
    gains = []
    for _ in range(100):
        rows, new = rng.standard_normal((8, 2)), torch.tensor(rng.standard_normal((100, 2)))
        mixture = fit_mixture(rows, Kind(1, "full"), seed=0)
        both = Mixtures([mixture, predictive(mixture, np.array([8.0]))])
        plain, result = both.log_prob(new).mean(dim=1)
        gains.append(float(result - plain))
    assert np.mean(gains) > 3 * sem(gains)


def test_predictive_density_of_many_rows_is_that_of_the_mixture():
    mixture = fit_mixture(clusters(300), Kind(3, "full"), seed=0)
    X = torch.tensor(clusters(300))
    both = Mixtures([mixture, predictive(mixture, np.full(3, 1e6))])
    np.testing.assert_allclose(*both.log_prob(X), atol=1e-3)


def test_a_shared_covariance_counts_all_rows():
    weights = np.array([0.2, 0.8])
    np.testing.assert_allclose(covariance_rows(weights, Kind(2, "full"), 50), [10, 40])
    np.testing.assert_allclose(covariance_rows(weights, Kind(2, "tied"), 50), [50, 50])


def test_resampling_keeps_rows_of_equal_weight_and_repeats_heavy_ones():
    folds = make_folds(np.arange(80.0).reshape(40, 2))
    np.testing.assert_array_equal(_resample(folds), folds.training)
    weights = np.repeat([3.0, 1.0], 200)
    folds = make_folds(np.arange(400.0)[:, None], weights)
    for index, training in zip(_resample(folds).numpy(), folds.training.numpy(), strict=True):
        expected = weights[training][training < 200].sum() / weights[training].sum()
        assert np.mean(index < 200) == pytest.approx(expected, abs=0.05)
        assert len(index) == len(training)
