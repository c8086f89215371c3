"""Overfitting without early stopping: eight Gaussians on a ring, 200 training rows.

Prints, per seed, the held-out negative log-likelihood (nats, lower is better) of the last iterate
of the Jeffreys and of the likelihood objective, all else equal, and that of the true density.
"""

import argparse

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy.special import logsumexp
from tqdm.auto import tqdm

from skjeffreys import JeffreysDensity

CENTRES = 2 * np.exp(2j * np.pi * np.arange(8) / 8)
SCALE = 0.2


def ring(n, seed):
    """Draw ``n`` rows from the eight Gaussians."""
    rng = np.random.RandomState(seed)
    centres = CENTRES[rng.randint(8, size=n)]
    return np.c_[centres.real, centres.imag] + SCALE * rng.standard_normal((n, 2))


def true_log_density(X):
    """Evaluate the log-density of the eight Gaussians."""
    centres = np.c_[CENTRES.real, CENTRES.imag]
    squares = ((X[:, None] - centres) ** 2).sum(axis=-1)
    return logsumexp(-squares / (2 * SCALE**2), axis=1) - np.log(8 * 2 * np.pi * SCALE**2)


def last_iterate(objective, seed, max_iter):
    """Held-out negative log-likelihood after ``max_iter`` steps on all rows."""
    density = JeffreysDensity(
        objective=objective, early_stopping=False, max_iter=max_iter, random_state=seed
    )
    return -density.fit(ring(200, seed)).score(ring(4000, 100 + seed))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-iter", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    objectives = ["jeffreys", "likelihood"]
    jobs = [(objective, seed) for seed in range(options.seeds) for objective in objectives]
    results = Parallel(n_jobs=2, return_as="generator")(
        delayed(last_iterate)(*job, options.max_iter) for job in jobs
    )
    scores = np.array(list(tqdm(results, total=len(jobs)))).reshape(options.seeds, 2)
    table = pd.DataFrame(scores, columns=objectives).rename_axis("seed")
    table["truth"] = [-true_log_density(ring(4000, 100 + seed)).mean() for seed in table.index]
    table["likelihood - jeffreys"] = table["likelihood"] - table["jeffreys"]
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
