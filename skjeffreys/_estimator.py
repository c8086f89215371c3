"""What the estimators share: parameters, one way to train, to score and to sample."""

__all__ = ["JeffreysEstimator", "has_proxy"]

import copy
import math
import warnings
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight
from torch import nn

from ._bounds import Bounds
from ._coordinates import Coordinates, Standardisation
from ._energy import EnsembleReference, FixedReference, Proxy, Tilt
from ._flow import CouplingFlows
from ._mixture_fitting import BENT_COVARIANCES, COVARIANCES, RESIDUAL_COVARIANCES, affordable_kinds
from ._mixtures import Mixtures, standard_normal, with_tails
from ._normalizer import measure_normalizer
from ._power import Unbending
from ._problem import LARGEST, SMALLEST, AdaptiveMultipliers, FixedMultipliers
from ._regression import fit_regressions
from ._rows import Rows, canonical_rows, split_rows, tied_columns, warn_degenerate
from ._stacking import Candidate, stack
from ._torch import resolve_device, seeded_initialization, training_context
from ._training import EarlyStopping, Trainer, train
from ._validation import (
    check_layer_sizes,
    check_range,
    check_some_weight,
    check_weights,
    private_random_state,
)
from .exceptions import NormalizerWarning

#: Fresh samples that measure the normaliser.
NORMALIZER_SAMPLES = 5_000
#: Largest tilt of the reference of the proxy, in nats. Around the flow, such that the effective
#: sample size of the normaliser is at least 0.1; around a normal density, hardly a bound.
TILT_BOUNDS = {"flow": 1.8, "energy": 50.0}
#: Parameters that fitted models depend on.
ARCHITECTURE = (
    "objective", "proxy", "bounds", "n_estimators", "hidden_layer_sizes", "n_transforms", "n_bins"
)  # fmt: skip
#: Optimiser steps, by the number of rows to the power 2/3.
STEPS_SCALE = 13
#: Optimiser steps for few rows, and for many.
MINIMUM_STEPS, MAXIMUM_STEPS = 650, 8000
#: Rows scored at once: memory is in proportion to it.
SCORING_BATCH_SIZE = 1024
#: Rows drawn at once: each by one member.
SAMPLING_BATCH_SIZE = 5 * SCORING_BATCH_SIZE


def has_proxy(estimator):
    """Whether the estimator trains a proxy, for methods that need one."""
    return estimator.objective != "likelihood"


def main_log_density(models, rows):
    """Log-density that a fit returns at coordinates of rows, (n, q + d) to (n,)."""
    return models["density"].log_density(rows, models["flow"].log_prob(rows))


def proxy_log_density(models, rows):
    """Logarithm of the quasi-normalised density of the proxy there, (n, q + d) to (n,)."""
    return models["proxy"].log_density(rows, models["flow"].log_prob(rows))


