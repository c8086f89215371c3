"""What the density, its samples and its proxy must satisfy."""

import joblib
import numpy as np
import pandas as pd
import pytest
from flows_alone import FlowDensity
from known_densities import eight_gaussians
from scipy.stats import ks_2samp, kstest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from traced import TracedDensity

from skjeffreys import JeffreysDensity


def skewed(n, random_state=0):
    return np.random.RandomState(random_state).gamma(2.0, 3.0, size=(n, 1))


def integral(log_density, low, high, points):
    """Integrate by the midpoint rule over a box, given per axis the ends and the points."""
    axes, volume = [], 1.0
    for a, b in zip(low, high, strict=True):
        step = (b - a) / points
        axes.append(a + step * (np.arange(points) + 0.5))
        volume *= step
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))
    return np.exp(log_density(grid)).sum() * volume


def box(X):
    spread = 6 * X.std(axis=0)
    return X.mean(axis=0) - spread, X.mean(axis=0) + spread


@pytest.fixture(scope="module")
def skewed_density():
    return JeffreysDensity(random_state=0).fit(skewed(300))


@pytest.mark.parametrize("proxy", ["flow", "energy"])
@pytest.mark.parametrize("objective", ["jeffreys", "weighted", "likelihood"])
def test_density_integrates_to_one_in_one_dimension(objective, proxy):
    X = skewed(200)
    density = JeffreysDensity(objective=objective, proxy=proxy, max_iter=300, random_state=0)
    density.fit(X)
    assert integral(density.score_samples, *box(X), 20_000) == pytest.approx(1, abs=0.005)


def test_density_integrates_to_one_in_two_dimensions(moons, moons_density):
    assert integral(moons_density.score_samples, *box(moons), 300) == pytest.approx(1, abs=0.005)


def test_proxy_integrates_to_its_normalizer(moons, moons_density):
    total = integral(moons_density.proxy_score_samples, *box(moons), 300)
    error = 4 * moons_density.normalizer_std_error_ + 0.002
    assert total == pytest.approx(moons_density.normalizer_, abs=error)


def test_samples_follow_the_density_in_one_dimension(skewed_density):
    low, high = box(skewed(300))
    edges = np.linspace(low[0], high[0], 20_001)
    centres = 0.5 * (edges[1:] + edges[:-1])
    masses = np.exp(skewed_density.score_samples(centres[:, None])) * np.diff(edges)
    samples = skewed_density.sample(5000, random_state=1)[:, 0]
    transformed = np.interp(samples, edges, np.r_[0.0, np.cumsum(masses)])
    assert kstest(transformed, "uniform").pvalue > 0.01


def test_samples_follow_the_density_in_two_dimensions(moons, moons_density):
    low, high = box(moons)
    rng = np.random.RandomState(0)
    proposals = rng.uniform(low, high, size=(100_000, 2))
    log_density = moons_density.score_samples(proposals)
    accepted = proposals[np.log(rng.uniform(size=len(proposals))) < log_density - log_density.max()]
    samples = moons_density.sample(20_000, random_state=1)
    # Four tests that should fail by chance in less than one of two hundred fits.
    for direction in np.array([[1, 0], [0, 1], [1, 1], [1, -1]]):
        assert ks_2samp(accepted @ direction, samples @ direction).pvalue > 0.001


@pytest.mark.parametrize(
    "objective, scale, shift",
    [
        ("jeffreys", [1e3, 2.5e-4], [-700.0, 3.0]),
        ("jeffreys", [1e6, 0.1], [1e6, -1e5]),
        ("likelihood", [1e-6, 1e-3], [0.3, 1e3]),
    ],
)
def test_units_do_not_matter(moons, objective, scale, shift):
    density = JeffreysDensity(objective=objective, max_iter=500, random_state=0)
    plain, scaled = clone(density).fit(moons), clone(density).fit(moons * scale + shift)
    moved = plain.score_samples(moons) - scaled.score_samples(moons * scale + shift)
    np.testing.assert_allclose(moved, np.log(scale).sum(), atol=1e-3)
    assert scaled.n_iter_ == plain.n_iter_
    likelihoods = ["training_log_likelihood", "validation_log_likelihood"]
    moved = plain.history_[likelihoods] - scaled.history_[likelihoods]
    np.testing.assert_allclose(moved, np.log(scale).sum(), atol=1e-3)
    assert scaled.entropy_ - plain.entropy_ == pytest.approx(np.log(scale).sum(), abs=1e-3)
    multipliers = ["lambda_1", "lambda_2", "lambda_3", "mu"]
    np.testing.assert_allclose(scaled.history_[multipliers], plain.history_[multipliers], atol=1e-4)


def test_order_of_training_rows_does_not_matter(moons, moons_density):
    shuffled = np.random.RandomState(1).permutation(moons)
    again = JeffreysDensity(random_state=0).fit(shuffled)
    expected = moons_density.score_samples(moons)
    np.testing.assert_allclose(again.score_samples(moons), expected, atol=1e-3)


