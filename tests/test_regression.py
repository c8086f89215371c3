import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from skjeffreys._regression import fit_regressions, no_regressions
from skjeffreys._rows import Rows, split_rows


def linear_rows(n, n_conditions, noise, seed=0):
    """Two targets, linear in the conditions up to noise; standardised."""
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((n, n_conditions))
    y = X @ rng.standard_normal((n_conditions, 2)) + noise * rng.standard_normal((n, 2))
    table = np.c_[X, y]
    return (table - table.mean(axis=0)) / table.std(axis=0)


def folds_of(table, n_conditions):
    values = torch.tensor(table, dtype=torch.float32)
    weights = torch.full((len(table),), 1 / len(table), dtype=torch.float64)
    rows = Rows(values, weights, n_conditions=n_conditions)
    return split_rows(rows, 4, 0.25, np.random.RandomState(0))


def test_each_member_regresses_its_own_rows():
    table = linear_rows(200, 3, noise=0.5)
    folds = folds_of(table, 3)
    regressions = fit_regressions(folds)
    for k, training in enumerate(folds.training):
        expected = LinearRegression().fit(table[training, :3], table[training, 3:])
        coefficients = regressions.coefficients[k].T
        np.testing.assert_allclose(coefficients, expected.coef_, atol=0.01)
        np.testing.assert_allclose(regressions.intercepts[k, 0], expected.intercept_, atol=0.01)


def test_residuals_at_rows_left_out_are_standardised():
    for table, q in (linear_rows(400, 3, 0.1), 3), (linear_rows(80, 60, 1.0), 60):
        folds = folds_of(table, q)
        residuals = fit_regressions(folds).preprocess(folds.rows.values[folds.held_out])
        squares = residuals.square().mean(dim=(0, 1))
        assert squares.tolist() == pytest.approx([1, 1], rel=1e-3)


def test_residuals_are_of_the_prediction():
    folds = folds_of(linear_rows(100, 2, 0.3), 2)
    regressions, rows = fit_regressions(folds), folds.rows.values[folds.training]
    predicted = rows[..., :2] @ regressions.coefficients + regressions.intercepts
    expected = (rows[..., 2:] - predicted) / regressions.scales
    torch.testing.assert_close(regressions.preprocess(rows), expected, rtol=1e-4, atol=1e-4)


def test_conditions_that_say_nothing_are_hardly_used():
    rng = np.random.RandomState(0)
    regressions = fit_regressions(folds_of(rng.standard_normal((60, 42)), 40))
    assert regressions.coefficients.abs().max() < 0.1


def test_no_regression_leaves_the_targets_as_they_are():
    rows = torch.randn(3, 20, 5)
    assert (no_regressions(3, 2, 3).preprocess(rows) == rows[..., 2:]).all()
    folds = folds_of(linear_rows(50, 3, 0.5), 0)
    rows = folds.rows.values[folds.training]
    assert (fit_regressions(folds).preprocess(rows) == rows).all()


def test_first_members_keep_their_regressions():
    folds = folds_of(linear_rows(100, 2, 0.3), 2)
    regressions, rows = fit_regressions(folds), folds.rows.values[folds.training]
    residuals = regressions.first(3).preprocess(rows[:3])
    torch.testing.assert_close(residuals, regressions.preprocess(rows)[:3])
