"""The estimator of a conditional density, ``p(y | X)``, on the same problem and loop."""

__all__ = ["JeffreysConditionalDensity"]

import warnings
from numbers import Integral

import numpy as np
import torch
from scipy.optimize.elementwise import bracket_root, find_root
from sklearn.base import _fit_context
from sklearn.covariance import ShrunkCovariance
from sklearn.utils import check_consistent_length, gen_batches
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, check_is_fitted, check_scalar, validate_data

from ._estimator import (
    SCORING_BATCH_SIZE,
    JeffreysEstimator,
    has_proxy,
    main_log_density,
    proxy_log_density,
)
from ._validation import check_finite, check_numeric, check_range
from .exceptions import ExtrapolationWarning

#: Nodes, in each member, of the quadrature for the conditional mean.
PREDICTION_NODES = 64
#: Times the largest distance of training conditions from their mean, beyond which others are far.
FAR = 2
#: Share of the variance that is spread over all directions in this distance: where training
#: conditions are constant or dependent, a new one that is not counts as far.
SHRINKAGE = 0.01


class JeffreysConditionalDensity(JeffreysEstimator):
    r"""Density of targets given conditions, trained on the symmetric Jeffreys divergence.

    The problem, the models and the training are those of :class:`JeffreysDensity`, with
    conditional flows :math:`p_\theta(y \mid x)` and a conditional proxy
    :math:`q_\psi(y \mid x)`, whose normaliser is held at one in expectation over :math:`x`. Uses
    are regression with full uncertainty, and simulation-based inference: with parameters as
    ``y`` and simulations as ``X``, the density given an observation is the posterior.

    Columns are standardised inside and bent towards a normal distribution, and the density is
    that of ``y`` in its original units.

    Parameters
    ----------
    objective : {"jeffreys", "weighted", "likelihood"}, default="jeffreys"
        - ``"jeffreys"``: the constrained problem, with adaptive multipliers.
        - ``"weighted"``: the same three divergences with fixed ``weights``.
        - ``"likelihood"``: the flows alone, by maximum likelihood. There is then no proxy, no
          normaliser and no :meth:`proxy_score_samples`.

    proxy : {"flow", "energy"}, default="flow"
        What the network of the proxy tilts. ``"flow"``: the mean density of the members, for
        each member that of the others, which keeps the normaliser known in any dimension.
        ``"energy"``: a standard normal density (of the columns inside), the independent
        energy of [1]_: smoother, for few rows of a simple shape; where the shape is not simple
        it knows less than the flow.

    weights : tuple of three floats, default=(1.0, 1.0, 1.0)
        Weights of the forward and the reverse divergence and of the fidelity of the proxy,
        when ``objective="weighted"``.

    bounds : tuple (low, high), default=None
        Bounds of the targets: two numbers, or two arrays of one number per target; infinite
        where a column has none. The density is zero outside, also on a single bound, and integrates
        to one inside. None sets no bounds.

    n_estimators : int, default=5
        Members of the ensemble, trained together; the density is a mean over them. Each
        leaves out other rows and learns from the others, through the proxy, what these tell.

    hidden_layer_sizes : tuple of int, default=(32, 32)
        Hidden layers of every network: one in each coupling of the flow, one in the proxy.

    n_transforms : int or "auto", default="auto"
        Coupling transforms of the flow. ``"auto"`` is 4, and 8 from 5,000 rows.

    n_bins : int, default=8
        Bins of each spline of the flow. More resolve sharper structure, and overfit sooner.

    learning_rate_init : float, default=0.015
        Largest step of the Adam optimiser: it rises for 30 steps and then falls, to zero after
        ``max_iter`` steps.

    batch_size : int or "auto", default="auto"
        Rows of each member in a step. ``"auto"`` is 64, 128 from 1,000 rows and 256 from
        5,000.

    max_iter : int or "auto", default="auto"
        Optimiser steps (not epochs) at most. ``"auto"`` is 13 times the number of
        rows to the power 2/3, at least 650 and at most 8,000. More suit sharp structure, and take
        longer.

    early_stopping : bool, default=True
        Whether to shorten training when the estimated log-likelihood of the ensemble on new rows
        no longer improves, and to keep its best iterate. The estimate is the mean log-likelihood
        of the rows that each member leaves out, and the ambiguity [2]_ of the members on samples.
        Otherwise training goes on for ``max_iter`` steps and the last iterate is kept.

    validation_fraction : float, default=0.2
        Share of the distinct rows that each member leaves out of its training, 1,000 rows at
        most. With ``n_estimators * validation_fraction`` up to 1, no row is left out twice.

    n_iter_no_change : int, default=3
        Evaluations without an improvement of more than ``tol`` after which early stopping
        leaves a quarter of the remaining steps, at a quarter of the learning rate; if there was
        no improvement since it last did, it ends training. Evaluations of flows that do not
        overfit, no further on their training rows than on others, begin the count anew. With
        ``objective="jeffreys"`` the first time is also where overfitting has cost 20 nats of the
        log-likelihood of all rows that the members leave out. Training is evaluated every 25
        steps; every hundredth part of ``max_iter`` where that is more.

    tol : float, default=2.0
        Smallest improvement that counts, in nats, of the log-likelihood of all rows that the
        members leave out: of its sum, so that more rows tell smaller differences apart.

    warm_start : bool, default=False
        Whether another :meth:`fit` goes on from the fitted models, multipliers and scaling
        instead of starting anew.

    n_jobs : int, default=None
        Gaussian mixtures fitted at a time, each in a process of its own. None is one, unless in
        a :func:`joblib.parallel_config` context, and -1 all processors. A fit is the same
        whatever this is. Mixtures take little of its time; the flows are trained in one thread.

    device : str, default="auto"
        Device of torch to train and score on, such as ``"cpu"`` or ``"cuda"``; ``"auto"`` is
        the accelerator torch sees where there are 5,000 rows or more to fit or to score, else the
        CPU, which is faster for fewer. Results are always NumPy arrays.

    verbose : bool, default=False
        Whether to show a progress bar.

    random_state : int, RandomState instance or None, default=None
        Seeds the initial weights, the validation split, the batches and the samples. With
        None each fit differs; NumPy's global generator is never used.

    Attributes
    ----------
    normalizer_ : float
        Normaliser of the proxy by importance sampling, on samples of the fitted flow that
        nothing was trained on; NaN if it could not be measured. Not with
        ``objective="likelihood"``, like the next two.

    normalizer_std_error_ : float
        Standard error of ``normalizer_``.

    normalizer_ess_ : float
        Effective sample size behind ``normalizer_``, as a fraction of the samples in (0, 1].

    flow_weight_ : float
        Weight of the flows in the density, in [0, 1]; that of the Gaussian mixtures is the rest.

    entropy_ : float
        Entropy of the data, in nats of the original units, from which the forward divergence
        and the fidelity are counted: a quarter nat per column below the best negative
        log-likelihood of the rows that the members leave out.

    history_ : DataFrame
        One row per evaluation: ``iteration``; ``forward``, ``reverse`` and ``fidelity``
        divergence and ``normalizer``, means since the last evaluation; the multipliers
        ``lambda_1``, ``lambda_2``, ``lambda_3`` and ``mu``; ``training_log_likelihood`` of the
        batches and ``validation_log_likelihood``, in nats of the original units; and the
        ``ambiguity``, by which the ensemble is estimated to be ahead of a member on new rows.

    n_iter_ : int
        Optimiser steps done.

    n_features_in_ : int
        Number of columns seen during :meth:`fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if ``X`` had names that are all strings.

    n_targets_ : int
        Number of columns of ``y``.

    See Also
    --------
    JeffreysDensity : Density of rows without conditions.

    Notes
    -----
    A target that takes few distinct values has no density: there is a
    :class:`~skjeffreys.DegenerateDataWarning`. Flows are trained on its values spread uniformly
    over their cell, and mixtures are fitted to the values: their components are no narrower than
    a thousandth of a standard deviation of the columns that they are fitted to, which may be
    bent towards a normal distribution, and that bounds the density there. Conditions may take few.

    References
    ----------
    .. [1] O. Ben-Dov and L. F. O. Chamon, "Adaptive Symmetrization of the KL Divergence",
       2025. https://arxiv.org/abs/2511.11159
    .. [2] A. Krogh and J. Vedelsby, "Neural Network Ensembles, Cross Validation, and Active
       Learning", NIPS 1994.

    Examples
    --------
    >>> import numpy as np
    >>> from skjeffreys import JeffreysConditionalDensity
    >>> rng = np.random.RandomState(0)
    >>> X = rng.uniform(size=(300, 1))
    >>> y = np.sin(6 * X[:, 0]) + 0.2 * rng.standard_normal(300)
    >>> density = JeffreysConditionalDensity(max_iter=200, random_state=0).fit(X, y)
    >>> density.score_samples(X[:3], y[:3]).shape
    (3,)
    >>> density.sample(X[:3], n_samples=5).shape
    (3, 5, 1)
    >>> density.predict_quantile(X[:3], [0.05, 0.95]).shape
    (3, 2)
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Learn the density of the rows of ``y`` given those of ``X``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Conditions, without missing values.

        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets, without missing values and inside ``bounds``.

        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows in the data terms of the objective. Only their
            ratios matter. Rows of weight zero are left out.

        Returns
        -------
        self : JeffreysConditionalDensity

        Raises
        ------
        ValueError
            If ``X`` or ``y`` has NaN, infinite or non-numeric values, too few rows or another
            number of rows than the other, or ``y`` values outside ``bounds``.
        FloatingPointError
            If the loss stays non-finite although training is taken back and slowed down.

        Warns
        -----
        DegenerateDataWarning
            If targets are constant, take few values or are linear functions of other columns, or
            rows are repeated.
        NormalizerWarning
            If the normaliser of the proxy cannot be measured.
        """
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None. For a "
                "density of X alone use JeffreysDensity."
            )
        names = getattr(y, "columns", None)
        X = self._validate_conditions(X, reset=not self._is_warm())
        y = self._validate_targets(X, y)
        targets = y.reshape(len(y), -1)
        self._fit(X, targets, sample_weight, "y", names)
        self.n_targets_, self._targets_ndim = targets.shape[1], y.ndim
        # What far means for the conditions of later calls.
        conditions = self._coordinates.transform_conditions(X)
        self._contexts = ShrunkCovariance(shrinkage=SHRINKAGE).fit(conditions)
        self._largest_distance = self._contexts.mahalanobis(conditions).max()
        return self

    def score_samples(self, X, y):
        """Log-density of each row of ``y`` given the same row of ``X``.

        Computed in double precision, a batch of rows at a time.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        y : array-like of shape (n_samples,) or (n_samples, n_targets)

        Returns
        -------
        log_density : ndarray of shape (n_samples,), float64
            ``log p_theta(y | x)``, in nats of the original units of ``y``: for fixed ``x`` its
            exponential integrates to one. Minus infinity outside the bounds.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        ValueError
            If ``X`` or ``y`` has other columns than in training, or NaN, infinite or
            non-numeric values, or if their lengths differ.

        Warns
        -----
        ExtrapolationWarning
            If rows of ``X`` are far from all that the estimator was trained on.
        """
        return self._evaluate(X, y, main_log_density)

    def score(self, X, y):
        """Mean log-density of the rows of ``y`` given those of ``X``, in nats; greater is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        y : array-like of shape (n_samples,) or (n_samples, n_targets)

        Returns
        -------
        score : float

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`score_samples`.

        Warns
        -----
        ExtrapolationWarning
            As :meth:`score_samples`.
        """
        return float(np.mean(self._evaluate(X, y, main_log_density)))

    @available_if(has_proxy)
    def proxy_score_samples(self, X, y):
        """Logarithm of the quasi-normalised density of the proxy at ``y`` given ``X``.

        In the mean over ``x`` it integrates to ``normalizer_``; for each ``x`` to
        :meth:`conditional_normalizer`. Not with ``objective="likelihood"``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        y : array-like of shape (n_samples,) or (n_samples, n_targets)

        Returns
        -------
        log_density : ndarray of shape (n_samples,), float64
            In nats of the original units of ``y``.

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`score_samples`.

        Warns
        -----
        ExtrapolationWarning
            As :meth:`score_samples`.
        """
        return self._evaluate(X, y, proxy_log_density)

    def sample(self, X, n_samples=1, random_state=None):
        """Draw targets given each row of ``X``.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)

        n_samples : int, default=1
            Number of draws for each row.

        random_state : int, RandomState instance or None, default=None
            None uses the ``random_state`` of the estimator: with an int there, each call
            returns the same targets.

        Returns
        -------
        y : ndarray of shape (n_rows, n_samples, n_targets), float64
            In the original units, inside the bounds.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        ValueError
            If ``n_samples`` is less than one, or ``X`` is not as :meth:`score_samples` needs it.

        Warns
        -----
        ExtrapolationWarning
            As :meth:`score_samples`.
        """
        X = self._validate_call(X, n_samples)
        rows = self._sample_rows(np.repeat(X, n_samples, axis=0), random_state)
        return self._coordinates.inverse_transform(rows).reshape(len(X), n_samples, -1)

    def predict(self, X):
        """Conditional mean of the targets given each row of ``X``.

        An integral over the bases of the flows and over the mixtures, by randomised quasi-Monte
        Carlo with 64 nodes in each of a member, the same for all rows and calls. Its error is
        about 1% of the standard deviation of the target.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)

        Returns
        -------
        mean : ndarray of shape (n_rows,) or (n_rows, n_targets), float64
            Of as many dimensions as ``y`` had in :meth:`fit`.

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`sample`.

        Warns
        -----
        ExtrapolationWarning
            As :meth:`score_samples`.
        """
        X = self._validate_call(X)
        conditions = torch.from_numpy(self._coordinates.transform_conditions(X))
        density = self._models["density"]
        mean = sum(
            weight * self._mean_of(part, conditions)
            for weight, part in zip(density.weights.tolist(), density.parts, strict=True)
        )
        return mean[:, 0] if self._targets_ndim == 1 else mean

    def predict_quantile(self, X, q):
        r"""Conditional quantiles of a single target: where its distribution function has a level.

        .. math:: F(y \mid x) = \tfrac1M \sum_k \big( w F_k(T_k(y; x)) + (1 - w) G_k(y \mid x)
            \big),

        with :math:`T_k` the flow of a member, increasing in :math:`y`, :math:`F_k` the
        distribution function of its base, :math:`G_k` that of its mixtures and :math:`w` the
        ``flow_weight_``.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)

        q : float or array-like of shape (n_quantiles,)
            Levels, between zero and one.

        Returns
        -------
        quantiles : ndarray of shape (n_rows,) or (n_rows, n_quantiles), float64
            In the original units.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        ValueError
            If there are several targets, a level is not between zero and one or too close to
            them for double precision, or ``X`` is not as :meth:`score_samples` needs it.

        Warns
        -----
        ExtrapolationWarning
            As :meth:`score_samples`.
        """
        X = self._validate_call(X)
        if self.n_targets_ > 1:
            raise ValueError(
                "predict_quantile needs a single target; this estimator was fitted to "
                f"{self.n_targets_}. Take quantiles of the columns of sample(X, n_samples)."
            )
        levels = np.atleast_1d(np.asarray(q, dtype=np.float64))
        if levels.ndim > 1 or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"q={q!r} must be one level or a list of levels between 0 and 1.")
        shape = (len(X), len(levels))
        X = np.repeat(X, len(levels), axis=0)
        quantiles = self._quantiles(X, np.tile(levels, shape[0])).reshape(shape)
        return quantiles[:, 0] if np.ndim(q) == 0 else quantiles

    @available_if(has_proxy)
    def conditional_normalizer(self, X, n_samples=1000, random_state=None):
        """Normaliser of the proxy given each row of ``X``, by importance sampling.

        Training holds its mean over ``x``, ``normalizer_``, at one; where it is far from one
        for some ``x``, the proxy and the flow disagree there on how probable ``x`` is. The
        samples are those of the density, :meth:`sample`.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)

        n_samples : int, default=1000
            Samples for each row.

        random_state : int, RandomState instance or None, default=None
            As in :meth:`sample`.

        Returns
        -------
        normalizer : ndarray of shape (n_rows,), float64

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`sample`.

        Warns
        -----
        ExtrapolationWarning
            As :meth:`score_samples`.
        """
        X = self._validate_call(X, n_samples)
        rows = self._sample_rows(np.repeat(X, n_samples, axis=0), random_state)
        log_weights = self._in_batches(rows, _log_proxy_to_density)
        return np.exp(log_weights).reshape(len(X), n_samples).mean(axis=1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags

    def _mean_of(self, flow, conditions):
        """Mean, given each row, of the targets that flows make of nodes of their base."""
        nodes = flow.base.quadrature(PREDICTION_NODES)
        means = []
        for batch in gen_batches(len(conditions), SCORING_BATCH_SIZE // PREDICTION_NODES):
            given = conditions[batch]
            shape = (flow.n_members, len(given), PREDICTION_NODES, -1)
            rows = [given[:, None].expand(shape), nodes[:, None].expand(shape)]
            rows = flow.transform.inv(torch.cat(rows, dim=-1).flatten(1, 2))
            targets = self._coordinates.inverse_transform(rows.flatten(0, 1).numpy())
            means.append(targets.reshape(shape).mean(axis=(0, 2)))
        return np.concatenate(means)

    def _validate_call(self, X, n_samples=1):
        check_is_fitted(self)
        check_scalar(n_samples, "n_samples", Integral, min_val=1)
        return self._validate_conditions(X, reset=False)

    def _validate_conditions(self, X, *, reset):
        check_numeric(X)
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype=np.float64,
            ensure_all_finite=False,
            ensure_min_samples=2 if reset else 1,
        )
        names = getattr(self, "feature_names_in_", None)
        check_finite(X, "X", names)
        if reset:
            check_range(X, "X", names)
        else:
            self._warn_of_extrapolation(X)
        return X

    def _validate_targets(self, X, y):
        check_numeric(y, "y")
        names = getattr(y, "columns", None)
        y = check_array(
            y, dtype=np.float64, ensure_2d=False, ensure_all_finite=False, input_name="y"
        )
        check_consistent_length(X, y)
        check_finite(y.reshape(len(y), -1), "y", names)
        return y

    def _evaluate(self, X, y, log_density):
        check_is_fitted(self)
        X = self._validate_conditions(X, reset=False)
        y = self._validate_targets(X, y).reshape(len(X), -1)
        if y.shape[1] != self.n_targets_:
            raise ValueError(
                f"y has {y.shape[1]} columns, but {type(self).__name__} was fitted to "
                f"{self.n_targets_}. Pass the same targets as in fit."
            )
        return self._log_density(X, y, log_density)

    def _quantiles(self, X, levels):
        """Solve for where the distribution function has a level, for each row of conditions."""
        conditions = self._coordinates.transform_conditions(X)

        def excess(z, level, index):
            rows = np.column_stack([conditions[index], z])
            return self._in_batches(rows, _distribution_function) - level

        arguments = (levels, np.arange(len(X)))
        found = bracket_root(excess, -np.ones(len(X)), np.ones(len(X)), args=arguments)
        if not found.success.all():
            raise ValueError(
                f"The distribution function does not reach the level {levels[~found.success][0]!r} "
                "of q in double precision. Use levels further from 0 and 1."
            )
        solution = find_root(excess, found.bracket, args=arguments).x
        return self._coordinates.inverse_transform(np.column_stack([conditions, solution]))[:, 0]

    def _warn_of_extrapolation(self, X):
        distance = self._contexts.mahalanobis(self._coordinates.transform_conditions(X))
        far = np.flatnonzero(distance > FAR**2 * self._largest_distance)
        if len(far):
            warnings.warn(
                f"{len(far)} of {len(X)} rows of X, row {far[0]} first, are more than {FAR} times "
                "as far (in Mahalanobis distance) from the mean of the training rows as any of "
                "these: what the estimator says there is extrapolated.",
                ExtrapolationWarning,
                stacklevel=5,
            )


def _log_proxy_to_density(models, rows):
    log_p = models["flow"].log_prob(rows)
    proxy, density = models["proxy"], models["density"]
    return proxy.log_density(rows, log_p) - density.log_density(rows, log_p)


def _distribution_function(models, rows):
    return models["density"].distribution_function(rows)
