"""From a table to training rows: smoothed ties, merged repeats, an order of their own."""

__all__ = [
    "Folds",
    "Rows",
    "canonical_rows",
    "dependent_columns",
    "split_rows",
    "tied_columns",
    "warn_degenerate",
]

import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ._validation import column_labels
from .exceptions import DegenerateDataWarning

#: Share of the rows that share their value of a column, from which the column counts as tied.
TIED_SHARE = 0.05
#: Variance along a direction, of standardised columns, below which these depend on each other.
DEPENDENT_VARIANCE = 1e-8
#: Smallest part that a column has in such a direction.
DEPENDENT_PART = 0.01
#: Smallest width, in standard deviations, over which a repeated value is spread.
MINIMUM_WIDTH = 0.02
#: Rounding of the rows, in standard deviations: exact in single precision up to 1024.
RESOLUTION = 2.0**-14
#: Validation rows at most: enough to tell two iterates apart.
MAXIMUM_VALIDATION_ROWS = 1000
#: Nearest rows left out by members that say whether a row is near those left out by one of them.
N_NEIGHBORS = 4


@dataclass(frozen=True)
class Rows:
    """Weighted rows: ``values`` of shape (n, q + d), positive ``weights`` of shape (n,).

    The first ``q = n_conditions`` columns are conditions, the others are modelled given these.
    """

    values: Tensor
    weights: Tensor
    n_conditions: int = 0

    @property
    def conditions(self) -> Tensor:
        """The first columns, (n, q)."""
        return self.values[:, : self.n_conditions]

    @property
    def targets(self) -> Tensor:
        """The other columns, (n, d)."""
        return self.values[:, self.n_conditions :]

    def draw_conditions(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw conditions of ``n`` rows, with replacement and by their weights, (n, q)."""
        return self.conditions[_draw_indices(self.weights.cumsum(dim=0), n, generator)]


@dataclass(frozen=True)
class Folds:
    """Rows, and which of them each member of an ensemble trains on or leaves out.

    Attributes
    ----------
    rows : Rows
    training : Tensor of shape (n_members, n_training), int64
        Indices of the rows that each member trains on.
    held_out : Tensor of shape (n_members, n_held_out), int64
        Indices of rows that each member does not train on.
    """

    rows: Rows
    training: Tensor
    held_out: Tensor

    @property
    def n_members(self) -> int:
        """Number of members."""
        return len(self.training)

    @cached_property
    def _cumulative_weights(self) -> Tensor:
        return self.rows.weights[self.training].cumsum(dim=1)

    @cached_property
    def _held_out_values(self) -> Tensor:
        return self.rows.values[self.held_out.flatten()]

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` training rows for each member, with replacement; (n_members, n, d).

        Each row is drawn with probability in proportion to its weight.
        """
        index = _draw_indices(self._cumulative_weights, n, generator)
        return self.rows.values[self.training.gather(1, index)]

    def held_out_means(self, log_density: Tensor) -> Tensor:
        """Weighted means of values at the rows left out, (n_members, n_held_out) to (n_members,).

        In double precision.
        """
        weights = self.rows.weights[self.held_out]
        return (weights * log_density.double()).sum(dim=1) / weights.sum(dim=1)

    def near_held_out(self, x: Tensor) -> Tensor:
        """Whether ``x`` is near rows that each member leaves out, (n, q + d) to (n_members, n).

        That is where one of the four nearest, among all rows that members leave out, is one of
        its own. Nothing is near those of a single member, who has no others to learn them from.
        """
        if self.n_members == 1:
            return x.new_zeros((1, len(x)), dtype=torch.bool)
        distances = torch.cdist(x, self._held_out_values)
        n_neighbors = min(N_NEIGHBORS, distances.shape[1])
        nearest = distances.topk(n_neighbors, largest=False).indices
        members = torch.arange(self.n_members, device=x.device)
        return (nearest // self.held_out.shape[1] == members[:, None, None]).any(dim=2)

    def to(self, device: torch.device) -> "Folds":
        """Return a copy on a device."""
        rows = self.rows
        rows = replace(rows, values=rows.values.to(device), weights=rows.weights.to(device))
        return Folds(rows, self.training.to(device), self.held_out.to(device))


def _draw_indices(cumulative_weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` indices with replacement along the last dimension, by their weights."""
    *members, n_rows = cumulative_weights.shape
    uniform = torch.rand(
        (*members, n),
        generator=generator,
        dtype=cumulative_weights.dtype,
        device=generator.device,
    )
    points = cumulative_weights[..., -1:] * uniform
    return torch.searchsorted(cumulative_weights, points, right=True).clamp(max=n_rows - 1)


def tied_columns(rows: np.ndarray) -> np.ndarray:
    """Return the indices of the columns where too many rows share a value.

    Rows that are repeated as a whole are counted once: they say nothing about one column.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
    """
    if rows.shape[1] > 1:
        rows = np.unique(rows, axis=0)
    n_distinct = np.array([len(np.unique(column)) for column in rows.T])
    return np.flatnonzero(n_distinct < (1 - TIED_SHARE) * len(rows))


def dependent_columns(rows: Rows) -> tuple[np.ndarray, int]:
    """Return the targets that depend on other columns linearly, and how many follow from the rest.

    As many rows as columns, or fewer, lie in a plane anyway and say nothing of it.
    """
    n, n_columns = rows.values.shape
    if n <= n_columns or n_columns == 1:
        return np.array([], dtype=int), 0
    variances, directions = np.linalg.eigh(np.cov(rows.values.double().numpy().T))
    # Directions in the conditions alone concern no density.
    parts = directions[rows.n_conditions :, variances < DEPENDENT_VARIANCE]
    is_dependent = np.linalg.norm(parts, axis=1) > DEPENDENT_PART
    return np.flatnonzero(is_dependent), np.linalg.matrix_rank(parts, tol=DEPENDENT_PART)


def spread_ties(column: np.ndarray, random_state: np.random.RandomState) -> np.ndarray:
    """Spread each value that occurs more than once uniformly up to half-way to its neighbours.

    The likelihood of a flow can grow without bound at a repeated value. Spread out, a column
    on a grid has the density of one cell per grid point (dequantisation), and the width is
    never below 0.02 standard deviations, lest an atom in a continuous column be a spike.
    """
    values, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    gaps = np.diff(values)
    width = np.minimum(np.r_[np.inf, gaps], np.r_[gaps, np.inf])
    width = np.where(counts > 1, np.maximum(width, MINIMUM_WIDTH), 0.0)
    return column + width[inverse] * random_state.uniform(-0.5, 0.5, size=len(column))


def canonical_rows(
    rows: np.ndarray,
    weights: np.ndarray,
    constant: np.ndarray,
    tied: np.ndarray,
    random_state: np.random.RandomState,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return distinct rows in an order of their own, as they are and with ties spread.

    A fit on them depends neither on the order of the rows nor on whether a row occurs twice
    or has twice the weight.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Standardised rows.
    weights : ndarray of shape (n,)
        Positive weights.
    constant : ndarray of int
        Columns that become standard normal.
    tied : ndarray of int
        Columns whose ties are spread.
    random_state : RandomState

    Returns
    -------
    rows, spread : Tensor of shape (m, d)
        They differ in the columns ``tied``.
    weights : Tensor of shape (m,)
        Those of equal rows together; their sum is one.
    """
    # Rounding absorbs the rounding errors of other units or another order of the rows.
    rows = (np.round(rows / RESOLUTION) * RESOLUTION).astype(np.float32)
    order = np.lexsort([weights, *rows.T[::-1]])
    rows, weights = rows[order], weights[order]
    if len(tied_columns(rows)) < rows.shape[1]:
        # Where a column is continuous, equal rows are one row that is repeated, and spread as one.
        index, weights = _merge(rows, weights)
        rows = rows[index]
    for j in constant:
        rows[:, j] = random_state.standard_normal(len(rows))
    spread = rows.copy()
    for j in tied:
        spread[:, j] = spread_ties(rows[:, j], random_state)
    index, weights = _merge(spread, weights)
    return (
        torch.from_numpy(rows[index]),
        torch.from_numpy(spread[index]),
        torch.from_numpy(weights / weights.sum()),
    )


def _merge(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each distinct row, sorted, and the summed weights of equal ones."""
    _, index, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return index, np.bincount(inverse.ravel(), weights=weights)


def split_rows(
    rows: Rows, n_members: int, validation_fraction: float, random_state: np.random.RandomState
) -> Folds:
    """Shuffle the rows and let each member leave a fraction of them out, 1,000 rows at most.

    What the members leave out are windows of equal size, evenly spaced: no row is in two of
    them unless ``n_members * validation_fraction`` exceeds one.

    Raises
    ------
    ValueError
        If fewer than two rows are left to train on.
    """
    n = len(rows.values)
    n_held_out = min(math.ceil(validation_fraction * n), MAXIMUM_VALIDATION_ROWS)
    if n - n_held_out < 2:
        raise ValueError(
            f"X has {n} distinct rows of positive weight, of which validation_fraction="
            f"{validation_fraction} holds out {n_held_out}: at least 2 must be left to "
            "train on. Pass more rows or a smaller validation_fraction."
        )
    order = random_state.permutation(n)
    shuffled = [np.roll(order, -(k * n // n_members)) for k in range(n_members)]
    shuffled = torch.from_numpy(np.stack(shuffled))
    return Folds(rows, training=shuffled[:, n_held_out:], held_out=shuffled[:, :n_held_out])


def warn_degenerate(name, n_rows, rows, constant, tied, feature_names) -> None:
    """Warn of constant columns, of tied and of dependent columns, and of repeated rows.

    ``rows`` are what has become of ``n_rows``.
    """
    n_distinct = len(rows.values)
    messages = []
    if len(constant):
        messages.append(
            f"{column_labels(constant, feature_names)}: constant, modelled as a normal density "
            "with a standard deviation of one per cent of the value; better dropped"
        )
    if len(tied):
        messages.append(
            f"{column_labels(tied, feature_names)}: few distinct values, at which the density is "
            "as high as a model is narrow"
        )
    dependent, n_surplus = dependent_columns(rows)
    if len(dependent):
        messages.append(
            f"{column_labels(dependent, feature_names)}: linear functions of other columns, around "
            f"which the density is as high as a model is narrow; better drop {n_surplus} of them"
        )
    if n_distinct < n_rows:
        messages.append(
            f"all columns: {n_rows - n_distinct} of {n_rows} rows repeat another one and count "
            "as its weight"
        )
    if messages:
        sentences = ". ".join(message[0].upper() + message[1:] for message in messages)
        warnings.warn(
            f"{name} has no density as it stands. {sentences}.",
            DegenerateDataWarning,
            stacklevel=6,
        )
