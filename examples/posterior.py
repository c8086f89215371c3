"""From a simulator to a posterior: how was a ball thrown.

A ball is thrown from a height, at a speed and an angle; a blurred photograph shows where it is
after half a second and where it lands. Prints the posterior mean and interval of each parameter,
given one photograph, and how often such intervals hold; saves a picture of the posterior.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from skjeffreys import JeffreysConditionalDensity

PARAMETERS = ["height", "speed", "angle"]
LOW, HIGH = np.array([0.5, 5.0, 0.1]), np.array([2.5, 15.0, 1.2])  # m, m/s, rad
GRAVITY = 9.81


def simulate(parameters, rng):
    """Photograph throws: position after half a second, and where they land, in metres."""
    height, speed, angle = parameters.T
    across, up = speed * np.cos(angle), speed * np.sin(angle)
    time = 0.5
    landing = (up + np.sqrt(up**2 + 2 * GRAVITY * height)) / GRAVITY
    positions = [across * time, height + up * time - GRAVITY * time**2 / 2, across * landing]
    return np.column_stack(positions) + 0.3 * rng.standard_normal((len(parameters), 3))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("posterior.png"))
    parser.add_argument("--simulations", type=int, default=2000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)

    # 1. Draw parameters from the prior, uniform in a box, and simulate.
    parameters = rng.uniform(LOW, HIGH, size=(options.simulations, 3))
    photographs = simulate(parameters, rng)

    # 2. Learn the density of the parameters given a photograph.
    posterior = JeffreysConditionalDensity(bounds=(LOW, HIGH), random_state=0)
    posterior.fit(photographs, pd.DataFrame(parameters, columns=PARAMETERS))

    # 3. Ask it about a photograph.
    truth = np.array([[1.8, 9.0, 0.6]])
    samples = posterior.sample(simulate(truth, rng), n_samples=4000)[0]
    low, high = np.quantile(samples, [0.05, 0.95], axis=0)
    table = {"truth": truth[0], "mean": samples.mean(axis=0), "5%": low, "95%": high}
    print(pd.DataFrame(table, index=PARAMETERS).round(2).to_string())

    # 4. Do such intervals hold? Try them on throws that it has not seen.
    parameters = rng.uniform(LOW, HIGH, size=(500, 3))
    photographs = simulate(parameters, rng)
    low, high = np.quantile(posterior.sample(photographs, 400), [0.05, 0.95], axis=1)
    held = ((low < parameters) & (parameters < high)).mean(axis=0)
    print("Share of 90% intervals that hold:", pd.Series(held, PARAMETERS).round(3).to_dict())
    print(
        f"Mean log-density of the parameters: {posterior.score(photographs, parameters):.2f} nats"
    )

    pd.plotting.scatter_matrix(
        pd.DataFrame(samples, columns=PARAMETERS), s=3, alpha=0.3, figsize=(7, 7), range_padding=0.1
    )
    plt.suptitle("Posterior given one photograph")
    plt.savefig(options.output, dpi=100)


if __name__ == "__main__":
    main()
