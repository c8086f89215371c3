"""Adaptive multipliers beside 25 fixed weights, on eight Gaussians in the plane.

A single flow and the independent energy of the paper (arXiv:2511.11159, Figure 2). Drawn over
training: the negative log-likelihood of fresh rows, and the normaliser of the proxy, by quadrature.
Printed: where the adaptive run ranks among the 25 at its last iterate, and which of them drift.
"""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from known_densities import eight_gaussians
from study import parse_options, run_all, save
from traced import TracedDensity

WEIGHTS = (0.01, 0.1, 1.0, 10.0, 100.0)
TEST_ROWS = 5000
#: Half the width of the square, and points along its side, where the proxy is integrated.
HALF_WIDTH, GRID = 6.0, 150
#: Column that names the weights of the two terms beside the forward divergence, whose weight is 1.
SETTING = "reverse / fidelity"


def normalizer(density):
    """Integrate the proxy over a square that holds all rows and samples."""
    side = np.linspace(-HALF_WIDTH, HALF_WIDTH, GRID)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return np.exp(density.proxy_score_samples(points)).sum() * (side[1] - side[0]) ** 2


def run(weights, seed, n_rows, max_iter):
    """Train with fixed weights of the reverse term and the fidelity, or adaptively (None)."""
    objective = {"objective": "jeffreys"}
    if weights is not None:
        objective = {"objective": "weighted", "weights": (1.0, *weights)}
    density = TracedDensity(
        proxy="energy", n_estimators=1, max_iter=max_iter, random_state=seed, **objective
    )
    truth = eight_gaussians()
    test = truth.sample(TEST_ROWS, np.random.RandomState(1000 + seed))
    name = "adaptive" if weights is None else "{} / {}".format(*weights)
    run = {SETTING: name, "seed": seed}
    try:
        density.fit(truth.sample(n_rows, np.random.RandomState(seed)))
    except FloatingPointError:  # The numbers overflowed, again and again.
        return [run | {"iteration": max_iter, "nll": np.inf, "normalizer": np.nan}]
    return [
        run
        | {
            "iteration": iteration,
            "nll": -density.score(test),
            "normalizer": normalizer(density),
        }
        for iteration in density.iterates(every=4)
    ]


def report(results):
    """Print the last iterate of each setting, means over the seeds."""
    by = results.groupby([SETTING, "seed"])
    # What happened after the first two evaluations, and in the second half.
    rise = by["nll"].apply(lambda run: run[2:].diff().max())
    halves = by["normalizer"].apply(lambda run: run[len(run) // 2 :])
    late = halves.groupby([SETTING, "seed"])
    table = pd.DataFrame(
        {
            "best nll": by["nll"].min(),
            "last nll": by["nll"].last(),
            "largest rise": rise,
            "smallest normaliser": late.min(),
            "largest normaliser": late.max(),
        }
    )
    means = table.groupby(SETTING).mean().sort_values("last nll")
    print(means.to_string(float_format="{:.4g}".format))
    last = table["last nll"].unstack("seed")
    better = (last.drop("adaptive") > last.loc["adaptive"]).sum()
    print(f"Adaptive ahead of how many of the fixed weights, per seed: {better.tolist()}")
    print(f"Runs whose numbers overflowed: {np.isinf(last).sum().sum()} of {last.size}")


def plot(results):
    """Draw both curves for every setting."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    curves = results.groupby([SETTING, "iteration"])[["nll", "normalizer"]].mean()
    for setting in [*(set(results[SETTING]) - {"adaptive"}), "adaptive"]:
        ours = setting == "adaptive"
        style = {"color": "C3", "linewidth": 2.5} if ours else {"color": "0.6", "linewidth": 0.8}
        curves.loc[setting, "nll"].plot(ax=axes[0], **style)
        curves.loc[setting, "normalizer"].plot(ax=axes[1], **style)
    axes[0].set(ylabel="negative log-likelihood of fresh rows, nats", title="flow")
    low = results["nll"].min()
    axes[0].set_ylim(low - 0.1, low + 2)
    axes[1].set(ylabel="integral of the proxy", title="normaliser", yscale="log", ylim=(0.1, 1e3))
    handles = [plt.Line2D([], [], color=color) for color in ("C3", "0.6")]
    axes[0].legend(handles, ["adaptive multipliers", "25 fixed weights"], loc="upper right")
    return figure


def main():
    options = parse_options(__doc__)
    n_rows, max_iter, n_seeds = (200, 100, 1) if options.quick else (500, 2000, 3)
    settings = [None, *product(WEIGHTS, WEIGHTS)]
    settings = [None, *settings[1::12]] if options.quick else settings
    jobs = [(setting, seed, n_rows, max_iter) for setting in settings for seed in range(n_seeds)]
    results = run_all(run, jobs)
    report(results)
    save(results, plot(results), options.output, "weights")


if __name__ == "__main__":
    main()
