"""Learn the density of a real table, compare it with tuned peers, rank its anomalies.

Run with ``python examples/quickstart.py``; it takes under two minutes on two cores and saves
``quickstart.png`` in the working directory (``--output`` puts it elsewhere).
"""

import argparse
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_wine
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

from skjeffreys import DegenerateDataWarning, JeffreysDensity

PEERS = {
    "KernelDensity, tuned": (KernelDensity(), {"bandwidth": np.logspace(-1.2, 0.6, 25)}),
    "GaussianMixture, tuned": (
        GaussianMixture(reg_covar=1e-4, random_state=0),
        {"n_components": range(1, 21), "covariance_type": ["full", "tied", "diag"]},
    ),
}


def peer_log_density(estimator, grid, train, test):
    """Tune on standardised columns; return the test log-density in the original units."""
    scaler = StandardScaler().fit(train)
    search = GridSearchCV(estimator, grid, cv=5, n_jobs=2).fit(scaler.transform(train))
    log_density = search.best_estimator_.score_samples(scaler.transform(test))
    return log_density - np.log(scaler.scale_).sum()


def report(log_densities, density):
    """Print the held-out log-likelihoods, the normaliser and the multipliers."""
    ours = log_densities["JeffreysDensity"]
    rows = {
        name: {
            "held-out log-likelihood": values.mean(),
            "behind JeffreysDensity": (ours - values).mean(),
            "standard error": (ours - values).std(ddof=1) / np.sqrt(len(ours)),
        }
        for name, values in log_densities.items()
    }
    print("\nMean over the held-out rows, in nats of the original units:\n")
    print(pd.DataFrame(rows).T.round(2).to_string())
    print(
        f"\nNormaliser of the proxy: {density.normalizer_:.3f} +- "
        f"{density.normalizer_std_error_:.3f}, effective sample size "
        f"{density.normalizer_ess_:.0%}"
    )
    history = density.history_.set_index("iteration")
    shown = history.iloc[np.linspace(0, len(history) - 1, 5).round().astype(int)]
    print("\nDivergences (nats) and their multipliers during training:\n")
    columns = ["forward", "reverse", "fidelity", "lambda_1", "lambda_2", "lambda_3", "mu"]
    print(shown[columns].round(3).to_string())


def plot(density, X, held_out, scores, path):
    """Draw the data and samples, the multipliers, and the most anomalous rows."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    columns = ["color_intensity", "proline"]
    j, k = (list(X).index(column) for column in columns)
    samples = density.sample(1000, random_state=0)
    left.scatter(samples[:, j], samples[:, k], s=6, alpha=0.3, label="samples of the model")
    left.scatter(X[columns[0]], X[columns[1]], s=12, color="black", label="wines")
    odd = held_out.iloc[np.argsort(scores)[:5]]
    left.scatter(
        odd[columns[0]], odd[columns[1]], s=90, facecolors="none", edgecolors="C3",
        label="most anomalous held-out wines",
    )  # fmt: skip
    left.set(xlabel=columns[0], ylabel=columns[1], title="Data and samples")
    left.legend(fontsize=8)
    history = density.history_
    labels = ["$\\lambda_1$ forward", "$\\lambda_2$ reverse", "$\\lambda_3$ fidelity", "$\\mu$"]
    for column, label in zip(["lambda_1", "lambda_2", "lambda_3", "mu"], labels, strict=True):
        middle.plot(history["iteration"], history[column], label=label)
    middle.set(xlabel="iteration", yscale="log", title="Multipliers")
    middle.legend(fontsize=8)
    for column in ("training_log_likelihood", "validation_log_likelihood"):
        right.plot(history["iteration"], history[column], label=column.split("_")[0])
    right.set(xlabel="iteration", ylabel="nats", title="Mean log-likelihood")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="quickstart.png", help="where to save the picture")
    path = parser.parse_args().output
    # The measurements are rounded: the estimator spreads them over their rounding step.
    warnings.simplefilter("ignore", DegenerateDataWarning)
    X = load_wine(as_frame=True).data
    train, test = train_test_split(X, test_size=0.3, random_state=0)
    print(f"{len(train)} wines to train on, {len(test)} held out, {X.shape[1]} measurements each.")

    density = JeffreysDensity(verbose=True, random_state=0).fit(train)
    scores = density.score_samples(test)
    log_densities = {"JeffreysDensity": scores}
    for name, (estimator, grid) in PEERS.items():
        log_densities[name] = peer_log_density(estimator, grid, train.to_numpy(), test.to_numpy())
    report(log_densities, density)

    order = np.argsort(scores)[:5]
    odd = test.iloc[order][["alcohol", "malic_acid", "color_intensity", "proline"]]
    print("\nThe five most anomalous held-out wines:\n")
    print(odd.assign(log_density=scores[order].round(1)).to_string())
    plot(density, X, test, scores, path)
    print(f"\nPicture: {path}")


if __name__ == "__main__":
    main()