class JeffreysEstimator(BaseEstimator):
    """A density of target columns given columns of conditions, which there may be none of.

    A subclass validates what its users pass in. Here, conditions are arrays of shape (n, q),
    targets arrays of shape (n, d), both of float64 and in original units.
    """

    _parameter_constraints: dict = {
        "objective": [StrOptions({"jeffreys", "weighted", "likelihood"})],
        "proxy": [StrOptions({"flow", "energy"})],
        "bounds": ["array-like", None],
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "weights": ["array-like"],
        "hidden_layer_sizes": ["array-like"],
        "n_transforms": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "n_bins": [Interval(Integral, 2, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 2, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "n_jobs": [Integral, None],
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
        bounds=None,
        n_estimators=5,
        hidden_layer_sizes=(32, 32),
        n_transforms="auto",
        n_bins=8,
        learning_rate_init=0.015,
        batch_size="auto",
        max_iter="auto",
        early_stopping=True,
        validation_fraction=0.2,
        n_iter_no_change=3,
        tol=2.0,
        warm_start=False,
        n_jobs=None,
        device="auto",
        verbose=False,
        random_state=None,
    ):
        self.objective = objective
        self.proxy = proxy
        self.weights = weights
        self.bounds = bounds
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
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_models")

    def _is_warm(self):
        return self.warm_start and hasattr(self, "_models")

    def _fit(self, conditions, targets, sample_weight, name, names):
        """Train on rows; ``name`` is that of the targets, ``names`` those of their columns."""
        warm = self._is_warm()
        check_weights(self.weights)
        check_layer_sizes(self.hidden_layer_sizes)
        bounds = Bounds(self.bounds, targets.shape[1])
        sample_weight = _check_sample_weight(
            sample_weight, targets, dtype=np.float64, ensure_non_negative=True
        )
        check_some_weight(sample_weight)
        used = sample_weight > 0
        conditions, targets, sample_weight = conditions[used], targets[used], sample_weight[used]
        bounds.check(targets, name, names)
        check_range(targets, name, names)
        if not warm:
            vars(self).pop("_models", None)  # Should this fit fail, nothing is fitted.
            self._standardisation = Standardisation(bounds, conditions, targets, sample_weight)
        random_state = private_random_state(self.random_state)
        seeds = random_state.randint(np.iinfo(np.int32).max, size=4).tolist()
        rows_seed, models_seed, training_seed, normalizer_seed = seeds
        random_state = np.random.RandomState(rows_seed)
        rows, spread = self._training_rows(
            conditions, targets, sample_weight, random_state, name, names
        )
        if not warm:
            self._coordinates = Coordinates(self._standardisation, spread)
        rows, spread = self._coordinates.bend(rows), self._coordinates.bend(spread)
        with training_context():
            folds = split_rows(spread, self.n_estimators, self.validation_fraction, random_state)
            models = self._fitted_models() if warm else self._new_models(folds, models_seed)
            trainer, history = self._train(models, folds, training_seed)
            flow = models.cpu().double()["flow"]
            # Mixtures are as narrow as is added to their variances: they need no ties spread.
            folds = replace(folds, rows=rows)
            candidates = self._mixture_candidates(folds, flow.preprocessing)
            models["density"] = stack(
                flow, candidates, folds, self._tailed, models_seed, self.n_jobs
            )
            self._fitted_architecture = self._architecture()
            self._models = models.requires_grad_(False)
            self.flow_weight_ = float(models["density"].weights[0])
            shift = self._coordinates.log_abs_det_jacobian(targets)
            shift = float(np.average(shift, weights=sample_weight))
            self._record(history, trainer.entropy, shift, warm)
            if self.objective != "likelihood":
                self._measure_normalizer(rows, normalizer_seed)
        return self

    def _training_rows(self, conditions, targets, sample_weight, random_state, name, names):
        """Return standardised rows, and the same with ties spread; warn of what has no density."""
        q = self._standardisation.n_conditions
        constant = self._standardisation.constant_columns
        tied = tied_columns(np.hstack([conditions, targets])) - q
        tied = np.setdiff1d(tied[tied >= 0], constant)
        values = self._standardisation.transform(conditions, targets)
        *values, weights = canonical_rows(
            values, sample_weight, q + constant, q + tied, random_state
        )
        rows, spread = (Rows(each, weights, n_conditions=q) for each in values)
        warn_degenerate(name, len(targets), rows, constant, tied, names)
        return rows, spread

    def _new_models(self, folds, seed):
        """Build the models to train: the slow flows and, where there is one, the proxy."""
        hidden_layer_sizes = tuple(self.hidden_layer_sizes)
        normal = standard_normal(folds.rows.targets.shape[1])
        base = Mixtures([with_tails(normal, self._tailed)] * folds.n_members).float()
        with seeded_initialization(seed):
            flow = CouplingFlows(
                base,
                regressions=fit_regressions(folds),
                hidden_layer_sizes=hidden_layer_sizes,
                n_transforms=self._resolve_n_transforms(len(folds.rows.values)),
                n_bins=self.n_bins,
            )
            models = nn.ModuleDict({"flow": flow})
            if self.objective != "likelihood":
                if self.proxy == "flow":
                    reference = EnsembleReference()
                else:
                    reference = FixedReference(Mixtures([normal]).float())
                tilt = Tilt(folds.rows.values.shape[1], hidden_layer_sizes, TILT_BOUNDS[self.proxy])
                models["proxy"] = Proxy(reference, tilt)
        return models

    def _architecture(self):
        normal_forms = {
            "hidden_layer_sizes": tuple(self.hidden_layer_sizes),
            "bounds": repr(self.bounds),  # Arrays have no truth value to compare by.
        }
        return {name: getattr(self, name) for name in ARCHITECTURE} | normal_forms

    def _fitted_models(self):
        """Return copies of the fitted models, for a warm start."""
        if self._architecture() != self._fitted_architecture:
            raise ValueError(
                f"With warm_start=True the parameters {', '.join(ARCHITECTURE)} must stay as in "
                "the previous fit. Put them back, or set warm_start=False."
            )
        return copy.deepcopy(self._models).float().requires_grad_(True)

    def _mixture_candidates(self, folds, regressions):
        """Return the mixtures that a fit tries beside the flows.

        Bending suits skewed columns and harms clusters: without conditions there are mixtures of
        bent columns and of columns as they were. With conditions there are few: flows know how the
        residuals depend on the conditions, and each mixture has some weight by its prior.
        """
        if folds.rows.n_conditions > 0:
            covariances = {regressions: RESIDUAL_COVARIANCES}
        else:
            as_they_were = Unbending(self._coordinates.power)
            covariances = {regressions: BENT_COVARIANCES, as_they_were: COVARIANCES}
        n_rows, n_features = folds.training.shape[1], folds.rows.targets.shape[1]
        return [
            Candidate(preprocessing, kind)
            for preprocessing, each in covariances.items()
            for kind in affordable_kinds(n_rows, n_features, each)
        ]

    @property
    def _tailed(self):
        """Which columns of the targets get heavy tails: where a bound is, no row is far out."""
        return self._standardisation.bounds.unbounded

    def _record(self, history, entropy, shift, warm):
        """Keep the history in original units, after that of earlier fits where ``warm``."""
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
        n_rows = len(folds.rows.values)
        device = resolve_device(self.device, n_rows)
        trainer = self._new_trainer(models.to(device))
        history = train(
            trainer,
            folds.to(device),
            self._new_early_stopping(folds),
            max_iter=self._resolve_max_iter(n_rows),
            batch_size=self._resolve_batch_size(n_rows),
            generator=torch.Generator(device).manual_seed(seed),
            verbose=bool(self.verbose),
        )
        return trainer, history

    def _new_trainer(self, models):
        """Return what takes the steps."""
        multipliers = self._new_multipliers(models["flow"].weights.device)
        return Trainer(models, multipliers, self.learning_rate_init)

    def _new_multipliers(self, device):
        if self.objective == "jeffreys":
            return AdaptiveMultipliers(SMALLEST, LARGEST, device)
        weights = self.weights if self.objective == "weighted" else (1.0, 0.0, 0.0)
        return FixedMultipliers(weights, device)

    def _new_early_stopping(self, folds):
        if not self.early_stopping:
            return None
        return EarlyStopping(self.n_iter_no_change, self.tol / folds.held_out.numel())

    def _resolve_n_transforms(self, n_rows):
        if self.n_transforms != "auto":
            return self.n_transforms
        return 4 if n_rows < 5_000 else 8

    def _resolve_max_iter(self, n_rows):
        if self.max_iter != "auto":
            return self.max_iter
        steps = round(STEPS_SCALE * n_rows ** (2 / 3))
        return min(max(MINIMUM_STEPS, steps), MAXIMUM_STEPS)

    def _resolve_batch_size(self, n_rows):
        if self.batch_size != "auto":
            return self.batch_size
        return 64 if n_rows < 1_000 else 128 if n_rows < 5_000 else 256

    def _measure_normalizer(self, rows, seed):
        """Satisfy ``Z = 1`` in the constant of the energy, then measure ``Z`` afresh."""
        generator = torch.Generator().manual_seed(seed)
        proxy, flow = self._models["proxy"], self._models["flow"]
        measured = measure_normalizer(proxy, flow, rows, NORMALIZER_SAMPLES, generator)
        if self.objective == "jeffreys" and measured.is_known:
            proxy.add_constant(-math.log(measured.value))
            measured = measure_normalizer(proxy, flow, rows, NORMALIZER_SAMPLES, generator)
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

    def _log_density(self, conditions, targets, log_density):
        """Evaluate ``log_density(models, rows)`` at targets, in nats of the original units."""
        inside = self._standardisation.bounds.contain(targets)
        conditions, targets = conditions[inside], targets[inside]
        result = np.full(len(inside), -np.inf)
        if inside.any():
            rows = self._coordinates.transform(conditions, targets)
            result[inside] = self._in_batches(rows, log_density)
            result[inside] += self._coordinates.log_abs_det_jacobian(targets)
        return result

    def _in_batches(self, rows, function):
        """Apply ``function(models, batch)`` in double precision, a batch of rows at a time."""
        device = resolve_device(self.device, len(rows), double=True)
        models = self._models
        if device.type != "cpu":
            # The estimator keeps its models on the CPU, so that it scores and loads anywhere.
            models = copy.deepcopy(models).to(device)
        result = np.empty(len(rows))
        with torch.no_grad():
            for batch in gen_batches(len(rows), SCORING_BATCH_SIZE):
                batch_rows = torch.from_numpy(rows[batch]).to(device)
                result[batch] = function(models, batch_rows).cpu().numpy()
        return result

    def _sample_rows(self, conditions, random_state):
        """Draw coordinates of targets for each row of conditions, (n, q) to (n, q + d)."""
        random_state = private_random_state(
            self.random_state if random_state is None else random_state
        )
        generator = torch.Generator().manual_seed(random_state.randint(np.iinfo(np.int32).max))
        conditions = torch.from_numpy(self._coordinates.transform_conditions(conditions))
        batches = [
            self._models["density"].sample(conditions[batch], generator)
            for batch in gen_batches(len(conditions), SAMPLING_BATCH_SIZE)
        ]
        return torch.cat(batches).numpy()
