"""Simulation-based inference beside the neural posterior estimation of the sbi package.

Every ``.npz`` file of the folder ``--data`` is a task: parameters ``theta`` from a uniform prior,
simulations ``x``, pairs for testing, and observations with samples of the reference posterior.
Measured per task, number of simulations and seed: the accuracy of a classifier between samples
and reference (C2ST, 0.5 is perfect), the log-density of test parameters, the coverage of central
intervals, and the training time. Results are appended to ``sbi.csv`` in ``--output``; a run
resumes where the last one stopped.
"""

import argparse
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from npe import NeuralPosterior
from resume import run_missing
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from skjeffreys import JeffreysConditionalDensity

#: Half the width of the uniform prior of each task, centred at zero.
BOUNDS = {"two_moons": 1.0, "slcp": 3.0, "gaussian_linear_uniform": 1.0}
OURS = "JeffreysConditionalDensity"
METHODS = {
    OURS: lambda bound, seed: JeffreysConditionalDensity(bounds=(-bound, bound), random_state=seed),
    "NPE nsf": lambda bound, seed: NeuralPosterior("nsf", bound, seed),
    "NPE maf": lambda bound, seed: NeuralPosterior("maf", bound, seed),
}
#: Samples of a posterior that are compared with as many of the reference.
POSTERIOR_SAMPLES = 1000
#: Test pairs for the log-density; for the coverage, and posterior samples for each of these.
TEST_PAIRS, COVERAGE_PAIRS, COVERAGE_SAMPLES = 500, 300, 200
LEVELS = (0.5, 0.8, 0.95)
#: Parameters in a plot of pairs, the first ones.
PAIRED_PARAMETERS = 5
COLUMNS = ["task", "simulations", "seed", "method", "seconds", "log_density", "std_error"]
COLUMNS += ["c2st", "c2st_std_error", *(f"coverage_{level}" for level in LEVELS)]