def test_batches_of_scoring_do_not_matter(moons_density):
    X = moons_density.sample(10_000, random_state=0)
    together = moons_density.score_samples(X)
    apart = np.concatenate([moons_density.score_samples(part) for part in np.array_split(X, 23)])
    np.testing.assert_allclose(apart, together, rtol=0, atol=1e-10)
    assert together.dtype == np.float64


def test_integer_weights_are_repeats(moons):
    counts = np.random.RandomState(0).randint(0, 3, size=len(moons))
    density = JeffreysDensity(max_iter=200, random_state=0)
    weighted = clone(density).fit(moons, sample_weight=counts)
    repeated = clone(density).fit(np.repeat(moons, counts, axis=0))
    np.testing.assert_allclose(
        weighted.score_samples(moons), repeated.score_samples(moons), atol=1e-3
    )


def test_scale_of_the_weights_does_not_matter(moons):
    weights = np.random.RandomState(0).gamma(2.0, size=len(moons))
    density = JeffreysDensity(max_iter=100, random_state=0)
    first, second = (clone(density).fit(moons, sample_weight=w) for w in (weights, 1e3 * weights))
    np.testing.assert_allclose(first.score_samples(moons), second.score_samples(moons), atol=1e-3)


def test_weights_move_the_density():
    X = np.r_[skewed(200, 0), 40 + skewed(200, 1)]
    weights = np.r_[np.full(200, 9.0), np.ones(200)]
    density = JeffreysDensity(random_state=0).fit(X, sample_weight=weights)
    share = np.mean(density.sample(4000, random_state=0) < 25)
    assert share == pytest.approx(0.9, abs=0.03)


def test_score_is_the_mean(moons, moons_density):
    assert moons_density.score(moons) == pytest.approx(moons_density.score_samples(moons).mean())


