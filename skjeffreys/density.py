"""The estimator: density of a table of numbers, by adaptive Jeffreys divergence."""

__all__ = ["JeffreysDensity"]

import copy
import math
import warnings
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, DensityMixin, _fit_context
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    check_scalar,
    validate_data,
)
from torch import nn

from ._base import GaussianMixtures, fit_bases, standard_normal
from ._energy import EnsembleReference, FixedReference, Proxy, Tilt, mixture_log_density
from ._flow import CouplingFlows
from ._normalizer import measure_normalizer
from ._problem import AdaptiveMultipliers, FixedMultipliers
from ._rows import canonical_rows, split_rows, tied_columns, warn_degenerate
from ._scaling import Scaling
from ._torch import resolve_device, seeded_initialization, training_context
from ._training import EarlyStopping, Trainer, train
from ._validation import (
    check_finite,
    check_layer_sizes,
    check_numeric,
    check_range,
    check_some_weight,
    check_weights,
    private_random_state,
)
from .exceptions import NormalizerWarning

#: Fresh samples that measure the normaliser.
NORMALIZER_SAMPLES = 10_000
#: Largest tilt of the reference of the proxy, in nats. Around the flow, such that the effective
#: sample size of the normaliser is at least 0.1; around a normal density, hardly a bound.
TILT_BOUNDS = {"flow": 1.8, "energy": 50.0}
#: Parameters that fitted models depend on.
ARCHITECTURE = (
    "objective", "proxy", "n_estimators", "hidden_layer_sizes", "n_transforms", "n_bins"
)  # fmt: skip
#: Rows scored at once: memory is in proportion to it.
SCORING_BATCH_SIZE = 1024


def _has_proxy(estimator):
    return estimator.objective != "likelihood"


