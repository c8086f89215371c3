"""The normaliser, over data of many shapes and units."""

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from test_density import box, integral

from skjeffreys import JeffreysDensity


@st.composite
def tables(draw, max_features=6):
    """Mixtures, skewed, heavy-tailed and correlated rows, in any units."""
    n, d = draw(st.integers(60, 400)), draw(st.integers(1, max_features))
    rng = np.random.RandomState(draw(st.integers(0, 2**31 - 1)))
    shape = draw(st.sampled_from(["mixture", "skewed", "heavy-tailed", "correlated"]))
    X = rng.standard_normal((n, d))
    if shape == "mixture":
        X = 0.3 * X + rng.uniform(-3, 3, size=(4, d))[rng.randint(4, size=n)]
    elif shape == "skewed":
        X = np.exp(X)
    elif shape == "heavy-tailed":
        X = rng.standard_t(2.0, size=(n, d))
    else:
        X = X @ rng.standard_normal((d, d))
    scale = 10.0 ** draw(st.integers(-6, 6))
    # An offset of more than 1e9 scales would leave no digits of the rows.
    offset = draw(st.floats(-1, 1)) * min(1e6, 1e9 * scale)
    return scale * X + offset


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(tables())
def test_normalizer_is_one(X):
    density = JeffreysDensity(max_iter=300, random_state=0).fit(X)
    event(f"|normalizer - 1| <= {np.ceil(100 * abs(density.normalizer_ - 1)) / 100:.2f}")
    event(f"effective sample size >= {np.floor(10 * density.normalizer_ess_) / 10:.1f}")
    assert abs(density.normalizer_ - 1) <= 0.05
    assert density.normalizer_ess_ > 0.1


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(tables(max_features=2))
def test_proxy_integrates_to_the_reported_normalizer(X):
    density = JeffreysDensity(max_iter=200, random_state=0).fit(X)
    low, high = box(X)
    points = 40_000 if X.shape[1] == 1 else 1000
    total = integral(density.proxy_score_samples, low, high, points)
    error = 4 * density.normalizer_std_error_ + 0.003
    assert total == pytest.approx(density.normalizer_, abs=error)
