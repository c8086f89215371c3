import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from skjeffreys._base import GaussianMixtures, _resampled, fit_bases
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
def mixtures():
    fitted = [GaussianMixture(k, random_state=0).fit(clusters(200)) for k in (1, 3)]
    return [fitted[0], None, fitted[1]]


def test_log_density_is_that_of_the_mixtures(mixtures):
    bases, X = GaussianMixtures(mixtures, 3), clusters(50, seed=1)
    log_density = bases.log_prob(torch.tensor(X, dtype=torch.float32))
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(X)).sum(dim=1)
    expected = [mixtures[0].score_samples(X), normal, mixtures[2].score_samples(X)]
    np.testing.assert_allclose(log_density, np.stack(expected), rtol=1e-4, atol=1e-4)


def test_samples_have_the_moments_of_the_mixtures(mixtures):
    samples = GaussianMixtures(mixtures, 3).sample(40_000, torch.Generator().manual_seed(0))
    # A fitted mixture has the mean and the covariance of its rows.
    X = clusters(200)
    for k, (mean, covariance) in enumerate(
        [(X.mean(axis=0), np.cov(X.T, ddof=0)), (np.zeros(3), np.eye(3))]
    ):
        np.testing.assert_allclose(samples[k].mean(dim=0), mean, atol=0.03)
        np.testing.assert_allclose(np.cov(samples[k].T), covariance, atol=0.05)
    np.testing.assert_allclose(samples[2].mean(dim=0), X.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(np.cov(samples[2].T), np.cov(X.T, ddof=0), atol=0.05)


def test_every_second_member_gets_a_mixture_where_rows_cluster():
    bases = fit_bases(make_folds(clusters(300)), seed=0)
    assert [base is None for base in bases] == [True, False, True, False]
    assert bases[1].n_components >= 2


def test_no_mixture_where_it_does_worse_on_the_rows_left_out():
    X = np.random.RandomState(0).standard_normal((40, 15))
    assert fit_bases(make_folds(X), seed=0) == [None] * 4


def test_resampling_keeps_rows_of_equal_weight_and_repeats_heavy_ones():
    X = np.arange(80.0).reshape(40, 2)
    folds = make_folds(X)
    for rows, training in zip(_resampled(folds), folds.training, strict=True):
        np.testing.assert_array_equal(rows, X[training])
    weights = np.repeat([3.0, 1.0], 200)
    folds = make_folds(np.arange(400.0)[:, None], weights)
    for rows, training in zip(_resampled(folds), folds.training.numpy(), strict=True):
        expected = weights[training][training < 200].sum() / weights[training].sum()
        assert np.mean(rows < 200) == pytest.approx(expected, abs=0.05)
        assert len(rows) == len(training)
