import os

import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.datasets import make_moons

from skjeffreys import JeffreysDensity

# No test asserts a time, and a failure on one machine must be one on the next.
settings.register_profile("skjeffreys", deadline=None, derandomize=True)
settings.load_profile("skjeffreys")

# Tests run side by side, one process a core: more threads would wait for each other. The second
# line is for the examples, which run in processes of their own.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def ring_of_gaussians(n, random_state):
    """Eight normal densities of standard deviation 0.2 on a circle of radius 2."""
    rng = np.random.RandomState(random_state)
    angle = 2 * np.pi * rng.randint(8, size=n) / 8
    return 2 * np.c_[np.cos(angle), np.sin(angle)] + 0.2 * rng.standard_normal((n, 2))


@pytest.fixture(scope="session")
def moons():
    return make_moons(300, noise=0.1, random_state=0)[0]


@pytest.fixture(scope="session")
def moons_density(moons):
    return JeffreysDensity(random_state=0).fit(moons)
