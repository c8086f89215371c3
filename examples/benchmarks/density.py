"""Held-out log-likelihood and fit time on real tables, beside tuned peers.

Every ``.npz`` file of the folder ``--data`` holds a table ``X``. Each split draws training rows
and at most 2,000 test rows from it. Results are appended to ``density.csv`` in ``--output``, the
log-densities of the test rows beside it, and a run resumes where the last one stopped. Printed,
per table and training size: the score of each method in nats of the original units, and how far
JeffreysDensity is ahead of the best peer, chosen after the fact.
"""

import argparse
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from peers import PEERS
from resume import run_missing
from threadpoolctl import threadpool_limits

from skjeffreys import JeffreysDensity
from skjeffreys._ensemble import mixture_log_density
from skjeffreys._estimator import MAXIMUM_STEPS

MAXIMUM_TEST_ROWS = 2000
OURS = "JeffreysDensity"
METHODS = {
    OURS: lambda seed: JeffreysDensity(random_state=seed),
    "likelihood": lambda seed: JeffreysDensity(objective="likelihood", random_state=seed),
    "independent energy": lambda seed: JeffreysDensity(proxy="energy", random_state=seed),
    "JeffreysDensity, last": lambda seed: JeffreysDensity(early_stopping=False, random_state=seed),
    "likelihood, last": lambda seed: JeffreysDensity(
        objective="likelihood", early_stopping=False, random_state=seed
    ),
    "JeffreysDensity, last of many": lambda seed: JeffreysDensity(
        early_stopping=False, max_iter=MAXIMUM_STEPS, random_state=seed
    ),
    "likelihood, last of many": lambda seed: JeffreysDensity(
        objective="likelihood", early_stopping=False, max_iter=MAXIMUM_STEPS, random_state=seed
    ),
    **PEERS,
}
#: From likelihood to the Jeffreys objective, all else equal.
OBJECTIVES = {
    f"likelihood{training}": f"{OURS}{training}" for training in ("", ", last", ", last of many")
}
COLUMNS = ["set", "n_train", "split", "method", "rows", "columns", "seconds", "score"]
COLUMNS += ["normalizer", "normalizer_std_error", "normalizer_ess"]
#: Log-densities of parts of JeffreysDensity, from its models and rows of coordinates.
PARTS = {
    "a single flow": lambda models, rows: models["flow"].log_prob(rows).mean(dim=0),
    "the mean of the flows": lambda models, rows: mixture_log_density(
        models["flow"].log_prob(rows)
    ),
}
COLUMNS += PARTS


def split_table(path, n_train, split):
    """Draw training rows, 70% of the table at most, and test rows."""
    X = np.load(path)["X"].astype(float)
    order = np.random.default_rng([n_train, split]).permutation(len(X))
    n = min(n_train, int(0.7 * len(X)))
    return X[order[:n]], X[order[n : n + MAXIMUM_TEST_ROWS]]


def run(path, n_train, split, method, output):
    """Fit and score one method; keep the log-densities of the test rows; return a CSV row."""
    training, test = split_table(path, n_train, split)
    estimator = METHODS[method](split)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        estimator.fit(training)
        seconds = time.perf_counter() - start
    log_density = estimator.score_samples(test)
    np.save(rows_path(output, path.stem, n_train, split, method), log_density)
    normalizer = [
        getattr(estimator, name, np.nan)
        for name in ("normalizer_", "normalizer_std_error_", "normalizer_ess_")
    ]
    parts = part_scores(estimator, test) if isinstance(estimator, JeffreysDensity) else []
    shape = training.shape
    score = log_density.mean()
    return [path.stem, n_train, split, method, *shape, seconds, score, *normalizer, *parts]


def part_scores(density, rows):
    """Mean log-densities of the parts of a fitted JeffreysDensity."""
    no_conditions = np.empty((len(rows), 0))
    return [density._log_density(no_conditions, rows, part).mean() for part in PARTS.values()]


def rows_path(output, name, n_train, split, method):
    """Path of the log-densities of the test rows of one run."""
    return output / "rows" / f"{name}-{n_train}-{split}-{method}.npy"


def margin(table, output, method, other, cell):
    """Mean and standard error, paired over test rows, of the lead of ``method`` in a cell."""
    differences = [
        np.load(rows_path(output, *cell, split, method))
        - np.load(rows_path(output, *cell, split, other))
        for split in table.loc[cell].index
    ]
    differences = np.concatenate(differences)
    return differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))


