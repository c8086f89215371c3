"""The density estimators to compare with, each tuned as a careful user would tune it."""

__all__ = ["PEERS"]

import copy
from functools import partial

import numpy as np
import torch
import zuko
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold, train_test_split
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

PATIENCE, MAXIMUM_EPOCHS = 20, 1000
FOLDS = KFold(n_splits=5, shuffle=True, random_state=0)


class Standardized(DensityMixin, BaseEstimator):
    """An estimator of standardised columns, scored in the original units."""

    def __init__(self, estimator):
        self.estimator = estimator

    def fit(self, X, y=None):
        """Standardise and fit."""
        self.scaler_ = StandardScaler().fit(X)
        self.estimator.fit(self.scaler_.transform(X))
        return self

    def score_samples(self, X):
        """Log-density of the rows, with the Jacobian of the standardisation."""
        log_density = self._fitted.score_samples(self.scaler_.transform(X))
        return log_density - np.log(self.scaler_.scale_).sum()

    def sample(self, n_samples, random_state):
        """Draw rows; of the estimators here, those of scikit-learn can."""
        if isinstance(self._fitted, GaussianMixture):
            samples = self._fitted.set_params(random_state=random_state).sample(n_samples)[0]
        else:
            samples = self._fitted.sample(n_samples, random_state=random_state)
        return self.scaler_.inverse_transform(samples)

    @property
    def _fitted(self):
        return getattr(self.estimator, "best_estimator_", self.estimator)


class EarlyStoppedFlow(DensityMixin, BaseEstimator):
    """A flow of zuko by maximum likelihood: Adam 1e-3, batches of 128, early stopping on 10%.

    Training stops after 20 epochs without a better validation likelihood, and the best epoch
    is kept.
    """

    def __init__(self, build, random_state):
        self.build = build
        self.random_state = random_state

    def fit(self, X, y=None):
        """Train on 90% of the rows and keep the epoch that is best on the others."""
        torch.set_num_threads(1)
        torch.manual_seed(self.random_state)
        training, validation = (
            torch.as_tensor(rows, dtype=torch.float32)
            for rows in train_test_split(X, test_size=0.1, random_state=self.random_state)
        )
        flow = self.build(features=X.shape[1])
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
        best_score, best_state, waited = -np.inf, copy.deepcopy(flow.state_dict()), 0
        for _ in range(MAXIMUM_EPOCHS):
            for batch in torch.randperm(len(training)).split(128):
                loss = -flow().log_prob(training[batch]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                score = flow().log_prob(validation).mean().item()
            waited += 1
            if score > best_score:
                best_score, best_state, waited = score, copy.deepcopy(flow.state_dict()), 0
            if waited >= PATIENCE:
                break
        flow.load_state_dict(best_state)
        self.flow_ = flow
        return self

    @torch.no_grad()
    def score_samples(self, X):
        """Log-density of the rows."""
        log_density = self.flow_().log_prob(torch.as_tensor(X, dtype=torch.float32))
        return log_density.double().numpy()


def _kernel_density(seed):
    grid = {"bandwidth": np.logspace(-1.5, 0.5, 25)}
    return GridSearchCV(KernelDensity(), grid, cv=FOLDS)


def _gaussian_mixture(seed):
    grid = {
        "n_components": list(range(1, 21)),
        "covariance_type": ["full", "tied", "diag"],
    }
    return GridSearchCV(GaussianMixture(random_state=seed), grid, cv=FOLDS)


def _spline_flow(seed):
    build = partial(zuko.flows.NSF, transforms=3, hidden_features=(128, 128))
    return EarlyStoppedFlow(build, random_state=seed)


def _autoregressive_flow(seed):
    build = partial(zuko.flows.MAF, transforms=5, hidden_features=(128, 128))
    return EarlyStoppedFlow(build, random_state=seed)


def _gaussian(seed):
    return GaussianMixture(random_state=seed)


#: Name of a peer, and a function from a seed to an estimator.
PEERS = {
    name: lambda seed, build=build: Standardized(build(seed))
    for name, build in {
        "KernelDensity": _kernel_density,
        "GaussianMixture": _gaussian_mixture,
        "NSF": _spline_flow,
        "MAF": _autoregressive_flow,
        "Gaussian": _gaussian,
    }.items()
}
