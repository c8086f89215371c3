"""Images from the density of their codes.

An autoencoder compresses images to codes (100 numbers for MNIST, arXiv:2511.11159, Figure 5); the
density of the codes is learned by flows, with the Jeffreys objective, for the default proxy and the
independent energy of the paper, and by likelihood, and as a Gaussian for comparison; samples are
decoded. Printed: the log-density of held-out codes and a Frechet distance to held-out images in the
features of a small classifier trained here. That is not FID, whose features are of another network:
compare only figures of one run. Drawn: decoded samples from the same noise, and the training image
nearest to some of them.

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

METHODS = {
    "Jeffreys": lambda steps: FlowDensity(max_iter=steps, random_state=0),
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


def run(method, autoencoder, classifier, images, test, steps):
    """Learn the density of codes behind the fitted autoencoder; decode samples."""
    density = METHODS[method](steps).fit(autoencoder.transform(images))
    pipeline = make_pipeline(autoencoder, density)
    decoded = autoencoder.inverse_transform(density.sample(len(test), random_state=0))
    distance = frechet_distance(features(classifier, test), features(classifier, decoded))
    return [
        {
            "method": method,
            "log-density of test codes": pipeline.score_samples(test).mean(),
            "Frechet distance": distance,
            "decoded": decoded,
        }
    ]


def plot(results, images):
    """Draw samples of each method side by side, and the nearest training images of ours."""
    side = int(np.sqrt(images.shape[1]))
    figure, axes = plt.subplots(
        1, len(results) + 1, figsize=(3.2 * len(results) + 3.2, 3.6), layout="constrained"
    )
    ours = results.set_index("method").loc["Jeffreys", "decoded"][:32]
    nearest = NearestNeighbors(n_neighbors=1).fit(images).kneighbors(ours, return_distance=False)
    pairs = np.stack([ours, images[nearest[:, 0]]], axis=1).reshape(64, -1)
    panels = {row.method: row.decoded[:64] for row in results.itertuples()}
    panels["Jeffreys, each beside the nearest training image"] = pairs
    for axis, (title, tiles) in zip(axes, panels.items(), strict=True):
        tiles = np.pad(tiles.reshape(8, 8, side, side), [(0, 0), (0, 0), (0, 1), (0, 1)])
        tiles = tiles.transpose(0, 2, 1, 3).reshape(8 * (side + 1), 8 * (side + 1))
        axis.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
    return figure


def main():
    options = parse_options(
        __doc__, lambda parser: parser.add_argument("--data", type=Path, help="folder of mnist.npz")
    )
    images, labels, test = load_images(options.data)
    shape = {"n_components": 16} if options.data is None else {"n_components": 100, "n_hidden": 512}
    epochs, steps, n_rows = (5, 50, 500) if options.quick else (40, 4000, 10_000)
    if options.quick:
        images, labels = images[:2000], labels[:2000]
    autoencoder = Autoencoder(max_iter=epochs, **shape).fit(images)
    classifier = MLPClassifier(hidden_layer_sizes=(FEATURES,), max_iter=epochs, random_state=0)
    classifier.fit(images, labels)
    arguments = (autoencoder, classifier, images[:n_rows], test, steps)
    results = run_all(run, [(method, *arguments) for method in METHODS])
    reconstructed = autoencoder.inverse_transform(autoencoder.transform(test))
    floor = frechet_distance(features(classifier, test), features(classifier, reconstructed))
    print(f"Error of reconstruction: {np.square(test - reconstructed).mean():.4f} (mean square)")
    print(f"Accuracy of the classifier on its training images: {classifier.score(images, labels)}")
    table = results.drop(columns="decoded")
    print(table.round(2).to_string(index=False))
    print(f"Frechet distance of reconstructed test images: {floor:.2f}")
    save(table, plot(results, images[:n_rows]), options.output, "images")


if __name__ == "__main__":
    main()
