import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from skjeffreys._scaling import Scaling

X = np.random.RandomState(0).standard_normal((50, 3)) * [1e-6, 1.0, 1e6] + [0.0, 5.0, 1e6]


def test_scales_as_standard_scaler():
    np.testing.assert_array_equal(Scaling().fit(X).transform(X), StandardScaler().fit_transform(X))


def test_jacobian():
    scaling = Scaling().fit(X)
    by_differences = scaling.transform(np.diag(scaling.scale_)) - scaling.transform(
        np.zeros((1, 3))
    )
    np.testing.assert_allclose(by_differences, np.eye(3), atol=1e-9)
    expected = np.linalg.slogdet(np.diag(1 / scaling.scale_))[1]
    assert scaling.log_abs_det_jacobian_ == pytest.approx(expected)


def test_constant_columns_get_a_scale_of_their_own():
    constant = np.full((20, 3), [0.0, -5.0, 1e6])
    scaling = Scaling().fit(np.c_[constant, np.arange(20.0)])
    np.testing.assert_array_equal(scaling.constant_columns_, [0, 1, 2])
    np.testing.assert_allclose(scaling.scale_[:3], [0.01, 0.05, 1e4])


def test_unit_variance_is_not_constant():
    assert len(Scaling().fit(np.array([[-1.0], [1.0]])).constant_columns_) == 0
