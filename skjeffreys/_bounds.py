"""From bounded columns to the whole real line and back, with the Jacobian a density needs."""

__all__ = ["Bounds"]

import math

import numpy as np
from scipy.special import ndtr, ndtri

from ._validation import column_labels

#: Share of the width that a value between two bounds is from either, at least.
SMALLEST_SHARE = 2.0**-53


class Bounds:
    r"""A change of variables for columns that have bounds.

    Between two bounds, :math:`z = \Phi^{-1}((x - a) / (b - a))`, which makes uniform values
    standard normal; with one bound, :math:`z = \log(x - a)` or :math:`z = -\log(b - x)`; with
    none, :math:`z = x`. The two bounds of a column are inside: a value there cannot be told from
    one closer than half a rounding error of the width, and counts as that. A single bound is
    outside.

    Parameters
    ----------
    bounds : tuple (low, high) or None
        Numbers, or one per column; infinite where there is no bound. None for no bounds.
    n_columns : int

    Raises
    ------
    ValueError
        If ``bounds`` is no such pair, or a lower bound is not below its upper bound.
    """

    def __init__(self, bounds, n_columns: int) -> None:
        low, high = (-np.inf, np.inf) if bounds is None else _pair(bounds)
        try:
            self.low = np.broadcast_to(np.asarray(low, dtype=np.float64), n_columns)
            self.high = np.broadcast_to(np.asarray(high, dtype=np.float64), n_columns)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"bounds={bounds!r} must be a pair (low, high), each a number or {n_columns} "
                "numbers, one per column."
            ) from error
        wrong = np.flatnonzero(~(self.low < self.high))
        if len(wrong):
            j = wrong[0]
            raise ValueError(
                f"bounds: the lower bound of column {j} is {self.low[j]}, its upper bound "
                f"{self.high[j]}. A lower bound must be below the upper bound."
            )
        below, above = np.isfinite(self.low), np.isfinite(self.high)
        self._both = np.flatnonzero(below & above)
        self._lower = np.flatnonzero(below & ~above)
        self._upper = np.flatnonzero(above & ~below)

    @property
    def unbounded(self) -> np.ndarray:
        """Whether a column has no bound, (n_columns,)."""
        return np.isinf(self.low) & np.isinf(self.high)

    def contain(self, X: np.ndarray) -> np.ndarray:
        """Whether all values of a row are inside, (n, n_columns) to (n,)."""
        return ~self._outside(X).any(axis=1)

    def check(self, X: np.ndarray, name: str, feature_names=None) -> None:
        """Raise a ValueError that names the columns of ``X`` with values outside."""
        outside = self._outside(X)
        columns = np.flatnonzero(outside.any(axis=0))
        if len(columns):
            j = columns[0]
            values = X[outside[:, j], j]
            raise ValueError(
                f"{name} has values outside the bounds in "
                f"{column_labels(columns, feature_names)}, such as {values[0]:.6g}; allowed are "
                f"{self._interval(j)}. Drop these rows or widen bounds."
            )

    def _outside(self, X: np.ndarray) -> np.ndarray:
        outside = (self.low > X) | (self.high < X)
        outside[:, self._lower] |= X[:, self._lower] == self.low[self._lower]
        outside[:, self._upper] |= X[:, self._upper] == self.high[self._upper]
        return outside

    def _interval(self, j: int) -> str:
        if j in self._lower:
            return f"values above {self.low[j]:g}"
        if j in self._upper:
            return f"values below {self.high[j]:g}"
        return f"values from {self.low[j]:g} to {self.high[j]:g}"

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Move rows that are inside to the real line, (n, n_columns)."""
        Z = X.copy()
        below, above = X - self.low, self.high - X
        width = (self.high - self.low)[self._both]
        # From the nearer bound, where the quotient is exact.
        lower = np.maximum(below[:, self._both] / width, SMALLEST_SHARE)
        upper = np.maximum(above[:, self._both] / width, SMALLEST_SHARE)
        Z[:, self._both] = np.where(lower < 0.5, ndtri(lower), -ndtri(upper))
        Z[:, self._lower] = np.log(below[:, self._lower])
        Z[:, self._upper] = -np.log(above[:, self._upper])
        return Z

    def inverse_transform(self, Z: np.ndarray) -> np.ndarray:
        """Move rows back, (n, n_columns). Results that round to a bound stay just inside."""
        X = Z.copy()
        both, lower, upper = self._both, self._lower, self._upper
        low, high = self.low, self.high
        tail = (high[both] - low[both]) * ndtr(-np.abs(Z[:, both]))
        X[:, both] = np.where(Z[:, both] < 0, low[both] + tail, high[both] - tail)
        X[:, lower] = low[lower] + np.exp(Z[:, lower])
        X[:, upper] = high[upper] - np.exp(-Z[:, upper])
        return np.clip(X, np.nextafter(low, np.inf), np.nextafter(high, -np.inf))

    def log_abs_det_jacobian(self, X: np.ndarray) -> np.ndarray:
        """``log |det dz/dx|`` at rows that are inside, (n, n_columns) to (n,), in nats."""
        Z = self.transform(X)
        width = (self.high - self.low)[self._both]
        both = 0.5 * Z[:, self._both] ** 2 + 0.5 * math.log(2 * math.pi) - np.log(width)
        one = Z[:, self._upper].sum(axis=1) - Z[:, self._lower].sum(axis=1)
        return both.sum(axis=1) + one


def _pair(bounds):
    try:
        low, high = bounds
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"bounds={bounds!r} must be a pair (low, high), such as (0, numpy.inf)."
        ) from error
    return low, high