@pytest.mark.parametrize("load", [load_iris, load_wine, load_diabetes])
@pytest.mark.filterwarnings("ignore::skjeffreys.DegenerateDataWarning")
def test_beats_a_single_gaussian_on_real_data(load):
    X = np.random.RandomState(0).permutation(load().data)
    train, test = X[: len(X) * 2 // 3], X[len(X) * 2 // 3 :]
    gaussian = GaussianMixture(reg_covar=1e-4).fit(train)
    density = JeffreysDensity(random_state=0).fit(train)
    assert density.score(test) > gaussian.score(test)
    assert density.normalizer_ == pytest.approx(1, abs=0.05)
    assert density.normalizer_ess_ > 0.1


@pytest.mark.filterwarnings("ignore::skjeffreys.DegenerateDataWarning")
def test_is_not_behind_a_mixture_where_columns_take_few_values():
    random_state = np.random.RandomState(0)
    rain = np.maximum(random_state.standard_normal(1000), 0)  # Half of the days are dry.
    days = random_state.poisson(2 + rain)
    X = np.c_[rain, days, random_state.standard_normal(1000) + days]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    density = JeffreysDensity(random_state=0).fit(X[:300])
    mixtures = [GaussianMixture(k, random_state=0).fit(X[:300]) for k in (1, 2, 4, 8, 16)]
    assert density.score(X[300:]) > max(mixture.score(X[300:]) for mixture in mixtures)


@pytest.mark.parametrize("noise", [0.1, 0.01, 0.003])
def test_is_not_behind_a_gaussian_where_columns_nearly_determine_each_other(noise):
    random_state = np.random.RandomState(0)
    factors = random_state.standard_normal((1200, 2)) @ random_state.standard_normal((2, 6))
    X = factors + noise * random_state.standard_normal(factors.shape)
    density = JeffreysDensity(max_iter=50, random_state=0).fit(X[:200])
    gaussian = GaussianMixture().fit(X[:200])
    assert density.score(X[200:]) > gaussian.score(X[200:]) - 0.05


@pytest.mark.parametrize("seed", range(5))
def test_jeffreys_overfits_less_than_likelihood_on_the_ring(seed):
    train, test = (
        eight_gaussians().sample(n, np.random.RandomState(random_state))
        for n, random_state in [(200, seed), (4000, 100 + seed)]
    )
    # That of the flows at the last iterate, without mixtures.
    options = {"max_iter": 3000, "random_state": seed}
    jeffreys = TracedDensity(**options).fit(train)
    likelihood = TracedDensity(objective="likelihood", **options).fit(train)
    assert jeffreys.score(test) > likelihood.score(test)


def test_likelihood_has_no_proxy(moons):
    density = JeffreysDensity(max_iter=25, random_state=0).fit(moons)
    density.set_params(objective="likelihood").fit(moons)
    assert not hasattr(density, "proxy_score_samples")
    assert not hasattr(density, "normalizer_")
    assert density.history_["reverse"].isna().all()


@pytest.mark.parametrize("n_estimators", [1, 3])
def test_any_number_of_members_is_one_density(moons, n_estimators):
    density = JeffreysDensity(n_estimators=n_estimators, max_iter=25, random_state=0).fit(moons)
    assert integral(density.score_samples, *box(moons), 400) == pytest.approx(1, abs=0.005)
    assert 0 <= density.flow_weight_ <= 1


def test_skewed_columns_cost_little():
    """Columns whose logarithms are normal are modelled nearly as well as these themselves."""
    rng = np.random.RandomState(0)
    X, X_new = (rng.multivariate_normal([0, 1], [[1, 0.8], [0.8, 1]], n) for n in (300, 2000))
    plain = JeffreysDensity(random_state=0).fit(X).score(X_new)
    skewed = JeffreysDensity(random_state=0).fit(np.exp(X)).score(np.exp(X_new))
    assert skewed + X_new.sum(axis=1).mean() == pytest.approx(plain, abs=0.1)


@pytest.mark.parametrize(("n", "steps"), [(25, 650), (200, 650), (729, 1053)])
def test_steps_grow_with_the_rows(n, steps):
    X = np.random.RandomState(0).standard_normal((n, 2))
    options = {"n_estimators": 2, "early_stopping": False, "random_state": 0}
    assert JeffreysDensity(**options).fit(X).n_iter_ == steps


@pytest.mark.parametrize(
    ("n", "n_transforms", "expected"), [(4999, "auto", 4), (5000, "auto", 8), (5000, 3, 3)]
)
def test_many_rows_get_more_transforms(n, n_transforms, expected):
    X = np.random.RandomState(0).standard_normal((n, 2))
    density = FlowDensity(n_transforms=n_transforms, max_iter=1, objective="likelihood").fit(X)
    assert len(density._models["flow"].orders) == expected


def test_a_row_far_away_costs_little():
    X = np.random.RandomState(0).standard_normal((200, 2))
    density = JeffreysDensity(max_iter=200, random_state=0).fit(X)
    near, far, farther = density.score_samples([[0.0, 0.0], [300.0, 0.0], [3000.0, 0.0]])
    # A normal density would lose 45,000 and 4,500,000 nats.
    assert near - 60 < far < near - 10
    assert farther < far


def test_history_and_iterations(moons, moons_density):
    history = moons_density.history_
    assert list(history) == [
        "iteration", "forward", "reverse", "fidelity", "normalizer",
        "lambda_1", "lambda_2", "lambda_3", "mu",
        "training_log_likelihood", "validation_log_likelihood", "ambiguity",
    ]  # fmt: skip
    assert history.notna().all(axis=None)
    assert moons_density.n_iter_ == history["iteration"].iloc[-1]


def test_warm_start_goes_on(moons):
    density = JeffreysDensity(early_stopping=False, max_iter=100, warm_start=True, random_state=0)
    density.fit(moons).fit(moons)
    likelihood = density.history_.set_index("iteration")["training_log_likelihood"]
    assert likelihood[200] > likelihood[100]
    assert density.n_iter_ == 200
    assert density.history_["iteration"].tolist() == list(range(25, 201, 25))
    with pytest.raises(ValueError, match="warm_start=True.*must stay as in the previous fit"):
        density.set_params(hidden_layer_sizes=(8,)).fit(moons)


def test_sample_seeds(moons_density):
    np.testing.assert_array_equal(moons_density.sample(3), moons_density.sample(3))
    first, again = (moons_density.sample(3, random_state=7) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    generator = np.random.RandomState(7)
    assert not np.allclose(
        moons_density.sample(3, random_state=generator),
        moons_density.sample(3, random_state=generator),
    )


def test_pipeline_search_and_copies(moons, tmp_path):
    short = JeffreysDensity(max_iter=50, random_state=0)
    log_moons = make_pipeline(FunctionTransformer(), short)
    assert np.isfinite(cross_val_score(log_moons, moons, cv=3)).all()
    search = GridSearchCV(short, {"n_transforms": [1, 2]}, cv=2, n_jobs=2, error_score="raise")
    best = search.fit(moons).best_estimator_
    # Fitted in another process, with another number of threads, it is the same model.
    here = clone(best).fit(moons)
    np.testing.assert_allclose(best.score_samples(moons), here.score_samples(moons), atol=1e-10)
    joblib.dump(here, tmp_path / "density.joblib")
    loaded = joblib.load(tmp_path / "density.joblib")
    np.testing.assert_array_equal(loaded.score_samples(moons), here.score_samples(moons))
    np.testing.assert_array_equal(
        loaded.proxy_score_samples(moons), here.proxy_score_samples(moons)
    )


def test_data_frames(moons):
    frame = pd.DataFrame(moons, columns=["a", "b"])
    density = JeffreysDensity(max_iter=25, random_state=0).fit(frame)
    assert density.feature_names_in_.tolist() == ["a", "b"]
    from_array = JeffreysDensity(max_iter=25, random_state=0).fit(moons)
    expected = from_array.score_samples(moons)
    np.testing.assert_allclose(density.score_samples(frame), expected, atol=1e-10)
    with pytest.raises(ValueError, match="feature names"):
        density.score_samples(frame[["b", "a"]])
