"""Prediction intervals on a real table: the progression of diabetes after a year.

Prints how many of the held-out patients fall into the predicted intervals, how wide these are, and
the held-out log-likelihood beside that of a linear regression with normal errors; saves a picture.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from skjeffreys import JeffreysConditionalDensity

LEVELS = (0.5, 0.8, 0.9)


def predict_held_out(X, y, levels, n_folds):
    """Return quantiles and log-density of each patient by a fit to others; also that of a ridge."""
    quantiles = np.empty((len(y), len(levels)))
    log_density, normal = np.empty(len(y)), np.empty(len(y))
    for train, test in KFold(n_folds, shuffle=True, random_state=0).split(X):
        density = JeffreysConditionalDensity(bounds=(0, np.inf), random_state=0)
        density.fit(X[train], y[train])
        quantiles[test] = density.predict_quantile(X[test], levels)
        log_density[test] = density.score_samples(X[test], y[test])
        ridge = RidgeCV(np.logspace(-4, 2, 13)).fit(X[train], y[train])
        scale = (y[train] - ridge.predict(X[train])).std()
        normal[test] = norm.logpdf(y[test], ridge.predict(X[test]), scale)
    return pd.DataFrame(quantiles, columns=levels), log_density, normal


def edges(level):
    """Levels of the quantiles between which a central interval lies."""
    return 0.5 - level / 2, 0.5 + level / 2


def report(bands, y, log_density, normal):
    """Print coverage, width and log-density."""
    rows = {}
    for level in LEVELS:
        low, high = (bands[edge] for edge in edges(level))
        rows[f"{level:.0%}"] = [np.mean((low < y) & (y < high)), np.mean(high - low)]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["coverage", "mean width"])
    print(table.round(3).to_string())
    difference = log_density - normal
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    print(
        f"Held-out log-density {log_density.mean():.3f} nats, ahead of a ridge regression with "
        f"normal errors by {difference.mean():.3f} +- {error:.3f}"
    )


def plot(bands, y, path):
    """Draw the intervals and what happened."""
    order = np.argsort(sum(bands[edge] for edge in edges(LEVELS[0])))
    for level in LEVELS[::-1]:
        low, high = (bands[edge][order] for edge in edges(level))
        shade = plt.cm.Blues(1 - 0.8 * level)
        plt.fill_between(range(len(y)), low, high, color=shade, label=f"{level:.0%}")
    plt.plot(y[order], ".k", markersize=3)
    plt.xlabel("patients, by the middle of their 50% interval")
    plt.ylabel("progression of the disease")
    plt.legend()
    plt.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("intervals.png"))
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    X, y = X.drop(columns="sex").to_numpy(), y.to_numpy()  # A column of two values adds little.

    # The target is a positive score in whole numbers: spread over their rounding step.
    y = y + np.random.default_rng(0).uniform(-0.5, 0.5, size=len(y))
    levels = sorted({edge for level in LEVELS for edge in edges(level)})
    bands, log_density, normal = predict_held_out(X, y, levels, options.folds)
    report(bands, y, log_density, normal)
    plot(bands, y, options.output)


if __name__ == "__main__":
    main()
