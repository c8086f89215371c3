"""What a conditional density must satisfy."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ks_2samp, norm
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from test_density import integral

from skjeffreys import ExtrapolationWarning, JeffreysConditionalDensity, JeffreysDensity

SHORT = {"max_iter": 100, "n_estimators": 2, "random_state": 0}
INTERVAL = (-1.0, 3.0)


def wave(n, random_state=0):
    """A target whose mean and spread depend on the first of two conditions."""
    rng = np.random.RandomState(random_state)
    X = rng.uniform(-2, 2, size=(n, 2))
    return X, location(X) + spread(X) * rng.standard_normal(n)


def location(X):
    return np.sin(2 * X[:, 0])


def spread(X):
    return 0.1 + 0.2 * np.abs(X[:, 0])


def inside(y):
    """Squeeze into the interval."""
    return INTERVAL[0] + (INTERVAL[1] - INTERVAL[0]) * norm.cdf(y)


def two_targets(n, random_state=0):
    X, y = wave(n, random_state)
    return X, np.c_[y, y**2 + 0.2 * np.random.RandomState(random_state + 1).standard_normal(n)]


@pytest.fixture(scope="module")
def wave_density():
    return JeffreysConditionalDensity(random_state=0, max_iter=600).fit(*wave(600))


@pytest.fixture(scope="module")
def bounded_density():
    X, y = wave(300)
    return JeffreysConditionalDensity(bounds=INTERVAL, **SHORT).fit(X, inside(y))


def given(density, x):
    """The log-density of targets given one row of conditions."""
    return lambda y: density.score_samples(np.tile(x, (len(y), 1)), y)


@pytest.mark.parametrize("x", [[-1.5, 0.0], [0.0, 1.0], [1.9, -1.9]])
def test_integrates_to_one_over_one_target(wave_density, bounded_density, x):
    assert integral(given(wave_density, x), [-9], [9], 20_000) == pytest.approx(1, abs=0.005)
    low, high = INTERVAL
    total = integral(given(bounded_density, x), [low], [high], 20_000)
    assert total == pytest.approx(1, abs=0.005)
    outside = given(bounded_density, x)(np.array([low - 1e-6, high + 1e-6, 50.0]))
    assert (outside == -np.inf).all()


@pytest.mark.parametrize("bounded", [False, True])
def test_integrates_to_one_over_two_targets(bounded):
    X, y = two_targets(200)
    low, high = ([INTERVAL[0], -5], [INTERVAL[1], 15]) if bounded else ([-8, -8], [8, 20])
    y = np.c_[inside(y[:, 0]), y[:, 1]] if bounded else y
    bounds = (low[0], [high[0], np.inf]) if bounded else None
    if bounded:
        y[:, 1] = np.exp(y[:, 1] / 4) + low[0]
        low, high = [low[0], low[0]], [high[0], 12]
    density = JeffreysConditionalDensity(bounds=bounds, **SHORT).fit(X, y)
    assert integral(given(density, X[0]), low, high, 700) == pytest.approx(1, abs=0.01)


def test_learns_how_the_target_depends_on_the_conditions(wave_density):
    X, y = wave(2000, random_state=1)
    truth = norm.logpdf(y, location(X), spread(X)).mean()
    assert wave_density.score(X, y) > truth - 0.2
    assert np.mean((wave_density.predict(X) - location(X)) ** 2) < 0.02
    quantiles = wave_density.predict_quantile(X, [0.1, 0.5, 0.9])
    assert np.mean(y[:, None] < quantiles, axis=0) == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


def test_predicts_the_mean_of_the_density(wave_density, bounded_density):
    X, _ = wave(5, random_state=4)
    for density in (wave_density, bounded_density):
        samples = density.sample(X, 20_000, random_state=0)[..., 0]
        error = (density.predict(X) - samples.mean(axis=1)) / samples.std(axis=1)
        np.testing.assert_allclose(error, 0, atol=0.04)


def test_samples_follow_the_density_given_the_conditions(wave_density):
    x = np.array([[1.0, 0.5], [-1.5, -1.0]])
    samples = wave_density.sample(x, 2000, random_state=0)
    assert samples.shape == (2, 2000, 1)
    for row, sample in zip(x, samples[..., 0], strict=True):
        levels = (np.arange(100) + 0.5) / 100
        quantiles = wave_density.predict_quantile(row[None], levels)[0]
        assert ks_2samp(sample, np.repeat(quantiles, 20)).pvalue > 0.005


def test_quantiles_invert_the_integral_of_the_density(bounded_density):
    x, low = np.array([[0.3, 0.3]]), INTERVAL[0]
    for q in (0.05, 0.5, 0.95):
        quantile = bounded_density.predict_quantile(x, q)
        assert quantile.shape == (1,)
        total = integral(given(bounded_density, x[0]), [low], quantile, 20_000)
        assert total == pytest.approx(q, abs=0.005)


def test_quantiles_rise_with_the_level_however_extreme(wave_density):
    levels = [1e-300, 1e-20, 1e-9, 0.5, 1 - 1e-9, 1 - 1e-12]
    quantiles = wave_density.predict_quantile(np.zeros((1, 2)), levels)
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles) > 0).all()


def test_level_beyond_the_distribution_function(wave_density, monkeypatch):
    # Rounding may leave its largest value a little below one.
    monkeypatch.setattr(
        "skjeffreys.conditional._distribution_function",
        lambda models, rows: 0.9 * torch.special.ndtr(rows[:, -1]),
    )
    with pytest.raises(ValueError, match=r"level .*0\.95"):
        wave_density.predict_quantile(np.zeros((1, 2)), [0.5, 0.95])


def test_samples_stay_inside_the_bounds(bounded_density):
    samples = bounded_density.sample(np.zeros((2, 2)), 5000, random_state=0)
    assert INTERVAL[0] < samples.min() < samples.max() < INTERVAL[1]


def test_units_shift_the_log_density():
    X, y = two_targets(150)
    density = JeffreysConditionalDensity(**SHORT).fit(X, y)
    scale_X, scale_y = np.array([1e4, 1e-3]), np.array([1e-5, 300.0])
    other = clone(density).fit(X * scale_X + 7, y * scale_y - 2)
    log_density = other.score_samples(X * scale_X + 7, y * scale_y - 2)
    np.testing.assert_allclose(
        log_density + np.log(scale_y).sum(), density.score_samples(X, y), atol=1e-3
    )


def test_normalizer_on_fresh_conditions(wave_density):
    assert wave_density.normalizer_ == pytest.approx(1, abs=0.05)
    fresh, _ = wave(100, random_state=5)
    each = wave_density.conditional_normalizer(fresh, random_state=0)
    assert each.shape == (100,)
    assert each.mean() == pytest.approx(1, abs=0.05)


def test_conditional_normalizer_is_the_integral_of_the_proxy(wave_density):
    x = np.array([[1.0, 0.0]])
    proxy = lambda y: wave_density.proxy_score_samples(np.tile(x, (len(y), 1)), y)  # noqa: E731
    expected = integral(proxy, [-9], [9], 20_000)
    normalizer = wave_density.conditional_normalizer(x, 20_000, random_state=0)
    assert normalizer == pytest.approx(expected, abs=0.01)


def test_independent_conditions_do_not_matter():
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((500, 2)), rng.gamma(3.0, size=500)
    density = JeffreysConditionalDensity(random_state=0).fit(X, y)
    grid = np.linspace(0.5, 6, 30)
    given_each = np.array([given(density, x)(grid) for x in X[:40]])
    difference = np.exp(given_each) - np.exp(given_each.mean(axis=0))
    assert np.abs(difference).mean() < 0.15 * np.exp(given_each).mean()


def test_results_do_not_depend_on_the_batch_or_the_order(wave_density):
    X, y = wave(40, random_state=3)
    order = np.random.RandomState(0).permutation(40)
    for method in (
        wave_density.score_samples,
        lambda X, y: wave_density.predict(X),
        lambda X, y: wave_density.predict_quantile(X, [0.2, 0.7]),
    ):
        together = method(X, y)
        one_by_one = np.concatenate([method(X[[i]], y[[i]]) for i in order])
        np.testing.assert_allclose(one_by_one, together[order], rtol=1e-9, atol=1e-9)


def test_order_and_repeats_of_rows():
    X, y = wave(60)
    density = JeffreysConditionalDensity(**SHORT)
    weights = np.r_[np.full(20, 2.0), np.ones(40)]
    weighted = clone(density).fit(X, y, sample_weight=weights).score_samples(X, y)
    order = np.random.RandomState(0).permutation(80)
    repeated = np.r_[np.arange(20), np.arange(60)][order]
    with pytest.warns(UserWarning, match="20 of 80 rows repeat"):
        density.fit(X[repeated], y[repeated])
    np.testing.assert_allclose(density.score_samples(X, y), weighted, atol=1e-6)


def test_in_searches_pipelines_and_tables():
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    X, y = X[["bmi", "bp"]][:150], y[:150]
    density = JeffreysConditionalDensity(bounds=(0, np.inf), **SHORT)
    scores = cross_val_score(density, X, y, cv=2)
    assert np.isfinite(scores).all()
    assert scores.mean() > norm.logpdf(y, y.mean(), y.std()).mean() - 0.2
    search = GridSearchCV(density, {"max_iter": [20, 60]}, cv=2).fit(X, y)
    few, more = search.cv_results_["mean_test_score"]
    assert np.isfinite([few, more]).all()
    assert few != more
    pipeline = make_pipeline(PolynomialFeatures(include_bias=False), clone(density)).fit(X, y)
    assert pipeline.predict(X).shape == (150,)
    assert list(search.best_estimator_.feature_names_in_) == ["bmi", "bp"]


def test_survives_pickling(wave_density):
    X, y = wave(5)
    again = pickle.loads(pickle.dumps(wave_density))
    np.testing.assert_array_equal(again.score_samples(X, y), wave_density.score_samples(X, y))


def test_predicts_about_as_well_as_linear_regression_where_that_is_right():
    rng = np.random.RandomState(0)
    X = rng.standard_normal((400, 3))
    y = X @ [[1.0, 0.0], [2.0, -1.0], [0.0, 3.0]] + 0.5 * rng.standard_normal((400, 2))
    density = JeffreysConditionalDensity(random_state=0).fit(X[:300], y[:300])
    mean = density.predict(X[300:])
    assert mean.shape == (100, 2)
    linear = LinearRegression().fit(X[:300], y[:300]).predict(X[300:])
    assert np.mean((mean - y[300:]) ** 2) < 1.5 * np.mean((linear - y[300:]) ** 2)


def test_warns_far_from_the_training_conditions(wave_density, recwarn):
    X, y = wave(50, random_state=9)
    wave_density.score_samples(X, y)
    assert not recwarn.list
    X[3] = 1e3
    calls = {
        "score_samples": lambda: wave_density.score_samples(X, y),
        "score": lambda: wave_density.score(X, y),
        "sample": lambda: wave_density.sample(X),
        "predict": lambda: wave_density.predict(X),
    }
    for call in calls.values():
        with pytest.warns(ExtrapolationWarning, match="1 of 50 rows of X, row 3 first") as caught:
            call()
        assert caught[0].filename == __file__


def test_warns_where_conditions_leave_what_training_rows_have_in_common(recwarn):
    X, y = wave(60)
    X = np.c_[X, X.sum(axis=1), np.full(60, 7.0)]
    density = JeffreysConditionalDensity(**SHORT | {"max_iter": 5}).fit(X, y)
    density.predict(X)
    assert not recwarn.list
    for column, value in [(2, X[0, 2] + 5.0), (3, 8.0)]:
        changed = X[:1].copy()
        changed[0, column] = value
        with pytest.warns(ExtrapolationWarning, match="1 of 1 rows"):
            density.predict(changed)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda X, y: (X, y[:-1]), "inconsistent numbers of samples"),
        (lambda X, y: (X[:, :1], y), "features"),
        (lambda X, y: (X, np.c_[y, y]), "y has 2 columns.*fitted to 1"),
        (lambda X, y: (np.where(X[4, 1] == X, np.nan, X), y), "X contains NaN in column 1"),
        (lambda X, y: (X, np.where(y == y[4], np.inf, y)), "y contains infinite values"),
        (lambda X, y: (X, pd.Series(y.astype(str), name="v")), "y has non-numeric columns: 'v'"),
    ],
)
def test_wrong_inputs(wave_density, change, message):
    with pytest.raises(ValueError, match=message):
        wave_density.score_samples(*change(*wave(20)))


def test_wrong_targets_in_fit():
    X, y = wave(30)
    frame = pd.DataFrame({"speed": y, "mass": np.abs(y)})
    with pytest.raises(ValueError, match="y has values outside the bounds in column 'speed'"):
        JeffreysConditionalDensity(bounds=(0, np.inf)).fit(X, frame)
    with pytest.raises(ValueError, match="y contains NaN in column 'mass'"):
        JeffreysConditionalDensity().fit(X, frame.assign(mass=np.nan))
    with pytest.raises(ValueError, match="requires y"):
        JeffreysConditionalDensity().fit(X, None)


def test_wrong_quantiles(wave_density):
    X, _ = wave(30)
    for q in (0, 1.0, [0.5, 2], [[0.5]]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            wave_density.predict_quantile(X, q)
    two = JeffreysConditionalDensity(**SHORT | {"max_iter": 5}).fit(*two_targets(40))
    with pytest.raises(ValueError, match="needs a single target"):
        two.predict_quantile(X, 0.5)


def test_bounds_of_a_density_without_conditions():
    X = np.random.RandomState(0).exponential(size=(300, 2))
    density = JeffreysDensity(bounds=(0, np.inf), **SHORT).fit(X)
    assert integral(density.score_samples, [0, 0], [15, 15], 480) == pytest.approx(1, abs=0.01)
    assert (density.score_samples([[-0.1, 1.0], [1.0, -2.0]]) == -np.inf).all()
    assert (density.sample(2000, random_state=0) > 0).all()
    with pytest.raises(ValueError, match="X has values outside the bounds in column 1, such as -4"):
        density.fit(np.r_[X, [[1.0, -4.0]]])
