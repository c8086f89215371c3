"""Who overfits and who breaks: four learning rates, on eight Gaussians in the plane.

The KL divergence from the known density to the flow over training (arXiv:2511.11159, Figure 3), of
the adaptive problem with the paper's proxy and price and with those of the library, of maximum
likelihood, and of a Wasserstein GAN, all with the same single flow. Printed: the divergence at its
smallest and at the end, by how much it rises in between, and how many runs broke.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from known_densities import eight_gaussians
from study import parse_options, run_all, save
from traced import PaperDensity, TracedDensity
from wasserstein import TracedWasserstein

METHODS = {
    "Jeffreys, paper": (PaperDensity, {}),
    "Jeffreys, library": (TracedDensity, {"n_estimators": 1}),
    "likelihood": (TracedDensity, {"n_estimators": 1, "objective": "likelihood"}),
    "Wasserstein GAN": (TracedWasserstein, {"n_estimators": 1, "objective": "likelihood"}),
}
LEARNING_RATES = (0.0001, 0.001, 0.01, 0.1)
TEST_ROWS = 5000
#: A divergence, in nats, that counts as broken: a normal density is at 1.2.
BROKEN = 5.0


def run(method, learning_rate, seed, n_rows, max_iter):
    """Train one flow; measure the divergence on fresh rows at every evaluation."""
    estimator, parameters = METHODS[method]
    density = estimator(
        learning_rate_init=learning_rate,
        max_iter=max_iter,
        random_state=seed,
        **parameters,
    )
    truth = eight_gaussians()
    test = truth.sample(TEST_ROWS, np.random.RandomState(1000 + seed))
    entropy = -truth.log_density(test).mean()
    run = {"method": method, "learning_rate": learning_rate, "seed": seed}
    try:
        density.fit(truth.sample(n_rows, np.random.RandomState(seed)))
    except FloatingPointError:  # The numbers overflowed, again and again.
        return [run | {"iteration": max_iter, "kl": np.inf}]
    return [
        run | {"iteration": iteration, "kl": -density.score(test) - entropy}
        for iteration in density.iterates(every=4)
    ]


def report(results):
    """Print means and standard errors over the seeds."""
    runs = results.groupby(["method", "learning_rate", "seed"], sort=False)["kl"]
    table = pd.DataFrame({"smallest": runs.min(), "last": runs.last()})
    table["rise"] = table["last"] - table["smallest"]
    cells = table.groupby(["method", "learning_rate"], sort=False)
    means, errors = cells.mean().add_suffix(" KL"), cells.sem().add_suffix(" +-")
    summary = pd.concat([means, errors], axis=1).sort_index(axis=1)
    summary["broken"] = cells["last"].apply(lambda last: (last > BROKEN).sum())
    print(summary.round(3).to_string())


def plot(results):
    """Draw the mean curve of each method, and the range over the seeds."""
    rates = results["learning_rate"].unique()
    figure, axes = plt.subplots(
        1, len(rates), figsize=(4.5 * len(rates), 4), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis, rate in zip(axes[0], rates, strict=True):
        for color, method in enumerate(METHODS):
            chosen = results.query("method == @method and learning_rate == @rate")
            curve = chosen.groupby("iteration")["kl"].agg(["mean", "min", "max"])
            axis.plot(curve.index, curve["mean"], color=f"C{color}", label=method)
            axis.fill_between(
                curve.index, curve["min"], curve["max"], color=f"C{color}", alpha=0.2, linewidth=0
            )
        axis.set(title=f"learning rate {rate:g}", xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("KL(data || flow), nats")
    axes[0, 0].legend()
    return figure


def main():
    options = parse_options(__doc__)
    n_rows, max_iter, n_seeds = (200, 100, 1) if options.quick else (200, 2000, 5)
    rates = LEARNING_RATES[2:3] if options.quick else LEARNING_RATES
    jobs = [
        (method, rate, seed, n_rows, max_iter)
        for method in METHODS
        for rate in rates
        for seed in range(n_seeds)
    ]
    results = run_all(run, jobs)
    report(results)
    save(results, plot(results), options.output, "stability")


if __name__ == "__main__":
    main()
