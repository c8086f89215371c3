"""Neural posterior estimation of the sbi package, with its defaults, as a peer."""

import sys
import tempfile
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np
import torch

#: Samples that measure how much mass lies outside the prior.
LEAKAGE_SAMPLES = 500


@contextmanager
def _elsewhere():
    """Import and train away from this folder: its sbi.py hides the package, which also logs."""
    path = sys.path
    sys.path = [entry for entry in path if Path(entry).resolve() != Path(__file__).parent]
    try:
        with tempfile.TemporaryDirectory() as temporary, chdir(temporary):
            yield
    finally:
        sys.path = path


class NeuralPosterior:
    """With the methods that the benchmark calls on JeffreysConditionalDensity.

    Parameters
    ----------
    density_estimator : {"nsf", "maf"}
    bound : float
        Half the width of the uniform prior.
    seed : int
    """

    def __init__(self, density_estimator, bound, seed):
        self.density_estimator, self.bound, self.seed = density_estimator, bound, seed

    def fit(self, X, y):
        """Train on simulations ``X`` of parameters ``y``."""
        with _elsewhere():
            from sbi.inference import NPE
            from sbi.utils import BoxUniform

            torch.manual_seed(self.seed)
            edge = self.bound * torch.ones(y.shape[1])
            inference = NPE(
                prior=BoxUniform(-edge, edge),
                density_estimator=self.density_estimator,
                show_progress_bars=False,
            )
            inference.append_simulations(torch.as_tensor(y), torch.as_tensor(X))
            self.network_ = inference.train()
            self.posterior_ = inference.build_posterior()
        return self

    @torch.no_grad()
    def score_samples(self, X, y):
        """Log-density of the estimator within the prior, corrected for the mass outside."""
        X, y = torch.as_tensor(X), torch.as_tensor(y)
        log_density = self.network_.log_prob(y[None], condition=X)[0]
        samples = self.network_.sample((LEAKAGE_SAMPLES,), condition=X)
        inside = (samples.abs() <= self.bound).all(dim=-1).double().mean(dim=0)
        return (log_density - inside.log()).numpy()

    @torch.no_grad()
    def sample(self, X, n_samples, random_state):
        """Draw posterior samples, those outside the prior rejected; (n, n_samples, d)."""
        torch.manual_seed(random_state)
        samples = self.posterior_.sample_batched(
            (n_samples,), x=torch.as_tensor(X), show_progress_bars=False
        )
        return np.asarray(samples.transpose(0, 1))
