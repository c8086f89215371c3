"""Adaptive multipliers beside 25 fixed weights, on eight Gaussians in the plane.

A single flow and the independent energy of the paper (arXiv:2511.11159, Figure 2); adaptive with
the quadratic price of the paper, and with the price of the library. Drawn over training: the
negative log-likelihood of fresh rows, and the normaliser of the proxy, by quadrature. Printed:
where the adaptive runs rank among the 25 at their last iterate, and which of them drift.
"""

from functools import partial
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from known_densities import eight_gaussians
from study import parse_options, run_all, save
from traced import PaperDensity, TracedDensity

WEIGHTS = (0.01, 0.1, 1.0, 10.0, 100.0)
TEST_ROWS = 5000
#: Half the width of the square, and points along its side, where the proxy is integrated.
HALF_WIDTH, GRID = 6.0, 150
#: Column that names the weights of the two terms beside the forward divergence, whose weight is 1.
SETTING = "reverse / fidelity"
#: From the name of an adaptive setting to its estimator and the colour of its curve.
ADAPTIVE = {
    "adaptive": (PaperDensity, "C3"),
    "adaptive, library": (partial(TracedDensity, proxy="energy", n_estimators=1), "C0"),
}


def normalizer(density):
    """Integrate the proxy over a square that holds all rows and samples."""
    side = np.linspace(-HALF_WIDTH, HALF_WIDTH, GRID)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return np.exp(density.proxy_score_samples(points)).sum() * (side[1] - side[0]) ** 2


def fixed(weights, **options):
    """Weights of the reverse divergence and of the fidelity; that of the forward one is one."""
    weights = (1.0, *weights)
    return TracedDensity(
        objective="weighted", weights=weights, proxy="energy", n_estimators=1, **options
    )


def run(setting, seed, n_rows, max_iter):
    """Train with a pair of weights, or adaptively by name."""
    options = {"max_iter": max_iter, "random_state": seed}
    if setting in ADAPTIVE:
        name, density = setting, ADAPTIVE[setting][0](**options)
    else:
        name, density = "{} / {}".format(*setting), fixed(setting, **options)
    truth = eight_gaussians()
    test = truth.sample(TEST_ROWS, np.random.RandomState(1000 + seed))
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
    for name in ADAPTIVE:
        better = (last.drop(list(ADAPTIVE)) > last.loc[name]).sum()
        print(f"{name}: ahead of how many of the fixed weights, per seed: {better.tolist()}")
    print(f"Runs whose numbers overflowed: {np.isinf(last).sum().sum()} of {last.size}")


def plot(results):
    """Draw both curves for every setting."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    curves = results.groupby([SETTING, "iteration"])[["nll", "normalizer"]].mean()
    fixed_settings = set(results[SETTING]) - set(ADAPTIVE)
    for setting in [*fixed_settings, *ADAPTIVE]:
        style = {"color": "0.6", "linewidth": 0.8}
        if setting in ADAPTIVE:
            style = {"color": ADAPTIVE[setting][1], "linewidth": 2.5}
        curves.loc[setting, "nll"].plot(ax=axes[0], **style)
        curves.loc[setting, "normalizer"].plot(ax=axes[1], **style)
    axes[0].set(ylabel="negative log-likelihood of fresh rows, nats", title="flow")
    low = results["nll"].min()
    axes[0].set_ylim(low - 0.1, low + 2)
    axes[1].set(ylabel="integral of the proxy", title="normaliser", yscale="log", ylim=(0.1, 1e3))
    colors = {name: color for name, (_, color) in ADAPTIVE.items()} | {"25 fixed weights": "0.6"}
    handles = [plt.Line2D([], [], color=color) for color in colors.values()]
    axes[0].legend(handles, list(colors), loc="upper right")
    return figure


def main():
    options = parse_options(__doc__)
    n_rows, max_iter, n_seeds = (200, 100, 1) if options.quick else (500, 2000, 3)
    grid = list(product(WEIGHTS, WEIGHTS))
    settings = [*ADAPTIVE, *(grid[::12] if options.quick else grid)]
    jobs = [(setting, seed, n_rows, max_iter) for setting in settings for seed in range(n_seeds)]
    results = run_all(run, jobs)
    report(results)
    save(results, plot(results), options.output, "weights")


if __name__ == "__main__":
    main()