def c2st(reference, samples, seed):
    """Held-out accuracy of a network that tells samples from the reference."""
    n, d = reference.shape
    rows = (np.r_[reference, samples] - reference.mean(axis=0)) / reference.std(axis=0)
    network = MLPClassifier((10 * d, 10 * d), max_iter=500, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return cross_val_score(network, rows, np.repeat([0, 1], n), cv=folds).mean()


def coverage(samples, truth):
    """Share of parameters inside the central intervals of their samples, for each level."""
    return shares_inside((samples < truth[:, None]).mean(axis=1))


def shares_inside(ranks):
    """Share of ranks, from 0 to 1, inside the central interval of each level."""
    return np.array([np.mean(np.abs(ranks - 0.5) < level / 2) for level in LEVELS])


def run(path, n_simulations, seed, method, n_observations, output):
    """Train and measure one method; keep posterior samples; return a CSV row."""
    data = np.load(path)
    order = np.random.default_rng(seed).permutation(len(data["theta"]))[:n_simulations]
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        posterior = METHODS[method](BOUNDS[path.stem], seed)
        posterior.fit(data["x"][order], data["theta"][order])
        seconds = time.perf_counter() - start
        test_x, test_theta = data["x_test"][:TEST_PAIRS], data["theta_test"][:TEST_PAIRS]
        log_density = posterior.score_samples(test_x, test_theta)
        observations = data["observation"][:n_observations]
        samples = posterior.sample(observations, POSTERIOR_SAMPLES, random_state=seed)
        reference = data["reference_posterior"][:, :POSTERIOR_SAMPLES]
        accuracies = [
            c2st(r, s, seed) for r, s in zip(reference[:n_observations], samples, strict=True)
        ]
        pairs = slice(COVERAGE_PAIRS)
        covered = posterior.sample(test_x[pairs], COVERAGE_SAMPLES, random_state=seed)
        shares = coverage(covered, test_theta[pairs])
    np.save(samples_path(output, path.stem, n_simulations, seed, method), samples[0])
    summaries = [
        f(values)
        for values in (log_density, np.array(accuracies))
        for f in (np.mean, lambda values: values.std(ddof=1) / np.sqrt(len(values)))
    ]
    return [path.stem, n_simulations, seed, method, seconds, *summaries, *shares]


def samples_path(output, task, n_simulations, seed, method):
    """Path of the samples given the first observation."""
    return output / "samples" / f"{task}-{n_simulations}-{seed}-{method}.npy"


def report(results):
    """Print the means over seeds and, with all methods, where ours is ahead of the better peer."""
    cells = results.groupby(["task", "simulations", "method"]).mean(numeric_only=True)
    print(cells.drop(columns="seed").round(3).to_string())
    # Among samples of a calibrated posterior the rank of a parameter is uniform. The parameters of
    # a pair go together: the band is that of as many parameters as there are pairs.
    calibrated = shares_inside(np.arange(COVERAGE_SAMPLES + 1) / COVERAGE_SAMPLES)
    band = 1.96 * np.sqrt(calibrated * (1 - calibrated) / COVERAGE_PAIRS)
    inside = (cells.filter(like="coverage") - calibrated).abs() <= band
    print(f"Coverage of a calibrated posterior: {calibrated.round(3)} +- {band.round(3)}, within:")
    print(inside.groupby("method").sum().to_string())
    if results["method"].nunique() < len(METHODS):
        return
    for column, sign in (("c2st", -1), ("log_density", 1)):
        table = sign * cells[column].unstack()
        ahead = table[OURS] > table.drop(columns=OURS).max(axis=1)
        print(f"Ahead of the better peer in {column}: {ahead.sum()} of {len(ahead)} cells.")
    seconds = cells["seconds"].unstack()
    ratio = seconds[OURS] / seconds.drop(columns=OURS).max(axis=1)
    print(f"Training time over that of the slower peer: {ratio.round(2).to_dict()}")


def plot(results, data, output):
    """Draw the first two parameters given the first observation, beside the reference."""
    cells = results[["task", "simulations"]].drop_duplicates().itertuples(index=False, name=None)
    cells = sorted(cells)
    measured = set(results["method"])
    columns = ["reference", *(method for method in METHODS if method in measured)]
    figure, axes = plt.subplots(
        len(cells), len(columns), figsize=(3 * len(columns), 3 * len(cells)), squeeze=False
    )
    for row, (task, n_simulations) in zip(axes, cells, strict=True):
        reference = np.load(data / f"{task}.npz")["reference_posterior"][0, :POSTERIOR_SAMPLES]
        for axis, name in zip(row, columns, strict=True):
            path = samples_path(output, task, n_simulations, results["seed"].min(), name)
            points = reference if name == "reference" else np.load(path)
            axis.scatter(*points[:, :2].T, s=2, alpha=0.4)
            axis.set_xlim(reference[:, 0].min() - 0.1, reference[:, 0].max() + 0.1)
            axis.set_ylim(reference[:, 1].min() - 0.1, reference[:, 1].max() + 0.1)
            axis.set_title(name if name != "reference" else f"{task}, {n_simulations:,}")
    figure.tight_layout()
    figure.savefig(output / "sbi.png", dpi=80)


def plot_pairs(results, data, output):
    """Draw pairs of parameters of each task: reference below the diagonal, ours above."""
    for task, n_simulations in results.groupby("task")["simulations"].max().items():
        path = samples_path(output, task, n_simulations, results["seed"].min(), OURS)
        reference = np.load(data / f"{task}.npz")["reference_posterior"][0, :POSTERIOR_SAMPLES]
        both = {"reference": reference, OURS: np.load(path)}
        size = min(reference.shape[1], PAIRED_PARAMETERS)
        figure, axes = plt.subplots(size, size, figsize=(2 * size, 2 * size), squeeze=False)
        for (i, j), axis in np.ndenumerate(axes):
            limits = reference[:, j].min() - 0.1, reference[:, j].max() + 0.1
            axis.set_xlim(limits)
            if i == j:
                for points in both.values():
                    axis.hist(points[:, j], bins=40, range=limits, histtype="step")
            else:
                points = both["reference" if i > j else OURS]
                axis.plot(points[:, j], points[:, i], f"C{int(i < j)}.", markersize=1, alpha=0.4)
                axis.set_ylim(reference[:, i].min() - 0.1, reference[:, i].max() + 0.1)
        title = f"{task}, {n_simulations:,} simulations\nreference: blue, ours: orange"
        figure.suptitle(title, fontsize=9)
        figure.tight_layout()
        figure.savefig(output / f"pairs-{task}.png", dpi=70)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz tasks")
    parser.add_argument("--output", type=Path, default=Path("sbi-benchmark"))
    parser.add_argument("--tasks", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    parser.add_argument("--simulations", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--observations", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    (options.output / "samples").mkdir(parents=True, exist_ok=True)
    jobs = {
        (task, n, seed, method): (options.data / f"{task}.npz", n, seed, method)
        for seed in range(options.seeds)
        for n in options.simulations
        for task in options.tasks
        for method in options.methods
    }
    output = options.output.resolve()
    arguments = (options.observations, output)
    results = run_missing(run, jobs, output / "sbi.csv", COLUMNS, 4, options.jobs, *arguments)
    report(results)
    plot(results, options.data, output)
    if OURS in options.methods:
        plot_pairs(results, options.data, output)


if __name__ == "__main__":
    main()
