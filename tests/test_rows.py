from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skjeffreys._rows import (
    N_NEIGHBORS,
    Folds,
    Rows,
    canonical_rows,
    dependent_columns,
    split_rows,
    spread_ties,
    tied_columns,
)

NONE = np.array([], dtype=int)
grids = arrays(
    np.float64, st.tuples(st.integers(2, 30), st.integers(1, 3)), elements=st.integers(0, 4)
)


def canonical(rows, weights=None, constant=NONE, tied=NONE):
    """Rows as they are, and with ties spread."""
    weights = np.ones(len(rows)) if weights is None else weights
    *values, weights = canonical_rows(rows, weights, constant, tied, np.random.RandomState(0))
    return [Rows(each, weights) for each in values]


def assert_same(firsts, seconds):
    for first, second in zip(firsts, seconds, strict=True):
        torch.testing.assert_close(first.values, second.values, rtol=0, atol=0)
        torch.testing.assert_close(first.weights, second.weights)


def nearest(spread, column):
    """The value of a column that each one that is spread is nearest to."""
    values = np.unique(column)
    return values[np.abs(np.asarray(spread)[:, None] - values).argmin(axis=1)]


@given(grids, st.randoms(use_true_random=False))
def test_order_does_not_matter(rows, random):
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)
    assert_same(canonical(rows), canonical(rows[shuffled]))
    assert_same(canonical(rows, tied=[0]), canonical(rows[shuffled], tied=[0]))


@given(grids, st.data())
def test_weights_count_like_repeats(rows, data):
    counts = data.draw(arrays(np.int64, len(rows), elements=st.integers(1, 3)))
    assert_same(canonical(rows, counts.astype(float)), canonical(np.repeat(rows, counts, axis=0)))


@given(grids)
def test_rows_are_distinct_and_weights_sum_to_one(rows):
    for result in canonical(rows):
        assert len(np.unique(result.values, axis=0)) == len(result.values)
        assert result.weights.sum() == pytest.approx(1)
        mean = result.weights @ result.values.double()
        np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-6)


@given(grids)
def test_rows_as_they_are_go_along_with_those_whose_ties_are_spread(rows):
    assume(len(np.unique(rows[:, 0])) > 1)  # A constant column is not spread.
    as_they_are, spread = canonical(rows, tied=[0])
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(as_they_are.values, axis=0))
    np.testing.assert_array_equal(spread.weights, as_they_are.weights)
    np.testing.assert_array_equal(spread.values[:, 1:], as_they_are.values[:, 1:])
    where_from = nearest(spread.values[:, 0], rows[:, 0])
    np.testing.assert_array_equal(where_from, as_they_are.values[:, 0])


def test_constant_column_becomes_standard_normal():
    rows = np.c_[np.zeros(5000), np.arange(5000.0)]
    values = canonical(rows, constant=np.array([0]))[0].values
    assert values[:, 0].std() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(np.sort(values[:, 1]), rows[:, 1])


def test_tied_columns_are_found_among_continuous_ones():
    rng = np.random.RandomState(0)
    X = np.c_[rng.standard_normal(200), rng.randint(10, size=200), np.round(rng.rand(200), 1)]
    np.testing.assert_array_equal(tied_columns(X), [1, 2])


def test_repeated_rows_are_not_tied_columns():
    X = np.random.RandomState(0).standard_normal((50, 2))
    assert len(tied_columns(np.r_[X, X])) == 0


@given(arrays(np.float64, st.integers(2, 50), elements=st.integers(0, 5)))
def test_ties_on_a_grid_spread_over_their_cell(column):
    spread = spread_ties(column, np.random.RandomState(0))
    distinct, counts = np.unique(column, return_counts=True)
    gap = np.min(np.diff(distinct), initial=np.inf)
    repeated = np.isin(column, distinct[counts > 1])
    np.testing.assert_array_equal(spread[~repeated], column[~repeated])
    if len(distinct) > 1:
        np.testing.assert_array_equal(nearest(spread, distinct), column)
        assert gap <= 5


def test_atom_in_a_continuous_column_is_spread_over_a_minimum_width():
    column = np.r_[np.zeros(1000), 1e-9, np.linspace(0.1, 1, 100)]
    spread = spread_ties(column, np.random.RandomState(0))[:1000]
    assert spread.std() == pytest.approx(0.02 / np.sqrt(12), rel=0.1)


def some_rows(n, weights=None):
    weights = torch.ones(n) if weights is None else weights
    return Rows(torch.arange(float(n))[:, None], weights.double())


