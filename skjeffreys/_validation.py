"""Checks of what a user passes in, with errors that say where, what, and what to do."""

__all__ = [
    "check_finite",
    "check_layer_sizes",
    "check_numeric",
    "check_range",
    "check_some_weight",
    "check_weights",
    "column_labels",
    "private_random_state",
]

from numbers import Integral, Real

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype, is_numeric_dtype
from sklearn.utils import check_random_state

#: What pandas infers for object columns of numbers.
NUMERIC_KINDS = {"boolean", "decimal", "empty", "floating", "integer", "mixed-integer-float"}


def private_random_state(random_state) -> np.random.RandomState:
    """Return a generator that is not NumPy's global one: None gives a fresh one."""
    if random_state is None:
        return np.random.RandomState()
    return check_random_state(random_state)


def column_labels(columns, feature_names=None) -> str:
    """Name columns for a message by their names, or by their positions: ``'a', 'b'``."""
    names = [repr(str(feature_names[j])) if feature_names is not None else str(j) for j in columns]
    label = "column" if len(names) == 1 else "columns"
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"{label} {shown}"


def check_numeric(X, name="X") -> None:
    """Raise a ValueError that names the columns of a DataFrame that hold no numbers.

    Object columns pass if they hold numbers only, as scikit-learn converts these.
    """
    if isinstance(X, pd.Series):
        X = X.to_frame()
    if not isinstance(X, pd.DataFrame):
        return
    wrong = [
        f"{label!r} ({column.dtype})"
        for label, column in X.items()
        if not (is_numeric_dtype(column) or infer_dtype(column) in NUMERIC_KINDS)
    ]
    if wrong:
        raise ValueError(
            f"{name} has non-numeric columns: {', '.join(wrong)}. A density needs numbers: drop "
            "these columns, or encode them, for instance with a ColumnTransformer."
        )


def check_finite(X: np.ndarray, name="X", feature_names=None) -> None:
    """Raise a ValueError that names the columns with NaN or infinite values."""
    for what, bad in (("NaN", np.isnan(X)), ("infinite values (inf)", np.isinf(X))):
        columns = np.flatnonzero(bad.any(axis=0))
        if len(columns):
            n_rows = int(bad.any(axis=1).sum())
            raise ValueError(
                f"{name} contains {what} in {column_labels(columns, feature_names)}, in {n_rows} "
                f"of {len(X)} rows; only finite values are allowed. Drop these rows or impute "
                "them, for instance with sklearn.impute.SimpleImputer."
            )


def check_layer_sizes(hidden_layer_sizes) -> None:
    """Raise a ValueError unless these are positive integers."""
    sizes = list(hidden_layer_sizes)
    if not all(isinstance(size, Integral) and size > 0 for size in sizes):
        raise ValueError(
            f"hidden_layer_sizes must hold positive integers, got {hidden_layer_sizes!r}. Pass "
            "one size per hidden layer, such as (32, 32)."
        )


def check_some_weight(sample_weight: np.ndarray) -> None:
    """Raise a ValueError if every weight is zero."""
    if not sample_weight.any():
        raise ValueError(
            "sample_weight is zero for every row. Give some rows a positive weight, or leave "
            "sample_weight out."
        )


def check_weights(weights) -> None:
    """Raise a ValueError unless these are three non-negative numbers, the first positive."""
    values = list(weights)
    valid = len(values) == 3 and all(
        isinstance(value, Real) and 0 <= value < np.inf for value in values
    )
    if not valid or values[0] == 0:
        raise ValueError(
            f"weights must be three non-negative numbers, the first positive, got {weights!r}: "
            "those of the forward divergence, the reverse divergence and the proxy fidelity."
        )


#: Magnitudes whose squares stay within double precision, with room for sums.
SMALLEST, LARGEST = 1e-140, 1e140


def check_range(X: np.ndarray, name="X", feature_names=None) -> None:
    """Raise a ValueError that names the columns too large or too small to be standardised."""
    largest = np.abs(X).max(axis=0)
    columns = np.flatnonzero((largest > LARGEST) | ((largest < SMALLEST) & (largest > 0)))
    if len(columns):
        raise ValueError(
            f"The values of {name} in {column_labels(columns, feature_names)} are as large as "
            f"{largest[columns[0]]:.3g}; only magnitudes from {SMALLEST:g} to {LARGEST:g} can be "
            "standardised in double precision. Rescale the column."
        )