def summarize(results, output):
    """Tabulate scores per cell, with the lead over the best peer and over likelihood."""
    split = ["set", "n_train", "split"]
    scores = results.pivot_table("score", split, "method").dropna()
    seconds = results.pivot_table("seconds", split, "method").loc[scores.index]
    seconds = seconds.groupby(["set", "n_train"]).mean()
    cells = scores.groupby(["set", "n_train"]).mean()
    peers = [name for name in PEERS if name in cells]
    summary = cells.copy()
    for other, method in {"best peer": OURS, **OBJECTIVES}.items():
        if method not in cells or not (peers if other == "best peer" else other in cells):
            continue
        for cell in cells.index:
            name = cells.loc[cell, peers].idxmax() if other == "best peer" else other
            lead, error = margin(scores, output, method, name, cell)
            summary.loc[cell, f"lead on {other}"] = lead
            summary.loc[cell, f"+- ({other})"] = error
    if peers:
        summary["best peer"] = cells[peers].idxmax(axis=1)
    if {OURS, "GaussianMixture", "NSF"} <= set(seconds):
        slower = seconds[["GaussianMixture", "NSF"]].max(axis=1)
        summary["time ratio"] = seconds[OURS] / slower
    return summary


def report(summary):
    """Print the table and what it amounts to."""
    print(summary.round(3).to_string())
    for column in summary.filter(like="lead on"):
        other = column.removeprefix("lead on ")
        lead, error = summary[column], summary[f"+- ({other})"]
        print(
            f"Ahead of {other} in {(lead > 0).sum()} of {len(lead)} cells, by {lead.mean():.3f} "
            f"nats on average; behind by more than one standard error in {(lead < -error).sum()}."
        )
    if "time ratio" in summary:
        print(
            "Fit time over that of the slower of the GaussianMixture search and the NSF: median "
            f"{summary['time ratio'].median():.2f}, largest {summary['time ratio'].max():.2f}."
        )


def report_parts(results, method, other):
    """Print what the Jeffreys objective adds to a flow, to their mean, and beside mixtures."""
    print(f"Ahead of {other}; standard errors over the splits, so that the luck of a fit counts:")
    for part in [*PARTS, "score"]:
        scores = results.pivot(index=["set", "n_train", "split"], columns="method", values=part)
        lead = (scores[method] - scores[other]).groupby(["set", "n_train"])
        mean, error = lead.mean(), lead.sem()
        for n_train, cells in mean.groupby("n_train"):
            errors = error[cells.index]
            line = f"  {part}, {n_train} rows: {(cells > 0).sum()} of {len(cells)}, by "
            line += f"{cells.mean():.3f} nats"
            if errors.notna().all():  # A single split has none.
                line += f"; by more than two standard errors in {(cells > 2 * errors).sum()}, "
                line += f"behind so in {(cells < -2 * errors).sum()}"
            print(line)


def report_normalizer(results):
    """Print the worst normaliser and effective sample size."""
    ours = results[results["method"] == OURS]
    deviation = (ours["normalizer"] - 1).abs()
    print(
        f"Normaliser: largest deviation from 1 {deviation.max():.3f}, smallest effective sample "
        f"size {ours['normalizer_ess'].min():.3f}, unknown in {deviation.isna().sum()} of "
        f"{len(ours)} fits."
    )


def plot(summary, path):
    """Draw the lead over the best peer and over likelihood in each cell."""
    columns = [c for c in summary.filter(like="lead on") if ", last" not in c]
    figure, axes = plt.subplots(
        1, len(columns), figsize=(5 * len(columns), 0.25 * len(summary) + 1.2), sharey=True
    )
    labels = [f"{name}, {n}" for name, n in summary.index]
    for axis, column in zip(np.atleast_1d(axes), columns, strict=True):
        other = column.removeprefix("lead on ")
        error = summary[f"+- ({other})"]
        axis.errorbar(summary[column], labels, xerr=error, fmt="o", markersize=4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set_xlabel(f"nats ahead of {other}")
        axis.grid(axis="y", alpha=0.3)
    np.atleast_1d(axes)[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz tables")
    parser.add_argument("--output", type=Path, default=Path("density-benchmark"))
    parser.add_argument("--n-train", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--sets", nargs="+", help="names of tables; default all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    paths = sorted(options.data.glob("*.npz"))
    if options.sets:
        paths = [options.data / f"{name}.npz" for name in options.sets]
    (options.output / "rows").mkdir(parents=True, exist_ok=True)
    jobs = {
        (path.stem, n_train, split, method): (path, n_train, split, method)
        for split in range(options.splits)
        for path in paths
        for n_train in options.n_train
        for method in options.methods
    }
    file = options.output / "density.csv"
    results = run_missing(run, jobs, file, COLUMNS, 4, options.jobs, options.output)
    summary = summarize(results, options.output)
    report(summary)
    for other, method in OBJECTIVES.items():
        if {method, other} <= set(options.methods):
            report_parts(results, method, other)
    if OURS in options.methods:
        report_normalizer(results)
        plot(summary, options.output / "density.png")


if __name__ == "__main__":
    main()
