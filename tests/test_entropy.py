import numpy as np
import pytest

from skjeffreys._entropy import nearest_neighbor_entropy


def estimate(rows, weights=None):
    weights = np.ones(len(rows)) if weights is None else weights
    return nearest_neighbor_entropy(rows, weights)


@pytest.mark.parametrize("n_features", [1, 2, 4])
def test_uniform(n_features):
    half_width = np.sqrt(3)  # unit variance
    rows = np.random.RandomState(0).uniform(-half_width, half_width, (2000, n_features))
    assert estimate(rows) == pytest.approx(n_features * np.log(2 * half_width), rel=0.05)


@pytest.mark.parametrize("n_features", [1, 3, 10, 40])
def test_normal_is_the_largest(n_features):
    rows = np.random.RandomState(0).standard_normal((500, n_features))
    largest = 0.5 * n_features * np.log(2 * np.pi * np.e)
    assert estimate(rows) <= largest
    assert estimate(rows) == pytest.approx(largest, rel=0.06)


def test_weights_change_the_density_they_weigh():
    # Weights proportional to x turn a uniform density on (0, 1) into 2x on (0, 1).
    rows = np.random.RandomState(0).uniform(size=(2000, 1))
    exact = 0.5 - np.log(2)
    assert estimate(rows, rows[:, 0]) == pytest.approx(exact, abs=0.06)


def test_two_rows():
    assert np.isfinite(estimate(np.array([[0.0, 1.0], [1.0, 0.0]])))
