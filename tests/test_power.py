import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import skew, yeojohnson, yeojohnson_llf

from skjeffreys._power import EXPONENTS, PowerTransform

RANDOM = np.random.RandomState(0)
COLUMNS = np.c_[
    RANDOM.standard_normal(300),
    RANDOM.exponential(size=300),
    -RANDOM.lognormal(size=300),
    RANDOM.standard_t(3, size=300),
]
ROWS = (COLUMNS - COLUMNS.mean(axis=0)) / COLUMNS.std(axis=0)
EQUAL = np.full(300, 1 / 300)


@pytest.fixture(scope="module")
def power():
    return PowerTransform(ROWS, EQUAL)


def test_exponents_are_the_most_likely_ones(power):
    for column, exponent in zip(ROWS.T, power.exponents, strict=True):
        assert exponent == max(EXPONENTS, key=lambda value: yeojohnson_llf(value, column))


def test_is_the_transform_of_yeo_and_johnson_standardised(power):
    columns = zip(ROWS.T, power.exponents, strict=True)
    expected = np.stack([yeojohnson(column, exponent) for column, exponent in columns], axis=1)
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(power.transform(ROWS), expected, atol=1e-12)


def test_skewed_columns_become_more_symmetric(power):
    before, after = np.abs(skew(ROWS)), np.abs(skew(power.transform(ROWS)))
    assert (after[1:3] < 0.5 * before[1:3]).all()


def test_mirrored_columns_are_bent_alike(power):
    mirrored = PowerTransform(-ROWS, EQUAL)
    np.testing.assert_allclose(mirrored.exponents, 2 - power.exponents)
    np.testing.assert_allclose(mirrored.transform(-ROWS), -power.transform(ROWS), atol=1e-9)


def test_weights_count_as_repeated_rows():
    weights = RANDOM.randint(1, 4, size=300)
    repeated = np.repeat(ROWS, weights, axis=0)
    weighted = PowerTransform(ROWS, weights / weights.sum())
    expected = PowerTransform(repeated, np.full(len(repeated), 1 / len(repeated)))
    np.testing.assert_allclose(weighted.transform(ROWS), expected.transform(ROWS))


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_is_inverted_wherever_a_row_lies(row):
    power, row = PowerTransform(ROWS, EQUAL), np.array([row])
    np.testing.assert_allclose(power.inverse_transform(power.transform(row)), row, atol=1e-9)


def test_jacobian_within_and_beyond_the_training_rows(power):
    rows, step = 3 * ROWS, 1e-5
    slope = (power.transform(rows + step) - power.transform(rows - step)) / (2 * step)
    np.testing.assert_allclose(power.log_abs_det_jacobian(rows), np.log(slope), atol=1e-5)


def test_goes_on_straight_beyond_the_training_rows(power):
    far = ROWS.max(axis=0) + np.array([[1.0], [2.0], [1000.0]])
    bent = power.transform(far)
    np.testing.assert_allclose((bent[2] - bent[0]) / (bent[1] - bent[0]), 999)


def test_constant_column_keeps_its_scale():
    power = PowerTransform(np.zeros((300, 1)), EQUAL)
    np.testing.assert_allclose(power.transform(np.array([[-3.0], [0.0], [2.0]])), [[-3], [0], [2]])
