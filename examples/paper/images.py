"""Images from the density of their codes.

An autoencoder compresses images to codes (100 numbers for MNIST, arXiv:2511.11159, Figure 5); the
density of the codes of few and of many images is learned by flows, with the Jeffreys objective, for
the default proxy and the independent energy of the paper, and by likelihood, and as a Gaussian for
comparison; samples are decoded. Printed: the log-density of held-out codes, how far that of the
Jeffreys objective is ahead, with the paired standard error, and a Frechet distance to held-out
images in the features of a small classifier trained here. That is not FID, whose features are of
another network: compare only figures of one run. Drawn: decoded samples from the same noise, and
the training image nearest to some of them.

Without ``--data``, the 1,797 digits of 8 x 8 pixels that ship with scikit-learn; with it, a folder
that holds ``mnist.npz`` (``X``, ``y``, ``X_test``, ``y_test``).
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from flows_alone import FlowDensity
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from study import PEERS, parse_options, run_all, save

OURS = "Jeffreys"
METHODS = {
    OURS: lambda steps: FlowDensity(max_iter=steps, random_state=0),
    "Jeffreys, energy": lambda steps: FlowDensity(proxy="energy", max_iter=steps, random_state=0),
    "likelihood": lambda steps: FlowDensity(objective="likelihood", max_iter=steps, random_state=0),
    "Gaussian": lambda steps: PEERS["Gaussian"](0),
}
FEATURES = 64


class Autoencoder(TransformerMixin, BaseEstimator):
    """Codes of images and images of codes, by scikit-learn's multilayer perceptron.

    Parameters
    ----------
    n_components : int
        Length of a code.
    n_hidden : int
        Width of the hidden layer before and after it.
    max_iter : int
        Epochs.
    """

    def __init__(self, n_components=16, n_hidden=128, max_iter=200):
        self.n_components = n_components
        self.n_hidden = n_hidden
        self.max_iter = max_iter

    def fit(self, X, y=None):
        """Train on images with values from 0 to 1, (n, n_pixels)."""
        self.network_ = MLPRegressor(
            hidden_layer_sizes=(self.n_hidden, self.n_components, self.n_hidden),
            activation="tanh",
            batch_size=128,
            max_iter=self.max_iter,
            tol=0,
            random_state=0,
        ).fit(X, X)
        return self

    def transform(self, X):
        """Encode: the code layer before its activation, so that codes have no bounds.

        Codes are in double precision, in which their densities are learned.
        """
        (first, first_bias), (second, second_bias), *_ = self._layers()
        codes = np.tanh(X @ first + first_bias) @ second + second_bias
        return codes.astype(np.float64)

    def inverse_transform(self, codes):
        """Decode."""
        *_, (third, third_bias), (last, last_bias) = self._layers()
        return np.tanh(np.tanh(codes) @ third + third_bias) @ last + last_bias

    def _layers(self):
        return list(zip(self.network_.coefs_, self.network_.intercepts_, strict=True))


def load_images(folder):
    """Return training images, their labels and test images; values from 0 to 1."""
    if folder is None:
        X, y = load_digits(return_X_y=True)
        X, X_test, y, _ = train_test_split(X / 16, y, test_size=0.3, random_state=0)
        return X, y, X_test
    data = np.load(folder / "mnist.npz")
    X, X_test = (
        data[name].reshape(len(data[name]), -1) / np.float32(255) for name in ("X", "X_test")
    )
    return X, data["y"], X_test


def features(classifier, images):
    """Activations of the only hidden layer."""
    return np.maximum(images @ classifier.coefs_[0] + classifier.intercepts_[0], 0)


def frechet_distance(rows, others):
    """Compute the distance between normal densities fitted to two samples of features."""
    covariance, other = np.cov(rows.T), np.cov(others.T)
    # The trace of the root of the product; rounding can turn zeros negative.
    mixed = np.sqrt(np.linalg.eigvals(covariance @ other).real.clip(min=0)).sum()
    between = np.square(rows.mean(axis=0) - others.mean(axis=0)).sum()
    return between + np.trace(covariance + other) - 2 * mixed


def run(method, n_images, autoencoder, classifier, images, test, steps):
    """Learn the density of codes behind the fitted autoencoder; decode samples."""
    density = METHODS[method](steps).fit(autoencoder.transform(images[:n_images]))
    pipeline = make_pipeline(autoencoder, density)
    decoded = autoencoder.inverse_transform(density.sample(len(test), random_state=0))
    distance = frechet_distance(features(classifier, test), features(classifier, decoded))
    return [
        {
            "images": n_images,
            "method": method,
            "Frechet distance": distance,
            "scores": pipeline.score_samples(test),
            "decoded": decoded[:64],
        }
    ]


def summarize(results):
    """Tabulate log-densities of test codes, and the lead of ours with its standard error."""
    table = results[["images", "method", "Frechet distance"]].copy()
    table["log-density"] = [scores.mean() for scores in results["scores"]]
    ours = results[results["method"] == OURS].set_index("images")["scores"]
    leads = [ours[row.images] - row.scores for row in results.itertuples()]
    table["behind ours"] = [lead.mean() for lead in leads]
    table["+-"] = [lead.std() / np.sqrt(len(lead)) for lead in leads]
    return table


def plot(results, images):
    """Draw samples of each method side by side, and the nearest training images of ours."""
    sizes = results["images"].unique()
    n_columns = 1 + results["method"].nunique()
    figure, axes = plt.subplots(
        len(sizes), n_columns, figsize=(3.2 * n_columns, 3.4 * len(sizes)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for row, n_images in zip(axes, sizes, strict=True):
        decoded = results.query("images == @n_images").set_index("method")["decoded"]
        nearest = NearestNeighbors(n_neighbors=1).fit(images[:n_images])
        ours = decoded[OURS][:32]
        nearest = images[nearest.kneighbors(ours, return_distance=False)[:, 0]]
        panels = decoded.to_dict()
        panels[f"{OURS}, beside nearest images"] = np.stack([ours, nearest], axis=1)
        for axis, (title, tiles) in zip(row, panels.items(), strict=True):
            draw_tiles(axis, tiles)
            axis.set_title(f"{title}: {n_images} images", fontsize=9)
    return figure


def draw_tiles(axis, images):
    """Draw 64 images in a square."""
    side = int(np.sqrt(images.shape[-1]))
    tiles = images.reshape(8, 8, side, side)
    tiles = np.pad(tiles, [(0, 0), (0, 0), (0, 1), (0, 1)]).transpose(0, 2, 1, 3)
    axis.imshow(tiles.reshape(8 * (side + 1), -1), cmap="gray_r", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def main():
    options = parse_options(
        __doc__, lambda parser: parser.add_argument("--data", type=Path, help="folder of mnist.npz")
    )
    images, labels, test = load_images(options.data)
    shape = {"n_components": 16} if options.data is None else {"n_components": 100, "n_hidden": 512}
    epochs, steps, sizes = (5, 50, [200]) if options.quick else (40, "auto", [1000, 10_000])
    if options.quick:
        images, labels = images[:2000], labels[:2000]
    sizes = [min(n, len(images)) for n in sizes]
    autoencoder = Autoencoder(max_iter=epochs, **shape).fit(images)
    classifier = MLPClassifier(hidden_layer_sizes=(FEATURES,), max_iter=epochs, random_state=0)
    classifier.fit(images, labels)
    arguments = (autoencoder, classifier, images[: max(sizes)], test, steps)
    results = run_all(run, [(method, n, *arguments) for n in sizes for method in METHODS])
    reconstructed = autoencoder.inverse_transform(autoencoder.transform(test))
    floor = frechet_distance(features(classifier, test), features(classifier, reconstructed))
    print(f"Error of reconstruction: {np.square(test - reconstructed).mean():.4f} (mean square)")
    print(f"Accuracy of the classifier on its training images: {classifier.score(images, labels)}")
    table = summarize(results)
    print(table.round(2).to_string(index=False))
    print(f"Frechet distance of reconstructed test images: {floor:.2f}")
    save(table, plot(results, images), options.output, "images")


if __name__ == "__main__":
    main()
