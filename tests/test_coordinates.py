import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from skjeffreys._bounds import Bounds
from skjeffreys._coordinates import Coordinates, Scaling, Standardisation
from skjeffreys._rows import Rows

X = np.random.RandomState(0).standard_normal((50, 3)) * [1e-6, 1.0, 1e6] + [0.0, 5.0, 1e6]


def test_scales_as_standard_scaler():
    np.testing.assert_array_equal(Scaling().fit(X).transform(X), StandardScaler().fit_transform(X))


RANDOM = np.random.RandomState(1)
TARGETS = np.c_[
    RANDOM.standard_normal(60), RANDOM.uniform(-2, 5, 60), RANDOM.exponential(size=(60, 2))
] * [1e-6, 1.0, 100.0, -1.0]
BOUNDS = ([-np.inf, -2.0, 0.0, -np.inf], [np.inf, 5.0, np.inf, 0.0])


@pytest.fixture
def standardisation():
    return Standardisation(Bounds(BOUNDS, 4), X[:50], TARGETS[:50], np.ones(50))


@pytest.fixture
def rows(standardisation):
    values = torch.from_numpy(standardisation.transform(X[:50], TARGETS[:50]))
    return Rows(values, torch.full((50,), 1 / 50, dtype=torch.float64), n_conditions=3)


@pytest.fixture
def coordinates(standardisation, rows):
    return Coordinates(standardisation, rows)


def test_rows_are_standardised_conditions_beside_standardised_targets(standardisation):
    rows = standardisation.transform(X, TARGETS[:50])
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(rows.std(axis=0), 1)
    np.testing.assert_array_equal(rows[:, :3], standardisation.transform_conditions(X))


def test_coordinates_of_rows_are_those_of_the_table(coordinates, rows):
    expected = coordinates.transform(X[:50], TARGETS[:50])
    bent = coordinates.bend(rows)
    np.testing.assert_allclose(bent.values, expected, atol=1e-6)
    np.testing.assert_array_equal(bent.weights, rows.weights)
    np.testing.assert_array_equal(expected[:, :3], coordinates.transform_conditions(X[:50]))


def test_inverse_of_coordinates(coordinates):
    targets = coordinates.inverse_transform(coordinates.transform(X, TARGETS[:50]))
    np.testing.assert_allclose(targets, TARGETS[:50])


def test_jacobian_of_coordinates(coordinates):
    targets = TARGETS[50:]
    step = 1e-6 * np.abs(targets)
    above = coordinates.transform(X[:10], targets + step)[:, 3:]
    below = coordinates.transform(X[:10], targets - step)[:, 3:]
    expected = np.log((above - below) / (2 * step)).sum(axis=1)
    np.testing.assert_allclose(coordinates.log_abs_det_jacobian(targets), expected, rtol=1e-6)


def test_constant_columns_get_a_scale_of_their_own():
    constant = np.full((20, 3), [0.0, -5.0, 1e6])
    scaling = Scaling().fit(np.c_[constant, np.arange(20.0)])
    np.testing.assert_array_equal(scaling.constant_columns_, [0, 1, 2])
    np.testing.assert_allclose(scaling.scale_[:3], [0.01, 0.05, 1e4])


def test_unit_variance_is_not_constant():
    assert len(Scaling().fit(np.array([[-1.0], [1.0]])).constant_columns_) == 0
