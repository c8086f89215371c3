"""Both directions of the divergence, where the density is known.

The forward KL (what likelihood measures), the reverse KL (which sees mass where there should be
none) and their sum, the Jeffreys divergence, by Monte Carlo on fresh rows and on samples of each
estimator; and the share of samples outside the region that holds 99.9% of the known density, as
few samples far out can decide a reverse KL. The estimators are JeffreysDensity with its defaults,
with the paper's independent energy, the same by maximum likelihood, the flows of the first and of
the last without the mixtures beside them, and KernelDensity and GaussianMixture tuned by
cross-validation. Printed: means over the seeds for each density, dimension and number of rows, and
where the Jeffreys objective is ahead of the likelihood. Results are appended to ``directions.csv``
in ``--output``, and a run resumes where the last one stopped.
"""

import time
import warnings
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from flows_alone import FlowDensity
from known_densities import KNOWN_DENSITIES
from study import PEERS, parse_options, run_missing

from skjeffreys import JeffreysDensity

OURS = "JeffreysDensity"
METHODS = {
    OURS: lambda seed: JeffreysDensity(random_state=seed),
    "energy": lambda seed: JeffreysDensity(proxy="energy", random_state=seed),
    "likelihood": lambda seed: JeffreysDensity(objective="likelihood", random_state=seed),
    "flows": lambda seed: FlowDensity(random_state=seed),
    "flows, likelihood": lambda seed: FlowDensity(objective="likelihood", random_state=seed),
    "KernelDensity": PEERS["KernelDensity"],
    "GaussianMixture": PEERS["GaussianMixture"],
}
#: From the Jeffreys objective to likelihood, all else equal.
OPPONENTS = {OURS: "likelihood", "flows": "flows, likelihood"}
SIZES = [100, 300, 1000, 3000, 10_000]
TEST_ROWS = 5000
#: Share of the known density outside the region that samples should stay in.
TAIL = 1e-3
EDGE_ROWS = 200_000
#: What is measured; smaller is better.
MEASURES = ["forward", "reverse", "Jeffreys", "outside"]
COLUMNS = ["density", "d", "n", "seed", "method", *MEASURES, "forward +-", "reverse +-", "seconds"]


def run(name, d, n_rows, seed, method):
    """Fit one estimator; return a CSV row of divergences, in nats, with their standard errors."""
    truth = KNOWN_DENSITIES[name](d)
    rng = np.random.RandomState(seed)
    rows, test = truth.sample(n_rows, rng), truth.sample(TEST_ROWS, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        density = METHODS[method](seed).fit(rows)
        seconds = time.perf_counter() - start
    samples = density.sample(TEST_ROWS, random_state=seed)
    log_truth = truth.log_density(samples)
    forward = truth.log_density(test) - density.score_samples(test)
    reverse = density.score_samples(samples) - log_truth
    edge = np.quantile(truth.log_density(truth.sample(EDGE_ROWS, rng)), TAIL)
    means = [forward.mean(), reverse.mean(), forward.mean() + reverse.mean()]
    errors = [values.std() / np.sqrt(TEST_ROWS) for values in (forward, reverse)]
    outside = (log_truth < edge).mean()
    return [name, d, n_rows, seed, method, *means, outside, *errors, seconds]


def report(results):
    """Print the means over seeds, and the lead of the Jeffreys objective."""
    keys = ["density", "d", "n"]
    for measure in MEASURES:
        table = results.pivot(index=[*keys, "seed"], columns="method", values=measure)
        print(f"\n{measure}, means over the seeds:")
        print(table.groupby(keys, sort=False).mean()[list(METHODS)].round(4).to_string())
        for method, other in OPPONENTS.items():
            lead = (table[other] - table[method]).groupby("n").agg(["mean", "median", "sem"])
            print(f"\nLead of {method} over {other}, {measure}:")
            print(lead.round(4).to_string())
        cells = table.groupby(keys).mean()
        print(f"\nMedians over the densities, {measure}:")
        print(cells.groupby("n").median()[list(METHODS)].round(4).to_string())
        pairs = [*OPPONENTS.items(), (OURS, "KernelDensity"), (OURS, "GaussianMixture")]
        ahead = {f"{m} ahead of {other}": cells[m] < cells[other] for m, other in pairs}
        print(f"\nDensities of which one is ahead of another, {measure}:")
        print(pd.DataFrame(ahead).groupby("n").sum().T.to_string())


def plot(results):
    """Draw both directions over the number of rows, one panel a density and a dimension."""
    names, dimensions = results["density"].unique(), results["d"].unique()
    figure, axes = plt.subplots(
        len(names), len(dimensions), figsize=(4 * len(dimensions), 3 * len(names)),
        layout="constrained", sharex=True, squeeze=False,
    )  # fmt: skip
    for row, name in zip(axes, names, strict=True):
        for axis, d in zip(row, dimensions, strict=True):
            chosen = results.query("density == @name and d == @d")
            means = chosen.groupby(["method", "n"])[["forward", "reverse"]].mean()
            for color, method in enumerate(METHODS):
                curves = means.loc[method]
                axis.plot(curves.index, curves["forward"], f"C{color}-", label=method)
                axis.plot(curves.index, curves["reverse"], f"C{color}:")
            axis.set(xscale="log", yscale="log", title=f"{name}, d = {d}")
    axes[0, 0].legend(fontsize=7)
    axes[-1, 0].set(xlabel="training rows", ylabel="nats: forward -, reverse :")
    return figure


def add_arguments(parser):
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of rows")


def main():
    options = parse_options(__doc__, add_arguments)
    sizes = [50] if options.quick else options.sizes
    dimensions = [2] if options.quick else [2, 5, 10]
    names = ["banana"] if options.quick else list(KNOWN_DENSITIES)
    jobs = [
        (name, d, n, seed, method)
        for seed in range(1 if options.quick else options.seeds)
        for name, d, n, method in product(names, dimensions, sizes, METHODS)
    ]
    file = options.output / "directions.csv"
    results = run_missing(run, {job: job for job in jobs}, file, COLUMNS, 5, 2)
    report(results)
    plot(results).savefig(options.output / "directions.png", dpi=100)


if __name__ == "__main__":
    main()
