"""Overfitting without early stopping: eight Gaussians on a ring, 200 training rows.

Prints, per seed, the held-out negative log-likelihood (nats, lower is better) of the last iterate
of the Jeffreys and of the likelihood objective, all else equal, and that of the true density. The
density is that of the flows, without the mixtures that JeffreysDensity sets beside them.
"""

import argparse

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from known_densities import eight_gaussians
from tqdm.auto import tqdm
from traced import TracedDensity

RING = eight_gaussians()


def held_out_rows(seed):
    """Draw the rows to score on."""
    return RING.sample(4000, np.random.RandomState(100 + seed))


def last_iterate(objective, seed, max_iter):
    """Held-out negative log-likelihood after ``max_iter`` steps on all rows."""
    density = TracedDensity(objective=objective, max_iter=max_iter, random_state=seed)
    rows = RING.sample(200, np.random.RandomState(seed))
    return -density.fit(rows).score(held_out_rows(seed))


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
    table["truth"] = [-RING.log_density(held_out_rows(seed)).mean() for seed in table.index]
    table["likelihood - jeffreys"] = table["likelihood"] - table["jeffreys"]
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