def test_draw_follows_the_weights_of_the_training_rows():
    rows = some_rows(4, torch.tensor([1.0, 2.0, 5.0, 9.0]))
    training, held_out = torch.tensor([[0, 1, 2], [2, 0, 3]]), torch.tensor([[3], [1]])
    folds = Folds(rows, training, held_out)
    drawn = folds.draw(40_000, torch.Generator().manual_seed(0))[:, :, 0].long()
    for values, shares in zip(drawn, [[1, 2, 5, 0], [1, 0, 5, 9]], strict=True):
        observed = torch.bincount(values, minlength=4) / 40_000
        np.testing.assert_allclose(observed, np.array(shares) / sum(shares), atol=0.01)


@given(st.integers(5, 60), st.integers(1, 6), st.floats(0.05, 0.6))
def test_members_leave_out_windows_of_equal_size_and_lose_no_row(n, n_members, fraction):
    folds = split_rows(some_rows(n), n_members, fraction, np.random.RandomState(0))
    assert folds.held_out.shape == (n_members, np.ceil(fraction * n))
    for training, held_out in zip(folds.training, folds.held_out, strict=True):
        assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(n))


def test_no_row_is_left_out_twice_if_there_are_enough():
    held_out = split_rows(some_rows(55), 5, 0.2, np.random.RandomState(0)).held_out
    assert len(held_out.unique()) == 55


@pytest.mark.parametrize("n_members", [2, 5, 8])
def test_rows_are_near_the_nearest_that_are_left_out(n_members):
    values = torch.from_numpy(np.random.RandomState(0).standard_normal((60, 3)))
    rows = Rows(values, torch.full((60,), 1 / 60))
    folds = split_rows(rows, n_members, 0.1, np.random.RandomState(0))
    x = torch.from_numpy(np.random.RandomState(1).standard_normal((40, 3)))
    left_out = sorted(set(folds.held_out.flatten().tolist()))
    expected = np.zeros((n_members, 40), dtype=bool)
    for i, row in enumerate(x):
        nearest = sorted(left_out, key=lambda j: float((values[j] - row).norm()))[:N_NEIGHBORS]
        for k, own in enumerate(folds.held_out.tolist()):
            expected[k, i] = bool(set(nearest) & set(own))
    np.testing.assert_array_equal(folds.near_held_out(x).numpy(), expected)


def test_every_row_left_out_is_near_itself_and_none_is_near_those_of_a_single_member():
    values = torch.randn(55, 2, generator=torch.Generator().manual_seed(0))
    rows = Rows(values, torch.full((55,), 1 / 55))
    folds = split_rows(rows, 5, 0.2, np.random.RandomState(0))
    for k, own in enumerate(folds.held_out):
        assert folds.near_held_out(values[own])[k].all()
    single = split_rows(rows, 1, 0.2, np.random.RandomState(0))
    assert not single.near_held_out(values).any()


def test_split_needs_rows():
    with pytest.raises(ValueError, match="2 distinct rows.*smaller validation_fraction"):
        split_rows(some_rows(2), 5, 0.5, np.random.RandomState(0))


def rows_with(columns, n_conditions=0):
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    return replace(canonical(columns)[0], n_conditions=n_conditions)


def test_dependent_columns_are_found():
    X = np.random.RandomState(0).standard_normal((300, 7))
    X[:, 2] = 1000 * (X[:, 0] - X[:, 4]) + 5
    assert_dependent(rows_with(X), [0, 2, 4], 1)
    X[:, 6] = X[:, 5]
    assert_dependent(rows_with(X), [0, 2, 4, 5, 6], 2)
    assert_dependent(rows_with(X[:7]), [], 0)


def test_close_and_curved_relations_are_no_dependence():
    X = np.random.RandomState(0).standard_normal((300, 3))
    X[:, 1] = X[:, 0] + 0.001 * X[:, 1]
    X[:, 2] = X[:, 0] ** 2
    assert_dependent(rows_with(X), [], 0)


def test_conditions_may_depend_on_each_other_but_targets_not_on_them():
    X = np.random.RandomState(0).standard_normal((300, 5))
    X[:, 1] = X[:, 0]
    assert_dependent(rows_with(X, n_conditions=2), [], 0)
    X[:, 4] = X[:, 0] + X[:, 1]
    assert_dependent(rows_with(X, n_conditions=2), [2], 1)


def assert_dependent(rows, expected, n_surplus):
    columns, surplus = dependent_columns(rows)
    np.testing.assert_array_equal(columns, expected)
    assert surplus == n_surplus
