import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from skjeffreys._bounds import Bounds

KINDS = {
    "both": (-2.0, 5.0),
    "lower": (3.0, np.inf),
    "upper": (-np.inf, -1.0),
    "none": (-np.inf, np.inf),
}
real_numbers = st.floats(-7, 7)


def inside(kind, z):
    """Move a column of real numbers inside the bounds."""
    return Bounds(KINDS[kind], 1).inverse_transform(np.reshape(z, (-1, 1)))


@pytest.mark.parametrize("kind", KINDS)
@given(z=st.floats(-5, 5))
def test_inverse(kind, z):
    assert Bounds(KINDS[kind], 1).transform(inside(kind, z)) == pytest.approx(z, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@given(z=real_numbers, other=real_numbers)
def test_order_is_kept(kind, z, other):
    assert (z < other) <= (inside(kind, z) <= inside(kind, other)).item()


@pytest.mark.parametrize("kind", KINDS)
@given(z=st.floats(-4, 4))
def test_jacobian(kind, z):
    bounds, x = Bounds(KINDS[kind], 1), inside(kind, z)
    h = 1e-5 / np.exp(bounds.log_abs_det_jacobian(x)).item()
    by_differences = (bounds.transform(x + h) - bounds.transform(x - h)) / (2 * h)
    assert bounds.log_abs_det_jacobian(x) == pytest.approx(np.log(by_differences).item(), abs=1e-3)


def test_uniform_values_become_standard_normal():
    x = np.random.RandomState(0).uniform(-2, 5, size=(5000, 1))
    assert kstest(Bounds((-2, 5), 1).transform(x)[:, 0], "norm").pvalue > 0.01


def test_columns_have_bounds_of_their_own():
    bounds = Bounds(([0, -np.inf, -1], [1, 2, np.inf]), 3)
    assert bounds.contain(np.array([[0.5, 1.0, 9.0], [0.5, 3.0, 9.0]])).tolist() == [True, False]
    assert Bounds((0, [1, np.inf, np.inf]), 3).unbounded.tolist() == [False, False, False]
    assert Bounds(([0, -np.inf], np.inf), 2).unbounded.tolist() == [False, True]
    assert Bounds(None, 2).unbounded.all()


def test_far_out_is_just_inside():
    """Whatever the rounding, what is moved inside is inside."""
    z = np.array([[-1e3], [-40.0], [40.0], [1e3]])
    for kind, (low, high) in KINDS.items():
        with np.errstate(over="ignore"):
            x = inside(kind, z)
        assert ((x > low) & (x < high)).all()


def test_two_bounds_are_inside_and_a_single_one_is_outside():
    two = Bounds((0, 1), 1)
    edges = np.array([[0.0], [1.0]])
    assert two.contain(edges).all()
    assert np.isfinite(two.transform(edges)).all()
    assert not Bounds((0, np.inf), 1).contain(edges[:1]).any()
    assert not Bounds((-np.inf, 1), 1).contain(edges[1:]).any()


@pytest.mark.parametrize(
    "bounds, message",
    [
        (3, "must be a pair"),
        ((0, 1, 2), "must be a pair"),
        (("a", 1), "each a number or 2 numbers"),
        (([0, 0, 0], 1), "each a number or 2 numbers"),
        ((0, [1, 0]), "lower bound of column 1 is 0.0, its upper bound 0.0"),
        ((0, np.nan), "lower bound of column 0 is 0.0, its upper bound nan"),
    ],
)
def test_bounds_that_are_none(bounds, message):
    with pytest.raises(ValueError, match=message):
        Bounds(bounds, 2)
