"""Bad input ends in an error that says what to do; degenerate input in a warning."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import NotFittedError

from skjeffreys import DegenerateDataWarning, JeffreysDensity, NormalizerWarning

SHORT = {"max_iter": 50, "random_state": 0}


@pytest.fixture
def X():
    return np.random.RandomState(0).standard_normal((60, 2))


@pytest.fixture(scope="module")
def fitted():
    return JeffreysDensity(**SHORT).fit(np.random.RandomState(0).standard_normal((60, 2)))


@pytest.mark.parametrize("value, name", [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_non_finite_values_name_the_column(X, fitted, value, name):
    X[3, 1] = value
    frame = pd.DataFrame(X, columns=["height", "weight"])
    with pytest.raises(ValueError, match=f"X contains {name}.*'weight'.*1 of 60 rows.*[Ii]mput"):
        JeffreysDensity().fit(frame)
    with pytest.raises(ValueError, match=f"X contains {name}.*column 1"):
        fitted.score_samples(X)


@pytest.mark.parametrize(
    "shape, message",
    [((1, 2), "1 sample"), ((0, 2), "0 sample"), ((10, 0), "0 feature"), ((10,), "1D array")],
)
def test_too_small_tables(shape, message):
    with pytest.raises(ValueError, match=message):
        JeffreysDensity().fit(np.zeros(shape))


def test_too_few_rows_for_the_validation_split(X):
    with pytest.raises(ValueError, match="2 distinct rows.*smaller validation_fraction"):
        JeffreysDensity().fit(X[:2])
    assert np.isfinite(JeffreysDensity(**SHORT).fit(X[:3]).score(X[:3]))


def test_width_at_scoring(fitted):
    with pytest.raises(ValueError, match="3 features.*expecting 2"):
        fitted.score_samples(np.zeros((4, 3)))


def test_non_numeric_columns_are_named(X):
    frame = pd.DataFrame(X, columns=["a", "b"]).assign(
        colour=pd.Categorical(["red"] * 60), when=pd.Timestamp("2020-01-01"), word="x"
    )
    with pytest.raises(ValueError, match="'colour' .*'when' .*'word' .*ColumnTransformer"):
        JeffreysDensity().fit(frame)


def test_object_columns_of_numbers_are_numbers(X):
    frame = pd.DataFrame(X, columns=["a", "b"])
    as_objects = JeffreysDensity(**SHORT).fit(frame.astype(object))
    expected = JeffreysDensity(**SHORT).fit(frame).score_samples(frame)
    np.testing.assert_allclose(as_objects.score_samples(frame), expected, atol=1e-10)


def test_unfitted(X):
    for method in ("score_samples", "score", "proxy_score_samples"):
        with pytest.raises(NotFittedError):
            getattr(JeffreysDensity(), method)(X)
    with pytest.raises(NotFittedError):
        JeffreysDensity().sample()


def test_a_failed_fit_leaves_nothing_fitted(X, monkeypatch):
    density = JeffreysDensity(**SHORT).fit(X)
    monkeypatch.setattr("skjeffreys._training.Trainer.is_finite", lambda self: False)
    with pytest.raises(FloatingPointError, match="smaller learning_rate_init"):
        density.fit(X)
    with pytest.raises(NotFittedError):
        density.score_samples(X)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"objective": "mle"}, "'objective' parameter"),
        ({"proxy": "gan"}, "'proxy' parameter"),
        ({"weights": (1, 1)}, "weights must be three non-negative numbers"),
        ({"weights": (0, 1, 1)}, "the first positive"),
        ({"hidden_layer_sizes": (64, 0)}, "hidden_layer_sizes must hold positive integers"),
        ({"learning_rate_init": 0}, "'learning_rate_init' parameter"),
        ({"validation_fraction": 1.0}, "'validation_fraction' parameter"),
        ({"max_iter": 0}, "'max_iter' parameter"),
        ({"n_estimators": 0}, "'n_estimators' parameter"),
        ({"device": "abacus"}, "device='abacus' is not known"),
    ],
)
def test_parameters(X, parameters, message):
    with pytest.raises(ValueError, match=message):
        JeffreysDensity(**parameters).fit(X)


@pytest.mark.parametrize("n_samples", [0, -1])
def test_sample_needs_a_positive_number(fitted, n_samples):
    with pytest.raises(ValueError, match="n_samples"):
        fitted.sample(n_samples)


@pytest.mark.parametrize("weights", [np.full(60, -1.0), np.zeros(60), np.full(60, np.nan)])
def test_bad_weights(X, weights):
    with pytest.raises(ValueError, match=r"[Ss]ample.weight"):
        JeffreysDensity().fit(X, sample_weight=weights)
    with pytest.raises(ValueError, match="sample_weight"):
        JeffreysDensity().fit(X, sample_weight=np.ones(3))


@pytest.mark.parametrize("magnitude", [1e200, 1e-200])
def test_columns_out_of_the_range_of_double_precision(X, magnitude):
    with pytest.raises(ValueError, match="column 0 .*Rescale"):
        JeffreysDensity().fit(X * [magnitude, 1])


def degenerate_tables():
    rng = np.random.RandomState(0)
    normal = rng.standard_normal((200, 2))
    return {
        "constant": (np.c_[normal, np.full(200, 5.0)], "Column 'c': constant"),
        "integer": (np.c_[normal, rng.poisson(3.0, 200)], "Column 'c': few distinct"),
        "two values": (np.c_[normal, rng.rand(200) < 0.3], "Column 'c': few distinct"),
        "atom": (np.c_[normal, np.maximum(rng.standard_normal(200), 0)], "Column 'c': few"),
        "repeats": (
            np.repeat(np.c_[normal, normal[:, 0] ** 2], 2, axis=0),
            "All columns: 200 of 400",
        ),
    }


@pytest.mark.parametrize("name", degenerate_tables())
def test_degenerate_columns_warn_and_are_finite(name):
    X, message = degenerate_tables()[name]
    frame = pd.DataFrame(X.astype(float), columns=["a", "b", "c"])
    with pytest.warns(DegenerateDataWarning, match=message) as caught:
        density = JeffreysDensity(max_iter=800, random_state=0).fit(frame)
    assert caught[0].filename == __file__
    log_density = density.score_samples(frame)
    assert np.isfinite(log_density).all()
    # A spike would show as a density far above that of the two normal columns. Where values are
    # few, the smallest variance of a mixture bounds it, 1e-6 of that of the column. Only at a pair
    # of close rows two columns may be narrow at once.
    few = "few" in message
    peak = norm(0, 1e-3 * frame["c"].std()).logpdf(0) if few else 5
    assert np.quantile(log_density, 0.95 if few else 1) < peak
    assert np.isfinite(density.sample(100).std(axis=0)).all()
    assert density.normalizer_ == pytest.approx(1, abs=0.05)


def test_dependent_columns_warn_and_stay_dependent():
    X = np.random.RandomState(0).standard_normal((200, 3))
    X[:, 2] = X[:, 0] + 2 * X[:, 1]
    frame = pd.DataFrame(X, columns=["a", "b", "total"])
    with pytest.warns(DegenerateDataWarning, match="'a', 'b', 'total': linear .*drop 1 of them"):
        density = JeffreysDensity(max_iter=50, random_state=0).fit(frame)
    assert np.isfinite(density.score_samples(frame)).all()
    samples = density.sample(1000, random_state=0)
    off = np.abs(samples[:, 2] - samples[:, 0] - 2 * samples[:, 1])
    # The tails are not in the plane.
    assert np.quantile(off, 0.99) < 0.05


def test_constant_column_leaves_the_others_alone():
    X = np.random.RandomState(0).standard_normal((300, 1))
    with pytest.warns(DegenerateDataWarning):
        density = JeffreysDensity(random_state=0).fit(np.c_[X, np.full(300, -7.0)])
    grid = np.linspace(-2, 2, 50)[:, None]
    along = density.score_samples(np.c_[grid, np.full(50, -7.0)])
    exact = -0.5 * grid[:, 0] ** 2
    assert np.std(along - exact) < 0.2
    # Normal with a standard deviation of one per cent of the value, but for its tails.
    distance = np.abs(density.sample(2000)[:, 1] + 7)
    expected = 0.07 * norm.ppf([0.75, 0.95, 0.99])
    np.testing.assert_allclose(np.quantile(distance, [0.5, 0.9, 0.98]), expected, rtol=0.15)
    off = density.score_samples(np.c_[grid, np.full(50, -8.0)])
    assert (off < along - 10).all()


def test_poisson_counts_are_drawn_as_often_as_they_occur():
    counts = np.random.RandomState(0).poisson(3.0, size=(2000, 1)).astype(float)
    with pytest.warns(DegenerateDataWarning, match="Column 0"):
        density = JeffreysDensity(random_state=0).fit(counts)
    samples = density.sample(20_000, random_state=0)[:, 0]
    observed, drawn = (
        np.histogram(values, np.arange(14) - 0.5)[0] / len(values) for values in (counts, samples)
    )
    assert np.abs(drawn - observed).sum() < 0.1
    assert np.quantile(np.abs(samples - samples.round()), 0.8) < 0.01


@pytest.mark.filterwarnings("ignore::skjeffreys.DegenerateDataWarning")
def test_unknown_normalizer_is_not_reported_as_one():
    # In 30 dimensions samples of the flow say nothing about an independent energy.
    X = load_breast_cancer().data
    with pytest.warns(NormalizerWarning, match="effective sample size"):
        density = JeffreysDensity(proxy="energy", max_iter=100, random_state=0).fit(X)
    assert np.isnan(density.normalizer_)
    assert np.isnan(density.normalizer_std_error_)
    assert density.normalizer_ess_ < 0.01
    assert np.isfinite(density.score(X))