class JeffreysDensity(DensityMixin, BaseEstimator):
    r"""Density of a table of numbers, trained on the symmetric Jeffreys divergence.

    A normalising flow :math:`p_\theta` (the main model: exact density and samples) and an
    energy-based model :math:`q_\psi` (the proxy, which stands in for the unknown data density
    :math:`\pi`) are trained together. The forward divergence
    :math:`\mathrm{KL}(\pi \| p_\theta)`, the reverse one
    :math:`\mathrm{KL}(p_\theta \| q_\psi)` and the fidelity of the proxy
    :math:`\mathrm{KL}(\pi \| q_\psi)` are constraints whose multipliers adapt during training,
    and so is the normaliser :math:`Z_\psi = 1` of the proxy [1]_.

    The density is the mean of several flows, the members of an ensemble. Each leaves out other
    rows, and its proxy is the mean of the other members, tilted by the energy-based model: what
    it gets wrong on rows that it has not seen, those who have seen them tell it.

    Columns are standardised inside and densities are those of the original units: do not
    put a scaler in front, whose Jacobian a pipeline would lose.

    Parameters
    ----------
    objective : {"jeffreys", "weighted", "likelihood"}, default="jeffreys"
        - ``"jeffreys"``: the constrained problem, with adaptive multipliers.
        - ``"weighted"``: the same three divergences with fixed ``weights``.
        - ``"likelihood"``: the flow alone, by maximum likelihood. There is then no proxy, no
          normaliser and no :meth:`proxy_score_samples`.

    proxy : {"flow", "energy"}, default="flow"
        What the network of the proxy tilts. ``"flow"``: the mean density of the members, for
        each member that of the others, which keeps the normaliser known in any dimension.
        ``"energy"``: a standard normal density (of the standardised columns), the independent
        energy of [1]_: smoother, for few rows of a simple shape; where the shape is not simple
        it knows less than the flow.

    weights : tuple of three floats, default=(1.0, 1.0, 1.0)
        Weights of the forward and the reverse divergence and of the fidelity of the proxy,
        when ``objective="weighted"``.

    n_estimators : int, default=5
        Members of the ensemble, trained together; the density is the mean of theirs. Each
        leaves out other rows and learns from the others, through the proxy, what these tell.

    hidden_layer_sizes : tuple of int, default=(64, 64)
        Hidden layers of every network: one in each coupling of the flow, one in the proxy.

    n_transforms : int, default=4
        Coupling transforms of the flow.

    n_bins : int, default=8
        Bins of each spline of the flow. More resolve sharper structure, and overfit sooner.

    learning_rate_init : float, default=0.01
        Step of the Adam optimiser, reached after 30 steps and kept until the last 150, over
        which it falls to zero.

    batch_size : int or "auto", default="auto"
        Rows of each member in a step. ``"auto"`` is 64, 128 from 1,000 rows and 256 from
        5,000.

    max_iter : int, default=4000
        Optimiser steps (not epochs) at most.

    early_stopping : bool, default=True
        Whether to stop when the log-likelihood of the rows that the members leave out no
        longer improves, after 150 more steps in which the learning rate falls to zero, and to
        keep the best iterate of each member. Otherwise training goes on for ``max_iter`` steps
        and the last iterate is kept.

    validation_fraction : float, default=0.2
        Share of the distinct rows that each member leaves out of its training, 1,000 rows at
        most. With ``n_estimators * validation_fraction`` up to 1, no row is left out twice.

    n_iter_no_change : int, default=5
        Evaluations (one every 25 steps) without an improvement of more than ``tol`` after
        which early stopping sets in.

    tol : float, default=1e-3
        Smallest improvement of the validation log-likelihood that counts, in nats.

    warm_start : bool, default=False
        Whether another :meth:`fit` goes on from the fitted models, multipliers and scaling
        instead of starting anew.

    device : str, default="auto"
        Device of torch to train and score on, such as ``"cpu"`` or ``"cuda"``; ``"auto"`` is
        the accelerator torch sees, else the CPU. Results are always NumPy arrays.

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

    entropy_ : float
        Entropy of the data, in nats of the original units, from which the forward divergence
        and the fidelity are counted: a quarter nat per column below the best negative
        log-likelihood of the rows that the members leave out.

    history_ : DataFrame
        One row per evaluation: ``iteration``; ``forward``, ``reverse`` and ``fidelity``
        divergence and ``normalizer``, means since the last evaluation; the multipliers
        ``lambda_1``, ``lambda_2``, ``lambda_3`` and ``mu``; ``training_log_likelihood`` of the
        batches and ``validation_log_likelihood``, in nats of the original units.

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
    column that takes few distinct values has no density; its values are spread uniformly over
    their cell, with a :class:`~skjeffreys.DegenerateDataWarning`.

    References
    ----------
    .. [1] O. Ben-Dov and L. F. O. Chamon, "Adaptive Symmetrization of the KL Divergence",
       2025. https://arxiv.org/abs/2511.11159

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

    _parameter_constraints: dict = {
        "objective": [StrOptions({"jeffreys", "weighted", "likelihood"})],
        "proxy": [StrOptions({"flow", "energy"})],
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "weights": ["array-like"],
        "hidden_layer_sizes": ["array-like"],
        "n_transforms": [Interval(Integral, 1, None, closed="left")],
        "n_bins": [Interval(Integral, 2, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 2, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "device": [str],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        objective="jeffreys",
        proxy="flow",
        weights=(1.0, 1.0, 1.0),
        n_estimators=5,
        hidden_layer_sizes=(64, 64),
        n_transforms=4,
        n_bins=8,
        learning_rate_init=0.01,
        batch_size="auto",
        max_iter=4000,
        early_stopping=True,
        validation_fraction=0.2,
        n_iter_no_change=5,
        tol=1e-3,
        warm_start=False,
        device="auto",
        verbose=False,
        random_state=None,
    ):
        self.objective = objective
        self.proxy = proxy
        self.weights = weights
        self.n_estimators = n_estimators
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_transforms = n_transforms
        self.n_bins = n_bins
        self.learning_rate_init = learning_rate_init
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

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
            If columns are constant or take few values, or rows are repeated.
        NormalizerWarning
            If the normaliser of the proxy cannot be measured.
        """
        warm = self.warm_start and hasattr(self, "_models")
        check_weights(self.weights)
        check_layer_sizes(self.hidden_layer_sizes)
        X = self._validate_rows(X, reset=not warm)
        sample_weight = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        check_some_weight(sample_weight)
        X, sample_weight = X[sample_weight > 0], sample_weight[sample_weight > 0]
        check_range(X, getattr(self, "feature_names_in_", None))
        if not warm:
            vars(self).pop("_models", None)  # Should this fit fail, nothing is fitted.
            self._scaling = Scaling().fit(X, sample_weight=sample_weight)
        with training_context():
            self._fit_models(X, sample_weight, warm)
        return self

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
        return self._evaluate(X, lambda models, z: mixture_log_density(models["flow"].log_prob(z)))

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

    @available_if(_has_proxy)
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
        return self._evaluate(
            X, lambda models, z: models["proxy"].log_density(z, models["flow"].log_prob(z))
        )

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
        random_state = private_random_state(
            self.random_state if random_state is None else random_state
        )
        flow = self._models["flow"]
        counts = random_state.multinomial(n_samples, np.full(flow.n_members, 1 / flow.n_members))
        generator = torch.Generator().manual_seed(random_state.randint(np.iinfo(np.int32).max))
        # Each member draws as many rows as the one that needs most, and gives some of them.
        batches = [
            flow.sample(batch.stop - batch.start, generator)
            for batch in gen_batches(int(counts.max()), SCORING_BATCH_SIZE)
        ]
        members = torch.cat(batches, dim=1).numpy()
        rows = np.concatenate([rows[:n] for rows, n in zip(members, counts, strict=True)])
        return self._scaling.inverse_transform(random_state.permutation(rows))

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_models")

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
        check_finite(X, getattr(self, "feature_names_in_", None))
        return X

    def _training_rows(self, X, sample_weight, random_state):
        """Standardise and merge the rows; warn of what has no density."""
        constant = self._scaling.constant_columns_
        tied = np.setdiff1d(tied_columns(X), constant)
        rows = canonical_rows(
            self._scaling.transform(X), sample_weight, constant, tied, random_state
        )
        names = getattr(self, "feature_names_in_", None)
        warn_degenerate(len(X), len(rows.values), constant, tied, names)
        return rows

    def _fit_models(self, X, sample_weight, warm):
        random_state = private_random_state(self.random_state)
        seeds = random_state.randint(np.iinfo(np.int32).max, size=4).tolist()
        rows_seed, models_seed, training_seed, normalizer_seed = seeds
        random_state = np.random.RandomState(rows_seed)
        rows = self._training_rows(X, sample_weight, random_state)
        folds = split_rows(rows, self.n_estimators, self.validation_fraction, random_state)
        models = self._fitted_models() if warm else self._new_models(folds, models_seed)
        trainer, history = self._train(models, folds, training_seed)
        self._fitted_architecture = self._architecture()
        self._models = models.cpu().double().requires_grad_(False)
        self._record(history, trainer.entropy, warm)
        if self.objective != "likelihood":
            self._measure_normalizer(normalizer_seed)

    def _new_models(self, folds, seed):
        """Build the models a fit returns: the slow flows and, where there is one, the proxy."""
        hidden_layer_sizes = tuple(self.hidden_layer_sizes)
        d = self.n_features_in_
        base = fit_bases(folds, seed)
        with seeded_initialization(seed):
            flow = CouplingFlows(
                base,
                hidden_layer_sizes=hidden_layer_sizes,
                n_transforms=self.n_transforms,
                n_bins=self.n_bins,
            )
            models = nn.ModuleDict({"flow": flow})
            if self.objective != "likelihood":
                if self.proxy == "flow":
                    reference = EnsembleReference()
                else:
                    reference = FixedReference(GaussianMixtures([standard_normal(d)]))
                tilt = Tilt(d, hidden_layer_sizes, TILT_BOUNDS[self.proxy])
                models["proxy"] = Proxy(reference, tilt)
        return models

    def _architecture(self):
        sizes = {"hidden_layer_sizes": tuple(self.hidden_layer_sizes)}
        return {name: getattr(self, name) for name in ARCHITECTURE} | sizes

    def _fitted_models(self):
        """Return copies of the fitted models, for a warm start."""
        if self._architecture() != self._fitted_architecture:
            raise ValueError(
                f"With warm_start=True the parameters {', '.join(ARCHITECTURE)} must stay as in "
                "the previous fit. Put them back, or set warm_start=False."
            )
        return copy.deepcopy(self._models).float().requires_grad_(True)

    def _record(self, history, entropy, warm):
        """Keep the history in original units, after that of earlier fits where ``warm``."""
        shift = self._scaling.log_abs_det_jacobian_
        history["training_log_likelihood"] += shift
        history["validation_log_likelihood"] += shift
        if warm:
            history["iteration"] += self.n_iter_
            history = pd.concat([self.history_, history], ignore_index=True)
        self.history_ = history
        self.n_iter_ = int(history["iteration"].iloc[-1])
        self.entropy_ = entropy - shift
        for name in ("normalizer_", "normalizer_std_error_", "normalizer_ess_"):
            vars(self).pop(name, None)  # An earlier fit may have had a proxy.

    def _train(self, models, folds, seed):
        early_stopping = None
        if self.early_stopping:
            early_stopping = EarlyStopping(self.n_iter_no_change, self.tol)
        device = resolve_device(self.device)
        if self.objective == "jeffreys":
            multipliers = AdaptiveMultipliers(folds.training.shape[1], device)
        else:
            weights = self.weights if self.objective == "weighted" else (1.0, 0.0, 0.0)
            multipliers = FixedMultipliers(weights, device)
        trainer = Trainer(models.to(device), multipliers, self.learning_rate_init)
        n_rows = len(folds.rows.values)
        history = train(
            trainer,
            folds.to(device),
            early_stopping,
            max_iter=self.max_iter,
            batch_size=self._resolve_batch_size(n_rows),
            generator=torch.Generator(device).manual_seed(seed),
            verbose=bool(self.verbose),
        )
        return trainer, history

    def _resolve_batch_size(self, n_rows):
        if self.batch_size != "auto":
            return self.batch_size
        return 64 if n_rows < 1_000 else 128 if n_rows < 5_000 else 256

    def _measure_normalizer(self, seed):
        """Satisfy ``Z = 1`` in the constant of the energy, then measure ``Z`` afresh."""
        generator = torch.Generator().manual_seed(seed)
        proxy, flow = self._models["proxy"], self._models["flow"]
        measured = measure_normalizer(proxy, flow, NORMALIZER_SAMPLES, generator)
        if self.objective == "jeffreys" and measured.is_known:
            proxy.add_constant(-math.log(measured.value))
            measured = measure_normalizer(proxy, flow, NORMALIZER_SAMPLES, generator)
        if not measured.is_known:
            warnings.warn(
                "The normaliser of the proxy is unknown: the effective sample size of its "
                f"estimate is {measured.ess:.2g} of {NORMALIZER_SAMPLES} samples. "
                "proxy_score_samples is known up to a constant only; score_samples is not "
                'concerned. proxy="flow" keeps the normaliser known.',
                NormalizerWarning,
                stacklevel=5,
            )
            measured = measured._replace(value=math.nan, std_error=math.nan)
        self.normalizer_, self.normalizer_std_error_, self.normalizer_ess_, _ = measured

    def _evaluate(self, X, log_density):
        check_is_fitted(self)
        rows = self._scaling.transform(self._validate_rows(X, reset=False))
        return self._in_batches(rows, log_density) + self._scaling.log_abs_det_jacobian_

    def _in_batches(self, rows, function):
        """Apply ``function(models, batch)`` in double precision, a batch of rows at a time."""
        device = resolve_device(self.device, double=True)
        models = self._models
        if device.type != "cpu":
            # The estimator keeps its models on the CPU, so that it scores and loads anywhere.
            models = copy.deepcopy(models).to(device)
        with torch.no_grad():
            return np.concatenate(
                [
                    function(models, torch.from_numpy(rows[batch]).to(device)).cpu().numpy()
                    for batch in gen_batches(len(rows), SCORING_BATCH_SIZE)
                ]
            )
