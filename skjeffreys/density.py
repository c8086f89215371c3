"""The estimator of a density: a table of numbers, by adaptive Jeffreys divergence."""

__all__ = ["JeffreysDensity"]

from numbers import Integral

import numpy as np
from sklearn.base import DensityMixin, _fit_context
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, check_scalar, validate_data

from ._estimator import JeffreysEstimator, has_proxy, main_log_density, proxy_log_density
from ._validation import check_finite, check_numeric


class JeffreysDensity(DensityMixin, JeffreysEstimator):
    r"""Density of a table of numbers, trained on the symmetric Jeffreys divergence.

    A normalising flow :math:`p_\theta` (the main model: exact density and samples) and an
    energy-based model :math:`q_\psi` (the proxy, which stands in for the unknown data density
    :math:`\pi`) are trained together. The forward divergence
    :math:`\mathrm{KL}(\pi \| p_\theta)`, the reverse one
    :math:`\mathrm{KL}(p_\theta \| q_\psi)` and the fidelity of the proxy
    :math:`\mathrm{KL}(\pi \| q_\psi)` are constraints whose multipliers adapt during training,
    and so is the normaliser :math:`Z_\psi = 1` of the proxy [1]_.

    There are several flows, the members of an ensemble. Each leaves out other rows, and its
    proxy is the mean of the other members, tilted by the energy-based model: what it alone learns
    from its rows, mostly by chance, the others keep it from. The density is their mean beside
    mixtures of Student's t densities of the same rows, weighted by the rows left out (stacking).

    Columns are standardised inside and bent towards a normal distribution [2]_, and densities
    are those of the original units: do not put a scaler or a logarithm in front, whose Jacobian a
    pipeline would lose.

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
        Bounds of the columns: two numbers, or two arrays of one number per column; infinite
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
        of the rows that each member leaves out, and the ambiguity [3]_ of the members on samples.
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
        Mixtures fitted at a time, each in a process of its own. None is one, unless in
        a :func:`joblib.parallel_config` context, and -1 all processors. A fit is the same
        whatever this is. With 2,000 rows mixtures take about half of its time; the flows are
        trained in one thread.

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
        Weight of the flows in the density, in [0, 1]; that of the mixtures is the rest.

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

    See Also
    --------
    sklearn.neighbors.KernelDensity : Kernel density estimate, with a bandwidth to tune.
    sklearn.mixture.GaussianMixture : Gaussian mixture, with a number of components to tune.

    Notes
    -----
    Rows are put in an order of their own and equal ones merged: neither the order of the rows
    nor the units of the columns change a fit, and a row of weight two counts like two rows. A
    column that takes few distinct values has no density: there is a
    :class:`~skjeffreys.DegenerateDataWarning`. Flows are trained on its values spread uniformly
    over their cell, and mixtures are fitted to the values: their components are no narrower than
    a thousandth of a standard deviation of the columns that they are fitted to, which may be
    bent towards a normal distribution, and that bounds the density there.

    References
    ----------
    .. [1] O. Ben-Dov and L. F. O. Chamon, "Adaptive Symmetrization of the KL Divergence",
       2025. https://arxiv.org/abs/2511.11159
    .. [2] I.-K. Yeo and R. A. Johnson, "A New Family of Power Transformations to Improve
       Normality or Symmetry", Biometrika 87, 2000. https://doi.org/10.1093/biomet/87.4.954
    .. [3] A. Krogh and J. Vedelsby, "Neural Network Ensembles, Cross Validation, and Active
       Learning", NIPS 1994.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from skjeffreys import JeffreysDensity
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> density = JeffreysDensity(max_iter=200, random_state=0).fit(X)
    >>> density.score_samples(X[:3]).shape
    (3,)
    >>> density.sample(5).shape
    (5, 2)
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, sample_weight=None):
        """Learn the density of the rows of ``X``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, without missing values.

        y : None
            Ignored; there for the scikit-learn interface.

        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows in the data terms of the objective. Only their
            ratios matter. Rows of weight zero are left out.

        Returns
        -------
        self : JeffreysDensity

        Raises
        ------
        ValueError
            If ``X`` has NaN, infinite or non-numeric values, or too few rows.
        FloatingPointError
            If the loss stays non-finite although training is taken back and slowed down.

        Warns
        -----
        DegenerateDataWarning
            If columns are constant, take few values or are linear functions of others, or rows
            are repeated.
        NormalizerWarning
            If the normaliser of the proxy cannot be measured.
        """
        X = self._validate_rows(X, reset=not self._is_warm())
        names = getattr(self, "feature_names_in_", None)
        return self._fit(np.empty((len(X), 0)), X, sample_weight, "X", names)

    def score_samples(self, X):
        """Log-density of each row of ``X``.

        Computed in double precision, a batch of rows at a time.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        log_density : ndarray of shape (n_samples,), float64
            ``log p_theta``, in nats of the original units: its exponential integrates to one.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        ValueError
            If ``X`` has other columns than the training rows, or NaN, infinite or non-numeric
            values.
        """
        return self._evaluate(X, main_log_density)

    def score(self, X, y=None):
        """Mean log-density of the rows of ``X``, in nats; greater is better.

        A mean, unlike the sum of KernelDensity: it compares across folds of unequal size.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        y : None
            Ignored.

        Returns
        -------
        score : float

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`score_samples`.
        """
        return float(np.mean(self.score_samples(X)))

    @available_if(has_proxy)
    def proxy_score_samples(self, X):
        """Logarithm of the quasi-normalised density of the proxy at each row of ``X``.

        It integrates to ``normalizer_``. Not with ``objective="likelihood"``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        log_density : ndarray of shape (n_samples,), float64
            In nats of the original units.

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`score_samples`.
        """
        return self._evaluate(X, proxy_log_density)

    def sample(self, n_samples=1, random_state=None):
        """Draw rows from the density.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.

        random_state : int, RandomState instance or None, default=None
            None uses the ``random_state`` of the estimator: with an int there, each call
            returns the same rows.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), float64
            In the original units.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        ValueError
            If ``n_samples`` is less than one.
        """
        check_is_fitted(self)
        check_scalar(n_samples, "n_samples", Integral, min_val=1)
        rows = self._sample_rows(np.empty((n_samples, 0)), random_state)
        return self._coordinates.inverse_transform(rows)

    def _validate_rows(self, X, *, reset):
        check_numeric(X)
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype=np.float64,
            ensure_all_finite=False,
            ensure_min_samples=2 if reset else 1,
        )
        check_finite(X, "X", getattr(self, "feature_names_in_", None))
        return X

    def _evaluate(self, X, log_density):
        check_is_fitted(self)
        X = self._validate_rows(X, reset=False)
        return self._log_density(np.empty((len(X), 0)), X, log_density)
