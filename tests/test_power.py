import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import skew, yeojohnson, yeojohnson_llf

from skjeffreys._power import EXPONENTS, Unbending, fit_power_transform

RANDOM = np.random.RandomState(0)
COLUMNS = np.c_[
    RANDOM.standard_normal(300),
    RANDOM.exponential(size=300),
    -RANDOM.lognormal(size=300),
    RANDOM.standard_t(3, size=300),
]
ROWS = (COLUMNS - COLUMNS.mean(axis=0)) / COLUMNS.std(axis=0)
TENSOR = torch.from_numpy(ROWS)
EQUAL = np.full(300, 1 / 300)


@pytest.fixture(scope="module")
def power():
    return fit_power_transform(ROWS, EQUAL)


def test_exponents_are_the_most_likely_ones(power):
    for column, exponent in zip(ROWS.T, power.exponents.tolist(), strict=True):
        assert exponent == max(EXPONENTS, key=lambda value: yeojohnson_llf(value, column))


def test_is_the_transform_of_yeo_and_johnson_standardised(power):
    columns = zip(ROWS.T, power.exponents.tolist(), strict=True)
    expected = np.stack([yeojohnson(column, exponent) for column, exponent in columns], axis=1)
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(power(TENSOR).numpy(), expected, atol=1e-12)


def test_skewed_columns_become_more_symmetric(power):
    before, after = np.abs(skew(ROWS)), np.abs(skew(power(TENSOR).numpy()))
    assert (after[1:3] < 0.5 * before[1:3]).all()


def test_mirrored_columns_are_bent_alike(power):
    mirrored = fit_power_transform(-ROWS, EQUAL)
    np.testing.assert_allclose(mirrored.exponents, 2 - power.exponents)
    np.testing.assert_allclose(mirrored(-TENSOR), -power(TENSOR), atol=1e-9)


def test_weights_count_as_repeated_rows():
    weights = RANDOM.randint(1, 4, size=300)
    repeated = np.repeat(ROWS, weights, axis=0)
    weighted = fit_power_transform(ROWS, weights / weights.sum())
    expected = fit_power_transform(repeated, np.full(len(repeated), 1 / len(repeated)))
    np.testing.assert_allclose(weighted(TENSOR), expected(TENSOR))


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_is_inverted_wherever_a_row_lies(row):
    power = fit_power_transform(ROWS, EQUAL)
    row = torch.tensor([row], dtype=torch.float64)
    np.testing.assert_allclose(power.inv(power(row)), row, atol=1e-9)


def test_jacobian_within_and_beyond_the_training_rows(power):
    rows, step = 3 * TENSOR, 1e-5
    slope = (power(rows + step) - power(rows - step)) / (2 * step)
    bent, log_slope = power.call_and_ladj(rows)
    np.testing.assert_allclose(log_slope, slope.log(), atol=1e-5)
    np.testing.assert_allclose(power.inv.call_and_ladj(bent)[1], -log_slope, atol=1e-9)


def test_goes_on_straight_beyond_the_training_rows(power):
    bent = power(TENSOR.max(dim=0).values + torch.tensor([[1.0], [2.0], [1000.0]]))
    np.testing.assert_allclose((bent[2] - bent[0]) / (bent[1] - bent[0]), 999)


def test_constant_column_keeps_its_scale():
    power = fit_power_transform(np.zeros((300, 1)), EQUAL)
    rows = torch.tensor([[-3.0], [0.0], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(power(rows), rows)


def test_unbending_leads_back_with_the_jacobian(power):
    unbending = Unbending(power)
    rows = (2 * TENSOR).expand(3, -1, -1)
    bent, log_slope = power.call_and_ladj(rows)
    np.testing.assert_allclose(unbending.preprocess(bent), rows, atol=1e-9)
    unbent, log_abs_det = unbending.transform(bent[..., :0]).call_and_ladj(bent)
    np.testing.assert_allclose(unbent, rows, atol=1e-9)
    np.testing.assert_allclose(log_abs_det, -log_slope.sum(dim=-1), atol=1e-9)
