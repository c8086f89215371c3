import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from skjeffreys._base import (
    TAIL_SCALES,
    GaussianMixtures,
    Mixture,
    _resample,
    _with_tails,
    fit_bases,
    standard_normal,
)
from skjeffreys._regression import fit_regressions
from skjeffreys._rows import Rows, split_rows


def clusters(n, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((n, 3)) @ rng.standard_normal((3, 3))
    X[: n // 3] = 0.2 * X[: n // 3] + 5
    return (X - X.mean(axis=0)) / X.std(axis=0)


def bases_of(folds):
    return fit_bases(folds, fit_regressions(folds), tailed=True, seed=0)


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
    log_density = bases.log_prob(torch.tensor(X, dtype=torch.float32))
    normal = norm.logpdf(X).sum(axis=1)
    expected = [fitted[0].score_samples(X), normal, fitted[1].score_samples(X)]
    np.testing.assert_allclose(log_density, np.stack(expected), rtol=1e-4, atol=1e-4)


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
    for drawn, (mean, covariance) in zip(sample(bases), expected, strict=True):
        np.testing.assert_allclose(drawn.mean(dim=0), mean, atol=mean_error)
        np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=covariance_error)


def test_every_second_member_gets_a_mixture_where_rows_cluster():
    weights = bases_of(make_folds(clusters(300))).weights
    n_components = (weights > 0).sum(dim=1) - len(TAIL_SCALES)
    assert n_components[[0, 2]].tolist() == [1, 1]
    assert (n_components[[1, 3]] >= 2).all()


def test_no_mixture_where_it_does_worse_on_the_rows_left_out():
    X = np.random.RandomState(0).standard_normal((40, 15))
    bases = bases_of(make_folds(X))
    assert bases.n_components == 1 + len(TAIL_SCALES)
    assert (bases.means == 0).all()


def test_every_base_has_heavy_tails():
    X = clusters(300)
    bases = bases_of(make_folds(X)).double()
    X_far = torch.tensor(X[:1], dtype=torch.float64) * torch.tensor([[1.0], [30], [300], [3000]])
    near, *far = bases.log_prob(X_far).min(dim=0).values
    # A normal density would lose the square of the distance: 450, 45,000, 4,500,000 nats.
    assert torch.stack(far).min() > near - 100
    # Close by, nothing is lost.
    folds = make_folds(X)
    plain = GaussianMixtures([standard_normal(3)])
    with_tails = GaussianMixtures([_with_tails(standard_normal(3), tailed=True)])
    rows = folds.rows.values
    assert (with_tails.log_prob(rows) > plain.log_prob(rows) - 0.0011).all()


def test_tails_hardly_change_the_variance():
    weights, _, factors = _with_tails(standard_normal(2), tailed=np.array([True, False]))
    assert weights.sum() == pytest.approx(1)
    assert weights @ factors[:, 0, 0] ** -2.0 == pytest.approx(1, abs=0.025)
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
