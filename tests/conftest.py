import os

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


@pytest.fixture(scope="session")
def moons():
    return make_moons(300, noise=0.1, random_state=0)[0]


@pytest.fixture(scope="session")
def moons_density(moons):
    return JeffreysDensity(random_state=0).fit(moons)
